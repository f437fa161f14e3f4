"""`Recent`: the newest rows, or newer ones more often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from recollect.errors import ArgumentError
from recollect.samplers.base import Cursor, Draw, State, drawable
from recollect.samplers.streams import Stream
from recollect.view import View

_PURPOSE = 4


@dataclass(frozen=True)
class Recent:
    """The newest `rows` drawable rows with the same chance, or every row with a chance that halves each `half_life`
    rows.

    A row's age is its distance from the newest drawable row in the view's order. With a half-life h and N rows, a row
    of age a is drawn with the chance 2^(-a/h) / Σ 2^(-a/h). Weights are 1: the bias is wanted.

    Args:
        rows: how many rows; all of them where there are fewer.
        half_life: rows, above 0. One of both is given.

    Raises:
        ArgumentError: neither or both, or a number out of range.
    """

    rows: int | None = None
    half_life: float | None = None

    def __post_init__(self) -> None:
        if (self.rows is None) == (self.half_life is None):
            raise ArgumentError("Recent takes rows= or half_life=", remedy="Write rc.Recent(10_000)")
        if self.rows is not None and (not isinstance(self.rows, int) or self.rows < 1):
            raise ArgumentError("rows is a whole number of at least 1", value=self.rows)
        if self.half_life is not None and not 0 < self.half_life < float("inf"):
            raise ArgumentError("half_life is a number above 0", value=self.half_life)

    def bind(self, view: View, seed: int, state: State | None = None) -> Cursor:
        """A cursor on `view`."""
        return _Cursor(self, view, seed)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "recent", "rows": self.rows, "half_life": self.half_life}


class _Cursor:
    takes_feedback = is_stateful = False

    def __init__(self, config: Recent, view: View, seed: int) -> None:
        self._config, self._stream = config, Stream(seed, _PURPOSE)
        self.grow(view)

    def grow(self, view: View) -> None:
        self._anchors, self._count = view.anchors, drawable(view)

    def draw(self, step: int, n: int, batches: int = 1) -> Draw:
        count, life = self._count, self._config.half_life
        if life is None:
            size = min(count, self._config.rows or count)
            ranks = count - 1 - self._stream.integers(step, batches, n, size)
            return Draw(step, self._anchors.select(ranks), np.asarray(1.0 / size), np.asarray(1.0))
        # 1 - q**a and its inverse, with q = 2**(-1/life): exact for half-lives far above the number of rows too.
        rate = np.log(2.0) / life
        whole = -np.expm1(-rate * count)
        ages = np.floor(-np.log1p(-self._stream.uniforms(step, batches, n) * whole) / rate)
        ages = np.clip(ages, 0, count - 1).astype(np.int64)
        probability = np.exp(-rate * ages) * (-np.expm1(-rate) / whole)
        return Draw(step, self._anchors.select(count - 1 - ages), probability, np.ones_like(probability))

    def state(self) -> State:
        return {}
