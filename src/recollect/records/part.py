"""A view of some of another view's rows, without going back to where they came from."""

from __future__ import annotations

from recollect.errors import NotFound
from recollect.records.block import Block, join_rows
from recollect.records.build import build_view
from recollect.records.overlay import overlay
from recollect.records.rows import PackedRows
from recollect.view import Cut, FactIndex, Ids, View


def part_of(whole: View, cut: Cut) -> View:
    """The view of `cut`, whose rows must all be in `whole`: the same as one made of `cut` where the rows live, and
    restricted to the same condition.

    Raises:
        NotFound: rows of the cut are not in the view.
    """
    rows = whole.rows
    assert isinstance(rows, PackedRows)
    pieces: list[tuple[Block, int, int]] = []
    for extent in cut.extents:
        spans = rows.spans(extent)
        if sum(stop - start for start, stop in spans) != extent.stop - extent.start:
            raise NotFound(f"{whole.name} does not hold rows {extent.start} to {extent.stop} of writer {extent.writer}")
        for start, stop in spans:
            pieces += rows.pieces(start, stop)

    def tails(ids: Ids) -> tuple[Ids, Block | None]:
        """Observations after steps whose successors the part leaves out, from the whole."""
        after = whole.episodes.next_observation(rows.find(ids))
        known = after >= 0
        if not known.any():
            return ids[:0], None
        found = [rows.locate(int(slot), raw=True) for slot in after[known]]
        copies = [Block(b.records[r : r + 1], b.planes, b.heap, b.owner) for b, r in found]
        return ids[known], join_rows(rows.layout, copies)

    limits = dict(cut.facts)

    def facts() -> FactIndex:
        every = (f for history in whole.facts.history.values() for f in history)
        return FactIndex.of(f for f in every if f.seq < limits.get(f.writer, 0))

    view = build_view(rows.layout, cut, pieces, tails, facts, overlay, whole.name)
    for narrowing in whole.narrowings:
        view = view.narrow(narrowing)
    return view
