"""How far back a reader must begin so that the frame stacks of the rows it wants are whole."""

from __future__ import annotations

from recollect.hot.store import HotStore
from recollect.records.heads import deepest_stack
from recollect.records.layout import FINAL
from recollect.view import Cut, Extent

CHUNK_ROWS = 4096


def with_predecessors(store: HotStore, cut: Cut) -> Cut:
    """The cut, each extent begun early enough to hold the rows that its stacks reach back to."""
    depth = deepest_stack(store.layout.schema) - 1
    if not depth:
        return cut
    return Cut(tuple(Extent(e.writer, _begin(store, e, depth), e.stop) for e in cut.extents), cut.facts)


def _begin(store: HotStore, extent: Extent, depth: int) -> int:
    log = store.log(extent.writer)
    missing: dict[tuple[int, int], int] = {}
    for block, start, stop in log.pieces(extent.start, extent.stop):
        rows = block.records[start:stop]
        columns = (rows["episode_writer"].tolist(), rows["episode"].tolist(), rows["step"].tolist())
        for writer, counter, step in zip(*columns, strict=True):
            missing.setdefault((writer, counter), min(depth, step))
    missing = {key: count for key, count in missing.items() if count}
    at, floor = extent.start, log.first.row
    while missing and at > floor:
        low = max(floor, at - CHUNK_ROWS)
        for block, start, stop in reversed(log.pieces(low, at)):
            rows = block.records[start:stop]
            keys = list(zip(rows["episode_writer"].tolist(), rows["episode"].tolist(), strict=True))
            steps = ((rows["flags"] & FINAL) == 0).tolist()
            for key, is_step in zip(reversed(keys), reversed(steps), strict=True):
                at -= 1
                if is_step and key in missing:
                    missing[key] -= 1
                    if not missing[key]:
                        del missing[key]
                        if not missing:
                            return at
    return at
