"""`Ranking`: items ordered by priority, highest first, equal ones by place; the k-th of them, exactly, at any time.

A sorted list in blocks of `BLOCK` entries, in the order of a directory. Moving one item costs two short searches
and two short moves of memory; finding the items of a whole batch of ranks costs one walk over the directory. The order
is a function of the priorities alone, so nothing but them need be stored.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from recollect.view import F64, I64

BLOCK = 256


@njit(nogil=True, cache=True, inline="always")
def _before(p: Any, place: Any, q: Any, other: Any) -> Any:
    return p > q or (p == q and place < other)


@njit(nogil=True, cache=True)
def _entry(block: Any, count: Any, held: Any, key: Any, item: Any, p: Any, place: Any) -> Any:
    """Where an entry is or belongs: position in the directory, and in its block."""
    low, high = 0, held
    while high - low > 1:
        mid = (low + high) >> 1
        at = block[mid]
        if _before(p, place, key[at, 0], item[at, 0]):
            high = mid
        else:
            low = mid
    at = block[low]
    left, right = 0, count[low]
    while left < right:
        mid = (left + right) >> 1
        if _before(key[at, mid], item[at, mid], p, place):
            left = mid + 1
        else:
            right = mid
    return low, left


@njit(nogil=True, cache=True)
def _drop_block(block: Any, count: Any, state: Any, d: Any) -> None:
    """Takes a block out of the directory; its memory goes to the end, to be used again."""
    held = state[0]
    freed = block[d]
    for k in range(d, held - 1):
        block[k], count[k] = block[k + 1], count[k + 1]
    block[held - 1] = freed
    state[0] = held - 1


@njit(nogil=True, cache=True)
def remove(block: Any, count: Any, state: Any, key: Any, item: Any, p: Any, place: Any) -> None:
    """Takes out an entry that is there."""
    d, j = _entry(block, count, state[0], key, item, p, place)
    at = block[d]
    for k in range(j, count[d] - 1):
        key[at, k], item[at, k] = key[at, k + 1], item[at, k + 1]
    count[d] -= 1
    if state[0] == 1:
        return
    if count[d] == 0:
        _drop_block(block, count, state, d)
        return
    left = d if d + 1 < state[0] else d - 1
    if count[left] + count[left + 1] <= BLOCK // 2:
        a, b = block[left], block[left + 1]
        for k in range(count[left + 1]):
            key[a, count[left] + k], item[a, count[left] + k] = key[b, k], item[b, k]
        count[left] += count[left + 1]
        _drop_block(block, count, state, left + 1)


@njit(nogil=True, cache=True)
def insert(block: Any, count: Any, state: Any, key: Any, item: Any, p: Any, place: Any) -> None:
    """Puts in an entry. There must be a free block."""
    d, j = _entry(block, count, state[0], key, item, p, place)
    if count[d] == BLOCK:
        held, half = state[0], BLOCK // 2
        fresh = block[held]
        for k in range(held, d + 1, -1):
            block[k], count[k] = block[k - 1], count[k - 1]
        block[d + 1], count[d + 1] = fresh, half
        state[0] = held + 1
        at = block[d]
        for k in range(half):
            key[fresh, k], item[fresh, k] = key[at, half + k], item[at, half + k]
        count[d] = half
        if j > half:
            d, j = d + 1, j - half
    at = block[d]
    for k in range(count[d], j, -1):
        key[at, k], item[at, k] = key[at, k - 1], item[at, k - 1]
    key[at, j], item[at, j] = p, place
    count[d] += 1


@njit(nogil=True, cache=True)
def move(block: Any, count: Any, state: Any, key: Any, item: Any, values: Any, places: Any, new: Any) -> None:
    """Gives places new priorities, in order; 0 takes one out. `values` holds each place's own, and is changed."""
    for i in range(len(places)):
        place, p = places[i], new[i]
        old = values[place]
        if old == p:
            continue
        if old > 0.0:
            remove(block, count, state, key, item, old, place)
        if p > 0.0:
            insert(block, count, state, key, item, p, place)
        values[place] = p


@njit(nogil=True, cache=True)
def select(block: Any, count: Any, item: Any, ranks: Any, out: Any) -> None:
    """The items at `ranks`, which are sorted."""
    d, passed = 0, 0
    for i in range(len(ranks)):
        while ranks[i] >= passed + count[d]:
            passed += count[d]
            d += 1
        out[i] = item[block[d], ranks[i] - passed]


class Ranking:
    """Priorities by place; 0 is none. Places keep their numbers when it grows.

    Attributes:
        values: `[room]` each place's priority.
        size: how many are above 0.
    """

    def __init__(self, values: F64) -> None:
        self.values = np.array(values, np.float64)
        self._fill()

    def _fill(self) -> None:
        """Sorts everything anew, into blocks that are three quarters full."""
        places = np.flatnonzero(self.values)
        places = places[np.lexsort((places, -self.values[places]))]
        self.size = len(places)
        each = BLOCK * 3 // 4
        held = max(1, -(-self.size // each))
        self._reserve(2 * held + 8)
        self._state = np.array([held], np.int64)
        self._block = np.arange(len(self._key), dtype=np.int64)
        self._count = np.zeros(len(self._key), np.int64)
        self._count[:held] = each
        self._count[held - 1] = self.size - each * (held - 1)
        whole = np.zeros((held, each), np.int64)
        whole.reshape(-1)[: self.size] = places
        self._item[:held, :each] = whole
        if self.size:
            self._key[:held, :each] = self.values[whole]

    def _reserve(self, blocks: int) -> None:
        self._key = np.zeros((blocks, BLOCK))
        self._item = np.zeros((blocks, BLOCK), np.int64)

    def grow(self, room: int) -> None:
        """Makes room for at least so many places."""
        if room > len(self.values):
            more = max(room, 2 * len(self.values)) - len(self.values)
            self.values = np.concatenate([self.values, np.zeros(more)])

    def set(self, places: I64, values: F64) -> None:
        """Sets the priorities of places `[n]`; of equal places the last one counts; 0 takes a place out."""
        if 8 * len(places) > self.size:
            self.values[places] = values  # numpy assigns in order, so the last one stays
            self._fill()
            return
        if int(self._state[0]) + len(places) > len(self._key):
            self._fill()
        move(self._block, self._count, self._state, self._key, self._item, self.values, places, values)
        self.size = int(self._count[: self._state[0]].sum())

    def select(self, ranks: I64) -> I64:
        """The places `[n]` at sorted ranks `[n]`, counted from 0: the highest priority."""
        out = np.empty(len(ranks), np.int64)
        select(self._block, self._count, self._item, ranks, out)
        return out
