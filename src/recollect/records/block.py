"""`Block`: packed records with their planes and heap, in memory or mapped, and the one way to fill one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recollect.records.layout import NO_PLANE, Layout, column
from recollect.schema import Frames
from recollect.schema.fields import is_heap, is_inline


@dataclass(frozen=True)
class Block:
    """Rows in the packed layout.

    Attributes:
        records: `[n]` of the layout's dtype.
        planes: wide leaf path → `[m, *shape]`.
        heap: bytes of every variable-size value.
        owner: whatever keeps the memory alive.
    """

    records: NDArray[np.void]
    planes: Mapping[str, NDArray[Any]]
    heap: NDArray[np.uint8]
    owner: Any = None

    def heap_value(self, row: int, path: str) -> bytes:
        """The stored bytes of a heap field."""
        at, count = self.records[column(path)][row].tolist()
        return self.heap[at : at + count].tobytes()


@dataclass(frozen=True)
class Values:
    """A column of rows to be written.

    Attributes:
        data: inline and wide fields `[n, *shape]` (anything where not valid); heap fields: all bytes in one run.
        valid: `[n]` bool, or None when nothing is null.
        lengths: heap fields: bytes per row `[n]` int64, 0 where null.
    """

    data: NDArray[Any]
    valid: NDArray[np.bool_] | None = None
    lengths: NDArray[np.int64] | None = field(default=None)


def write_values(
    layout: Layout,
    records: NDArray[np.void],
    rows: slice | NDArray[np.int64],
    columns: Mapping[str, Values],
    planes: Mapping[str, tuple[NDArray[Any], int]],
    heap: tuple[NDArray[np.uint8], int],
) -> int:
    """Writes columns of values into `records[rows]`; fields not in `columns` become null or zero.

    Args:
        planes: wide leaf path → (region, first free plane).
        heap: (region, first free byte).

    Returns:
        The heap bytes used. Planes used are the valid rows of each wide column.
    """
    target, at = heap
    begin = at
    count = len(records[rows])
    if layout.nulls:
        records["nulls"][rows] = 0
    for leaf in layout.schema.leaves:
        name, values = column(leaf.path), columns.get(leaf.path)
        valid = None if values is None else values.valid
        if is_inline(leaf.field):
            fill = np.nan if np.dtype(leaf.field.dtype).kind == "f" else 0  # type: ignore[union-attr]
            if values is None:
                records[name][rows] = fill
            elif valid is None:
                records[name][rows] = values.data
            else:
                data = np.array(values.data, copy=True)
                data[~valid] = fill
                records[name][rows] = data
        elif is_heap(leaf.field):
            if values is None or values.lengths is None:
                records[name][rows] = np.zeros((), records.dtype[name])
            else:
                size = int(values.lengths.sum())
                target[at : at + size] = values.data
                ends = np.cumsum(values.lengths)
                spans = np.empty(count, records.dtype[name])
                spans["at"] = at + ends - values.lengths
                spans["count"] = values.lengths
                records[name][rows] = spans
                at += size
        elif values is None:
            records[name][rows] = NO_PLANE
        else:
            region, first = planes[leaf.path]
            if valid is None:
                region[first : first + count] = values.data
                records[name][rows] = np.arange(first, first + count)
            else:
                used = int(valid.sum())
                region[first : first + used] = values.data[valid]
                records[name][rows] = np.where(valid, first + np.cumsum(valid) - 1, NO_PLANE)
        if leaf.field.optional and (values is None or valid is not None):
            word, bit = layout.nulls[leaf.path]
            bits = np.ones(count, np.bool_) if valid is None else ~valid
            nulls = records["nulls"]
            nulls[rows, word] |= bits.astype(np.uint64) << np.uint64(bit)
    return at - begin


def planes_at(region: NDArray[Any], index: NDArray[np.int64]) -> NDArray[Any]:
    """The planes `index` `[n]` of a region, contiguous: a view where they lie side by side, else a copy."""
    if len(index) and (np.diff(index) == 1).all():
        return np.ascontiguousarray(region[index[0] : index[0] + len(index)])
    return region[index]


def allocate(layout: Layout, rows: int, planes: Mapping[str, int], heap_bytes: int) -> Block:
    """A zeroed block in memory."""
    regions = {}
    for leaf in layout.wide:
        f = leaf.field
        shape = f.shape if isinstance(f, Frames) else (f.size,)  # type: ignore[union-attr]
        regions[leaf.path] = np.zeros((planes.get(leaf.path, 0), *shape), f.dtype)  # type: ignore[union-attr]
    return Block(np.zeros(rows, layout.dtype), regions, np.zeros(heap_bytes, np.uint8))


def join_rows(layout: Layout, blocks: Sequence[Block]) -> Block:
    """One block of copies of every row of small blocks, in order; their planes and heap values come along."""
    out = allocate(layout, sum(len(b.records) for b in blocks), {}, 0)
    heap = bytearray()
    planes: dict[str, list[NDArray[Any]]] = {leaf.path: [] for leaf in layout.wide}
    at = 0
    for block in blocks:
        for row in range(len(block.records)):
            out.records[at] = block.records[row]
            for leaf in layout.wide:
                plane = int(block.records[column(leaf.path)][row])
                if plane >= 0:
                    out.records[column(leaf.path)][at] = len(planes[leaf.path])
                    planes[leaf.path].append(np.array(block.planes[leaf.path][plane]))
            for leaf in layout.heap:
                value = block.heap_value(row, leaf.path)
                out.records[column(leaf.path)][at] = (len(heap), len(value))
                heap += value
            at += 1
    regions = {path: np.stack(items) if items else out.planes[path] for path, items in planes.items()}
    return Block(out.records, regions, np.frombuffer(bytes(heap), np.uint8))
