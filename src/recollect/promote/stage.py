"""Staging: rows, facts and waiting observations are written where no reader looks yet."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from recollect.cold.arrow import to_batches
from recollect.cold.compact import full_rows
from recollect.cold.dataset import FACTS, Datasets
from recollect.hot.read.store import HotStore
from recollect.promote.plan import Plan
from recollect.promote.statistics import Statistics
from recollect.promote.upkeep import row_bytes
from recollect.records.block import Block
from recollect.records.build import build_view, unchanged
from recollect.records.layout import Layout
from recollect.schema.arrow import arrow_schema
from recollect.view import Cut, Extent, Fact, FactIndex
from recollect.view.reach import by_writer

Progress = Callable[[int, int], None]
Piece = tuple[Block, int, int]
SHORT_ROWS, JOINED_ROWS = 256, 8192
"""Pieces shorter than the first are copied together, up to the second, before they become a batch."""


@dataclass(frozen=True)
class Staged:
    """What was staged for a plan.

    Attributes:
        todo: the plan; `fragments` its rows; `stage` the name that its facts and tails carry, where `brought` names
            them; `statistics` of its rows alone.
    """

    todo: Plan
    fragments: list[Any]
    stage: str
    brought: list[str]
    statistics: Statistics


def stage(
    data: Datasets, store: HotStore, layout: Layout, todo: Plan, facts: list[Fact], progress: Progress | None
) -> Staged:
    """Writes rows, facts and tails of `todo`. Rows stream: batches of some megabytes at a time.

    Args:
        facts: those of the plan that are still there.
        progress: called with rows written and rows to write.
    """
    name, now = uuid.uuid4().hex, time.time_ns()
    brought: list[str] = []
    statistics = Statistics(layout, None)
    fragments = []
    if todo.rows:
        # The buffer's own: types and encodings stay those that it was made with.
        form = pa.schema([data.steps.schema.field(f.name) for f in arrow_schema(layout.schema)])
        rows = _batches(pieces_of(store, todo.extents, layout), layout, form, statistics, todo.rows, progress)
        fragments = data.stage_steps(rows, form, max_rows=full_rows(row_bytes(layout)))
    if todo.facts:
        data.append("facts", _facts_table(facts, name, now))
        brought.append("facts")
    tails = _tails(store, layout, todo)
    if tails is not None:
        form = data.dataset("tails").schema
        inner = pa.schema(list(form)[2:])
        batches = list(to_batches(layout, [(tails, 0, len(tails.records))], inner, observations_only=True))
        table = pa.Table.from_batches(batches, schema=inner)
        named = [pa.array([value] * len(table), form.field(k).type) for k, value in enumerate((name, now))]
        data.append("tails", pa.table([*named, *table.columns], schema=form))
        brought.append("tails")
    return Staged(todo, fragments, name, brought, statistics)


def facts_of(todo: Plan, facts: Mapping[int, Callable[[], list[Fact]]]) -> tuple[list[Fact], int]:
    """The facts of a plan that are still there, and how many are not."""
    found = [f for w, start, _ in todo.facts for f in facts[w]() if f.seq >= start]
    return found, sum(stop - start for _, start, stop in todo.facts) - len(found)


def pieces_of(store: HotStore, extents: Iterable[Extent], layout: Layout) -> list[Piece]:
    """The blocks of sorted extents, in order. A writer's log is looked through once, however many ranges of it there
    are."""
    out: list[Piece] = []
    for writer, ranges in by_writer(extents).items():
        seq, k = ranges[0][0], 0
        for block, start, stop in store.pieces((Extent(writer, seq, ranges[-1][1]),), layout):
            shift, end = start - seq, seq + stop - start
            while k < len(ranges) and ranges[k][0] < end:
                low, high = max(ranges[k][0], seq), min(ranges[k][1], end)
                if low < high:
                    out.append((block, low + shift, high + shift))
                if ranges[k][1] > end:
                    break
                k += 1
            seq = end
    return out


def joined(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """The same rows in order, with short neighbours of one block copied together: a batch for each would cost more
    than the rows do. What their fields point at, planes and heap, is not copied."""
    waiting: list[Piece] = []
    rows = 0

    def flush() -> Iterator[Piece]:
        if len(waiting) == 1:
            yield waiting[0]
        elif waiting:
            block = waiting[0][0]
            index = np.concatenate([np.arange(start, stop) for _, start, stop in waiting])
            yield Block(block.records[index], block.planes, block.heap, block.owner), 0, len(index)
        waiting.clear()

    for piece in pieces:
        block, start, stop = piece
        if waiting and (block is not waiting[0][0] or stop - start >= SHORT_ROWS or rows + stop - start > JOINED_ROWS):
            yield from flush()
            rows = 0
        waiting.append(piece)
        rows += stop - start
        if rows >= SHORT_ROWS and len(waiting) == 1:
            yield from flush()
            rows = 0
    yield from flush()


def _batches(
    pieces: list[Piece], layout: Layout, form: Any, statistics: Statistics, total: int, progress: Progress | None
) -> Iterator[Any]:
    done = 0
    for block, start, stop in joined(pieces):
        at = start
        for batch in to_batches(layout, [(block, start, stop)], form):
            statistics.add_fields(block, at, at + batch.num_rows)
            at += batch.num_rows
            done += batch.num_rows
            yield batch
            if progress is not None:
                progress(done, total)


def _facts_table(facts: list[Fact], stage: str, now: int) -> Any:
    return pa.table(
        {
            "stage": [stage] * len(facts),
            "staged": pa.array([now] * len(facts), FACTS.field("staged").type),
            "writer": [f.writer for f in facts],
            "seq": [f.seq for f in facts],
            "time": pa.array([f.time_ns for f in facts], pa.timestamp("ns", tz="UTC")),
            "episode_writer": [f.episode.writer for f in facts],
            "episode": [f.episode.counter for f in facts],
            "step_writer": [f.step.writer if f.step else None for f in facts],
            "step_seq": [f.step.seq if f.step else None for f in facts],
            "values": [json.dumps(f.values, ensure_ascii=False) for f in facts],
        },
        schema=FACTS,
    )


def _tails(store: HotStore, layout: Layout, todo: Plan) -> Block | None:
    """Observations that follow new steps whose successor is not in the plan."""
    found: list[Block] = []

    def keep(ids: Any) -> tuple[Any, Block | None]:
        got, block = store.tails(ids, layout)
        if block is not None:
            found.append(block)
        return got, block

    if layout.schema.observations and todo.rows:
        pieces = pieces_of(store, todo.extents, layout)
        build_view(layout, Cut(todo.extents, ()), pieces, keep, FactIndex, unchanged, "")
    return found[0] if found else None
