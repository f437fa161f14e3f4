"""What a growing source keeps of step facts: each field's newest value, for rows that are there or still to come."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from recollect.hot.read import step_facts
from recollect.hot.read.step_facts import StepFacts
from recollect.view import EpisodeKey, Fact, Ids, Slots, StepId


def _fact(seq: int, step: int, time_ns: int, **values: Any) -> Fact:
    return Fact(1, seq, time_ns, EpisodeKey(1, 0), StepId(1, step), values)


def test_the_newest_value_of_each_field_wins_in_whatever_order_facts_come() -> None:
    facts = StepFacts()
    for fact in (
        _fact(1, 7, 20, a="newer"),
        _fact(0, 7, 10, a="older", b="alone"),
        _fact(2, 8, 20, a="first"),
        _fact(3, 8, 20, a="second"),
        _fact(2, 8, 20, a="first"),
    ):
        facts.add(fact)
    assert list(facts) == [StepId(1, 7), StepId(1, 8)]
    assert facts.values([StepId(1, 7), StepId(1, 8), StepId(1, 9)]) == {
        StepId(1, 7): {"a": "newer", "b": "alone"},
        StepId(1, 8): {"a": "second"},
    }


def test_what_is_neither_there_nor_still_to_come_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_facts, "PRUNED_FROM", 10)
    facts = StepFacts()
    looks: list[int] = []

    def find(ids: Ids) -> Slots:
        looks.append(len(ids))
        return np.where(ids["seq"] >= 90, ids["seq"], -1)

    for step in range(100):
        facts.add(_fact(step, step, step, a=step))
    facts.prune(find, [StepId(1, 3)])
    assert sorted(i.seq for i in facts) == [3, *range(90, 100)]
    for step in range(100, 111):
        facts.add(_fact(step, step, step, a=step))
        facts.prune(find, [])
    assert looks == [100], "it looks again once there are twice as many"
    facts.add(_fact(111, 111, 111, a=111))
    facts.prune(find, [])
    assert looks == [100, 23] and StepId(1, 3) not in list(facts)
