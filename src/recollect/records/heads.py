"""Runs whose first steps are missing, and the frame stacks that would reach into what is missing."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from recollect.schema import Frames, Schema
from recollect.view import Slots


def deepest_stack(schema: Schema) -> int:
    """Planes of the deepest frame stack; 1 without any."""
    return max((leaf.field.stack for leaf in schema.leaves if isinstance(leaf.field, Frames)), default=1)


def beheaded(depth: int, step: NDArray[np.int32], run_start: Slots, run_stop: Slots, rank_slot: Slots | None) -> Slots:
    """Slots of the rows whose stack of `depth` planes reaches back to steps before their run that are not in the view.

    A run that begins with step 0 is padded, as its episode was; one that begins later was cut off, by eviction or
    because the cut begins there, and padding would make up what was seen.

    Args:
        step: `[n]` step index by slot.
        run_start, run_stop: `[runs]` ranks; `rank_slot` rank → slot, None when they are the same.
    """
    if depth < 2 or not len(run_start):
        return np.empty(0, np.int64)
    heads = run_start if rank_slot is None else rank_slot[run_start]
    cut = step[heads] > 0
    ranks = run_start[cut][:, None] + np.arange(depth - 1)
    ranks = ranks[ranks < run_stop[cut][:, None]]
    return ranks if rank_slot is None else rank_slot[ranks]
