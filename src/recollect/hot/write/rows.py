"""`Rows`: checked steps on their way into one frame, and what they need room for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recollect.hot.format.fields import OpenEpisode
from recollect.records.block import Values


@dataclass
class Rows:
    """Steps to be written, already checked.

    Attributes:
        states: the episodes concerned, None for one that begins and ends here; `keys` `[episodes, 2]` their keys.
        which: `[n]` each row's episode.
        later: `[n]` the next row of the same episode, -1 for its last here; `first` the first row of each episode.
        step: `[n]` step index.
        columns: leaf path → values `[n]`.
        following: observation leaf path → values `[n]` of the next observations; None when none was given.
        terminated, truncated: `[n]` bool.
        priority: `[n]` float32, NaN for none.
        observed: observation leaf paths, when the observation after an episode's newest step waits in a tail slot;
            empty when it is written as a row.
        ended: `[n]` bool; `last` the last row of each episode, in the order of rows.
        extra: rows whose next observation needs a row of its own.
        waits: rows whose next observation waits in a tail slot.
    """

    states: list[OpenEpisode | None]
    which: NDArray[np.int64]
    later: NDArray[np.int64]
    first: NDArray[np.int64]
    step: NDArray[np.int64]
    columns: dict[str, Values]
    following: dict[str, Values] | None
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    priority: NDArray[np.float32]
    observed: tuple[str, ...]
    keys: NDArray[np.int64] = field(init=False)
    ended: NDArray[np.bool_] = field(init=False)
    last: NDArray[np.int64] = field(init=False)
    extra: NDArray[np.int64] = field(init=False)
    waits: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.ended = self.terminated | self.truncated
        self.last = np.flatnonzero(self.later < 0)
        none = self.last[:0]
        self.extra = self.waits = none
        if self.following is None:
            return
        if not self.observed:
            self.extra = np.arange(len(self.which))
            return
        over = self.ended[self.last]
        self.waits = self.last[~over]
        self.extra = self.last[over]
        inside = np.flatnonzero(self.later >= 0)
        if len(inside):
            jumps = inside[differ(self.observed, self.following, inside, self.columns, self.later[inside], len(inside))]
            if len(jumps):
                self.extra = np.sort(np.concatenate([jumps, self.extra]))

    @cached_property
    def pending(self) -> list[OpenEpisode]:
        """Episodes whose newest observation waits in a tail slot, in their order; before anything is written."""
        return [s for s in self.states if s is not None and s.pending]

    @cached_property
    def room(self) -> Room:
        """What the block needs at most, before anything is written."""
        rows = len(self.which) + len(self.extra) + len(self.pending)
        heap = heap_bytes(self.columns)
        if len(self.extra) and self.following is not None:
            heap += sum(int(v.lengths[self.extra].sum()) for v in self.following.values() if v.lengths is not None)
        waiting = [self.states[k] for k in self.which[self.waits].tolist()]
        return Room(rows, rows, heap, sum([s is None or s.lane is None for s in waiting]))


class Room(NamedTuple):
    """Rows, planes of each wide field, heap bytes, and tail slots for so many more episodes."""

    rows: int
    planes: int
    heap_bytes: int
    lanes: int


def episode_keys(states: list[OpenEpisode]) -> NDArray[np.int64]:
    """`[episodes, 2]`, the keys of open episodes."""
    out = np.empty((len(states), 2), np.int64)
    keys = [s.key for s in states]
    out[:, 0] = [k[0] for k in keys]
    out[:, 1] = [k[1] for k in keys]
    return out


def number_keys(keys: NDArray[Any]) -> tuple[NDArray[np.int64], dict[Any, int]]:
    """Each row's key as a number, in the order of first appearance, and the number of each key. At least one row.

    Rows of one episode mostly stand side by side, so only where a run begins is its key looked up.
    """
    n = len(keys)
    head = np.empty(n, np.bool_)
    head[0] = True
    np.not_equal(keys[1:], keys[:-1], out=head[1:], casting="unsafe")
    begins = np.flatnonzero(head)
    index: dict[Any, int] = {}
    runs = [index.setdefault(k, len(index)) for k in keys[begins].tolist()]
    if len(runs) == n:
        return np.array(runs, np.int64), index
    return np.array(runs, np.int64)[np.cumsum(head) - 1], index


def neighbours(which: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each row the next one of its episode (-1 none), and the first row of each episode.

    `which` numbers the episodes in the order of first appearance, so that the first rows come in that order too.
    """
    n = len(which)
    step = which[1:] - which[:-1]
    if not (step < 0).any():
        later = np.arange(1, n + 1)
        ends = np.flatnonzero(step)
        later[ends] = -1
        later[n - 1 :] = -1
        return later, np.concatenate([np.zeros(min(n, 1), np.int64), ends + 1])
    later = np.full(n, -1, np.int64)
    order = np.argsort(which, kind="stable")
    grouped = which[order]
    same = grouped[1:] == grouped[:-1]
    later[order[:-1][same]] = order[1:][same]
    return later, order[np.concatenate([[True], ~same])]


def _words(values: Values, rows: NDArray[np.int64] | None) -> NDArray[Any]:
    """`[rows, words]` bytes of some rows, all when None, eight or four at a time where the row's size allows it."""
    data = values.data
    if rows is not None:
        side_by_side = int(rows[-1]) - int(rows[0]) == len(rows) - 1 and bool((rows[1:] > rows[:-1]).all())
        data = data[int(rows[0]) : int(rows[-1]) + 1] if side_by_side else data[rows]
    data = np.ascontiguousarray(data)
    size = data.nbytes // len(data)
    kind = np.uint64 if size % 8 == 0 else np.uint32 if size % 4 == 0 else np.uint8
    return data.reshape(-1).view(kind).reshape(len(data), -1 if size else 0)


def differ(
    paths: Sequence[str],
    mine: Mapping[str, Values],
    at: NDArray[np.int64] | None,
    theirs: Mapping[str, Values],
    other: NDArray[np.int64] | None,
    count: int,
) -> NDArray[np.bool_]:
    """`[count]` bool: which rows `at` of `mine` are not, byte for byte, the rows `other` of `theirs`, in the given
    fields. None means all rows. A null equals a null; a field that is not there is null in every row."""
    out = np.zeros(count, np.bool_)
    for path in paths:
        a, b = mine.get(path), theirs.get(path)
        if a is not None and b is not None and a.valid is None and b.valid is None:
            unequal = _words(a, at) != _words(b, other)
            if unequal.any():
                out |= unequal.any(axis=1)
            continue
        a_null, b_null = _nulls(a, at, count), _nulls(b, other, count)
        out |= a_null != b_null
        if a is not None and b is not None:
            out |= ~(a_null | b_null) & (_words(a, at) != _words(b, other)).any(axis=1)
    return out


def _nulls(values: Values | None, rows: NDArray[np.int64] | None, count: int) -> NDArray[np.bool_]:
    if values is None or values.valid is None:
        return np.full(count, values is None)
    return ~values.valid if rows is None else ~values.valid[rows]


def heap_bytes(columns: Mapping[str, Values]) -> int:
    return sum(int(v.lengths.sum()) for v in columns.values() if v.lengths is not None)


def subset(values: Values, rows: NDArray[np.int64]) -> Values:
    """The given rows of a column."""
    valid = None if values.valid is None else values.valid[rows]
    if values.lengths is None:
        return Values(values.data[rows], valid)
    ends = np.cumsum(values.lengths)
    parts = [values.data[ends[i] - values.lengths[i] : ends[i]] for i in rows.tolist()]
    data = np.concatenate(parts) if parts else np.zeros(0, np.uint8)
    return Values(data, valid, values.lengths[rows])
