"""What eviction leaves behind of a workspace as a whole: one small file that every reader looks at before it reads.

    <workspace>/evicted.json    replaced after each eviction; a changed file tells readers to look where logs begin

It sums up the logs that went whole, since a writer per episode would otherwise leave a note per episode, and says how
far episodes had got that kept older steps only, so that nobody goes on with one where an older writer had left it
(design/0010).
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from recollect.errors import CorruptionError
from recollect.hot.format.files import replace_file
from recollect.hot.format.notes import pack, read
from recollect.view import EpisodeKey

NAME = "evicted.json"


@dataclass(frozen=True)
class Evicted:
    """Sums over the logs that are gone.

    Attributes:
        generation: counts evictions.
        writers, rows, facts: what they held.
        dropped_rows, dropped_facts: how much of it the home buffer did not hold.
        leaving: writers that are in the sums and whose folders may still be there.
        reached: episode → how many steps it has had at least: one more than the highest index that went. Of episodes
            that were resumed, and keep a row or may be taken for new ones.
    """

    generation: int = 0
    writers: int = 0
    rows: int = 0
    facts: int = 0
    dropped_rows: int = 0
    dropped_facts: int = 0
    leaving: frozenset[int] = frozenset()
    reached: Mapping[EpisodeKey, int] = field(default_factory=dict)


def signature(note: str) -> tuple[int, int] | None:
    """Of the file: changes with every eviction; None as long as there was none. One system call."""
    try:
        stat = os.stat(note)  # noqa: PTH116 - at every refresh, and half the time of a Path's
    except FileNotFoundError:
        return None
    return stat.st_ino, stat.st_mtime_ns


def read_evicted(log: Path) -> Evicted:
    """The sums of the workspace whose writers' folders lie in `log`. Raises CorruptionError, StoreError."""
    try:
        data = read(log.parent / NAME)
    except FileNotFoundError:
        return Evicted()
    except ValueError as e:
        raise CorruptionError(
            f"{str(log.parent / NAME)!r} is damaged: {e}", remedy="Restore the workspace from a backup"
        ) from None
    data["leaving"] = frozenset(int(w, 16) for w in data["leaving"])
    data["reached"] = {EpisodeKey(w, c): steps for w, c, steps in data["reached"]}
    return Evicted(**data)


def write_evicted(log: Path, evicted: Evicted) -> None:
    """Durable when it returns. Raises OSError."""
    leaving = [f"{w:016x}" for w in sorted(evicted.leaving)]
    reached = [[*key, steps] for key, steps in sorted(evicted.reached.items())]
    replace_file(log.parent / NAME, pack({**evicted.__dict__, "leaving": leaving, "reached": reached}))
