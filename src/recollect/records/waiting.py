"""Next observations that wait for the steps after some rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recollect.records.block import Block
from recollect.records.layout import Layout
from recollect.view import Slots
from recollect.view.changes import among

Array = NDArray[Any]


class Waiting(NamedTuple):
    """Observations that wait for the steps after some rows.

    Attributes:
        slots: `[w]` of the steps that they follow, sorted.
        blocks, rows: `[w]` where each lies: a `Block`, and its row there.
        address: `[w]` of those rows; `planes` `[w, regions]` of plane 0 of their blocks.
    """

    slots: Slots
    blocks: Array
    rows: Array
    address: Array
    planes: Array

    @classmethod
    def of(cls, slots: Slots, block: Block, rows: NDArray[np.int64], layout: Layout) -> Waiting:
        """Some observations that lie in one block."""
        order = np.argsort(slots)
        blocks = np.empty(len(slots), object)
        blocks.fill(block)
        planes = np.empty((len(slots), len(layout.wide)), np.int64)
        planes[:] = plane_addresses(block, layout)
        rows = rows[order]
        return cls(slots[order], blocks, rows, block.records.ctypes.data + rows * layout.itemsize, planes)

    @classmethod
    def none(cls, layout: Layout) -> Waiting:
        empty = np.empty(0, np.int64)
        return cls(empty, np.empty(0, object), empty, empty, np.empty((0, len(layout.wide)), np.int64))

    def among(self, slots: Slots) -> Waiting:
        """Those that follow the given steps, which are sorted."""
        keep = among(self.slots, slots)
        return self if keep.all() else Waiting(*(a[keep] for a in self))

    @staticmethod
    def joined(parts: Sequence[Waiting]) -> Waiting:
        """All of them, in the order of their slots."""
        filled = [p for p in parts if len(p.slots)]
        if len(filled) < 2:
            return filled[0] if filled else parts[0]
        order = np.argsort(np.concatenate([p.slots for p in filled]))
        return Waiting(*(np.concatenate(arrays)[order] for arrays in zip(*filled, strict=True)))


def plane_addresses(block: Block, layout: Layout) -> list[int]:
    """Where plane 0 of each wide field lies."""
    assert block.records.strides == (layout.itemsize,), "rows are addressed by the layout's offsets"
    return [block.planes[leaf.path].ctypes.data for leaf in layout.wide]
