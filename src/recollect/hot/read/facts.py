"""One log's facts: parsed once per process, and a range of them wherever they are readable."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from recollect.hot.format.first import First
from recollect.hot.format.parse import parse, parse_all
from recollect.hot.format.segment import Segment
from recollect.hot.read.turns import Turns
from recollect.view import Fact
from recollect.view.reach import Ranges, within, without


def carried(first: First, lost: Ranges) -> list[Fact]:
    """The facts of evicted segments that are still there: not `lost`."""
    return [f for f in first.facts if not within(lost, f.seq, f.seq + 1)] if lost else [*first.facts]


class Facts:
    """The facts of one log that are still there, and the turns that they tell. Under the log's lock.

    Attributes:
        turns: which episodes go on in the log, and which were closed there.
    """

    def __init__(self) -> None:
        self.turns = Turns()
        self._parsed: list[Fact] = []
        self._stop = 0
        """Facts below it are in `_parsed`, or were evicted."""

    def begin_at(self, first: First, lost: Ranges) -> None:
        """Takes what was carried over from evicted segments, and forgets what was not."""
        self._parsed = [*carried(first, lost), *(f for f in self._parsed if f.seq >= first.fact)]
        self.turns.begin_at(first)
        self._stop = max(self._stop, first.fact)

    def lose(self, first: First, lost: Ranges) -> None:
        """Forgets the facts that are gone."""
        self._parsed = [f for f in self._parsed if not within(lost, f.seq, f.seq + 1)]
        if lost:
            self.turns = Turns(lost)
            self.turns.begin_at(first)
            self.turns.scanned = first.fact

    def read(self, spans: Iterable[tuple[Segment, int]], lost: Ranges, stop: int) -> list[Fact]:
        """Every fact below `stop`.

        Args:
            spans: segments, and up to which fact of the log each is to be read.
            lost: facts that are gone.

        Raises:
            CorruptionError: one is damaged.
        """
        self._parsed += parse_all(spans, self._stop, lost)
        self._stop = max(self._stop, stop)
        return self._parsed[: bisect.bisect_left(self._parsed, stop, key=lambda f: f.seq)]


class FactSpans(NamedTuple):
    """A range of a log's facts, as far as they are readable.

    Attributes:
        carried: those that were carried over from segments that are not.
        pieces: the segments that hold the others, in order, with their rows there. Those come unchecked.
    """

    carried: list[Fact]
    pieces: list[tuple[Segment, int, int]]

    @classmethod
    def between(
        cls,
        start: int,
        stop: int,
        early: Sequence[Fact],
        past: Sequence[tuple[Segment, int]],
        spans: Sequence[tuple[Segment, int]],
        lost: Ranges,
    ) -> FactSpans:
        """Facts `start` to `stop`.

        Args:
            early: all that were carried over.
            past, spans: segments that were evicted and are held, and those that are there, with the fact of the log
                that each ends with.
            lost: facts that are gone.
        """
        pieces = []
        for segment, end in (*past, *spans):
            first = segment.header.first_fact
            low, high = max(start, first), min(stop, end)
            pieces += [(segment, a - first, b - first) for a, b in without(((low, high),), lost) if low < high]
        low, high = (bisect.bisect_left(early, n, key=lambda f: f.seq) for n in (start, stop))
        held = [(segment.header.first_fact, end) for segment, end in past]
        return cls([f for f in early[low:high] if not any(a <= f.seq < b for a, b in held)], pieces)

    def first_whole(self) -> Fact | None:
        """The first that is whole, None where there is none."""
        for segment, row, _ in self.pieces:
            if segment.checked.whole_facts(row, row + 1) == row + 1:
                return parse(segment, row)
        return self.carried[0] if self.carried else None

    def parsed(self) -> Iterator[Fact]:
        """The facts in order, parsed anew.

        Raises:
            CorruptionError: one is damaged.
        """
        yield from self.carried
        for segment, low, high in self.pieces:
            segment.checked.require_facts(high)
            for row in range(low, high):
                yield parse(segment, row)

    def has_any_about_steps(self) -> bool:
        """Whether any is about a step rather than an episode. Raises CorruptionError."""
        if any(f.step is not None for f in self.carried):
            return True
        for segment, low, high in self.pieces:
            segment.checked.require_facts(high)
            if (segment.facts["step_seq"][low:high] >= 0).any():
                return True
        return False

    def about_steps(self) -> list[Fact]:
        """Those that are about steps. Raises CorruptionError."""
        out = [f for f in self.carried if f.step is not None]
        for segment, low, high in self.pieces:
            segment.checked.require_facts(high)
            about = segment.facts["step_seq"][low:high]
            out += [parse(segment, low + int(row)) for row in np.flatnonzero(about >= 0)]
        return out
