"""What a loader reads for a batch, compiled once: outputs of the gather, slot columns, windows of transforms."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recollect.errors import ArgumentError, NotFound
from recollect.records.along import around, window
from recollect.records.kernels import pair_slots
from recollect.records.layout import Layout
from recollect.records.plan import GatherPlan, Output
from recollect.records.rows import PackedRows
from recollect.schema import Json, Leaf, Ragged, Schema
from recollect.schema.fields import is_heap
from recollect.transforms import WHOLE, Chance, Columns, Data, FrameStack, Reach, Reads, Transform, stacks_of
from recollect.view import Runs, Slots, View

ANCHOR, FOLLOWING = 0, 1
"""Columns of the slot matrix; the steps before the anchor come after these two."""
LONG = 1_024
"""Steps that a window to the end of an episode is taken for before it is drawn."""
Stacks = Mapping[str, tuple[int, str]]
"""Path → depth and pad of the fields that are read stacked."""


@dataclass(frozen=True)
class BatchPlan:
    """The reads of one loader.

    Attributes:
        gather: outputs at the anchor and at the next observation.
        wanted: what transforms want over the window.
        window: outputs over `[B, W]`, None when they are those of the anchors.
        heap: variable-size leaves; `next_heap` those of them that are read of the next observation too.
        stack: steps of the deepest stack; `pads` the ways in which stacks are padded.
        reach: steps around the anchor in the window.
        depth: of the deepest `FrameStack`; 1 without any.
    """

    schema: Schema
    gather: GatherPlan
    wanted: tuple[str, ...]
    window: GatherPlan | None
    heap: tuple[Leaf, ...]
    next_heap: tuple[Leaf, ...]
    transforms: tuple[Transform, ...]
    stack: int
    pads: tuple[str, ...]
    reach: Reach
    depth: int
    _lookups: dict[tuple[str, ...], GatherPlan] = field(default_factory=dict, repr=False)

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
            next_fields: observations of which the next one is read too, beside those that transforms want; None is all
                of those in `fields`.

        Raises:
            NotFound: a name that the schema lacks.
            ArgumentError: one of `next_fields` is no observation.
        """
        schema = layout.schema
        built_in = ("terminated", "truncated")
        named = None if fields is None else [f for f in fields if f not in built_in]
        leaves = list(schema.select(named))
        wanted = tuple(sorted({name for t in transforms for name in t.needs(schema)}))
        leaves += [leaf for name in wanted if (leaf := _leaf(schema, name)) is not None]
        leaves = list(dict.fromkeys(leaves))
        after = [leaf for leaf in leaves if leaf.is_observation]
        if next_fields is not None:
            after = list(schema.select(list(next_fields)))
            if other := [leaf.path for leaf in after if not leaf.is_observation]:
                raise ArgumentError("next_fields names observations", value=other[0], remedy="Leave it out")
            after += [schema.by_path[name.removeprefix("next_")] for name in wanted if name.startswith("next_")]
            after = list(dict.fromkeys(after))
        dense = [leaf for leaf in leaves if not is_heap(leaf.field)]
        next_dense = [leaf for leaf in after if not is_heap(leaf.field)]
        deeper = [t for t in transforms if isinstance(t, FrameStack)]
        stacks = {p: s for p, s in stacks_of(schema, deeper).items() if schema.by_path[p] in (*dense, *next_dense)}
        stack = max((depth for depth, _ in stacks.values()), default=1)
        pads = tuple(sorted({pad for _, pad in stacks.values()}))
        names = [leaf.path for leaf in dense] + list(built_in)
        names += [f"next_{leaf.path}" for leaf in next_dense]
        names += [f"/valid/{leaf.path}" for leaf in leaves if leaf.field.optional]
        reach = window_of(transforms)
        wide = wanted if reach.before or reach.after else ()
        return cls(
            schema,
            GatherPlan(layout, tuple(_output(schema, name, stacks, stack, pads) for name in names)),
            wanted,
            GatherPlan(layout, tuple(_output(schema, name, stacks, stack, pads) for name in wide)) if wide else None,
            tuple(leaf for leaf in leaves if is_heap(leaf.field)),
            tuple(leaf for leaf in after if is_heap(leaf.field)),
            tuple(transforms),
            stack,
            pads,
            reach,
            deepest(transforms),
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
        """Bytes that one row of a batch takes, and its window."""
        own = sum(t.row_bytes for t in self.gather.targets)
        if self.window is None:
            return own
        width = 1 + self.reach.before + min(self.reach.after, LONG)
        return own + width * sum(t.row_bytes for t in self.window.targets)

    def reads(self, view: View, anchors: Slots, keys: Slots, length: int, chances: Sequence[Chance]) -> Reads:
        """Every address of a batch `[B]`, transforms asked in order.

        Args:
            keys: `[B]` what was drawn: the anchors, or the keys of their sequences, `length` rows each.
            chances: the random numbers of each transform.
        """
        pairs = np.empty((len(anchors), 2), np.int64)
        if isinstance(view.episodes, Runs):
            pair_slots(anchors, view.episodes.successor, pairs)
        else:
            pairs[:, ANCHOR], pairs[:, FOLLOWING] = anchors, view.episodes.next_observation(anchors)
        before, after, _ = self.reach
        around_ = anchors[:, None]
        if before or after:
            if after >= WHOLE:
                after = int(around(view.episodes, anchors)[1].max(initial=0))
            around_ = window(view.episodes, anchors, before, after)
        reads = Reads(anchors, around_, pairs[:, FOLLOWING], keys, before, length, pairs=pairs)
        for transform, chance in zip(self.transforms, chances, strict=True):
            reads = transform.plan(reads, view, chance)
        return reads

    def matrix(self, view: View, reads: Reads) -> NDArray[np.int64]:
        """The slot matrix `[B, columns]`: anchor, next observation, then for each pad the steps before both."""
        if self.stack == 1 and reads.pairs is not None:
            return reads.pairs
        last = reads.anchors if reads.last is None else reads.last
        return self._matrix(view, reads.anchors, reads.following, last)

    def _matrix(self, view: View, anchors: Slots, following: Slots, last: Slots) -> NDArray[np.int64]:
        out = np.empty((len(anchors), 2 + 2 * len(self.pads) * (self.stack - 1)), np.int64)
        out[:, ANCHOR], out[:, FOLLOWING] = anchors, following
        if self.stack == 1:
            return out
        older = window(view.episodes, anchors, self.stack - 1, 0)[:, -2::-1]
        # The newest step before a next observation is the one it follows.
        recent = older if last is anchors else window(view.episodes, last, self.stack - 2, 0)[:, ::-1]
        if last is anchors:
            recent = np.concatenate([anchors[:, None], older[:, :-1]], axis=1)
        recent = np.where(following[:, None] < 0, -1, recent)
        at = 2
        for pad in self.pads:
            for newest, steps in ((anchors, older), (following, recent)):
                for k in range(self.stack - 1):
                    step = steps[:, k]
                    if pad == "repeat":
                        newest = step = np.where(step < 0, newest, step)
                    out[:, at] = step
                    at += 1
        return out

    def data(self, view: View, rows: PackedRows, reads: Reads, gathered: Columns) -> Data:
        """What transforms begin with: the gathered rows, the windows they want, and what they look up."""
        found = {name: self._looked_up(rows, *lookup) for name, lookup in reads.lookups.items()}
        if self.window is None:
            return Data(gathered, {name: gathered[name][:, None] for name in self.wanted}, found)
        flat = np.ascontiguousarray(reads.window).reshape(-1)
        if all(output.columns == (ANCHOR,) for output in self.window.outputs):
            matrix = flat[:, None]
        else:
            matrix = self._matrix(view, flat, view.episodes.next_observation(flat), flat)
        arrays = _gathered(rows, self.window, matrix)
        return Data(gathered, {n: a.reshape(*reads.window.shape, *a.shape[1:]) for n, a in arrays.items()}, found)

    def _looked_up(self, rows: PackedRows, slots: Slots, fields: tuple[str, ...]) -> Columns:
        plan = self._lookups.get(fields)
        if plan is None:
            outputs = tuple(_output(self.schema, name, {}, 1, ()) for name in fields)
            plan = self._lookups[fields] = GatherPlan(self.gather.layout, outputs)
        return _gathered(rows, plan, np.ascontiguousarray(slots)[:, None])

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


def deepest(transforms: Iterable[Transform]) -> int:
    """Steps of the deepest `FrameStack`; 1 without any."""
    return max((t.k for t in transforms if isinstance(t, FrameStack)), default=1)


def window_of(transforms: Iterable[Transform]) -> Reach:
    """The steps around an anchor whose values some transform wants."""
    reaches = [t.reach for t in transforms if t.reach.window]
    return Reach(max((r.before for r in reaches), default=0), max((r.after for r in reaches), default=0))


def resident_reach(transforms: Iterable[Transform]) -> Reach:
    """The steps around an anchor that must be there to be read."""
    reaches = [t.reach for t in transforms]
    return Reach(max((r.before for r in reaches), default=0), max((r.after for r in reaches), default=0))


def _gathered(rows: PackedRows, plan: GatherPlan, matrix: NDArray[np.int64]) -> Columns:
    arena = np.empty(plan.sized(len(matrix))[2], np.uint8)
    rows.gather_into(plan, matrix, arena)
    return plan.arrays(arena, len(matrix))


def _leaf(schema: Schema, name: str) -> Leaf | None:
    """The field that is read for a name that a transform gave; None for flags.

    Raises:
        NotFound: there is no such field, or it has no fixed shape.
    """
    if name in ("terminated", "truncated"):
        return None
    path = name.removeprefix("/valid/").removeprefix("next_")
    leaf = schema.by_path.get(path)
    if leaf is None or is_heap(leaf.field) or (name.startswith("next_") and not leaf.is_observation):
        raise NotFound(f"no fixed-shape field {name!r} for a transform", remedy=f"Fields: {', '.join(schema.by_path)}")
    return leaf


def _output(schema: Schema, name: str, stacks: Stacks, stack: int, pads: Sequence[str]) -> Output:
    """The output for a name: a field's path, `next_` and an observation's, a flag, `/valid/` and a path."""
    if name in ("terminated", "truncated"):
        return Output(name, "flag", name)
    if name.startswith("/valid/"):
        return Output(name, "valid", name.removeprefix("/valid/"))
    following = name.startswith("next_")
    path = name.removeprefix("next_")
    anchor = FOLLOWING if following else ANCHOR
    if path not in stacks:
        return Output(name, "field", path, (anchor,))
    depth, pad = stacks[path]
    begin = 2 + (2 * pads.index(pad) + following) * (stack - 1)
    return Output(name, "field", path, (*(begin + k for k in range(depth - 2, -1, -1)), anchor))
