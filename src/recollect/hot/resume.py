"""Going on with an episode that another writer left: where it stands, and what must be true before it grows.

The failure feared: two writers append the same step, or a reader sees resumed steps without those before them. So an
episode goes on only when its last writer is dead or closed it, one resumption at a time; its earlier rows are flushed
first, and the resumption itself is a record of the log that says which rows it comes after (design/0012).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recollect.errors import EpisodeError
from recollect.hot.files import is_locked, sync_file
from recollect.records.block import Block
from recollect.records.heads import deepest_stack
from recollect.records.layout import FINAL, HAS_NEXT, TERMINATED, TRUNCATED, Layout, column
from recollect.schema import Frames
from recollect.view import Cut, EpisodeKey, make_ids

if TYPE_CHECKING:
    from recollect.hot.log import WriterLog
    from recollect.hot.store import HotStore


@dataclass(frozen=True)
class ResumePoint:
    """Where an episode stands.

    Attributes:
        key: the episode; `id` the caller's name for it, None for the default.
        step: index of its next step.
        history: frames path → the newest `stack - 1` planes, oldest first.
        waiting: a block of one row, the observation that waits after its newest step; None when there is none.
        after: (writer, rows): the rows that it has so far lie below these counts.
    """

    key: EpisodeKey
    id: str | None
    step: int
    history: dict[str, list[NDArray[Any]]]
    waiting: Block | None
    after: tuple[tuple[int, int], ...]


class _Row(NamedTuple):
    step: int
    flags: int
    writer: int
    seq: int
    block: Block
    row: int


def resume_point(store: HotStore, key: EpisodeKey, layout: Layout) -> ResumePoint:
    """Where an episode stands, with everything it has so far on stable storage.

    Args:
        layout: that of the writer which will go on with it.

    Raises:
        EpisodeError: it has ended, a live writer still has it open, or rows that it needs were evicted.
        SchemaMismatch: it has rows of a newer schema than the writer's.
    """
    cut = store.cut()
    facts = store.catalog.facts_of([key], cut)
    here = [log for _, log in sorted(store.logs.items()) if not log.gone]
    logs = [log for log in here if log.writer == key.writer or key in log.resumed]
    owner = max(logs, key=lambda log: log.resumed[key].time_ns if key in log.resumed else 0, default=None)
    name = facts.id_of(key)
    rows = [row for log in logs for row in _rows_of(store, log, key, cut, layout)]
    steps = sorted(r for r in rows if not r.flags & FINAL)
    last = steps[-1] if steps else None
    opener = store.logs.get(key.writer)
    if last is None and opener is not None and key.counter < opener.first.next_episode:
        raise EpisodeError(
            f"the rows of episode {name!r} were evicted", remedy="Open another attempt: writer.episode(id=)"
        )
    if steps and steps[0].step > 0 and len(steps) < deepest_stack(layout.schema) - 1:
        raise EpisodeError(
            f"the frames that the next step of episode {name!r} reaches back to were evicted",
            remedy="Open another attempt: writer.episode(id=)",
        )
    if last is not None and last.flags & (TERMINATED | TRUNCATED):
        raise EpisodeError(f"episode {name!r} has ended", remedy="Open another attempt: writer.episode(id=)")
    closed = facts.episodes.get(key, {}).get("status") == "interrupted"
    if owner is not None and not closed and is_locked(owner.folder / "lock"):
        raise EpisodeError(
            f"episode {name!r} is still open in writer {owner.writer}", remedy="Close it there first: episode.close()"
        )
    waiting = None
    if last is not None:
        followed = any(r.flags & FINAL and r.step == last.step + 1 for r in rows)
        if last.flags & HAS_NEXT and not followed:
            waiting = store.tails(make_ids([last.writer], [last.seq]), layout)[1]
    for log in logs:
        if not log.sealed:
            for path in (*log.folder.glob("*.seg"), *log.folder.glob("*.tails")):
                sync_file(path)
    given = facts.episodes.get(key, {}).get("id")
    return ResumePoint(
        key,
        None if given is None else str(given),
        0 if last is None else last.step + 1,
        _newest_planes(layout, steps),
        waiting,
        tuple((log.writer, log.rows) for log in logs),
    )


def _rows_of(store: HotStore, log: WriterLog, key: EpisodeKey, cut: Cut, layout: Layout) -> list[_Row]:
    out: list[_Row] = []
    for extent in cut.extents:
        if extent.writer != log.writer:
            continue
        at = extent.start
        for block, start, stop in store.pieces((extent,), layout):
            records = block.records[start:stop]
            hits = np.flatnonzero((records["episode"] == key.counter) & (records["episode_writer"] == key.writer))
            mine = records[hits]
            columns = (mine["step"].tolist(), mine["flags"].tolist(), hits.tolist())
            out += [_Row(s, f, log.writer, at + h, block, start + h) for s, f, h in zip(*columns, strict=True)]
            at += stop - start
    return out


def _newest_planes(layout: Layout, steps: list[_Row]) -> dict[str, list[NDArray[Any]]]:
    out: dict[str, list[NDArray[Any]]] = {}
    for leaf in layout.wide:
        field = leaf.field
        if not isinstance(field, Frames) or field.stack == 1:
            continue
        planes = []
        for r in steps[-(field.stack - 1) :]:
            at = int(r.block.records[column(leaf.path)][r.row])
            blank = np.zeros(field.shape, field.dtype)
            planes.append(blank if at < 0 else np.array(r.block.planes[leaf.path][at]))
        out[leaf.path] = planes
    return out
