"""The compiled sum of discounted rewards, for `NStep` and `ReturnsToGo`."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from recollect.view import F64, Bool


class Sums(NamedTuple):
    """`[B]` each.

    Attributes:
        total: Σ of the rewards, each times the factors of the steps before it.
        left: the product of all factors, 0 where a step terminated.
        over: whether one did.
    """

    total: F64
    left: F64
    over: Bool


def discounted(
    rewards: NDArray[Any], ended: Bool, counts: Bool, gamma: float, factors: NDArray[Any] | None = None
) -> Sums:
    """Sums over `[B, W]` steps: those that count, up to the first that does not or that terminated. What was relabelled
    may end before its episode did. In float64, from the last step back, so that no power of gamma is taken.

    Args:
        factors: the environment's own, times gamma each.
    """
    n = len(rewards)
    out = Sums(np.empty(n), np.empty(n), np.empty(n, np.bool_))
    own = np.empty((0, 0)) if factors is None else np.ascontiguousarray(factors, np.float64)
    given = (np.ascontiguousarray(rewards, np.float64), np.ascontiguousarray(ended), np.ascontiguousarray(counts))
    _sum(*given, gamma, own, *out)
    return out


@njit(nogil=True, cache=True)
def _sum(rewards: Any, ended: Any, counts: Any, gamma: float, factors: Any, total: Any, left: Any, over: Any) -> None:
    width = rewards.shape[1]
    for i in range(rewards.shape[0]):
        steps, end = 0, False
        while steps < width and counts[i, steps] and not end:
            end = ended[i, steps]
            steps += 1
        sum_, rest = 0.0, 1.0
        for k in range(steps - 1, -1, -1):
            factor = gamma
            if factors.shape[0]:
                factor *= factors[i, k]
            if end and k == steps - 1:
                factor = 0.0
            sum_ = rewards[i, k] + factor * sum_
            rest *= factor
        total[i], left[i], over[i] = sum_, rest, end
