"""`Growing`: rows that arrive, one extent after the other, and the moments that views are made of.

What `build_view` finds out for all rows at once is found out here for the new ones alone. A row's slot never changes;
growing costs what the new rows cost, amortised (design/0006).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recollect.records import layout as lay
from recollect.records import links
from recollect.records.block import Block
from recollect.records.grown import Array, GrownAnchors, GrownRows, Moment
from recollect.records.heads import deepest_stack
from recollect.records.layout import Layout
from recollect.records.overlay import overlay
from recollect.records.waiting import Waiting, plane_addresses
from recollect.view import FactIndex, Ids, Slots, StepId, make_ids
from recollect.view.changes import among

Tails = Callable[[Ids], list[tuple[Ids, Block]]]
"""Given ids of steps: those whose next observations wait in tails, in a group for each writer, with a block of a row
for each."""
Translate = Callable[[Block, NDArray[np.int64]], Block]
"""Given a block and sorted rows of it: a block in another layout that has these rows at the same places."""
KEPT_ROWS = 4096
"""So many rows behind the window are always kept: below it, giving them up costs more than it frees."""
_ROWS = ("address", "block", "flags", "group", "before", "after", "final", "steps", "cuts", "patch")
_NONE = np.empty(0, np.int64)
_FAR = np.iinfo(np.int64).max


class Growing:
    """Rows in the order of their arrival, and their links.

    Args:
        last: how many of the newest rows a view holds; all when None.
        first: the slot of the first row.

    Attributes:
        stop: the slot of the next row.
    """

    def __init__(self, layout: Layout, last: int | None = None, first: int = 0) -> None:
        self.last = last
        self.base = self.first = self.stop = first
        self._lay_out(layout)
        self._bits = np.array([lay.HOLE, lay.FINAL], np.int64)
        self._counts = np.zeros(3, np.int64)
        # By row. `steps` and `cuts` have an entry for some rows only, `patch` one for every row once any has a copy.
        kinds = (np.int64, np.int32, np.uint16, *(np.int32,) * 6)
        self._rows: dict[str, Array] = {n: np.empty(64, k) for n, k in zip(_ROWS, kinds, strict=False)}
        # By episode.
        self._keys = np.empty((16, 2), np.int64)
        self._table = np.full(64, -1, np.int64)
        self._newest, self._newest_step, self._ending = (np.empty(16, np.int32) for _ in range(3))
        # By extent.
        self._extents = np.empty((8, 3), np.int64)
        self._extent_count = 0
        self._by_writer: dict[int, Array] = {}
        self._writer_extents: dict[int, int] = {}
        # Steps that nothing follows yet, and the observations that wait for some of them.
        self._left = self._left_rank = _NONE
        self._settled = self._low_rank = 0
        self._edges = _NONE

    def _lay_out(self, layout: Layout) -> None:
        """What depends on the layout, without rows."""
        self.layout = layout
        self._record = np.array(
            [layout.itemsize, *(layout.offset(c) for c in ("flags", "episode_writer", "episode", "step"))], np.int64
        )
        self._reach = deepest_stack(layout.schema) - 1
        # By block, by changed copy.
        self._blocks: list[Block] = []
        self._block_of: dict[int, int] = {}
        self._planes = np.empty((8, len(layout.wide)), np.int64)
        self._copies: list[Array] = [np.empty(8, np.int64), np.empty(8, np.int32), np.empty(8, np.int32)]
        self._has_patches = False
        self._patches = 0
        self._values = object()
        self._waiting = Waiting.none(layout)

    # -- rows ----------------------------------------------------------------------------------------------

    def add(self, writer: int, seq: int, pieces: Sequence[tuple[Block, int, int]], strict: bool) -> int:
        """Takes in rows of one writer from `seq` on. Returns how many: fewer where `strict` and a row's predecessor is
        not here."""
        taken = 0
        for block, start, stop in pieces:
            count = stop - start
            self._make_room(count)
            i = self.stop - self.base
            got = links.take_rows(
                block.records.ctypes.data + start * self.layout.itemsize,
                count,
                strict,
                self._record,
                self._bits,
                self._number(block),
                i,
                self._counts,
                *(self._rows[n] for n in _ROWS[:9]),
                self._table,
                self._keys,
                self._newest,
                self._newest_step,
                self._ending,
                self.first - self.base,
            )
            if self._has_patches:
                self._rows["patch"][i : i + got] = -1
            self._note(writer, seq + taken, got)
            taken += got
            if got < count:
                break
        return taken

    def _note(self, writer: int, seq: int, count: int) -> None:
        """Adds rows to the extents; those that go on from the last extent make it longer."""
        if not count:
            return
        k = self._extent_count
        mine = self._by_writer.get(writer)
        if k and self._extents[k - 1, 0] == writer and mine is not None:
            last = self._writer_extents[writer] - 1
            if mine[0, last] + mine[2, last] == seq:
                mine[2, last] += count
                self.stop += count
                return
        self._extents = _room(self._extents, k + 1)
        self._extents[k] = writer, seq, self.stop
        self._extent_count += 1
        at = self._writer_extents.get(writer, 0)
        if mine is None or at == mine.shape[1]:
            more = np.full((3, 2 * at or 4), _FAR, np.int64)
            if mine is not None:
                more[:, :at] = mine
            mine = self._by_writer[writer] = more
        # The first row comes last: until then the entry lies beyond all others.
        mine[1:, at] = self.stop, count
        mine[0, at] = seq
        self._writer_extents[writer] = at + 1
        self.stop += count

    def _number(self, block: Block) -> int:
        """The block's number; one that is not known yet is kept from now on."""
        known = self._block_of.get(id(block))
        if known is None:
            known = self._block_of[id(block)] = len(self._blocks)
            self._planes = _room(self._planes, known + 1)
            self._planes[known] = plane_addresses(block, self.layout)
            self._blocks.append(block)
        return known

    def _make_room(self, count: int) -> None:
        need = self.stop - self.base + count
        for name, array in self._rows.items():
            self._rows[name] = _room(array, need)
        groups = int(self._counts[0]) + count
        self._keys = _room(self._keys, groups)
        self._newest, self._newest_step, self._ending = (
            _room(a, groups) for a in (self._newest, self._newest_step, self._ending)
        )
        if 2 * groups > len(self._table):
            self._table = np.full(1 << (4 * groups - 1).bit_length(), -1, np.int64)
            links.place_keys(self._keys, int(self._counts[0]), self._table)

    # -- late facts ----------------------------------------------------------------------------------------

    def change(self, values: Mapping[StepId, Mapping[str, Any]]) -> list[StepId]:
        """Lays values of step facts, field by field, over copies of the rows they are about. Returns the ids that are
        no rows here."""
        rows = GrownRows(self._moment())
        found = overlay(rows, lambda: FactIndex(steps={i: dict(v) for i, v in values.items()}))
        if found is None:
            return list(values)
        slots, block = found
        self._values = object()
        if not self._has_patches:
            self._rows["patch"] = np.full(len(self._rows["flags"]), -1, np.int32)
            self._has_patches = True
        number, begin = self._number(block), self._patches
        at = slots - self.base
        stop = begin + len(slots)
        if stop > len(self._copies[0]):
            # Older views go from `patch` to the copies that they know, so both change hands together.
            self._copies = [_room(a, stop) for a in self._copies]
            self._rows["patch"] = self._rows["patch"].copy()
        address, of, older = self._copies
        address[begin:stop] = block.records.ctypes.data + np.arange(len(slots)) * self.layout.itemsize
        of[begin:stop] = number
        older[begin:stop] = self._rows["patch"][at]
        self._rows["patch"][at] = np.arange(begin, stop)
        self._patches = stop
        held = {StepId(*i) for i in rows.ids(slots).tolist()}
        return [i for i in values if i not in held]

    def find(self, ids: Ids) -> Slots:
        """Slots `[n]` of rows that may still be read, -1 for the others."""
        return GrownRows(self._moment()).find(ids)

    # -- another layout ------------------------------------------------------------------------------------

    def evolved(self, layout: Layout, translate: Translate) -> Growing:
        """The same rows, at the same slots, in the layout of a later schema. These rows and their moments stay as they
        are. Late facts are not laid over the rows yet."""
        out = copy.copy(self)
        out._counts = self._counts.copy()
        out._let_go()
        if out.first > out.base:
            out._compact(out.first - out.base)
        held, waiting = out._blocks, out._waiting
        out._lay_out(layout)
        n = out.stop - out.base
        old = out._rows
        out._rows = {name: array for name, array in old.items() if name != "patch"}
        out._rows["address"], out._rows["block"] = np.empty_like(old["address"]), np.empty_like(old["block"])
        for places in _groups(old["block"][:n]):
            block = held[int(old["block"][places[0]])]
            rows = (old["address"][places] - block.records.ctypes.data) // self.layout.itemsize
            new = translate(block, np.sort(rows, kind="stable"))
            out._rows["block"][places] = out._number(new)
            out._rows["address"][places] = new.records.ctypes.data + rows * layout.itemsize
        moved = [out._waiting]
        for places in _groups(np.array([id(b) for b in waiting.blocks], np.int64)):
            rows = waiting.rows[places]
            block = translate(waiting.blocks[places[0]], np.sort(rows, kind="stable"))
            moved.append(Waiting.of(waiting.slots[places], block, rows, layout))
        out._waiting = Waiting.joined(moved)
        if out._reach and not self._reach:
            out._edges = out._cut_off()
        return out

    def _cut_off(self) -> NDArray[np.int64]:
        """The steps in the window after the first of their episode, whose predecessor is not there."""
        steps = self._rows["steps"][self._low_rank : int(self._counts[1])].astype(np.int64)
        heads = steps[self._rows["before"][steps] < self.first - self.base]
        return heads[GrownRows(self._moment()).gather(heads + self.base, ("step",))["step"] > 0]

    # -- moments -------------------------------------------------------------------------------------------

    def anchors(self, tails: Tails) -> GrownAnchors:
        """The present moment, and what of it may be drawn. `tails` finds waiting observations."""
        self._let_go()
        rows, base = self._rows, self.base
        steps, flags = rows["steps"], rows["flags"]
        high = int(self._counts[1])
        left, rank = _NONE, _NONE
        if self.layout.schema.observations:
            left, rank = links.settle(
                self._left,
                self._left_rank,
                steps,
                self._settled,
                high,
                flags,
                rows["after"],
                rows["final"],
                lay.TERMINATED,
            )
        self._left, self._left_rank, self._settled = left, rank, high
        waiting = self._find_waiting(left[(flags[left] & lay.HAS_NEXT) != 0] + base, tails)
        moment = self._moment()
        out = ~among(left, waiting.slots - base)
        truncated = int(((flags[left] & lay.TRUNCATED) != 0)[out].sum())
        unseen = int(out.sum()) - truncated
        excluded = rank[out]
        beheaded = 0
        if self._reach:
            edge = links.follow(self._edges, self._reach, self.stop - base, rows["after"])
            excluded = np.union1d(excluded, np.searchsorted(steps[:high], edge))
            beheaded = len(excluded) - truncated - unseen
        return GrownAnchors(moment, steps, self._low_rank, high, excluded, truncated, unseen, beheaded)

    def _find_waiting(self, wanted: Slots, tails: Tails) -> Waiting:
        """The next observations of the steps, as far as they were found in tails. A step's waiting observation never
        changes, so each is read once."""
        known = self._waiting.among(wanted)
        missing = wanted[~among(wanted, known.slots)]
        if len(missing):
            ids, parts = self._ids(missing), [known]
            for found, block in tails(ids):
                mine = np.flatnonzero(ids["writer"] == found["writer"][0])
                # Rows of one writer come in their order, so that their numbers are sorted as their slots are.
                slots = missing[mine[np.searchsorted(ids["seq"][mine], found["seq"])]]
                parts.append(Waiting.of(slots, block, np.arange(len(slots)), self.layout))
            known = Waiting.joined(parts)
        self._waiting = known
        return known

    def _ids(self, slots: Slots) -> Ids:
        """StepIds `[n]` of rows, by the extents that brought them."""
        extents = self._extents[: self._extent_count]
        mine = extents[np.searchsorted(extents[:, 2], slots, side="right") - 1]
        return make_ids(mine[:, 0], mine[:, 1] + slots - mine[:, 2])

    def _moment(self) -> Moment:
        r = self._rows
        address, of, older = self._copies
        return Moment(
            **{n: r[n] for n in _ROWS[:7]},
            layout=self.layout,
            base=self.base,
            first=self.first,
            stop=self.stop,
            keys=self._keys[: int(self._counts[0])],
            blocks=self._blocks,
            planes=self._planes,
            patch=r["patch"] if self._has_patches else None,
            patches=self._patches,
            patch_address=address,
            patch_block=of,
            patch_older=older,
            extents=self._extents[: self._extent_count],
            by_writer=self._by_writer,
            values=self._values,
            waiting=self._waiting,
        )

    # -- letting go ----------------------------------------------------------------------------------------

    def _let_go(self) -> None:
        """Moves the window's lower edge, and gives up the arrays and blocks behind it when they are the larger part."""
        rows = self._rows
        low = self.first - self.base
        self.first = max(self.first, self.stop - (self.stop if self.last is None else self.last))
        high = self.first - self.base
        fresh = rows["cuts"][: int(self._counts[2])].astype(np.int64)
        self._counts[2] = 0
        if self._reach:
            crossed = links.cross_edge(low, high, rows["after"], rows["flags"], lay.FINAL)
            edges = np.concatenate([self._edges, crossed, fresh])
            self._edges = edges[edges >= high]
        if high > low:
            steps = rows["steps"][self._low_rank : int(self._counts[1])]
            self._low_rank += int(np.searchsorted(steps, high))
            self._settled = max(self._settled, self._low_rank)
            keep = self._left >= high
            self._left, self._left_rank = self._left[keep], self._left_rank[keep]
            if high > max(KEPT_ROWS, self.stop - self.first):
                self._compact(high)
        if self._patches > max(KEPT_ROWS, 2 * (self.stop - self.base)):
            self._keep_blocks()

    def _compact(self, shift: int) -> None:
        """New arrays for the rows from `shift` on. Older views keep the old ones."""
        count, ranks = self.stop - self.first, self._low_rank
        old = self._rows
        self._rows = {n: a[shift : shift + count].copy() for n, a in old.items() if n not in ("steps", "cuts")}
        self._rows["cuts"] = np.empty(count, np.int32)
        self._rows["steps"] = np.empty(count, np.int32)
        live = int(self._counts[1]) - ranks
        self._rows["steps"][:live] = old["steps"][ranks : ranks + live] - shift
        self._counts[1] = live
        self._settled -= ranks
        self._left, self._left_rank = self._left - shift, self._left_rank - ranks
        self._edges = self._edges - shift
        self._low_rank = 0
        self.base += shift
        for link in ("before", "after", "final"):
            self._rows[link] = _shifted(self._rows[link], shift)
        self._keep_episodes(shift)
        self._keep_blocks()
        k = int(np.searchsorted(self._extents[: self._extent_count, 2], self.first, side="right")) - 1
        self._extents = self._extents[max(k, 0) : self._extent_count].copy()
        self._extent_count = len(self._extents)
        kept = {}
        for writer, table in self._by_writer.items():
            held = table[:, : self._writer_extents[writer]]
            held = held[:, held[1] + held[2] > self.first]
            if held.shape[1]:
                kept[writer] = held.copy()
        self._by_writer = kept
        self._writer_extents = {writer: table.shape[1] for writer, table in kept.items()}

    def _keep_episodes(self, shift: int) -> None:
        """Forgets the episodes that have no row left."""
        group = self._rows["group"]
        used = np.unique(group[group >= 0])
        number = np.full(int(self._counts[0]) + 1, -1, np.int32)
        number[used] = np.arange(len(used))
        self._rows["group"] = number[group]
        self._keys = self._keys[used]
        self._newest_step = self._newest_step[used]
        self._newest = _shifted(self._newest[used], shift)
        self._ending = _shifted(self._ending[used], shift)
        self._counts[0] = len(used)
        self._table = np.full(1 << max(6, (4 * len(used)).bit_length()), -1, np.int64)
        links.place_keys(self._keys, len(used), self._table)

    def _keep_blocks(self) -> None:
        """Forgets the blocks and changed copies that no row refers to."""
        n = self.stop - self.base
        address, of, _ = self._copies
        block, patch = self._rows["block"], self._rows.get("patch")
        chosen = _NONE if patch is None else np.unique(patch[:n][patch[:n] >= 0])
        used = np.union1d(np.unique(block[:n]), of[chosen])
        number = np.full(len(self._blocks) + 1, -1, np.int32)
        number[used] = np.arange(len(used))
        self._blocks = [self._blocks[k] for k in used.tolist()]
        self._block_of = {id(b): k for k, b in enumerate(self._blocks)}
        self._planes = self._planes[used]
        self._rows["block"] = np.empty_like(block)
        self._rows["block"][:n] = number[block[:n]]
        if patch is not None:
            copy_of = np.full(self._patches + 1, -1, np.int32)
            copy_of[chosen] = np.arange(len(chosen))
            self._rows["patch"] = np.full_like(patch, -1)
            self._rows["patch"][:n] = copy_of[patch[:n]]
            self._copies = [address[chosen], number[of[chosen]], np.full(len(chosen), -1, np.int32)]
            self._patches = len(chosen)


def _room(array: Array, rows: int) -> Array:
    """The array, or a copy with room for so many rows: twice as many at least, so that growing is cheap."""
    if rows <= len(array):
        return array
    out = np.empty((max(rows, 2 * len(array)), *array.shape[1:]), array.dtype)
    out[: len(array)] = array
    return out


def _shifted(index: NDArray[Any], shift: int) -> NDArray[np.int32]:
    out = index - np.int32(shift)
    return np.where(out < 0, np.int32(-1), out).astype(np.int32)


def _groups(keys: NDArray[Any]) -> list[NDArray[np.int64]]:
    """The places of equal keys, for each key."""
    if not len(keys):
        return []
    order = np.argsort(keys, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(keys[order])) + 1)
