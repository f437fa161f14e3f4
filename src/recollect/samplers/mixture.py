"""`Mixture`: exact shares of every batch from several views."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from recollect.errors import ArgumentError
from recollect.samplers.base import Cursor, Draw, Feedback, Receipt, Sampler, State, feedback_of
from recollect.samplers.own import as_sampler, bound
from recollect.samplers.quotas import Quotas
from recollect.samplers.schedules import Number, checked, plain, value_at
from recollect.samplers.sequence import Sequence
from recollect.samplers.streams import derived
from recollect.view import F64, I64, PART_SHIFT, Slots, View

_PURPOSE = 8


class Joined(Protocol):
    """A view made of several."""

    @property
    def parts(self) -> Mapping[str, View]: ...


@dataclass(frozen=True)
class Mixture:
    """Draws each batch from several parts in exact shares (Ball, Smith, Kostrikov, Levine 2023, "Efficient online
    reinforcement learning with offline data", arXiv 2302.02948, takes half from each).

        Mixture(offline=(0.5, Uniform()), online=(Linear(0.1, 0.5, steps=10**5), Prioritized()))

    Shares are numbers or schedules, scaled to a sum of 1 for each batch, and rounded to rows by largest remainder with
    the error carried: over many batches each part has its share to within a row. A part from which nothing can be drawn
    gives its share to the others, in proportion to theirs, and is owed nothing for it later. A batch holds part
    after part in the order of the arguments. `probability` is share × P within the part; weights are those of the
    parts.

    Raises:
        ArgumentError: no part, or one that is no (share, sampler).
    """

    parts: tuple[tuple[str, Number, Sampler], ...]

    def __init__(self, **parts: tuple[Number, Sampler]) -> None:
        if not parts:
            raise ArgumentError("a mixture has parts", remedy="Write Mixture(offline=(0.5, Uniform()), ...)")
        out = []
        for name, part in parts.items():
            if not (isinstance(part, tuple) and len(part) == 2):
                raise ArgumentError(
                    f"part {name!r} is a share and a sampler", value=part, remedy="Write (0.5, Uniform())"
                )
            if isinstance(part[1], Sequence):
                raise ArgumentError("a mixture draws single steps", value=part[1], remedy="Use a loader each")
            checked(f"the share of {name!r}", part[0])
            out.append((name, part[0], as_sampler(part[1])))
        object.__setattr__(self, "parts", tuple(out))

    def bind(self, view: View, seed: int, state: State | None = None) -> Cursor:
        """A cursor on a view that has these parts. Raises ArgumentError for another one."""
        return MixtureCursor(self, view, seed, state)

    def to_dict(self) -> dict[str, Any]:
        parts = [{"name": name, "share": plain(share), "sampler": s.to_dict()} for name, share, s in self.parts]
        return {"kind": "mixture", "parts": parts}


class MixtureCursor:
    is_stateful = True

    def __init__(self, config: Mixture, view: View, seed: int, state: State | None) -> None:
        self._config, self._seed = config, seed
        self._names = [name for name, _, _ in config.parts]
        self._cursors: list[Cursor | None] = [None] * len(self._names)
        self._kept: list[State | None] = [None] * len(self._names)
        if state is not None:
            self._kept = [state["parts"][name] for name in self._names]
        self._quotas = Quotas([0.0] * len(self._names) if state is None else state["owed"])
        self.grow(view)

    @property
    def takes_feedback(self) -> bool:
        """Whether some part does."""
        return any(c is not None and c.takes_feedback for c in self._cursors)

    def grow(self, view: View) -> None:
        """Goes on with a later view. A part is bound when something can first be drawn from it."""
        views: Mapping[str, View] = getattr(view, "parts", {})
        if list(views) != self._names:
            raise ArgumentError(
                f"the mixture has the parts {self._names}", value=list(views), remedy="Join views under the same names"
            )
        self._filled = np.array([len(v) > 0 for v in views.values()])
        if not self._filled.any():
            raise ArgumentError("nothing can be drawn from any part", value=self._names)
        for k, part in enumerate(views.values()):
            cursor = self._cursors[k]
            if not self._filled[k]:
                continue
            if cursor is not None:
                cursor.grow(part)
            else:
                seed = derived(self._seed, _PURPOSE, k)
                self._cursors[k] = bound(self._config.parts[k][2], part, seed, self._kept[k])

    def draw(self, step: int, n: int, batches: int = 1) -> Draw:
        drawn = [self._one(step + k, n) for k in range(batches)]
        keys, probability, weight = (np.stack(arrays) for arrays in zip(*drawn, strict=True))
        return Draw(step, keys, probability, weight)

    def _one(self, step: int, n: int) -> tuple[Slots, F64, F64]:
        shares = np.array([value_at(share, step) for _, share, _ in self._config.parts])
        counts, used = self._quotas.deal(shares, self._filled, n)
        keys, probability, weight = [], [], []
        for k, count in enumerate(counts.tolist()):
            cursor = self._cursors[k]
            if not count or cursor is None:
                continue
            draw = cursor.draw(step, count)
            keys.append(draw.keys[0] | (k << PART_SHIFT))
            probability.append(used[k] * np.broadcast_to(draw.probability, draw.keys.shape)[0])
            weight.append(np.broadcast_to(draw.weight, draw.keys.shape)[0])
        return np.concatenate(keys), np.concatenate(probability), np.concatenate(weight)

    def update(self, keys: Slots, signal: F64) -> Receipt:
        """Hands each part the signals `[B]` of its own keys; those of parts that take none are unknown."""
        part: I64 = np.where(keys < 0, -1, keys >> PART_SHIFT)
        receipt = Receipt(0, int((part < 0).sum()), 0)
        for k, cursor in enumerate(self._cursors):
            mine = part == k
            if not mine.any():
                continue
            if cursor is None or not cursor.takes_feedback:
                receipt += Receipt(0, int(mine.sum()), 0)
                continue
            fed: Feedback = feedback_of(cursor)
            receipt += fed.update(keys[mine] & ((1 << PART_SHIFT) - 1), signal[mine])
        return receipt

    def state(self) -> State:
        parts = {
            name: kept if cursor is None else cursor.state()
            for name, cursor, kept in zip(self._names, self._cursors, self._kept, strict=True)
        }
        return {"owed": self._quotas.owed, "parts": parts}
