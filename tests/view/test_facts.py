"""The newest fact wins, in whatever order facts are read."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from recollect.view import EpisodeKey, Fact, FactIndex, StepId

EPISODE = EpisodeKey(5, 0)
STEP = StepId(5, 0)
FACTS = [
    Fact(1, 0, 10, EPISODE, None, {"id": "mine", "attempt": 1, "reward": 1.0}),
    Fact(2, 0, 20, EPISODE, None, {"reward": 2.0}),
    Fact(3, 0, 30, EPISODE, STEP, {"reward": 3.0}),
    Fact(2, 1, 20, EPISODE, None, {"lesson": "x"}),
]


@pytest.mark.parametrize("order", list(itertools.permutations(range(4))), ids=str)
def test_the_newest_wins_in_any_order_of_reading(order: tuple[int, ...]) -> None:
    """An episode and a step whose two numbers are equal are still two things."""
    index = FactIndex.of(FACTS[k] for k in order)
    assert index.episodes[EPISODE] == {"id": "mine", "attempt": 1, "reward": 2.0, "lesson": "x"}
    assert index.steps[STEP] == {"reward": 3.0}
    assert len(index.history[EPISODE]) == 4
    assert index.keys_of("mine") == [EPISODE] and index.id_of(EPISODE) == "mine"


@pytest.mark.parametrize(
    ("one", "two"),
    [((1, 0, 10), (1, 1, 10)), ((1, 5, 10), (2, 0, 10)), ((9, 9, 9), (1, 0, 10))],
    ids=["by count", "by writer", "by time"],
)
def test_ties_break_by_writer_then_count(one: tuple[int, int, int], two: tuple[int, int, int]) -> None:
    older = Fact(*one, EPISODE, None, {"reward": 1.0})
    newer = Fact(*two, EPISODE, None, {"reward": 2.0})
    for facts in ([older, newer], [newer, older]):
        values: dict[str, Any] = FactIndex.of(facts).episodes[EPISODE]
        assert values == {"reward": 2.0}
