"""What eviction leaves behind of a workspace as a whole: one small file that every reader looks at before it reads.

    <workspace>/evicted.json    replaced after each eviction; a changed file tells readers to look where logs begin

It sums up the logs that went whole, since a writer per episode would otherwise leave a note per episode (design/0010).
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from recollect.errors import CorruptionError
from recollect.hot.files import replace_file
from recollect.hot.notes import pack, unpack

NAME = "evicted.json"


@dataclass(frozen=True)
class Evicted:
    """Sums over the logs that are gone.

    Attributes:
        generation: counts evictions.
        writers, rows, facts: what they held.
        dropped_rows, dropped_facts: how much of it the home buffer did not hold.
        leaving: writers that are in the sums and whose folders may still be there.
    """

    generation: int = 0
    writers: int = 0
    rows: int = 0
    facts: int = 0
    dropped_rows: int = 0
    dropped_facts: int = 0
    leaving: frozenset[int] = frozenset()


def signature(note: str) -> tuple[int, int] | None:
    """Of the file: changes with every eviction; None as long as there was none. One system call."""
    try:
        stat = os.stat(note)  # noqa: PTH116 - at every refresh, and half the time of a Path's
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def read_evicted(log: Path) -> Evicted:
    """The sums of the workspace whose writers' folders lie in `log`. Raises CorruptionError."""
    try:
        data = unpack((log.parent / NAME).read_bytes())
    except FileNotFoundError:
        return Evicted()
    except ValueError as e:
        raise CorruptionError(
            f"{str(log.parent / NAME)!r} is damaged: {e}", remedy="Restore the workspace from a backup"
        ) from None
    return Evicted(**{**data, "leaving": frozenset(int(w, 16) for w in data["leaving"])})


def write_evicted(log: Path, evicted: Evicted) -> None:
    """Durable when it returns. Raises OSError."""
    leaving = [f"{w:016x}" for w in sorted(evicted.leaving)]
    replace_file(log.parent / NAME, pack({**evicted.__dict__, "leaving": leaving}))
