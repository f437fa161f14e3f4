"""How prioritized rows are kept and drawn: in proportion to a power of their priority, or by its rank."""

from __future__ import annotations

import numpy as np

from recollect.errors import ArgumentError
from recollect.samplers.ranking import Ranking
from recollect.samplers.streams import Stream
from recollect.samplers.tree import SumTree, least_above_zero, spread
from recollect.view import F64, I64

_MOST = 1e290
"""2**24 such weights still have a finite sum."""
_LEAST = float(np.finfo(np.float64).tiny)


class Proportional:
    """P(i) = p_i^alpha / Σ p^alpha. A place holds p^alpha."""

    def __init__(self, alpha: float, seed: int, purpose: int) -> None:
        self._alpha, self._stream, self._tree = alpha, Stream(seed, purpose), SumTree()

    @property
    def held(self) -> F64:
        return self._tree.leaves

    def from_priority(self, p: F64) -> F64:
        out: F64 = np.maximum(p**self._alpha, _LEAST)
        if len(out) and not out.max() <= _MOST:
            raise ArgumentError("a priority is too high to be summed", value=float(p.max()), remedy="Scale the signals")
        return out

    def set(self, places: I64, held: F64) -> None:
        if 4 * len(places) > self._tree.room:
            leaves = self._tree.leaves.copy()
            leaves[places] = held
            self._tree.load(0, leaves)
        else:
            self._tree.set(places, held)

    def grow(self, room: int) -> None:
        self._tree.grow(room)

    def load(self, held: F64) -> None:
        self._tree = SumTree(len(held))
        self._tree.load(0, held)

    def draw(self, step: int, n: int) -> tuple[I64, F64]:
        places, held, total = self._tree.sample(self._stream.key, step, n)
        return places, held / total

    def least(self) -> float:
        return float(least_above_zero(self._tree.leaves)) / self._tree.total


class Ranked:
    """P(i) = rank(i)^-alpha / Σ rank^-alpha. A place holds p."""

    def __init__(self, alpha: float, seed: int, purpose: int) -> None:
        self._alpha, self._stream = alpha, Stream(seed, purpose)
        self._ranking = Ranking(np.zeros(0))
        self._sums = np.zeros(1)
        """Σ k^-alpha over the first ranks: `[1 + ranks]`."""

    @property
    def held(self) -> F64:
        return self._ranking.values

    def from_priority(self, p: F64) -> F64:
        return p

    def set(self, places: I64, held: F64) -> None:
        self._ranking.set(places, held)

    def grow(self, room: int) -> None:
        self._ranking.grow(room)

    def load(self, held: F64) -> None:
        self._ranking = Ranking(held)

    def _total(self) -> float:
        size = self._ranking.size
        if size >= len(self._sums):
            # In one piece from the first rank on, so that the sums do not depend on how they came to be.
            ranks = np.arange(1, max(size, 2 * len(self._sums)) + 1, dtype=np.float64)
            self._sums = np.concatenate([[0.0], np.cumsum(ranks**-self._alpha)])
        return float(self._sums[size])

    def draw(self, step: int, n: int) -> tuple[I64, F64]:
        total, size = self._total(), self._ranking.size
        targets = np.empty(n)
        spread(*self._stream.key, step, n, total, targets)
        ranks = np.minimum(np.searchsorted(self._sums[1 : size + 1], targets, side="right"), size - 1)
        return self._ranking.select(ranks), (ranks + 1.0) ** -self._alpha / total

    def least(self) -> float:
        total = self._total()
        return float(float(self._ranking.size) ** -self._alpha) / total
