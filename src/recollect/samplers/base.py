"""What every sampler is: a frozen configuration that binds to a view and gives a cursor, and draws that name rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias

from recollect.view import F64, Slots, View

State: TypeAlias = Mapping[str, Any]
"""Plain values only, so that `torch.load(weights_only=True)` reads it."""


class Receipt(NamedTuple):
    """What a priority update reached."""

    applied: int
    unknown: int
    deleted: int


class Draw(NamedTuple):
    """Rows drawn for one or several batches: never tensors.

    Attributes:
        step: the first batch's number.
        keys: `[batches, n]` slots of the anchors; what updates and the ledger name. The last batch of an epoch may be
            short: `sizes` says how many of its keys count.
        probability: `[batches, n]` float64, the raw chance of each key over the whole view; a scalar array when equal.
        weight: like `probability`: importance weights.
        sizes: `[batches]` keys that count, None when all do.
    """

    step: int
    keys: Slots
    probability: F64
    weight: F64
    sizes: tuple[int, ...] | None = None


class Sampler(Protocol):
    """A frozen, comparable, serialisable configuration."""

    def bind(self, view: View, seed: int, state: State | None = None) -> Cursor: ...
    def to_dict(self) -> dict[str, Any]: ...


class Cursor(Protocol):
    """The only mutable thing of a sampler: one loader, one thread."""

    @property
    def takes_feedback(self) -> bool: ...
    def draw(self, step: int, n: int, batches: int = 1) -> Draw: ...
    def grow(self, view: View) -> None: ...
    def state(self) -> State: ...
