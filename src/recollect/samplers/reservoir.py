"""`Reservoir`: a fixed number of rows that stand for all there have been."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit

from recollect.errors import ArgumentError
from recollect.samplers.anchors import among, change
from recollect.samplers.base import Cursor, Draw, State, drawable
from recollect.samplers.plain import packed, unpacked
from recollect.samplers.streams import Stream, philox
from recollect.view import View

_CHOOSE, _DRAW = 6, 7


@njit(nogil=True, cache=True)
def offer(places: Any, slots: Any, seen: int, k0: Any, k1: Any) -> None:
    """Offers rows, the `seen + 1`-th and those after it, to the places of a reservoir: algorithm R."""
    size = len(places)
    for i in range(len(slots)):
        t = seen + i
        if t < size:
            places[t] = slots[i]
            continue
        word = philox(np.uint64(t), np.uint64(0), np.uint64(0), np.uint64(3), k0, k1)[0]
        at = np.int64(np.float64(word >> np.uint64(11)) * 2.0**-53 * (t + 1))
        if at < size:
            places[at] = slots[i]


@dataclass(frozen=True)
class Reservoir:
    """Draws from `size` rows, of which every row that ever became drawable is one with the same chance (Vitter 1985,
    "Random sampling with a reservoir", algorithm R): the t-th row comes in with the chance size / t, in the place of a
    random one. Rows that leave the view leave the reservoir, and their places stay empty until later rows take them.

    `probability` is 1 over the rows in the reservoir; weights are 1. The state holds the reservoir and the count.

    Args:
        size: rows kept, at least 1.
    """

    size: int

    def __post_init__(self) -> None:
        if not isinstance(self.size, int) or self.size < 1:
            raise ArgumentError("size is a whole number of at least 1", value=self.size)

    def bind(self, view: View, seed: int, state: State | None = None) -> Cursor:
        """A cursor on `view`: its drawable rows are offered in their order, or the state's reservoir goes on."""
        return _Cursor(self, view, seed, state)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "reservoir", "size": self.size}


class _Cursor:
    takes_feedback = False
    is_stateful = True

    def __init__(self, config: Reservoir, view: View, seed: int, state: State | None) -> None:
        self._choose, self._stream = Stream(seed, _CHOOSE), Stream(seed, _DRAW)
        self._places = np.full(config.size, -1, np.int64)
        self._seen, self._anchors = 0, None if state is None else view.anchors
        if state is not None:
            self._seen, self._places = int(state["seen"]), unpacked(state["places"], np.int64).copy()
        self.grow(view)

    def grow(self, view: View) -> None:
        drawable(view)
        came = change(self._anchors, view.anchors)
        self._anchors = view.anchors
        self._places[among(self._places, came.removed)] = -1
        offer(self._places, came.added, self._seen, *self._choose.key)
        self._seen += len(came.added)
        self._filled = self._places[self._places >= 0]

    def draw(self, step: int, n: int, batches: int = 1) -> Draw:
        count = len(self._filled)
        if not count:
            raise ArgumentError("every row of the reservoir has left the view", remedy="Use a larger size or window")
        keys = self._filled[self._stream.integers(step, batches, n, count)]
        return Draw(step, keys, np.asarray(1.0 / count), np.asarray(1.0))

    def state(self) -> State:
        return {"seen": self._seen, "places": packed(self._places)}
