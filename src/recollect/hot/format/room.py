"""Room on the disk that nothing was written to, given back.

A segment is allocated whole before it gets its name, so that no store can fail for want of space. Once its writer has
gone on, what lies behind the last row, fact, plane and heap byte is never written again, and holes are punched there:
the file keeps its size, and reads as zeros where there are holes, as it did before (design/0003).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

_KEEP_SIZE, _PUNCH_HOLE = 1, 2
_PAGE = 4096
_PART = 1 << 20

_libc = ctypes.CDLL(None, use_errno=True)
_libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]


def give_back(path: Path, unused: Sequence[tuple[int, int]]) -> None:
    """Punches holes into a file, byte ranges `[start, stop)` of whole pages. Never fails: the room of a file that is
    gone, or that lies on a file system without holes, stays as it is."""
    with contextlib.suppress(OSError):
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            for start, stop in unused:
                if start < stop and _libc.fallocate(fd, _KEEP_SIZE | _PUNCH_HOLE, start, stop - start):
                    return
        finally:
            os.close(fd)


def give_back_zeros(path: Path) -> None:
    """Punches holes where whole pages are zero, into a file that nobody writes to any more: it reads as before. A file
    that has holes is left alone. Never fails, as `give_back`."""
    with contextlib.suppress(OSError):
        stat = path.stat()
        if stat.st_blocks * 512 < stat.st_size:
            return
        unused = []
        with path.open("rb") as file:
            at = 0
            while part := file.read(_PART):
                pages = np.frombuffer(part, np.uint8)[: len(part) // _PAGE * _PAGE].reshape(-1, _PAGE)
                zero = np.concatenate([[False], ~pages.any(axis=1), [False]]).astype(np.int8)
                edges = np.flatnonzero(np.diff(zero)).reshape(-1, 2) * _PAGE + at
                unused += [(start, stop) for start, stop in edges.tolist()]
                at += len(part)
        give_back(path, unused)


def disk_bytes(path: Path) -> int:
    """Bytes that a file takes on the disk; 0 where there is none."""
    try:
        return path.stat().st_blocks * 512
    except FileNotFoundError:
        return 0
