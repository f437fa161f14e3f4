"""A closed workspace for `verify`, and what it says of a healthy one."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

import recollect as rc
from recollect.recall.verify import Report

SCHEMA = rc.Schema(
    {
        "observation": rc.Tensor("float32", (2,)),
        "picture": rc.Frames((3,), optional=True),
        "note": rc.Text(optional=True),
        "uid": rc.Tensor("int64"),
    },
    episode={"task": rc.Text()},
)
ROWS = 400


def step_of(uid: int) -> dict[str, Any]:
    """A step as `append` takes it."""
    return {
        "observation": np.full(2, uid, np.float32),
        "picture": np.full(3, uid % 250 + 1, np.uint8),
        "note": f"note number {uid}",
        "uid": uid,
    }


def write_episodes(writer: rc.Writer, start: int = 0, rows: int = ROWS, length: int = 9) -> None:
    """Whole episodes of `length` steps, from `start` on."""
    uid = start
    while uid < start + rows:
        with writer.episode(id=f"e{uid}", task="find the way") as episode:
            for t in range(length):
                episode.append(**step_of(uid), terminated=t == length - 1)
                uid += 1


def closed_workspace() -> Path:
    """A workspace with one sealed log of several segments, and both indexes."""
    with rc.create_workspace("w", SCHEMA) as ws:
        with ws.writer(durability="process") as writer:
            write_episodes(writer)
        assert len(ws.similar("number 77")) and ws._hot().catalog.catch_up(ws.cut())
    assert len(list(log_of(ws.path).glob("*.seg"))) >= 4
    return ws.path


def log_of(path: Path) -> Path:
    """The folder of a workspace's only log."""
    (log,) = (p for p in (path / "log").iterdir() if not p.name.startswith("."))
    return log


def assert_silent(report: Report) -> None:
    """A report of nothing."""
    assert report.ok and not report.problems, report.problems
