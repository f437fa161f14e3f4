"""The packed record: which byte of a row holds what.

One row is one aligned record of fixed size: system columns, null bits, then the inline fields. Frames and embeddings
lie in plane regions, text and ragged values in the heap; the record holds their places. The same bytes serve the hot
log and the decoded blocks of a buffer (design/0002).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recollect.schema import Leaf, Schema
from recollect.schema.fields import is_heap, is_inline, is_wide, plane_bytes

# Row flags.
TERMINATED = 1 << 0
TRUNCATED = 1 << 1
FINAL = 1 << 2
"""An observation-only row: what was seen after the step before it. Never drawn."""
HAS_NEXT = 1 << 3
"""The step came with its next observation, found in its successor, in a final row, or in the open tail."""
HOLE = 1 << 4
"""No row here: it was deleted, or left out."""

NO_PLANE = -1
LONG_FRAME = 0xFFFF
"""In `frame`: the frame has so many records or more, and its count stands in the second record's `crc`, which no frame
of several records uses otherwise."""

_SYSTEM = [
    ("crc", "<u4"),
    ("frame", "<u2"),
    ("flags", "<u2"),
    ("writer", "<i8"),
    ("seq", "<i8"),
    ("episode_writer", "<i8"),
    ("episode", "<i8"),
    ("time", "<i8"),
    ("step", "<i4"),
    ("priority", "<f4"),
]
SYSTEM_STRUCT = "<HHqqqqqif"
"""Every system column after the checksum, for `struct.pack_into` at offset 4."""
_HEAP = [("heap_at", "<i8"), ("heap_bytes", "<i8")]
SPAN = np.dtype([("at", "<i8"), ("count", "<i8")])
"""Where a heap value lies (bytes from the heap's start) and how many bytes it has."""


@dataclass(frozen=True)
class Layout:
    """The record of one schema.

    Attributes:
        schema: what it was made from.
        dtype: the record; field columns are named by their dotted paths after a slash (`/observation`), so that no
            field can shadow a system column.
        nulls: leaf path → (word, bit) of the optional leaves. A set bit is a null.
    """

    schema: Schema
    dtype: np.dtype[np.void]
    nulls: dict[str, tuple[int, int]]

    @classmethod
    def of(cls, schema: Schema) -> Layout:
        columns: list[tuple[Any, ...]] = list(_SYSTEM)
        if any(is_heap(leaf.field) for leaf in schema.leaves):
            columns += _HEAP
        optional = [leaf.path for leaf in schema.leaves if leaf.field.optional]
        if optional:
            columns.append(("nulls", "<u8", ((len(optional) + 63) // 64,)))
        body: list[tuple[Any, ...]] = []
        for leaf in schema.leaves:
            body.append(_column(leaf))
        body.sort(key=lambda c: -_alignment(c[1]))
        columns += body
        names, formats, offsets, at = [], [], [], 0
        for name, fmt, *shape in columns:
            inner = np.dtype((fmt, *shape)) if shape else np.dtype(fmt)
            step = _alignment(fmt)
            at = (at + step - 1) // step * step
            names.append(name)
            formats.append(inner)
            offsets.append(at)
            at += inner.itemsize
        dtype = np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": (at + 7) // 8 * 8})
        return cls(schema, dtype, {path: (i // 64, i % 64) for i, path in enumerate(optional)})

    @property
    def itemsize(self) -> int:
        """Bytes of one record, a multiple of 8."""
        return self.dtype.itemsize

    def offset(self, column: str) -> int:
        fields = self.dtype.fields
        assert fields is not None
        return int(fields[column][1])

    @cached_property
    def inline(self) -> tuple[Leaf, ...]:
        return tuple(leaf for leaf in self.schema.leaves if is_inline(leaf.field))

    @cached_property
    def wide(self) -> tuple[Leaf, ...]:
        return tuple(leaf for leaf in self.schema.leaves if is_wide(leaf.field))

    @cached_property
    def heap(self) -> tuple[Leaf, ...]:
        return tuple(leaf for leaf in self.schema.leaves if is_heap(leaf.field))

    @cached_property
    def plane_bytes(self) -> dict[str, int]:
        """Wide leaf path → bytes of one plane."""
        return {leaf.path: plane_bytes(leaf.field) for leaf in self.wide}  # type: ignore[arg-type]

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of a record with one plane of each wide field; what lies in the heap comes on top."""
        return self.itemsize + sum(self.plane_bytes.values())


def set_frame(records: NDArray[np.void], count: int) -> None:
    """Notes in the first of `count` records that they share one checksum."""
    records["frame"][0] = min(count, LONG_FRAME)
    if count >= LONG_FRAME:
        records["crc"][1] = count


def frame_rows(records: NDArray[np.void], row: int) -> int:
    """Records of the frame that begins at `row`; 0 where none begins."""
    count = int(records["frame"][row])
    if count < LONG_FRAME:
        return count
    return int(records["crc"][row + 1]) if row + 1 < len(records) else 0


def column(path: str) -> str:
    """The record's column for a leaf."""
    return "/" + path


def _column(leaf: Leaf) -> tuple[Any, ...]:
    if is_inline(leaf.field):
        base = np.dtype(leaf.field.dtype).newbyteorder("<")  # type: ignore[union-attr]
        shape = leaf.field.shape  # type: ignore[union-attr]
        return (column(leaf.path), base, shape) if shape else (column(leaf.path), base)
    if is_wide(leaf.field):
        return (column(leaf.path), np.dtype("<i8"))
    return (column(leaf.path), SPAN)


def _alignment(fmt: Any) -> int:
    dtype = np.dtype(fmt)
    return 8 if dtype.fields else max(1, min(8, dtype.itemsize))
