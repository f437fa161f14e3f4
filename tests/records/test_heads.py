"""Which rows' frame stacks reach back to steps that a view lacks, against brute force."""

from __future__ import annotations

import numpy as np
import pytest

from recollect.records.heads import beheaded


@pytest.mark.parametrize("depth", [1, 2, 4])
@pytest.mark.parametrize("ranked", [False, True])
def test_rows_that_reach_before_a_run_that_begins_late_are_found(depth: int, ranked: bool) -> None:
    runs = [(0, 6), (3, 2), (0, 1), (1, 5), (9, 1)]
    """First step and length of each run."""
    step = np.concatenate([np.arange(first, first + count) for first, count in runs]).astype(np.int32)
    stop = np.cumsum([count for _, count in runs])
    start = stop - [count for _, count in runs]
    slots = np.random.default_rng(0).permutation(len(step)) if ranked else None
    by_slot = np.empty_like(step)
    by_slot[np.arange(len(step)) if slots is None else slots] = step
    want = [
        rank if slots is None else int(slots[rank])
        for (first, count), at in zip(runs, start.tolist(), strict=True)
        for rank in range(at, at + count)
        # The oldest plane it needs is of a step of this episode that came before the run.
        if max(0, int(step[rank]) - depth + 1) < first
    ]
    assert sorted(beheaded(depth, by_slot, start, stop, slots).tolist()) == sorted(want)


def test_an_empty_view_has_none() -> None:
    nothing = np.empty(0, np.int64)
    assert not len(beheaded(4, np.empty(0, np.int32), nothing, nothing, None))
