"""The segment that is made ready ahead: used by the roll, left behind by nobody, and never part of the log."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import stat
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors
from recollect.hot.format import spare
from recollect.hot.format.layouts import Layouts
from recollect.hot.format.segment import Segment
from recollect.hot.read.store import HotStore
from recollect.hot.recovery.recover import recover
from tests.support import all_ids, python, run_python

SCHEMA = rc.Schema({"observation": rc.Tensor("float32", (28,)), "uid": rc.Tensor("int64")})
SIZE = 1 << 18


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recollect.hot.write.growing.SEGMENT_BYTES", (SIZE,))


def _append(episode: rc.Episode, uid: int) -> None:
    episode.append(observation=np.zeros(28, np.float32), uid=uid)


def _leftovers(ws: rc.Workspace) -> list[Path]:
    return list(ws.path.rglob(".*.new"))


def _until_prepared(writer: rc.Writer, episode: rc.Episode, uid: int) -> int:
    """Appends until a spare is asked for, waits for it, and returns the next uid."""
    while writer._log._mark is not None:
        _append(episode, uid)
        uid += 1
    writer._log._spare.making.wait()
    return uid


def _roll(writer: rc.Writer, episode: rc.Episode, uid: int) -> int:
    """Appends until the writer is in another segment."""
    segment = writer._log.segment
    while writer._log.segment is segment:
        _append(episode, uid)
        uid += 1
    return uid


def _uids(ws: rc.Workspace) -> list[int]:
    view = ws.view()
    return [int(u) for u in view.rows.gather(np.arange(len(view.rows)), ("uid",))["uid"]]


def test_a_writer_of_few_rows_makes_no_spare() -> None:
    with rc.create_workspace("w", SCHEMA, durability="process") as ws, ws.writer() as writer:
        episode = writer.episode()
        mark = writer._log._mark
        assert mark is not None
        while writer._log.rows < mark.rows:
            _append(episode, 0)
        writer._log._spare.making.wait()
        assert not _leftovers(ws)
        _append(episode, 0)
        writer._log._spare.making.wait()
        assert _leftovers(ws)


def test_a_roll_takes_the_file_that_another_thread_made(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    makers: list[int] = []
    real = os.posix_fallocate

    def fallocate(*arguments: int) -> None:
        makers.append(threading.get_ident())
        real(*arguments)

    with rc.create_workspace("w", SCHEMA, durability="process") as ws, ws.writer() as writer:
        monkeypatch.setattr(os, "posix_fallocate", fallocate)
        episode, uid = writer.episode(), 0
        for k in range(1, 4):
            uid = _until_prepared(writer, episode, uid)
            assert len(_leftovers(ws)) == 1
            uid = _roll(writer, episode, uid)
            assert not _leftovers(ws)
            assert len(list(ws.path.rglob("*.seg"))) == k + 1
        assert len(makers) == 3 and threading.get_ident() not in makers
        assert _uids(ws) == list(range(uid))


def test_close_removes_a_spare_that_was_not_used(small: None) -> None:
    with rc.create_workspace("w", SCHEMA, durability="process") as ws:
        writer = ws.writer()
        uid = _until_prepared(writer, writer.episode(), 0)
        assert len(_leftovers(ws)) == 1
        writer.close()
        assert not _leftovers(ws)
        assert _uids(ws) == list(range(uid))


def test_close_waits_for_a_spare_that_is_being_made(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    real, begun, go_on = spare.fault_in, threading.Event(), threading.Event()

    def slow(map_: Any) -> None:
        begun.set()
        go_on.wait(30)
        real(map_)

    with rc.create_workspace("w", SCHEMA, durability="process") as ws:
        writer = ws.writer()
        monkeypatch.setattr(spare, "fault_in", slow)
        episode, uid = writer.episode(), 0
        while writer._log._mark is not None:
            _append(episode, uid)
            uid += 1
        assert begun.wait(30) and len(_leftovers(ws)) == 1
        threading.Timer(0.05, go_on.set).start()
        writer.close()
        assert not _leftovers(ws)


def test_an_interrupted_wait_for_a_spare_does_not_forget_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C while a roll waits, then close: the thread is still at work."""
    real, begun, go_on = spare.fault_in, threading.Event(), threading.Event()

    def slow(map_: Any) -> None:
        begun.set()
        go_on.wait(30)
        real(map_)

    def interrupt(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(spare, "fault_in", slow)
    one = spare.Spare()
    one.prepare(tmp_path / ".next.new", 1 << 16)
    assert begun.wait(30)
    before = signal.signal(signal.SIGUSR1, interrupt)
    try:
        threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGUSR1)).start()
        with pytest.raises(KeyboardInterrupt):
            one.take(1 << 16)
    finally:
        signal.signal(signal.SIGUSR1, before)
    threading.Timer(0.05, go_on.set).start()
    one.discard()
    assert not list(tmp_path.iterdir())


def test_a_roll_that_needs_more_room_leaves_the_spare_for_the_next(small: None) -> None:
    with rc.create_workspace("w", SCHEMA, durability="process") as ws, ws.writer() as writer:
        uid = _until_prepared(writer, writer.episode(), 0)
        n = 20_000
        block = {"episode": np.zeros(n, int), "step": np.arange(n), "observation": np.zeros((n, 28), np.float32)}
        writer.extend({**block, "uid": uid + np.arange(n)})
        assert len(list(ws.path.rglob("*.seg"))) == 2 and len(_leftovers(ws)) == 1
        episode = writer.episode()
        end = _roll(writer, episode, uid + n)
        assert not _leftovers(ws)
        assert _uids(ws) == list(range(end))


def test_no_room_for_a_spare_is_silent_and_an_error_at_the_roll(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: int) -> None:
        tried.append(threading.get_ident())
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    tried: list[int] = []
    with rc.create_workspace("w", SCHEMA, durability="process") as ws, ws.writer() as writer:
        episode = writer.episode()
        with monkeypatch.context() as patch:
            patch.setattr(os, "posix_fallocate", full)
            uid = _until_prepared(writer, episode, 0)
            assert len(tried) == 1 and tried[0] != threading.get_ident() and not _leftovers(ws)
            with pytest.raises(errors.DiskFull, match="space"):
                while True:
                    _append(episode, uid)
                    uid += 1
            assert tried[1:] == [threading.get_ident()] and not _leftovers(ws)
        _append(episode, uid)
        assert _uids(ws) == list(range(uid + 1))


def test_a_writer_killed_with_a_spare_loses_nothing_and_recovery_removes_it() -> None:
    code = """
import os, time
import numpy as np
import recollect as rc
import recollect.hot.write.growing as growing
growing.SEGMENT_BYTES = (1 << 18,)
writer = rc.open_workspace("w").writer()
episode = writer.episode()
uid = 0
for _ in range(2):
    while writer._log._mark is not None:
        episode.append(observation=np.zeros(28, np.float32), uid=uid)
        uid += 1
    segment = writer._log.segment
    while _ == 0 and writer._log.segment is segment:
        episode.append(observation=np.zeros(28, np.float32), uid=uid)
        uid += 1
while not list(writer._log.folder.glob(".next-*")):
    time.sleep(0.001)
print(uid, flush=True)
os.kill(os.getpid(), 9)
"""
    rc.create_workspace("w", SCHEMA, durability="process").close()
    child = python(code)
    out, err = child.communicate(timeout=60)
    assert child.returncode == -9, err
    folder = rc.open_workspace("w").path
    with rc.open_workspace("w") as ws:
        assert _uids(ws) == list(range(int(out)))
        assert not list(folder.rglob(".*.new"))


def test_a_fork_while_a_spare_is_being_made_leaves_it_to_the_parent() -> None:
    code = """
import os, threading, time
import numpy as np
import recollect as rc
from recollect import errors
from recollect.hot.write import growing
from recollect.hot.format import spare
growing.SEGMENT_BYTES = (1 << 18,)
real, begun, go_on = spare.fault_in, threading.Event(), threading.Event()
def slow(map_):
    begun.set()
    go_on.wait(30)
    real(map_)
ws = rc.open_workspace("w")
writer = ws.writer()
episode = writer.episode()
append = lambda i: episode.append(observation=np.zeros(28, np.float32), uid=i)
spare.fault_in = slow
uid = 0
while writer._log._mark is not None:
    append(uid)
    uid += 1
begun.wait(30)
pid = os.fork()
if pid == 0:
    try:
        append(0)
    except errors.WriterError:
        writer.close()
        os._exit(7)
    os._exit(1)
_, status = os.waitpid(pid, 0)
left = len(list(ws.path.rglob(".next-*")))
go_on.set()
segment = writer._log.segment
while writer._log.segment is segment:
    append(uid)
    uid += 1
writer.sync()
view = ws.view()
print(os.waitstatus_to_exitcode(status), left, len(view.rows) == uid, len(list(ws.path.rglob("*.seg"))))
writer.close()
print(len(list(ws.path.rglob(".*.new"))))
"""
    rc.create_workspace("w", SCHEMA, durability="process").close()
    assert run_python(code).split() == ["7", "1", "True", "2", "0"]


# -- durability ------------------------------------------------------------------------------------------------------


def test_the_first_sync_after_a_roll_makes_the_new_name_durable(small: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The roll itself flushes nothing; rows are promised only with the name of the file that holds them."""
    flushed: list[str] = []
    real, real_data = os.fsync, os.fdatasync

    def fsync(fd: int) -> None:
        if threading.current_thread() is threading.main_thread():
            flushed.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else "file")
        real(fd)

    def fdatasync(fd: int) -> None:
        flushed.append("data")
        real_data(fd)

    with rc.create_workspace("w", SCHEMA, durability="process") as ws, ws.writer() as writer:
        episode = writer.episode()
        writer.sync()
        monkeypatch.setattr(os, "fsync", fsync)
        monkeypatch.setattr(os, "fdatasync", fdatasync)
        uid = _roll(writer, episode, _until_prepared(writer, episode, 0))
        assert flushed == []
        writer.sync()
        assert flushed == ["folder", "data", "data"]
        assert ws.stats().writers[0].durable == uid
        writer.sync()
        assert flushed == ["folder", "data", "data", "data"]


def test_a_segment_lost_with_the_power_is_cut_off_and_the_rest_is_read(small: None, tmp_path: Path) -> None:
    """Its name reached the disk and nothing of its inside, while the one before it says that it was rolled over."""
    layouts = Layouts({1: SCHEMA}.get)
    with rc.create_workspace("w", SCHEMA, durability="process") as ws:
        writer = ws.writer()
        episode = writer.episode()
        uid = _roll(writer, episode, _until_prepared(writer, episode, 0))
        shutil.copytree(ws.path / "log", tmp_path / "log")
        (second,) = (tmp_path / "log").rglob("00000001.seg")
        (first,) = (tmp_path / "log").rglob("00000000.seg")
        second.write_bytes(bytes(second.stat().st_size))
        opened = Segment.open_(first, layouts)
        assert opened.rolled
        held = opened.word & 0xFFFFFFFF
        assert 0 < held < uid
        assert [r.rows for r in recover(tmp_path / "log", layouts)] == [held]
        store = HotStore(tmp_path / "log", layouts, "copied")
        assert [s for _, s in all_ids(store.view())] == list(range(held))
        assert [s for _, s in all_ids(store.view())] == list(range(held))
        writer.close()


class _Trapped(list[Segment]):
    """Syncs the log from another thread around every append to the list of segments."""

    def __init__(self, writer: rc.Writer) -> None:
        super().__init__(writer._log.behind.unsynced)
        self.writer, self.synced = writer, 0

    def append(self, segment: Segment) -> None:
        self._sync()
        super().append(segment)
        self._sync()

    def _sync(self) -> None:
        thread = threading.Thread(target=self.writer.sync)
        thread.start()
        thread.join()
        self.synced += 1


def test_a_sync_in_the_middle_of_a_roll_keeps_the_new_segment(small: None) -> None:
    """Both threads are mid-way: the sync may neither let go of a segment that still grows nor forget its name."""
    with rc.create_workspace("w", SCHEMA, durability="process") as ws, ws.writer() as writer:
        episode = writer.episode()
        trapped = _Trapped(writer)
        writer._log.behind.unsynced = trapped
        uid = _roll(writer, episode, 0)
        assert trapped.synced == 2
        assert list(trapped) == [writer._log.segment] and writer._log.segment.fd >= 0
        _append(episode, uid)
        writer.sync()
        assert ws.stats().writers[0].durable == uid + 1
