"""Whole rows of a batch from shares of it: largest remainder, with the error carried to the next batch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recollect.view import F64, I64, Bool


class Quotas:
    """Deals out the rows of one batch after another.

    A part is owed share × n rows a batch, and what it was owed before. It gets the whole rows of that; what is left
    goes to the largest remainders, the first of equal ones. So no part is ever a row or more away from its share of
    all.

    Args:
        owed: `[parts]` what each was owed when a state was taken.
    """

    def __init__(self, owed: Sequence[float]) -> None:
        self._owed = np.array(owed, np.float64)

    @property
    def owed(self) -> list[float]:
        """What each part is owed now; below 0 where it got more than its share."""
        return [float(x) for x in self._owed]

    def deal(self, shares: F64, filled: Bool, n: int) -> tuple[I64, F64]:
        """Rows `[parts]` of the next batch of `n`, and the shares `[parts]` that were used.

        Shares are scaled to a sum of 1. The share of a part that is not `filled` goes to the others, in proportion to
        theirs, and neither is owed anything for it afterwards.
        """
        used = np.where(filled, shares, 0.0)
        if not used.sum() > 0:
            used = np.where(filled, 1.0, 0.0)
        used = used / used.sum()
        self._owed = np.where(used > 0, self._owed, 0.0)
        want = np.where(used > 0, used * n + self._owed, 0.0)
        counts = np.maximum(np.floor(want), 0).astype(np.int64)
        order = np.argsort(-np.where(used > 0, want - counts, -np.inf), kind="stable")
        more = n - int(counts.sum())
        if more >= 0:
            eligible = order[: max(1, int((used > 0).sum()))]
            for k in range(more):
                counts[eligible[k % len(eligible)]] += 1
        else:
            # What was carried can come to more than a batch; those that are owed least wait.
            for part in order[::-1]:
                back = min(int(counts[part]), -more)
                counts[part] -= back
                more += back
        self._owed = want - counts
        return counts, used
