"""The compiled walks along the links of views that grow; `links` says why they never see what came later."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit


@njit(nogil=True, cache=True)
def _later(i: Any, high: int, after: Any, final: Any) -> Any:
    """The row after row `i` in its run, which is its final row where no step follows; -1 for none."""
    a, f = after[i], final[i]
    if 0 <= a < high:
        return np.int64(a)
    if 0 <= f < high and not 0 <= after[f] < high:
        return np.int64(f)
    return np.int64(-1)


@njit(nogil=True, cache=True)
def _is_beside(i: Any, low: int, high: int, before: Any, after: Any, group: Any, flags: Any, final_bit: int) -> Any:
    """Whether a row is in no run: a hole, or a final row amid its episode."""
    return group[i] < 0 or ((flags[i] & final_bit) != 0 and before[i] >= low and 0 <= after[i] < high)


@njit(nogil=True, cache=True)
def walk_window(
    slots: Any,
    ahead_of: int,
    base: int,
    first: int,
    stop: int,
    before: Any,
    after: Any,
    final: Any,
    group: Any,
    flags: Any,
    final_bit: int,
    out: Any,
) -> None:
    """Fills `out` `[n, W]` with the slots of the rows around each slot in its run, -1 for none; the slot itself stands
    in column `ahead_of`."""
    low, high, width = first - base, stop - base, out.shape[1]
    for k in range(slots.shape[0]):
        out[k] = -1
        slot = slots[k]
        if slot < first or slot >= stop:
            continue
        i = np.int64(slot - base)
        if _is_beside(i, low, high, before, after, group, flags, final_bit):
            continue
        out[k, ahead_of] = slot
        j = i
        for c in range(ahead_of - 1, -1, -1):
            j = np.int64(before[j])
            if j < low:
                break
            out[k, c] = j + base
        j = i
        for c in range(ahead_of + 1, width):
            j = np.int64(-1) if flags[j] & final_bit else _later(j, high, after, final)
            if j < 0:
                break
            out[k, c] = j + base


@njit(nogil=True, cache=True)
def walk_around(
    slots: Any,
    base: int,
    first: int,
    stop: int,
    before: Any,
    after: Any,
    final: Any,
    group: Any,
    flags: Any,
    final_bit: int,
    out: Any,
) -> None:
    """Fills `out` `[2, n]` with the numbers of rows before and after each slot in its run."""
    low, high = first - base, stop - base
    for k in range(slots.shape[0]):
        out[0, k] = out[1, k] = 0
        slot = slots[k]
        if slot < first or slot >= stop:
            continue
        i = np.int64(slot - base)
        if _is_beside(i, low, high, before, after, group, flags, final_bit):
            continue
        j = np.int64(before[i])
        while j >= low:
            out[0, k] += 1
            j = np.int64(before[j])
        j = i
        while True:
            j = np.int64(-1) if flags[j] & final_bit else _later(j, high, after, final)
            if j < 0:
                break
            out[1, k] += 1
