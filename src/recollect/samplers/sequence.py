"""`Sequence`: stretches of an episode instead of single steps."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np

from recollect.errors import ArgumentError
from recollect.samplers.anchors import among, change
from recollect.samplers.base import Cursor, Draw, Receipt, Sampler, Span, State, feedback_of
from recollect.samplers.own import as_sampler, bound
from recollect.samplers.uniform import Uniform
from recollect.view import F64, Anchors, Bool, Slots, View


@dataclass(frozen=True)
class Sequence:
    """Draws `length` steps in a row, with `burn_in` steps before them (Kapturowski, Ostrovski, Quan, Munos, Dabney
    2019, "Recurrent experience replay in distributed reinforcement learning").

    Batches are `[B, T, ...]` with T = burn_in + length + bootstrap. A sequence never leaves its episode: where that has
    no step, `batch.mask` `[B, T]` is False and values are 0. `batch.ids` `[B]` names the first trained step of each
    sequence, `batch.step_ids` `[B, T]` every step. Signals `[B, T]` become one priority a sequence, eta × the highest
    + (1 - eta) × the mean over its trained steps; what they say of burn-in, bootstrap and padding does not count.

    Args:
        length: trained steps.
        burn_in: steps before them, fewer at an episode's beginning.
        stride: sequences begin at steps 0, stride, 2 stride ... of an episode: 40 with a length of 80 in the paper.
        pad: on which side shorter sequences are padded. With `"right"` the first trained step is column `burn_in`.
        bootstrap: steps behind the trained ones.
        start_only: sequences begin with the first step of an episode only.
        inner: chooses among the first steps.
        eta: 0.9 in the paper.

    Raises:
        ArgumentError: a number out of range.
    """

    length: int
    burn_in: int = 0
    stride: int = 1
    pad: Literal["left", "right"] = "right"
    bootstrap: int = 0
    start_only: bool = False
    inner: Sampler = field(default_factory=Uniform)
    eta: float = 0.9

    def __post_init__(self) -> None:
        for name, least in (("length", 1), ("burn_in", 0), ("stride", 1), ("bootstrap", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ArgumentError(f"{name} is a whole number of at least {least}", value=value)
        if self.pad not in ("left", "right"):
            raise ArgumentError("pad is a side", value=self.pad, remedy="Use 'left' or 'right'")
        if not 0 <= self.eta <= 1:
            raise ArgumentError("eta lies between 0 and 1", value=self.eta)
        object.__setattr__(self, "inner", as_sampler(self.inner))
        if isinstance(self.inner, Sequence):
            raise ArgumentError("inner is a sampler of single steps", value=self.inner, remedy="Pass rc.Prioritized()")

    @property
    def span(self) -> Span:
        """The steps around each key."""
        return Span(self.burn_in, self.length, self.bootstrap, self.pad)

    def bind(self, view: View, seed: int, state: State | None = None) -> Cursor:
        """A cursor on `view`."""
        return _Cursor(self, view, seed, state)

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": "sequence",
            "length": self.length,
            "burn_in": self.burn_in,
            "stride": self.stride,
            "pad": self.pad,
            "bootstrap": self.bootstrap,
            "start_only": self.start_only,
            "inner": self.inner.to_dict(),
            "eta": self.eta,
        }


class Steps(NamedTuple):
    """The steps of sequences, `[B, T]`.

    Attributes:
        slots: -1 where there is none.
        trained: which of them are trained on.
    """

    slots: Slots
    trained: Bool


def steps_of(view: View, keys: Slots, span: Span) -> Steps:
    """The steps around keys `[B]`. From the key on a sequence goes as far as steps could be drawn themselves."""
    away = np.arange(-span.before, span.trained + span.after)
    slots = view.episodes.offset(np.repeat(keys, len(away)), np.tile(away, len(keys))).reshape(len(keys), -1)
    there = slots >= 0
    on = slice(span.before, None)
    there[:, on] &= view.anchors.complete(slots[:, on].reshape(-1)).reshape(len(keys), -1)
    there[:, on] = np.logical_and.accumulate(there[:, on], axis=1)
    slots = np.where(there, slots, -1)
    trained = there & (away >= 0) & (away < span.trained)
    if span.pad == "left":
        behind = (~there[:, on]).sum(axis=1, keepdims=True)
        at = np.arange(len(away)) - behind
        slots = np.where(at >= 0, np.take_along_axis(slots, np.maximum(at, 0), 1), -1)
        trained = (at >= 0) & np.take_along_axis(trained, np.maximum(at, 0), 1)
    return Steps(slots, trained)


class _Cursor:
    def __init__(self, config: Sequence, view: View, seed: int, state: State | None) -> None:
        self._config = config
        self._anchors: Anchors | None = None
        self._starts = np.empty(0, np.int64)
        self._inner = bound(config.inner, self._narrowed(view), seed, None if state is None else state["inner"])
        self._anchors, self._view = view.anchors, view

    @property
    def takes_feedback(self) -> bool:
        return self._inner.takes_feedback

    @property
    def is_stateful(self) -> bool:
        return self._inner.is_stateful

    def _narrowed(self, view: View) -> View:
        """The view of which only first steps may be drawn."""
        stride = self._config.stride
        if stride == 1 and not self._config.start_only:
            return view
        came = change(self._anchors, view.anchors)
        step = view.rows.gather(came.added, ("step",))["step"]
        added = came.added[step == 0 if self._config.start_only else step % stride == 0]
        kept = self._starts[~among(self._starts, came.removed)]
        self._starts = np.sort(np.concatenate([kept, added]))
        return view.drawing(self._starts)

    def grow(self, view: View) -> None:
        narrowed = self._narrowed(view)
        self._anchors, self._view = view.anchors, view
        self._inner.grow(narrowed)

    def draw(self, step: int, n: int, batches: int = 1) -> Draw:
        return self._inner.draw(step, n, batches)._replace(span=self._config.span)

    def update(self, keys: Slots, signal: F64) -> Receipt:
        """Signals `[B, T]`, or priorities `[B]`, of the sequences that begin with `keys`."""
        span = self._config.span
        if signal.ndim == 2:
            if signal.shape != (len(keys), span.length):
                raise ArgumentError(
                    "signals are [B, T]", value=signal.shape, remedy=f"Pass {(len(keys), span.length)} of them"
                )
            trained = steps_of(self._view, keys, span).trained
            values = np.where(trained, signal, 0.0)
            mean = values.sum(axis=1) / np.maximum(trained.sum(axis=1), 1)
            signal = self._config.eta * values.max(axis=1) + (1 - self._config.eta) * mean
        return feedback_of(self._inner).update(keys, signal)

    def state(self) -> State:
        return {"inner": dict(self._inner.state())}
