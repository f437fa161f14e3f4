"""One block on disk: a folder that is whole or absent.

    data         records, then each region of planes, then the heap
    state.json   how many of each, their checksums, the boot they were made on, and where they came from
    lock         one byte; whoever maps the block holds its flock, shared
    used         one byte for every use; its time is that of the last one

Rows are appended as they are decoded, so that a block needs no more memory than one batch; planes lie where a region
of one plane a row would put them, and what nulls leave free is a hole in the file.
"""

from __future__ import annotations

import contextlib
import json
import mmap
import os
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recollect.errors import CorruptionError
from recollect.hot.format.files import boot_id, map_for_reading, replace_file
from recollect.records.block import Block
from recollect.records.layout import Layout, column
from recollect.schema.fields import Frames

DATA, STATE, LOCK, USED = "data", "state.json", "lock", "used"
PAGE = 4096


@dataclass(frozen=True)
class Regions:
    """Where the parts of a block lie in its file: byte offsets."""

    planes: Mapping[str, int]
    heap: int

    @classmethod
    def of(cls, layout: Layout, rows: int) -> Regions:
        at = _round(rows * layout.itemsize)
        planes = {}
        for leaf in layout.wide:
            planes[leaf.path] = at
            at = _round(at + rows * layout.plane_bytes[leaf.path])
        return cls(planes, at)


class BlockWriter:
    """Appends decoded rows to a block's file.

    Args:
        fd: the file, empty.
        rows: how many there will be in all.
    """

    def __init__(self, fd: int, layout: Layout, rows: int) -> None:
        self._fd, self._layout, self._rows = fd, layout, rows
        self._regions = Regions.of(layout, rows)
        self._count = self._heap = 0
        self._planes = dict.fromkeys(layout.plane_bytes, 0)
        self._sums = dict.fromkeys(["records", *layout.plane_bytes, "heap"], 0)

    def add(self, part: Block) -> None:
        """Appends the rows of a block in memory, whose records are changed to say where its planes and values went.

        Raises:
            CorruptionError: more rows than were announced.
            OSError: the disk is full.
        """
        n = len(part.records)
        if self._count + n > self._rows:
            raise CorruptionError(f"a data file gives more than the {self._rows} rows that its version states")
        for leaf in self._layout.wide:
            index = part.records[column(leaf.path)]
            index[index >= 0] += self._planes[leaf.path]
            at = self._regions.planes[leaf.path] + self._planes[leaf.path] * self._layout.plane_bytes[leaf.path]
            self._write(leaf.path, at, part.planes[leaf.path])
            self._planes[leaf.path] += len(part.planes[leaf.path])
        for leaf in self._layout.heap:
            part.records[column(leaf.path)]["at"] += self._heap
        self._write("heap", self._regions.heap + self._heap, part.heap)
        self._heap += len(part.heap)
        self._write("records", self._count * self._layout.itemsize, part.records)
        self._count += n

    def _write(self, name: str, at: int, array: NDArray[Any]) -> None:
        if not array.size:
            return
        raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8).data
        self._sums[name] = zlib.crc32(raw, self._sums[name])
        while raw:
            done = os.pwrite(self._fd, raw, at)
            raw, at = raw[done:], at + done

    def finish(self, folder: Path, source: Mapping[str, Any]) -> None:
        """Writes what stands beside the data. Raises CorruptionError where rows are missing."""
        if self._count != self._rows:
            raise CorruptionError(f"a data file gives {self._count} rows, its version states {self._rows}")
        size = self._regions.heap + self._heap
        os.ftruncate(self._fd, size)
        state = {
            "rows": self._rows,
            "planes": self._planes,
            "heap": self._heap,
            "bytes": size,
            "sums": self._sums,
            "boot": boot_id(),
            "source": dict(source),
        }
        (folder / LOCK).write_bytes(b"\0")
        (folder / USED).touch()
        (folder / STATE).write_text(json.dumps(state))


def read_state(folder: Path) -> dict[str, Any]:
    """What a block says of itself. Raises FileNotFoundError, or CorruptionError where it cannot be read."""
    try:
        state = json.loads((folder / STATE).read_bytes())
        if not isinstance(state, dict):
            raise ValueError("no mapping")
    except ValueError as e:
        raise CorruptionError(f"cached block {str(folder)!r} is damaged: {e}", remedy="It is decoded again") from e
    return state


def map_block(folder: Path, layout: Layout) -> Block:
    """Maps a block for reading, and holds its lock as long as the block or a part of it is in use.

    A block made on this boot is in the page cache, or was written out from it whole. One from an earlier boot may have
    lost pages with the power: it is checked once, and marked as checked.

    Raises:
        FileNotFoundError: it was removed meanwhile, or a file of it was.
        CorruptionError: its file does not have the size or the checksums it states.
    """
    held, _ = map_for_reading(folder / LOCK, lock=True)
    state = read_state(folder)
    data, size = map_for_reading(folder / DATA)
    try:
        if size != state["bytes"]:
            raise ValueError(f"{size} bytes of {state['bytes']}")
        block = _block(layout, data, (data, held), int(state["rows"]), state["planes"], int(state["heap"]))
        checked = state["boot"] == boot_id() != "unknown" or state["sums"] == _sums(block)
    except (ValueError, KeyError, TypeError) as e:
        raise CorruptionError(f"cached block {str(folder)!r} is damaged: {e}", remedy="It is decoded again") from e
    if not checked:
        raise CorruptionError(f"cached block {str(folder)!r} fails its checksums", remedy="It is decoded again")
    if state["boot"] != boot_id():
        with contextlib.suppress(OSError):  # on a full disk it is checked again the next time
            replace_file(folder / STATE, json.dumps({**state, "boot": boot_id()}).encode())
    return block


def _block(
    layout: Layout, data: mmap.mmap | None, owner: Any, rows: int, planes: Mapping[str, int], heap: int
) -> Block:
    at = Regions.of(layout, rows)

    def region(dtype: Any, shape: tuple[int, ...], offset: int) -> Any:
        if data is None or not int(np.prod(shape)):
            return np.zeros(shape, dtype)
        return np.ndarray(shape, dtype, data, offset)

    regions = {}
    for leaf in layout.wide:
        f = leaf.field
        shape = f.shape if isinstance(f, Frames) else (f.size,)  # type: ignore[union-attr]
        regions[leaf.path] = region(f.dtype, (planes[leaf.path], *shape), at.planes[leaf.path])  # type: ignore[union-attr]
    return Block(region(layout.dtype, (rows,), 0), regions, region(np.uint8, (heap,), at.heap), owner)


def _sums(block: Block) -> dict[str, int]:
    """CRC-32 of every region of a block."""

    def parts() -> Iterator[tuple[str, NDArray[Any]]]:
        yield "records", block.records
        yield from block.planes.items()
        yield "heap", block.heap

    return {k: zlib.crc32(r.reshape(-1).view(np.uint8).data) if r.size else 0 for k, r in parts()}


def _round(at: int) -> int:
    return -(-at // PAGE) * PAGE
