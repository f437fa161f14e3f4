"""`PackedRows`: the rows of a view, wherever its blocks lie."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recollect.records.block import Block
from recollect.records.layout import Layout, column
from recollect.records.plan import GatherPlan, Output
from recollect.view.ids import ID_DTYPE, Extent, Ids, Slots, merged


class PackedRows:
    """Rows addressed by slot over a list of blocks.

    Slots `[0, n)` are the cut's rows in order. Behind them lie rows that can be read but are nobody's slot: the
    observations that wait in open tails, and copies of rows that late facts changed.

    Args:
        layout: the record all blocks share.
        pieces: (block, start, stop): rows of a block that follow each other in the view.
        extents: the cut's extents, for lookups by id.
        tails: block of waiting observations.
        changed: (slots, block): row k of the block stands for slot k of the sorted slots.
    """

    def __init__(
        self,
        layout: Layout,
        pieces: Sequence[tuple[Block, int, int]],
        extents: Sequence[Extent],
        tails: Block | None = None,
        changed: tuple[Slots, Block] | None = None,
    ) -> None:
        self.layout = layout
        self.count = sum(stop - start for _, start, stop in pieces)
        behind = [(b, 0, len(b.records)) for b in (tails, changed[1] if changed else None) if b is not None]
        self._pieces = [p for p in [*pieces, *behind] if p[2] > p[1]]
        sizes = [stop - start for _, start, stop in self._pieces]
        self.starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        if not self._pieces:
            self.starts = np.zeros(2, np.int64)
        self.bases = np.array(
            [b.records.ctypes.data + start * layout.itemsize for b, start, _ in self._pieces] or [0], np.int64
        )
        self.planes = np.zeros((max(1, len(layout.wide)), max(1, len(self._pieces))), np.int64)
        for k, leaf in enumerate(layout.wide):
            for j, (b, _, _) in enumerate(self._pieces):
                self.planes[k, j] = b.planes[leaf.path].ctypes.data
        self._changed = changed[0] if changed else None
        after = self.count + (len(tails.records) if tails is not None else 0)
        self._targets = after + np.arange(0 if self._changed is None else len(self._changed))
        self._extents = merged(extents)
        self._extent_slots = np.cumsum([0] + [e.stop - e.start for e in self._extents])
        self._places: dict[int, tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]] | None = None
        self._plans: dict[tuple[str, ...], GatherPlan] = {}

    def __len__(self) -> int:
        return self.count

    @property
    def extent(self) -> int:
        """Slots that can be read, those behind the view's rows included."""
        return int(self.starts[-1])

    def pieces(self, start: int, stop: int) -> list[tuple[Block, int, int]]:
        """The blocks that hold slots `start` to `stop`, in order."""
        out = []
        for k, (block, first, _) in enumerate(self._pieces):
            low, high = max(start, int(self.starts[k])), min(stop, int(self.starts[k + 1]))
            if low < high:
                shift = first - int(self.starts[k])
                out.append((block, low + shift, high + shift))
        return out

    def resolve(self, slots: Slots) -> Slots:
        """Addresses of the rows to read: changed rows are redirected to their copies."""
        if self._changed is None:
            return slots
        at = np.searchsorted(self._changed, slots)
        at[at == len(self._changed)] = 0
        hit = self._changed[at] == slots
        return np.where(hit, self._targets[at], slots)

    def gather_into(self, plan: GatherPlan, slots: NDArray[np.int64], arena: NDArray[np.uint8]) -> None:
        """Fills the arena for the slot matrix `[n, columns]` int64, C-contiguous. Releases the GIL."""
        from recollect.records.kernels import gather

        jobs, _, _ = plan.sized(len(slots))
        gather(self.resolve(slots), self.starts, self.bases, self.planes, self.layout.itemsize, jobs, plan.lines, arena)

    def gather(self, slots: Slots, fields: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Columns `[n, *shape]` of fixed-shape fields, single planes for frames, and of the built-in columns.

        `fields` are leaf paths, `terminated`, `truncated`, or system columns such as `time` and `step`. -1 fills.
        """
        key = tuple(fields)
        plan = self._plans.get(key)
        if plan is None:
            plan = self._plans[key] = GatherPlan(self.layout, tuple(self._output(name) for name in fields))
        matrix = np.ascontiguousarray(slots, np.int64).reshape(-1, 1)
        arena = np.empty(plan.sized(len(matrix))[2], np.uint8)
        self.gather_into(plan, matrix, arena)
        return plan.arrays(arena, len(matrix))

    def _output(self, name: str) -> Output:
        if name in ("terminated", "truncated"):
            return Output(name, "flag", name)
        if name in self.layout.schema.by_path:
            return Output(name, "field", name)
        return Output(name, "system", name)

    def spans(self, extent: Extent) -> list[tuple[int, int]]:
        """The slots `[start, stop)` that hold an extent's rows, in its order; shorter where some are not here."""
        out: list[tuple[int, int]] = []
        starts, stops, slots = self._placed(extent.writer)
        seq = extent.start
        k = int(np.searchsorted(starts, seq, side="right")) - 1
        while seq < extent.stop and 0 <= k < len(starts) and starts[k] <= seq < stops[k]:
            first = int(slots[k]) + seq - int(starts[k])
            count = min(extent.stop, int(stops[k])) - seq
            out.append((first, first + count))
            seq, k = seq + count, k + 1
        return out

    def _placed(self, writer: int) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
        """Starts, stops and first slots of a writer's extents, by start: a cut may hold thousands of them."""
        if self._places is None:
            by_writer: dict[int, list[tuple[int, int, int]]] = {}
            for e, slot in zip(self._extents, self._extent_slots.tolist(), strict=False):
                by_writer.setdefault(e.writer, []).append((e.start, e.stop, slot))
            places = {}
            for name, found in by_writer.items():
                starts, stops, slots = np.array(sorted(found), np.int64).T
                places[name] = np.ascontiguousarray(starts), stops, slots
            self._places = places
        none = np.empty(0, np.int64)
        return self._places.get(writer, (none, none, none))

    def locate(self, slot: int, *, raw: bool = False) -> tuple[Block, int]:
        """The block and row of one slot; `raw` looks past late facts to what was first written."""
        at = slot if raw else int(self.resolve(np.array([slot], np.int64))[0])
        k = int(np.searchsorted(self.starts, at, side="right")) - 1
        block, start, _ = self._pieces[k]
        return block, start + at - int(self.starts[k])

    def heap_values(self, slots: Slots, path: str) -> list[bytes | None]:
        """Stored bytes of a heap field for each slot; None where null or where the slot is -1."""
        out: list[bytes | None] = [None] * len(slots)
        optional = self.layout.nulls.get(path)
        for block, rows, places in self._by_block(slots):
            spans = block.records[column(path)][rows]
            heap = block.heap.data
            values = [
                bytes(heap[at : at + count])
                for at, count in zip(spans["at"].tolist(), spans["count"].tolist(), strict=True)
            ]
            there = np.ones(len(rows), np.bool_)
            if optional:
                there = block.records["nulls"][rows, optional[0]] >> np.uint64(optional[1]) & np.uint64(1) == 0
            for place, value, known in zip(places.tolist(), values, there.tolist(), strict=True):
                if known:
                    out[place] = value
        return out

    def _by_block(self, slots: Slots) -> Iterator[tuple[Block, NDArray[np.int64], NDArray[np.int64]]]:
        """The blocks that hold the rows of some slots: the rows in each, and their places among the slots. Slots of -1
        are passed over."""
        places = np.flatnonzero(slots >= 0)
        at = self.resolve(slots[places])
        piece = np.searchsorted(self.starts, at, side="right") - 1
        for part in alike(piece):
            k = int(piece[part[0]])
            block, start, _ = self._pieces[k]
            yield block, at[part] - int(self.starts[k]) + start, places[part]

    def valid(self, slots: Slots, path: str) -> NDArray[np.bool_]:
        """`[n]`: where an optional field is not null; all true for the others."""
        if path not in self.layout.nulls:
            return np.asarray(slots) >= 0
        plan = GatherPlan(self.layout, (Output("v", "valid", path),))
        matrix = np.ascontiguousarray(slots, np.int64).reshape(-1, 1)
        arena = np.empty(plan.sized(len(matrix))[2], np.uint8)
        self.gather_into(plan, matrix, arena)
        return plan.arrays(arena, len(matrix))["v"]

    def ids(self, slots: Slots) -> Ids:
        """StepIds `[n]` of the slots."""
        got = self.gather(slots, ("writer", "seq"))
        out = np.empty(len(got["seq"]), ID_DTYPE)
        out["writer"], out["seq"] = got["writer"], got["seq"]
        return out

    def find(self, ids: Ids) -> Slots:
        """Slots `[n]` of the ids, -1 for ids that are not in the cut."""
        out = np.full(len(ids), -1, np.int64)
        for writer in np.unique(ids["writer"]).tolist():
            starts, stops, slots = self._placed(writer)
            if not len(starts):
                continue
            mine = np.flatnonzero(ids["writer"] == writer)
            seq = ids["seq"][mine]
            k = np.maximum(np.searchsorted(starts, seq, side="right") - 1, 0)
            hit = (starts[k] <= seq) & (seq < stops[k])
            out[mine[hit]] = slots[k[hit]] + seq[hit] - starts[k[hit]]
        return out


def alike(values: NDArray[Any]) -> list[NDArray[np.int64]]:
    """The places of equal values, a group for each."""
    if not len(values):
        return []
    if len(values) == 1 or (values == values[0]).all():
        return [np.arange(len(values))]
    order = np.argsort(values, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(values[order])) + 1)
