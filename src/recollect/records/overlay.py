"""Late facts about steps, laid over copies of their rows; the rows themselves never change."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import numpy as np

from recollect.records.block import Block, join_rows
from recollect.records.layout import NO_PLANE, Layout, column
from recollect.records.rows import PackedRows
from recollect.schema import Json, Leaf, Ragged, Text
from recollect.schema.fields import is_heap, is_inline
from recollect.view import FactIndex, Slots, make_ids


def overlay(rows: PackedRows, load: Callable[[], FactIndex]) -> tuple[Slots, Block] | None:
    """Sorted slots of the rows that step facts change, and their patched copies; None when there are none."""
    facts = load()
    if not facts.steps:
        return None
    ids = list(facts.steps)
    slots = rows.find(make_ids([i.writer for i in ids], [i.seq for i in ids]))
    hits = sorted((slot, i) for slot, i in zip(slots.tolist(), ids, strict=True) if slot >= 0)
    if not hits:
        return None
    layout = rows.layout
    copies = []
    for slot, _ in hits:
        block, row = rows.locate(slot)
        copies.append(Block(block.records[row : row + 1], block.planes, block.heap))
    joined = join_rows(layout, copies)
    heap = bytearray(joined.heap.tobytes())
    planes = {path: list(region) for path, region in joined.planes.items()}
    for k, (_, i) in enumerate(hits):
        for path, value in facts.steps[i].items():
            _patch(layout, layout.schema.by_path[path], joined, k, value, planes, heap)
    regions = {p: np.stack(v) if v else joined.planes[p] for p, v in planes.items()}
    block = Block(joined.records, regions, np.frombuffer(bytes(heap), np.uint8))
    return np.array([slot for slot, _ in hits], np.int64), block


def _patch(
    layout: Layout,
    leaf: Leaf,
    block: Block,
    row: int,
    value: Any,
    planes: dict[str, list[Any]],
    heap: bytearray,
) -> None:
    name, records, field = column(leaf.path), block.records, leaf.field
    if leaf.path in layout.nulls:
        word, bit = layout.nulls[leaf.path]
        mask = np.uint64(1 << bit)
        old = records["nulls"][row, word]
        records["nulls"][row, word] = old | mask if value is None else old & ~mask
    if is_inline(field):
        dtype = np.dtype(field.dtype)  # type: ignore[union-attr]
        fill = np.nan if dtype.kind == "f" else 0
        records[name][row] = fill if value is None else np.array(value, dtype)
    elif is_heap(field):
        data = b"" if value is None else _encode(field, value)
        records[name][row] = (len(heap), len(data))
        heap += data
    elif value is None:
        records[name][row] = NO_PLANE
    else:
        records[name][row] = len(planes[leaf.path])
        planes[leaf.path].append(np.array(value, field.dtype))  # type: ignore[union-attr]


def _encode(field: Any, value: Any) -> bytes:
    if isinstance(field, Text):
        return str(value).encode("utf-8")
    if isinstance(field, Json):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    assert isinstance(field, Ragged)
    return np.array(value, field.dtype).tobytes()
