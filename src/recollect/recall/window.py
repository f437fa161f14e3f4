"""How far back a reader must begin so that the frame stacks of the rows it wants are whole."""

from __future__ import annotations

from recollect.hot.log import WriterLog
from recollect.hot.store import HotStore
from recollect.schema import Frames, Schema
from recollect.view import Cut, EpisodeKey, Extent

CHUNK_ROWS = 4096


def deepest_stack(schema: Schema) -> int:
    """Planes of the deepest frame stack; 1 without any."""
    return max((leaf.field.stack for leaf in schema.leaves if isinstance(leaf.field, Frames)), default=1)


def with_predecessors(store: HotStore, cut: Cut) -> Cut:
    """The cut, each extent begun early enough to hold the rows that its stacks reach back to, in whichever log."""
    depth = deepest_stack(store.layout.schema) - 1
    if not depth:
        return cut
    reach = {e.writer: (e.start, e.stop) for e in cut.extents}
    for extent in cut.extents:
        _reach_back(store, extent, depth, reach)
    return Cut(tuple(Extent(w, *reach[w]) for w in sorted(reach)), cut.facts)


def _reach_back(store: HotStore, extent: Extent, depth: int, reach: dict[int, tuple[int, int]]) -> None:
    log = store.log(extent.writer)
    missing: dict[EpisodeKey, int] = {}
    for block, start, stop in log.pieces(extent.start, extent.stop):
        rows = block.records[start:stop]
        columns = (rows["episode_writer"].tolist(), rows["episode"].tolist(), rows["step"].tolist())
        for writer, counter, step in zip(*columns, strict=True):
            missing.setdefault(EpisodeKey(writer, counter), min(depth, step))
    missing = {key: count for key, count in missing.items() if count}
    _scan_back(store, log, extent.start, missing, reach)


def _scan_back(
    store: HotStore, log: WriterLog, at: int, missing: dict[EpisodeKey, int], reach: dict[int, tuple[int, int]]
) -> None:
    """Lowers what is reached of a log until it holds so many rows of each episode below row `at`, then goes on where
    resumed episodes come from."""
    elsewhere: list[tuple[EpisodeKey, int]] = []
    while missing:
        here = [k for k in missing if k in log.resumed and at <= log.resumed[k].row]
        elsewhere += [(k, missing.pop(k)) for k in here]
        if not missing or at == 0:
            break
        low = max([0, at - CHUNK_ROWS, *(log.resumed[k].row for k in missing if k in log.resumed)])
        for block, start, stop in reversed(log.pieces(low, at)):
            rows = block.records[start:stop]
            keys = list(zip(rows["episode_writer"].tolist(), rows["episode"].tolist(), strict=True))
            for key in map(EpisodeKey._make, reversed(keys)):
                at -= 1
                if key in missing:
                    missing[key] -= 1
                    low_now, stop_now = reach.get(log.writer, (at, at + 1))
                    reach[log.writer] = min(low_now, at), max(stop_now, at + 1)
                    if not missing[key]:
                        del missing[key]
                        if not missing:
                            break
            if not missing:
                break
    for key, count in elsewhere:
        before = log.resumed[key]
        others = [(store.log(w), upto) for w, upto in before.after if w != log.writer]
        others.sort(key=lambda o: -o[0].resumed[key].time_ns if key in o[0].resumed else 0)
        for other, upto in others:
            held = {key: count}
            _scan_back(store, other, upto, held, reach)
            count = held.get(key, 0)
            if not count:
                break
