"""`Rotation`: views of a version that is larger than the cache, made of the blocks that are resident for a while."""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recollect.cache.edges import Summary, summarize, wanted_rows, whole_cut
from recollect.cache.schedule import Schedule
from recollect.cache.spans import Span, live_pieces, place_rows
from recollect.cold.arrow import decode
from recollect.cold.fragments import read_rows
from recollect.errors import ArgumentError, DiskFull
from recollect.records.along import without_beheaded
from recollect.records.block import Block
from recollect.records.heads import deepest_stack
from recollect.records.joined import Part, join_views
from recollect.records.layout import Layout
from recollect.schema import Schema
from recollect.view import Cut, Extent, View

NEAR = 256
"""Rows that are needed of another block are read together when no more than so many lie between them."""
SPARE = 2
"""Blocks that take room beside the resident ones: the next one, and the last one while batches drawn from it wait."""


@dataclass(frozen=True)
class Version:
    """One version of a buffer, before anything of it is decoded.

    Attributes:
        name: for people; `cut` what was promoted.
        spans: its blocks; `live` by fragment, the rows that were not deleted.
        decode: gives the block of a span; `build` the view of pieces and their cut.
        deleted: whether rows of the cut may be missing.
    """

    name: str
    cut: Cut
    layout: Layout
    spans: Sequence[Span]
    live: Sequence[NDArray[np.int64] | None]
    decode: Callable[[Span], tuple[Block, bool]]
    build: Callable[[Cut, list[tuple[Block, int, int]]], View]
    deleted: bool


@dataclass(frozen=True)
class Rotation:
    """A version whose blocks take turns in the cache. Give it to a loader; `open_buffer(...).rotate(...)` makes one.

    Attributes:
        version: what it draws from.
        resident_bytes: bytes that decoded blocks may take.
        reuse: how often a row is drawn while it is resident, on average.
    """

    version: Version
    resident_bytes: int
    reuse: float

    @property
    def schema(self) -> Schema:
        return self.version.layout.schema

    def bind(
        self, *, seed: int, batch_size: int, reach: int, depth: int = 1, stack: int = 1, epochs: int | None = None
    ) -> BoundRotation:
        """The source of views for one loader. Reads the system columns of every row.

        Args:
            reach: steps after an anchor that its windows hold.
            depth: steps up to an anchor that are read, itself included, where that is more than the schema's stacks.
            stack: steps of its deepest stack, all of which must be there.
            epochs: every row has exactly so many turns; endless, and about `reuse` draws a turn, when None.

        Raises:
            DiskFull: `resident_bytes` has no room for one block and the spare ones.
        """
        spans = self.version.spans
        largest = max(s.bytes for s in spans)
        resident = min(len(spans), self.resident_bytes // largest - SPARE)
        if resident < 1:
            raise DiskFull(
                f"rotation keeps at least {1 + SPARE} blocks of up to {largest:,} bytes, and "
                f"{self.resident_bytes:,} were given",
                remedy=f"Give it {(1 + SPARE) * largest:,} bytes or more: RECOLLECT_CACHE_BYTES, or resident_bytes=",
            )
        if epochs is None:
            return BoundRotation(self.version, seed, batch_size, reach, depth, stack, resident, self.reuse)
        from recollect.cache.passes import Passes

        return Passes(self.version, seed, batch_size, reach, depth, stack, resident, epochs)


class BoundRotation:
    """Successive views of the resident blocks: which ones depends on the rows, the seed and the batch's number alone.

    A block brings along copies of the rows of other blocks that its windows reach, so that every row is drawn as it
    would be if all were resident, and no row that would not be.
    """

    def __init__(
        self,
        version: Version,
        seed: int,
        batch_size: int,
        reach: int,
        depth: int,
        stack: int,
        resident: int,
        reuse: float,
    ) -> None:
        self._version, self._batch, self._stack = version, batch_size, stack
        layout, depth = version.layout, max(depth, deepest_stack(version.layout.schema))
        self._summaries: list[Summary] = [
            summarize(span, version.live[span.index], layout, reach + 1, depth) for span in version.spans
        ]
        self.cut = whole_cut(self._summaries, version.cut, version.name, deleted=version.deleted)
        self._units = [k for k, s in enumerate(self._summaries) if s.rows]
        self._wanted = wanted_rows(self._summaries)
        self._rows = np.array([self._summaries[k].rows for k in self._units], np.int64)
        if not len(self._units):
            raise ArgumentError(f"{version.name} has no rows to draw from")
        dwell = max(1, round(reuse * float(self._rows.mean()) / batch_size))
        self._schedule = Schedule(seed, len(self._units), min(resident, len(self._units)), dwell)
        self._parts: dict[int, Part] = {}
        self._turn = -1
        self._view: View | None = None
        self._known: WeakValueDictionary[int, View] = WeakValueDictionary()
        """Turn → its view, as long as a batch is still to be made of it."""
        self._next: tuple[int, Future[Part]] | None = None
        self._pool = ThreadPoolExecutor(1, "recollect-rotate")
        self._loads = self._hits = 0
        self._waited = 0.0

    # -- views ---------------------------------------------------------------------------------------------

    def at(self, step: int) -> View:
        """The view that batch `step` is drawn from. The next block is decoded while batches are drawn from this one."""
        return self._go_to(self._schedule.turn_of(step))

    def _go_to(self, turn: int) -> View:
        if turn == self._turn and self._view is not None:
            return self._view
        units = self._coming(turn)
        if self._view is not None and set(units) == set(self._parts):
            self._turn = turn
            return self._view
        self._parts = {u: p for u, p in self._parts.items() if u in units}
        started = time.monotonic()
        for unit in units:
            if unit not in self._parts:
                self._parts[unit] = self._take(unit)
        self._waited += time.monotonic() - started
        # In the order of the buffer, so that a view depends on which blocks it has, not on when they came.
        chosen = sorted(self._parts)
        extents = tuple(e for u in chosen for e in self._summaries[self._units[u]].extents)
        joined = join_views([self._parts[u] for u in chosen], Cut(extents, self.cut.facts), self._version.name)
        self._view = without_beheaded(joined, self._stack)
        self._known[turn] = self._view
        self._turn = turn
        self._look_ahead(turn)
        return self._view

    def _coming(self, turn: int) -> tuple[int, ...]:
        """The blocks of a turn."""
        return self._schedule.resident_at(turn)

    def _look_ahead(self, turn: int) -> None:
        coming = [u for u in self._coming(turn + 1) if u not in self._parts]
        if coming and self._next is None:
            self._next = (coming[0], self._pool.submit(self._load, coming[0]))

    def _take(self, unit: int) -> Part:
        ahead, self._next = self._next, None
        if ahead is not None:
            # Also when it is another one: two at a time would take another block's room.
            with contextlib.suppress(DiskFull):  # the room that was lacking then may be there by now
                loaded = ahead[1].result()
                if ahead[0] == unit:
                    return loaded
                del loaded
        return self._load(unit)

    def _load(self, unit: int) -> Part:
        version, summary = self._version, self._summaries[self._units[unit]]
        span = version.spans[self._units[unit]]
        block, fresh = version.decode(span)
        self._loads += 1
        self._hits += not fresh
        pieces = live_pieces([span], [block], version.live)
        own = place_rows(pieces, Cut(summary.extents, self.cut.facts), version.name, deleted=False)
        others = self._others(self._wanted[self._units[unit]])
        extents = [*own.extents]
        for other in others:
            ids = other.records[["writer", "seq"]].tolist()
            extents += [Extent(w, s, s + 1) for w, s in ids]
            pieces.append((other, 0, len(other.records)))
        return Part(version.build(Cut(tuple(extents), self.cut.facts), pieces), summary.rows)

    def _others(self, wanted: Sequence[tuple[int, int]]) -> list[Block]:
        """Copies of single rows of other blocks; close ones are read together."""
        out, at = [], 0
        while at < len(wanted):
            unit, first = wanted[at]
            end = at + 1
            while end < len(wanted) and wanted[end][0] == unit and wanted[end][1] - wanted[end - 1][1] <= NEAR:
                end += 1
            span = self._version.spans[unit]
            last = wanted[end - 1][1]
            batches = list(read_rows(span.fragment, span.columns, self._version.layout, first, last + 1))
            rows = pa.array([row - first for _, row in wanted[at:end]])
            table = pa.Table.from_batches(batches).take(rows).combine_chunks()
            out.append(decode(self._version.layout, table.to_batches()))
            at = end
        return out

    # -- going on ------------------------------------------------------------------------------------------

    def mark(self, view: View) -> dict[str, Any]:
        """Names one of its views in plain values."""
        s = self._schedule
        turn = next(t for t, known in self._known.items() if known is view)
        return {"turn": turn, "resident": s.resident, "dwell": s.dwell, "blocks": s.units, "rows": self._digest()}

    def _digest(self) -> str:
        return hashlib.sha256(json.dumps(self.cut.to_dict(), sort_keys=True).encode()).hexdigest()[:40]

    def restore(self, marks: Sequence[Mapping[str, Any]]) -> list[View]:
        """The views that marks name; the source goes on from the last.

        Raises:
            ArgumentError: they were taken on other rows, or with other room for them.
        """
        s = self._schedule
        mine = {"rows": self._digest(), "blocks": s.units, "resident": s.resident, "dwell": s.dwell}
        for mark in marks:
            for name, value in mine.items():
                if mark[name] != value:
                    what = "on other rows" if name in ("rows", "blocks") else f"with {name}={mark[name]}, not {value}"
                    raise ArgumentError(
                        f"the state was taken {what}",
                        remedy="Open the same version, with the resident_bytes, reuse and batch size it was taken with",
                    )
        return [self.at(int(mark["turn"]) * s.dwell) for mark in marks]

    def close(self) -> None:
        """Waits for a block that is being decoded, and lets go of the others."""
        self._pool.shutdown(wait=True, cancel_futures=True)
        self._parts, self._view, self._next = {}, None, None

    # -- what it did ---------------------------------------------------------------------------------------

    def stats(self, step: int) -> dict[str, Any]:
        """What was resident, and how far from uniform the draws of the first `step` batches were.

        See `Loader.stats`. Of the schedule alone, so that a loader that was resumed says the same.
        """
        s = self._schedule
        share = np.zeros(s.units)
        whole, rest = divmod(step, s.dwell)
        for turn in range(whole + (rest > 0)):
            here = list(s.resident_at(turn))
            share[here] += (s.dwell if turn < whole else rest) * self._rows[here] / self._rows[here].sum()
        even = self._rows / self._rows.sum()
        drawn = share / share.sum() if step else even
        resident = list(s.resident_at(s.turn_of(max(0, step - 1))))
        return {
            "total_rows": int(self._rows.sum()),
            "resident_rows": int(self._rows[resident].sum()),
            "blocks": s.units,
            "resident_blocks": len(resident),
            "rotations": s.turn_of(max(0, step - 1)) if s.resident < s.units else 0,
            "loads": self._loads,
            "hit_rate": self._hits / self._loads if self._loads else 1.0,
            "waited_s": self._waited,
            "distance_from_uniform": float(np.abs(drawn - even).sum() / 2),
            "visited_share": float(self._rows[share > 0].sum() / self._rows.sum()),
            "horizon_batches": s.dwell * s.resident,
            "pass_batches": s.dwell * s.units,
        }
