"""From blocks to a view: every row's episode, its successor, and whether it may be drawn."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from recollect.records import layout as lay
from recollect.records.block import Block
from recollect.records.layout import Layout
from recollect.records.rows import PackedRows
from recollect.view import AnchorList, Cut, FactIndex, Ids, Runs, Slots, StepId, View

Tails = Callable[[Ids], tuple[Ids, Block | None]]
"""Given the ids of steps that came with a next observation and have no successor in the cut: the ids that were found
and a block with one row each."""


Changed = Callable[[PackedRows, Callable[[], FactIndex]], tuple[Slots, Block] | None]
"""Given the rows and what loads the facts: sorted slots of the rows that facts changed, and their patched copies."""


def unchanged(rows: PackedRows, facts: Callable[[], FactIndex]) -> None:
    """For rows that no fact changes."""


def group_by_episode(rows: PackedRows) -> Any:
    """Which episode each row belongs to; see `kernels.group_rows` for what is returned."""
    from recollect.records import kernels  # numba is loaded when the first view is built, not when a workspace opens

    at = [rows.layout.offset(c) for c in ("flags", "episode_writer", "episode", "step")]
    return kernels.group_rows(rows.starts, rows.bases, rows.layout.itemsize, len(rows), *at, lay.HOLE, lay.FINAL)


def build_view(
    layout: Layout,
    cut: Cut,
    pieces: Sequence[tuple[Block, int, int]],
    tails: Tails,
    facts: Callable[[], FactIndex],
    changed: Changed,
    name: str,
) -> View:
    """A view of the rows of `pieces`, which must be those of `cut` in its order.

    Args:
        tails: finds waiting observations.
        facts: loads the facts of the cut when they are first asked for.
        changed: makes patched copies of the rows that step facts overlay.
        name: shown to people.
    """
    from recollect.records import kernels

    plain = PackedRows(layout, pieces, cut.extents)
    n = len(plain)
    group, step, flags, keys, counts, linear = group_by_episode(plain)
    order = np.empty(0, np.int64) if linear else kernels.order_rows(group, step, flags, counts, lay.FINAL)
    run, rank, run_start, run_stop, successor, kept = kernels.link_rows(order, linear, group, step, flags, lay.FINAL)
    successor = successor.astype(np.int64)
    is_final = (flags & lay.FINAL) != 0
    row = (group >= 0) & ~is_final
    waiting = np.flatnonzero(row & ((flags & lay.HAS_NEXT) != 0) & (successor < 0))
    block: Block | None = None
    if len(waiting):
        wanted = plain.ids(waiting)
        found, block = tails(wanted)
        place = {StepId(*i): k for k, i in enumerate(found.tolist())}
        for slot, i in zip(waiting.tolist(), wanted.tolist(), strict=True):
            k = place.get(StepId(*i))
            if k is not None:
                successor[slot] = n + k
    drawable = row.copy()
    truncated = (flags & lay.TRUNCATED) != 0
    terminated = (flags & lay.TERMINATED) != 0
    left = np.zeros(n, np.bool_)
    if layout.schema.observations:
        left = row & ~terminated & (successor < 0)
        drawable &= ~left
    rows = PackedRows(layout, pieces, cut.extents, tails=block, changed=changed(plain, facts))
    return View(
        schema=layout.schema,
        cut=cut,
        rows=rows,
        episodes=Runs(
            run,
            None if linear else rank,
            None if linear else kept,
            run_start,
            run_stop,
            successor,
            group,
            keys,
            is_final,
        ),
        anchors=AnchorList(
            None if drawable.all() else np.flatnonzero(drawable),
            n,
            undrawable_truncated=int((left & truncated).sum()),
            undrawable_open=int((left & ~truncated).sum()),
        ),
        load_facts=facts,
        name=name,
    )
