"""Work beside an agent, in a thread of its own."""

from __future__ import annotations

import _thread
import os
import weakref
from collections.abc import Callable

_live: weakref.WeakSet[Background] = weakref.WeakSet()


class Background:
    """Work that a thread does when it is asked for, one thread after the other.

    `threading.Thread.start` waits until the thread runs, which an append may not (design/0011). Nothing that fails, is
    interrupted or forks makes later asking vain: there is no state that a thread has to reset at its end.

    Args:
        work: called without arguments. What it raises ends its thread, and is shown as for any thread.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        self._work = work
        self.forget()
        _live.add(self)

    def forget(self) -> None:
        """In a forked child: the threads are the parent's."""
        self._turn = _thread.allocate_lock()
        self._done = _thread.allocate_lock()
        """Held until the newest thread has ended."""
        self._waiting = False
        self._at_work: int | None = None

    def ask(self) -> None:
        """Has the work done, from its beginning: once more where it is under way. Waits for nothing.

        Raises:
            RuntimeError: there is no thread to be had.
        """
        if self._waiting:
            return
        done = _thread.allocate_lock()
        done.acquire()
        try:
            self._waiting = True
            _thread.start_new_thread(self._serve, (done,))
        except BaseException:
            self._waiting = False
            raise
        self._done = done

    def _serve(self, done: _thread.LockType) -> None:
        try:
            with self._turn:
                self._waiting = False
                self._at_work = _thread.get_ident()
                try:
                    self._work()
                finally:
                    self._at_work = None
        finally:
            done.release()

    @property
    def is_busy(self) -> bool:
        """Whether the work is under way, or about to be."""
        return self._done.locked()

    def wait(self) -> None:
        """Returns when all that one thread has asked for is done. The work itself does not wait."""
        if self._at_work != _thread.get_ident():
            with self._done:  # interrupted here, the next one waits again
                pass


def _after_fork() -> None:
    for background in list(_live):
        background.forget()


os.register_at_fork(after_in_child=_after_fork)
