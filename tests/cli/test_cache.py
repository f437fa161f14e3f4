"""`recollect cache`."""

from __future__ import annotations

from pathlib import Path

import pytest

import recollect as rc
from tests.cache.buffers import blocks, make_buffer
from tests.cli.driver import Cli


def test_an_empty_cache_is_shown_and_cleared(cli: Cli, home: Path) -> None:
    shown = cli("cache", "show", "--json").document
    assert (shown["used_bytes"], shown["blocks"], shown["buffers"]) == (0, [], [])
    assert shown["budget_source"] == "default" and shown["budget_bytes"] > 0
    assert cli("cache", "clear", "--json").document == {"blocks": 0, "bytes": 0, "held_bytes": 0}


def test_blocks_are_shown_by_buffer_and_cleared(
    cli: Cli, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RECOLLECT_CACHE_BYTES", "10MB")
    one, two = make_buffer(tmp_path / "1", files=2, name="one"), make_buffer(tmp_path / "2", name="two")
    view = rc.open_buffer(one).at()
    rc.open_buffer(two).at()
    rc.open_buffer(two).at()
    shown = cli("cache", "show", "--json").document
    assert (shown["budget_bytes"], shown["budget_source"]) == (10_000_000, "RECOLLECT_CACHE_BYTES")
    assert shown["used_bytes"] == sum(b["bytes"] for b in shown["blocks"]) > 0
    by = {b["buffer"]: b for b in shown["buffers"]}
    assert (by[str(one)]["blocks"], by[str(one)]["rows"], by[str(one)]["blocks_in_use"]) == (2, 40, 2)
    assert (by[str(two)]["blocks"], by[str(two)]["rows"], by[str(two)]["hits"]) == (1, 20, 1)
    text = cli("cache", "show").out
    assert str(one) in text and "from RECOLLECT_CACHE_BYTES" in text
    gone = cli("cache", "clear", "--buffer", str(two), "--json").document
    assert gone["blocks"] == 1 and gone["held_bytes"] == 0 and len(blocks()) == 2
    assert "come back when" in cli("cache", "clear").out
    assert not blocks() and len(view.rows) == 40


@pytest.mark.parametrize("value", ["", "lots", "0"])
def test_a_budget_that_is_no_size_is_named(value: str, cli: Cli, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RECOLLECT_CACHE_BYTES", value)
    ran = cli("cache", "show", "--json")
    if value:
        assert (ran.code, ran.error["kind"], ran.error["value"]) == (2, "argument", value)
    else:
        assert ran.document["budget_source"] == "default"
