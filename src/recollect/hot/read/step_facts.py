"""The step facts that a growing source lays over its rows: the newest value of each field, no history."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from recollect.view import Fact, Ids, Slots, StepId, make_ids

PRUNED_FROM = 1024
"""So many steps are kept without asking which of them are still there."""
_Newest = dict[str, tuple[tuple[int, int, int], Any]]


class StepFacts:
    """The newest values of facts about steps that may still be read. Adding a fact twice changes nothing."""

    def __init__(self) -> None:
        self._of: dict[StepId, _Newest] = {}
        """By step and field: the order of the newest fact, and its value."""
        self._limit = PRUNED_FROM

    def __len__(self) -> int:
        return len(self._of)

    def __iter__(self) -> Iterator[StepId]:
        return iter(self._of)

    def add(self, fact: Fact) -> None:
        """Notes a fact about a step."""
        assert fact.step is not None
        mine = self._of.setdefault(fact.step, {})
        for name, value in fact.values.items():
            if name not in mine or mine[name][0] < fact.order:
                mine[name] = (fact.order, value)

    def values(self, steps: Iterable[StepId]) -> dict[StepId, Mapping[str, Any]]:
        """Field → newest value, for each step that has facts."""
        return {i: {name: value for name, (_, value) in self._of[i].items()} for i in steps if i in self._of}

    def forget(self, gone: Callable[[StepId], bool]) -> None:
        """Forgets what is about rows that are gone."""
        self._of = {i: newest for i, newest in self._of.items() if not gone(i)}

    def prune(self, find: Callable[[Ids], Slots], waiting: Iterable[StepId]) -> None:
        """Forgets what is about rows that are gone: neither found (-1) nor waited for. It looks once there may be twice
        as many as were left the last time, so that a fact costs the same however many there are."""
        if len(self._of) <= self._limit:
            return
        steps = list(self._of)
        slots = find(make_ids([i.writer for i in steps], [i.seq for i in steps]))
        kept = {steps[k] for k in np.flatnonzero(slots >= 0).tolist()} | set(waiting)
        self._of = {i: newest for i, newest in self._of.items() if i in kept}
        self._limit = max(PRUNED_FROM, 2 * len(self._of))
