"""Appends that something cuts short, and values that must not slip in."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors
from recollect.hot.format import spare
from recollect.hot.format.files import os_errors
from recollect.hot.read.turns import Turns
from recollect.hot.write import append as appending
from recollect.hot.write import blocks
from recollect.hot.write.growing import GrowingLog
from recollect.hot.write.writer import _live
from recollect.view import StepId

SCHEMA = rc.Schema(
    {"observation": rc.Tensor("float32", (3,)), "action": rc.Tensor("float32", (6,)), "note": rc.Text(optional=True)},
    episode={"task": rc.Text()},
)
SMALL = rc.Schema({"uid": rc.Tensor("int64")})
GOOD: dict[str, Any] = {"observation": np.zeros(3, np.float32), "action": np.zeros(6, np.float32)}


@pytest.mark.parametrize("where", ["_advance", "_put_tail"])
def test_an_append_interrupted_halfway_ends_the_writer_and_shows_nothing(
    where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C between two counters: what a later append would publish could be half of each."""
    with rc.create_workspace("w", SCHEMA) as ws:
        writer = ws.writer()
        episode = writer.episode()
        episode.append(**GOOD, note="one", next_observation=np.ones(3, np.float32))

        def interrupt(*args: Any, **kwargs: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as m:
            m.setattr(appending.StepAppender, where, interrupt)
            with pytest.raises(KeyboardInterrupt):
                episode.append(**GOOD, note="two", next_observation=np.ones(3, np.float32))
        with pytest.raises(errors.WriterError, match="interrupted"):
            episode.append(**GOOD, note="three")
        writer.close()
        assert [s["note"] for s in ws.recent(9)] == ["one"]
        with ws.writer() as other, other.episode() as going_on:
            going_on.append(**GOOD, note="four")
        assert [s["note"] for s in ws.recent(9)] == ["four", "one"]


def test_a_block_interrupted_halfway_ends_the_writer_and_shows_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = {"episode": [0], "step": [0], "observation": np.zeros((1, 3)), "action": np.zeros((1, 6))}
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer:

        def interrupt(*args: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as m:
            m.setattr(blocks, "_remember", interrupt)
            with pytest.raises(KeyboardInterrupt):
                writer.extend(columns)
        with pytest.raises(errors.WriterError, match="interrupted"):
            writer.extend(columns)
        assert len(ws.recent(9)) == 0


def test_a_block_that_finds_no_room_leaves_no_facts_either(monkeypatch: pytest.MonkeyPatch) -> None:
    n = 20_000
    columns = {
        "episode": np.zeros(n, np.int64),
        "step": np.arange(n),
        "observation": np.zeros((n, 3), np.float32),
        "action": np.zeros((n, 6), np.float32),
        "facts": {0: {"task": "hopper"}},
    }
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer:

        def full(fd: int, offset: int, size: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as m:
            m.setattr(os, "posix_fallocate", full)
            with pytest.raises(errors.DiskFull):
                writer.extend(columns)
        assert ws.stats().facts == 0 and ws.stats().rows == 0
        assert writer.extend(columns) == n
        assert ws.stats().facts == 1 and ws.stats().steps == n


@pytest.mark.parametrize(
    "bad",
    [
        {"action": np.float32(2)},
        {"terminated": "False"},
        {"terminated": np.array([True, False])},
        {"truncated": 1},
        {"priority": -1.0},
        {"priority": float("inf")},
    ],
    ids=str,
)
def test_values_that_would_mean_something_else_are_refused(bad: dict[str, Any]) -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer, writer.episode() as episode:
        with pytest.raises(errors.FieldError, match=next(iter(bad))):
            episode.append(**{**GOOD, **bad})
        assert len(ws.recent(9)) == 0
        last: Any = np.bool_(True)
        episode.append(**GOOD, terminated=last)
        assert ws.recent(1)[0].terminated


def test_segments_give_their_descriptors_back() -> None:
    schema = rc.Schema({"x": rc.Tensor("float32", (4096,))})
    with rc.create_workspace("w", schema, durability="process") as ws:
        before = len(list(Path("/proc/self/fd").iterdir()))
        for _ in range(4):
            writer = ws.writer()
            episode = writer.episode()
            for _ in range(300):
                episode.append(x=np.zeros(4096, np.float32))
                if episode._state.step % 100 == 0:
                    writer.sync()
            writer.close()
        del writer, episode
        ws.writer().close()
        assert len(list(Path("/proc/self/fd").iterdir())) - before < 12


def test_the_newest_step_of_many_lanes_has_its_whole_stack() -> None:
    """In the log, a lane's earlier planes lie as many rows back as there are lanes."""
    lanes, depth = 100, 4
    schema = rc.Schema({"observation": rc.Frames((1,), stack=depth), "x": rc.Tensor("int64")})
    with rc.create_workspace("w", schema) as ws, ws.writer() as writer:
        group = writer.lanes(lanes)
        for t in range(7):
            group.append(observation=np.full((lanes, 1), t, np.uint8), x=np.arange(lanes))
        for step in ws.recent(3):
            assert step["observation"][:, 0].tolist() == [3, 4, 5, 6]


class _InterruptAt:
    """Raises KeyboardInterrupt before the `k`-th instruction of the given functions."""

    def __init__(self, k: int, *functions: Any) -> None:
        self.left, self.codes, self.fired = k, {f.__code__ for f in functions}, False

    def __call__(self, frame: FrameType, event: str, argument: Any) -> Any:
        if frame.f_code in self.codes:
            frame.f_trace_opcodes = True
            return self._local
        return None

    def _local(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "opcode":
            if not self.left:
                self.fired = True
                raise KeyboardInterrupt
            self.left -= 1
        return self._local


@pytest.mark.parametrize("start", range(2))
def test_a_roll_interrupted_anywhere_loses_no_row_and_gives_no_id_twice(
    start: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recollect.hot.write.growing.SEGMENT_BYTES", (1 << 12,))
    ended = []
    with rc.create_workspace("w", SMALL, durability="process") as ws:
        for k in range(start, 1000, 8):
            writer = ws.writer()
            log, episode = writer._log, writer.episode()
            ids: list[StepId] = []
            while log.rows < log._full:
                ids.append(episode.append(uid=len(ids)))
            log._spare.making.wait()
            trace = _InterruptAt(k, GrowingLog.turn_page, GrowingLog.roll, GrowingLog._start, GrowingLog._let_go)
            before = sys.gettrace()
            sys.settrace(trace)
            try:
                ids.append(episode.append(uid=len(ids)))
            except KeyboardInterrupt:
                pass
            finally:
                sys.settrace(before)
            try:
                for _ in range(3):
                    ids.append(episode.append(uid=len(ids)))
            except errors.WriterError as e:
                assert "a roll was interrupted halfway" in str(e)
                ended.append(k)
            assert len(set(ids)) == len(ids)
            assert list(ws.episode(episode.key).ids) == ids
            writer.close()
            if not trace.fired:
                break
    assert ended and min(ended) > start and not trace.fired
    assert rc.open_workspace("w").verify().problems == ()


def test_a_roll_without_room_leaves_everything_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recollect.hot.write.growing.SEGMENT_BYTES", (1 << 12,))
    with rc.create_workspace("w", SMALL, durability="process") as ws, ws.writer() as writer:
        log, episode = writer._log, writer.episode()
        while log.rows < log._full:
            episode.append(uid=log.rows)
        log._spare.discard()
        with monkeypatch.context() as m:
            m.setattr(os, "posix_fallocate", _no_room)
            for _ in range(2):
                with pytest.raises(errors.DiskFull):
                    episode.append(uid=log.rows)
        count = log.rows
        assert episode.append(uid=count).seq == count
        assert [s["uid"] for s in ws.recent(9999)] == list(range(count, -1, -1))


def test_a_file_that_an_interrupted_creation_left_is_no_obstacle(tmp_path: Path) -> None:
    (tmp_path / ".0.new").write_bytes(b"half")
    spare.Blank.create(tmp_path / ".0.new", 1 << 12).discard()
    assert not list(tmp_path.iterdir())


def test_a_close_without_room_for_the_ends_keeps_what_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recollect.hot.write.growing.SEGMENT_BYTES", (1 << 12,))
    ws = rc.create_workspace("w", SMALL)
    full, other = ws.writer(), ws.writer()
    for uid in range(100):
        full.episode().append(uid=uid)  # more open episodes than a segment has room for facts
    other.episode().append(uid=100)
    key = ws.recent(1)[0].episode
    ws.annotate(key, lesson="one")
    (annotator,) = ws._annotator.writers
    full._log._spare.discard()
    with monkeypatch.context() as m:
        m.setattr(os, "posix_fallocate", _no_room)
        with pytest.raises(errors.DiskFull):
            ws.close()
    assert not full.is_open and not other.is_open and not annotator.is_open and not ws._annotator.writers
    assert full not in _live and full.id not in {w.id for w in ws._writers}
    assert full._log.segment.durable_word & 0xFFFFFFFF == full._log.rows
    ws.close()
    with rc.open_workspace("w") as again:
        assert [r.writer for r in again.recovered] == [full.id]
        assert {s["uid"] for s in again.recent(999)} == set(range(101))
        assert again.verify().problems == ()


def test_an_annotator_that_failed_is_closed_before_the_next_one_is_made() -> None:
    with rc.create_workspace("w", SMALL) as ws:
        with ws.writer() as writer, writer.episode() as episode:
            episode.append(uid=0)
        ws.annotate(episode.key, lesson="one")
        (first,) = ws._annotator.writers
        first._log.unusable = "an append was interrupted halfway"
        ws.annotate(episode.key, lesson="two")
        assert not first.is_open and ws._annotator.writers != [first]
        assert ws.episode(episode.key).facts["lesson"] == "two"


def test_a_look_at_the_counters_that_fails_is_made_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with rc.create_workspace("w", SMALL, durability="process") as ws, ws.writer() as writer:
        episode = writer.episode()
        episode.append(uid=0)
        assert ws.cut().rows == 1
        episode.finish(lesson="x")
        episode.append(uid=1)
        with monkeypatch.context() as m:
            m.setattr(Turns, "scan", _interrupt)
            for _ in range(2):
                with pytest.raises(KeyboardInterrupt):
                    ws.cut()
        assert ws.cut().rows == 2


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE])
def test_too_many_open_files_says_so(number: int) -> None:
    with pytest.raises(errors.StoreError, match="ulimit -n"), os_errors("creating", "/x"):
        raise OSError(number, os.strerror(number))


def _no_room(*arguments: int) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def _interrupt(*arguments: Any) -> None:
    raise KeyboardInterrupt
