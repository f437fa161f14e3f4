"""Going on with an episode that another writer left: where it stands, and what must be true before it grows.

The failure feared: two writers append the same step, or a reader sees resumed steps without those before them. So an
episode goes on only when the log of its last writer is sealed, or says that it was closed there, one resumption at a
time; its earlier rows are flushed first, and the resumption itself is a record of the log that says which rows it comes
after. Nor does it go on where its newest steps were evicted: those left do not say what comes next (design/0012).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recollect.errors import EpisodeError, SchemaMismatch, StoreError
from recollect.hot.format.evicted import Evicted, read_evicted
from recollect.hot.format.files import is_locked, os_errors, sync_file, sync_folder
from recollect.hot.format.segment import FAILED
from recollect.hot.recovery.recover import recover
from recollect.records.block import Block
from recollect.records.heads import deepest_stack
from recollect.records.layout import FINAL, HAS_NEXT, TERMINATED, TRUNCATED, Layout, column
from recollect.schema import Frames
from recollect.view import Cut, EpisodeKey, Extent, StepId, hull, make_ids

if TYPE_CHECKING:
    from recollect.hot.read.log import WriterLog
    from recollect.hot.read.store import HotStore

INTERRUPTED = "interrupted"
"""Status of an episode that was left before it ended or was judged."""
TRIES = 8
"""Looks at an episode whose writer dies or closes it meanwhile."""


@dataclass(frozen=True)
class ResumePoint:
    """Where an episode stands.

    Attributes:
        key: the episode; `id` the caller's name for it, None for the default.
        status: its newest status, None when there is none.
        step: index of its next step.
        history: frames path → the newest `stack - 1` planes, oldest first.
        waiting: a block of one row, the observation that waits after its newest step; None when there is none.
        after: (writer, rows): the rows that it has so far lie below these counts.
        turn: how many times it will have been resumed.
    """

    key: EpisodeKey
    id: str | None
    status: str | None
    step: int
    history: dict[str, list[NDArray[Any]]]
    waiting: Block | None
    after: tuple[tuple[int, int], ...]
    turn: int


class _Row(NamedTuple):
    step: int
    flags: int
    id: StepId


def resume_point(store: HotStore, key: EpisodeKey, layout: Layout) -> ResumePoint:
    """Where an episode stands, with everything it has so far on stable storage.

    Args:
        layout: that of the writer which will go on with it.

    Raises:
        EpisodeError: it has ended, a live writer still has it open, or rows that it needs were evicted.
        SchemaMismatch: it has rows of a newer schema than the writer's.
    """
    cut, extents, rows = _settle(store, key)
    for first in {e.writer: e for e in reversed(extents)}.values():
        try:
            store.pieces((Extent(first.writer, first.start, first.start + 1),), layout)
        except SchemaMismatch as e:
            raise SchemaMismatch(
                e.message, value=e.value, remedy="Resume it with a new writer, ws.writer(), which has the newer schema"
            ) from None
    known = store.catalog.facts_of([key], cut).episodes.get(key, {})
    steps = sorted(r for r in rows if not r.flags & FINAL)
    last = steps[-1] if steps else None
    waiting = None
    if last is not None:
        followed = any(r.flags & FINAL and r.step == last.step + 1 for r in rows)
        if last.flags & HAS_NEXT and not followed:
            waiting = store.tails(make_ids([last.id.writer], [last.id.seq]), layout)[1]
    turns = {log.writer: log.resumed.get(key, []) for log in list(store.logs.values()) if not log.gone}
    concerned = sorted({e.writer for e in extents} | {w for w, found in turns.items() if found or w == key.writer})
    stops = {w: e.stop for w, e in hull(cut.extents).items()}
    for log in (store.logs[w] for w in concerned if w in store.logs):
        if not log.sealed:
            _flush(log)
    return ResumePoint(
        key,
        None if known.get("id") is None else str(known["id"]),
        known.get("status"),
        0 if last is None else last.step + 1,
        _newest_planes(store, layout, steps),
        waiting,
        tuple((w, stops[w]) for w in concerned if w in stops),
        1 + max((r.turn for found in turns.values() for r in found), default=0),
    )


def _flush(log: WriterLog) -> None:
    """Makes a log durable as far as it is there: its writer may close it meanwhile, and an eviction take it.

    Raises:
        StoreError: it cannot be flushed, or could not before: the kernel may then call pages clean that never reached
            the disk, and only a log that nobody writes to can be written again.
    """
    folder = log.folder
    for path in (*folder.glob("*.seg"), *folder.glob("*.tails"), folder):
        try:
            if path is folder:
                with os_errors("syncing", folder):
                    sync_folder(folder)  # a file that nobody has synced yet may have no name after a power cut
            else:
                sync_file(path)
        except StoreError:
            if path.exists():
                raise
    if any(segment.flush_state == FAILED for segment in log.segments):
        raise StoreError(
            f"steps before it may not be durable: writer {log.writer} could not flush them",
            remedy="Close that writer, if it is open, and open the workspace anew: recovery writes them once more",
        )


def _settle(store: HotStore, key: EpisodeKey) -> tuple[Cut, tuple[Extent, ...], list[_Row]]:
    """A cut after which no other writer can add a row to the episode, with the episode's rows."""
    for _ in range(TRIES):
        before = read_evicted(store.folder)
        store.refresh()
        owner = _owner(store, key)
        settled = owner is None or owner.sealed or key in owner.closed
        cut = store.cut()  # after that look: what was published until then is in it
        pieces, extents = store.catalog.rows_of(key, cut)
        rows = [row for block, start, stop in pieces for row in _rows(block.records[start:stop])]
        # After that look: what went before it was noted before it went. An eviction that ended meanwhile may have
        # forgotten what it had noted, with the rows that were seen here.
        gone = read_evicted(store.folder)
        if gone.generation != before.generation:
            continue
        _require_next(store, key, cut, rows, gone)
        if settled and owner is _owner(store, key):
            return cut, extents, rows
        if owner is not None and not settled:
            if is_locked(owner.folder / "lock"):
                break
            # Its log may hold frames that were never counted: they are rows as soon as anybody seals it.
            recover(store.folder, store.layouts)
    name = store.catalog.facts_of([key], store.cut()).id_of(key)
    where = "another writer" if owner is None else f"writer {owner.writer}"
    raise EpisodeError(f"episode {name!r} is still open in {where}", remedy="Close it there first: episode.close()")


def _owner(store: HotStore, key: EpisodeKey) -> WriterLog | None:
    """The log of the writer that went on with the episode last, of its opener when nobody did."""
    found = [(r.turn, log) for log in list(store.logs.values()) if not log.gone for r in log.resumed.get(key, ())]
    opener = store.logs.get(key.writer)
    if opener is not None and not opener.gone:
        found.append((0, opener))
    return max(found, key=lambda t: t[0], default=(0, None))[1]


def _require_next(store: HotStore, key: EpisodeKey, cut: Cut, rows: list[_Row], gone: Evicted) -> None:
    """Raises EpisodeError unless there is a next step, the rows that are left tell its index, and the frames are there
    that it reaches back to."""
    opener = store.logs.get(key.writer)
    if opener is not None and opener.gone:
        opener = None
    steps = sorted(r for r in rows if not r.flags & FINAL)
    name = store.catalog.facts_of([key], cut).id_of(key)
    another = "Open another attempt: writer.episode(id=)"
    following = steps[-1].step + 1 if steps else 0
    if not steps and (opener is None or key.counter < opener.first.next_episode):
        raise EpisodeError(f"the rows of episode {name!r} were evicted", remedy=another)
    if following < (reached := gone.reached.get(key, 0)):
        raise EpisodeError(
            f"steps {following} to {reached - 1} of episode {name!r}, its newest, were evicted or deleted",
            remedy=another,
        )
    if _may_have_more(store, key, rows):
        raise EpisodeError(f"the newest steps of episode {name!r} may be among damaged rows", remedy=another)
    if steps and steps[-1].flags & (TERMINATED | TRUNCATED):
        raise EpisodeError(f"episode {name!r} has ended", remedy=another)
    reach = min(deepest_stack(store.layout.schema) - 1, following)
    if reach and [r.step for r in steps[-reach:]] != list(range(following - reach, following)):
        raise EpisodeError(
            f"the frames that the next step of episode {name!r} reaches back to were evicted", remedy=another
        )


def _may_have_more(store: HotStore, key: EpisodeKey, rows: list[_Row]) -> bool:
    """Whether rows or facts of a log that could grow the episode are damaged, behind its rows there."""
    last: dict[int, int] = {}
    for row in rows:
        last[row.id.writer] = max(row.id.seq, last.get(row.id.writer, -1))
    for log in list(store.logs.values()):
        holes = log.holes
        if log.gone or not holes.holes:
            continue
        if not log.sealed and any(hole.damaged and hole.facts for hole in holes.holes):
            return True  # it may hold the episode open, and nobody knows
        own = log.writer == key.writer or log.writer in last or key in log.resumed
        lost = holes.damaged_rows
        if own and lost and lost[-1][1] > max(last.get(log.writer, -1), log.first.row):
            return True
    return False


def _rows(records: NDArray[np.void]) -> list[_Row]:
    columns = (records[name].tolist() for name in ("step", "flags", "writer", "seq"))
    return [_Row(step, flags, StepId(writer, seq)) for step, flags, writer, seq in zip(*columns, strict=True)]


def _newest_planes(store: HotStore, layout: Layout, steps: list[_Row]) -> dict[str, list[NDArray[Any]]]:
    out: dict[str, list[NDArray[Any]]] = {}
    for leaf in layout.wide:
        field = leaf.field
        if not isinstance(field, Frames) or field.stack == 1:
            continue
        planes = []
        for writer, seq in (r.id for r in steps[-(field.stack - 1) :]):
            block, row, _ = store.pieces((Extent(writer, seq, seq + 1),), layout)[0]
            at = int(block.records[column(leaf.path)][row])
            blank = np.zeros(field.shape, field.dtype)
            planes.append(blank if at < 0 else np.array(block.planes[leaf.path][at]))
        out[leaf.path] = planes
    return out
