"""How far back a reader must begin so that the frame stacks of the rows it wants are whole."""

from __future__ import annotations

import numpy as np

from recollect.hot.read.log import WriterLog
from recollect.hot.read.store import HotStore
from recollect.records.heads import deepest_stack
from recollect.records.layout import FINAL
from recollect.view import Cut, EpisodeKey, Extent, hull

CHUNK_ROWS = 4096


def with_predecessors(store: HotStore, cut: Cut) -> Cut:
    """The cut, each extent begun early enough to hold the rows that its stacks reach back to, in whichever log."""
    depth = deepest_stack(store.layout.schema) - 1
    if not depth:
        return cut
    reach = {w: (e.start, e.stop) for w, e in hull(cut.extents).items()}
    for extent in cut.extents:
        _reach_back(store, extent, depth, reach)
    return Cut(tuple(Extent(w, *reach[w]) for w in sorted(reach)), cut.facts)


def _reach_back(store: HotStore, extent: Extent, depth: int, reach: dict[int, tuple[int, int]]) -> None:
    log = store.log(extent.writer)
    missing: dict[EpisodeKey, int] = {}
    resumed: dict[EpisodeKey, tuple[set[int], set[int]]] = {}
    for block, start, stop in log.pieces(extent.start, extent.stop):
        rows = block.records[start:stop]
        columns = (rows["episode_writer"].tolist(), rows["episode"].tolist(), rows["step"].tolist())
        finals = ((rows["flags"] & FINAL) != 0).tolist()
        for writer, counter, step, is_final in zip(*columns, finals, strict=True):
            key = EpisodeKey(writer, counter)
            if key in log.resumed:
                here, wanted = resumed.setdefault(key, (set(), set()))
                wanted.update(range(max(0, step - depth), step))
                if not is_final:
                    here.add(step)
            else:
                missing.setdefault(key, min(depth, step))
    _scan_back(log, extent.start, {key: count for key, count in missing.items() if count}, reach)
    for key, (here, wanted) in resumed.items():
        if wanted - here:
            _look_up(store, key, wanted - here, reach)


def _scan_back(log: WriterLog, at: int, missing: dict[EpisodeKey, int], reach: dict[int, tuple[int, int]]) -> None:
    """Lowers what is reached of a log until it holds so many steps of each episode below row `at`."""
    while missing and at > log.first.row:
        low = max(log.first.row, at - CHUNK_ROWS)
        for block, start, stop in reversed(log.pieces(low, at)):
            rows = block.records[start:stop]
            keys = list(zip(rows["episode_writer"].tolist(), rows["episode"].tolist(), strict=True))
            steps = ((rows["flags"] & FINAL) == 0).tolist()
            for key, is_step in zip(map(EpisodeKey._make, reversed(keys)), reversed(steps), strict=True):
                at -= 1
                if is_step and key in missing:
                    missing[key] -= 1
                    _extend(reach, log.writer, at)
                    if not missing[key]:
                        del missing[key]
                        if not missing:
                            return


def _look_up(store: HotStore, key: EpisodeKey, wanted: set[int], reach: dict[int, tuple[int, int]]) -> None:
    """Reaches those steps of a resumed episode, in whichever logs they lie; the catalog knows where."""
    for block, start, stop in store.catalog.rows_of(key, store.cut()).pieces:
        rows = block.records[start:stop]
        hits = rows[((rows["flags"] & FINAL) == 0) & np.isin(rows["step"], list(wanted))]
        for writer, seq in zip(hits["writer"].tolist(), hits["seq"].tolist(), strict=True):
            _extend(reach, writer, seq)


def _extend(reach: dict[int, tuple[int, int]], writer: int, row: int) -> None:
    low, stop = reach.get(writer, (row, row + 1))
    reach[writer] = min(low, row), max(stop, row + 1)
