"""Blank rows in the place of those that are gone, for whoever reads a range of a log across a hole.

A cut made now leaves the holes out. A cut made before, and a view that grows, keep their slots: there a row that is
gone is one of these, which is in no episode and is never drawn (design/0018).
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from recollect.records.block import Block, allocate
from recollect.records.layout import HOLE, NO_PLANE, Layout, column


class Gone(NamedTuple):
    """The rows that a block of blanks stands for. Such a block's `owner`.

    Attributes:
        writer, start, stop: which rows.
        time_ns: when the row before them was written, so that a log stays in the order of time.
    """

    writer: int
    start: int
    stop: int
    time_ns: int


def blanks(layout: Layout, gone: Gone) -> Block:
    """A block of rows `[stop - start]` that hold nothing but their ids."""
    count = gone.stop - gone.start
    block = allocate(layout, count, {}, 0)
    records = block.records
    records["flags"] = HOLE
    records["writer"], records["seq"] = gone.writer, np.arange(gone.start, gone.stop)
    records["episode_writer"] = records["episode"] = -1
    records["time"], records["priority"] = gone.time_ns, np.nan
    for leaf in layout.wide:
        records[column(leaf.path)] = NO_PLANE
    for word, bit in layout.nulls.values():
        records["nulls"][:, word] |= np.uint64(1 << bit)
    return Block(records, block.planes, block.heap, gone)
