"""`Snapshot`: what a snapshot did, or would do."""

from __future__ import annotations

from dataclasses import dataclass

from recollect.cold.location import Location
from recollect.view import Cut


@dataclass(frozen=True)
class Snapshot:
    """The outcome of a snapshot.

    Attributes:
        uri: the buffer.
        version, tag: the version that holds the cut, and its name (None when none was asked for).
        rows_added, facts_added: what this call promoted; both 0 when there was nothing new.
        rows: rows of the version.
        created: whether the buffer was created.
        gap_rows: rows that were evicted before this buffer got them, and that no earlier snapshot to it had named;
            `gap_facts` facts that this one would have promoted and that were evicted with their episodes.
        episodes: episodes that rows were promoted of; `open_episodes` those of them that were not finished.
        held_rows, held_episodes: what `finished_only` and `where` left out. It stays in the workspace, and is promoted
            by a later snapshot that takes it.
        evicted_rows: rows that the workspace let go afterwards, since its home buffer holds them now.
        note: why nothing could be let go, or the buffer not be compacted; "" where all went well.
        cut: what was promoted; what the workspace held where that was nothing new; None where it holds nothing.
        seconds: wall time.
        message: one line for people.
        dry_run: whether nothing was done: then the rest says what would have been, and `version` is the one that is
            there, None for none.
    """

    uri: str
    version: int | None
    tag: str | None
    rows_added: int
    facts_added: int
    rows: int
    created: bool
    cut: Cut | None
    seconds: float
    message: str
    gap_rows: int = 0
    gap_facts: int = 0
    evicted_rows: int = 0
    note: str = ""
    episodes: int = 0
    open_episodes: int = 0
    held_rows: int = 0
    held_episodes: int = 0
    dry_run: bool = False


def nothing_to_promote(location: Location, *, dry_run: bool = False) -> Snapshot:
    """The outcome for a workspace that nobody has written to: nothing is created."""
    message = "nothing to promote: nobody has written yet"
    return Snapshot(location.uri, None, None, 0, 0, 0, False, None, 0.0, message, dry_run=dry_run)
