"""Waiting for rows, and how long was waited."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from recollect.errors import ArgumentError, WaitTimeout
from recollect.view import Source

LOOKS = 100
"""As often as once in so many looks it is asked who appends, which looks at the locks of all writers."""
LOOK_S = 0.002
"""Between two looks at a source: a row is drawn from at most so much later than it could be."""


@dataclass
class Clock:
    """Where a training loop's time went, from the first batch on.

    Attributes:
        waiting_s: inside `next`; `training_s` between one `next` and the following one.
        first_s: inside the first `next`, which compiles and opens what later ones use; it is in neither.
        batches: those after the first.
    """

    waiting_s: float = 0.0
    training_s: float = 0.0
    first_s: float = 0.0
    batches: int = 0
    _left: float | None = None

    def count(self, entered: float) -> None:
        """Counts one `next` that was entered at this time and returns now."""
        now = time.perf_counter()
        if self._left is None:
            self.first_s = now - entered
        else:
            self.training_s += entered - self._left
            self.waiting_s += now - entered
            self.batches += 1
        self._left = now

    def stats(self) -> dict[str, Any]:
        """See `Loader.stats`."""
        whole = self.waiting_s + self.training_s
        return {
            "waiting_s": self.waiting_s,
            "training_s": self.training_s,
            "waiting_share": self.waiting_s / whole if whole else 0.0,
            "waiting_us": self.waiting_s / max(1, self.batches) * 1e6,
            "first_s": self.first_s,
        }


def wait_for_rows(missing: Callable[[], int], source: Source, *, what: str, timeout_s: float) -> None:
    """Looks again and again until nothing is missing any more.

    Args:
        missing: how many rows must still come.
        what: asks for them, for people.

    Raises:
        ArgumentError: only this thread appends, so that waiting would never end.
        WaitTimeout: they did not come in time.
    """
    until = time.monotonic() + timeout_s
    alone = getattr(source, "is_alone", None)
    looks = 0
    while (lacking := missing()) > 0:
        looks += 1
        if alone is not None and looks % LOOKS == 1 and alone():
            raise ArgumentError(
                f"{what} asks for {lacking:,} more rows, and the only writer belongs to the thread that would wait",
                remedy="Append before next(), or let another thread or process append",
            )
        if time.monotonic() >= until:
            raise WaitTimeout(
                f"{what} asks for {lacking:,} more rows, which did not come within {timeout_s:g} s",
                remedy="See whether the agents still run, or allow a longer timeout_s; next() may be called again",
            )
        time.sleep(LOOK_S)
