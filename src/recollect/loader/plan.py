"""What a loader reads for a batch, compiled once: outputs of the gather, slot columns, windows of transforms."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recollect.errors import ArgumentError
from recollect.records.kernels import pair_slots
from recollect.records.layout import Layout
from recollect.records.plan import GatherPlan, Output
from recollect.records.rows import PackedRows
from recollect.schema import Frames, Json, Leaf, Ragged, Schema
from recollect.schema.fields import is_heap
from recollect.transforms import Columns, Reads, Transform
from recollect.view import Runs, Slots, View

ANCHOR, FOLLOWING = 0, 1
"""Columns of the slot matrix; the planes before the anchor come after these two."""


@dataclass(frozen=True)
class BatchPlan:
    """The reads of one loader.

    Attributes:
        gather: outputs at the anchor and at the next observation.
        window: outputs over `[B, W]` that transforms asked for, None when there are none.
        heap: variable-size leaves; `next_heap` those of them that are read of the next observation too.
        stack: planes of the deepest frame stack; `pads` the ways in which stacks are padded.
        reach: steps after the anchor in the window.
    """

    schema: Schema
    gather: GatherPlan
    window: GatherPlan | None
    heap: tuple[Leaf, ...]
    next_heap: tuple[Leaf, ...]
    transforms: tuple[Transform, ...]
    stack: int
    pads: tuple[str, ...]
    reach: int

    @classmethod
    def of(
        cls,
        layout: Layout,
        fields: Sequence[str] | None,
        transforms: Sequence[Transform],
        next_fields: Sequence[str] | None = None,
    ) -> BatchPlan:
        """
        Args:
            fields: names to read; None is every field of fixed shape.
            next_fields: observations of which the next one is read too; None is all of those in `fields`.

        Raises:
            NotFound: a name that the schema lacks.
            ArgumentError: one of `next_fields` is no observation.
        """
        schema = layout.schema
        built_in = ("terminated", "truncated")
        named = None if fields is None else [f for f in fields if f not in built_in]
        leaves = list(schema.select(named))
        for transform in transforms:
            leaves += [schema.by_path[p] for p in transform.needs(schema) if p in schema.by_path]
        for role in ("reward", "discount"):
            leaf = schema.role(role)
            if transforms and leaf is not None:
                leaves.append(leaf)
        leaves = list(dict.fromkeys(leaves))
        after = [leaf for leaf in leaves if leaf.is_observation]
        if next_fields is not None:
            after = list(dict.fromkeys(schema.select(list(next_fields))))
            if other := [leaf.path for leaf in after if not leaf.is_observation]:
                raise ArgumentError("next_fields names observations", value=other[0], remedy="Leave it out")
        dense = [leaf for leaf in leaves if not is_heap(leaf.field)]
        next_dense = [leaf for leaf in after if not is_heap(leaf.field)]
        stacks = [
            leaf.field for leaf in (*dense, *next_dense) if isinstance(leaf.field, Frames) and leaf.field.stack > 1
        ]
        stack = max((f.stack for f in stacks), default=1)
        pads = tuple(sorted({f.pad for f in stacks}))
        outputs = [Output(leaf.path, "field", leaf.path, _planes(leaf, False, stack, pads)) for leaf in dense]
        outputs += [Output(name, "flag", name) for name in built_in]
        outputs += [
            Output(f"next_{leaf.path}", "field", leaf.path, _planes(leaf, True, stack, pads)) for leaf in next_dense
        ]
        outputs += [Output(f"/valid/{leaf.path}", "valid", leaf.path) for leaf in leaves if leaf.field.optional]
        wide = sorted({p for t in transforms for p in t.needs(schema)})
        window = [Output(p, "flag" if p in built_in else "field", p) for p in wide]
        return cls(
            schema,
            GatherPlan(layout, tuple(outputs)),
            GatherPlan(layout, tuple(window)) if window else None,
            tuple(leaf for leaf in leaves if is_heap(leaf.field)),
            tuple(leaf for leaf in after if is_heap(leaf.field)),
            tuple(transforms),
            stack,
            pads,
            max((t.reach for t in transforms), default=0),
        )

    def in_layout(self, layout: Layout, fields: Sequence[str] | None, next_fields: Sequence[str] | None) -> BatchPlan:
        """The plan for rows in this layout: another one where the schema has evolved, under which the fields may be
        more or wider."""
        if layout is self.gather.layout or layout.schema == self.schema:
            return self
        return BatchPlan.of(layout, fields, self.transforms, next_fields)

    @property
    def is_ragged(self) -> bool:
        """Whether some values differ in size from row to row."""
        return bool(self.heap or self.next_heap)

    @property
    def row_bytes(self) -> int:
        """Bytes that one row of a batch takes."""
        return sum(t.row_bytes for t in self.gather.targets)

    def reads(self, view: View, keys: Slots) -> Reads:
        """Every address of a batch `[B]`, transforms asked in order."""
        pairs = np.empty((len(keys), 2), np.int64)
        if isinstance(view.episodes, Runs):
            pair_slots(keys, view.episodes.successor, pairs)
        else:
            pairs[:, ANCHOR], pairs[:, FOLLOWING] = keys, view.episodes.next_observation(keys)
        if not self.reach and self.stack == 1:
            reads = Reads(keys, keys[:, None], pairs[:, FOLLOWING], pairs=pairs)
            for transform in self.transforms:
                reads = transform.plan(reads, view)
            return reads
        following = pairs[:, FOLLOWING]
        window = keys[:, None]
        if self.reach:
            window = np.stack([keys, *(view.episodes.offset(keys, k) for k in range(1, self.reach + 1))], axis=1)
        reads = Reads(keys, window, following)
        for transform in self.transforms:
            reads = transform.plan(reads, view)
        return reads

    def matrix(self, view: View, reads: Reads) -> NDArray[np.int64]:
        """The slot matrix `[B, columns]`: anchor, next observation, then for each pad the planes before both."""
        if reads.pairs is not None:
            return reads.pairs
        if self.stack == 1:
            out = np.empty((len(reads.anchors), 2), np.int64)
            out[:, ANCHOR], out[:, FOLLOWING] = reads.anchors, reads.following
            return out
        last = reads.anchors
        if self.reach and "nstep" in reads.masks:
            taken = reads.masks["nstep"].sum(axis=1)
            last = np.take_along_axis(reads.window, taken[:, None] - 1, 1)[:, 0]
        columns = [reads.anchors, reads.following]
        for pad in self.pads:
            for newest, end, shift in ((reads.anchors, reads.anchors, 0), (reads.following, last, 1)):
                for k in range(1, self.stack):
                    back = view.episodes.offset(end, shift - k)
                    if shift:
                        back = np.where(reads.following < 0, -1, back)
                    if pad == "repeat":
                        back = np.where(back < 0, newest, back)
                        newest = back
                    columns.append(back)
        return np.stack(columns, axis=1)

    def windows(self, rows: PackedRows, reads: Reads) -> Columns:
        """The fields that transforms want over the window, `[B, W, …]`."""
        if self.window is None:
            return {}
        flat = np.ascontiguousarray(reads.window).reshape(-1, 1)
        arena = np.empty(self.window.sized(len(flat))[2], np.uint8)
        rows.gather_into(self.window, flat, arena)
        arrays = self.window.arrays(arena, len(flat))
        return {name: a.reshape(*reads.window.shape, *a.shape[1:]) for name, a in arrays.items()}

    def variable(
        self, rows: PackedRows, keys: Slots, following: Slots
    ) -> tuple[dict[str, list[Any]], dict[str, Any], dict[str, Any]]:
        """Text and JSON fields as lists, ragged ones padded `[B, longest]`, and the ragged ones' lengths `[B]`."""
        lists: dict[str, list[Any]] = {}
        padded: dict[str, Any] = {}
        lengths: dict[str, Any] = {}
        reads = [(leaf, leaf.path, keys) for leaf in self.heap]
        reads += [(leaf, f"next_{leaf.path}", following) for leaf in self.next_heap]
        for leaf, name, slots in reads:
            raw = rows.heap_values(slots, leaf.path)
            if isinstance(leaf.field, Ragged):
                dtype = np.dtype(leaf.field.dtype)
                parts = [np.frombuffer(b or b"", dtype) for b in raw]
                count = np.array([len(p) for p in parts], np.int64)
                out = np.zeros((len(parts), int(count.max(initial=0))), dtype)
                for k, part in enumerate(parts):
                    out[k, : len(part)] = part
                padded[name], lengths[name] = out, count
            elif isinstance(leaf.field, Json):
                lists[name] = [None if b is None else json.loads(b) for b in raw]
            else:
                lists[name] = [None if b is None else b.decode("utf-8") for b in raw]
        return lists, padded, lengths


def _planes(leaf: Leaf, following: bool, stack: int, pads: Sequence[str]) -> tuple[int, ...]:
    """Slot columns of a field's planes, oldest first."""
    anchor = FOLLOWING if following else ANCHOR
    field = leaf.field
    if not isinstance(field, Frames) or field.stack == 1:
        return (anchor,)
    begin = 2 + (2 * pads.index(field.pad) + following) * (stack - 1)
    return (*(begin + k for k in range(field.stack - 2, -1, -1)), anchor)
