"""What is gone from a log and still read here: a thread that pinned the store reads on in what its cut names."""

from __future__ import annotations

import mmap
import threading
import weakref
from typing import NamedTuple

from recollect.hot.format.holes import Holes
from recollect.hot.format.layouts import Layouts
from recollect.hot.format.segment import Segment

UNNOTICED = 1 << 62
"""Tick of what a log found evicted by itself, before its store noticed."""


class Past(NamedTuple):
    """An evicted segment that somebody here may still read: when it was noticed, and the rows and facts of the log that
    it ends with."""

    tick: int
    segment: Segment
    stop: int
    fact_stop: int


class Held:
    """The evicted segments of one log, and the rows that became holes, until nobody here reads them. Under the log's
    lock.

    Attributes:
        past: the evicted segments, in order.
        unlinked: maps of evicted segments; while one lives, so does its disk space.

    Args:
        pins: `tick` is when the thread that asks pinned the store, where it did.
    """

    def __init__(self, pins: threading.local | None = None) -> None:
        self.past: list[Past] = []
        self.unlinked: list[weakref.ref[mmap.mmap]] = []
        self._pins = pins
        self._pending: list[tuple[int, Holes]] = []
        """Ticks at which more was noticed to be gone, and what was before."""

    def __bool__(self) -> bool:
        return bool(self.past or self._pending)

    def hold(self, past: Past) -> None:
        """Keeps a segment that was evicted."""
        self.past.append(past)
        self.unlinked.append(weakref.ref(past.segment.map))

    def notice(self, tick: int) -> None:
        """Says when the store noticed what the log had found evicted by itself."""
        self.past = [p._replace(tick=min(p.tick, tick)) for p in self.past]

    def hold_rows(self, tick: int, before: Holes) -> None:
        """Keeps rows readable that are gone since `tick`: those that were not `before`."""
        self._pending.append((tick, before))

    def blanked(self, holes: Holes) -> Holes:
        """What of a log's holes reads as blank rows in this thread."""
        tick = getattr(self._pins, "tick", None) if self._pending else None
        if tick is None:
            return holes
        return next((before for when, before in self._pending if when > tick), holes)

    def release_rows(self, tick: int) -> bool:
        """Lets go of rows that are gone since `tick` or before. Whether those were the last."""
        if not self._pending:
            return False
        self._pending = [(when, before) for when, before in self._pending if when > tick]
        return not self._pending

    def release_segments(self, tick: int) -> bool:
        """Lets go of segments that were noticed as evicted at `tick` or before. Whether any were held."""
        if not self.past:
            return False
        self.past = [p for p in self.past if p.tick > tick]
        return True


def renewed(segment: Segment, layouts: Layouts, holes: Holes) -> Segment:
    """The segment, mapped anew where its file was written over since: without what was purged."""
    try:
        same = segment.path.stat().st_ino == segment.inode
    except FileNotFoundError:  # evicted, or given up
        return segment
    if same:
        return segment
    new = Segment.open_(segment.path, layouts)
    new.checked.forgive(holes.damaged_rows, holes.facts)
    return new
