"""`Prioritized`: its chances, weights, receipts, growth and state."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors
from recollect.samplers.base import Receipt
from tests.samplers.made import PLAIN, assert_true_to, drawn, plain_view, write

KINDS = ["proportional", "rank"]


def _drawable(view: rc.View) -> Any:
    return np.flatnonzero(view.anchors.mask(np.arange(len(view.rows))))


def _chances(kind: str, p: Any, alpha: float) -> Any:
    """By the definition, in exact sums."""
    if kind == "rank":
        order = np.lexsort((np.arange(len(p)), -p))
        rank = np.empty(len(p))
        rank[order] = np.arange(1, len(p) + 1)
        p = 1 / rank
    powers = p**alpha
    return powers / math.fsum(powers)


@pytest.mark.parametrize("kind", KINDS)
def test_draws_are_true_to_the_definition(kind: Any) -> None:
    view = plain_view(100)
    slots = _drawable(view)
    cursor: Any = rc.Prioritized(kind=kind, alpha=0.5).bind(view, 3)
    signal = np.random.default_rng(1).exponential(size=len(slots)) + 0.2
    assert cursor.update(slots, signal) == Receipt(len(slots), 0, 0)
    chances = np.zeros(len(view.rows))
    chances[slots] = _chances(kind, signal + 1e-6, 0.5)
    # Each batch is stratified, so that counts vary less than chance; batches of one are independent draws.
    counts, stated = drawn(cursor, view, batches=60_000, size=1)
    assert_true_to(counts, chances)
    assert np.allclose(stated[slots], chances[slots], rtol=1e-12, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_each_batch_takes_one_row_of_each_equal_part(kind: Any) -> None:
    view = plain_view(100)
    slots = _drawable(view)
    cursor: Any = rc.Prioritized(kind=kind).bind(view, 3)
    signal = np.random.default_rng(1).exponential(size=len(slots))
    cursor.update(slots, signal)
    p = _chances(kind, signal + 1e-6, 0.6 if kind == "proportional" else 0.7)
    order = np.arange(len(slots)) if kind == "proportional" else np.argsort(-p, kind="stable")
    edges = np.concatenate([[0], np.cumsum(p[order])])
    place = {int(slot): k for k, slot in enumerate(slots[order])}
    for step in range(50):
        at = np.array([place[int(k)] for k in cursor.draw(step, 16).keys[0]])
        part = np.arange(16) / 16
        assert (edges[at + 1] >= part - 1e-12).all() and (edges[at] <= part + 1 / 16 + 1e-12).all()


@pytest.mark.parametrize("normalize", ["batch", "buffer"])
@pytest.mark.parametrize("kind", KINDS)
def test_weights_follow_the_formula(kind: Any, normalize: Any) -> None:
    view = plain_view(60)
    slots = _drawable(view)
    beta = rc.Linear(0.4, 1.0, steps=10)
    cursor: Any = rc.Prioritized(kind=kind, alpha=0.6, beta=beta, normalize=normalize).bind(view, 3)
    signal = np.random.default_rng(1).exponential(size=len(slots))
    cursor.update(slots, signal)
    p = dict(zip(slots.tolist(), _chances(kind, signal + 1e-6, 0.6), strict=True))
    draw = cursor.draw(0, 32, 14)
    for step in range(14):
        exponent = 0.4 + 0.6 * min(step, 10) / 10
        raw = [(len(slots) * p[k]) ** -exponent for k in draw.keys[step].tolist()]
        most = max(raw) if normalize == "batch" else max((len(slots) * x) ** -exponent for x in p.values())
        assert np.allclose(draw.weight[step], np.array(raw) / most, rtol=1e-12, atol=0)
        assert np.allclose(draw.probability[step], [p[k] for k in draw.keys[step].tolist()], rtol=1e-12, atol=0)


def test_receipts_say_what_was_reached_and_the_last_of_equal_rows_counts() -> None:
    view = plain_view(30)
    lost = int(np.flatnonzero(~view.anchors.mask(np.arange(30)))[0])
    cursor: Any = rc.Prioritized(alpha=1.0).bind(view, 0)
    keys = np.array([0, -1, 1, lost, 1, 10**7])
    assert cursor.update(keys, np.array([5.0, 1.0, 9.0, 1.0, 2.0, 1.0])) == Receipt(3, 3, 0)
    _, stated = drawn(cursor, view, batches=300, size=16)
    total = 5 + 2 + 2e-6 + len(view) - 2
    assert stated[1] == pytest.approx((2 + 1e-6) / total, rel=1e-12)
    assert stated[0] == pytest.approx((5 + 1e-6) / total, rel=1e-12)
    assert cursor.update(np.empty(0, np.int64), np.empty(0)) == Receipt(0, 0, 0)


@pytest.mark.parametrize("bad", [np.nan, -1e-9, np.inf])
def test_a_signal_that_is_no_priority_changes_nothing(bad: float) -> None:
    view = plain_view(30)
    cursor: Any = rc.Prioritized().bind(view, 0)
    before = cursor.state()
    with pytest.raises(errors.ArgumentError, match="priorities"):
        cursor.update(np.array([0, 1]), np.array([1.0, bad]))
    with pytest.raises(errors.ArgumentError, match="one signal a row"):
        cursor.update(np.array([0, 1]), np.ones((2, 3)))
    assert cursor.state() == before


def test_priorities_too_high_to_be_summed_are_refused() -> None:
    cursor: Any = rc.Prioritized(alpha=1.0).bind(plain_view(30), 0)
    with pytest.raises(errors.ArgumentError, match="too high"):
        cursor.update(np.array([0]), np.array([1e300]))


@pytest.mark.parametrize("kind", KINDS)
def test_new_rows_enter_at_the_highest_priority_or_with_their_own(kind: Any) -> None:
    with rc.create_workspace("w", PLAIN) as ws:
        given = np.full(20, np.nan, np.float32)
        given[5], given[6] = 0.25, 0.125
        write(ws, 20, priority=given, prio=np.full(20, 0.75, np.float32), valid={"prio": np.arange(20) == 6})
        source = ws.live()
        cursor: Any = rc.Prioritized(kind=kind, alpha=1.0).bind(source.at(0), 0)
        held = cursor._weights.held
        assert held[0] == 1 and held[5] == 0.25 + 1e-6 and held[3] == 0
        assert held[6] == 0.75 + 1e-6
        cursor.update(np.array([0]), np.array([7.0]))
        write(ws, 20, first=20, prio=np.full(20, 0.5, np.float32), valid={"prio": np.arange(20) % 2 == 0})
        cursor.grow(source.at(1))
        held, slots = cursor._weights.held, np.arange(20, 40)
        want = np.where(slots % 2 == 0, 0.5 + 1e-6, 7.0 + 1e-6)
        assert np.array_equal(held[20:40], np.where(slots % 7 == 3, 0, want))
        assert held[0] == 7.0 + 1e-6 and held[5] == 0.25 + 1e-6


def test_a_given_priority_below_zero_is_refused_by_id() -> None:
    view = plain_view(3, prio=np.array([1, -1, 1], np.float32))
    with pytest.raises(errors.ArgumentError, match="'prio' of step"):
        rc.Prioritized().bind(view, 0)


@pytest.mark.parametrize("last", [None, 40])
@pytest.mark.parametrize("kind", KINDS)
def test_growing_keeps_what_is_known_and_lets_go_of_what_left(kind: Any, last: int | None) -> None:
    """Compared with a model of slot → priority, at every refresh, with rows that come late and rows that leave."""
    rng = np.random.default_rng(0)
    with rc.create_workspace("w", PLAIN) as ws:
        writer = ws.writer(durability="process")
        episodes = [writer.episode() for _ in range(3)]
        for _ in range(10):
            episodes[0].append(observation=0.0, uid=0)
        source = ws.live(last=last)
        cursor: Any = rc.Prioritized(kind=kind, alpha=1.0).bind(source.at(0), 5)
        model: dict[int, float] = {}
        highest = 1.0
        for turn in range(40):
            for _ in range(int(rng.integers(0, 12))):
                k = int(rng.integers(0, 3))
                end = bool(rng.random() < 0.2)
                episodes[k].append(observation=1.0, uid=1, terminated=end)
                if end:
                    episodes[k] = writer.episode()
            view = source.at(turn)
            cursor.grow(view)
            now = view.anchors.select(np.arange(len(view))).tolist()
            model = {slot: model.get(slot, highest) for slot in now}
            held = cursor._weights.held
            there = cursor._places.slots(np.flatnonzero(held))
            assert there.tolist() == now
            assert np.array_equal(held[cursor._places.of(there)], [model[s] for s in now])
            draw = cursor.draw(turn, 8)
            signal = rng.exponential(size=8)
            cursor.update(draw.keys[0], signal)
            for slot, s in zip(draw.keys[0].tolist(), signal.tolist(), strict=True):
                model[slot] = s + 1e-6
            highest = max(highest, float(signal.max()) + 1e-6)


def test_places_of_rows_that_left_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recollect.samplers.places.SHIFT", 6)
    with rc.create_workspace("w", PLAIN) as ws:
        write(ws, 50)
        source = ws.live(last=50)
        cursor: Any = rc.Prioritized().bind(source.at(0), 5)
        for turn in range(1, 30):
            write(ws, 50, first=50 * turn)
            view = source.at(turn)
            cursor.grow(view)
            keys = cursor.draw(turn, 32).keys[0]
            assert view.anchors.mask(keys).all()
            assert cursor.update(keys, np.ones(32)).applied == 32
        assert len(cursor._weights.held) < 600 and cursor._places.chunks[0] > 1000 >> 6


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_restores_every_later_draw_bit_for_bit(kind: Any) -> None:
    view = plain_view(200)
    config = rc.Prioritized(kind=kind, beta=rc.Linear(0.4, 1, steps=20))
    cursor: Any = config.bind(view, 5)
    rng = np.random.default_rng(2)
    for step in range(12):
        other: Any = config.bind(view, 5, json.loads(json.dumps(cursor.state())))
        assert other.state() == cursor.state()
        for ahead in range(3):
            a, b = cursor.draw(step + ahead, 32), other.draw(step + ahead, 32)
            assert all(x.tobytes() == y.tobytes() for x, y in zip(a[1:4], b[1:4], strict=True))
        cursor.update(cursor.draw(step, 32).keys[0], rng.exponential(size=32))


BAD: list[dict[str, Any]] = [
    {"alpha": -1},
    {"alpha": math.inf},
    {"beta": -0.1},
    {"beta": "x"},
    {"eps": 0.0},
    {"kind": "x"},
    {"normalize": "x"},
]


@pytest.mark.parametrize("options", BAD, ids=str)
def test_a_bad_option_is_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(errors.ArgumentError, match=next(iter(options))):
        rc.Prioritized(**options)


def test_defaults_are_those_of_the_paper() -> None:
    assert rc.Prioritized() == rc.Prioritized(alpha=0.6, beta=0.4, eps=1e-6, normalize="batch", kind="proportional")
    assert rc.Prioritized(kind="rank") == rc.Prioritized(kind="rank", alpha=0.7, beta=0.5)
    assert rc.Linear(1, 3, steps=4).at(3) == 2.5 and rc.Linear(1, 3, steps=4).at(100) == 3
    with pytest.raises(errors.ArgumentError, match="steps"):
        rc.Linear(0, 1, steps=0)
