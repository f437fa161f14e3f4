"""Spans: the stretches of a buffer's data files that are decoded and kept as one block each, and their live rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recollect.cold.fragments import Columns, immutable_source
from recollect.errors import CorruptionError
from recollect.records.block import Block
from recollect.records.layout import Layout
from recollect.view import Cut, Extent, merged

BLOCK_BYTES = 256 << 20
"""About the largest block: what is evicted, rotated and decoded in one piece. A data file of rows below 256 bytes is
one block: lance reads whole pages, and two halves of such a file cost 1.5 times what the whole of it costs."""
HEAP_BYTES = 128
"""What a text, JSON or ragged value is taken for before it was read."""

BESIDE_BYTES = 24 << 10
"""What a block takes beside its rows: its small files, and the rest of its last pages."""


@dataclass(frozen=True)
class Span:
    """Rows of one fragment, as they were written.

    Attributes:
        index: the fragment's place in the version.
        fragment: to read them from; `columns` those that are read.
        start, stop: rows of the fragment.
        bytes: what they take as a block, about: exact without nulls and variable-size fields.
        key: what their bytes depend on.
        file: the first of their data files.
    """

    index: int
    fragment: Any = field(repr=False, compare=False)
    columns: Columns
    start: int
    stop: int
    bytes: int
    key: Mapping[str, Any]
    file: str


def spans_of(fragments: Sequence[Any], columns: Columns, layout: Layout) -> list[Span]:
    """The spans of a version, in the order of its rows. A function of files and layout alone."""
    row = layout.row_bytes + HEAP_BYTES * len(layout.heap)
    most = min(1 << 20, max(1024, BLOCK_BYTES // row // 1024 * 1024))
    out = []
    for index, fragment in enumerate(fragments):
        source = immutable_source(fragment, columns)
        rows = int(fragment.physical_rows)
        parts = max(1, -(-rows // most))
        for k in range(parts):
            start, stop = rows * k // parts, rows * (k + 1) // parts
            key = {**source, "start": start, "stop": stop}
            file = str(source["files"][0][0]) if source["files"] else ""
            out.append(Span(index, fragment, columns, start, stop, (stop - start) * row + BESIDE_BYTES, key, file))
    return out


def live_pieces(
    spans: Sequence[Span], blocks: Sequence[Block], live: Sequence[NDArray[np.int64] | None]
) -> list[tuple[Block, int, int]]:
    """(block, start, stop) of the rows that were not deleted, in order."""
    out: list[tuple[Block, int, int]] = []
    for span, block in zip(spans, blocks, strict=True):
        rows = live[span.index]
        if rows is None:
            out.append((block, 0, span.stop - span.start))
            continue
        here = _within(rows, span) - span.start
        breaks = np.flatnonzero(np.diff(here) != 1) + 1
        starts = here[np.concatenate([[0], breaks])] if len(here) else here
        stops = here[np.concatenate([breaks - 1, [len(here) - 1]])] + 1 if len(here) else here
        out += [(block, a, b) for a, b in zip(starts.tolist(), stops.tolist(), strict=True)]
    return out


def place_rows(pieces: Sequence[tuple[Block, int, int]], cut: Cut, name: str, *, deleted: bool) -> Cut:
    """The cut of the rows of `pieces`: `cut` itself, or with `deleted` what is left of it.

    Raises:
        CorruptionError: the pieces do not hold the cut's rows in its order: the first and last row of every piece are
            looked at, and every row where some of the cut are missing.
    """
    held = sum(stop - start for _, start, stop in pieces)
    if deleted and held < cut.rows:
        return _left_of(cut, pieces, name)
    if held != cut.rows:
        raise CorruptionError(f"{name} holds {held} rows, its cut names {cut.rows}")
    ends = np.cumsum([0] + [e.stop - e.start for e in cut.extents])
    at = 0
    for block, start, stop in pieces:
        for row, slot in ((start, at), (stop - 1, at + stop - start - 1)):
            k = int(np.searchsorted(ends, slot, side="right")) - 1
            record = block.records[row]
            if k >= len(cut.extents) or (int(record["writer"]), int(record["seq"])) != (
                cut.extents[k].writer,
                cut.extents[k].start + slot - int(ends[k]),
            ):
                raise CorruptionError(
                    f"{name}: row {slot} is {record['writer']}:{record['seq']}, which its cut does not place there"
                )
        at += stop - start
    return cut


def _left_of(cut: Cut, pieces: Sequence[tuple[Block, int, int]], name: str) -> Cut:
    """What a version that deleted rows has of a cut, read from the rows. Raises CorruptionError."""
    writer = np.concatenate([b.records["writer"][start:stop] for b, start, stop in pieces] or [np.empty(0, np.int64)])
    seq = np.concatenate([b.records["seq"][start:stop] for b, start, stop in pieces] or [np.empty(0, np.int64)])
    return left_of(cut, extents_of(writer, seq), name)


def extents_of(writer: NDArray[np.int64], seq: NDArray[np.int64]) -> tuple[Extent, ...]:
    """The extents of rows in their order."""
    if not len(seq):
        return ()
    breaks = np.flatnonzero((np.diff(writer) != 0) | (np.diff(seq) != 1)) + 1
    starts, stops = np.concatenate([[0], breaks]), np.concatenate([breaks, [len(seq)]])
    ends = zip(writer[starts].tolist(), seq[starts].tolist(), seq[stops - 1].tolist(), strict=True)
    return tuple(Extent(w, a, b + 1) for w, a, b in ends)


def left_of(cut: Cut, extents: Iterable[Extent], name: str) -> Cut:
    """The cut of what is left. Raises CorruptionError unless that is a part of `cut`, in its order."""
    held, whole = merged(extents), merged(cut.extents)
    k = begin = 0
    for at in held:
        while k < len(whole) and not (
            whole[k].writer == at.writer and whole[k].start <= at.start and at.stop <= whole[k].stop
        ):
            k, begin = k + 1, 0
        if k == len(whole) or at.start < begin:
            raise CorruptionError(
                f"{name}: rows {at.start} to {at.stop} of writer {at.writer} are not where its cut is"
            )
        begin = at.stop
    return Cut(held, cut.facts)


def _within(rows: NDArray[np.int64], span: Span) -> NDArray[np.int64]:
    low, high = np.searchsorted(rows, [span.start, span.stop])
    return rows[low:high]
