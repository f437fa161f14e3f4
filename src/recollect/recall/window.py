"""How far back a reader must begin so that the frame stacks of the rows it wants are whole."""

from __future__ import annotations

from recollect.hot.store import HotStore
from recollect.schema import Frames, Schema
from recollect.view import Cut, Extent

CHUNK_ROWS = 4096


def deepest_stack(schema: Schema) -> int:
    """Planes of the deepest frame stack; 1 without any."""
    return max((leaf.field.stack for leaf in schema.leaves if isinstance(leaf.field, Frames)), default=1)


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
    at = extent.start
    while missing and at > 0:
        low = max(0, at - CHUNK_ROWS)
        for block, start, stop in reversed(log.pieces(low, at)):
            rows = block.records[start:stop]
            keys = list(zip(rows["episode_writer"].tolist(), rows["episode"].tolist(), strict=True))
            for key in reversed(keys):
                at -= 1
                if key in missing:
                    missing[key] -= 1
                    if not missing[key]:
                        del missing[key]
                        if not missing:
                            return at
    return at
