"""The compiled loops of views that grow: taking new rows in, walking their links, finding their addresses.

Rows are numbered by index: slot minus the slot of the first row that the arrays hold. A link that was -1 may later be
set, once, to a row that came after every view made by then, so a view reads each link as "-1 unless it lies below my
end", and never sees what came later.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from recollect.records.kernels import _loader, _mix

_load16, _load32, _load64 = _loader(16), _loader(32), _loader(64)


@njit(nogil=True, cache=True)
def place_keys(keys: Any, groups: int, table: Any) -> None:
    """Fills an empty hash table, whose size is a power of two, with the first `groups` keys."""
    mask = table.shape[0] - 1
    for g in range(groups):
        place = _mix(keys[g, 0], keys[g, 1]) & mask
        while table[place] >= 0:
            place = (place + 1) & mask
        table[place] = g


@njit(nogil=True, cache=True)
def take_rows(
    begin: int,
    count: int,
    strict: bool,
    record: Any,
    bits: Any,
    block: int,
    i: int,
    counts: Any,
    address: Any,
    blocks: Any,
    flags: Any,
    group: Any,
    before: Any,
    after: Any,
    final: Any,
    steps: Any,
    cuts: Any,
    table: Any,
    keys: Any,
    newest: Any,
    newest_step: Any,
    ending: Any,
    low: int,
) -> int:
    """Takes in `count` rows of one block, the first at address `begin`, as the rows `i` and on.

    Args:
        strict: stop before a row whose predecessor is not here.
        record: itemsize, and the byte offsets of flags, episode writer, episode and step.
        bits: the flags of holes and of final rows.
        counts: groups, step rows, and rows in `cuts` so far; updated.
        before, after, final: `[rows]` the step before in the same run, the step after it, and the final row after it.
            For a final row `after` is whatever row of its episode came next.
        steps: the rows that are steps. `cuts`: steps after the first of their episode, whose predecessor is not here,
            or lies below row `low`.
        newest, newest_step: per group its newest step (-1 when its row was let go) and that step's index (-1 none).
        ending: per group the final row that is its newest row, -1 none.

    Returns:
        The rows taken.
    """
    mask = table.shape[0] - 1
    itemsize = record[0]
    last_writer, last_counter, g = np.int64(-1), np.int64(-1), -1
    for k in range(count):
        at = begin + k * itemsize
        f = _load16(at + record[1])
        hole, is_final = (f & bits[0]) != 0, (f & bits[1]) != 0
        p, near, s = -1, False, np.int32(0)
        if not hole:
            writer, counter = _load64(at + record[2]), _load64(at + record[3])
            s = np.int32(_load32(at + record[4]))
            if g < 0 or writer != last_writer or counter != last_counter:
                place = _mix(writer, counter) & mask
                g = -1
                while table[place] >= 0:
                    known = table[place]
                    if keys[known, 0] == writer and keys[known, 1] == counter:
                        g = known
                        break
                    place = (place + 1) & mask
                if g < 0:
                    if strict and (s > 0 or is_final):
                        return k
                    g = counts[0]
                    counts[0] += 1
                    table[place] = g
                    keys[g, 0], keys[g, 1] = writer, counter
                    newest[g] = newest_step[g] = ending[g] = -1
                last_writer, last_counter = writer, counter
            p = newest[g]
            near = newest_step[g] + 1 == s and (newest_step[g] >= 0 or not is_final)
            late = False
            if is_final and not near and p >= 0:
                # Its writer's log was read after that of the writer the episode went on with.
                for _ in range(newest_step[g] - s):
                    p = before[p] if p >= 0 else p
                late = newest_step[g] >= s and p >= 0 and before[p] >= 0 and final[before[p]] < 0
            if strict and not near and not late:
                return k
        address[i], blocks[i], flags[i] = at, block, f
        before[i] = after[i] = final[i] = -1
        group[i] = -1 if hole else g
        if is_final and not hole:
            if near:
                if p >= 0 and final[p] < 0:
                    final[p] = i
                    before[i] = p
                ending[g] = i
            elif late:
                before[i] = before[p]
                final[before[p]] = i
                after[i] = p
        elif not hole:
            if near and p >= 0:
                before[i] = p
                after[p] = i
            if s > 0 and (not near or p < low):
                cuts[counts[2]] = i
                counts[2] += 1
            if ending[g] >= 0:
                after[ending[g]] = i
                ending[g] = -1
            if s > newest_step[g]:
                newest[g], newest_step[g] = i, s
            steps[counts[1]] = i
            counts[1] += 1
        i += 1
    return count


@njit(nogil=True, cache=True)
def settle(
    left: Any, rank: Any, steps: Any, begin: int, end: int, flags: Any, after: Any, final: Any, ended: int
) -> Any:
    """Steps that did not terminate and have nothing after them: those of `left` still so, and those of the new
    step rows `begin` to `end`. Returns their rows and their places among the steps, both sorted."""
    count = 0
    for k in range(left.shape[0]):
        count += after[left[k]] < 0 and final[left[k]] < 0
    for r in range(begin, end):
        i = steps[r]
        count += after[i] < 0 and final[i] < 0 and (flags[i] & ended) == 0
    rows, ranks = np.empty(count, np.int64), np.empty(count, np.int64)
    at = 0
    for k in range(left.shape[0]):
        if after[left[k]] < 0 and final[left[k]] < 0:
            rows[at], ranks[at] = left[k], rank[k]
            at += 1
    for r in range(begin, end):
        i = steps[r]
        if after[i] < 0 and final[i] < 0 and (flags[i] & ended) == 0:
            rows[at], ranks[at] = i, r
            at += 1
    return rows, ranks


@njit(nogil=True, cache=True)
def cross_edge(low: int, high: int, after: Any, flags: Any, final_bit: int) -> Any:
    """Rows at or past `high` whose predecessor lies in `low` to `high`, unsorted."""
    out = np.empty(max(0, high - low), np.int64)
    count = 0
    for i in range(low, high):
        if (flags[i] & final_bit) == 0 and after[i] >= high:
            out[count] = after[i]
            count += 1
    return out[:count].copy()


@njit(nogil=True, cache=True)
def follow(edges: Any, reach: int, stop: int, after: Any) -> Any:
    """Each row of `edges` and up to `reach - 1` steps after it, below `stop`; unsorted."""
    out = np.empty(edges.shape[0] * reach, np.int64)
    count = 0
    for k in range(edges.shape[0]):
        i = np.int64(edges[k])
        for _ in range(reach):
            if i < 0 or i >= stop:
                break
            out[count] = i
            count += 1
            i = np.int64(after[i])
    return out[:count].copy()


@njit(nogil=True, cache=True)
def _place(sorted_: Any, value: Any) -> Any:
    """Where a value stands in a sorted array, -1 when it does not."""
    low, high = 0, sorted_.shape[0]
    while low < high:
        mid = (low + high) >> 1
        if sorted_[mid] < value:
            low = mid + 1
        else:
            high = mid
    if low < sorted_.shape[0] and sorted_[low] == value:
        return low
    return -1


@njit(nogil=True, cache=True)
def observed_after(
    slots: Any,
    base: int,
    first: int,
    stop: int,
    after: Any,
    final: Any,
    flags: Any,
    waiting: Any,
    final_bit: int,
    out: Any,
) -> None:
    """Fills `out` with the slot of each row's next observation, -1 for none; waiting ones are numbered from `stop`."""
    for k in range(slots.shape[0]):
        slot = slots[k]
        out[k] = -1
        if slot < first or slot >= stop:
            continue
        i = slot - base
        if flags[i] & final_bit:
            continue
        if 0 <= final[i] < stop - base:
            out[k] = final[i] + base
        elif 0 <= after[i] < stop - base:
            out[k] = after[i] + base
        else:
            w = _place(waiting, slot)
            if w >= 0:
                out[k] = stop + w


@njit(nogil=True, cache=True)
def walk(
    slots: Any,
    offsets: Any,
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
    """Fills `out` with the slot of the row so many steps later in the same run, -1 where there is none."""
    low, high = first - base, stop - base
    for k in range(slots.shape[0]):
        slot = slots[k]
        out[k] = -1
        if slot < first or slot >= stop:
            continue
        i = np.int64(slot - base)
        if group[i] < 0:
            continue
        last = (flags[i] & final_bit) != 0
        if last and before[i] >= low and 0 <= after[i] < high:
            continue  # beside the episode's order
        steps = offsets[k]
        while steps > 0 and i >= 0:
            later = np.int64(-1)
            if not last:
                f, a = final[i], after[i]
                if 0 <= a < high:
                    later = np.int64(a)
                elif 0 <= f < high and not 0 <= after[f] < high:
                    later = np.int64(f)
                    last = True
            i = later
            steps -= 1
        while steps < 0 and i >= 0:
            i = np.int64(before[i])
            if i < low:
                i = np.int64(-1)
            steps += 1
        if i >= 0:
            out[k] = i + base


@njit(nogil=True, cache=True)
def locate(
    slots: Any,
    base: int,
    first: int,
    stop: int,
    address: Any,
    blocks: Any,
    planes: Any,
    patch: Any,
    patches: int,
    patch_address: Any,
    patch_block: Any,
    patch_older: Any,
    waiting_address: Any,
    waiting_planes: Any,
    out: Any,
    bases: Any,
    regions: Any,
) -> None:
    """The rows of a slot matrix as so many blocks of one row: `bases` their addresses, `regions` their planes, `out`
    the block of each entry, -1 for none."""
    width = slots.shape[1]
    for r in range(slots.shape[0]):
        for c in range(width):
            slot = slots[r, c]
            m = r * width + c
            bases[m] = 0
            out[r, c] = -1
            if slot >= stop:
                w = slot - stop
                bases[m] = waiting_address[w]
                for p in range(regions.shape[0]):
                    regions[p, m] = waiting_planes[w, p]
            elif slot >= first:
                i = slot - base
                b = blocks[i]
                bases[m] = address[i]
                if patches > 0:
                    x = patch[i]
                    while x >= patches:
                        x = patch_older[x]
                    if x >= 0:
                        bases[m] = patch_address[x]
                        b = patch_block[x]
                for p in range(regions.shape[0]):
                    regions[p, m] = planes[b, p]
            else:
                continue
            out[r, c] = m
