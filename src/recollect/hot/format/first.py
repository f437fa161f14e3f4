"""Where a log begins now: the note of a writer's folder that eviction moves forward (design/0010).

`first.json`, a note (`notes`), is replaced as a whole and made durable before a segment is unlinked, so that a reader
finds either the old beginning with its segments or the new one. It carries the facts of evicted segments that are still
needed: a fact outlives the segment it was written in for as long as a row of its episode is there.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from recollect.errors import CorruptionError
from recollect.hot.format.files import ABSENT, replace_file
from recollect.hot.format.notes import pack, read
from recollect.view import EpisodeKey, Fact, StepId

NAME = "first.json"


class Resumption(NamedTuple):
    """An episode goes on in this log.

    Attributes:
        key: the episode.
        row: rows of this log from here on may be its own.
        after: (writer, rows): they come after the rows below these counts.
        turn: how many times the episode was resumed, this time included. Clocks do not say which came last.
    """

    key: EpisodeKey
    row: int
    after: tuple[tuple[int, int], ...]
    turn: int


@dataclass(frozen=True)
class First:
    """The beginning of a log.

    Attributes:
        segment: number of the oldest segment there is.
        row, fact: its first row and first fact; the counts before them never change their meaning.
        agent: the writer's name, which the evicted segments held.
        evicted_facts: facts that are gone; `fact` minus those that are carried.
        dropped_rows, dropped_facts: of what is gone, how much the home buffer did not hold when it went.
        next_episode: episodes of this writer below it have had rows or facts evicted.
        open: counters of those below `next_episode` that have no row left and may still get some.
        facts: what is carried, in the order of their numbers.
        resumed: episodes that went on in evicted segments and may have rows after them.
        closed: (episode, number of the fact): episodes with rows that were closed in evicted segments.
    """

    segment: int = 0
    row: int = 0
    fact: int = 0
    agent: str = ""
    evicted_facts: int = 0
    dropped_rows: int = 0
    dropped_facts: int = 0
    next_episode: int = 0
    open: tuple[int, ...] = ()
    facts: tuple[Fact, ...] = ()
    resumed: tuple[Resumption, ...] = ()
    closed: tuple[tuple[EpisodeKey, int], ...] = ()


def read_first(folder: Path) -> First:
    """The beginning of the log in a writer's folder; that of a log nothing was evicted from where there is no note.

    Raises:
        CorruptionError: the note is damaged.
        StoreError: it cannot be read.
    """
    try:
        data = read(folder / NAME)
    except ABSENT:
        return First()
    except ValueError as e:
        raise CorruptionError(
            f"{str(folder / NAME)!r} is damaged: {e}", remedy="Restore the workspace from a backup"
        ) from None
    data["open"] = tuple(data["open"])
    data["facts"] = tuple(_fact(folder, f) for f in data["facts"])
    data["resumed"] = tuple(
        Resumption(EpisodeKey(*key), row, tuple((w, n) for w, n in after), turn)
        for key, row, after, turn in data["resumed"]
    )
    data["closed"] = tuple((EpisodeKey(*key), seq) for key, seq in data["closed"])
    return First(**data)


def write_first(folder: Path, first: First) -> None:
    """Moves the beginning. Durable when it returns. Raises OSError."""
    facts = [[f.seq, f.time_ns, list(f.episode), list(f.step) if f.step else None, f.values] for f in first.facts]
    replace_file(folder / NAME, pack({**replace(first, facts=()).__dict__, "facts": facts}))


def _fact(folder: Path, item: list[Any]) -> Fact:
    seq, time_ns, episode, step, values = item
    return Fact(int(folder.name, 16), seq, time_ns, EpisodeKey(*episode), StepId(*step) if step else None, values)
