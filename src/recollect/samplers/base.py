"""What every sampler is: a frozen configuration that binds to a view and gives a cursor, and draws that name rows."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias

from recollect.errors import ArgumentError
from recollect.view import F64, Slots, View

State: TypeAlias = Mapping[str, Any]
"""Plain values only, so that JSON and `torch.load(weights_only=True)` read it."""


class Receipt(NamedTuple):
    """What a priority update reached. In duplicates the last signal counts; each of them is counted here.

    Attributes:
        applied: entries whose row may be drawn.
        unknown: entries whose row the view does not hold, holds no more, or does not draw.
        deleted: entries whose row was deleted.
    """

    applied: int
    unknown: int
    deleted: int

    def __add__(self, other: object) -> Receipt:
        if not isinstance(other, Receipt):
            return NotImplemented
        return Receipt(*(a + b for a, b in zip(self, other, strict=True)))


class Span(NamedTuple):
    """The steps that belong to one key of a sequence.

    Attributes:
        before: steps before the key: burn-in.
        trained: the key and the trained steps after it.
        after: steps behind those, to bootstrap from.
        pad: the side on which shorter sequences are padded, `left` or `right`.
    """

    before: int
    trained: int
    after: int
    pad: str

    @property
    def length(self) -> int:
        """T, steps in all."""
        return self.before + self.trained + self.after


class Draw(NamedTuple):
    """Rows drawn for one or several batches: never tensors.

    Attributes:
        step: the first batch's number.
        keys: `[batches, n]` slots of the anchors; what updates and the ledger name. The last batch of an epoch may be
            short: `sizes` says how many of its keys count.
        probability: `[batches, n]` float64, the raw chance of each key over the whole view; a scalar array when equal.
        weight: like `probability`: importance weights.
        sizes: `[batches]` keys that count, None when all do.
        span: the steps around each key, None outside sequences.
    """

    step: int
    keys: Slots
    probability: F64
    weight: F64
    sizes: tuple[int, ...] | None = None
    span: Span | None = None


class Sampler(Protocol):
    """A frozen, comparable, serialisable configuration. Any class with these two methods is a sampler.

    A sampler of one's own, which draws the newest row and its `n - 1` predecessors:

        @dataclass(frozen=True)
        class Newest:
            def bind(self, view, seed, state=None):
                return NewestCursor(view)

            def to_dict(self):
                return {"kind": "my.newest"}

        class NewestCursor:
            takes_feedback = False       # has no use for update()
            is_stateful = False          # a draw depends on (view, seed, step) alone

            def __init__(self, view):
                self.grow(view)

            def grow(self, view):
                self.anchors, self.count = view.anchors, len(view)

            def draw(self, step, n, batches=1):
                ranks = np.tile(np.maximum(self.count - 1 - np.arange(n), 0), (batches, 1))
                return Draw(step, self.anchors.select(ranks), np.full((batches, n), 1 / n), np.ones((batches, n)))

            def state(self):
                return {}
    """

    def bind(self, view: View, seed: int, state: State | None = None) -> Cursor:
        """A cursor on `view`. With `state`, it goes on where `Cursor.state` was taken, on a view of the same rows."""
        ...

    def to_dict(self) -> dict[str, Any]:
        """The configuration in plain values; `kind` names the sampler."""
        ...


class Cursor(Protocol):
    """The only mutable thing of a sampler: one loader, one thread. A draw is a function of (view, configuration, state,
    seed, step).

    Attributes:
        takes_feedback: whether there is `update(keys, signal) -> Receipt`, see `Feedback`.
        is_stateful: whether a draw depends on earlier draws, growth or updates, so that batches cannot be drawn ahead.
    """

    @property
    def takes_feedback(self) -> bool: ...
    @property
    def is_stateful(self) -> bool: ...
    def draw(self, step: int, n: int, batches: int = 1) -> Draw: ...
    def grow(self, view: View) -> None: ...
    def state(self) -> State: ...


class Feedback(Protocol):
    """What a cursor that takes feedback has beside the rest."""

    def update(self, keys: Slots, signal: F64) -> Receipt:
        """Tells how surprising rows were.

        Args:
            keys: `[B]` slots; -1 is unknown.
            signal: `[B]`, or `[B, T]` under `Sequence`.
        """
        ...


def drawable(view: View) -> int:
    """Rows that may be drawn. Raises ArgumentError when there are none."""
    if not len(view):
        raise ArgumentError(
            f"nothing can be drawn from {view!r}",
            remedy="Wait for steps that terminated or whose next observation is known",
        )
    return len(view)


def feedback_of(cursor: Cursor) -> Feedback:
    """The cursor as one that takes feedback. Raises ArgumentError when it takes none."""
    if not cursor.takes_feedback:
        raise ArgumentError("this sampler takes no priorities", remedy="Use one that does, such as rc.Prioritized()")
    return cursor  # type: ignore[return-value]
