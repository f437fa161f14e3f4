"""`Uniform`: every drawable row with the same chance."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from recollect.samplers.base import Cursor, Draw, State, drawable
from recollect.samplers.streams import Stream
from recollect.view import View

_WITH_REPLACEMENT, _EPOCH = 1, 2


@dataclass(frozen=True)
class Uniform:
    """Every drawable row with the same chance: with replacement, or once per epoch when the loader has `epochs=`."""

    def bind(self, view: View, seed: int, state: State | None = None) -> Cursor:
        """A cursor that draws with replacement."""
        return _Replacement(view, seed)

    def bind_epochs(self, view: View, seed: int, batch_size: int, epochs: int) -> Cursor:
        """A cursor that visits every drawable row once per epoch; an epoch's last batch may be short."""
        return _Epochs(view, seed, batch_size, epochs)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "uniform"}


class _Replacement:
    takes_feedback = is_stateful = False

    def __init__(self, view: View, seed: int) -> None:
        self._stream = Stream(seed, _WITH_REPLACEMENT)
        self.grow(view)

    def draw(self, step: int, n: int, batches: int = 1) -> Draw:
        ranks = self._stream.integers(step, batches, n, self._count)
        return Draw(step, self._anchors.select(ranks), self._chance, self._one)

    def grow(self, view: View) -> None:
        self._anchors, self._count = view.anchors, drawable(view)
        self._chance, self._one = np.asarray(1.0 / self._count), np.asarray(1.0)

    def state(self) -> State:
        return {}


class _Epochs:
    takes_feedback = is_stateful = False

    def __init__(self, view: View, seed: int, batch_size: int, epochs: int) -> None:
        self._seed, self._batch, self._epochs = seed, batch_size, epochs
        self.grow(view)

    def grow(self, view: View) -> None:
        self._anchors, self._count = view.anchors, drawable(view)
        self._per_epoch = -(-self._count // self._batch)
        self.steps = self._per_epoch * self._epochs
        """Batches in all."""

    def draw(self, step: int, n: int, batches: int = 1) -> Draw:
        keys = np.full((batches, n), -1, np.int64)
        sizes = []
        for k in range(batches):
            epoch, at = divmod(step + k, self._per_epoch)
            start = at * n
            size = min(n, self._count - start)
            ranks = Stream(self._seed, _EPOCH, epoch).permutation(start, size, self._count)
            keys[k, :size] = self._anchors.select(ranks)
            sizes.append(size)
        return Draw(step, keys, np.asarray(1.0 / self._count), np.asarray(1.0), tuple(sizes))

    def state(self) -> State:
        return {}
