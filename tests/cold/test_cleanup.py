"""Cleanup takes what nobody names, keeps what somebody does, and lets nothing land on what it took."""

from __future__ import annotations

import threading
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

import recollect as rc
from recollect import errors
from recollect.buffer import Buffer
from recollect.cold import cleanup as module
from recollect.cold import history as history_module
from recollect.cold import pins
from recollect.cold.dataset import Datasets
from recollect.cold.leases import Leases
from recollect.cold.location import Location
from recollect.promote import snapshot as promoting
from tests.support import all_ids

SCHEMA = rc.Schema(
    {"observation": rc.Tensor("float32", (2,)), "reward": rc.Tensor("float32"), "uid": rc.Tensor("int64")},
    episode={"task": rc.Text()},
)
NOW = timedelta(0)


def _write(writer: rc.Writer, first: int, count: int = 4) -> None:
    episode = writer.episode(task=f"t{first}")
    for uid in range(first, first + count):
        episode.append(observation=[uid, 0], reward=1.0, uid=uid, next_observation=[uid + 1, 0])


def _fill(ws: rc.Workspace, buffer: Path, rounds: int, *, first: int = 0, tag: bool = False) -> None:
    for k in range(first, first + rounds):
        _write(ws.writer(), 1000 * k)
        ws.snapshot(buffer, tag=f"t{k}" if tag else None)


def _whole(ws: rc.Workspace, buffer: Buffer) -> None:
    view = buffer.at()
    assert all_ids(view) == all_ids(ws.view(cut=view.cut))
    assert len(view.rows) == len(ws.view().rows)
    assert sum(len(h) for h in view.facts.history.values()) == sum(n for _, n in view.cut.facts)
    assert len(view) == len(ws.view())
    assert buffer.verify().ok


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leftovers go whatever their age."""
    monkeypatch.setattr(module, "STAGED_S", 0.0)


def test_tags_pins_the_newest_and_the_young_stay(tmp_path: Path) -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        _fill(ws, tmp_path / "b", 4)
        ws.snapshot(tmp_path / "b", tag="named")  # version 5
        _fill(ws, tmp_path / "b", 3, first=10)
        buffer = rc.open_buffer(tmp_path / "b")
        assert buffer.cleanup().versions == () and buffer.cleanup().young == 7
        pin = buffer.pin(3, hold=timedelta(hours=1))
        tried = buffer.cleanup(NOW, dry_run=True)
        assert tried.dry_run and tried.versions == (1, 2, 4, 6, 7) and tried.bytes > 0
        assert [v.kept for v in buffer.versions()] == [True] * 7
        done = buffer.cleanup(NOW)
        assert (done.versions, done.tagged) == ((1, 2, 4, 6, 7), {5: ("named",)})
        assert done.pinned == {3: pin.until} and done.bytes > 0
        versions = buffer.versions()
        assert [(v.version, v.kept) for v in versions] == [
            (2, False), (3, True), (4, False), (5, True), (6, False), (7, False), (8, True),
        ]  # fmt: skip
        with pytest.raises(errors.NotFound, match="version 4"):
            buffer.at(4)
        assert all(len(buffer.at(v)) for v in (3, 5, "named", 8, None))
        _whole(ws, buffer)
        assert buffer.tags() == {"named": 5}
        pin.release()
        assert 3 in buffer.cleanup(NOW).versions
        _fill(ws, tmp_path / "b", 2, first=20)
        _whole(ws, rc.open_buffer(tmp_path / "b"))


def test_a_pin_that_ran_out_goes(tmp_path: Path) -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        _fill(ws, tmp_path / "b", 3)
        buffer = rc.open_buffer(tmp_path / "b")
        buffer.pin(2, hold=timedelta(seconds=-1))
        assert 2 in buffer.cleanup(NOW).versions
        assert pins.pins(Datasets.open_(Location(tmp_path / "b"))) == {}
        with pytest.raises(errors.NotFound):
            buffer.pin(2)
        with pytest.raises(errors.ArgumentError, match="pin"):
            ws.snapshot(tmp_path / "b", tag="recollect.pin.mine")


def test_a_pin_waits_for_a_cleanup_that_may_not_have_seen_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The cleanup has read the tags, then the pin is made, then the cleanup removes the version."""
    real = module._versions
    with rc.create_workspace("w", SCHEMA) as ws:
        _fill(ws, tmp_path / "b", 3)
        outcome: list[Any] = []

        def pin() -> None:
            try:
                outcome.append(rc.open_buffer(tmp_path / "b").pin(2))
            except errors.NotFound as e:
                outcome.append(e)

        thread = threading.Thread(target=pin)

        def removing(steps: Any, numbers: list[int], dry_run: bool) -> int:
            if not dry_run:
                thread.start()
                started = time.monotonic()
                while not pins.pins(Datasets.open_(Location(tmp_path / "b"))):
                    assert time.monotonic() - started < 60
                    time.sleep(0.005)
                assert outcome == []
            return real(steps, numbers, dry_run)

        monkeypatch.setattr(module, "_versions", removing)
        done = rc.open_buffer(tmp_path / "b").cleanup(NOW)
        thread.join()
        (got,) = outcome
        there = 2 in Datasets.open_(Location(tmp_path / "b")).version_numbers()
        assert there == (2 not in done.versions) == isinstance(got, pins.Pin)


def test_two_cleanups_do_not_run_at_once(tmp_path: Path) -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        _fill(ws, tmp_path / "b", 2)
        buffer = rc.open_buffer(tmp_path / "b")
        with Leases(Location(tmp_path / "b")).hold(pins.CLEANUP, 60), pytest.raises(errors.ConflictError):
            buffer.cleanup(NOW)
        assert buffer.cleanup(NOW).versions


class _Killed(BaseException):
    pass


def _die_before_commit(ws: rc.Workspace, buffer: Path) -> None:
    """A promotion that staged everything and was killed before its commit."""

    def die(self: Datasets, *arguments: Any) -> int:
        raise _Killed

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Datasets, "commit_steps", die)
        with pytest.raises(_Killed):
            ws.snapshot(buffer)


def test_leftovers_of_killed_promotions_go_and_nothing_else(
    at_once: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(history_module, "FOLD_LINKS", 3)
    with rc.create_workspace("w", SCHEMA) as ws:
        _fill(ws, tmp_path / "b", 5)
        _write(ws.writer(), 5000)
        _die_before_commit(ws, tmp_path / "b")
        buffer = rc.open_buffer(tmp_path / "b")
        data = Datasets.open_(Location(tmp_path / "b"))
        files = len(data.records.names())
        staged = {n: data.dataset(n).count_rows() for n in ("facts", "tails")}
        tried = buffer.cleanup(timedelta(days=1), dry_run=True)
        done = buffer.cleanup(timedelta(days=1))
        assert (done.history_files, done.rows) == (tried.history_files, tried.rows) == (1, 2)
        assert {n: data.dataset(n).count_rows() for n in staged} == {n: rows - 1 for n, rows in staged.items()}
        assert len(data.records.names()) == files - 1
        assert buffer.cleanup(timedelta(days=1)).history_files == 0
        assert [len(buffer.at(v.version)) for v in buffer.versions()] == [4 * (k + 1) for k in range(5)]
        ws.snapshot(tmp_path / "b")
        _whole(ws, rc.open_buffer(tmp_path / "b"))


def test_young_leftovers_stay(tmp_path: Path) -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        _fill(ws, tmp_path / "b", 2)
        _write(ws.writer(), 5000)
        _die_before_commit(ws, tmp_path / "b")
        done = rc.open_buffer(tmp_path / "b").cleanup(timedelta(days=1))
        assert (done.history_files, done.rows, done.bytes) == (0, 0, 0)


@pytest.mark.parametrize("stopped", ["before the record", "before the commit"])
def test_a_promotion_that_was_stopped_through_a_cleanup_does_not_land_on_what_it_took(
    stopped: str, at_once: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It read its version and found its files young enough; then two days pass, and a cleanup."""
    monkeypatch.setattr(promoting, "STAGE_LIFETIME_S", 0.0)  # what it staged before the stop is too old after it
    name = {"before the record": "record", "before the commit": "commit_steps"}[stopped]
    real: Any = getattr(Datasets, name)
    with rc.create_workspace("w", SCHEMA) as ws:
        _fill(ws, tmp_path / "b", 3)
        _write(ws.writer(), 5000)
        stops: list[int] = []

        def stop(self: Datasets, *arguments: Any) -> Any:
            if not stops:
                stops.append(1)
                assert rc.open_buffer(tmp_path / "b").cleanup(NOW).rows == 2
            return real(self, *arguments)

        monkeypatch.setattr(Datasets, name, stop)
        ws.snapshot(tmp_path / "b")
        assert stops
        _whole(ws, rc.open_buffer(tmp_path / "b"))


def test_a_promotion_whose_version_is_gone_stages_on_the_newest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = Datasets.commit_steps
    with rc.create_workspace("w", SCHEMA) as ws, rc.create_workspace("v", SCHEMA) as other:
        _fill(ws, tmp_path / "b", 2)
        _write(ws.writer(), 5000)

        def overtaken(self: Datasets, *arguments: Any) -> int:
            monkeypatch.setattr(Datasets, "commit_steps", real)
            _fill(other, tmp_path / "b", 3, first=50)
            buffer = rc.open_buffer(tmp_path / "b")
            assert int(arguments[0].version) in buffer.cleanup(NOW).versions
            return real(self, *arguments)

        monkeypatch.setattr(Datasets, "commit_steps", overtaken)
        assert ws.snapshot(tmp_path / "b").rows_added == 4
        buffer = rc.open_buffer(tmp_path / "b")
        assert len(set(all_ids(buffer.at()))) == len(buffer.at().rows) == 24
        assert buffer.verify().ok


def test_a_tag_that_was_never_made_and_whose_version_is_gone_is_let_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(self: Datasets, tag: str, version: int) -> bool:
        raise _Killed

    with rc.create_workspace("w", SCHEMA) as ws, rc.create_workspace("v", SCHEMA) as other:
        _write(ws.writer(), 0)
        with monkeypatch.context() as patch:
            patch.setattr(Datasets, "create_tag", die)
            with pytest.raises(_Killed):
                ws.snapshot(tmp_path / "b", tag="lost")
        _fill(other, tmp_path / "b", 2)
        assert 2 in rc.open_buffer(tmp_path / "b").cleanup(NOW).versions
        _write(ws.writer(), 100)
        assert ws.snapshot(tmp_path / "b", tag="next").rows_added == 4


def test_bad_ages_are_refused(tmp_path: Path) -> None:
    Datasets.create(Location(tmp_path / "b"), SCHEMA)
    with pytest.raises(errors.ArgumentError, match="negative"):
        rc.open_buffer(tmp_path / "b").cleanup(timedelta(days=-1))
