"""Samplers of one's own: functions taken as samplers, and every draw of a stranger checked before rows are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from recollect.errors import ArgumentError
from recollect.samplers.base import Cursor, Draw, Receipt, Sampler, State, drawable, feedback_of
from recollect.samplers.streams import Stream
from recollect.view import F64, Slots, View, described

_PURPOSE = 9
_CURSOR = ("takes_feedback", "is_stateful", "draw", "grow", "state")

Choose: TypeAlias = Callable[[View, np.random.Generator, int], tuple[Slots, F64]]
"""Given a view, random numbers and n: slots `[n]` int64 of drawable rows, and the chance of each `[n]`."""


@dataclass(frozen=True)
class Chosen:
    """A function as a sampler: what it returns is drawn, with weights of 1.

        def newest(view, rng, n):
            ranks = len(view) - 1 - rng.integers(0, min(100, len(view)), n)
            return view.anchors.select(ranks), np.full(n, 1 / min(100, len(view)))

    The random numbers belong to the batch, so that a function that depends on its arguments alone gives the same draws
    after a resume. A loader's state names the function by module and name. Where draws depend on what came before, on
    priorities for one, write a class with `bind` and `to_dict` (`Sampler`).
    """

    choose: Choose

    def bind(self, view: View, seed: int, state: State | None = None) -> Cursor:
        """A cursor on `view`."""
        return _ChosenCursor(self.choose, view, seed)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "function", "name": described(self.choose)}

    def __repr__(self) -> str:
        return described(self.choose)


class _ChosenCursor:
    takes_feedback = is_stateful = False

    def __init__(self, choose: Choose, view: View, seed: int) -> None:
        self._choose, self._key = choose, np.array(Stream(seed, _PURPOSE).key, np.uint64)
        self.grow(view)

    def grow(self, view: View) -> None:
        drawable(view)
        self._view = view

    def draw(self, step: int, n: int, batches: int = 1) -> Draw:
        keys, chances = [], []
        for k in range(batches):
            rng = np.random.Generator(np.random.Philox(key=self._key, counter=np.array([0, 0, step + k, 0], np.uint64)))
            given: Any = self._choose(self._view, rng, n)
            if not (isinstance(given, tuple) and len(given) == 2):
                raise ArgumentError(
                    f"the sampler {described(self._choose)} returns slots and their chances",
                    value=type(given).__name__,
                    remedy="Return (slots, probability), both [n]",
                )
            slots, probability = np.asarray(given[0]), np.asarray(given[1], np.float64)
            if slots.shape != (n,) or probability.shape != (n,):
                raise ArgumentError(
                    f"the sampler {described(self._choose)} was asked for {n} rows",
                    value=(slots.shape, probability.shape),
                    remedy=f"Return slots and chances of shape {(n,)}",
                )
            keys.append(slots)
            chances.append(probability)
        return Draw(step, np.stack(keys), np.stack(chances), np.asarray(1.0))

    def state(self) -> State:
        return {}


def as_sampler(given: Any) -> Sampler:
    """What was given as a sampler, as one: an object with `bind` and `to_dict`, or a function for `Chosen`.

    Raises:
        ArgumentError: it is neither.
    """
    if isinstance(given, type):
        raise ArgumentError("a sampler is an instance", value=given, remedy=f"Write {given.__name__}()")
    if callable(getattr(given, "bind", None)) and callable(getattr(given, "to_dict", None)):
        out: Sampler = given
        return out
    if callable(given):
        return Chosen(given)
    raise ArgumentError(
        "a sampler has bind() and to_dict(), or is a function of (view, rng, n)",
        value=given,
        remedy="Pass rc.Uniform(), or see recollect.samplers.base.Sampler",
    )


def bound(sampler: Sampler, view: View, seed: int, state: State | None) -> Cursor:
    """The sampler's cursor on a view; draws of a sampler that is not from here are checked.

    Raises:
        ArgumentError: the cursor lacks something that cursors have; named.
    """
    cursor = sampler.bind(view, seed, state)
    if isinstance(sampler, Chosen) or not type(sampler).__module__.startswith("recollect.samplers"):
        return CheckedCursor(sampler, cursor, view)
    return cursor


class CheckedCursor:
    """A cursor whose draws are looked at before they are believed."""

    def __init__(self, sampler: Sampler, cursor: Cursor, view: View) -> None:
        self._sampler, self._cursor, self._anchors = sampler, cursor, view.anchors
        lacking = [name for name in _CURSOR if not hasattr(cursor, name)]
        if lacking or (cursor.takes_feedback and not hasattr(cursor, "update")):
            lacking = lacking or ["update"]
            raise ArgumentError(
                f"the cursor of sampler {sampler!r} has no {lacking[0]}",
                value=cursor,
                remedy="recollect.samplers.base.Cursor says what a cursor has",
            )

    @property
    def takes_feedback(self) -> bool:
        return bool(self._cursor.takes_feedback)

    @property
    def is_stateful(self) -> bool:
        return bool(self._cursor.is_stateful)

    def grow(self, view: View) -> None:
        self._cursor.grow(view)
        self._anchors = view.anchors

    def draw(self, step: int, n: int, batches: int = 1) -> Draw:
        """The draw, if it is one.

        Raises:
            ArgumentError: wrong shapes, rows that may not be drawn, or chances that are none; names the sampler.
        """
        draw = self._cursor.draw(step, n, batches)
        if not isinstance(draw, Draw):
            raise self._refused("returns no Draw", type(draw).__name__, "Return recollect.samplers.Draw(...)")
        keys = draw.keys
        if not isinstance(keys, np.ndarray) or keys.dtype != np.int64 or keys.shape != (batches, n):
            told = (getattr(keys, "shape", None), str(getattr(keys, "dtype", type(keys).__name__)))
            raise self._refused("drew keys of a wrong shape or dtype", told, f"Return int64 of shape {(batches, n)}")
        if draw.step != step or draw.sizes is not None or draw.span is not None:
            raise self._refused("drew for another step, or sizes or spans", draw.step, "Leave sizes and span None")
        flat = keys.reshape(-1)
        outside = np.flatnonzero(~((flat >= 0) & self._anchors.mask(flat)))
        if len(outside):
            raise self._refused(
                "drew a row that is not in the view, or may not be drawn",
                int(flat[outside[0]]),
                "Draw slots that view.anchors.select(ranks) gives for ranks below len(view)",
            )
        probability = self._numbers("probability", draw.probability, keys.shape)
        if not ((probability > 0) & (probability <= 1 + 1e-9)).all():
            wrong = probability[~((probability > 0) & (probability <= 1 + 1e-9))]
            raise self._refused("stated a chance that is none", float(wrong[0]), "Chances lie above 0 and up to 1")
        weight = self._numbers("weight", draw.weight, keys.shape)
        if not ((weight >= 0) & np.isfinite(weight)).all():
            wrong = weight[~((weight >= 0) & np.isfinite(weight))]
            raise self._refused("gave a weight that is none", float(wrong[0]), "Weights are finite and at least 0")
        return draw._replace(probability=probability, weight=weight)

    def _numbers(self, name: str, values: Any, shape: tuple[int, ...]) -> F64:
        """Numbers `[batches, n]`; a scalar stands for all."""
        given = np.asarray(values, np.float64)
        if given.shape not in ((), shape):
            raise self._refused(f"gave a {name} of a wrong shape", given.shape, f"Return {shape}, or one for all")
        return given

    def update(self, keys: Slots, signal: F64) -> Receipt:
        receipt = feedback_of(self._cursor).update(keys, signal)
        if not isinstance(receipt, Receipt):
            raise self._refused("returns no Receipt from update()", receipt, "Return rc.Receipt(applied, unknown, 0)")
        return receipt

    def state(self) -> State:
        """The cursor's state, if it is plain."""
        state = self._cursor.state()
        try:
            json.dumps(state)
        except (TypeError, ValueError) as error:
            raise self._refused("has a state that is not plain", str(error), "Keep numbers, text and lists") from None
        return state

    def _refused(self, what: str, value: Any, remedy: str) -> ArgumentError:
        return ArgumentError(f"the sampler {self._sampler!r} {what}", value=value, remedy=remedy)
