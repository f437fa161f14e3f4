"""Which rows of a view a filter is true of."""

from __future__ import annotations

from collections.abc import Callable
from itertools import starmap
from typing import Any

import numpy as np

from recollect.view.facts import FactIndex
from recollect.view.ids import I64, Bool, EpisodeKey, Slots
from recollect.view.view import Rows
from recollect.where import Column, Filter, Held
from recollect.where.episodes import EpisodeTable
from recollect.where.names import BUILT_IN

CHUNK_ROWS = 65_536
"""So many rows are looked at together: a column of arrays is read whole for one of its elements."""


def matching(chosen: Filter, rows: Rows, slots: Slots, group: Any, keys: I64, facts: Callable[[], FactIndex]) -> Bool:
    """`[n]`: the slots of which a filter is true.

    Args:
        slots: `[n]` steps; final rows are none.
        group: `[n]` the episode of each, an index into `keys`.
        keys: `[groups, 2]` episodes.
        facts: loads what is known of them; called only when the filter asks for facts.
    """
    out = np.zeros(len(slots), np.bool_)
    episodes = _Episodes(keys, facts)
    if chosen.episode_only and chosen.uses_facts:
        whole: Bool = chosen.mask(episodes.table)[group]
        return whole
    for start in range(0, len(slots), CHUNK_ROWS):
        part = slice(start, start + CHUNK_ROWS)
        out[part] = chosen.mask(_Steps(rows, slots[part], group[part], episodes))
    return out


class _Episodes:
    """The table of episodes, made when it is first asked for."""

    def __init__(self, keys: I64, facts: Callable[[], FactIndex]) -> None:
        self._keys, self._facts = keys, facts
        self._table: EpisodeTable | None = None

    @property
    def table(self) -> EpisodeTable:
        if self._table is None:
            self._table = EpisodeTable(list(starmap(EpisodeKey, self._keys.tolist())), self._facts())
        return self._table


class _Steps:
    """Steps as the rows of a table, with the facts of their episodes beside them."""

    def __init__(self, rows: Rows, slots: Slots, group: Any, episodes: _Episodes) -> None:
        self._rows, self._slots, self._group, self._episodes = rows, slots, group, episodes

    def __len__(self) -> int:
        return len(self._slots)

    def column(self, column: Column) -> Held:
        if column.scope == "episode":
            return self._spread(self._episodes.table.column(column))
        if column.path in BUILT_IN:
            values = self._rows.gather(self._slots, (column.path,))[column.path]
            return Held(values, np.ones(len(self), np.bool_))
        if column.kind == "text":
            return self._text(column)
        known = self._rows.valid(self._slots, column.path)
        if column.kind == "other":
            return Held(known, known)
        values = self._rows.gather(self._slots, (column.path,))[column.path]
        return Held(values if column.element is None else values.reshape(len(self), -1)[:, column.element], known)

    def length(self, column: Column) -> Held:
        if column.scope == "episode":
            return self._spread(self._episodes.table.length(column))
        if column.kind == "text":
            held = self._text(column)
            return Held(np.fromiter(map(len, held.values), np.int64, len(self)), held.known)
        stored = self._rows.heap_values(self._slots, column.path)
        known = np.fromiter((v is not None for v in stored), np.bool_, len(self))
        size = np.dtype(column.dtype).itemsize
        return Held(np.fromiter((0 if v is None else len(v) // size for v in stored), np.int64, len(self)), known)

    def _text(self, column: Column) -> Held:
        stored = self._rows.heap_values(self._slots, column.path)
        out = np.empty(len(self), object)
        out[:] = ["" if v is None else v.decode("utf-8") for v in stored]
        return Held(out, np.fromiter((v is not None for v in stored), np.bool_, len(self)))

    def _spread(self, held: Held) -> Held:
        return Held(held.values[self._group], held.known[self._group])
