"""What just happened: the newest steps and whole episodes of a workspace."""

from __future__ import annotations

import numpy as np

from recollect.errors import ArgumentError, NotFound
from recollect.hot.store import HotStore
from recollect.recall.results import EpisodeRecord, Hits, step_at
from recollect.recall.window import with_predecessors
from recollect.records.layout import FINAL
from recollect.view import Cut, EpisodeKey, Extent, StepId


def recent(store: HotStore, k: int) -> Hits:
    """The newest `k` steps over all writers, newest first. Reads only the ends of the logs."""
    if not isinstance(k, int) or k < 1:
        raise ArgumentError("recent() takes a whole number of at least 1", value=k)
    with store.pinned():
        return _recent(store, k)


def _recent(store: HotStore, k: int) -> Hits:
    cut = store.cut()
    ends: list[tuple[int, int, int]] = []
    lowest: dict[int, int] = {}
    for extent in cut.extents:
        need, stop = k, extent.stop
        while need and stop > extent.start:
            start = max(extent.start, stop - max(64, 2 * need))
            at = stop
            for block, low, high in reversed(store.log(extent.writer).pieces(start, stop)):
                records = block.records[low:high]
                at -= high - low
                steps = np.flatnonzero((records["flags"] & FINAL) == 0)[::-1][:need]
                ends += [(int(records["time"][i]), extent.writer, at + int(i)) for i in steps]
                need -= len(steps)
                if len(steps):
                    lowest[extent.writer] = at + int(steps[-1])
                if not need:
                    break
            stop = start
    newest = sorted(ends, reverse=True)[:k]
    if not newest:
        return Hits(())
    stops = {e.writer: e.stop for e in cut.extents}
    wanted = Cut(tuple(Extent(w, low, stops[w]) for w, low in sorted(lowest.items())), cut.facts)
    view = store.view(with_predecessors(store, wanted))
    ids = [StepId(w, seq) for _, w, seq in newest]
    slots = view.rows.find(np.array(ids, dtype=[("writer", "<i8"), ("seq", "<i8")]))
    facts = store.latest_facts(cut.facts)
    return Hits(tuple(step_at(view, int(slot), facts) for slot in slots))


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
    writers = {key.writer} | {f.writer for f in store.latest_facts(cut.facts).history.get(key, [])}
    own = Cut(tuple(e for e in cut.extents if e.writer in writers), cut.facts)
    view = store.view(own)
    slots = view.episodes.rows_of(key)
    if not len(slots) and key not in view.facts.episodes:
        raise _no_episode(store, name)
    return EpisodeRecord(view, key, slots)


def resolve(store: HotStore, cut: Cut, name: str | EpisodeKey | StepId) -> EpisodeKey:
    """The key of an episode. Raises NotFound."""
    if isinstance(name, EpisodeKey):
        return name
    if isinstance(name, StepId):
        for extent in cut.extents:
            if extent.writer == name.writer and extent.start <= name.seq < extent.stop:
                block, row, _ = store.log(name.writer).pieces(name.seq, name.seq + 1)[0]
                record = block.records[row]
                return EpisodeKey(int(record["episode_writer"]), int(record["episode"]))
        if name.writer in store.logs and 0 <= name.seq < store.logs[name.writer].first.row:
            raise NotFound(f"step {name} was evicted from workspace {store.name!r}", remedy=store.elsewhere())
        raise NotFound(f"no step {name} in workspace {store.name!r}", remedy=store.elsewhere())
    keys = store.latest_facts(cut.facts).keys_of(name)
    if keys:
        return keys[-1]
    default = EpisodeKey.parse_default_id(name)
    if default is None:
        raise NotFound(
            f"no episode {name!r} in workspace {store.name!r}",
            remedy="Ids come from recent(), or from your own writes",
        )
    return default


def require_episode(store: HotStore, key: EpisodeKey, name: object) -> None:
    """Raises NotFound unless the workspace holds a row or a fact of the episode."""
    with store.pinned():
        _require_episode(store, key, name)


def _require_episode(store: HotStore, key: EpisodeKey, name: object) -> None:
    cut = store.cut()
    if key in store.latest_facts(cut.facts).episodes:
        return
    for extent in cut.extents:
        for block, start, stop in reversed(store.log(extent.writer).pieces(extent.start, extent.stop)):
            rows = block.records[start:stop]
            if ((rows["episode"] == key.counter) & (rows["episode_writer"] == key.writer)).any():
                return
    raise _no_episode(store, name)


def _no_episode(store: HotStore, name: object) -> NotFound:
    return NotFound(f"no episode {name!r} in workspace {store.name!r}", remedy=store.elsewhere())
