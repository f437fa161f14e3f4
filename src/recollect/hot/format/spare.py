"""The next segment's file, made ready before it is needed.

Allocating a segment and faulting it in takes tens of milliseconds, which the append that rolls over would wait for. So
a thread does it while the segment in use fills up. The file waits under a temporary name, without a header: it is no
part of the log, and recovery removes it like any other leftover (design/0011).
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
from dataclasses import dataclass
from pathlib import Path

from recollect.hot.format.background import Background

POPULATE_WRITE = 23  # MADV_POPULATE_WRITE, Linux 5.14
STRIDE = 16 << 20
"""Bytes that are faulted in at a time: the process's memory map is locked against changes meanwhile."""
_ZEROS = bytes(1 << 20)
_AT_ONCE = 256

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True)
class Blank:
    """A file that is allocated, mapped and faulted in, under a temporary name."""

    path: Path
    size: int
    map: mmap.mmap
    fd: int

    @classmethod
    def create(cls, path: Path, size: int) -> Blank:
        """Raises OSError, and leaves nothing behind then."""
        path.unlink(missing_ok=True)  # left behind by one that was interrupted
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            os.posix_fallocate(fd, 0, size)
            _fill(fd, size)
            map_ = mmap.mmap(fd, size)
            fault_in(map_)
        except BaseException:
            os.close(fd)
            path.unlink(missing_ok=True)
            raise
        return cls(path, size, map_, fd)

    def discard(self) -> None:
        """Removes the file."""
        os.close(self.fd)
        self.path.unlink(missing_ok=True)


def _fill(fd: int, size: int) -> None:
    """Fills the page cache in large pieces: the kernel then maps them for a fraction of what single pages cost. One
    call for many pieces, since a thread that comes back from a call waits for the interpreter."""
    at = 0
    while at < size:
        whole, rest = divmod(size - at, len(_ZEROS))
        pieces = [_ZEROS] * min(whole, _AT_ONCE) if whole else [_ZEROS[:rest]]
        at += os.pwritev(fd, pieces, at)


def fault_in(map_: mmap.mmap) -> None:
    """Faults every page of a new file in, so that no store waits for one. Other threads run meanwhile, which
    `mmap.madvise` would not let them."""
    base, size = ctypes.addressof(ctypes.c_char.from_buffer(map_)), len(map_)
    for at in range(0, size, STRIDE):
        count = min(STRIDE, size - at)
        if _libc.madvise(ctypes.c_void_p(base + at), ctypes.c_size_t(count), POPULATE_WRITE):
            ctypes.memset(base + at, 0, count)  # a kernel that does not know the advice


class Spare:
    """At most one blank file, which a thread prepares. Used by one appending thread.

    Attributes:
        making: the thread.
    """

    def __init__(self) -> None:
        self._blank: Blank | None = None
        self._order: tuple[Path, int] | None = None
        self.making = Background(self._make)

    def prepare(self, path: Path, size: int) -> None:
        """Begins to prepare a file of `size` bytes, unless one is ready or on its way. Waits for nothing."""
        if self.making.is_busy or (self._blank is not None and self._blank.size == size):
            return
        self._order = (path, size)
        with contextlib.suppress(RuntimeError):  # no more threads: the roll makes the segment itself
            self.making.ask()

    def _make(self) -> None:
        # A failure is silent here. The roll finds no spare, tries again, and its failure is the caller's error.
        assert self._order is not None
        with contextlib.suppress(OSError, MemoryError):
            old, self._blank = self._blank, None
            if old is not None:
                old.discard()
            self._blank = Blank.create(*self._order)

    def take(self, size: int) -> Blank | None:
        """The file, when it has that size. One that is on its way is waited for: it is nearer than a new one."""
        self.making.wait()
        if self._blank is None or self._blank.size != size:
            return None
        blank, self._blank = self._blank, None
        return blank

    def discard(self) -> None:
        """Removes the file, if there is one."""
        self.making.wait()
        blank, self._blank = self._blank, None
        if blank is not None:
            blank.discard()

    def forget_after_fork(self) -> None:
        """In a forked child: the file belongs to the parent."""
        blank, self._blank = self._blank, None
        if blank is not None:
            os.close(blank.fd)
