"""Recent rows, reservoirs, strata and mixtures: chances, exact shares, states."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import recollect as rc
from recollect import errors
from recollect.samplers import stratified
from recollect.samplers.anchors import change, listed
from recollect.samplers.quotas import Quotas
from recollect.view import PART_SHIFT
from tests.samplers.made import PLAIN, assert_true_to, drawn, plain_view, write


def _rows(view: Any) -> Any:
    return view.anchors.select(np.arange(len(view)))


# -- recent ----------------------------------------------------------------------------------------------------------


def test_the_newest_rows_are_drawn_evenly() -> None:
    view = plain_view(200)
    counts, stated = drawn(rc.Recent(50).bind(view, 1), view, batches=200, size=128)
    chances = np.zeros(200)
    chances[_rows(view)[-50:]] = 1 / 50
    assert_true_to(counts, chances)
    assert np.array_equal(np.unique(stated[~np.isnan(stated)]), [1 / 50])


@pytest.mark.parametrize("half_life", [5.0, 40.0, 1e9])
def test_chances_halve_with_age(half_life: float) -> None:
    view = plain_view(60)
    slots = _rows(view)
    counts, stated = drawn(rc.Recent(half_life=half_life).bind(view, 1), view, batches=3000, size=128)
    chances = np.zeros(60)
    chances[slots] = 0.5 ** (np.arange(len(slots))[::-1] / half_life)
    chances /= chances.sum()
    seen = ~np.isnan(stated)
    assert np.allclose(stated[seen], chances[seen], rtol=1e-9)
    assert_true_to(counts, chances)


# -- reservoir -------------------------------------------------------------------------------------------------------


def test_every_row_is_in_the_reservoir_with_the_same_chance() -> None:
    """Over many seeds, rows that came at once and rows that came later."""
    with rc.create_workspace("w", PLAIN) as ws:
        write(ws, 20)
        source = ws.live()
        first = source.at(0)
        write(ws, 40, first=20)
        second = source.at(1)
        counts = np.zeros(60, np.int64)
        for seed in range(3000):
            cursor: Any = rc.Reservoir(8).bind(first, seed)
            cursor.grow(second)
            keys = unfold(cursor)
            assert len(np.unique(keys)) == 8
            counts[keys] += 1
        chances = np.zeros(60)
        chances[_rows(second)] = 1 / len(second)
        # Places without replacement vary less than independent draws: by (1 - 8 / N).
        there = _rows(second)
        want = counts.sum() / len(there)
        statistic = ((counts[there] - want) ** 2 / want).sum() / (1 - 8 / len(there))
        assert abs(statistic - (len(there) - 1)) < 4 * np.sqrt(2 * (len(there) - 1))


def unfold(cursor: Any) -> Any:
    return cursor._places[cursor._places >= 0]


def test_a_reservoir_is_drawn_from_evenly_and_keeps_its_state() -> None:
    with rc.create_workspace("w", PLAIN) as ws:
        write(ws, 30)
        source = ws.live(last=40)
        cursor: Any = rc.Reservoir(10).bind(source.at(0), 3)
        view = source.at(0)
        counts, _ = drawn(cursor, view, batches=200, size=64)
        chances = np.zeros(30)
        chances[unfold(cursor)] = 0.1
        assert_true_to(counts, chances)
        for turn in range(1, 12):
            other: Any = rc.Reservoir(10).bind(view, 3, json.loads(json.dumps(cursor.state())))
            write(ws, 9, first=30 + 9 * turn)
            view = source.at(turn)
            cursor.grow(view)
            other.grow(view)
            assert np.array_equal(cursor.draw(turn, 32).keys, other.draw(turn, 32).keys)
            assert view.anchors.mask(unfold(cursor)).all(), "rows that left the view are still drawn"


# -- shares ----------------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    st.lists(st.floats(0.01, 5), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 63)), min_size=1, max_size=30),
)
def test_shares_are_exact_and_batches_full(shares: list[float], batches: list[tuple[int, int]]) -> None:
    """Parts come and go; rows always add up; a part that has none gets none."""
    quotas = Quotas([0.0] * len(shares))
    for n, which in batches:
        filled = np.array([bool(which >> k & 1) for k in range(len(shares))])
        if not filled.any():
            continue
        counts, used = quotas.deal(np.array(shares), filled, n)
        assert counts.sum() == n and (counts >= 0).all()
        assert not counts[~filled].any() and not used[~filled].any()
        assert used.sum() == pytest.approx(1)
        again = Quotas(json.loads(json.dumps(quotas.owed)))
        assert again.owed == quotas.owed


def test_over_many_batches_no_part_is_a_row_away_from_its_share() -> None:
    shares = np.array([0.5, 0.3, 0.19, 0.01])
    quotas, sums = Quotas([0.0] * 4), np.zeros(4)
    for k in range(1, 500):
        counts, _ = quotas.deal(shares, np.ones(4, np.bool_), 7)
        sums += counts
        assert (np.abs(sums - shares * 7 * k) < 1 + 1e-9).all(), k


# -- strata ----------------------------------------------------------------------------------------------------------


def test_strata_have_their_exact_shares_and_even_chances() -> None:
    kinds = np.arange(300) % 3
    valid = np.arange(300) % 10 != 0
    view = plain_view(300, kind=kinds, valid={"kind": valid})
    quotas = {0: 0.5, 2: 0.3, None: 0.2}
    cursor = rc.Stratified(by="kind", quotas=quotas).bind(view, 2)
    counts, stated = drawn(cursor, view, batches=2000, size=30)
    slots = _rows(view)
    chances = np.zeros(300)
    for name, share in quotas.items():
        mine = slots[~valid[slots]] if name is None else slots[valid[slots] & (kinds[slots] == name)]
        chances[mine] = share / len(mine)
        assert counts[mine].sum() == round(2000 * 30 * share)
    assert np.allclose(stated[counts > 0], chances[counts > 0], rtol=1e-12)
    assert_true_to(counts, chances)


def test_strata_by_a_fact_and_by_a_flag_and_when_the_view_grows() -> None:
    with rc.create_workspace("w", PLAIN) as ws:
        writer = ws.writer()
        for k, task in enumerate(["a", "b", "a", "c"]):
            with writer.episode(task=task) as episode:
                for i in range(1 + 3 * k):
                    episode.append(observation=0.0, uid=100 * k + i, terminated=i == 3 * k)
        source = ws.live()
        view = source.at(0)
        cursor: Any = rc.Stratified(by="episode.task").bind(view, 0)
        uids = view.rows.gather(cursor.draw(0, 30).keys[0], ("uid",))["uid"] // 100
        assert [int(np.isin(uids, of).sum()) for of in ((0, 2), (1,), (3,))] == [10, 10, 10]
        flags: Any = rc.Stratified(by="terminated", quotas={True: 1}).bind(view, 0)
        assert view.rows.gather(flags.draw(0, 8).keys[0], ("terminated",))["terminated"].all()
        with writer.episode(task="d") as episode:
            episode.append(observation=0.0, uid=900, terminated=True)
        cursor.grow(source.at(1))
        uids = source.at(1).rows.gather(cursor.draw(1, 40).keys[0], ("uid",))["uid"]
        assert int((uids == 900).sum()) == 10


@pytest.mark.parametrize("by", ["kind", "episode.task", "terminated"])
@pytest.mark.parametrize("last", [None, 30])
def test_strata_of_a_growing_view_are_those_of_all_its_rows_looked_at_afresh(by: str, last: int | None) -> None:
    """Rows come, leave, become drawable late, and change their group through late facts."""
    rng = np.random.default_rng(3)
    with rc.create_workspace("w", PLAIN) as ws:
        writer = ws.writer(durability="process")
        episodes = [writer.episode(task="x") for _ in range(3)]
        source = ws.live(last=last)
        cursor: Any = None
        steps: list[Any] = []
        for turn in range(40):
            for _ in range(int(rng.integers(0, 7))):
                k, end = int(rng.integers(3)), bool(rng.random() < 0.2)
                kind = None if rng.random() < 0.2 else int(rng.integers(3))
                steps.append(episodes[k].append(observation=0.0, uid=0, kind=kind, terminated=end))
                if end:
                    episodes[k] = writer.episode(task="abc"[int(rng.integers(3))])
            if steps and turn % 7 == 3:
                ws.annotate(steps[int(rng.integers(len(steps)))], kind=7)
            view = source.at(turn)
            if not len(view):
                continue
            cursor = rc.Stratified(by).bind(view, 0) if cursor is None else cursor
            cursor.grow(view)
            afresh: Any = rc.Stratified(by).bind(view, 0)
            assert list(cursor._shares) == list(afresh._shares)
            for mine, other in zip(cursor._groups, afresh._groups, strict=True):
                assert mine.tolist() == other.tolist()


def test_strata_look_at_new_rows_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[int] = []
    whole = stratified._grouped

    def grouped(by: str, view: Any, slots: Any) -> Any:
        looked.append(len(slots))
        return whole(by, view, slots)

    monkeypatch.setattr(stratified, "_grouped", grouped)
    with rc.create_workspace("w", PLAIN) as ws:
        write(ws, 700, kind=np.arange(700) % 3, lost=False)
        source = ws.live()
        cursor: Any = rc.Stratified("kind").bind(source.at(0), 0)
        write(ws, 9, first=700, kind=np.arange(9) % 3, lost=False)
        cursor.grow(source.at(1))
        assert looked == [700, 9]


def test_strata_go_on_from_a_state() -> None:
    view = plain_view(90, kind=np.arange(90) % 3)
    config = rc.Stratified(by="kind", quotas={0: 0.45, 1: 0.33, 2: 0.22})
    cursor: Any = config.bind(view, 0)
    for step in range(10):
        other: Any = config.bind(view, 0, json.loads(json.dumps(cursor.state())))
        assert np.array_equal(other.draw(step, 7).keys, cursor.draw(step, 7).keys)


def test_what_cannot_be_grouped_is_refused() -> None:
    view = plain_view(9)
    with pytest.raises(errors.NotFound, match="nothing"):
        rc.Stratified(by="nothing").bind(view, 0)
    with pytest.raises(errors.ArgumentError, match="quota"):
        rc.Stratified(by="uid", quotas={1000: 1.0}).bind(view, 0)
    for quotas in ({}, {1: -1.0}, {1: 0.0}):
        with pytest.raises(errors.ArgumentError, match="quota"):
            rc.Stratified(by="uid", quotas=quotas)


# -- mixtures --------------------------------------------------------------------------------------------------------


def _joined(**views: Any) -> Any:
    return SimpleNamespace(parts=views)


def _parts(keys: Any) -> Any:
    return keys >> PART_SHIFT, keys & ((1 << PART_SHIFT) - 1)


def test_a_mixture_has_exact_shares_and_the_chances_it_states() -> None:
    views = {"old": plain_view(40), "new": plain_view(60)}
    mixture = rc.Mixture(old=(3, rc.Uniform()), new=(1, rc.Recent(20)))
    cursor: Any = mixture.bind(_joined(**views), 0)
    counts = {0: np.zeros(40, np.int64), 1: np.zeros(60, np.int64)}
    for step in range(2000):
        draw = cursor.draw(step, 60)
        part, slot = _parts(draw.keys[0])
        assert (np.diff(part) >= 0).all()
        for k in (0, 1):
            np.add.at(counts[k], slot[part == k], 1)
        want = np.where(part == 0, 0.75 / len(views["old"]), 0.25 / 20)
        assert np.allclose(draw.probability[0], want, rtol=1e-12)
    assert counts[0].sum() == 2000 * 60 * 3 // 4
    assert_true_to(counts[0], _even(_rows(views["old"]), 40))
    assert_true_to(counts[1], _even(_rows(views["new"])[-20:], 60))


def _even(slots: Any, size: int) -> Any:
    out = np.zeros(size)
    out[slots] = 1 / len(slots)
    return out


def test_the_share_of_an_empty_part_goes_to_the_others_until_it_has_rows() -> None:
    empty = rc.create_workspace("empty", PLAIN)
    source = empty.live()
    a, b = plain_view(40), plain_view(50)
    mixture = rc.Mixture(a=(0.25, rc.Uniform()), e=(0.5, rc.Prioritized()), b=(0.25, rc.Uniform()))
    cursor: Any = mixture.bind(_joined(a=a, e=source.at(0), b=b), 0)
    assert np.bincount(_parts(cursor.draw(0, 20).keys[0])[0], minlength=3).tolist() == [10, 0, 10]
    write(empty, 30)
    cursor.grow(_joined(a=a, e=source.at(1), b=b))
    assert np.bincount(_parts(cursor.draw(1, 20).keys[0])[0], minlength=3).tolist() == [5, 10, 5]


def test_shares_follow_their_schedules() -> None:
    mixture = rc.Mixture(a=(rc.Linear(1, 0, steps=10), rc.Uniform()), b=(rc.Linear(0, 1, steps=10), rc.Uniform()))
    cursor: Any = mixture.bind(_joined(a=plain_view(40), b=plain_view(50)), 0)
    got = [int((_parts(cursor.draw(step, 20).keys[0])[0] == 1).sum()) for step in range(12)]
    assert got == [2 * min(step, 10) for step in range(12)]


def test_updates_reach_their_own_part_and_states_go_on() -> None:
    views = _joined(a=plain_view(40), b=plain_view(50), c=plain_view(30))
    mixture = rc.Mixture(a=(1, rc.Prioritized()), b=(1, rc.Prioritized(kind="rank")), c=(1, rc.Uniform()))
    cursor: Any = mixture.bind(views, 0)
    assert cursor.takes_feedback
    rng = np.random.default_rng(0)
    for step in range(12):
        other: Any = mixture.bind(views, 0, json.loads(json.dumps(cursor.state())))
        draw, again = cursor.draw(step, 16), other.draw(step, 16)
        assert all(x.tobytes() == y.tobytes() for x, y in zip(draw[1:4], again[1:4], strict=True))
        part = _parts(draw.keys[0])[0]
        keys = np.append(draw.keys[0], -1)
        receipt = cursor.update(keys, rng.exponential(size=17))
        assert receipt == (int((part < 2).sum()), int((part == 2).sum()) + 1, 0)


def test_what_is_no_mixture_is_refused() -> None:
    with pytest.raises(errors.ArgumentError, match="parts"):
        rc.Mixture()
    with pytest.raises(errors.ArgumentError, match="share"):
        rc.Mixture(a=(-1, rc.Uniform()))
    with pytest.raises(errors.ArgumentError, match="'a'"):
        rc.Mixture(a=rc.Uniform())  # type: ignore[arg-type]
    with pytest.raises(errors.ArgumentError, match="parts"):
        rc.Mixture(a=(1, rc.Uniform())).bind(plain_view(5), 0)


# -- growth ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [None, 25])
def test_what_views_tell_of_their_growth_is_true(last: int | None) -> None:
    """Against whole lists, over views apart and next to each other."""
    rng = np.random.default_rng(1)
    with rc.create_workspace("w", PLAIN) as ws:
        writer = ws.writer(durability="process")
        episodes = [writer.episode() for _ in range(3)]
        source = ws.live(last=last)
        views = [source.at(0)]
        for turn in range(40):
            for _ in range(int(rng.integers(0, 9))):
                k = int(rng.integers(0, 3))
                end = rng.random()
                episodes[k].append(observation=0.0, uid=0, terminated=bool(end < 0.1), truncated=bool(0.1 < end < 0.2))
                if end < 0.2:
                    episodes[k] = writer.episode()
            views.append(source.at(turn))
            for older in views[-3:]:
                added, removed = change(older.anchors, views[-1].anchors)
                before, after = set(listed(older.anchors).tolist()), set(listed(views[-1].anchors).tolist())
                assert added.tolist() == sorted(after - before)
                assert removed.tolist() == sorted(before - after)
