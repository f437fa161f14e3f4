"""Growing rows without those that are gone since: blank rows in their slots (design/0018)."""

from __future__ import annotations

from collections.abc import Callable

from recollect.records.gone import Gone, blanks
from recollect.records.grow import Growing
from recollect.view import Bool, Extent, Ids
from recollect.view.reach import Ranges


def renewed(rows: Growing, kept: Callable[[Extent], Ranges], unfollowed: Callable[[Ids], Bool]) -> Growing:
    """The same rows at the same slots, with blank ones where they are gone; late facts are not laid over them yet. What
    was read before is not read again, so that rows which were evicted since stay.

    Args:
        kept: which of an extent's rows are still there.
        unfollowed: `[n]`: the steps whose waiting observation is gone.
    """
    out = Growing(rows.layout, rows.last, rows.first)
    slot = rows.first
    for e in rows.extents:
        at = e.start
        for low, high in (*kept(e), (e.stop, e.stop)):
            if at < low:
                block = blanks(rows.layout, Gone(e.writer, at, low, 0))
                out.add(e.writer, at, [(block, 0, low - at)], strict=False)
            if low < high:
                out.add(e.writer, low, rows.pieces(slot + low - e.start, slot + high - e.start), strict=False)
            at = high
        slot += e.stop - e.start
    out.wait_as(rows, unfollowed)
    return out
