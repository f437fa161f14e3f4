"""Which blocks are resident when: a pure function of the seed and the batch's number."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from recollect.samplers.streams import Stream

ROTATE = 7
"""The stream that orders blocks; samplers draw from others."""


@dataclass(frozen=True)
class Schedule:
    """A window of `resident` blocks that slides over an endless list: random orders of all blocks, one by one.

    Each block enters once in every `units` turns and stays for `resident` turns, so that over such a stretch every
    block is resident equally long. Where one order ends and the next begins, blocks that are resident still are moved
    back behind those that are not.

    Attributes:
        seed: decides the orders.
        units: blocks in all; `resident` those in the window.
        dwell: batches per turn.
    """

    seed: int
    units: int
    resident: int
    dwell: int

    def turn_of(self, step: int) -> int:
        """The turn that batch `step` is drawn in."""
        return step // self.dwell

    def resident_at(self, turn: int) -> tuple[int, ...]:
        """The blocks of a turn, the one longest there first. All of them where all fit."""
        if self.resident >= self.units:
            return tuple(range(self.units))
        return tuple(dict.fromkeys(self.entering(p) for p in range(turn, turn + self.resident)))

    def entering(self, place: int) -> int:
        """The block at a place of the endless list."""
        epoch, at = divmod(place, self.units)
        if epoch not in self._orders:
            for old in [e for e in self._orders if e < epoch - 1]:
                del self._orders[old]
            self._orders[epoch] = self._order(epoch)
        return int(self._orders[epoch][at])

    @cached_property
    def _orders(self) -> dict[int, NDArray[np.int64]]:
        return {}

    def _order(self, epoch: int) -> NDArray[np.int64]:
        order = self._random(epoch)
        tail = min(self.resident - 1, self.units)
        if not epoch or not tail:
            return order
        # The last of each order stay where they are: the next one is fitted to them without knowing this one.
        head, last = order[: self.units - tail], order[self.units - tail :]
        late = np.isin(head, self._random(epoch - 1)[self.units - tail :])
        return np.concatenate([head[~late], head[late], last])

    def _random(self, epoch: int) -> NDArray[np.int64]:
        return Stream(self.seed, ROTATE, epoch).permutation(0, self.units, self.units)
