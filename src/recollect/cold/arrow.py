"""Packed blocks to Arrow batches and back, bit for bit."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recollect.errors import CorruptionError
from recollect.records import layout as lay
from recollect.records.block import Block, Values, allocate, planes_at, write_values
from recollect.records.layout import Layout, column
from recollect.schema import Leaf
from recollect.schema.fields import is_heap, is_inline, is_wide

BATCH_ROWS = 65_536
BATCH_BYTES = 32 << 20


def to_batches(
    layout: Layout, pieces: Sequence[tuple[Block, int, int]], schema: Any, *, observations_only: bool = False
) -> Iterator[Any]:
    """Record batches of bounded size over the rows of `pieces`."""
    wide = sum(layout.plane_bytes.values())
    rows = max(1, min(BATCH_ROWS, BATCH_BYTES // (layout.itemsize + wide)))
    for block, start, stop in pieces:
        low = start
        while low < stop:
            high = min(stop, low + rows)
            if layout.heap:
                high = low + _rows_within(layout, block, low, high)
            yield to_batch(layout, block, low, high, schema, observations_only=observations_only)
            low = high


def _rows_within(layout: Layout, block: Block, low: int, high: int) -> int:
    """How many rows from `low` on keep their text and ragged values within `BATCH_BYTES`; at least 1."""
    count = np.zeros(high - low, np.int64)
    for leaf in layout.heap:
        count += block.records[column(leaf.path)]["count"][low:high]
    return max(1, int(np.searchsorted(np.cumsum(count), BATCH_BYTES, side="right")))


def to_batch(
    layout: Layout, block: Block, start: int, stop: int, schema: Any, *, observations_only: bool = False
) -> Any:
    """One record batch. Fields that a final row does not have are null there."""
    records = block.records[start:stop]
    flags = np.ascontiguousarray(records["flags"])
    final = (flags & lay.FINAL) != 0
    priority = np.ascontiguousarray(records["priority"])
    arrays: dict[str, Any] = {
        name: pa.array(np.ascontiguousarray(records[name]))
        for name in ("writer", "seq", "episode_writer", "episode", "step")
    }
    arrays["time"] = pa.array(np.ascontiguousarray(records["time"])).cast(pa.timestamp("ns", tz="UTC"))
    arrays["terminated"] = pa.array((flags & lay.TERMINATED) != 0)
    arrays["truncated"] = pa.array((flags & lay.TRUNCATED) != 0)
    arrays["final"] = pa.array(final)
    arrays["has_next"] = pa.array((flags & lay.HAS_NEXT) != 0)
    arrays["priority_at_append"] = pa.array(priority, mask=np.isnan(priority))
    for field in schema:
        if field.name not in arrays:
            arrays[field.name] = _column(layout, block, records, final, field.type, field.name)
    return pa.record_batch([arrays[field.name] for field in schema], schema=schema)


def _column(
    layout: Layout, block: Block, records: NDArray[np.void], final: NDArray[np.bool_], kind: Any, path: str
) -> Any:
    """One column of a type: a leaf, or a struct of them."""
    if (leaf := layout.schema.by_path.get(path)) is not None:
        return _leaf_array(layout, block, records, leaf, final, kind)
    children = [_column(layout, block, records, final, inner.type, f"{path}.{inner.name}") for inner in kind]
    return pa.StructArray.from_arrays(children, fields=list(kind))


def _nulls(layout: Layout, records: NDArray[np.void], leaf: Leaf, final: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
    """`[n]` bool of the rows where a leaf is null; None when there are none."""
    out = np.zeros(len(records), np.bool_)
    if not leaf.is_observation:
        out |= final
    if leaf.path in layout.nulls:
        word, bit = layout.nulls[leaf.path]
        out |= (records["nulls"][:, word] >> np.uint64(bit)) & np.uint64(1) != 0
    return out if out.any() else None


def _leaf_array(
    layout: Layout, block: Block, records: NDArray[np.void], leaf: Leaf, final: NDArray[np.bool_], kind: Any
) -> Any:
    nulls = _nulls(layout, records, leaf, final)
    held = records[column(leaf.path)]
    if is_inline(leaf.field):
        data = np.ascontiguousarray(held)
        if data.ndim == 1:
            return pa.array(data, type=kind, mask=nulls)
        return _fixed(data.reshape(-1), kind, nulls)
    if is_wide(leaf.field):
        region = block.planes[leaf.path]
        index = np.ascontiguousarray(held)
        if not pa.types.is_fixed_size_list(kind):
            return _variable(region, index, nulls, kind)
        if len(region):
            data = planes_at(region, np.maximum(index, 0))
        else:  # every row is null
            data = np.zeros((len(index), *region.shape[1:]), region.dtype)
        return _fixed(data.reshape(-1), kind, nulls)
    at, count = np.ascontiguousarray(held["at"]), np.ascontiguousarray(held["count"])
    if nulls is not None:
        count = np.where(nulls, 0, count)
    ends = np.cumsum(count)
    raw = _join_spans(block.heap, at, count, ends)
    mask = None if nulls is None else pa.array(nulls)
    if pa.types.is_string(kind):
        offsets = np.concatenate([[0], ends]).astype(np.int32)
        validity = None if nulls is None else pa.array(~nulls).buffers()[1]
        return pa.Array.from_buffers(
            kind,
            len(records),
            [validity, pa.py_buffer(offsets), pa.py_buffer(raw)],
        )
    dtype = np.dtype(leaf.field.dtype)  # type: ignore[union-attr]
    offsets = np.concatenate([[0], ends // dtype.itemsize]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), _flat(raw.view(dtype), kind), type=kind, mask=mask)


def dense_array(values: NDArray[Any], nulls: NDArray[np.bool_] | None, kind: Any) -> Any:
    """Values `[n, ...]` of fixed shape as the column that a field of this storage type has."""
    if values.ndim == 1:
        return pa.array(values, type=kind, mask=nulls)
    values = np.ascontiguousarray(values)
    if pa.types.is_fixed_size_list(kind):
        return _fixed(values.reshape(-1), kind, nulls)
    return _variable(values, np.arange(len(values)), nulls, kind)


def _variable(region: NDArray[Any], index: NDArray[np.int64], nulls: NDArray[np.bool_] | None, kind: Any) -> Any:
    """Planes as bytes, or as lists: nothing is held where they are null."""
    planes = planes_at(region, index if nulls is None else index[~nulls])
    each = int(np.prod(region.shape[1:])) * (region.itemsize if pa.types.is_binary(kind) else 1)
    held = np.ones(len(index), np.int64) if nulls is None else (~nulls).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(held * each)]).astype(np.int32)
    if pa.types.is_binary(kind):
        validity = None if nulls is None else pa.array(~nulls).buffers()[1]
        return pa.Array.from_buffers(kind, len(index), [validity, pa.py_buffer(offsets), pa.py_buffer(planes)])
    mask = None if nulls is None else pa.array(nulls)
    return pa.ListArray.from_arrays(pa.array(offsets), _flat(planes.reshape(-1), kind), type=kind, mask=mask)


def _flat(values: NDArray[Any], kind: Any) -> Any:
    """The values of a list of type `kind`. Truths are bytes where a buffer was made with them so."""
    return pa.array(values.view(np.uint8) if pa.types.is_uint8(kind.value_type) else values, type=kind.value_type)


def _join_spans(
    heap: NDArray[np.uint8], at: NDArray[np.int64], count: NDArray[np.int64], ends: NDArray[np.int64]
) -> NDArray[np.uint8]:
    total = int(ends[-1]) if len(ends) else 0
    if not total:
        return np.zeros(0, np.uint8)
    filled = count > 0
    first, last = int(at[filled][0]), int((at + count)[filled][-1])
    if last - first == total and (np.diff(at[filled]) == count[filled][:-1]).all():
        return np.array(heap[first:last])
    out = np.empty(total, np.uint8)
    for a, n, end in zip(at.tolist(), count.tolist(), ends.tolist(), strict=True):
        out[end - n : end] = heap[a : a + n]
    return out


def _fixed(flat: NDArray[Any], kind: Any, nulls: NDArray[np.bool_] | None) -> Any:
    mask = None if nulls is None else pa.array(nulls)
    return pa.FixedSizeListArray.from_arrays(_flat(flat, kind), type=kind, mask=mask)


# -- back ---------------------------------------------------------------------------------------------------------


def sizes(layout: Layout, batches: Sequence[Any]) -> tuple[int, dict[str, int], int]:
    """Rows, planes per wide leaf, and heap bytes that the batches need."""
    planes = dict.fromkeys(layout.plane_bytes, 0)
    heap = rows = 0
    for batch in batches:
        rows += batch.num_rows
        for leaf in layout.wide:
            if (array := _find(batch, leaf)) is not None:
                planes[leaf.path] += len(array) - array.null_count
        for leaf in layout.heap:
            if (array := _find(batch, leaf)) is not None:
                heap += int(_heap_values(array, leaf).lengths.sum())  # type: ignore[union-attr]
    return rows, planes, heap


def fill_block(layout: Layout, block: Block, batches: Sequence[Any]) -> None:
    """Decodes batches into a block of exactly their size."""
    row = heap = 0
    plane = dict.fromkeys(layout.plane_bytes, 0)
    for batch in batches:
        n = batch.num_rows
        target = block.records[row : row + n]
        values = {leaf.path: v for leaf in layout.schema.leaves if (v := _values(batch, leaf)) is not None}
        spots = {path: (block.planes[path], plane[path]) for path in plane}
        heap += write_values(layout, target, slice(0, n), values, spots, (block.heap, heap))
        for path in plane:
            got = values.get(path)
            plane[path] += 0 if got is None else n if got.valid is None else int(got.valid.sum())
        for name in ("writer", "seq", "episode_writer", "episode", "step"):
            target[name] = batch.column(name).to_numpy()
        target["time"] = batch.column("time").cast(pa.int64()).to_numpy()
        flags = np.zeros(n, np.uint16)
        for name, bit in (
            ("terminated", lay.TERMINATED),
            ("truncated", lay.TRUNCATED),
            ("final", lay.FINAL),
            ("has_next", lay.HAS_NEXT),
        ):
            flags |= batch.column(name).to_numpy(zero_copy_only=False).astype(np.uint16) * bit
        target["flags"] = flags
        target["frame"], target["crc"] = 1, 0
        target["priority"] = batch.column("priority_at_append").to_numpy(zero_copy_only=False)
        row += n


def decode(layout: Layout, batches: Sequence[Any]) -> Block:
    """A block in memory that holds the rows of the batches."""
    rows, planes, heap = sizes(layout, batches)
    block = allocate(layout, rows, planes, heap)
    fill_block(layout, block, batches)
    return block


def _find(batch: Any, leaf: Leaf) -> Any:
    index = batch.schema.get_field_index(leaf.parts[0])
    if index < 0:
        return None
    array = batch.column(index)
    for part in leaf.parts[1:]:
        at = array.type.get_field_index(part)
        if at < 0:
            return None
        array = array.field(at)
    return array


def _values(batch: Any, leaf: Leaf) -> Values | None:
    array = _find(batch, leaf)
    if array is None:
        return None
    if is_heap(leaf.field):
        return _heap_values(array, leaf)
    valid = None if array.null_count == 0 else array.is_valid().to_numpy(zero_copy_only=False)
    shape = leaf.field.shape  # type: ignore[union-attr]
    dtype = np.dtype(leaf.field.dtype)  # type: ignore[union-attr]
    if shape == ():
        data = array.fill_null(False if dtype.kind == "b" else 0) if valid is not None else array
        return Values(data.to_numpy(zero_copy_only=False), valid)
    if not pa.types.is_fixed_size_list(array.type):
        return _planes(array, leaf, dtype, tuple(shape))
    size = array.type.list_size
    flat = array.values.slice(array.offset * size, len(array) * size).to_numpy(zero_copy_only=False)
    if dtype.kind == "b":
        flat = flat.view(np.bool_)
    return Values(flat.reshape(len(array), *shape), valid)


def _planes(array: Any, leaf: Leaf, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Values:
    """`[n, *shape]` of a column of bytes or of lists.

    Raises:
        CorruptionError: a value is not of that shape.
    """
    held = _heap_values(array, leaf)
    each = math.prod(shape) * dtype.itemsize
    lengths = held.lengths if held.valid is None else held.lengths[held.valid]  # type: ignore[index]
    if (lengths != each).any():  # type: ignore[union-attr]
        raise CorruptionError(
            f"field {leaf.path!r}: a value of shape {shape} and dtype {dtype} takes {each} bytes; a file holds others"
        )
    planes = held.data.view(dtype).reshape(-1, *shape)
    if held.valid is None:
        return Values(planes)
    data = np.zeros((len(array), *shape), dtype)
    data[held.valid] = planes
    return Values(data, held.valid)


def _heap_values(array: Any, leaf: Leaf) -> Values:
    valid = None if array.null_count == 0 else array.is_valid().to_numpy(zero_copy_only=False)
    if pa.types.is_string(array.type) or pa.types.is_binary(array.type):
        _, offsets_raw, data_raw = array.buffers()
        offsets = np.frombuffer(offsets_raw, np.int32)[array.offset : array.offset + len(array) + 1].astype(np.int64)
        data = np.frombuffer(data_raw, np.uint8) if data_raw is not None else np.zeros(0, np.uint8)
        size = 1
    else:
        offsets = array.offsets.to_numpy().astype(np.int64)
        data = array.values.to_numpy(zero_copy_only=False)
        size = data.dtype.itemsize
        data = np.ascontiguousarray(data).view(np.uint8)
    lengths = np.diff(offsets) * size
    raw = data[offsets[0] * size : offsets[-1] * size]
    if valid is not None and (lengths[~valid] != 0).any():
        keep = np.repeat(valid, lengths)
        raw, lengths = raw[keep], np.where(valid, lengths, 0)
    return Values(raw, valid, lengths)
