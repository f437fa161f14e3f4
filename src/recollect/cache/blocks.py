"""The block cache: rows of immutable data files, decoded once for every process and version of this machine.

A block's name is a digest of everything that its bytes depend on, so that it is never stale. Whoever decodes it holds
a lock of its own and the others wait; it is renamed into place when it is whole. Readers map it; nothing is read until
a row is drawn (design/0015).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from recollect.cache.blockfile import DATA, USED, BlockWriter, map_block
from recollect.cache.budget import cache_folder
from recollect.cache.room import Room, decoding, part_of, remove
from recollect.errors import CorruptionError, DiskFull
from recollect.records.block import Block
from recollect.records.layout import Layout

FORMAT = 2


class BlockCache:
    """Blocks under one folder.

    Args:
        folder: holds the folder of blocks; `cache_folder()` when None.
        budget: bytes that blocks may take; see `budget_bytes` for None.
    """

    def __init__(self, folder: Path | None = None, *, budget: int | None = None) -> None:
        self.folder = (folder or cache_folder()) / "blocks"
        self.room = Room(self.folder, budget)

    def path_of(self, key: Mapping[str, Any], layout: Layout) -> Path:
        """Where the block of a key lies, or would."""
        text = json.dumps({**key, "layout": layout.schema.fingerprint, "format": FORMAT}, sort_keys=True)
        return self.folder / hashlib.sha256(text.encode()).hexdigest()[:40]

    def find(self, key: Mapping[str, Any], layout: Layout) -> Block | None:
        """The block named by `key`, None where it is not there or is damaged."""
        try:
            return _open(self.path_of(key, layout), layout)
        except CorruptionError:
            return None

    def get(
        self,
        key: Mapping[str, Any],
        layout: Layout,
        rows: int,
        needed: int,
        decode: Callable[[], Iterable[Block]],
        source: Mapping[str, Any],
    ) -> tuple[Block, bool]:
        """The block named by `key`, and whether it had to be decoded: it was not there yet, or it was damaged.

        Args:
            key: JSON-able; names immutable bytes (files, fields, range of rows).
            rows: of the block; `needed` the bytes that it is expected to take.
            decode: gives the rows as blocks in memory, which are taken over.
            source: what people are told of it.

        Raises:
            DiskFull: the disk is full, or what is in use leaves no room in the budget.
            ConflictError: another process decodes it and is stuck.
        """
        path = self.path_of(key, layout)
        with contextlib.suppress(CorruptionError):
            if (block := _open(path, layout)) is not None:
                return block, False
        with _disk_full(self.folder):
            path.parent.mkdir(parents=True, exist_ok=True)
            with decoding(path) as lock:
                try:
                    if (block := _open(path, layout)) is not None:
                        return block, False
                except CorruptionError:
                    remove(path, although_used=True)
                block = self._decode(path, layout, rows, needed, decode, source, lock)
        if size_of(block) > needed:
            self.room.trim()
        return block, True

    def _decode(
        self,
        path: Path,
        layout: Layout,
        rows: int,
        needed: int,
        decode: Callable[[], Iterable[Block]],
        source: Mapping[str, Any],
        lock: int,
    ) -> Block:
        part = part_of(path)
        self.room.reserve(part, needed)
        try:
            with open(part / DATA, "xb", buffering=0) as f:
                writer = BlockWriter(f.fileno(), layout, rows)
                for piece in decode():
                    writer.add(piece)
                    os.utime(lock)
                writer.finish(part, source)
            block = map_block(part, layout)  # before others see it, so that none of them can remove it first
            os.rename(part, path)
        finally:
            shutil.rmtree(part, ignore_errors=True)
        return block


def _open(path: Path, layout: Layout) -> Block | None:
    """Maps a block and counts the use; None where there is none. Raises CorruptionError."""
    while True:
        try:
            folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        try:
            # By descriptor: the folder may be removed, and another of its name may come, between two files.
            here = Path(f"/proc/self/fd/{folder}")
            block = map_block(here, layout)
            with contextlib.suppress(OSError):
                fd = os.open(here / USED, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
                try:
                    os.write(fd, b".")
                finally:
                    os.close(fd)
            return block
        except FileNotFoundError as e:
            lacks = CorruptionError(f"cached block {str(path)!r} lacks a file", remedy="It is decoded again")
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(folder), path.stat()):
                    raise lacks from e
        finally:
            os.close(folder)


def size_of(block: Block) -> int:
    """Bytes of a block's rows, planes and values."""
    return block.records.nbytes + sum(p.nbytes for p in block.planes.values()) + block.heap.nbytes


@contextlib.contextmanager
def _disk_full(folder: Path) -> Any:
    try:
        yield
    except DiskFull:
        raise
    except OSError as e:
        if e.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise DiskFull(
            f"decoding into the cache {str(folder)!r} failed: {e.strerror}",
            remedy="Free some space, run recollect cache clear, or set RECOLLECT_CACHE to a larger disk",
        ) from e


__all__ = ["BlockCache", "cache_folder", "size_of"]
