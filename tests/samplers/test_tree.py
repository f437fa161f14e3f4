"""The sum tree and the ranking against brute force."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recollect.samplers.ranking import BLOCK, Ranking
from recollect.samplers.tree import SumTree

WEIGHT = st.one_of(
    st.just(0.0),
    st.floats(0, 10),
    st.sampled_from([1.0, 0.1, 1e-300, 5e-324, 1e290, 2.0**-53, 1e16]),
    st.floats(0, 1e-9),
)
PUTS = st.lists(st.lists(st.tuples(st.integers(0, 199), WEIGHT), min_size=1, max_size=30), min_size=1, max_size=8)


def _bits(array: Any) -> bytes:
    return np.ascontiguousarray(array).tobytes()


def _all_nodes(tree: SumTree) -> bytes:
    return _bits(tree._nodes)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(PUTS, st.integers(1, 200))
def test_a_tree_is_its_leaves_and_nothing_else(puts: list[list[tuple[int, float]]], room: int) -> None:
    """However it came to be: duplicates (the last wins), growth in any order; the same nodes, bit for bit."""
    tree, model = SumTree(room), np.zeros(200)
    for batch in puts:
        places = np.array([p for p, _ in batch], np.int64)
        tree.grow(int(places.max()) + 1)
        tree.set(places, np.array([w for _, w in batch]))
        for place, weight in batch:
            model[place] = weight
    assert _bits(tree.leaves[:200]) == _bits(model[: tree.room])
    assert not tree.leaves[200:].any()
    again = SumTree(tree.room)
    again.load(0, tree.leaves)
    assert _all_nodes(again) == _all_nodes(tree)
    larger = SumTree(8 * tree.room)
    larger.load(0, tree.leaves)
    assert _bits(np.array(larger.total)) == _bits(np.array(tree.total)), "room changed a sum"
    assert tree.total == pytest.approx(model.sum(), rel=1e-12)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(st.lists(WEIGHT, min_size=1, max_size=120), st.lists(st.floats(0, 1), min_size=1, max_size=40))
def test_a_place_of_weight_zero_is_never_found(weights: list[float], parts: list[float]) -> None:
    model = np.array(weights)
    if not model.any():
        return
    tree = SumTree()
    tree.load(0, model)
    edges = np.cumsum(model)
    targets = np.concatenate([np.array(parts) * tree.total, edges, np.nextafter(edges, 0), [0.0, tree.total, np.inf]])
    places, values = tree.find(targets)
    assert (places < len(model)).all() and (values > 0).all()
    assert _bits(values) == _bits(model[places])


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    st.lists(st.integers(0, 1000), min_size=1, max_size=300), st.lists(st.floats(0, 1, exclude_max=True), min_size=1)
)
def test_the_place_under_a_target_is_that_of_the_running_sums(weights: list[int], parts: list[float]) -> None:
    """Whole numbers are summed without rounding, so there is one right answer."""
    model = np.array(weights, float)
    if not model.any():
        return
    tree = SumTree()
    tree.load(0, model)
    targets = np.floor(np.array(parts) * tree.total)
    assert np.array_equal(tree.find(targets)[0], np.searchsorted(np.cumsum(model), targets, side="right"))


def test_stratified_draws_take_one_of_each_equal_part() -> None:
    tree = SumTree()
    tree.load(0, np.ones(1000))
    key = (np.uint64(1), np.uint64(2))
    for step in range(20):
        places, values, total = tree.sample(key, step, 100)
        assert total == 1000 and (values == 1).all()
        assert np.array_equal(places // 10, np.arange(100))
    assert not np.array_equal(tree.sample(key, 0, 100)[0], tree.sample(key, 1, 100)[0])


class _Sorted:
    def __init__(self, values: Any) -> None:
        there = np.flatnonzero(values)
        self.order = there[np.lexsort((there, -values[there]))]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("levels", [3, 50, 10**6], ids=["many-ties", "ties", "distinct"])
def test_a_ranking_is_a_sort(levels: int, seed: int) -> None:
    """Moved, taken out, put in again, and enough of them that blocks split and merge."""
    rng = np.random.default_rng(seed)
    room = 12 * BLOCK
    model = rng.integers(0, levels, room) / levels
    ranking = Ranking(model)
    for turn in range(60):
        if turn == 30:
            room *= 2
            model = np.concatenate([model, np.zeros(room - len(model))])
            ranking.grow(room)
        places = rng.integers(0, room, 200)
        if turn % 3 == 0:
            places = np.sort(places) % BLOCK + BLOCK * int(rng.integers(0, 10))
        new = rng.integers(0, levels, 200) / levels * (rng.random(200) < (0.2 if turn % 4 else 0.9))
        ranking.set(places, new)
        model[places] = new
        want = _Sorted(model).order
        assert ranking.size == len(want)
        assert np.array_equal(ranking.values[:room], model)
        assert np.array_equal(ranking.select(np.arange(len(want))), want)
        few = np.sort(rng.integers(0, len(want), 16))
        assert np.array_equal(ranking.select(few), want[few])


def test_a_ranking_that_is_emptied_fills_again() -> None:
    ranking = Ranking(np.arange(1.0, 1001.0))
    for start in range(0, 1000, 50):
        ranking.set(np.arange(start, start + 50), np.zeros(50))
    assert ranking.size == 0
    ranking.set(np.array([7, 3, 7]), np.array([1.0, 2.0, 5.0]))
    assert ranking.select(np.arange(2)).tolist() == [7, 3]
