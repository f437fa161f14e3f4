"""What just happened: the newest steps and whole episodes of a workspace."""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import starmap

import numpy as np

from recollect.errors import ArgumentError, NotFound
from recollect.hot.read.store import HotStore
from recollect.recall.choose import Chooser
from recollect.recall.results import EpisodeRecord, Hits, Step, steps_at
from recollect.recall.window import with_predecessors
from recollect.records.block import Block
from recollect.records.build import Changed, build_view, unchanged
from recollect.records.layout import FINAL, HOLE
from recollect.records.overlay import overlay
from recollect.records.rows import PackedRows
from recollect.view import ID_DTYPE, Cut, EpisodeKey, Extent, FactIndex, Ids, StepId, hull


def recent(store: HotStore, k: int, where: str | None = None) -> Hits:
    """The newest `k` steps over all writers, newest first. Reads only the ends of the logs; with `where`, as far back
    as it takes to find so many that the condition is true of."""
    if not isinstance(k, int) or k < 1:
        raise ArgumentError("recent() takes a whole number of at least 1", value=k)
    with store.pinned():
        return _recent(store, k, where)


def _recent(store: HotStore, k: int, where: str | None) -> Hits:
    cut = store.cut()
    chosen = None if where is None else Chooser(store, cut, where)
    newest: list[tuple[int, int, int]] = []
    # A log is in the order of time. So no log is looked at that ended before the k newest steps of those before it.
    for ended, extent in sorted(((store.last_time(e), e) for e in hull(cut.extents).values()), reverse=True):
        if len(newest) == k and newest[0][0] > ended:
            break
        for step in _newest_steps(store, extent, k) if chosen is None else chosen.newest(extent, k, newest):
            if len(newest) < k:
                heapq.heappush(newest, step)
            elif heapq.heappushpop(newest, step) == step:
                break
    if not newest:
        return Hits(())
    reach: dict[int, tuple[int, int]] = {}
    for _, writer, seq in newest:
        low, stop = reach.get(writer, (seq, seq + 1))
        reach[writer] = min(low, seq), max(stop, seq + 1)
    wanted = Cut(tuple(Extent(w, *reach[w]) for w in sorted(reach)), cut.facts)
    ids = [StepId(writer, seq) for _, writer, seq in sorted(newest, reverse=True)]
    return Hits(tuple(steps_of(store, with_predecessors(store, wanted), ids)))


def _newest_steps(store: HotStore, extent: Extent, k: int) -> Iterator[tuple[int, int, int]]:
    """The newest `k` steps of one log as (time, writer, seq), newest first."""
    need, stop = k, extent.stop
    while need and stop > extent.start:
        start = max(extent.start, stop - max(64, 2 * need))
        at = stop
        for block, low, high in reversed(store.log(extent.writer).pieces(start, stop)):
            records = block.records[low:high]
            at -= high - low
            for i in np.flatnonzero((records["flags"] & (FINAL | HOLE)) == 0)[::-1][:need].tolist():
                need -= 1
                yield int(records["time"][i]), extent.writer, at + i
            if not need:
                break
        stop = start


def steps_of(store: HotStore, cut: Cut, ids: Sequence[StepId]) -> list[Step]:
    """Steps by their ids. The cut holds their rows and those that their frame stacks reach back to."""
    layout = store.layout
    pieces = store.pieces(cut.extents, layout)
    plain = PackedRows(layout, pieces, cut.extents)
    slots = plain.find(np.array(ids, dtype=ID_DTYPE))
    got = plain.gather(slots, ("episode_writer", "episode"))
    keys = list(starmap(EpisodeKey, zip(got["episode_writer"].tolist(), got["episode"].tolist(), strict=True)))
    facts = store.catalog.facts_of(keys, cut)
    view = build_view(layout, cut, pieces, _no_tails, lambda: facts, _changed(facts), store.name)
    return steps_at(view, slots, facts)


def episode(store: HotStore, name: str | EpisodeKey | StepId) -> EpisodeRecord:
    """A whole episode by its id (the newest attempt), its key, or the id of one of its steps.

    Raises:
        NotFound: no such episode.
    """
    with store.pinned():
        return _episode(store, name)


def _episode(store: HotStore, name: str | EpisodeKey | StepId) -> EpisodeRecord:
    cut = store.cut()
    key = resolve(store, cut, name)
    facts = store.catalog.facts_of([key], cut)
    layout = store.layout
    pieces, extents = store.catalog.rows_of(key, cut, layout)
    if not pieces and key not in facts.episodes:
        raise _not_found(store, name)
    own = Cut(extents, cut.facts)
    tails = partial(store.tails, layout=layout)
    view = build_view(layout, own, pieces, tails, lambda: facts, _changed(facts), store.name)
    writers = {key.writer, *(e.writer for e in extents)}
    over = store.are_sealed(writers) and key not in store.growing_elsewhere()
    return EpisodeRecord(view, key, view.episodes.rows_of(key), over=over)


def resolve(store: HotStore, cut: Cut, name: str | EpisodeKey | StepId) -> EpisodeKey:
    """The key of an episode.

    Raises:
        NotFound: no such episode or step.
        ArgumentError: what names no episode.
    """
    if not isinstance(name, str | EpisodeKey | StepId):
        raise ArgumentError("an episode is named by its id, its key or one of its steps", value=name)
    if isinstance(name, EpisodeKey):
        return name
    if isinstance(name, StepId):
        for extent in cut.extents:
            if extent.writer == name.writer and extent.start <= name.seq < extent.stop:
                block, row, _ = store.log(name.writer).pieces(name.seq, name.seq + 1)[0]
                record = block.records[row]
                return EpisodeKey(int(record["episode_writer"]), int(record["episode"]))
        log = store.logs.get(name.writer)
        if log is not None and 0 <= name.seq < log.first.row:
            raise NotFound(f"step {name} was evicted from workspace {store.name!r}", remedy=store.elsewhere())
        if log is not None and (why := log.holes.reason(name.seq)) is not None:
            raise NotFound(f"step {name} is gone from workspace {store.name!r}: {why}", remedy=store.elsewhere())
        raise NotFound(f"no step {name} in workspace {store.name!r}", remedy=store.elsewhere())
    key = store.catalog.newest(name, cut) or EpisodeKey.parse_default_id(name)
    if key is None:
        raise _not_found(store, name)
    return key


def require_episode(store: HotStore, key: EpisodeKey, name: object) -> None:
    """Raises NotFound unless the workspace holds a row or a fact of the episode."""
    with store.pinned():
        _require_episode(store, key, name)


def _require_episode(store: HotStore, key: EpisodeKey, name: object) -> None:
    cut = store.cut()
    if key not in store.catalog.facts_of([key], cut).episodes and not store.catalog.rows_of(key, cut).pieces:
        raise _not_found(store, name)


def _not_found(store: HotStore, name: object) -> NotFound:
    return NotFound(
        f"no episode {name!r} in workspace {store.name!r}",
        remedy=store.elsewhere() or "Ids come from recent(), or from your own writes",
    )


def _changed(facts: FactIndex) -> Changed:
    return overlay if facts.steps else unchanged


def _no_tails(ids: Ids) -> tuple[Ids, Block | None]:
    """For readers of steps alone, whom no waiting observation concerns."""
    return ids[:0], None
