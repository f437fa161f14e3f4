"""How far writers got, as ranges of rows: pure functions on sorted, half-open ranges, and the form they are kept in.

With 64 lanes interleaved in one log, every row may begin a range of its own. So what is written down is one list per
writer of the lengths that are in and out in turn, small numbers that compress well.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from recollect.view.ids import Extent

Ranges = tuple[tuple[int, int], ...]


class Mark(NamedTuple):
    """How far one writer was promoted.

    Attributes:
        rows: rows below this count were promoted, or were evicted before they could be, or are held back.
        facts: facts below it were promoted.
        held: ranges of rows below `rows` that were held back: left out by a filter, and promotable still.
    """

    rows: int = 0
    facts: int = 0
    held: Ranges = ()

    def lacking(self, start: int, stop: int) -> int:
        """How many of the rows `start` to `stop` are not promoted."""
        beyond = max(0, stop - max(start, self.rows))
        k = bisect.bisect_right(self.held, start, key=lambda r: r[1])
        for low, high in self.held[k:]:
            if low >= stop:
                break
            beyond += min(high, stop) - max(low, start)
        return beyond


def union(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Sorted, with those that touch or overlap joined."""
    out: list[tuple[int, int]] = []
    for start, stop in sorted(ranges):
        if out and out[-1][1] >= start:
            out[-1] = (out[-1][0], max(out[-1][1], stop))
        elif stop > start:
            out.append((start, stop))
    return tuple(out)


def without(ranges: Sequence[tuple[int, int]], taken: Sequence[tuple[int, int]]) -> Ranges:
    """What of `ranges` is not in `taken`; both sorted, neither overlapping in itself."""
    out: list[tuple[int, int]] = []
    k = 0
    for start, stop in ranges:
        while k < len(taken) and taken[k][1] <= start:
            k += 1
        j = k
        while j < len(taken) and taken[j][0] < stop:
            if taken[j][0] > start:
                out.append((start, taken[j][0]))
            start = max(start, taken[j][1])
            j += 1
        if start < stop:
            out.append((start, stop))
    return tuple(out)


def within(ranges: Sequence[tuple[int, int]], start: int, stop: int) -> Ranges:
    """What of sorted ranges lies from `start` to `stop`. There may be many of them, of which few are looked at."""
    out = []
    for k in range(bisect.bisect_right(ranges, start, key=lambda r: r[1]), len(ranges)):
        low, high = ranges[k]
        if low >= stop:
            break
        out.append((max(low, start), min(high, stop)))
    return tuple(out)


def pack(extents: Iterable[Sequence[Any]]) -> list[list[Any]]:
    """`[writer, start, stop]` ranges as `[writer, start, length, gap, length, …]`, one list for neighbours of a writer
    that lie one behind the other. The order is kept."""
    out: list[list[Any]] = []
    end = 0
    for writer, start, stop in extents:
        if out and out[-1][0] == writer and start >= end:
            out[-1] += (start - end, stop - start)
        else:
            out.append([writer, start, stop - start])
        end = stop
    return out


def unpack(packed: Iterable[Sequence[Any]]) -> list[list[Any]]:
    """What `pack` was given."""
    out: list[list[Any]] = []
    for writer, start, length, *rest in packed:
        out.append([writer, start, start + length])
        for gap, more in zip(rest[::2], rest[1::2], strict=True):
            start = out[-1][2] + gap
            out.append([writer, start, start + more])
    return out


def by_writer(extents: Iterable[Extent]) -> dict[int, list[tuple[int, int]]]:
    """Writer → its ranges, in the order given."""
    out: dict[int, list[tuple[int, int]]] = {}
    for e in extents:
        out.setdefault(e.writer, []).append((e.start, e.stop))
    return out
