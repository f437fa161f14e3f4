"""`NStep`: n-step returns at draw time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from recollect.errors import ArgumentError
from recollect.schema import Schema
from recollect.transforms.base import Chance, Data, Reach, Reads, last_of, steps_ahead
from recollect.transforms.sums import discounted
from recollect.view import View


@dataclass(frozen=True)
class NStep:
    """Sums the next `n` rewards, and bootstraps from the observation after them (Sutton 1988; Watkins 1989).

    `reward` becomes Σ γ^k r_k over the m ≤ n steps up to the episode's end, a truncation, or the end of what is stored;
    `next_observation` is the one after the last of them; `discount` is γ^m, times the environment's own factors where
    the schema has a field with the role discount, and 0 where the last step terminated. A window that is cut short
    because the episode is still open uses the steps there are.

    Args:
        n: steps, at least 1.
        gamma: discount per step, in [0, 1].
    """

    n: int
    gamma: float

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ArgumentError("n-step returns need n of at least 1", value=self.n)
        if not 0.0 <= self.gamma <= 1.0:
            raise ArgumentError("gamma lies between 0 and 1", value=self.gamma)

    @property
    def reach(self) -> Reach:
        return Reach(0, self.n - 1)

    def needs(self, schema: Schema) -> frozenset[str]:
        leaves = (schema.role("reward"), schema.role("discount"))
        return frozenset(["terminated", *(leaf.path for leaf in leaves if leaf is not None)])

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "nstep", "n": self.n, "gamma": self.gamma}

    def plan(self, reads: Reads, view: View, chance: Chance) -> Reads:
        """Which steps of each window count, and the row of the next observation after the last of them."""
        if self.n == 1:
            return reads
        counts = steps_ahead(reads, view, self.n)
        last = last_of(reads, counts)
        return reads.ending(last, view.episodes.next_observation(last)).masked("nstep", counts)

    def apply(self, data: Data, reads: Reads, schema: Schema) -> Data:
        reward, own = schema.role("reward"), schema.role("discount")
        if reward is None:
            raise ArgumentError("n-step returns need a field with the role reward")
        if self.n == 1:
            discount = np.where(data.rows["terminated"], np.float32(0), np.float32(self.gamma))
            if own is not None:
                discount = (discount * data.rows[own.path]).astype(np.float32)
            return data.with_rows(discount=discount)
        columns = slice(reads.now, reads.now + self.n)
        window = {name: data.windows[name][:, columns] for name in self.needs(schema)}
        factors = None if own is None else window[own.path]
        sums = discounted(window[reward.path], window["terminated"], reads.masks["nstep"], self.gamma, factors)
        return data.with_rows(
            **{reward.path: sums.total.astype(data.rows[reward.path].dtype)},
            terminated=sums.over,
            discount=sums.left.astype(np.float32),
        )
