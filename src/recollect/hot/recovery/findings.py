"""What a check of logs finds: its counts and its problems."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from recollect.view import Extent, merged

Level: TypeAlias = Literal["lost", "repairable", "harmless"]


@dataclass(frozen=True)
class Problem:
    """One finding.

    Attributes:
        level: `"lost"` where data is gone or cannot be trusted, `"repairable"` where none is and something has to be
            done or was done, `"harmless"` where nothing has to.
        where: the file, as seen from the workspace's folder.
        what: what is wrong.
        rows: the rows that it concerns, by their ids.
        remedy: what can be done.
    """

    level: Level
    where: str
    what: str
    remedy: str
    rows: tuple[Extent, ...] = ()


@dataclass
class Findings:
    """What was looked at, and what was wrong with it.

    Attributes:
        writers: logs; `live` of them may still grow, `unsealed` have lost their writer and wait for the next open.
        segments, rows, facts: what of them was checked.
        readable: whether the logs are whole as far as they go, so that something can be made from them.
    """

    writers: int = 0
    live: int = 0
    unsealed: int = 0
    segments: int = 0
    rows: int = 0
    facts: int = 0
    readable: bool = True
    problems: list[Problem] = field(default_factory=list)

    def add(
        self, level: Level, where: str, what: str, remedy: str, rows: Sequence[Extent] = (), *, cut_off: bool = False
    ) -> None:
        """Notes a problem; `cut_off` says that it lies beyond where the log now ends."""
        self.readable = self.readable and (cut_off or level == "harmless")
        self.problems.append(Problem(level, where, what, remedy, merged(rows)))


def problems_in_words(problems: Sequence[Problem]) -> Iterator[dict[str, Any]]:
    """Problems in their JSON form."""
    for p in problems:
        rows = [{"writer": str(e.writer), "start": e.start, "stop": e.stop} for e in p.rows]
        yield {"level": p.level, "where": p.where, "what": p.what, "rows": rows, "remedy": p.remedy}
