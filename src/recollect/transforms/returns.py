"""`ReturnsToGo`: the discounted rewards from each step to the end of its episode."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from recollect.errors import ArgumentError
from recollect.schema import Schema
from recollect.transforms.base import WHOLE, Chance, Data, Reach, Reads, last_of, steps_ahead
from recollect.transforms.sums import discounted
from recollect.view import View


@dataclass(frozen=True)
class ReturnsToGo:
    """Adds `return_to_go` `[B]`, Σ γ^k r_k from the step to the last of its episode (Chen et al. 2021, "Decision
    Transformer": γ = 1), and `return_discount` `[B]`, what is left of a value after it; both float32.

    - Terminated: the sum is the return, and `return_discount` is 0.
    - Truncated, still open, cut off by the end of what is stored, or interrupted by a lost observation: the sum ends
      with the last of the m steps that could be drawn themselves. `return_discount` is γ^m: add it times a value of the
      observation after them to bootstrap; leave it to take the partial sum. It is a function of the view: a later one
      may know more of an open episode.

    `reward` stays what it is. Factors of a field with the role discount count, as in `NStep`. A batch costs its rows
    times the steps to the end of the longest episode among them, in time and in memory (about 40 bytes each).

    Args:
        gamma: discount per step, in [0, 1].
        bootstrap: `next_observation` becomes the one after the last step summed, so that it goes with
            `return_discount`. Not beside `NStep`, which moves it too.
    """

    gamma: float = 1.0
    bootstrap: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.gamma <= 1.0:
            raise ArgumentError("gamma lies between 0 and 1", value=self.gamma)

    @property
    def reach(self) -> Reach:
        return Reach(0, WHOLE)

    def needs(self, schema: Schema) -> frozenset[str]:
        leaves = (schema.role("reward"), schema.role("discount"))
        return frozenset(["terminated", *(leaf.path for leaf in leaves if leaf is not None)])

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "returns_to_go", "gamma": self.gamma, "bootstrap": self.bootstrap}

    def plan(self, reads: Reads, view: View, chance: Chance) -> Reads:
        counts = steps_ahead(reads, view)
        if self.bootstrap:
            last = last_of(reads, counts)
            reads = reads.ending(last, view.episodes.next_observation(last))
        return reads.masked("returns", counts)

    def apply(self, data: Data, reads: Reads, schema: Schema) -> Data:
        reward, own = schema.role("reward"), schema.role("discount")
        if reward is None:
            raise ArgumentError("returns to go need a field with the role reward")
        window = {name: data.windows[name][:, reads.now :] for name in self.needs(schema)}
        factors = None if own is None else window[own.path]
        sums = discounted(window[reward.path], window["terminated"], reads.masks["returns"], self.gamma, factors)
        return data.with_rows(return_to_go=sums.total.astype(np.float32), return_discount=sums.left.astype(np.float32))
