"""How the drawable rows change from one view to the next, and views with fewer of them."""

from __future__ import annotations

from copy import copy
from typing import Any, NamedTuple

import numpy as np

from recollect.view import AnchorList, Anchors, Bool, Slots, View

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


def narrowed(view: View, slots: Slots) -> View:
    """The same rows to be read, with fewer to be drawn: the sorted `slots`."""
    out = copy(view)
    out.__dict__["anchors"] = AnchorList(slots, len(view.rows))
    return out


def is_rewritten(older: View | None, newer: View) -> bool:
    """Whether values that were read in `older` may be others in `newer`: late facts lay over fields of steps."""
    if older is None or newer is older:
        return False
    before, after = _changed_rows(older), _changed_rows(newer)
    return before is None or before != after


def _changed_rows(view: View) -> Any:
    """How many rows late facts have changed in a growing view; None for other views, which do not tell."""
    return getattr(getattr(view, "moment", None), "patches", None)


def first_slot(view: View) -> int:
    """Rows before this slot are gone for good."""
    return int(getattr(view.rows, "first", 0))
