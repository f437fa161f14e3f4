"""How the drawable rows change from one view to the next, and drawable rows less some of them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import numpy as np

from recollect.view.ids import I64, Bool, Slots
from recollect.view.view import Anchors

_NONE = np.empty(0, np.int64)


class Change(NamedTuple):
    """Slots `[n]` and `[m]`, sorted, of rows that may be drawn now, and of those that may be drawn no more."""

    added: Slots
    removed: Slots


def listed(anchors: Anchors) -> Slots:
    """Every drawable row, sorted."""
    return anchors.select(np.arange(len(anchors))) if anchors.slots is None else anchors.slots


def among(slots: Slots, known: Slots) -> Bool:
    """`[n]`: which slots are in a sorted list."""
    if not len(known):
        return np.zeros(len(slots), np.bool_)
    out: Bool = known[np.minimum(np.searchsorted(known, slots), len(known) - 1)] == slots
    return out


def change(older: Anchors | None, newer: Anchors) -> Change:
    """What came and what went. Costs what changed where the anchors can tell (views that grow), else what all cost."""
    if older is newer:
        return Change(_NONE, _NONE)
    if older is None:
        return Change(listed(newer), _NONE)
    told = newer.changes(older) if hasattr(newer, "changes") else None
    if told is not None:
        return Change(*told)
    before, after = listed(older), listed(newer)
    if len(after) >= len(before) and np.array_equal(after[: len(before)], before):
        return Change(after[len(before) :], _NONE)
    return Change(after[~among(after, before)], before[~among(before, after)])


def merged_sorted(kept: Slots, more: Slots) -> Slots:
    """Two sorted lists as one, each slot once."""
    if not len(more):
        return kept
    if not len(kept) or more[0] > kept[-1]:
        return np.concatenate([kept, more])
    return np.union1d(kept, more)


def ranks_of(anchors: Anchors, slots: Slots) -> I64:
    """`[n]`: how many drawable rows lie before each slot."""
    if hasattr(anchors, "ranks"):
        told: I64 = anchors.ranks(slots)
        return told
    return np.searchsorted(listed(anchors), slots) if anchors.slots is not None else np.asarray(slots)


@dataclass(frozen=True, eq=False)
class LeftOut:
    """Drawable rows less some that another part draws.

    Attributes:
        inner: all of them.
        dropped: sorted slots of those that are left out; each may be drawn in `inner`.
    """

    inner: Anchors
    dropped: Slots

    @cached_property
    def _jumps(self) -> I64:
        return ranks_of(self.inner, self.dropped) - np.arange(len(self.dropped))

    @property
    def slots(self) -> Slots | None:
        """Every drawable row, sorted; None when every row of the view may be drawn."""
        if not len(self.dropped):
            return self.inner.slots
        return self.select(np.arange(len(self)))

    @property
    def undrawable_truncated(self) -> int:
        return self.inner.undrawable_truncated

    @property
    def undrawable_open(self) -> int:
        return self.inner.undrawable_open

    @property
    def undrawable_beheaded(self) -> int:
        return self.inner.undrawable_beheaded

    def __len__(self) -> int:
        return len(self.inner) - len(self.dropped)

    def select(self, ranks: Slots) -> Slots:
        """The drawable rows at these places of their sorted list."""
        if len(self.dropped):
            ranks = ranks + np.searchsorted(self._jumps, ranks, side="right")
        return self.inner.select(ranks)

    def ranks(self, slots: Slots) -> I64:
        """`[n]`: how many drawable rows lie before each slot."""
        return ranks_of(self.inner, slots) - np.searchsorted(self.dropped, slots)

    def mask(self, slots: Slots) -> Bool:
        """Whether each slot may be drawn."""
        return self.inner.mask(slots) & ~among(slots, self.dropped)

    def complete(self, slots: Slots) -> Bool:
        """Whether a window may hold each slot: rows that are left out are still read."""
        return self.inner.complete(slots)

    def changes(self, older: object) -> tuple[Slots, Slots] | None:
        """What may be drawn here and not there, and the other way round; both sorted."""
        if not isinstance(older, LeftOut):
            return None
        came = change(older.inner, self.inner)
        if older.dropped is self.dropped:
            stay = ~among(came.added, self.dropped), ~among(came.removed, self.dropped)
            return came.added[stay[0]], came.removed[stay[1]]
        freed = older.dropped[~among(older.dropped, self.dropped)]
        lost = self.dropped[~among(self.dropped, older.dropped)]
        added = came.added[~among(came.added, self.dropped)]
        removed = came.removed[~among(came.removed, older.dropped)]
        return (
            merged_sorted(added, freed[self.inner.mask(freed)]),
            merged_sorted(removed, lost[older.inner.mask(lost)]),
        )
