"""Names of rows and of ranges of rows."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from recollect.errors import ArgumentError

I64: TypeAlias = NDArray[np.int64]
F64: TypeAlias = NDArray[np.float64]
Bool: TypeAlias = NDArray[np.bool_]
Slots: TypeAlias = I64
"""Row addresses in one view; -1 is none. Growth appends, never renumbers."""
PART_SHIFT = 48
"""A slot of joined views is part << PART_SHIFT | slot of the part; -1 is none."""
Ids: TypeAlias = NDArray[np.void]
"""StepIds as a structured array of `ID_DTYPE`, shape `[B]`."""

ID_DTYPE = np.dtype([("writer", "<i8"), ("seq", "<i8")])


class StepId(NamedTuple):
    """A row's name: unique everywhere, never reused, the same in hot, cold, ledger and priorities."""

    writer: int
    seq: int

    def __str__(self) -> str:
        return f"{self.writer}:{self.seq}"

    @classmethod
    def parse(cls, text: str) -> StepId:
        """Reads the text form `"writer:seq"`. Raises ArgumentError for anything else."""
        writer, colon, seq = text.partition(":")
        if not (text.isascii() and colon and writer.isdecimal() and seq.isdecimal()):
            raise ArgumentError("a step id reads 'writer:seq'", value=text)
        return cls(int(writer), int(seq))


class EpisodeKey(NamedTuple):
    """An episode's name: the writer that opened it and that writer's count."""

    writer: int
    counter: int

    @property
    def default_id(self) -> str:
        """The id of an episode whose caller gave none."""
        return f"e{self.writer}.{self.counter}"

    @classmethod
    def parse_default_id(cls, text: str) -> EpisodeKey | None:
        """The key that a default id spells, or None."""
        writer, dot, counter = text[1:].partition(".")
        if text.isascii() and text[:1] == "e" and dot and writer.isdecimal() and counter.isdecimal():
            return cls(int(writer), int(counter))
        return None


class Extent(NamedTuple):
    """Rows `start` to `stop` (half-open) of one writer."""

    writer: int
    start: int
    stop: int


class Cut(NamedTuple):
    """What a view is: equal cut, equal rows in equal order, hot or cold.

    Attributes:
        extents: the rows, in view order.
        facts: per writer, sorted: the facts below this count are part of the cut.
        parts: of joined views: name and cut of each, and no extents besides.
    """

    extents: tuple[Extent, ...]
    facts: tuple[tuple[int, int], ...]
    parts: tuple[tuple[str, Cut], ...] = ()

    @property
    def rows(self) -> int:
        return sum(e.stop - e.start for e in self.extents) + sum(cut.rows for _, cut in self.parts)

    def to_dict(self) -> dict[str, Any]:
        """JSON form; numbers above 2**53 are text there."""
        out: dict[str, Any] = {
            "extents": [[str(e.writer), e.start, e.stop] for e in self.extents],
            "facts": [[str(writer), stop] for writer, stop in self.facts],
        }
        if self.parts:
            out["parts"] = [[name, cut.to_dict()] for name, cut in self.parts]
        return out

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Cut:
        return cls(
            tuple(Extent(int(w), start, stop) for w, start, stop in data["extents"]),
            tuple((int(w), stop) for w, stop in data["facts"]),
            tuple((name, cls.from_dict(cut)) for name, cut in data.get("parts", ())),
        )

    def extends(self, older: Cut) -> bool:
        """Whether every row of `older` has the same slot here."""
        if self.parts or older.parts:
            names = [name for name, _ in self.parts] == [name for name, _ in older.parts]
            return names and all(a.extends(b) for (_, a), (_, b) in zip(self.parts, older.parts, strict=True))
        mine, theirs = merged(self.extents), merged(older.extents)
        if not theirs:
            return True
        head, last = theirs[:-1], theirs[-1]
        if mine[: len(head)] != head or len(mine) < len(theirs):
            return False
        at = mine[len(head)]
        return (
            (at.writer, at.start) == (last.writer, last.start)
            and at.stop >= last.stop
            and (at.stop == last.stop or len(mine) >= len(theirs))
        )


def merged(extents: Iterable[Extent]) -> tuple[Extent, ...]:
    """The same rows in the same order with adjacent ranges joined and empty ones left out."""
    out: list[Extent] = []
    for e in extents:
        if e.stop <= e.start:
            continue
        if out and out[-1].writer == e.writer and out[-1].stop == e.start:
            out[-1] = Extent(e.writer, out[-1].start, e.stop)
        else:
            out.append(Extent(*e))
    return tuple(out)


def make_ids(writer: Any, seq: Any) -> Ids:
    """A structured id array from two integer arrays."""
    out = np.empty(len(seq), ID_DTYPE)
    out["writer"] = writer
    out["seq"] = seq
    return out
