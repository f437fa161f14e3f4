"""`RateLimit`: how often a row may be drawn for each row that came."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from recollect.errors import ArgumentError


@dataclass(frozen=True)
class RateLimit:
    """Holds back draws, never appends (Cassirer, Barth-Maron, Brevdo et al. 2021, "Reverb: a framework for experience
    replay", arXiv 2102.04736, section 3.3; its `SampleToInsertRatio`).

    A batch of n rows is drawn once at least `min_rows` came, and

        samples_per_insert × rows that came - rows drawn - n ≥ samples_per_insert × min_rows - tolerance

    so that in the long run each row that came is drawn `samples_per_insert` times on average, and draws are never
    more than `tolerance` rows ahead of that. Reverb holds writers back as well; a workspace's writers are never held
    back, so that there is no bound below: a slow learner draws each row less often. `loader.stats()` says the ratio.

    Rows that came are those that could be drawn when the loader was made, and every row that could since. Rows
    drawn are counted when they are drawn, over all ranks. A resumed loader counts on.

    Args:
        samples_per_insert: above 0.
        min_rows: rows that must have come before the first batch.
        tolerance: in rows drawn, at least max(1, samples_per_insert) as in Reverb, where it is `error_buffer`; the
            larger of `batch_size` and `samples_per_insert` when None.
        timeout_s: how long `next` waits before it raises WaitTimeout.

    Raises:
        ArgumentError: a number out of range.
    """

    samples_per_insert: float
    min_rows: int = 1
    tolerance: float | None = None
    timeout_s: float = 60.0

    def __post_init__(self) -> None:
        if not _positive(self.samples_per_insert):
            raise ArgumentError("samples_per_insert is a number above 0", value=self.samples_per_insert)
        if not isinstance(self.min_rows, int) or self.min_rows < 1:
            raise ArgumentError("min_rows is a whole number of at least 1", value=self.min_rows)
        least = max(1.0, self.samples_per_insert)
        if self.tolerance is not None and not (_positive(self.tolerance) and self.tolerance >= least):
            raise ArgumentError(
                "a smaller tolerance than max(1, samples_per_insert) could hold back every draw",
                value=self.tolerance,
                remedy=f"Pass {least:g} or more",
            )
        if not isinstance(self.timeout_s, int | float) or not self.timeout_s >= 0:
            raise ArgumentError("timeout_s is a number of seconds of at least 0", value=self.timeout_s)

    def missing(self, inserted: int, drawn: int, rows: int) -> int:
        """How many more rows must come before so many may be drawn; 0 when they may be drawn now.

        Args:
            inserted: rows that came; `drawn` those drawn before.
        """
        tolerance = max(float(rows), self.samples_per_insert) if self.tolerance is None else self.tolerance
        ahead = drawn + rows - tolerance - self.samples_per_insert * (inserted - self.min_rows)
        # Ratios such as 0.95 are no binary fractions; a rounding must not ask for one more row.
        return max(self.min_rows - inserted, math.ceil(ahead / self.samples_per_insert - 1e-9), 0)

    def to_dict(self) -> dict[str, Any]:
        return {
            "samples_per_insert": self.samples_per_insert,
            "min_rows": self.min_rows,
            "tolerance": self.tolerance,
        }


def _positive(value: Any) -> bool:
    return isinstance(value, int | float) and 0 < value < math.inf
