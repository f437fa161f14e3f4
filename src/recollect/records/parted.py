"""Rows, episodes and drawable rows of several views in one address space: a part's number in a slot's high bits.

Nothing is copied: whatever is asked is asked of the parts. A batch's rows are gathered part by part, straight to their
places where rows of a part lie together and are stored as they are read, else by way of a buffer (design/0021).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recollect.errors import NotFound
from recollect.records.kernels import J_STRIDE, J_TARGET
from recollect.records.layout import Layout
from recollect.records.plan import GatherPlan, Output
from recollect.records.rows import PackedRows
from recollect.view import I64, PART_SHIFT, Anchors, Bool, EpisodeKey, Episodes, Extent, Ids, Slots
from recollect.view.changes import change, listed, ranks_of

_LOW = (1 << PART_SHIFT) - 1
FEW_RUNS = 16
"""So many runs of rows of one part are gathered one by one; more are gathered by part and put into place."""


def part_of_slots(slots: Slots) -> NDArray[np.int64]:
    """The part of each slot, -1 for none."""
    out: NDArray[np.int64] = slots >> PART_SHIFT  # of -1 it is -1
    return out


def own_slots(slots: Slots) -> Slots:
    """Slots as their parts know them; -1 stays."""
    return np.where(slots < 0, -1, slots & _LOW)


def joint_slots(part: int, slots: Slots) -> Slots:
    """Slots of a part in the address space of all; -1 stays."""
    return np.where(slots < 0, -1, slots | (part << PART_SHIFT))


def _each(slots: Slots) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """The parts that flat slots are of, and the places of each; slots of -1 are in none."""
    parts = part_of_slots(slots)
    for part in range(int(parts.max(initial=-1)) + 1):
        places = np.flatnonzero(parts == part)
        if len(places):
            yield part, places


class PartReading:
    """How one part is read: its plans, made of those of the joint layout.

    Args:
        layout: the joint layout, `own` the part's.
        source: field of the joint schema → the part's own.
    """

    def __init__(self, layout: Layout, own: Layout, source: Mapping[str, str]) -> None:
        self.layout, self.own, self.source = layout, own, source
        self._is_same = own.schema == layout.schema
        self._plans: dict[int, tuple[GatherPlan, GatherPlan, tuple[Output, ...], bool]] = {}

    def plan(self, joint: GatherPlan) -> tuple[GatherPlan, tuple[Output, ...], bool]:
        """The part's plan for a joint one; validities that every row of the part has; whether the part's rows can be
        put straight into the joint arena."""
        held = self._plans.get(id(joint))
        if held is None:  # the joint plan is kept too, so that its id stays its own
            held = self._plans[id(joint)] = (joint, *self._compiled(joint))
        return held[1:]

    def _compiled(self, joint: GatherPlan) -> tuple[GatherPlan, tuple[Output, ...], bool]:
        if self._is_same:
            return joint, (), True
        outputs, sure = [], []
        for out in joint.outputs:
            source = self.source.get(out.source, out.source) if out.kind in ("field", "valid") else out.source
            if out.kind == "valid" and source not in self.own.nulls:
                sure.append(out)
            else:
                outputs.append(Output(out.name, out.kind, source, out.columns))
        plan = GatherPlan(self.own, tuple(outputs))
        alike = [(t.name, t.dtype, t.row_bytes) for t in plan.targets]
        return plan, tuple(sure), alike == [(t.name, t.dtype, t.row_bytes) for t in joint.targets]


class _Stretch:
    """A plan, for rows that are to lie from row `first` on in an arena of `rows` rows."""

    def __init__(self, plan: GatherPlan, rows: int, first: int) -> None:
        jobs, self._offsets, self._bytes = plan.sized(rows)
        self._jobs = jobs.copy()
        self._jobs[:, J_TARGET] += first * jobs[:, J_STRIDE]
        self.lines = plan.lines

    def sized(self, n: int) -> tuple[NDArray[np.int64], tuple[int, ...], int]:
        return self._jobs, self._offsets, self._bytes


class PartedRows(PackedRows):
    """The rows of several parts."""

    def __init__(self, layout: Layout, parts: Sequence[PackedRows], anchors: PartedAnchors, reads: Any) -> None:
        self.layout, self.parts, self._reads = layout, list(parts), reads
        self._anchors = anchors
        self.count = sum(len(p) for p in parts)
        self._plans = {}

    @property
    def firsts(self) -> list[int]:
        """The slot of the first row of each part; rows before it were let go of."""
        return [int(getattr(p, "first", 0)) | (k << PART_SHIFT) for k, p in enumerate(self.parts)]

    def resolve(self, slots: Slots) -> Slots:
        return slots

    def gather_into(self, plan: GatherPlan, slots: NDArray[np.int64], arena: NDArray[np.uint8]) -> None:
        """Fills the arena for the slot matrix `[n, columns]` int64, C-contiguous. The slots of a row are of one part:
        no window leaves its episode."""
        n = len(slots)
        part = np.maximum(part_of_slots(slots).max(axis=1), 0) if n else np.empty(0, np.int64)
        inner = own_slots(slots)
        breaks = np.flatnonzero(np.diff(part)) + 1
        if len(breaks) >= FEW_RUNS:
            for k in range(len(self.parts)):
                if len(places := np.flatnonzero(part == k)):
                    self._gather_apart(k, plan, places, inner, arena, n)
            return
        for start, stop in itertools.pairwise([0, *breaks.tolist(), n]):
            if start == stop:
                continue
            k = int(part[start])
            own, _, fits = self._reads[k].plan(plan)
            if fits:
                stretch: Any = own if stop - start == n else _Stretch(own, n, start)
                self.parts[k].gather_into(stretch, inner[start:stop], arena)
            else:
                self._gather_apart(k, plan, np.arange(start, stop), inner, arena, n)

    def _gather_apart(
        self, k: int, plan: GatherPlan, places: NDArray[np.int64], inner: Slots, arena: NDArray[np.uint8], n: int
    ) -> None:
        """Gathers rows of a part into memory of their own, and puts them into place."""
        own, sure, _ = self._reads[k].plan(plan)
        mine = np.ascontiguousarray(inner[places])
        apart = np.empty(own.sized(len(mine))[2], np.uint8)
        self.parts[k].gather_into(own, mine, apart)
        whole = plan.arrays(arena, n)
        for name, values in own.arrays(apart, len(mine)).items():
            whole[name][places] = values
        for out in sure:
            whole[out.name][places] = mine[:, out.columns[0]] >= 0

    def locate(self, slot: int, *, raw: bool = False) -> Any:
        """The block and row of one slot, in the layout of its part."""
        return self.parts[slot >> PART_SHIFT].locate(slot & _LOW, raw=raw)

    def pieces(self, start: int, stop: int) -> Any:
        raise NotFound("joined rows have no blocks of one layout", remedy="Ask the parts: view.parts")

    def spans(self, extent: Extent) -> Any:
        raise NotFound("joined rows have no slots in a row", remedy="Ask the parts: view.parts")

    def heap_values(self, slots: Slots, path: str) -> list[bytes | None]:
        """Stored bytes of a heap field for each slot; None where null or where the slot is -1."""
        out: list[bytes | None] = [None] * len(slots)
        for k, places in _each(slots):
            values = self.parts[k].heap_values(slots[places] & _LOW, self._reads[k].source[path])
            for place, value in zip(places.tolist(), values, strict=True):
                out[place] = value
        return out

    def valid(self, slots: Slots, path: str) -> NDArray[np.bool_]:
        """`[n]`: where an optional field is not null; all true for the others."""
        out = np.zeros(len(slots), np.bool_)
        for k, places in _each(slots):
            out[places] = self.parts[k].valid(slots[places] & _LOW, self._reads[k].source.get(path, path))
        return out

    def find(self, ids: Ids) -> Slots:
        """Slots `[n]` of the ids: in the part that draws the row, else in the first that holds it; -1 for none."""
        out = np.full(len(ids), -1, np.int64)
        drawn = np.zeros(len(ids), np.bool_)
        for k, rows in enumerate(self.parts):
            found = rows.find(ids)
            may = self._anchors.parts[k].mask(found) & (found >= 0)
            take = (found >= 0) & ~drawn & (may | (out < 0))
            out[take] = joint_slots(k, found[take])
            drawn |= may
        return out


class PartedEpisodes:
    """Where rows of parts stand in their episodes. An episode that is in two parts is one in each."""

    def __init__(self, parts: Sequence[Episodes]) -> None:
        self._parts = parts

    @cached_property
    def keys(self) -> NDArray[np.int64]:
        """`[groups, 2]`: the episodes, those of one part behind those of another."""
        return np.concatenate([p.keys for p in self._parts])

    @property
    def group(self) -> NDArray[np.int32]:
        raise NotFound("joined rows have no list of all slots", remedy="Use group_of, or the parts: view.parts")

    @property
    def is_final(self) -> Bool:
        raise NotFound("joined rows have no list of all slots", remedy="Use the parts: view.parts")

    def group_of(self, slots: Slots) -> NDArray[np.int32]:
        """`[n]`: the group of each slot, -1 for holes and rows that are not here."""
        out = np.full(len(slots), -1, np.int32)
        before = np.cumsum([0] + [len(p.keys) for p in self._parts])
        for k, places in _each(slots):
            own = self._parts[k].group_of(slots[places] & _LOW)
            out[places] = np.where(own < 0, -1, own + before[k])
        return out

    def offset(self, slots: Slots, k: Slots | int) -> Slots:
        """The row `k` steps later (earlier when negative) in the same run, -1 where there is none."""
        flat = np.asarray(slots, np.int64).reshape(-1)
        steps = np.broadcast_to(k, np.shape(slots)).reshape(-1)
        out = np.full(len(flat), -1, np.int64)
        for part, places in _each(flat):
            out[places] = joint_slots(part, self._parts[part].offset(flat[places] & _LOW, steps[places]))
        return out.reshape(np.shape(slots))

    def next_observation(self, slots: Slots) -> Slots:
        """Slot of the row that holds the next observation, -1 where there is none."""
        flat = np.asarray(slots, np.int64).reshape(-1)
        out = np.full(len(flat), -1, np.int64)
        for part, places in _each(flat):
            out[places] = joint_slots(part, self._parts[part].next_observation(flat[places] & _LOW))
        return out.reshape(np.shape(slots))

    def rows_of(self, key: EpisodeKey) -> Slots:
        """Every row of an episode in step order, of the first part that holds any."""
        for k, part in enumerate(self._parts):
            found = part.rows_of(key)
            if len(found):
                return joint_slots(k, found)
        return np.empty(0, np.int64)


class PartedAnchors:
    """The drawable rows of parts, those of one part behind those of another."""

    def __init__(self, parts: Sequence[Anchors]) -> None:
        self.parts = list(parts)
        self._starts = np.cumsum([0] + [len(p) for p in parts])
        self.undrawable_truncated = sum(p.undrawable_truncated for p in parts)
        self.undrawable_open = sum(p.undrawable_open for p in parts)
        self.undrawable_beheaded = sum(p.undrawable_beheaded for p in parts)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @cached_property
    def slots(self) -> Slots:
        """Every drawable row, sorted."""
        return np.concatenate([joint_slots(k, listed(p)) for k, p in enumerate(self.parts)])

    def select(self, ranks: Slots) -> Slots:
        """The drawable rows at these places of their sorted list."""
        flat = np.asarray(ranks, np.int64).reshape(-1)
        part = np.searchsorted(self._starts, flat, side="right") - 1
        out = np.empty(len(flat), np.int64)
        for k in range(len(self.parts)):
            mine = np.flatnonzero(part == k)
            if len(mine):
                out[mine] = joint_slots(k, self.parts[k].select(flat[mine] - self._starts[k]))
        return out.reshape(np.shape(ranks))

    def ranks(self, slots: Slots) -> I64:
        """`[n]`: how many drawable rows lie before each slot."""
        out = np.zeros(len(slots), np.int64)
        for k, places in _each(slots):
            out[places] = self._starts[k] + ranks_of(self.parts[k], slots[places] & _LOW)
        return out

    def mask(self, slots: Slots) -> Bool:
        """Whether each slot may be drawn."""
        out = np.zeros(len(slots), np.bool_)
        for k, places in _each(slots):
            if k < len(self.parts):
                out[places] = self.parts[k].mask(slots[places] & _LOW)
        return out

    def complete(self, slots: Slots) -> Bool:
        """Whether each slot could be drawn, were there no condition and no other part."""
        out = np.zeros(len(slots), np.bool_)
        for k, places in _each(slots):
            out[places] = self.parts[k].complete(slots[places] & _LOW)
        return out

    def changes(self, older: object) -> tuple[Slots, Slots] | None:
        """What may be drawn here and not there, and the other way round; both sorted."""
        if not isinstance(older, PartedAnchors) or len(older.parts) != len(self.parts):
            return None
        told = [change(a, b) for a, b in zip(older.parts, self.parts, strict=True)]
        return (
            np.concatenate([joint_slots(k, t.added) for k, t in enumerate(told)]),
            np.concatenate([joint_slots(k, t.removed) for k, t in enumerate(told)]),
        )
