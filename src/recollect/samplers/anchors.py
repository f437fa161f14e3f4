"""How the drawable rows change from one view to the next."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from recollect.view import Anchors, Bool, Slots, View

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


def first_slot(view: View) -> int:
    """Rows before this slot are gone for good."""
    return int(getattr(view.rows, "first", 0))
