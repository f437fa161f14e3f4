"""`Passes`: blocks take turns so that every row is visited once in each epoch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from recollect.cache.rotation import SPARE, BoundRotation, Version
from recollect.cache.schedule import ROTATE
from recollect.errors import ArgumentError
from recollect.samplers.streams import Stream
from recollect.view import View


@dataclass(frozen=True)
class PassSchedule:
    """Each epoch has a random order of all blocks, cut into groups of `resident` blocks: one a turn."""

    seed: int
    units: int
    resident: int

    @property
    def groups(self) -> int:
        """Turns of an epoch."""
        return -(-self.units // self.resident)

    def resident_at(self, turn: int) -> tuple[int, ...]:
        """The blocks of a turn."""
        epoch, group = divmod(turn, self.groups)
        order = Stream(self.seed, ROTATE, epoch).permutation(0, self.units, self.units)
        return tuple(int(u) for u in order[group * self.resident : (group + 1) * self.resident])


class Passes(BoundRotation):
    """Successive views for a loader that counts epochs. A turn ends when each of its rows was visited, so that its last
    batch may be short. Where a turn begins depends on the turns before it: a mark says it.

    Attributes:
        turn: that of the newest view; `first` its first batch.
    """

    def __init__(
        self,
        version: Version,
        seed: int,
        batch_size: int,
        reach: int,
        depth: int,
        stack: int,
        resident: int,
        epochs: int,
    ) -> None:
        super().__init__(version, seed, batch_size, reach, depth, stack, resident, reuse=1.0)
        units = len(self._units)
        # The blocks of the turn before stay while batches drawn from them wait.
        resident = units if resident >= units else max(1, (resident + SPARE) // 2)
        self._passes = PassSchedule(seed, units, resident)
        self._turns = epochs * self._passes.groups
        self._firsts: dict[int, int] = {}
        self.turn, self.first = 0, 0

    def at(self, step: int) -> View:
        """The view that batch `step` is drawn from: the present one, or that of the next turn."""
        view = self._begin(self.turn, self.first)
        while step >= self._stop(view) and self.turn + 1 < self._turns:
            view = self._begin(self.turn + 1, self._stop(view))
        return view

    def is_over(self, step: int) -> bool:
        """Whether the last epoch ended before batch `step`."""
        return step >= self._stop(self.at(step))

    def _stop(self, view: View) -> int:
        return self.first + -(-len(view) // self._batch)

    def _begin(self, turn: int, first: int) -> View:
        view = self._go_to(turn)
        self._firsts = {t: f for t, f in self._firsts.items() if t in self._known} | {turn: first}
        self.turn, self.first = turn, first
        return view

    def _coming(self, turn: int) -> tuple[int, ...]:
        return self._passes.resident_at(turn)

    def _look_ahead(self, turn: int) -> None:
        if turn + 1 < self._turns:
            super()._look_ahead(turn)

    def mark(self, view: View) -> dict[str, Any]:
        """Names one of its views in plain values."""
        turn, first = self.turn, self.first
        if view is not self._view:
            turn = max(t for t, known in self._known.items() if known is view)
            first = self._firsts[turn]
        return {"turn": turn, "first": first, **self._identity()}

    def _identity(self) -> dict[str, Any]:
        return {"rows": self._digest(), "blocks": self._passes.units, "resident": self._passes.resident}

    def restore(self, marks: Sequence[Mapping[str, Any]]) -> list[View]:
        """The views that marks name; the source goes on from the last.

        Raises:
            ArgumentError: they were taken on other rows, or with other room for them.
        """
        for mark in marks:
            for name, value in self._identity().items():
                if mark.get(name) != value:
                    raise ArgumentError(
                        f"the state was taken with another {name}: {mark.get(name)}, not {value}",
                        remedy="Open the same version, with the resident_bytes it was taken with",
                    )
        return [self._begin(int(mark["turn"]), int(mark["first"])) for mark in marks]

    def stats(self, step: int) -> dict[str, Any]:
        """What is resident. See `Loader.stats`."""
        resident = list(self._coming(self.turn))
        return {
            "total_rows": int(self._rows.sum()),
            "resident_rows": int(self._rows[resident].sum()),
            "blocks": self._passes.units,
            "resident_blocks": len(resident),
            "rotations": self.turn,
            "epoch": self.turn // self._passes.groups,
            "loads": self._loads,
            "hit_rate": self._hits / self._loads if self._loads else 1.0,
            "waited_s": self._waited,
        }
