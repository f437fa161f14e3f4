"""What the machine does to a writer besides killing it: stops it, forks it, runs out of room, refuses a flush."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect.errors import DiskFull, StoreError, WriterError
from recollect.hot.write import growing
from recollect.testing.actor import Actor
from recollect.testing.corpus import SCHEMAS
from recollect.testing.expected import Bounds, Expectation
from recollect.testing.ledger import Append, Close, Evict, Evolve, Ledger, Limit, Op, Open, Sync
from recollect.testing.oracle import check_workspace
from tests.support import python, run_python

STEPS = 5


class Play:
    """An actor in this process with the model that follows it."""

    def __init__(self, ws: rc.Workspace) -> None:
        self.actor = Actor(ws, Ledger(ws.durability))
        self.model = Expectation(self.actor.ledger, {}, {}, {}, 0, 0)

    def do(self, *ops: Op) -> None:
        for op in ops:
            first, _ = self.actor.do(op)
            if isinstance(op, Open):
                self.model.writers[first] = op.writer
        for number, log in self.actor.ledger.logs.items():
            steps, marks = len(log.moments), len(log.marks)
            self.model.bounds[number] = Bounds(steps, steps, marks, marks, steps)

    def refused(self, op: Op, error: type[Exception]) -> bool:
        """Whether a writer's operation raises, leaving nothing behind."""
        assert not isinstance(op, Limit | Evict | Evolve)
        ledger, log = self.actor.ledger, self.actor.ledger.logs[op.writer]
        before, steps = list(log.moments), dict(ledger.steps)
        numbers, held, finished = dict(ledger.numbers), dict(ledger.held), set(ledger.finished)
        try:
            self.do(op)
        except error:
            log.moments[:] = before
            ledger.steps, ledger.numbers, ledger.held, ledger.finished = steps, numbers, held, finished
            return True
        return False

    def until_refused(self, op: Op, error: type[Exception]) -> None:
        """Does the operation over and over until it raises: there may be room that was made ready ahead."""
        assert any(self.refused(op, error) for _ in range(1000)), "it was never refused"

    def check(self, path: Path) -> None:
        with rc.open_workspace(path) as ws:
            check_workspace(ws, self.model)


def begun(path: Path, durability: Any = "process") -> Play:
    play = Play(rc.create_workspace(path, SCHEMAS["mixed"](), durability="process"))
    play.do(Open(0, durability), *[Append(0, 0, "", "same")] * STEPS)
    return play


# -- stopped and doubled processes -----------------------------------------------------------------------------------

WRITER = """
import sys
from pathlib import Path
import recollect as rc
from recollect.testing.actor import Actor
from recollect.testing.ledger import Append, Open
actor = Actor(rc.open_workspace(sys.argv[1]))
actor.do(Open(int(sys.argv[2]), "interval"))
print(actor.writers[int(sys.argv[2])].id, flush=True)
while True:
    actor.do(Append(int(sys.argv[2]), 0, "", "same"))
    print(len(actor.ledger.logs[int(sys.argv[2])].moments), flush=True)
"""


@contextlib.contextmanager
def writing(path: Path, number: int) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A process that appends without end, and its writer's id."""
    child = python(WRITER, str(path), str(number))
    assert child.stdout is not None
    try:
        yield child, int(child.stdout.readline())
    finally:
        child.send_signal(signal.SIGCONT)
        child.kill()
        child.communicate()


def test_nothing_waits_for_a_writer_that_is_stopped(tmp_path: Path) -> None:
    rc.create_workspace(tmp_path / "w", SCHEMAS["mixed"]()).close()
    with writing(tmp_path / "w", 0) as (child, writer):
        assert child.stdout is not None
        for _ in range(50):
            acknowledged = int(child.stdout.readline())
        child.send_signal(signal.SIGSTOP)
        assert os.WIFSTOPPED(os.waitpid(child.pid, os.WUNTRACED)[1])
        with rc.open_workspace(tmp_path / "w") as ws:
            assert not ws.recovered
            view = ws.view()
            uids = view.rows.gather(np.arange(len(view.rows)), ("uid",))["uid"]
            assert len(uids) >= acknowledged and uids.tolist() == list(range(len(uids)))
            (stats,) = ws.stats().writers
            assert (stats.writer, stats.live) == (writer, True)
            with ws.writer() as other, other.episode() as episode:
                episode.append(observation=np.zeros(4, np.float32), flag=True, reward=None, uid=1_000_000)
                other.sync()
            assert int(ws.recent(1)[0]["uid"]) == 1_000_000
            with pytest.raises(WriterError, match="1 live"):
                rc.delete_workspace(tmp_path / "w")
            assert ws.snapshot(tmp_path / "buffer").message
        child.send_signal(signal.SIGCONT)
        for _ in range(50):
            assert child.stdout.readline()


PROMOTER = """
import os, signal, sys
import recollect as rc
from recollect.promote import snapshot as promote
real = promote.stage
def stop(*arguments, **options):
    os.kill(os.getpid(), signal.SIGSTOP)
    return real(*arguments, **options)
promote.stage = stop
print(rc.open_workspace(sys.argv[1]).snapshot(sys.argv[2]).message, flush=True)
"""


def test_writers_readers_and_other_targets_go_on_behind_a_promoter_that_is_stopped(tmp_path: Path) -> None:
    """A second promoter of the same target waits for the first; it goes on when that one does, or dies."""
    play = begun(tmp_path / "w")
    child = python(PROMOTER, str(tmp_path / "w"), str(tmp_path / "one"))
    second: subprocess.Popen[str] | None = None
    try:
        assert os.WIFSTOPPED(os.waitpid(child.pid, os.WUNTRACED)[1])
        play.do(*[Append(0, 0, "", "same")] * 3, Open(1, "step"), Append(1, 0, "terminated"))
        play.check(tmp_path / "w")
        with rc.open_workspace(tmp_path / "w") as ws:
            ws.snapshot(tmp_path / "two")
            assert len(rc.open_buffer(tmp_path / "two").at().rows) == len(ws.view().rows)
        second = python(
            "import sys, recollect as rc; rc.open_workspace(sys.argv[1]).snapshot(sys.argv[2])",
            str(tmp_path / "w"),
            str(tmp_path / "one"),
        )
        with pytest.raises(subprocess.TimeoutExpired):
            second.wait(1.5)
        child.kill()
        assert second.wait(60) == 0
        assert len(rc.open_buffer(tmp_path / "one").at().rows) == len(rc.open_workspace(tmp_path / "w").view().rows)
    finally:
        for process in (child, second):
            if process is not None:
                process.kill()
                process.communicate()


def test_after_a_fork_the_child_reads_and_may_not_write_and_the_parent_goes_on(tmp_path: Path) -> None:
    code = """
import os, sys
import recollect as rc
from recollect import errors
from recollect.testing.actor import Actor
from recollect.testing.corpus import SCHEMAS
from recollect.testing.ledger import Append, Close, Lanes, Open, Sync
ws = rc.create_workspace(sys.argv[1], SCHEMAS["mixed"]())
actor = Actor(ws)
for op in (Open(0, "interval"), *[Append(0, 0, "", "same")] * 5):
    actor.do(op)
reader = rc.open_workspace(sys.argv[1])
assert len(reader.view().rows) == 5
pid = os.fork()
if pid == 0:
    refused = 0
    for op in (Append(0, 0), Append(0, 7), Lanes(0, 4, ((0, ""),)), Sync(0)):
        try:
            actor.do(op)
        except errors.WriterError:
            refused += 1
    seen = len(reader.view().rows), len(ws.view().rows), len(ws.recent(9))
    mine = ws.writer(durability="process")
    assert mine.id != actor.writers[0].id
    mine.close()
    os._exit(10 * refused + (seen == (5, 5, 5)))
_, status = os.waitpid(pid, 0)
for op in (*[Append(0, 0, "", "same")] * 5, Sync(0)):
    actor.do(op)
print(os.waitstatus_to_exitcode(status), len(reader.view().rows), rc.open_workspace(sys.argv[1]).recovered)
"""
    assert run_python(code, str(tmp_path / "w")).split() == ["41", "10", "[]"]


def test_a_process_that_has_a_dead_writers_number_does_not_keep_its_log_open(tmp_path: Path) -> None:
    """Whether a writer lives is told by its lock, not by the process number in its log."""
    code = """
import os, sys
import recollect as rc
from recollect.hot.format import segment
from recollect.testing.actor import Actor
from recollect.testing.ledger import Append, Open
os.getpid = lambda real=os.getpid(): int(sys.argv[2])
actor = Actor(rc.open_workspace(sys.argv[1]))
for op in (Open(0, "process"), *[Append(0, 0)] * 5):
    actor.do(op)
os._exit(0)
"""
    rc.create_workspace(tmp_path / "w", SCHEMAS["mixed"]()).close()
    run_python(code, str(tmp_path / "w"), str(os.getpid()))
    with rc.open_workspace(tmp_path / "w") as ws:
        assert [r.rows for r in ws.recovered] == [5]
        assert [w.live for w in ws.stats().writers] == [False]


# -- no room ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB, where this user may mount one."""
    at = tmp_path / "disk"
    at.mkdir()
    mounted = os.geteuid() == 0 and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(at)], capture_output=True
    ).returncode == 0  # fmt: skip
    if not mounted:
        pytest.skip("mounting a small file system takes root")
    yield at
    subprocess.run(["umount", "-l", str(at)], check=True)


def _fill(path: Path) -> Path:
    """Takes all the room that is left."""
    filler = path / "filler"
    with open(filler, "wb", buffering=0) as f:
        for size in (1 << 16, 1 << 12, 1):
            with contextlib.suppress(OSError):
                while f.write(b"\0" * size) == size:
                    pass
    return filler


def test_on_a_full_disk_nothing_changes_and_everything_goes_on_when_there_is_room(
    small_disk: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growing, "SEGMENT_BYTES", (1 << 14,))
    play = begun(small_disk / "w")
    play.do(Open(1, "process"), Append(1, 0))
    filler = _fill(small_disk)
    with pytest.raises(DiskFull):
        play.actor.workspace.writer()
    with pytest.raises((DiskFull, StoreError)):
        rc.create_workspace(small_disk / "other", SCHEMAS["plain"]())
    play.until_refused(Append(0, 0, "", "same"), DiskFull)
    assert play.refused(Append(0, 1, "terminated", "other"), DiskFull)
    play.do(Append(1, 0, "", "none"), Sync(1), Sync(0))
    check_workspace(play.actor.workspace, play.model)
    filler.unlink()
    play.do(*[Append(0, 0, "", "same")] * 80, Append(0, 1), Open(2, "process"), Append(2, 0))
    check_workspace(play.actor.workspace, play.model)
    play.do(Close(0), Close(1), Close(2))
    play.check(small_disk / "w")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_no_room_for_the_next_segment_leaves_the_writer_as_it_was(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growing, "SEGMENT_BYTES", (1 << 14,))
    play = begun(tmp_path / "w")
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", _failing(code))
        with pytest.raises(DiskFull):
            play.actor.workspace.writer()
        play.until_refused(Append(0, 0), DiskFull)
        check_workspace(play.actor.workspace, play.model)
    play.do(Append(0, 0), Open(1, "process"), Append(1, 0), Close(0), Close(1))
    play.check(tmp_path / "w")


def _failing(code: int) -> Callable[..., None]:
    def fail(*arguments: Any) -> None:
        raise OSError(code, os.strerror(code))

    return fail


# -- a disk that refuses ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["sync", "step", "close", "interval"])
def test_a_refused_flush_ends_the_writer_and_no_other(
    way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No flush of that log is tried again: the kernel may call its pages clean."""
    play = begun(tmp_path / "w")
    play.do(Sync(0), Open(1, "process"), Append(1, 0))
    if way in ("step", "interval"):
        play.do(Open(2, way), Append(2, 0))
    victim = 2 if way in ("step", "interval") else 0
    writer = play.actor.writers[victim]
    tried: list[int] = []

    def refuse(fd: int) -> None:
        tried.append(fd)
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", refuse)
        patch.setattr(os, "fsync", refuse)
        if way == "interval":
            play.do(Append(2, 0))
            stop = time.monotonic() + 20
            while writer.usable:
                assert time.monotonic() < stop, "the flush was never tried"
                time.sleep(0.02)
        elif way == "step":
            with pytest.raises(StoreError):
                play.actor.do(Append(2, 0))
            log = play.model.ledger.logs[2]
            play.model.bounds[2] = Bounds(1, len(log.moments), 0, 0, 1)
        else:
            with pytest.raises(StoreError):
                writer.sync() if way == "sync" else writer.close()
        count = len(tried)
        assert count
        for act in (writer.sync, lambda: writer.episode().append(uid=0)):
            with pytest.raises(WriterError):
                act()
        assert len(tried) == count
    play.do(Append(1, 0), Sync(1))
    writer.close()  # somebody was told
    assert len(tried) == count
    if way == "close":
        play.model.bounds[0].most_marks = 0
    play.check(tmp_path / "w")
    with rc.open_workspace(tmp_path / "w") as ws:
        durable = {w.writer: w.durable for w in ws.stats().writers}
        assert durable[play.actor.writers[0].id] >= STEPS


def test_too_many_open_files_is_an_error_that_passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing, "SEGMENT_BYTES", (1 << 14,))
    play = begun(tmp_path / "w")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    top = os.dup(0)
    os.close(top)
    resource.setrlimit(resource.RLIMIT_NOFILE, (top, hard))
    try:
        with pytest.raises(StoreError):
            play.actor.workspace.writer()
        play.until_refused(Append(0, 0), StoreError)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    play.do(Append(0, 0), Open(1, "process"), Append(1, 0), Close(0), Close(1))
    play.check(tmp_path / "w")


def test_locks_are_what_tells_the_living(tmp_path: Path) -> None:
    play = begun(tmp_path / "w")
    lock = next((tmp_path / "w" / "log").glob("*/lock"))
    with open(lock, "rb") as f, pytest.raises(BlockingIOError):
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
    play.do(Close(0))
    with open(lock, "rb") as f:
        fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)
