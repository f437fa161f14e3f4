"""Appends that something cuts short, and values that must not slip in."""

from __future__ import annotations

import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors
from recollect.hot import append as appending
from recollect.hot import blocks

SCHEMA = rc.Schema(
    {"observation": rc.Tensor("float32", (3,)), "action": rc.Tensor("float32", (6,)), "note": rc.Text(optional=True)},
    episode={"task": rc.Text()},
)
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
