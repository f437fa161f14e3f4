"""`NStep`: n-step returns at draw time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from recollect.errors import ArgumentError
from recollect.schema import Schema
from recollect.transforms.base import Columns, Reads
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
    def reach(self) -> int:
        return self.n - 1

    def needs(self, schema: Schema) -> frozenset[str]:
        if self.n == 1:
            return frozenset()
        leaves = (schema.role("reward"), schema.role("discount"))
        return frozenset(["terminated", *(leaf.path for leaf in leaves if leaf is not None)])

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "nstep", "n": self.n, "gamma": self.gamma}

    def plan(self, reads: Reads, view: View) -> Reads:
        """Which steps of each window count, and the row of the next observation after the last of them.

        A step counts while it could itself be drawn, whatever condition the view has: where a next observation is lost,
        the window ends before it.
        """
        if self.n == 1:
            return reads
        slots = reads.window[:, : self.n]
        flat = slots.reshape(-1)
        counts = np.logical_and.accumulate(view.anchors.complete(flat).reshape(slots.shape), axis=1)
        last = np.take_along_axis(slots, counts.sum(axis=1)[:, None] - 1, 1)[:, 0]
        following = view.episodes.next_observation(last)
        return Reads(reads.anchors, reads.window, following, {**reads.masks, "nstep": counts})

    def apply(self, data: Columns, windows: Columns, reads: Reads, schema: Schema) -> Columns:
        reward, own = schema.role("reward"), schema.role("discount")
        if reward is None:
            raise ArgumentError("n-step returns need a field with the role reward")
        if self.n == 1:
            discount = np.where(data["terminated"], np.float32(0), np.float32(self.gamma))
            if own is not None:
                discount = (discount * data[own.path]).astype(np.float32)
            return {**data, "discount": discount}
        counts = reads.masks["nstep"]
        steps = np.arange(self.n)
        factor = np.full(counts.shape, self.gamma)
        if own is not None:
            factor = factor * windows[own.path][:, : self.n]
        ended = windows["terminated"][:, : self.n]
        running = np.cumprod(np.concatenate([np.ones((len(factor), 1)), factor], axis=1), axis=1)
        rewards = windows[reward.path][:, : self.n].astype(np.float64)
        total = np.where(counts, running[:, :-1] * rewards, 0.0).sum(axis=1)
        taken = counts.sum(axis=1)
        bootstrap = np.take_along_axis(running, taken[:, None], 1)[:, 0]
        over = (ended & counts & (steps < taken[:, None])).any(axis=1)
        return {
            **data,
            reward.path: total.astype(data[reward.path].dtype),
            "terminated": over,
            "discount": np.where(over, 0.0, bootstrap).astype(np.float32),
        }
