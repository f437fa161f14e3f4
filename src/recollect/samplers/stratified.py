"""`Stratified`: exact shares of every batch for groups of rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recollect.errors import ArgumentError
from recollect.samplers.anchors import listed
from recollect.samplers.base import Cursor, Draw, State, drawable
from recollect.samplers.quotas import Quotas
from recollect.samplers.streams import Stream
from recollect.view import EpisodeKey, View

_PURPOSE = 5


@dataclass(frozen=True)
class Stratified:
    """Rows of each group with the same chance, and each group with its exact share of every batch.

    A group is a value of a scalar field, or of a fact where `by` begins with `episode.`; rows where it is null are a
    group too. Shares are rounded to rows by largest remainder with the error carried. A group that has no row now
    gives its share to the others. `probability` is share / rows of the group; weights are 1. A view that grew is
    grouped anew as a whole.

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
        self._owed: dict[Any, float] = {}
        if state is not None:
            self._owed = {key: owed for key, owed in state["owed"]}  # noqa: C416
        self.grow(view)

    def grow(self, view: View) -> None:
        drawable(view)
        if view is self._view:
            return
        slots = listed(view.anchors)
        names, codes = _grouped(self._config.by, view, slots)
        order = np.argsort(codes, kind="stable")
        parts = np.split(slots[order], np.cumsum(np.bincount(codes, minlength=len(names)))[:-1])
        groups = dict(zip(names, parts, strict=True))
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


def _grouped(by: str, view: View, slots: NDArray[np.int64]) -> tuple[list[Any], NDArray[np.int64]]:
    """The groups in plain values, sorted, the one of nulls last; and each slot's `[n]`."""
    if by.startswith("episode."):
        facts, name = view.facts.episodes, by.removeprefix("episode.")
        known = [facts.get(EpisodeKey(w, c), {}).get(name) for w, c in view.episodes.keys.tolist()]
        group = view.episodes.group[slots]
        present = {known[g] for g in np.unique(group).tolist()}
        names = sorted((v for v in present if v is not None), key=lambda v: (str(type(v)), v))
        names += [None] * (None in present)
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
