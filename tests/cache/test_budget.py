"""How much room blocks may take."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from recollect import errors
from recollect.cache.budget import budget_bytes, parse_bytes


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("1", 1),
        ("1000000", 1_000_000),
        ("10GB", 10_000_000_000),
        ("10 gb", 10_000_000_000),
        ("512MiB", 512 << 20),
        ("1.5GiB", 3 << 29),
        ("2k", 2000),
        ("3Ti", 3 << 40),
        ("77B", 77),
    ],
)
def test_sizes(text: str, want: int) -> None:
    assert parse_bytes(text) == want


@pytest.mark.parametrize("text", ["", "0", "0.5", "-1", "ten", "10 GBB", "1e9", "GB", "10GB 5", "0x10", "nan"])
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(errors.ArgumentError, match="Write 10GB"):
        parse_bytes(text)


def test_the_budget_is_half_of_the_free_space_and_of_what_is_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that it does not change while the cache grows."""
    monkeypatch.delenv("RECOLLECT_CACHE_BYTES", raising=False)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    assert budget_bytes(tmp_path / "not" / "there", 0) == 500
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=400))
    assert budget_bytes(tmp_path, 600) == 500
    monkeypatch.setenv("RECOLLECT_CACHE_BYTES", "7KB")
    assert budget_bytes(tmp_path, 600) == 7000
