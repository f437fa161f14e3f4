"""`recollect doctor --store`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from recollect.testing.proxy import FaultProxy
from tests import stores
from tests.cli.driver import Cli


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with stores.moto() as url:
        stores.make_bucket(url, "doctored")
        yield url


def _options(endpoint: str) -> list[str]:
    return [w for k, v in stores.s3_options(endpoint).items() for w in ("--storage-option", f"{k}={v}")]


def _of_store(checks: list[dict[str, str]]) -> list[tuple[str, str]]:
    return [(c["name"], c["level"]) for c in checks if c["name"].startswith("store ")]


def test_a_good_store_passes_and_no_secret_is_shown(cli: Cli, endpoint: str) -> None:
    ran = cli("doctor", "--store", "s3://doctored/replay", *_options(endpoint), "--json")
    assert (ran.code, ran.document["ok"]) == (0, True)
    assert _of_store(ran.document["checks"]) == [
        ("store account", "ok"),
        ("store is reachable", "ok"),
        ("store is writable", "ok"),
        ("store refuses a second creation of a key", "ok"),
    ]
    assert "test-secret" not in ran.out and "credentials: storage options" in ran.out and endpoint in ran.out
    assert "_probe" not in stores.keys_of(endpoint, "doctored")


def test_keys_from_a_file_are_told_by_their_place(cli: Cli, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    file = Path(os.environ["AWS_SHARED_CREDENTIALS_FILE"])
    file.parent.mkdir()
    file.write_text("[work]\naws_access_key_id = test-key\naws_secret_access_key = test-secret\n")
    monkeypatch.setenv("AWS_PROFILE", "work")
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    ran = cli("doctor", "--store", "s3://doctored/replay")
    assert ran.code == 0 and "profile 'work'" in ran.out and "test-secret" not in ran.out


def test_a_store_without_conditional_put_fails(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "served" / "doctored").mkdir(parents=True)
    with stores.rclone(tmp_path / "served") as url:
        ran = cli("doctor", "--store", "s3://doctored/replay", *_options(url), "--json")
    assert (ran.code, ran.document["ok"]) == (1, False)
    assert _of_store(ran.document["checks"])[-1] == ("store is writable", "failed")
    assert "If-None-Match" in ran.document["checks"][-1]["text"]


def test_a_store_that_may_not_be_written_or_reached_or_has_no_credentials_fails(cli: Cli, endpoint: str) -> None:
    class ReadOnly(FaultProxy):
        def refuses(self, method: str, path: str) -> tuple[int, str] | None:
            return (403, "AccessDenied") if method != "GET" else None

    with ReadOnly(endpoint) as store:
        ran = cli("doctor", "--store", "s3://doctored/replay", *_options(store.url), "--json")
    assert _of_store(ran.document["checks"])[1:] == [("store is reachable", "ok"), ("store is writable", "failed")]
    dead = f"http://127.0.0.1:{stores.free_port()}"
    ran = cli("doctor", "--store", "s3://doctored/replay", *_options(dead), "--json")
    assert _of_store(ran.document["checks"]) == [("store account", "failed")]
    ran = cli("doctor", "--store", "s3://doctored/replay", "--json")
    assert ran.code == 1 and _of_store(ran.document["checks"]) == [("store account", "failed")]
    assert "AWS_ACCESS_KEY_ID" in ran.document["checks"][-1]["remedy"]


def test_a_local_folder_is_checked_too(cli: Cli, tmp_path: Path) -> None:
    ran = cli("doctor", "--store", str(tmp_path / "new" / "replay"), "--json")
    assert ran.code == 0 and [level for _, level in _of_store(ran.document["checks"])] == ["ok"] * 3
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    ran = cli("doctor", "--store", str(tmp_path / "file" / "replay"), "--json")
    assert ran.code == 1
