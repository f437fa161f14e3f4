"""Where episodes cross from one block into another, and which rows of others a block's windows need for that.

A *stretch* is the part of a run that lies in one block. Only stretches with an open end are kept, so that the memory
for it goes with the number of episodes that cross a border, not with the number of rows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recollect.cache.spans import Span, extents_of, left_of
from recollect.cold.fragments import Columns, read_rows
from recollect.errors import CorruptionError
from recollect.records.layout import Layout
from recollect.view import Cut, Extent, merged

_NAMES = ("writer", "seq", "episode_writer", "episode", "step", "terminated", "final")


class Need(NamedTuple):
    """Steps of an episode that a block needs: `after` them or before, `first` to `last`."""

    writer: int
    episode: int
    first: int
    last: int


class Offer(NamedTuple):
    """A row at the edge of a block: of which episode and step, and which row of the fragment it is."""

    writer: int
    episode: int
    step: int
    row: int


@dataclass(frozen=True)
class Summary:
    """What is kept of one block before it is decoded.

    Attributes:
        extents: its live rows, in order.
        needs, offers: across its borders.
    """

    extents: tuple[Extent, ...]
    needs: tuple[Need, ...]
    offers: tuple[Offer, ...]

    @property
    def rows(self) -> int:
        return sum(e.stop - e.start for e in self.extents)


def summarize(span: Span, live: NDArray[np.int64] | None, layout: Layout, reach: int, depth: int) -> Summary:
    """Reads the system columns of a block's rows.

    Args:
        live: rows of the fragment that were not deleted, None for all.
        reach: steps after an anchor that a window holds, 1 for its next observation alone.
        depth: planes of the deepest frame stack.
    """
    few = Columns(tuple(n for n in span.columns.names if n in _NAMES), span.columns.ids)
    batches = list(read_rows(span.fragment, few, layout, span.start, span.stop))
    columns: dict[str, NDArray[Any]] = {
        name: np.concatenate([b.column(name).to_numpy(zero_copy_only=False) for b in batches] or [np.empty(0)])
        for name in _NAMES
    }
    if len(columns["seq"]) != span.stop - span.start:
        raise CorruptionError(f"{span.file} gives {len(columns['seq'])} rows of {span.stop - span.start}")
    rows = np.arange(span.start, span.stop)
    if live is not None:
        keep = np.isin(rows, live, assume_unique=True)
        rows, columns = rows[keep], {name: a[keep] for name, a in columns.items()}
    needs, offers = _edges(columns, rows, reach, depth)
    return Summary(extents_of(columns["writer"], columns["seq"]), needs, offers)


def _edges(
    columns: dict[str, NDArray[Any]], rows: NDArray[np.int64], reach: int, depth: int
) -> tuple[tuple[Need, ...], tuple[Offer, ...]]:
    writer, episode, step = columns["episode_writer"], columns["episode"], columns["step"]
    final, terminated = columns["final"].astype(bool), columns["terminated"].astype(bool)
    order = np.lexsort((~final, step, episode, writer))
    w, e, s, f = writer[order], episode[order], step[order], final[order]
    other = (np.diff(w) != 0) | (np.diff(e) != 0) | (np.diff(s) > 1)
    bounds = np.concatenate([[0], np.flatnonzero(other) + 1, [len(order)]]) if len(order) else np.zeros(1, np.int64)
    starts, stops = bounds[:-1], bounds[1:]
    needs: list[Need] = []
    offers: dict[int, Offer] = {}
    ends = terminated[order]
    headless = (s[starts] > 0) if len(starts) else np.empty(0, bool)
    open_ended = ~np.logical_or.reduceat(ends, starts) if len(starts) else np.empty(0, bool)

    def offer(low: int, high: int) -> None:
        for k in range(low, high):
            at = int(order[k])
            offers[at] = Offer(int(w[k]), int(e[k]), int(s[k]), int(rows[at]))

    for k in np.flatnonzero(headless | open_ended).tolist():
        low, high = int(starts[k]), int(stops[k])
        key, first, last = (int(w[low]), int(e[low])), int(s[low]), int(s[high - 1])
        if headless[k]:
            offer(low, low + int(np.searchsorted(s[low:high], first + reach, side="left")))
            if depth > 1:
                needs.append(Need(*key, max(0, first - depth + 1), first - 1))
        if open_ended[k]:
            # A final row may have the step of a row that comes later, and is needed beside it.
            needs.append(Need(*key, last if f[high - 1] else last + 1, last + reach))
            if depth > 1:
                offer(low + int(np.searchsorted(s[low:high], last - depth + 1, side="left")), high)
    return tuple(needs), tuple(offers.values())


def wanted_rows(summaries: Sequence[Summary]) -> list[list[tuple[int, int]]]:
    """For each block the rows of others that its windows need: (block, row of its fragment), sorted."""
    table: dict[tuple[int, int], list[tuple[int, int, int]]] = defaultdict(list)
    for k, summary in enumerate(summaries):
        for o in summary.offers:
            table[o.writer, o.episode].append((o.step, k, o.row))
    out = []
    for k, summary in enumerate(summaries):
        rows: set[tuple[int, int]] = set()
        for need in summary.needs:
            offers = table.get((need.writer, need.episode), ())
            rows.update((b, row) for step, b, row in offers if b != k and need.first <= step <= need.last)
        out.append(sorted(rows))
    return out


def whole_cut(summaries: Iterable[Summary], cut: Cut, name: str, *, deleted: bool) -> Cut:
    """The cut of all rows, checked against what was promoted.

    Raises:
        CorruptionError: the blocks hold other rows than the cut; fewer are fine with `deleted`.
    """
    held = merged(e for s in summaries for e in s.extents)
    if held == merged(cut.extents):
        return cut
    if deleted:
        return left_of(cut, held, name)
    raise CorruptionError(f"{name} does not hold the rows that its cut names, in its order")
