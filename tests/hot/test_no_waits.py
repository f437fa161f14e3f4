"""No append waits on a lock or for the disk, whatever else goes on. Shown by tracing what it does, not by its time."""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect.hot.retention import retain
from recollect.hot.retention.evict import evict
from recollect.hot.write import writer as writers
from tests.support import python

SCHEMA = rc.Schema({"observation": rc.Tensor("float32", (28,)), "uid": rc.Tensor("int64")})
WAITS: tuple[tuple[Any, str], ...] = (
    (fcntl, "flock"),
    (os, "fsync"),
    (os, "fdatasync"),
    (os, "posix_fallocate"),
    (threading.Thread, "start"),
    (threading.Thread, "join"),
    (threading.Event, "wait"),
    (threading.Condition, "wait"),
)
RING = rc.Keep(rows=10_000, unpromoted="drop")

SNAPSHOTS = """
import itertools, sys
import recollect as rc
ws = rc.open_workspace("w")
for k in itertools.count():
    ws.snapshot(f"{sys.argv[1]}/replay-{k % 3}")
    print(k, flush=True)
"""


class Recorder:
    """A lock that counts the times it was not free."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self.taken = self.contended = 0

    def __enter__(self) -> None:
        self.taken += 1
        if not self._lock.acquire(blocking=False):
            self.contended += 1
            self._lock.acquire()

    def __exit__(self, *arguments: object) -> None:
        self._lock.release()


def _recorded(name: str, real: Callable[..., Any], calls: Counter[tuple[str, bool]]) -> Callable[..., Any]:
    main = threading.get_ident()

    def call(*arguments: Any) -> Any:
        calls[name, threading.get_ident() == main] += 1
        return real(*arguments)

    return call


def _appends(writer: rc.Writer, segments: int) -> int:
    """Appends of every kind, as fast as they go except that they wait for a spare segment. Returns how many."""
    episode = writer.episode()
    lanes = writer.lanes(4)
    seen = np.zeros((4, 28), np.float32)
    uid = np.arange(4)
    count = 0
    while writer._log._count < segments:
        episode.append(observation=seen[0], uid=count, next_observation=seen[1])
        lanes.append(observation=seen, uid=uid, next_observation=seen)
        writer.extend({"episode": uid, "step": uid * 0 + count, "observation": seen, "uid": uid})
        count += 1
        writer._log._spare.making.wait()
    return count


def test_no_append_takes_a_lock_that_is_held_or_flushes_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recollect.hot.write.growing.SEGMENT_BYTES", (1 << 20,))
    monkeypatch.setattr(writers, "FLUSH_INTERVAL_S", 0.002)
    with rc.create_workspace("w", SCHEMA, durability="interval", keep=RING) as ws, ws.writer() as writer:
        _appends(writer, 1)
        writer.episode().append(observation=np.zeros(28), uid=0, next_observation=np.zeros(28))  # the first tail slots
        snapshots = python(SNAPSHOTS, str(tmp_path))
        try:
            assert snapshots.stdout is not None and snapshots.stdout.readline() == "0\n"
            calls: Counter[tuple[str, bool]] = Counter()
            lock = Recorder()
            with monkeypatch.context() as patch:
                patch.setattr(writer._log, "lock", lock)
                for place, name in WAITS:
                    patch.setattr(place, name, _recorded(name, getattr(place, name), calls))
                patch.setattr(retain, "evict", _recorded("evict", evict, calls))
                count = _appends(writer, 5)
            assert snapshots.poll() is None
        finally:
            snapshots.kill()
            snapshots.communicate()
        assert lock.taken >= 3 * count and lock.contended == 0
        assert not [name for (name, mine) in calls if mine]
        assert calls["fdatasync", False] and calls["posix_fallocate", False] >= 3
        ws.retainer.close()
        assert calls["evict", False]


APPENDS = """
import os, time
import numpy as np
import recollect as rc
from recollect.hot.write import growing, writer as writers
from tests.hot.test_no_waits import _appends
growing.SEGMENT_BYTES = (1 << 20,)
writers.FLUSH_INTERVAL_S = 0.01
with rc.open_workspace("w") as ws, ws.writer() as writer:
    writer.episode().append(observation=np.zeros(28), uid=0, next_observation=np.zeros(28))
    print("ready", flush=True)
    os.access("/begin-of-appends", os.F_OK)
    _appends(writer, 4)
    os.access("/end-of-appends", os.F_OK)
"""


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not installed")
def test_the_kernel_sees_no_lock_and_no_flush_by_the_appending_thread(tmp_path: Path) -> None:
    """The same, told by the system calls of a process while this one snapshots its workspace."""
    trace = tmp_path / "trace"
    tracer = f"""
import os, sys
os.execvp("strace", ["strace", "-f", "-qq", "-o", {str(trace)!r}, "-e",
    "trace=flock,fsync,fdatasync,msync,sync_file_range,fallocate,rename,access,faccessat,faccessat2",
    sys.executable, "-c", {APPENDS!r}])
"""
    with rc.create_workspace("w", SCHEMA, durability="interval", keep=RING) as ws:
        child = python(tracer)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n", child.communicate()[1]
        snapshots = 0
        while child.poll() is None:
            ws.snapshot(tmp_path / f"replay-{snapshots % 3}")
            snapshots += 1
        _, err = child.communicate()
        assert child.returncode == 0, err
        assert snapshots > 0
    lines = trace.read_text().splitlines()
    begin, end = (next(i for i, x in enumerate(lines) if f"/{m}-of-appends" in x) for m in ("begin", "end"))
    tid = lines[begin].split()[0]
    names = [(x.split()[0] == tid, m.group(1)) for x in lines[begin:end] if (m := re.match(r"\d+ +(\w+)\(", x))]
    mine = Counter(name for own, name in names if own)
    others = Counter(name for own, name in names if not own)
    assert others["fdatasync"] and others["fallocate"] >= 2
    assert set(mine) <= {"access", "faccessat", "faccessat2", "rename"} and mine["rename"] == 3
