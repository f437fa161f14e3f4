"""Numbers that change with the step: a plain number, `Linear`, or any schedule of one's own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

from recollect.errors import ArgumentError


class Schedule(Protocol):
    """A number for each batch: frozen, comparable, serialisable."""

    def at(self, step: int) -> float:
        """The value for batch `step`, counted from 0."""
        ...

    def to_dict(self) -> dict[str, Any]: ...


Number: TypeAlias = float | Schedule


@dataclass(frozen=True)
class Linear:
    """From `start` to `stop` in equal steps, `stop` from batch `steps` on.

    Args:
        start, stop: the values at batch 0 and from batch `steps` on.
        steps: batches in between, at least 1.
    """

    start: float
    stop: float
    steps: int

    def __post_init__(self) -> None:
        if not isinstance(self.steps, int) or self.steps < 1:
            raise ArgumentError("steps is a whole number of at least 1", value=self.steps)

    def at(self, step: int) -> float:
        """The value for batch `step`."""
        if step >= self.steps:
            return self.stop
        return self.start + (self.stop - self.start) * (step / self.steps)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "linear", "start": self.start, "stop": self.stop, "steps": self.steps}


def value_at(number: Number, step: int) -> float:
    """The value for batch `step`."""
    return float(number) if isinstance(number, int | float) else float(number.at(step))


def plain(number: Number) -> float | Mapping[str, Any]:
    """The number in plain values."""
    return number if isinstance(number, int | float) else number.to_dict()


def checked(name: str, number: Number, least: float = 0.0) -> None:
    """Raises ArgumentError unless it is a number or a schedule, and at least `least` at its beginning and far out."""
    if isinstance(number, bool) or not (isinstance(number, int | float) or hasattr(number, "at")):
        raise ArgumentError(f"{name} is a number or a schedule", value=number, remedy="Write 0.4 or rc.Linear(...)")
    if not all(least <= value_at(number, step) < float("inf") for step in (0, 1 << 40)):
        raise ArgumentError(f"{name} is a number of at least {least:g}", value=number)
