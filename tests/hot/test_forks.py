"""What a forked child keeps of its parent: no lock, no thread, and an eviction of its own."""

from __future__ import annotations

import _thread
import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import recollect as rc
from recollect import errors
from recollect.hot import home
from recollect.hot.format import files
from recollect.hot.format.background import Background
from recollect.hot.format.files import FileLock, is_locked, lock_when_free, locked, try_lock
from recollect.hot.format.segment import Segment
from recollect.hot.retention import evict as evicting
from recollect.hot.retention.retain import Retainer
from tests.hot.retaining import RING, SCHEMA, retention, small_segments, write_episodes
from tests.hot.retaining import files as files_of

__all__ = ["small_segments"]


class Children:
    """Forked children that do nothing and live until the end."""

    def __init__(self) -> None:
        self._read, self._write = os.pipe()
        self._ready, self._begun = os.pipe()
        self._pids: list[int] = []

    def fork(self) -> None:
        pid = os.fork()
        if pid == 0:
            os.close(self._write)
            os.write(self._begun, b"1")
            os.read(self._read, 1)  # nothing comes; it ends with the parent's end of the pipe
            os._exit(0)
        self._pids.append(pid)
        os.read(self._ready, 1)

    def __len__(self) -> int:
        return sum(os.waitpid(pid, os.WNOHANG) == (0, 0) for pid in self._pids)

    def end(self) -> None:
        for end in (self._write, self._read, self._ready, self._begun):
            os.close(end)
        for pid in self._pids:
            os.waitpid(pid, 0)


@pytest.fixture
def children() -> Iterator[Children]:
    made = Children()
    yield made
    made.end()


def _in_child(work: Callable[[], bool]) -> bool:
    """What `work` says in a forked child."""
    pid = os.fork()
    if pid == 0:
        code = 2
        try:
            code = 0 if work() else 1
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


# -- locks -----------------------------------------------------------------------------------------------------------


def _tried(path: Path) -> None:
    lock = try_lock(path)
    assert lock is not None
    lock.close()


def _for_a_cache(path: Path) -> None:
    with FileLock(path, os.O_RDONLY) as lock:
        assert lock.take()


def _waited(path: Path) -> None:
    with locked(path, 1.0):
        pass


def _shared(path: Path) -> None:
    with locked(path, 1.0, shared=True):
        pass


def _asked(path: Path) -> None:
    assert not is_locked(path)


@pytest.mark.parametrize("moment", ["before it is taken", "while it is held"])
@pytest.mark.parametrize("way", [_tried, _waited, _shared, _asked, _for_a_cache])
def test_a_child_keeps_no_lock_whenever_it_was_forked(
    way: Callable[[Path], None], moment: str, tmp_path: Path, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "lock").touch()
    real = fcntl.flock

    def flock(fd: int, how: int) -> None:
        if moment == "before it is taken":
            children.fork()
        real(fd, how)
        if moment == "while it is held":
            children.fork()

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", flock)
        patch.setattr(FileLock, "close", FileLock.forget)  # as the death of its holder
        way(tmp_path / "lock")
    assert len(children) == 1
    with FileLock(tmp_path / "lock") as lock:
        assert lock.take()


def test_no_child_gets_a_descriptor_that_is_not_listed_yet(
    tmp_path: Path, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A thread has opened a lock's file and not yet said so, when another one forks."""
    real, opened = os.open, threading.Event()
    taken: list[FileLock | None] = []

    def slow(path: Any, *arguments: Any) -> int:
        fd = real(path, *arguments)
        if str(path) == str(tmp_path / "lock"):
            opened.set()
            time.sleep(0.3)  # the fork is asked for meanwhile
        return fd

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", slow)
        thread = threading.Thread(target=lambda: taken.append(try_lock(tmp_path / "lock")))
        thread.start()
        assert opened.wait(30)
        children.fork()
        thread.join()
    (lock,) = taken
    assert lock is not None and is_locked(tmp_path / "lock")
    lock.forget()  # as the death of its holder
    assert len(children) == 1 and not is_locked(tmp_path / "lock")


def test_a_lock_is_free_at_once_although_a_child_has_not_closed_its_share_yet(tmp_path: Path) -> None:
    lock = try_lock(tmp_path / "lock")
    assert lock is not None
    share = os.dup(lock.fd)
    lock.close()
    assert not is_locked(tmp_path / "lock")
    os.close(share)


def test_a_child_that_gives_up_its_parents_lock_changes_nothing(tmp_path: Path) -> None:
    """Its number may be that of another lock by then."""
    lock = try_lock(tmp_path / "parents")
    assert lock is not None

    def child() -> bool:
        own = try_lock(tmp_path / "own")
        lock.close()
        return lock.fd == -1 and own is not None and own.fd >= 0 and is_locked(tmp_path / "own")

    assert _in_child(child)
    assert is_locked(tmp_path / "parents")
    lock.close()
    assert lock not in files._held


def test_a_fork_amid_an_eviction_stops_no_later_one(
    small_segments: None, children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rc.create_workspace("w", SCHEMA, durability="process", keep=RING) as ws, ws.writer() as writer:
        real = evicting.weigh
        ws.retainer.close()

        def weigh(*arguments: Any) -> Any:
            if not len(children):
                children.fork()
            return real(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(evicting, "weigh", weigh)
            patch.setattr(FileLock, "close", FileLock.forget)
            ws.evict()
        write_episodes(writer, 60)
        ws.retainer.close()
        ws.evict()
        assert len(children) == 1
        kept = retention(ws)
        assert kept.evicted_rows > 1000 and (kept.skipped, kept.problem) == (0, "")


def test_a_fork_while_a_writer_is_being_made_does_not_keep_it_alive(
    children: Children, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rc.create_workspace("w", SCHEMA, durability="process") as ws:
        real = Segment.create.__func__  # type: ignore[attr-defined]

        def create(cls: type[Segment], *arguments: Any, **named: Any) -> Segment:
            children.fork()
            made: Segment = real(cls, *arguments, **named)
            return made

        with monkeypatch.context() as patch:
            patch.setattr(Segment, "create", classmethod(create))
            writer = ws.writer()
        writer.episode().append(observation=[0, 0], reward=0.0, uid=1)
        assert home.live_writers(ws.path) == [writer.id]
        writer._log._held.forget()  # as its death
        assert len(children) == 1 and home.live_writers(ws.path) == []
        assert [r.rows for r in rc.open_workspace("w").recovered] == [1]


# -- evictions -------------------------------------------------------------------------------------------------------


def test_a_child_evicts_behind_its_own_writers(small_segments: None) -> None:
    with rc.create_workspace("w", SCHEMA, durability="process", keep=RING) as ws:
        ws.retainer._failed = "something of the parent's"

        def child() -> bool:
            writer = ws.writer()
            write_episodes(writer, 60)
            ws.retainer.close()
            kept = retention(ws)
            return bool(kept.evicted_rows > 1000 and kept.problem == "")

        assert _in_child(child)
        assert retention(ws).evicted_rows > 1000


def test_an_eviction_that_another_one_keeps_from_its_work_is_told(small_segments: None) -> None:
    with rc.create_workspace("w", SCHEMA, durability="process", keep=RING) as ws, ws.writer() as writer:
        write_episodes(writer, 5)
        ws.retainer.close()
        held = lock_when_free(ws.path / evicting.LOCK)
        assert held is not None
        with held:
            before = len(files_of(ws))
            write_episodes(writer, 60, first=5)
            ws.retainer.close()
            assert len(files_of(ws)) > before
            assert ws.evict().skipped
            kept = retention(ws)
            assert kept.skipped > 1 and f"the last {kept.skipped} times" in kept.problem
            assert evicting.LOCK in kept.problem
        assert not ws.evict().skipped
        assert (retention(ws).skipped, retention(ws).problem) == (0, "")
        assert len(files_of(ws)) < before + 10


@pytest.mark.parametrize("failure", [OSError(24, "Too many open files"), ZeroDivisionError("a mistake of ours")])
def test_a_background_eviction_that_fails_says_so_and_the_next_one_runs(
    failure: Exception, small_segments: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rc.create_workspace("w", SCHEMA, durability="process", keep=RING) as ws, ws.writer() as writer:
        main = threading.get_ident()

        def failing(*arguments: Any) -> Any:
            assert threading.get_ident() != main
            raise failure

        with monkeypatch.context() as patch:
            patch.setattr("recollect.hot.retention.retain.evict", failing)
            write_episodes(writer, 30)
            ws.retainer.close()
        assert str(failure.args[-1]) in retention(ws).problem
        write_episodes(writer, 30, first=30)
        ws.retainer.close()
        kept = retention(ws)
        assert kept.evicted_rows > 500 and kept.problem == ""


def test_where_there_is_no_thread_to_evict_in_it_is_told(small_segments: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with rc.create_workspace("w", SCHEMA, durability="process", keep=RING) as ws, ws.writer() as writer:

        def none(*arguments: Any) -> int:
            raise RuntimeError("can't start new thread")

        with monkeypatch.context() as patch:
            patch.setattr(_thread, "start_new_thread", none)
            write_episodes(writer, 30)
        assert "can't start new thread" in retention(ws).problem
        write_episodes(writer, 30, first=30)
        ws.retainer.close()
        kept = retention(ws)
        assert kept.evicted_rows > 500 and kept.problem == ""


def test_a_handle_of_a_deleted_workspace_does_not_evict_from_its_successor(small_segments: None) -> None:
    ws = rc.create_workspace("w", SCHEMA, durability="process", keep=RING)
    rc.delete_workspace("w")
    with rc.create_workspace("w", SCHEMA, keep=RING), pytest.raises(errors.NotFound, match="was deleted"):
        ws.evict()


# -- background work -------------------------------------------------------------------------------------------------


def test_work_that_is_asked_for_meanwhile_is_done_once_more() -> None:
    begun, go_on = threading.Semaphore(0), threading.Semaphore(0)
    done: list[int] = []

    def work() -> None:
        begun.release()
        assert go_on.acquire(timeout=30)
        done.append(threading.get_ident())

    one = Background(work)
    one.ask()
    assert begun.acquire(timeout=30) and one.is_busy
    for _ in range(5):
        one.ask()
    go_on.release()
    assert begun.acquire(timeout=30) and one.is_busy
    go_on.release()
    one.wait()
    assert len(done) == 2 and not one.is_busy and threading.get_ident() not in done


def test_work_that_raised_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[Any] = []
    monkeypatch.setattr("sys.unraisablehook", told.append)
    left = [SystemExit(), ZeroDivisionError(), None]

    def work() -> None:
        if (error := left.pop(0)) is not None:
            raise error

    one = Background(work)
    for k in (2, 1, 0):
        one.ask()
        one.wait()
        assert len(left) == k and not one.is_busy
    assert [type(t.exc_value) for t in told] == [ZeroDivisionError]


def test_a_child_neither_waits_for_its_parents_thread_nor_takes_it_for_its_own() -> None:
    begun, go_on = threading.Event(), threading.Event()
    done: list[int] = []
    parent = os.getpid()

    def work() -> None:
        if os.getpid() == parent:
            begun.set()
            assert go_on.wait(30)
        done.append(os.getpid())

    one = Background(work)
    one.ask()
    assert begun.wait(30)
    one.ask()

    def child() -> bool:
        one.wait()
        one.ask()
        one.wait()
        return done == [os.getpid()]

    assert _in_child(child)
    go_on.set()
    one.wait()
    assert done == [parent, parent]


def test_the_work_does_not_wait_for_itself() -> None:
    ended = threading.Event()

    def work() -> None:
        one.wait()
        ended.set()

    one = Background(work)
    one.ask()
    assert ended.wait(30)


def test_a_roll_asks_for_an_eviction_and_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the eviction before it is doing, and whether or not its thread has begun."""
    begun, go_on = threading.Event(), threading.Event()

    def run(self: Retainer) -> Any:
        begun.set()
        assert go_on.wait(30)
        raise errors.StoreError("done")

    monkeypatch.setattr(Retainer, "run", run)
    with rc.create_workspace("w", SCHEMA) as ws:
        ws.retainer.after_roll()
        assert begun.wait(30)
        with contextlib.ExitStack() as held:
            held.enter_context(ws._lock)
            for _ in range(3):
                ws.retainer.after_roll()
        go_on.set()
        ws.retainer.close()
        assert ws.retainer._failed == "done"
