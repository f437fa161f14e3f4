"""What is gone of a log: rows and facts that were damaged or deleted, with the reason (design/0018).

    <log>/holes.json    a note (`notes`), replaced as a whole; `holes.copy.json` beside it says the same

A deletion must not be undone by a flipped bit, so the note is kept twice: the copy is written first, and read where the
note itself is damaged. A changed note is followed by a new generation of `evicted.json`, at which every reader looks.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recollect.errors import CorruptionError
from recollect.hot.format.files import ABSENT, replace_file
from recollect.hot.format.notes import pack, read
from recollect.view.reach import Ranges, union, within, without
from recollect.view.reach import pack as pack_ranges
from recollect.view.reach import unpack as unpack_ranges

NAME = "holes.json"
COPY = "holes.copy.json"
DAMAGED = "damaged"
"""The reason of holes that `verify --repair` made."""


@dataclass(frozen=True)
class Hole:
    """Rows and facts that went together.

    Attributes:
        reason: why, in the words of whoever deleted them; `DAMAGED` for what could not be read.
        time_ns: when, nanoseconds since 1970.
        damaged: whether what they held is unknown.
        rows, facts: sorted ranges of their numbers in the log.
    """

    reason: str
    time_ns: int
    damaged: bool
    rows: Ranges = ()
    facts: Ranges = ()


class Lost(NamedTuple):
    """A segment file that was given up: its number, and the row and fact that the log goes on with behind it."""

    number: int
    row: int
    fact: int


@dataclass(frozen=True)
class Holes:
    """What is gone of one log.

    Attributes:
        holes: oldest first; none holds what an older one holds, but that a damaged frame is named whole.
        segments: files that were given up, by number.
        unfollowed: ranges of steps whose waiting observation is gone.
    """

    holes: tuple[Hole, ...] = ()
    segments: tuple[Lost, ...] = ()
    unfollowed: Ranges = ()

    @cached_property
    def rows(self) -> Ranges:
        """Every row that is gone, sorted ranges."""
        return union(r for hole in self.holes for r in hole.rows)

    @cached_property
    def facts(self) -> Ranges:
        """Every fact that is gone, sorted ranges."""
        return union(r for hole in self.holes for r in hole.facts)

    @cached_property
    def damaged_rows(self) -> Ranges:
        """Rows of which nobody knows what they held."""
        return union(r for hole in self.holes if hole.damaged for r in hole.rows)

    def reason(self, row: int) -> str | None:
        """Why a row is gone; None where it is not."""
        return next((h.reason for h in self.holes if within(h.rows, row, row + 1)), None)

    def skip(self, number: int) -> int:
        """The first segment from `number` on that was not given up."""
        lost = {s.number for s in self.segments}
        while number in lost:
            number += 1
        return number

    def is_lost(self, file: Path) -> bool:
        """Whether a segment file was given up."""
        return file.stem.isdecimal() and self.behind(int(file.stem)) is not None

    def pass_over(self, row: int, fact: int, number: int) -> tuple[int, int, int]:
        """Where a log that ended at `row` and `fact` goes on, and in which segment, when `number` was to be next."""
        while (behind := self.behind(number)) is not None:
            (row, fact), number = behind, number + 1
        return row, fact, number

    def behind(self, number: int) -> tuple[int, int] | None:
        """Where the log goes on after a segment that was given up; None for any other."""
        return next(((s.row, s.fact) for s in self.segments if s.number == number), None)

    def with_more(self, hole: Hole, *, segments: Iterable[Lost] = (), unfollowed: Ranges = ()) -> Holes:
        """With another hole; of what it names, only what is not gone yet. The same object where that is nothing."""
        rows = without(union(hole.rows), self.damaged_rows if hole.damaged else self.rows)
        facts = without(union(hole.facts), self.facts)
        known = {s.number for s in self.segments}
        more = tuple(s for s in segments if s.number not in known)
        steps = union([*self.unfollowed, *unfollowed])
        if not (rows or facts or more) and steps == self.unfollowed:
            return self
        added = (replace(hole, rows=rows, facts=facts),) if rows or facts else ()
        before = self.holes
        if before and added and _same(before[-1], hole):
            old = before[-1]
            added = (replace(old, rows=union([*old.rows, *rows]), facts=union([*old.facts, *facts])),)
            before = before[:-1]
        return Holes((*before, *added), tuple(sorted([*self.segments, *more])), steps)


def _same(one: Hole, other: Hole) -> bool:
    """Whether they are of one deletion."""
    return (one.reason, one.time_ns, one.damaged) == (other.reason, other.time_ns, other.damaged)


NONE = Holes()


def read_holes(folder: Path) -> Holes:
    """What is gone of the log in a writer's folder; nothing where there is no note.

    Raises:
        CorruptionError: the note and its copy are damaged.
        StoreError: the note cannot be read.
    """
    try:
        return _parsed(read(folder / NAME))
    except ABSENT:
        return NONE
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as e:
        wrong = e
    try:
        return _parsed(read(folder / COPY))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        raise CorruptionError(
            f"{str(folder / NAME)!r} is damaged, and so is its copy: {wrong}",
            remedy="Restore the workspace from a backup: which rows were deleted is not known any more",
        ) from None


def is_whole(folder: Path) -> bool:
    """Whether the note and its copy say the same, or neither is there."""
    if not (folder / NAME).exists():
        return not (folder / COPY).exists()
    try:
        _parsed(read(folder / NAME))
        return (folder / NAME).read_bytes() == (folder / COPY).read_bytes()
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError):
        return False


def write_holes(folder: Path, holes: Holes) -> None:
    """Replaces the note. Durable when it returns. Raises OSError."""
    body = {
        "holes": [
            {
                "reason": h.reason,
                "time_ns": h.time_ns,
                "damaged": h.damaged,
                "rows": _packed(h.rows),
                "facts": _packed(h.facts),
            }
            for h in holes.holes
        ],
        "segments": [list(s) for s in holes.segments],
        "unfollowed": _packed(holes.unfollowed),
    }
    raw = pack(body)
    for name in (COPY, NAME):
        replace_file(folder / name, raw)


def _parsed(data: Mapping[str, Any]) -> Holes:
    holes = tuple(
        Hole(h["reason"], h["time_ns"], h["damaged"], _ranges(h["rows"]), _ranges(h["facts"])) for h in data["holes"]
    )
    return Holes(holes, tuple(Lost(*s) for s in data["segments"]), _ranges(data["unfollowed"]))


def _packed(ranges: Ranges) -> list[int]:
    return [n for item in pack_ranges((0, a, b) for a, b in ranges) for n in item[1:]]


def _ranges(flat: Sequence[Any]) -> Ranges:
    return tuple((a, b) for _, a, b in unpack_ranges([[0, *flat]])) if flat else ()


def count(ranges: Ranges) -> int:
    """How many numbers lie in sorted ranges."""
    return sum(b - a for a, b in ranges)


def among(ranges: Ranges, numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
    """`[n]`: which numbers lie in sorted ranges."""
    if not ranges:
        return np.zeros(len(numbers), np.bool_)
    starts, stops = np.array(ranges, np.int64).T
    at = np.searchsorted(starts, numbers, side="right") - 1
    out: NDArray[np.bool_] = (at >= 0) & (numbers < stops[np.maximum(at, 0)])
    return out


def ranges_of(numbers: NDArray[np.int64]) -> Ranges:
    """The sorted ranges of some numbers."""
    numbers = np.unique(numbers)
    if not len(numbers):
        return ()
    breaks = np.flatnonzero(np.diff(numbers) != 1)
    starts = numbers[np.concatenate([[0], breaks + 1])]
    stops = numbers[np.concatenate([breaks, [len(numbers) - 1]])] + 1
    return tuple(zip(starts.tolist(), stops.tolist(), strict=True))
