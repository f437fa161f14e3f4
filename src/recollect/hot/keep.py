"""What a workspace keeps, and which segments may go: pure functions over what is there."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Literal, TypeAlias

from recollect.errors import ArgumentError

SEGMENTS = 8
"""Into how many segments what one writer may keep is split at least: whole ones go."""
Unpromoted: TypeAlias = Literal["refuse", "drop"]


@dataclass(frozen=True)
class Keep:
    """How much a workspace keeps. Beyond any of the limits, whole segments go, the oldest first.

    Rows go when the workspace's home buffer holds them, which is the first target of a snapshot unless `home=` named
    another. With `unpromoted="refuse"` nothing else goes: a workspace over its limits keeps growing until a snapshot,
    and its `stats()` say so. With `"drop"` the oldest rows go in any case; those that the home buffer did not
    hold are counted.

    Args:
        rows: the newest so many rows stay; a segment goes while as many are left without it. Writers opened since then
            make segments of an eighth of that, or of `bytes`, so that about so much is kept beyond it for each
            writer, and as much again is made ready ahead.
        bytes: the disk space that all segments and waiting observations may take.
        age: seconds, or a timedelta; a segment goes when all of it is older.
        unpromoted: what happens to rows that the home buffer does not hold: `"refuse"` or `"drop"`.

    Raises:
        ArgumentError: a limit that is no positive number.
    """

    rows: int | None = None
    bytes: int | None = None
    age: float | timedelta | None = None
    unpromoted: Unpromoted = "refuse"

    def __post_init__(self) -> None:
        for name in ("rows", "bytes"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
                raise ArgumentError(f"Keep({name}=) takes a whole number of at least 1", value=value)
        if isinstance(self.age, timedelta):
            object.__setattr__(self, "age", self.age.total_seconds())
        if self.age is not None and (
            isinstance(self.age, bool)
            or not isinstance(self.age, int | float)
            or not math.isfinite(self.age)
            or self.age <= 0
        ):
            raise ArgumentError("Keep(age=) takes seconds above 0, or a timedelta", value=self.age)
        if self.unpromoted not in ("refuse", "drop"):
            raise ArgumentError("Keep(unpromoted=) takes 'refuse' or 'drop'", value=self.unpromoted)

    @property
    def limited(self) -> bool:
        """Whether there is any limit."""
        return self.rows is not None or self.bytes is not None or self.age is not None

    def segment_bytes(self, row_bytes: int) -> int | None:
        """The largest segment to make, so that what is kept beyond a limit stays small; None for no bound."""
        sizes = [] if self.bytes is None else [self.bytes // SEGMENTS]
        if self.rows is not None:
            sizes.append(self.rows // SEGMENTS * row_bytes)
        return min(sizes, default=None)

    @property
    def age_ns(self) -> int | None:
        return None if self.age is None else int(float(self.age) * 1e9)  # type: ignore[arg-type]

    def to_dict(self) -> dict[str, Any]:
        return {"rows": self.rows, "bytes": self.bytes, "age": self.age, "unpromoted": self.unpromoted}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Keep:
        """Raises ArgumentError or TypeError for what `to_dict` did not make."""
        return cls(**data)

    def __str__(self) -> str:
        if not self.limited:
            return "everything"
        limits = [
            f"{value:,} {unit}"
            for value, unit in ((self.rows, "rows"), (self.bytes, "bytes"), (self.age, "s"))
            if value is not None
        ]
        beyond = (
            "rows beyond that go" if self.unpromoted == "drop" else "rows beyond that go once the home buffer has them"
        )
        return f"{', '.join(limits)}; {beyond}"


@dataclass(frozen=True)
class Parcel:
    """One segment that is not written any more, and may be evicted as a whole.

    Attributes:
        rows, facts, bytes: what it holds; `newest_ns` when the last of it was written.
        promoted: whether the home buffer holds all of it.
    """

    rows: int
    facts: int
    bytes: int
    newest_ns: int
    promoted: bool


@dataclass(frozen=True)
class Choice:
    """What goes.

    Attributes:
        segments: writer → how many segments go from the front of its log.
        waiting_rows, waiting_bytes: what is beyond the limits and waits for its promotion.
    """

    segments: Mapping[int, int]
    waiting_rows: int = 0
    waiting_bytes: int = 0


def choose(
    keep: Keep, logs: Mapping[int, Sequence[Parcel]], rows: int, size: int, now_ns: int, done: frozenset[int]
) -> Choice:
    """Which segments go: the oldest while the limits want one gone, from the front of each log.

    A segment that waits for its promotion holds back those behind it in its own log and no others: the limits are
    counted as if it had gone, so that what waits does not push out newer rows.

    Args:
        logs: writer → its segments that are not written any more, oldest first.
        rows, size: rows and bytes of the whole workspace, segments being written included.
        done: writers whose logs will never grow: when they hold neither rows nor facts, nothing keeps them.
    """
    go: dict[int, int] = {}
    if not keep.limited:
        return Choice(go)
    fronts = [(parcels[0].newest_ns, writer, 0) for writer, parcels in logs.items() if parcels]
    heapq.heapify(fronts)
    held: set[int] = set()
    waiting_rows = waiting_bytes = 0
    age = keep.age_ns
    for writer in done:
        if not any(p.rows or p.facts for p in logs.get(writer, ())):
            go[writer] = len(logs.get(writer, ()))
            size -= sum(p.bytes for p in logs.get(writer, ()))
    while fronts:
        newest, writer, k = heapq.heappop(fronts)
        if writer in done and writer in go and go[writer] == len(logs[writer]):
            continue
        parcel = logs[writer][k]
        wanted = (
            (keep.rows is not None and rows - parcel.rows >= keep.rows)
            or (keep.bytes is not None and size > keep.bytes)
            or (age is not None and now_ns - newest > age)
        )
        if not wanted:
            break
        if writer not in held and (parcel.promoted or keep.unpromoted == "drop"):
            go[writer] = k + 1
        else:
            held.add(writer)
            waiting_rows += parcel.rows
            waiting_bytes += parcel.bytes
        rows -= parcel.rows
        size -= parcel.bytes
        if k + 1 < len(logs[writer]):
            heapq.heappush(fronts, (logs[writer][k + 1].newest_ns, writer, k + 1))
    return Choice(go, waiting_rows, waiting_bytes)
