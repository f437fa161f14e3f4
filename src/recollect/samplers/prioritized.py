"""`Prioritized`: rows that surprised more are drawn more often."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np

from recollect.errors import ArgumentError
from recollect.samplers.anchors import change, first_slots
from recollect.samplers.base import Cursor, Draw, Receipt, State, drawable
from recollect.samplers.places import Places
from recollect.samplers.plain import packed, unpacked
from recollect.samplers.schedules import Number, checked, plain, value_at
from recollect.samplers.weights import Proportional, Ranked
from recollect.view import F64, I64, Anchors, Slots, View

Kind = Literal["proportional", "rank"]
Normalize = Literal["batch", "buffer"]
_PURPOSE = 3


@dataclass(frozen=True)
class Prioritized:
    """Rows in proportion to p^alpha, where p is how surprising the row was when it was last trained on (Schaul, Quan,
    Antonoglou, Silver 2016, "Prioritized experience replay", arXiv 1511.05952).

    P(i) = p_i^alpha / Σ p^alpha, with p_i = signal + eps (`proportional`) or 1 / rank(i) (`rank`). One row is
    drawn from each of `batch_size` equal parts of the probability. `batch.weight` is (N P(i))^-beta over the largest
    such weight of the batch or of the buffer, `batch.probability` the raw P(i). Rows enter at the highest p seen so
    far, 1 at first, or with the priority given at append: the value of a field with the role `priority`, else
    `append(priority=)`.

    Ranks are exact at every draw: 1 is the highest p; of equal ones the row that came first. Cost of a draw and an
    update of 256 among a million rows: tens of microseconds proportional, a few hundred by rank
    (`benchmarks/samplers.py`).

    Args:
        alpha: 0 is uniform; 0.6 by default, 0.7 for ranks.
        beta: how much the weights correct, a number or a schedule; 0.4 by default, 0.5 for ranks.
        eps: added to every signal, above 0, so that no row is lost for good.
        normalize: which largest weight the weights are divided by. `"buffer"` is what TorchRL and cpprb do: one tiny
            priority then scales all weights down.
        kind: `"proportional"` or `"rank"`.

    Raises:
        ArgumentError: a number out of range.
    """

    alpha: float | None = None
    beta: Number | None = None
    eps: float = 1e-6
    normalize: Normalize = "batch"
    kind: Kind = "proportional"

    def __post_init__(self) -> None:
        if self.kind not in ("proportional", "rank"):
            raise ArgumentError("unknown kind", value=self.kind, remedy="Use 'proportional' or 'rank'")
        if self.normalize not in ("batch", "buffer"):
            raise ArgumentError("unknown normalize", value=self.normalize, remedy="Use 'batch' or 'buffer'")
        ranks = self.kind == "rank"
        if self.alpha is None:
            object.__setattr__(self, "alpha", 0.7 if ranks else 0.6)
        if self.beta is None:
            object.__setattr__(self, "beta", 0.5 if ranks else 0.4)
        if not isinstance(self.alpha, int | float) or not 0 <= self.alpha < np.inf:
            raise ArgumentError("alpha is a number of at least 0", value=self.alpha)
        if not isinstance(self.eps, int | float) or not 0 < self.eps < np.inf:
            raise ArgumentError(
                "eps is a number above 0", value=self.eps, remedy="A row of priority 0 is lost for good"
            )
        checked("beta", self.correction)

    @property
    def exponent(self) -> float:
        """alpha, with its default."""
        assert self.alpha is not None
        return float(self.alpha)

    @property
    def correction(self) -> Number:
        """beta, with its default."""
        assert self.beta is not None
        return self.beta

    def bind(self, view: View, seed: int, state: State | None = None) -> Cursor:
        """A cursor on `view`, every row at its entering priority unless a state says otherwise."""
        return _Cursor(self, view, seed, state)

    def to_dict(self) -> dict[str, Any]:
        return {
            "kind": "prioritized",
            "by": self.kind,
            "alpha": self.alpha,
            "beta": plain(self.correction),
            "eps": self.eps,
            "normalize": self.normalize,
        }


class Weights(Protocol):
    """Rows by place, and how they are drawn. A place holds a number above 0, or 0 where no row may be drawn."""

    @property
    def held(self) -> F64:
        """`[room]` what the places hold."""

    def from_priority(self, p: F64) -> F64:
        """What a place of priority `p` holds, above 0."""

    def set(self, places: I64, held: F64) -> None: ...
    def grow(self, room: int) -> None: ...
    def load(self, held: F64) -> None: ...
    def draw(self, step: int, n: int) -> tuple[I64, F64]:
        """Places `[n]` and their probabilities `[n]`."""

    def least(self) -> float:
        """The smallest probability of a row."""


class _Cursor:
    takes_feedback = is_stateful = True

    def __init__(self, config: Prioritized, view: View, seed: int, state: State | None) -> None:
        self._config = config
        make = Ranked if config.kind == "rank" else Proportional
        self._weights: Weights = make(config.exponent, seed, _PURPOSE)
        self._anchors: Anchors | None = None
        self._highest, self._places = 1.0, Places()
        if state is None:
            self.grow(view)
            return
        self._highest, self._places = float(state["highest"]), Places(unpacked(state["chunks"], np.int64))
        self._weights.load(unpacked(state["held"], np.float64))
        self._anchors, self._count = view.anchors, drawable(view)

    def draw(self, step: int, n: int, batches: int = 1) -> Draw:
        drawn = [self._weights.draw(step + k, n) for k in range(batches)]
        probability = np.stack([p for _, p in drawn])
        beta = np.array([[value_at(self._config.correction, step + k)] for k in range(batches)])
        if self._config.normalize == "batch":
            least: Any = probability.min(axis=1, keepdims=True)
        else:
            least = self._weights.least()
        return Draw(
            step, self._places.slots(np.stack([p for p, _ in drawn])), probability, (probability / least) ** -beta
        )

    def update(self, keys: Slots, signal: F64) -> Receipt:
        """Gives rows new priorities `[B]`. Raises ArgumentError for a signal that is no number of at least 0."""
        if np.shape(signal) != np.shape(keys):
            raise ArgumentError(
                "one signal a row", value=np.shape(signal), remedy=f"Pass signals of shape {np.shape(keys)}"
            )
        if not (np.isfinite(signal).all() and (signal >= 0).all()):
            wrong = signal[~(signal >= 0) | ~np.isfinite(signal)]
            raise ArgumentError(
                "priorities are finite numbers of at least 0", value=float(wrong[0]), remedy="Pass .abs()"
            )
        places = self._places.of(keys)
        held = self._weights.held
        inside = (places >= 0) & (places < len(held))
        known = inside & (held[np.where(inside, places, 0)] > 0)
        places, p = places[known], signal[known] + self._config.eps
        if len(p):
            self._weights.set(places, self._weights.from_priority(p))
            self._highest = max(self._highest, float(p.max()))
        return Receipt(len(places), len(keys) - len(places), 0)

    def grow(self, view: View) -> None:
        self._count = drawable(view)
        came = change(self._anchors, view.anchors)
        p = self._entering(view, came.added)
        weights = self._weights
        if len(came.removed):
            gone = self._places.of(came.removed)
            weights.set(gone[gone >= 0], np.zeros(int((gone >= 0).sum())))
        self._let_go(first_slots(view))
        if len(came.added):
            places = self._places.taken(came.added)
            weights.grow(int(places.max()) + 1)
            weights.set(places, weights.from_priority(p))
            self._highest = max(self._highest, float(p.max()))
        self._anchors = view.anchors  # last: what was interrupted is made again, with the same result

    def _entering(self, view: View, slots: Slots) -> F64:
        """The priorities `[n]` with which rows enter."""
        p = np.full(len(slots), self._highest)
        if not len(slots):
            return p
        leaf = view.schema.role("priority")
        appended = view.rows.gather(slots, ("priority",))["priority"].astype(np.float64)
        p = np.where(np.isnan(appended), p, appended + self._config.eps)
        if leaf is None:
            return p
        given = view.rows.gather(slots, (leaf.path,))[leaf.path].astype(np.float64).reshape(len(slots), -1)[:, 0]
        known = view.rows.valid(slots, leaf.path) & ~np.isnan(given)
        wrong = np.flatnonzero(known & ~((given >= 0) & np.isfinite(given)))
        if len(wrong):
            writer, seq = view.rows.ids(slots[wrong[:1]])[0].tolist()
            raise ArgumentError(
                f"{leaf.path!r} of step {writer}:{seq} is no priority",
                value=float(given[wrong[0]]),
                remedy="Priorities are finite numbers of at least 0; annotate the step, or leave it out with where()",
            )
        return np.where(known, given + self._config.eps, p)

    def _let_go(self, firsts: Sequence[int]) -> None:
        """Forgets places before the first rows once they are most of all."""
        held = self._places.let_go(firsts, self._weights.held)
        if held is not None:
            self._weights.load(held)

    def state(self) -> State:
        held = self._weights.held
        there = np.flatnonzero(held)
        stop = int(there[-1]) + 1 if len(there) else 0
        return {"highest": self._highest, "chunks": packed(self._places.chunks), "held": packed(held[:stop])}
