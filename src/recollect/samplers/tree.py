"""`SumTree`: weights by place, drawn in proportion to them.

A node has eight children, which lie side by side in one cache line, so that a walk from the root to a leaf misses the
cache once a level and looks at few levels. A parent is the sum of its children, taken in a fixed order each time one
of them changes, never a running total: a tree made anew from its leaves is the same, bit for bit. Places past the end
hold 0, and adding 0 changes no sum, so the totals do not depend on how much room there is (design/0017).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from recollect.samplers.streams import philox
from recollect.view import F64, I64

FAN = 8
"""Children of a node: 64 bytes of float64, one cache line."""
_SHIFT = 3
_53 = 2.0**-53
_PURPOSE = np.uint64(2)
"""Keeps the words of stratified draws apart from those of other counters under the same key."""


@njit(nogil=True, cache=True, inline="always")
def _sum(nodes: Any, at: Any) -> Any:
    left = (nodes[at] + nodes[at + 1]) + (nodes[at + 2] + nodes[at + 3])
    return left + ((nodes[at + 4] + nodes[at + 5]) + (nodes[at + 6] + nodes[at + 7]))


@njit(nogil=True, cache=True)
def rebuild(nodes: Any, starts: Any, low: int, high: int) -> None:
    """Makes every parent of the leaves `[low, high)` anew."""
    for level in range(1, len(starts) - 1):
        below, here = starts[level - 1], starts[level]
        low >>= _SHIFT
        high = (high + FAN - 1) >> _SHIFT
        for i in range(low, high):
            nodes[here + i] = _sum(nodes, below + (i << _SHIFT))


@njit(nogil=True, cache=True)
def put(nodes: Any, starts: Any, places: Any, values: Any) -> None:
    """Sets leaves, the last of equal places winning, and their parents level by level."""
    count = len(places)
    touched = np.empty(count, np.int64)
    for i in range(count):
        nodes[places[i]] = values[i]
        touched[i] = places[i]
    for level in range(1, len(starts) - 1):
        below, here = starts[level - 1], starts[level]
        kept, last = 0, -1
        for i in range(count):
            parent = touched[i] >> _SHIFT
            if parent != last:  # neighbours of a sorted list share their parents
                last = parent
                nodes[here + parent] = _sum(nodes, below + (parent << _SHIFT))
                touched[kept] = parent
                kept += 1
        count = kept


@njit(nogil=True, cache=True)
def find(nodes: Any, starts: Any, targets: Any, places: Any, values: Any) -> None:
    """The leaf under each target, and its weight. Level by level, so that the cache misses of all walks overlap.

    A node is halved three times, by the sums that its own sum was made of. The right half is taken where the target
    reaches the left half's sum and the right half weighs something. So a half of weight 0 is never entered, whatever
    rounding did to the target: one below the left sum means that the left half weighs something.
    """
    n = len(targets)
    for i in range(n):
        places[i] = 0
    for level in range(len(starts) - 3, -1, -1):
        here = starts[level]
        for i in range(n):
            at, t = here + (places[i] << _SHIFT), targets[i]
            a, b, c, d = nodes[at], nodes[at + 1], nodes[at + 2], nodes[at + 3]
            e, f, g, h = nodes[at + 4], nodes[at + 5], nodes[at + 6], nodes[at + 7]
            ab, cd, ef, gh = a + b, c + d, e + f, g + h
            left = ab + cd
            first = (t >= left) & (ef + gh > 0.0)
            t = t - left if first else t
            left, right = ef if first else ab, gh if first else cd
            second = (t >= left) & (right > 0.0)
            t = t - left if second else t
            left = (g if first else c) if second else (e if first else a)
            right = (h if first else d) if second else (f if first else b)
            third = (t >= left) & (right > 0.0)
            targets[i] = t - left if third else t
            places[i] = (places[i] << _SHIFT) + 4 * first + 2 * second + third
    for i in range(n):
        values[i] = nodes[places[i]]


@njit(nogil=True, cache=True)
def spread(k0: Any, k1: Any, step: int, n: int, total: float, out: Any) -> None:
    """Fills `out` `[n]` with one uniform number of each of `n` equal parts of `[0, total)`, for batch `step`."""
    for i in range(0, n, 4):
        words = philox(np.uint64(i >> 2), np.uint64(step), np.uint64(0), _PURPOSE, k0, k1)
        for j in range(min(4, n - i)):
            out[i + j] = (i + j + np.float64(words[j] >> np.uint64(11)) * _53) / n * total


@njit(nogil=True, cache=True)
def sample(nodes: Any, starts: Any, k0: Any, k1: Any, step: int, places: Any, values: Any) -> Any:
    """Stratified draws of batch `step`; returns the total."""
    total = nodes[starts[-2]]
    targets = np.empty(len(places))
    spread(k0, k1, step, len(places), total, targets)
    find(nodes, starts, targets, places, values)
    return total


@njit(nogil=True, cache=True)
def least_above_zero(leaves: Any) -> Any:
    """The smallest weight that is not 0; infinite when all are."""
    out = np.inf
    for x in leaves:
        if 0.0 < x < out:
            out = x
    return out


class SumTree:
    """Weights of at least 0 by place, all 0 at first. Places keep their numbers when it grows.

    Args:
        room: places to begin with.
    """

    def __init__(self, room: int = 1) -> None:
        self._allocate(room)

    def _allocate(self, room: int) -> None:
        sizes = [max(1, -(-room // FAN)) * FAN]
        while sizes[-1] > FAN:
            sizes.append(-(-sizes[-1] // FAN // FAN) * FAN)
        self.room = sizes[0]
        self._starts = np.concatenate([[0], np.cumsum([*sizes, FAN])]).astype(np.int64)
        raw = np.zeros(int(self._starts[-1]) + FAN)
        skip = (-raw.ctypes.data % 64) // 8  # nodes begin with cache lines
        self._nodes: NDArray[np.float64] = raw[skip : skip + int(self._starts[-1])]

    @property
    def leaves(self) -> F64:
        """`[room]` the weights. Change them through `set` and `load`."""
        return self._nodes[: self.room]

    @property
    def total(self) -> float:
        """The sum of all weights."""
        return float(self._nodes[self._starts[-2]])

    def grow(self, room: int) -> None:
        """Makes room for at least so many places; at least twice as many as there were, so that growing costs
        little."""
        if room > self.room:
            old = self.leaves
            self._allocate(max(room, 2 * self.room))
            self.load(0, old)

    def load(self, start: int, values: F64) -> None:
        """Sets the weights of the places from `start` on."""
        stop = start + len(values)
        self.grow(stop)
        self._nodes[start:stop] = values
        rebuild(self._nodes, self._starts, start, stop)

    def set(self, places: I64, values: F64) -> None:
        """Sets the weights of places `[n]`; of equal places the last one counts."""
        put(self._nodes, self._starts, places, values)

    def find(self, targets: F64) -> tuple[I64, F64]:
        """The place `[n]` under each target in `[0, total]`, and its weight `[n]`. Never a place of weight 0."""
        places, values = np.empty(len(targets), np.int64), np.empty(len(targets))
        find(self._nodes, self._starts, np.array(targets, np.float64), places, values)
        return places, values

    def sample(self, key: tuple[np.uint64, np.uint64], step: int, n: int) -> tuple[I64, F64, float]:
        """`n` stratified draws of batch `step`: places `[n]`, their weights `[n]`, and the sum of all weights."""
        places, values = np.empty(n, np.int64), np.empty(n)
        total = sample(self._nodes, self._starts, key[0], key[1], step, places, values)
        return places, values, total
