"""Views and sources of which fewer rows may be drawn. What may be read stays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from recollect.errors import ArgumentError
from recollect.view.changes import among, change, listed
from recollect.view.ids import Bool, Slots
from recollect.view.view import Anchors, GrowingSource, Narrowing, View
from recollect.view.window import Window
from recollect.where import Filter


def chosen(
    keep: Narrowing | None, last: int | None, age: float | timedelta | None, policy_lag: int | None
) -> Narrowing:
    """The one narrowing that was asked for. Raises ArgumentError for none, or for two."""
    if keep is None:
        return Window(last, age, policy_lag)
    if (last, age, policy_lag) != (None, None, None):
        raise ArgumentError("narrow takes keep or a window, not both", value=keep, remedy="Narrow twice")
    if not callable(keep) and not isinstance(keep, Filter | Window):
        raise ArgumentError(
            "a view is narrowed by a window or a function of (view, slots)", value=keep, remedy="Pass rc.Window(...)"
        )
    return keep


def narrowed(view: View, narrowing: Narrowing) -> View:
    """`View.narrow`."""
    slots = listed(view.anchors)
    return restricted(view, narrowing, slots[kept(view, narrowing, slots)])


def kept(view: View, narrowing: Narrowing, slots: Slots) -> Bool:
    """`[n]`: which of the drawable rows stay; all of them are given, in order."""
    if isinstance(narrowing, Window):
        return narrowing.mask(narrowing.columns(view, slots))
    if isinstance(narrowing, Filter):
        return matches(view, narrowing, slots)
    out = np.asarray(narrowing(view, slots))
    if out.shape != slots.shape or out.dtype != np.bool_:
        raise ArgumentError(
            f"what narrows a view returns a bool for each of {len(slots)} slots", value=(out.shape, str(out.dtype))
        )
    return out


def matches(view: View, condition: Filter, slots: Slots) -> Bool:
    """`[n]`: the slots of which a condition is true."""
    from recollect.view.matching import matching

    view.schema.require_equal(condition.schema, what="the condition")
    episodes = view.episodes
    return matching(condition, view.rows, slots, episodes.group_of(slots), episodes.keys, lambda: view.facts)


def restricted(view: View, narrowing: Narrowing, slots: Slots) -> View:
    """The view, of which a narrowing left these rows to draw, and says so."""
    out = view.drawing(slots)
    known = out.__dict__
    if isinstance(narrowing, Filter):
        known["filter"] = narrowing if view.filter is None else view.filter & narrowing
    known["narrowings"] = (*view.narrowings, narrowing)
    known["narrowed_from"] = view
    return out


class Narrows:
    """What sources of growing views have in common: the same views, of whose rows fewer are drawn."""

    def where(self, condition: str) -> NarrowedSource:
        """A source of the same views, of whose rows only those are drawn that a condition is true of; see
        `View.where`. New rows alone are looked at, unless facts came; a join looks at all rows whenever some come."""
        return NarrowedSource(cast(GrowingSource, self), condition)

    def narrow(
        self,
        keep: Narrowing | None = None,
        *,
        last: int | None = None,
        age: float | timedelta | None = None,
        policy_lag: int | None = None,
    ) -> NarrowedSource:
        """A source of the same views, of whose rows fewer are drawn; see `View.narrow`. The window moves with the
        newest row; each part of a join is narrowed for itself."""
        return NarrowedSource(cast(GrowingSource, self), chosen(keep, last, age, policy_lag))


class NarrowedSource(Narrows):
    """A source of growing views, each of them narrowed. `ws.live().narrow(...)` and `.where(...)` make one.

    New rows alone are looked at, unless facts came that may change what a narrowing says of older rows; a function of
    one's own looks at all rows each time.
    """

    def __init__(self, source: GrowingSource, narrowing: Narrowing | str) -> None:
        self._source, self._given = source, narrowing
        self._base: View | None = None
        self._view: View | None = None
        self._narrowing: Narrowing | None = None
        self._slots: Slots = np.empty(0, np.int64)
        """The rows that the newest view draws, or that say where its window is, and what that looks at of each."""
        self._kept: Slots = self._slots
        self._columns: NDArray[np.int64] = np.empty((0, 0), np.int64)

    def at(self, step: int) -> View:
        """What is published now."""
        base = self._source.at(step)
        if self._view is None or base is not self._base:
            self._view = self._narrowed(base)
        return self._view

    def is_alone(self) -> bool:
        """Whether nobody but the calling thread appends to what is narrowed."""
        alone = getattr(self._source, "is_alone", None)
        return alone is not None and bool(alone())

    def _narrowed(self, base: View) -> View:
        older, self._base = self._base, base
        if older is None or older.schema != base.schema:
            self._narrowing, older = self._for(base), None
        narrowing = self._narrowing
        assert narrowing is not None
        if base.parts or not isinstance(narrowing, Window | Filter):
            return base.narrow(narrowing)  # each part for itself, and functions of all rows
        if older is not None and not _knows(narrowing, older, base):
            older = None
        self._take(base, narrowing, None if older is None else older.anchors)
        return restricted(base, narrowing, self._kept)

    def _for(self, view: View) -> Narrowing:
        """The narrowing as this schema has it: a condition is read anew, since it names fields."""
        if isinstance(self._given, str):
            from recollect.where import parse

            return parse(self._given, view.schema)
        return self._given

    def _take(self, base: View, narrowing: Window | Filter, older: Anchors | None) -> None:
        """Goes on with the drawable rows of a later view.

        What left a window stays out of it while the rows that say where it is are there. Where one of these leaves the
        view, all rows are looked at again.
        """
        came = change(older, base.anchors)
        slots, columns = self._slots, self._columns
        if older is not None and len(came.removed) and (gone := among(slots, came.removed)).any():
            if isinstance(narrowing, Window):
                came, older = change(None, base.anchors), None
            else:
                slots, columns = slots[~gone], columns[:, ~gone]
        if isinstance(narrowing, Window):
            fresh, added = narrowing.columns(base, came.added), came.added
        else:
            added = came.added[matches(base, narrowing, came.added)]
            fresh = np.empty((0, len(added)), np.int64)
        if older is not None and len(slots):
            behind = not len(added) or added[0] > slots[-1]
            slots, columns = np.concatenate([slots, added]), np.concatenate([columns, fresh], axis=1)
            if not behind:
                order = np.argsort(slots, kind="stable")
                slots, columns = slots[order], columns[:, order]
        else:
            slots, columns = added, fresh
        self._kept = slots
        if isinstance(narrowing, Window):
            stay = narrowing.mask(columns)
            if not stay.all():
                self._kept = slots[stay]
                needed = narrowing.needed(columns, stay)
                slots, columns = slots[needed], columns[:, needed]
        self._slots, self._columns = slots, columns

    # -- going on ------------------------------------------------------------------------------------------

    def mark(self, view: View) -> dict[str, Any]:
        """Names one of its views in plain values."""
        assert view.narrowed_from is not None
        return self._source.mark(view.narrowed_from)

    def restore(self, marks: Sequence[Mapping[str, Any]]) -> list[View]:
        """The views that marks name; the source goes on from the last."""
        out = []
        for base in self._source.restore(marks):
            self._base = None
            self._view = self._narrowed(base)
            out.append(self._view)
        return out

    def close(self) -> None:
        """Lets go of what the source holds."""
        if (close := getattr(self._source, "close", None)) is not None:
            close()


def _knows(narrowing: Window | Filter, older: View, newer: View) -> bool:
    """Whether what a narrowing looked at in an older view is the same in a newer one."""
    if isinstance(narrowing, Filter):
        by_fact = narrowing.uses_facts
    else:
        by_fact = narrowing.policy_lag is not None and newer.schema.role("policy_version") is None
    return newer.same_values(older) and (not by_fact or newer.fact_stops == older.fact_stops)
