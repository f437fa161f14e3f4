"""The newest steps that a condition is true of, read backwards through one log."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import starmap

import numpy as np

from recollect.hot.read.store import HotStore
from recollect.records.block import Block
from recollect.records.layout import FINAL, HOLE
from recollect.records.overlay import overlay
from recollect.records.rows import PackedRows
from recollect.view import Cut, EpisodeKey, Extent
from recollect.view.matching import matching
from recollect.where import parse

FIRST_ROWS, MOST_ROWS = 256, 32_768
"""How many rows are looked at together: few at first, then more, because what is looked for may be rare."""


class Chooser:
    """A condition on the steps of a cut, with the facts of that cut.

    Raises:
        ArgumentError, NotFound: as `where.parse`.
    """

    def __init__(self, store: HotStore, cut: Cut, where: str) -> None:
        self._store, self._cut, self._layout = store, cut, store.layout
        self._filter = parse(where, self._layout.schema)

    def newest(self, extent: Extent, k: int, found: Sequence[tuple[int, int, int]]) -> Iterator[tuple[int, int, int]]:
        """The newest `k` such steps of one log as (time, writer, seq), newest first.

        Args:
            found: a heap of those found in any log so far. Once it holds `k`, nothing older than all of them is
                looked at.
        """
        need, stop, count = k, extent.stop, FIRST_ROWS
        while need and stop > extent.start:
            start = max(extent.start, stop - count)
            pieces = self._store.pieces((Extent(extent.writer, start, stop),), self._layout)
            block, _, end = pieces[-1]
            if len(found) == k and int(block.records["time"][end - 1]) < found[0][0]:
                return
            for time, seq in self._matches(Extent(extent.writer, start, stop), pieces)[:need]:
                need -= 1
                yield time, extent.writer, seq
            stop, count = start, min(2 * count, MOST_ROWS)

    def _matches(self, part: Extent, pieces: Sequence[tuple[Block, int, int]]) -> list[tuple[int, int]]:
        """Time and row of the steps among some rows that the condition is true of, newest first."""
        plain = PackedRows(self._layout, pieces, (part,))
        flags = np.concatenate([block.records["flags"][low:high] for block, low, high in pieces])
        slots = np.flatnonzero((flags & (FINAL | HOLE)) == 0)
        got = plain.gather(slots, ("episode_writer", "episode", "time", "seq"))
        pairs = np.stack([got["episode_writer"], got["episode"]], axis=1)
        keys, group = np.unique(pairs, axis=0, return_inverse=True)
        facts = self._store.catalog.facts_of(list(starmap(EpisodeKey, keys.tolist())), self._cut)
        rows = PackedRows(self._layout, pieces, (part,), changed=overlay(plain, lambda: facts))
        hits = np.flatnonzero(matching(self._filter, rows, slots, group.reshape(-1), keys, lambda: facts))[::-1]
        return list(zip(got["time"][hits].tolist(), got["seq"][hits].tolist(), strict=True))
