"""What a block depends on of a fragment, and the fragment's rows, in the order in which they were written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recollect.records.layout import Layout
from recollect.schema.arrow import SYSTEM

READ_BYTES = 4 << 20
"""About so many bytes of rows are decoded at a time."""
READAHEAD = 4
IO_BYTES = 64 << 20
"""Bytes that one scan may have in flight: what it holds in memory beside the batches."""


@dataclass(frozen=True)
class Columns:
    """The columns of a dataset that a layout's rows are made of.

    Attributes:
        names: top-level columns.
        ids: the ids of their fields, children included.
    """

    names: tuple[str, ...]
    ids: frozenset[int]


def columns_of(steps: Any, layout: Layout) -> Columns:
    """Those of `layout` that the dataset has; what others added beside them is not read."""
    wanted = {name for name, _ in SYSTEM} | {leaf.parts[0] for leaf in layout.schema.leaves}
    names, ids = [], set[int]()
    for field in steps.lance_schema.fields():
        if field.name() in wanted:
            names.append(field.name())
            todo = [field]
            while todo:
                at = todo.pop()
                ids.add(at.id())
                todo += at.children()
    return Columns(tuple(names), frozenset(ids))


def immutable_source(fragment: Any, columns: Columns) -> dict[str, Any]:
    """What the bytes of a fragment's rows depend on: data files, the fields read from each, overlays.

    Not the fragment's number, which branches use again for other rows; and not its deletions, which say which rows
    count and change none.
    """
    files = []
    for f in fragment.metadata.files:
        used = [i for i in f.fields if i in columns.ids]
        if used:
            files.append([f.path, used])
    return {"files": files, "overlays": [repr(o) for o in getattr(fragment.metadata, "overlays", None) or ()]}


def live_rows(fragment: Any) -> NDArray[np.int64] | None:
    """Sorted places of the rows that were not deleted, None when that is all of them. Reads no column."""
    if not fragment.metadata.deletion_file:
        return None
    parts = [
        batch.column("_rowaddr").to_numpy() & np.uint64(0xFFFFFFFF)
        for batch in fragment.to_batches(columns=[], with_row_address=True)
    ]
    return np.sort(np.concatenate(parts)).astype(np.int64) if parts else np.empty(0, np.int64)


def read_rows(fragment: Any, columns: Columns, layout: Layout, start: int, stop: int) -> Iterator[Any]:
    """Record batches of the rows `start` to `stop` as they were written, deleted ones included."""
    rows = max(16, min(8192, READ_BYTES // layout.row_bytes))
    options: dict[str, Any] = {}
    if fragment.metadata.deletion_file:
        options = {"include_deleted_rows": True, "with_row_id": True}
    if start > 0 or stop < fragment.physical_rows:
        options |= {"offset": start, "limit": stop - start}
    yield from fragment.to_batches(
        columns=list(columns.names),
        batch_size=rows,
        batch_readahead=READAHEAD,
        io_buffer_size=IO_BYTES,
        **options,
    )
