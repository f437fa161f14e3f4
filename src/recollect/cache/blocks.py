"""The block cache: a folder of files that are whole or absent.

A block holds the rows of one data file of a buffer in the packed layout. Its name is a digest of everything that
its bytes depend on, so that a block is never stale; it is written under another name and renamed, so that it is never
half-written. Readers map it; nothing is read until a row is drawn.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from recollect.errors import CorruptionError, DiskFull
from recollect.hot.files import boot_id, replace_file
from recollect.records.block import Block
from recollect.records.layout import Layout
from recollect.schema.fields import Frames

FORMAT = 1


def cache_folder() -> Path:
    """`RECOLLECT_CACHE`, or `recollect` under the user's cache folder."""
    given = os.environ.get("RECOLLECT_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recollect"


class BlockCache:
    """Blocks under one folder."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = (folder or cache_folder()) / "blocks"

    def get(
        self,
        key: dict[str, Any],
        layout: Layout,
        size: Callable[[], tuple[int, dict[str, int], int]],
        fill: Callable[[Block], None],
    ) -> Block:
        """The block named by `key`; decoded with `fill` where it is not there yet, or where it was damaged.

        Args:
            key: JSON-able; names immutable bytes (the file's name, the fields, the format).
            size: rows, planes per wide field, and heap bytes.
            fill: writes the rows into a zeroed block of that size.
        """
        text = json.dumps({**key, "layout": layout.schema.fingerprint, "format": FORMAT}, sort_keys=True)
        path = self.folder / hashlib.sha256(text.encode()).hexdigest()[:40]
        if path.is_dir():
            try:
                return open_block(path, layout)
            except CorruptionError:
                shutil.rmtree(path, ignore_errors=True)
        self._build(path, layout, size(), fill)
        return open_block(path, layout)

    def _build(
        self, path: Path, layout: Layout, size: tuple[int, dict[str, int], int], fill: Callable[[Block], None]
    ) -> None:
        try:
            self._write(path, layout, size, fill)
        except OSError as e:
            if e.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise DiskFull(
                f"decoding into the cache {str(self.folder)!r} failed: {e.strerror}",
                remedy="Free some space, or set RECOLLECT_CACHE to a larger disk",
            ) from e

    def _write(
        self, path: Path, layout: Layout, size: tuple[int, dict[str, int], int], fill: Callable[[Block], None]
    ) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
        temporary.mkdir()
        try:
            rows, planes, heap = size
            regions = _map(temporary, layout, rows, planes, heap, mode="w+")
            fill(regions)
            sums = _checksums(regions)
            state = {"rows": rows, "planes": planes, "heap": heap, "sums": sums, "boot": boot_id()}
            (temporary / "size.json").write_text(json.dumps(state))
            try:
                os.rename(temporary, path)
            except OSError:
                if not path.is_dir():
                    raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def open_block(path: Path, layout: Layout) -> Block:
    """Maps a block for reading.

    A block made on this boot is in the page cache, or was written out from it whole. One from an earlier boot may have
    lost pages with the power: it is checked once, and marked as checked.

    Raises:
        CorruptionError: its files do not have the size or the checksums it states.
    """
    try:
        state = json.loads((path / "size.json").read_text())
        block = _map(path, layout, state["rows"], state["planes"], state["heap"], mode="r")
        checked = state["boot"] == boot_id() != "unknown" or state["sums"] == _checksums(block)
    except (ValueError, KeyError, TypeError, FileNotFoundError) as e:
        raise CorruptionError(f"cached block {str(path)!r} is damaged: {e}", remedy="It is decoded again") from e
    if not checked:
        raise CorruptionError(f"cached block {str(path)!r} fails its checksums", remedy="It is decoded again")
    if state["boot"] != boot_id():
        replace_file(path / "size.json", json.dumps({**state, "boot": boot_id()}).encode())
    return block


def _checksums(block: Block) -> list[int]:
    """CRC-32 of every region of a block."""
    regions = [block.records, *block.planes.values(), block.heap]
    return [zlib.crc32(r.reshape(-1).view(np.uint8).data) if r.size else 0 for r in regions]


def _map(folder: Path, layout: Layout, rows: int, planes: dict[str, int], heap: int, *, mode: Any) -> Block:
    def region(name: str, dtype: Any, shape: tuple[int, ...]) -> Any:
        if not int(np.prod(shape)):
            return np.zeros(shape, dtype)
        if mode == "w+":
            with open(folder / name, "wb") as f:
                os.posix_fallocate(f.fileno(), 0, int(np.prod(shape)) * np.dtype(dtype).itemsize)
        return np.memmap(folder / name, dtype, "r+" if mode == "w+" else "r", shape=shape)

    regions = {}
    for k, leaf in enumerate(layout.wide):
        f = leaf.field
        shape = f.shape if isinstance(f, Frames) else (f.size,)  # type: ignore[union-attr]
        regions[leaf.path] = region(f"planes-{k}", f.dtype, (planes[leaf.path], *shape))  # type: ignore[union-attr]
    return Block(region("records", layout.dtype, (rows,)), regions, region("heap", np.uint8, (heap,)))
