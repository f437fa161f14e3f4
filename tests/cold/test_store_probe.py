"""A store that overwrites what it was told not to overwrite is refused before a row goes there."""

from __future__ import annotations

import json
import os
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import recollect as rc
from recollect import errors
from recollect.cold import probe
from recollect.cold.location import Location
from recollect.testing.proxy import FaultProxy
from tests import stores
from tests.support import python

PROBER = """
import json, sys
from recollect.cold.location import Location
from recollect.cold.probe import probe
location = Location(sys.argv[1], json.loads(sys.argv[2]))
print("ready", flush=True)
sys.stdin.readline()
for _ in range(3):
    print(probe(location).leftover == "", flush=True)
"""


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with stores.moto() as url:
        stores.make_bucket(url, "bucket")
        yield url


def _write(ws: rc.Workspace, count: int) -> None:
    with ws.writer() as writer, writer.episode() as episode:
        for k in range(count):
            episode.append(reward=float(k), terminated=k == count - 1)


SCHEMA = rc.Schema({"reward": rc.Tensor("float32")})


def test_a_store_that_ignores_if_none_match_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    served = tmp_path / "served"
    (served / "bucket").mkdir(parents=True)
    with stores.rclone(served) as url, rc.create_workspace("w", SCHEMA) as ws:
        _write(ws, 3)
        with pytest.raises(errors.StoreError, match=r"If-None-Match.*would be lost.*Use a store that does") as caught:
            ws.snapshot("s3://bucket/replay", storage_options=stores.s3_options(url))
        assert caught.value.exit_code == 7
        assert [p for p in served.rglob("*") if p.is_file()] == []
        assert ws.snapshot(tmp_path / "b").rows_added == 3


def test_a_store_that_checks_and_then_writes_is_refused(endpoint: str) -> None:
    """One creation after another it refuses; two at a time both find the key free."""

    class CheckThenWrite(FaultProxy):
        barrier = threading.Barrier(probe.RIVALS)

        def translate(self, headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
            if not any(k.lower() == "if-none-match" for k, _ in headers):
                return headers
            with self._lock:
                self.counts["creations"] += 1
                rivals = self.counts["creations"] > 2
            if rivals:
                self.barrier.wait(30)
                return [(k, v) for k, v in headers if k.lower() != "if-none-match"]
            return headers

    with CheckThenWrite(endpoint) as store:
        location = Location("s3://bucket/racy", stores.s3_options(store.url))
        with pytest.raises(errors.StoreError, match="at a time it accepted 4"):
            probe.probe(location)


def test_a_good_store_is_tried_once_a_process_and_nothing_stays(endpoint: str) -> None:
    with FaultProxy(endpoint) as counting:
        location = Location("s3://bucket/once", stores.s3_options(counting.url))
        probe.require_conditional_put(location)
        first = counting.counts["requests"]
        assert first > 0
        probe.require_conditional_put(location)
        probe.require_conditional_put(Location("s3://bucket/once", stores.s3_options(counting.url)))
        assert counting.counts["requests"] == first
        probe.require_conditional_put(Location("s3://bucket/other", stores.s3_options(counting.url)))
        assert counting.counts["requests"] > first
    assert probe.FOLDER not in stores.keys_of(endpoint, "bucket")


def test_a_reader_writes_nothing(endpoint: str) -> None:
    class ReadOnly(FaultProxy):
        def refuses(self, method: str, path: str) -> tuple[int, str] | None:
            return (403, "AccessDenied") if method in ("PUT", "POST", "DELETE") else None

    with rc.create_workspace("w", SCHEMA) as ws:
        _write(ws, 3)
        ws.snapshot("s3://bucket/read", tag="t", storage_options=stores.s3_options(endpoint))
        with ReadOnly(endpoint) as store:
            options = stores.s3_options(store.url)
            buffer = rc.open_buffer("s3://bucket/read", storage_options=options)
            assert len(buffer.at("t").rows) == 3 and buffer.tags() == {"t": 2}
            with pytest.raises(errors.StoreError, match="permission denied"):
                ws.snapshot("s3://bucket/new", storage_options=options)


def test_processes_that_try_a_store_at_the_same_time_all_find_it_good(endpoint: str) -> None:
    options = json.dumps(stores.s3_options(endpoint))
    children = [python(PROBER, "s3://bucket/shared", options) for _ in range(3)]
    for child in children:
        assert child.stdout is not None and child.stdout.readline() == "ready\n"
    for child in children:
        assert child.stdin is not None
        child.stdin.write("\n")
        child.stdin.flush()
    for child in children:
        out, err = child.communicate(timeout=60)
        assert (out, child.returncode) == ("True\n" * 3, 0), err
    assert probe.FOLDER not in stores.keys_of(endpoint, "bucket")


def test_replies_lost_and_requests_late_do_not_make_a_good_store_look_bad(endpoint: str) -> None:
    rates = {"lost": 0.1, "failed_late": 0.1, "late": 0.1, "unavailable": 0.1, "reset": 0.1}
    with FaultProxy(endpoint, seed=5, rates=rates, late_s=0.02) as proxy:  # type: ignore[arg-type]
        for k in range(4):
            probe.probe(Location(f"s3://bucket/faulty-{k}", stores.s3_options(proxy.url)))
        assert proxy.counts["lost"] + proxy.counts["late"] + proxy.counts["failed_late"] > 0


def test_what_cannot_be_deleted_is_named_and_is_no_reason_to_stop(endpoint: str) -> None:
    class NoDeletion(FaultProxy):
        def refuses(self, method: str, path: str) -> tuple[int, str] | None:
            return (403, "AccessDenied") if path.endswith("?delete") or method == "DELETE" else None

    with NoDeletion(endpoint) as store:
        stores.make_bucket(endpoint, "keeping")
        location = Location("s3://keeping/kept", stores.s3_options(store.url))
        assert probe.probe(location).leftover.startswith(probe.FOLDER)
        probe.require_conditional_put(location)


def test_keys_that_a_program_hands_out_serve_the_probe_and_lance(
    endpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lance asks the program by itself, and again when they expire; the other client gets them from us."""
    program = tmp_path / "program"
    made = {"Version": 1, "AccessKeyId": "handed-out", "SecretAccessKey": "s", "SessionToken": "t"}
    program.write_text(f"#!{sys.executable}\nprint({json.dumps(json.dumps(made))})\n")
    program.chmod(0o755)
    config = Path(os.environ["AWS_CONFIG_FILE"])
    config.parent.mkdir()
    config.write_text(f"[profile handed]\nendpoint_url = ENDPOINT\ncredential_process = {program}\n")

    class OnlyThese(FaultProxy):
        def translate(self, headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
            self.counts[{k.lower(): v for k, v in headers}["authorization"].split("/")[0]] += 1
            return headers

    with OnlyThese(endpoint) as store, rc.create_workspace("w", SCHEMA) as ws:
        config.write_text(config.read_text().replace("ENDPOINT", store.url))
        monkeypatch.setenv("AWS_PROFILE", "handed")
        _write(ws, 3)
        assert ws.snapshot("s3://bucket/handed").rows_added == 3
        signed = {k for k in store.counts if k != "requests"}
        assert signed == {"AWS4-HMAC-SHA256 Credential=handed-out"}


def test_an_option_that_the_store_does_not_know_is_named(endpoint: str) -> None:
    options = {**stores.s3_options(endpoint), "aws_acess_key": "x"}
    with pytest.raises(errors.ArgumentError, match="acess_key"):
        probe.probe(Location("s3://bucket/x", options))


def test_a_local_folder_needs_no_probe(tmp_path: Path) -> None:
    probe.require_conditional_put(Location(tmp_path / "b"))
    assert list(tmp_path.glob("b")) == []
