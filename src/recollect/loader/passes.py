"""Draws of a loader that counts epochs while blocks take turns."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np

from recollect.samplers import Draw, State
from recollect.samplers.streams import Stream
from recollect.view import View

_PURPOSE = 9


class Turns(Protocol):
    """A source that gives each row one turn an epoch.

    Attributes:
        turn: that of its newest view; `first` the number of its first batch.
    """

    turn: int
    first: int

    def is_over(self, step: int) -> bool: ...


class PassCursor:
    """Visits the drawable rows of each turn's view once, in an order of the turn's own; the last batch of a turn may be
    short."""

    takes_feedback = is_stateful = False

    def __init__(self, view: View, seed: int, turns: Any) -> None:
        self._seed, self._turns = seed, turns
        self.grow(view)

    def grow(self, view: View) -> None:
        self._view = view

    def draw(self, step: int, n: int, batches: int = 1) -> Draw:
        assert batches == 1, "each batch is drawn from the view of its turn"
        turns, count = self._turns, len(self._view)
        start = (step - turns.first) * n
        size = min(n, count - start)
        ranks = Stream(self._seed, _PURPOSE, turns.turn).permutation(start, size, count)
        keys = self._view.anchors.select(ranks).reshape(1, size)
        return Draw(step, keys, np.asarray(1.0 / count), np.asarray(1.0))

    def state(self) -> State:
        return {}
