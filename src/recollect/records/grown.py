"""One moment of rows that grow: what a view of them reads. Everything here is fixed when it is made.

The arrays are shared with later moments, which add rows behind `stop` and set links that lead there; `links` says why
that is never seen from here (design/0006).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recollect.errors import NotFound
from recollect.records import layout as lay
from recollect.records.block import Block
from recollect.records.layout import Layout
from recollect.records.plan import GatherPlan
from recollect.records.rows import PackedRows, alike
from recollect.records.waiting import Waiting
from recollect.view import Bool, Cut, EpisodeKey, Extent, FactIndex, Ids, Slots, View, make_ids
from recollect.view.changes import among

Array = NDArray[Any]


@dataclass(frozen=True, eq=False)
class Moment:
    """Rows `first` to `stop` (slots), and the arrays that hold them, by slot minus `base`.

    Attributes:
        address, block, flags, group, before, after, final: `[rows]`, see `links.take_rows`.
        keys: `[groups, 2]` the episodes.
        blocks: where rows lie; `planes` `[blocks, regions]` the addresses of their plane 0.
        patch: `[rows]` each row's newest changed copy, -1 none, None while no row ever had one; of the copies,
            the first `patches` belong to this moment, and `patch_older` leads from each to the one before.
        extents: `[extents, 3]` writer, first row, slot of that row: all that `first` to `stop` touches, in order.
        by_writer: writer → `[3, m]` first row, slot of it, rows of the writer's extents, sorted. Rows past `stop` are
            to be passed over.
        values: stands for the late facts that are laid over rows: another object once some came.
        waiting: next observations that wait in tails; the k-th is at slot `stop + k`.
    """

    layout: Layout
    base: int
    first: int
    stop: int
    address: Array
    block: Array
    flags: Array
    group: Array
    before: Array
    after: Array
    final: Array
    keys: Array
    blocks: Sequence[Block]
    planes: Array
    patch: Array | None
    patches: int
    patch_address: Array
    patch_block: Array
    patch_older: Array
    extents: Array
    by_writer: Mapping[int, Array]
    values: object
    waiting: Waiting

    @property
    def rows(self) -> slice:
        """Where the rows stand in the arrays."""
        return slice(self.first - self.base, self.stop - self.base)

    @property
    def cut_extents(self) -> tuple[Extent, ...]:
        """The rows as extents, in order."""
        starts = self.extents[:, 2]
        stops = np.append(starts[1:], self.stop)[: len(starts)]
        out = []
        for (writer, seq, start), stop in zip(self.extents.tolist(), stops.tolist(), strict=True):
            skip = max(0, self.first - start)
            if start + skip < stop:
                out.append(Extent(writer, seq + skip, seq + stop - start))
        return tuple(out)


@cache
def _counting(n: int) -> NDArray[np.int64]:
    return np.arange(n + 1)


class GrownRows(PackedRows):
    """The rows of a moment. It is `PackedRows` with another way from slot to address, and nothing else: a table with an
    entry per row, because rows of many writers that arrive in turns make more blocks than can be searched."""

    def __init__(self, moment: Moment) -> None:
        self.layout, self.moment = moment.layout, moment
        self.count = moment.stop - moment.first
        self._plans = {}
        self._no_patch = np.empty(0, np.int32)

    @property
    def first(self) -> int:
        """The slot of the first row; 0 unless older rows were let go of."""
        return self.moment.first

    def resolve(self, slots: Slots) -> Slots:
        return slots

    def gather_into(self, plan: GatherPlan, slots: NDArray[np.int64], arena: NDArray[np.uint8]) -> None:
        """Fills the arena for the slot matrix `[n, columns]` int64, C-contiguous. Releases the GIL."""
        from recollect.records.kernels import gather
        from recollect.records.links import locate

        m = self.moment
        jobs, _, _ = plan.sized(len(slots))
        places = np.empty(slots.shape, np.int64)
        bases = np.empty(max(1, slots.size), np.int64)
        regions = np.zeros((max(1, len(self.layout.wide)), max(1, slots.size)), np.int64)
        locate(
            slots,
            m.base,
            m.first,
            m.stop,
            m.address,
            m.block,
            m.planes,
            self._no_patch if m.patch is None else m.patch,
            m.patches,
            m.patch_address,
            m.patch_block,
            m.patch_older,
            m.waiting.address,
            m.waiting.planes,
            places,
            bases,
            regions[: len(self.layout.wide)],
        )
        gather(places, _counting(max(1, slots.size)), bases, regions, self.layout.itemsize, jobs, plan.lines, arena)

    def locate(self, slot: int, *, raw: bool = False) -> tuple[Block, int]:
        """The block and row of one slot; `raw` looks past late facts to what was first written."""
        m = self.moment
        if slot >= m.stop:
            return m.waiting.blocks[slot - m.stop], int(m.waiting.rows[slot - m.stop])
        if slot < m.first:
            raise NotFound(f"row {slot} of the view was let go of", value=slot)
        i = slot - m.base
        address, block = int(m.address[i]), m.blocks[int(m.block[i])]
        if m.patches and m.patch is not None and not raw:
            x = int(m.patch[i])
            while x >= m.patches:
                x = int(m.patch_older[x])
            if x >= 0:
                address, block = int(m.patch_address[x]), m.blocks[int(m.patch_block[x])]
        return block, (address - block.records.ctypes.data) // self.layout.itemsize

    def _by_block(self, slots: Slots) -> Iterator[tuple[Block, Array, Array]]:
        """The blocks that hold the rows of some slots: the rows in each, and their places among the slots. Slots of -1
        are passed over."""
        m = self.moment
        inside = (slots >= m.first) & (slots < m.stop)
        i = np.where(inside, slots, m.first) - m.base
        if m.patches and m.patch is not None and m.stop > m.first:
            inside &= m.patch[i] < 0
        places = np.flatnonzero(inside)
        number, address = m.block[i[places]], m.address[i[places]]
        for part in alike(number):
            block = m.blocks[int(number[part[0]])]
            yield block, (address[part] - block.records.ctypes.data) // self.layout.itemsize, places[part]
        # Waiting observations and rows that have changed copies are few.
        for place in np.flatnonzero(~inside & (slots >= 0)).tolist():
            block, row = self.locate(int(slots[place]))
            yield block, np.array([row]), np.array([place])

    def find(self, ids: Ids) -> Slots:
        """Slots `[n]` of the ids, -1 for ids that are not in the cut."""
        out = np.full(len(ids), -1, np.int64)
        for writer in np.unique(ids["writer"]).tolist():
            table = self.moment.by_writer.get(writer)
            if table is None:
                continue
            mine = np.flatnonzero(ids["writer"] == writer)
            seq = ids["seq"][mine]
            at = np.maximum(np.searchsorted(table[0], seq, side="right") - 1, 0)
            skip = seq - table[0, at]
            slot = table[1, at] + skip
            known = (skip >= 0) & (skip < table[2, at]) & (slot >= self.moment.first) & (slot < self.moment.stop)
            out[mine[known]] = slot[known]
        return out

    def pieces(self, start: int, stop: int) -> list[tuple[Block, int, int]]:
        """The blocks that hold slots `start` to `stop`, in order."""
        m, size = self.moment, self.layout.itemsize
        span = slice(start - m.base, stop - m.base)
        block, address = m.block[span], m.address[span]
        breaks = np.flatnonzero((np.diff(block) != 0) | (np.diff(address) != size)) + 1
        out = []
        for a, b in itertools.pairwise([0, *breaks.tolist(), len(block)]):
            if b > a:
                held = m.blocks[int(block[a])]
                row = (int(address[a]) - held.records.ctypes.data) // size
                out.append((held, row, row + b - a))
        return out

    def spans(self, extent: Extent) -> list[tuple[int, int]]:
        """The slots `[start, stop)` that hold an extent's rows, in its order; shorter where some are not here."""
        slots = self.find(make_ids(extent.writer, np.arange(extent.start, extent.stop)))
        gone = np.flatnonzero(slots < 0)
        slots = slots[: gone[0]] if len(gone) else slots
        breaks = np.flatnonzero(np.diff(slots) != 1) + 1
        bounds = [0, *breaks.tolist(), len(slots)]
        return [(int(slots[a]), int(slots[b - 1]) + 1) for a, b in itertools.pairwise(bounds) if b > a]


@dataclass(frozen=True, eq=False)
class GrownEpisodes:
    """Where each row of a moment stands in its episode, by links from row to row."""

    moment: Moment

    @cached_property
    def group(self) -> NDArray[np.int32]:
        """`[stop]` int32: index into `keys`, -1 for holes and rows that are not here."""
        return self._whole(self.moment.group, -1)

    @property
    def keys(self) -> NDArray[np.int64]:
        """`[groups, 2]`: the episodes, by group. Some may have no row here any more."""
        return self.moment.keys

    @cached_property
    def is_final(self) -> Bool:
        """`[stop]` bool: observation-only rows."""
        out: Bool = (self._whole(self.moment.flags, 0) & lay.FINAL) != 0
        return out

    def _whole(self, array: Array, fill: int) -> Array:
        m = self.moment
        out = np.full(m.stop, fill, array.dtype)
        out[m.first :] = array[m.rows]
        return out

    def group_of(self, slots: Slots) -> NDArray[np.int32]:
        """`[n]`: the group of each slot, -1 for holes and rows that are not here."""
        m = self.moment
        inside = (slots >= m.first) & (slots < m.stop)
        out = np.full(len(slots), -1, np.int32)
        out[inside] = m.group[slots[inside] - m.base]
        return out

    def offset(self, slots: Slots, k: Slots | int) -> Slots:
        """The row `k` steps later (earlier when negative) in the same run, -1 where there is none."""
        from recollect.records.links import walk

        m = self.moment
        flat = np.ascontiguousarray(slots, np.int64).reshape(-1)
        steps = np.ascontiguousarray(np.broadcast_to(k, np.shape(slots)), np.int64).reshape(-1)
        out = np.empty(len(flat), np.int64)
        walk(flat, steps, m.base, m.first, m.stop, m.before, m.after, m.final, m.group, m.flags, lay.FINAL, out)
        return out.reshape(np.shape(slots))

    def next_observation(self, slots: Slots) -> Slots:
        """Slot of the row that holds the next observation, -1 where there is none."""
        from recollect.records.links import observed_after

        m = self.moment
        flat = np.ascontiguousarray(slots, np.int64).reshape(-1)
        out = np.empty(len(flat), np.int64)
        observed_after(flat, m.base, m.first, m.stop, m.after, m.final, m.flags, m.waiting.slots, lay.FINAL, out)
        return out.reshape(np.shape(slots))

    def rows_of(self, key: EpisodeKey) -> Slots:
        """Every row of an episode in step order, the final row last; empty when the view holds none."""
        m = self.moment
        group = np.flatnonzero((m.keys[:, 0] == key.writer) & (m.keys[:, 1] == key.counter))
        if not len(group):
            return np.empty(0, np.int64)
        slots = np.flatnonzero(m.group[m.rows] == group[0]) + m.first
        slots = slots[self.offset(slots, 0) >= 0]
        step = GrownRows(m).gather(slots, ("step",))["step"].astype(np.int64)
        final = (m.flags[slots - m.base] & lay.FINAL) != 0
        return slots[np.argsort(2 * step + ~final, kind="stable")]


@dataclass(frozen=True, eq=False)
class GrownAnchors:
    """Rows of a moment that may be drawn: its steps, but for a few.

    Attributes:
        moment: the rows.
        steps: `[m]` the rows that are steps, by slot minus `base`; those from `low` to `high` are in the moment.
        left: sorted places among the steps, at least `low`, of those that may not be drawn.
    """

    moment: Moment
    steps: Array
    low: int
    high: int
    left: NDArray[np.int64]
    undrawable_truncated: int
    undrawable_open: int
    undrawable_beheaded: int

    @cached_property
    def _jumps(self) -> NDArray[np.int64]:
        """For each step left out, how many drawable ones come before it."""
        return self.left - self.low - np.arange(len(self.left))

    @cached_property
    def _left_slots(self) -> Slots:
        out: Slots = self.steps[self.left].astype(np.int64) + self.moment.base
        return out

    def __len__(self) -> int:
        return self.high - self.low - len(self.left)

    @property
    def slots(self) -> Slots:
        """Every drawable row, sorted."""
        return self.select(np.arange(len(self)))

    def select(self, ranks: Slots) -> Slots:
        """The drawable rows at these places of their sorted list."""
        places = ranks + self.low
        if len(self.left):
            places = places + np.searchsorted(self._jumps, ranks, side="right")
        out: Slots = self.steps[places].astype(np.int64) + self.moment.base
        return out

    def changes(self, older: object) -> tuple[Slots, Slots] | None:
        """Sorted slots of rows that may be drawn here and not in an earlier moment of the same source, and of those
        that may be drawn there and not here. Costs what changed. None when `older` is no such moment."""
        if not isinstance(older, GrownAnchors):
            return None
        first, seen = self.moment.first, older.moment.stop
        mine, theirs = self._left_slots, older._left_slots
        freed = theirs[~among(theirs, mine)]
        lost = mine[(mine < seen) & ~among(mine, theirs)]
        return (
            np.concatenate([freed[freed >= first], self.select(np.arange(self._before(seen), len(self)))]),
            np.concatenate([older.select(np.arange(older._before(first))), lost[lost >= first]]),
        )

    def _before(self, slot: int) -> int:
        """How many drawable rows lie before a slot."""
        return int(self.ranks(np.array([slot]))[0])

    def ranks(self, slots: Slots) -> NDArray[np.int64]:
        """`[n]`: how many drawable rows lie before each slot."""
        here = self.steps[self.low : self.high]
        # In the type of the list: another one would have the whole list converted.
        index = np.clip(slots - self.moment.base, 0, np.iinfo(here.dtype).max).astype(here.dtype)
        places = np.searchsorted(here, index)
        return places - np.searchsorted(self.left, places + self.low)

    def mask(self, slots: Slots) -> Bool:
        """Whether each slot may be drawn."""
        m = self.moment
        inside = (slots >= m.first) & (slots < m.stop)
        flags = m.flags[np.where(inside, slots, m.first) - m.base] if m.stop > m.first else np.zeros(len(slots), int)
        inside = inside & ((flags & (lay.FINAL | lay.HOLE)) == 0)
        out: Bool = inside & ~among(slots, self._left_slots)
        return out

    def complete(self, slots: Slots) -> Bool:
        """Whether each slot could be drawn, were there no condition; here there is none."""
        return self.mask(slots)


class GrownView(View):
    """A view of a moment. Its cut is spelt out when somebody asks: rows of many writers that arrive in turns make
    many extents."""

    __eq__ = object.__eq__
    __hash__ = object.__hash__

    def __init__(
        self,
        anchors: GrownAnchors,
        facts: tuple[tuple[int, int], ...],
        load_facts: Callable[[], FactIndex],
        name: str,
    ) -> None:
        moment = anchors.moment
        self.__dict__.update(
            schema=moment.layout.schema,
            rows=GrownRows(moment),
            episodes=GrownEpisodes(moment),
            anchors=anchors,
            load_facts=load_facts,
            name=name,
            moment=moment,
            fact_stops=facts,
        )

    moment: Moment
    fact_stops: tuple[tuple[int, int], ...]

    def same_values(self, older: View) -> bool:
        """Whether the rows that both views hold have the same values in both."""
        return isinstance(older, GrownView) and older.moment.values is self.moment.values

    @cached_property
    def cut(self) -> Cut:
        """What the view is: the rows from slot `rows.first` on, in this order."""
        return Cut(self.moment.cut_extents, self.fact_stops)
