"""Random numbers that are a pure function of (seed, purpose, step), and draws that are what they claim to be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import recollect as rc
from recollect import errors
from recollect.samplers.streams import Stream, philox

PLAIN = rc.Schema({"observation": rc.Tensor("float32"), "uid": rc.Tensor("int64")})


def _view(rows: int, lost: int = 0) -> rc.View:
    """`rows` drawable rows between `lost` truncated ones that have no next observation."""
    ws = rc.create_workspace("w", PLAIN)
    writer = ws.writer(durability="process")
    keys = np.arange(rows + lost)
    writer.extend(
        {
            "episode": keys,
            "step": np.zeros_like(keys),
            "observation": keys.astype(float),
            "uid": keys,
            "terminated": keys % 7 != 3 if lost else keys >= 0,
            "truncated": keys % 7 == 3 if lost else keys < 0,
        }
    )
    return ws.view()


@pytest.mark.parametrize("counter", [(0, 0, 0, 0), (1, 2, 3, 4), (2**64 - 1, 5, 0, 2**63)])
@pytest.mark.parametrize("key", [(0, 0), (3, 7), (2**64 - 1, 2**63 + 1)])
def test_philox_equals_numpys(key: tuple[int, int], counter: tuple[int, int, int, int]) -> None:
    bits = np.random.Philox(counter=np.array(counter, np.uint64), key=np.array(key, np.uint64))
    # numpy advances its counter before it produces.
    value = sum(c << (64 * k) for k, c in enumerate(counter)) + 1
    words = [np.uint64((value >> (64 * k)) & (2**64 - 1)) for k in range(4)]
    with np.errstate(over="ignore"):
        got = philox(*words, np.uint64(key[0]), np.uint64(key[1]))
    assert [int(x) for x in got] == bits.random_raw(4).tolist()


def test_integers_follow_from_philox_alone() -> None:
    stream = Stream(5, 1)
    bound = 1_000_003
    got = stream.integers(9, 3, 10, bound)
    for s in range(3):
        for i in range(10):
            with np.errstate(over="ignore"):
                word = philox(np.uint64(i // 4), np.uint64(9 + s), np.uint64(0), np.uint64(0), *stream.key)[i % 4]
            assert got[s, i] == int(word) * bound >> 64


@pytest.mark.parametrize("bound", [1, 2, 3, 1000, 2**31, 2**53 + 1])
def test_integers_stay_in_bounds_and_do_not_depend_on_how_many_are_drawn(bound: int) -> None:
    stream = Stream(3, 1)
    whole = stream.integers(0, 20, 13, bound)
    assert whole.min() >= 0 and whole.max() < bound
    for step in (0, 7, 19):
        assert np.array_equal(stream.integers(step, 1, 13, bound)[0], whole[step])
    assert np.array_equal(stream.integers(5, 4, 13, bound), whole[5:9])
    assert np.array_equal(stream.integers(5, 1, 6, bound)[0], whole[5, :6])


def test_seeds_and_purposes_do_not_add_up() -> None:
    """(0, 1) and (1, 0) are different streams."""
    draws = {Stream(seed, path).integers(0, 1, 8, 2**60).tobytes() for seed in range(6) for path in range(6)}
    assert len(draws) == 36


def _chi_square(counts: NDArray[np.int64]) -> float:
    """Standardised: about normal with mean 0 and deviation 1 when every cell has the same chance."""
    want = counts.sum() / len(counts)
    freedom = len(counts) - 1
    statistic = float(((counts - want) ** 2 / want).sum())
    return float((statistic - freedom) / np.sqrt(2 * freedom))


def test_uniform_draws_every_row_with_the_same_chance_and_the_test_would_notice() -> None:
    rows, batches, size = 200, 500, 256
    view = _view(rows, lost=33)
    cursor = rc.Uniform().bind(view, seed=11)
    keys = cursor.draw(0, size, batches).keys.reshape(-1)
    assert view.anchors.mask(keys).all()
    uids = view.rows.gather(keys, ("uid",))["uid"]
    drawable = np.flatnonzero(view.anchors.mask(np.arange(len(view.rows))))
    names = view.rows.gather(drawable, ("uid",))["uid"]
    counts = np.array([int((uids == u).sum()) for u in names])
    assert counts.sum() == batches * size
    assert abs(_chi_square(counts)) < 4
    # A sampler that draws the first tenth 10% more often, and one that cycles, are both caught.
    rng = np.random.default_rng(0)
    chance = np.ones(len(names))
    chance[: len(names) // 10] = 1.1
    biased = np.bincount(rng.choice(len(names), batches * size, p=chance / chance.sum()), minlength=len(names))
    assert abs(_chi_square(biased)) > 4
    assert abs(_chi_square(np.bincount(np.arange(batches * size) % len(names)))) > 4


def test_draws_of_neighbouring_steps_are_independent() -> None:
    cursor = rc.Uniform().bind(_view(16), seed=3)
    keys = cursor.draw(0, 64, 2000).keys
    pairs = (keys[:-1] * 16 + keys[1:]).reshape(-1)
    assert abs(_chi_square(np.bincount(pairs, minlength=256))) < 4
    inside = (keys[:, :-1] * 16 + keys[:, 1:]).reshape(-1)
    assert abs(_chi_square(np.bincount(inside, minlength=256))) < 4


@pytest.mark.parametrize("size", [*range(1, 301), 1023, 1024, 1025, 65_537])
def test_a_permutation_is_a_bijection(size: int) -> None:
    whole = Stream(1, 2, size).permutation(0, size, size)
    assert np.array_equal(np.sort(whole), np.arange(size))
    half = size // 2
    assert np.array_equal(Stream(1, 2, size).permutation(half, size - half, size), whole[half:])


def test_permutations_of_epochs_look_like_shuffles() -> None:
    size = 30
    place = np.zeros((size, size), int)
    for epoch in range(3000):
        place[np.arange(size), Stream(0, 2, epoch).permutation(0, size, size)] += 1
    assert abs(_chi_square(place.reshape(-1))) < 5
    fixed = [int((Stream(7, 2, e).permutation(0, size, size) == np.arange(size)).sum()) for e in range(2000)]
    assert 0.8 < np.mean(fixed) < 1.2


@pytest.mark.parametrize(("rows", "batch"), [(1, 1), (1, 8), (7, 7), (23, 5), (64, 16), (100, 33)])
def test_epochs_visit_each_drawable_row_exactly_once(rows: int, batch: int) -> None:
    view = _view(rows, lost=rows)
    count = len(view)
    assert 0 < count < len(view.rows) or rows == 1
    orders: list[list[int]] = []
    for seed in (0, 1):
        cursor: Any = rc.Uniform().bind_epochs(view, seed, batch, 3)
        per_epoch = -(-count // batch)
        assert cursor.steps == 3 * per_epoch
        for epoch in range(3):
            draw = cursor.draw(epoch * per_epoch, batch, per_epoch)
            keys = draw.keys[draw.keys >= 0].tolist()
            assert sum(draw.sizes) == count == len(keys) == len(set(keys))
            assert view.anchors.mask(np.array(keys)).all()
            orders.append(keys)
    if count > 8:
        assert len({tuple(o) for o in orders}) == 6


def test_a_draw_is_a_function_of_seed_and_step_alone() -> None:
    view = _view(50)
    for cursors in ([rc.Uniform().bind(view, seed=s) for s in (4, 4, 5)],):
        one, same, other = cursors
        whole = one.draw(0, 8, 30).keys
        scattered = [same.draw(k, 8).keys[0] for k in (29, 3, 17, 3, 0)]
        assert [s.tolist() for s in scattered] == [whole[k].tolist() for k in (29, 3, 17, 3, 0)]
        assert not np.array_equal(other.draw(0, 8, 30).keys, whole)
    draw = rc.Uniform().bind(view, seed=4).draw(0, 8)
    assert float(draw.probability) == 1 / 50 and float(draw.weight) == 1.0


def test_nothing_to_draw_is_an_error() -> None:
    ws = rc.create_workspace("w", PLAIN)
    with pytest.raises(errors.ArgumentError, match="nothing can be drawn"):
        rc.Uniform().bind(ws.view(), seed=0)
