"""`Stratified`: exact shares of every batch for groups of rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recollect.errors import ArgumentError
from recollect.samplers.anchors import among, change
from recollect.samplers.base import Cursor, Draw, State, drawable
from recollect.samplers.quotas import Quotas
from recollect.samplers.streams import Stream
from recollect.view import EpisodeKey, Slots, View

_PURPOSE = 5


@dataclass(frozen=True)
class Stratified:
    """Rows of each group with the same chance, and each group with its exact share of every batch.

    A group is a value of a scalar field, or of a fact where `by` begins with `episode.`; rows where it is null are a
    group too. Shares are rounded to rows by largest remainder with the error carried. A group that has no row now
    gives its share to the others. `probability` is share / rows of the group; weights are 1. Of a view that grew the
    new rows are grouped; all of them, where facts came that may move rows from group to group.

    Args:
        by: a scalar field's path, `terminated`, `truncated`, or `episode.` and a fact's name.
        quotas: group → share, scaled to a sum of 1; rows of other groups are not drawn. None is equal shares of all
            groups that there are. The group of nulls is None.

    Raises:
        ArgumentError: no shares, a negative one, or, when bound, a field that is no scalar.
        NotFound: no such field, when bound.
    """

    by: str
    quotas: Mapping[Any, float] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.by, str) or not self.by:
            raise ArgumentError("by is the name of a field or a fact", value=self.by)
        if self.quotas is not None:
            if not self.quotas or any(not 0 <= q < float("inf") for q in self.quotas.values()):
                raise ArgumentError("quotas are shares of at least 0", value=dict(self.quotas))
            if not sum(self.quotas.values()) > 0:
                raise ArgumentError("some quota is above 0", value=dict(self.quotas))

    def bind(self, view: View, seed: int, state: State | None = None) -> Cursor:
        """A cursor on `view`."""
        return _Cursor(self, view, seed, state)

    def to_dict(self) -> dict[str, Any]:
        quotas = None if self.quotas is None else [[key, share] for key, share in self.quotas.items()]
        return {"kind": "stratified", "by": self.by, "quotas": quotas}


class _Cursor:
    takes_feedback = False
    is_stateful = True

    def __init__(self, config: Stratified, view: View, seed: int, state: State | None) -> None:
        self._config, self._stream = config, Stream(seed, _PURPOSE)
        self._view: View | None = None
        self._held: dict[Any, _Group] = {}
        self._owed: dict[Any, float] = {}
        if state is not None:
            self._owed = {key: owed for key, owed in state["owed"]}  # noqa: C416
        self.grow(view)

    def grow(self, view: View) -> None:
        drawable(view)
        if view is self._view:
            return
        self._regroup(view)
        groups = {name: self._held[name].slots for name in sorted(self._held, key=_rank)}
        quotas = self._config.quotas
        shares = dict.fromkeys(groups, 1.0) if quotas is None else dict(quotas)
        if not any(share > 0 and name in groups for name, share in shares.items()):
            raise ArgumentError(
                f"no row has a value of {self._config.by!r} that has a quota",
                value=list(groups)[:8],
                remedy="Name others",
            )
        self._view, self._shares = view, shares
        self._groups = [groups.get(name, np.empty(0, np.int64)) for name in shares]

    def _regroup(self, view: View) -> None:
        """Takes in what came and lets go of what went: the groups are those of all rows looked at afresh."""
        by, older = self._config.by, self._view
        if older is not None and not _same_groups(by, older, view):
            older = None
        if older is None:
            self._held = {}
        came = change(None if older is None else older.anchors, view.anchors)
        if older is not None:
            for name, slots in _parted(by, older, came.removed):
                self._held[name].remove(slots)
        for name, slots in _parted(by, view, came.added):
            self._held.setdefault(name, _Group()).add(slots)
        self._held = {name: group for name, group in self._held.items() if len(group.slots)}

    def draw(self, step: int, n: int, batches: int = 1) -> Draw:
        keys = np.empty((batches, n), np.int64)
        probability = np.empty((batches, n))
        names = list(self._shares)
        wanted = np.array(list(self._shares.values()))
        filled = np.array([len(g) > 0 and share > 0 for g, share in zip(self._groups, wanted, strict=True)])
        for k in range(batches):
            quotas = Quotas([self._owed.get(name, 0.0) for name in names])
            counts, used = quotas.deal(wanted, filled, n)
            self._owed = dict(zip(names, quotas.owed, strict=True))
            words = self._stream.uniforms(step + k, 1, n)[0]
            at = 0
            for group, count, share in zip(self._groups, counts.tolist(), used.tolist(), strict=True):
                rows = slice(at, at + count)
                if count:
                    keys[k, rows] = group[(words[rows] * len(group)).astype(np.int64)]
                    probability[k, rows] = share / len(group)
                at += count
        return Draw(step, keys, probability, np.asarray(1.0))

    def state(self) -> State:
        return {"owed": [[name, owed] for name, owed in self._owed.items()]}


class _Group:
    """Sorted slots that come at the end and go at the beginning, mostly."""

    def __init__(self) -> None:
        self._room = np.empty(16, np.int64)
        self._start = self._stop = 0

    @property
    def slots(self) -> Slots:
        return self._room[self._start : self._stop]

    def add(self, slots: Slots) -> None:
        held = self.slots
        if len(held) and slots[0] < held[-1]:
            slots, held = np.union1d(held, slots), held[:0]
            self._start = self._stop = 0
        if self._stop + len(slots) > len(self._room):
            room = np.empty(2 * (len(held) + len(slots)), np.int64)
            room[: len(held)] = held
            self._room, self._start, self._stop = room, 0, len(held)
        self._room[self._stop : self._stop + len(slots)] = slots
        self._stop += len(slots)

    def remove(self, slots: Slots) -> None:
        held = self.slots
        if held[len(slots) - 1] == slots[-1]:  # each of them is held, so they are the first
            self._start += len(slots)
            return
        kept = held[~among(held, slots)]
        self._room, self._start, self._stop = kept, 0, len(kept)


def _rank(name: Any) -> tuple[bool, str, Any]:
    """The order of groups: by value, the one of nulls last."""
    return name is None, str(type(name)), 0 if name is None else name


def _same_groups(by: str, older: View, newer: View) -> bool:
    """Whether the rows that both views hold are in the same groups."""
    if older.schema != newer.schema:
        return False
    return newer.fact_stops == older.fact_stops if by.startswith("episode.") else newer.same_values(older)


def _parted(by: str, view: View, slots: Slots) -> list[tuple[Any, Slots]]:
    """Each group of some sorted slots, with those that are in it."""
    if not len(slots):
        return []
    names, codes = _grouped(by, view, slots)
    order = np.argsort(codes, kind="stable")
    parts = np.split(slots[order], np.cumsum(np.bincount(codes, minlength=len(names)))[:-1])
    return [(name, part) for name, part in zip(names, parts, strict=True) if len(part)]


def _grouped(by: str, view: View, slots: NDArray[np.int64]) -> tuple[list[Any], NDArray[np.int64]]:
    """The groups in plain values, sorted, the one of nulls last; and each slot's `[n]`."""
    if by.startswith("episode."):
        facts, name = view.facts.episodes, by.removeprefix("episode.")
        known = [facts.get(EpisodeKey(w, c), {}).get(name) for w, c in view.episodes.keys.tolist()]
        group = view.episodes.group_of(slots)
        present = {known[g] for g in np.unique(group).tolist()}
        names = sorted(present, key=_rank)
        code = {value: k for k, value in enumerate(names)}
        table = np.array([code.get(value, -1) for value in known], np.int64)
        return names, table[group]
    flag = by in ("terminated", "truncated")
    if not flag:
        leaf = next(iter(view.schema.select([by])))
        if getattr(leaf.field, "shape", None) != () or leaf.path != by:
            raise ArgumentError("rows are grouped by a scalar field", value=by, remedy="Name a field of shape ()")
    values = view.rows.gather(slots, (by,))[by]
    null = np.zeros(len(slots), np.bool_) if flag else ~view.rows.valid(slots, by)
    if values.dtype.kind == "f":
        null |= np.isnan(values)
    there, codes = np.unique(values[~null], return_inverse=True)
    out = np.full(len(slots), len(there), np.int64)
    out[~null] = codes
    return [*there.tolist(), *([None] if null.any() else [])], out
