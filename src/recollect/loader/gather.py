"""From a draw to arrays: addresses, one gather, transforms. Pure, so that any thread may do it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from recollect.errors import ArgumentError
from recollect.loader.batch import Chunk
from recollect.loader.chance import chance_of
from recollect.loader.outputs import Output
from recollect.loader.plan import BatchPlan
from recollect.loader.ranks import sliced
from recollect.records.rows import PackedRows
from recollect.samplers import Draw, steps_of
from recollect.view import Slots, View


@dataclass(frozen=True)
class Gatherer:
    """Makes the batches of one rank.

    Attributes:
        settles: whether batches keep nothing of what they were drawn from, because room is made by letting go of it.
    """

    output: Output
    seed: int
    rank: int = 0
    world_size: int = 1
    settles: bool = False

    def __call__(self, draw: Draw, view: View, plan: BatchPlan) -> Chunk:
        """The batches of a draw. `plan` is that of the view's layout."""
        whole, draw = draw, sliced(draw, self.rank, self.world_size)
        batches, n = draw.keys.shape
        keys = draw.keys.reshape(-1) if draw.sizes is None else draw.keys[draw.keys >= 0]
        sizes = [n] * batches if draw.sizes is None else list(draw.sizes)
        rows, output = packed_rows(view), self.output
        padding, length, owners = None, 1, keys
        if draw.span is not None:
            if plan.is_ragged:
                raise ArgumentError("sequences hold fields of fixed shape", remedy="Leave text and ragged fields out")
            # Rows are read where there is no step too, and blanked: everything below works on steps that are there.
            slots, length = steps_of(view, keys, draw.span).slots, draw.span.length
            padding = slots.reshape(-1) < 0
            owners = np.repeat(keys, length)
            keys = np.where(slots < 0, keys[:, None], slots).reshape(-1)
            sizes = [size * length for size in sizes]
        chances = [
            chance_of(self.seed, k, whole, length, self.rank, self.world_size) for k in range(len(plan.transforms))
        ]
        reads = plan.reads(view, keys, owners, length, chances)
        arena = output.arena(plan.gather.sized(len(keys))[2])
        host = output.host(arena)
        rows.gather_into(plan.gather, plan.matrix(view, reads), host)
        made: dict[str, Any] = {}
        if plan.transforms:
            gathered = plan.gather.arrays(host, len(keys))
            data = plan.data(view, rows, reads, gathered)
            for transform in plan.transforms:
                data = transform.apply(data, reads, plan.schema)
            made = {name: a for name, a in data.rows.items() if gathered.get(name) is not a}
        if padding is not None:
            for array in (*plan.gather.arrays(host, len(keys)).values(), *made.values()):
                array[padding] = 0
            blank = np.where(padding, -1, reads.anchors), np.where(padding, -1, reads.following)
            reads = reads._replace(anchors=blank[0], following=blank[1])
        each, lists = _variable(plan, rows, keys, reads.following, sizes) if plan.is_ragged else ({}, {})
        chunk = Chunk(draw, reads, sizes, plan.gather, output, rows, arena, made, each, lists, length)
        if self.settles:
            chunk.settle()
        return chunk


def _variable(
    plan: BatchPlan, rows: PackedRows, keys: Slots, following: Slots, sizes: list[int]
) -> tuple[dict[str, list[Any]], dict[str, list[list[Any]]]]:
    """Ragged fields, padded per batch, with their lengths; text and JSON as lists."""
    each: dict[str, list[Any]] = {}
    lists: dict[str, list[list[Any]]] = {}
    at = 0
    for size in sizes:
        texts, padded, lengths = plan.variable(rows, keys[at : at + size], following[at : at + size])
        at += size
        for name, value in texts.items():
            lists.setdefault(name, []).append(value)
        for name, array in padded.items():
            each.setdefault(name, []).append(array)
            each.setdefault(f"/lengths/{name}", []).append(lengths[name])
    return each, lists


def packed_rows(view: View) -> PackedRows:
    """The rows of a view as what the gather reads."""
    assert isinstance(view.rows, PackedRows)
    return view.rows
