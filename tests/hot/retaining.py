"""What the tests of eviction share: a schema of small rows, small segments, and episodes to fill them with."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import recollect as rc
from recollect.hot.format.evicted import write_evicted
from recollect.hot.format.first import write_first
from recollect.hot.write import growing
from tests.support import python

SCHEMA = rc.Schema(
    {"observation": rc.Tensor("float32", (2,)), "reward": rc.Tensor("float32"), "uid": rc.Tensor("int64")},
    episode={"task": rc.Text()},
)
RING = rc.Keep(rows=300, unpromoted="drop")
SMALL = (1 << 14,)
EVICTOR = """
import sys
import recollect as rc
from recollect.hot.write import growing
growing.SEGMENT_BYTES = (1 << 14,)
ws = rc.open_workspace(sys.argv[1])
print("ready", flush=True)
for line in sys.stdin:
    ws.set_keep(rc.Keep(rows=int(line), unpromoted="drop"))
    print(ws.evict().rows, flush=True)
"""


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing, "SEGMENT_BYTES", SMALL)


def write_episodes(writer: rc.Writer, count: int, *, length: int = 30, first: int = 0, **facts: Any) -> None:
    for k in range(first, first + count):
        with writer.episode(task=f"t{k}", **facts) as episode:
            for i in range(length):
                uid = k * length + i
                episode.append(observation=[uid, i], reward=1.0, uid=uid, terminated=i == length - 1)


def files(ws: rc.Workspace) -> list[str]:
    return sorted(str(p.relative_to(ws.path / "log")) for p in (ws.path / "log").rglob("*") if p.is_file())


def retention(ws: rc.Workspace) -> Any:
    found = ws.stats().retention
    assert found is not None
    return found


def child_of(code: str, *arguments: str) -> subprocess.Popen[str]:
    """A process that runs `code` and has said that it is ready."""
    child = python(code, *arguments)
    assert child.stdout is not None
    line = child.stdout.readline()
    assert line == "ready\n", child.communicate()[1]
    return child


def tell(child: subprocess.Popen[str], line: str) -> None:
    assert child.stdin is not None
    child.stdin.write(line + "\n")
    child.stdin.flush()


@contextlib.contextmanager
def evictor(name: str) -> Iterator[subprocess.Popen[str]]:
    """A process that evicts from a workspace when `evicting` says so."""
    child = child_of(EVICTOR, name)
    try:
        yield child
    finally:
        child.kill()
        child.communicate()


def evicting(child: subprocess.Popen[str], rows: int) -> int:
    """Has an evictor leave so many rows, about. Returns how many went."""
    tell(child, str(rows))
    assert child.stdout is not None
    return int(child.stdout.readline())


@contextlib.contextmanager
def evictions_cut_short(monkeypatch: pytest.MonkeyPatch, calls: int) -> Iterator[None]:
    """So many of the calls by which an eviction changes the disk are carried out; the next one is interrupted. Threads
    in the background are left alone, and begin no eviction of their own."""
    left, mine = [calls], threading.get_ident()

    def dying(real: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            if threading.get_ident() != mine:
                return real(*arguments, **named)
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return real(*arguments, **named)

        return call

    with monkeypatch.context() as patch:
        patch.setattr("recollect.hot.retention.evict.write_first", dying(write_first))
        patch.setattr("recollect.hot.retention.evict.write_evicted", dying(write_evicted))
        patch.setattr("recollect.hot.retention.retain.Retainer.after_roll", lambda retainer: None)
        patch.setattr(Path, "unlink", dying(Path.unlink))
        patch.setattr(Path, "rename", dying(Path.rename))
        patch.setattr(shutil, "rmtree", dying(shutil.rmtree))
        yield
