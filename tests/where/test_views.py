"""`view.where`: what may be drawn is restricted, what may be read is not, and both tiers choose the same rows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lance
import numpy as np
import pytest

import recollect as rc
from recollect import errors
from recollect.where import parse
from tests.support import batch_bits, take

SCHEMA = rc.Schema(
    {
        "observation": {"camera": rc.Frames((2,), stack=3), "pose": rc.Tensor("float32", (2,))},
        "action": rc.Tensor("float32", (2,)),
        "reward": rc.Tensor("float32", optional=True),
        "note": rc.Text(optional=True),
        "tokens": rc.Ragged("int16", optional=True),
        "uid": rc.Tensor("int64"),
    },
    episode={"task": rc.Text(), "level": rc.Tensor("int64")},
)
CONDITIONS = (
    "reward > 0",
    "not reward > 0",
    "reward is nan or reward is null",
    "episode.task = 'hopper' and reward > 0",
    "episode.task = 'hopper' or uid % 7 = 0",
    "episode.level is null",
    "not (episode.level >= 2 and note like '%a%')",
    "reward < episode.level",
    "reward < episode.reward or episode.id like 'named%'",
    "action[1] >= 0.5 and observation.pose[0] < 30",
    "length(tokens) > 1 and length(note) between 1 and 4",
    "terminated or truncated or step = 0",
    "episode.attempt in (1, 2)",
    "episode.status = 'success'",
    "time < '2001-01-01'",
    "true",
)


def step(uid: int, rng: Any, **more: Any) -> dict[str, Any]:
    return {
        "observation": {"camera": np.full(2, uid % 251, np.uint8), "pose": [uid, -uid]},
        "action": rng.choice([0.0, 0.5, np.nan, -0.0], 2).astype(np.float32),
        "reward": rng.choice([None, np.nan, 0.0, -1.0, 0.1, 2.0]),
        "note": rng.choice([None, "", "a", "ba\n", "grün"]),
        "tokens": None if uid % 3 == 0 else list(range(uid % 4)),
        "uid": uid,
        **more,
    }


def write(ws: rc.Workspace, episodes: int, *, first: int = 0) -> None:
    """Interleaved episodes of two writers, with facts that come early, late or never."""
    rng = np.random.default_rng(first + 1)
    uid = first
    with ws.writer() as one, ws.writer() as two:
        for k in range(episodes):
            told: list[dict[str, Any]] = [{}, {"task": "hopper"}, {"task": "walker", "level": k % 4}]
            a = one.episode(id=f"named{first + k}", attempt=k % 3, **told[k % 3])
            b = two.episode(**told[(k + 1) % 3])
            for t in range(4 + k % 3):
                for episode in (a, b):
                    last = t == 3 + k % 3
                    ends = {"terminated": last} if episode is a else {"truncated": last}
                    seen = {"camera": np.full(2, 7, np.uint8), "pose": [uid + 0.5, 0]}
                    episode.append(**step(uid, rng, **ends, next_observation=seen if last else None))
                    uid += 1
            if k % 2:
                a.finish(status="success", reward=float(k))
    ws.annotate(f"named{first}", level=3)


@pytest.fixture
def tiers(tmp_path: Path) -> tuple[rc.View, rc.View, str]:
    """Views of one cut, hot and cold, and where the cold one's steps lie."""
    with rc.create_workspace("w", SCHEMA) as ws:
        write(ws, 9)
        snap = ws.snapshot(to=tmp_path / "b", tag="t")
        return ws.view(snap.cut), rc.open_buffer(tmp_path / "b").at("t"), str(tmp_path / "b" / "steps.lance")


def uids(view: rc.View) -> list[int]:
    """The rows that may be drawn."""
    slots = view.anchors.select(np.arange(len(view)))
    assert view.anchors.mask(slots).all()
    return [int(x) for x in view.rows.gather(slots, ("uid",))["uid"]]


def ids(view: rc.View) -> list[tuple[int, int]]:
    return sorted(view.rows.ids(view.anchors.select(np.arange(len(view)))).tolist())


@pytest.mark.parametrize("condition", CONDITIONS)
def test_hot_and_cold_views_choose_alike_and_lance_too(tiers: tuple[rc.View, rc.View, str], condition: str) -> None:
    hot, cold, place = tiers
    one, other = hot.where(condition), cold.where(condition)
    assert uids(one) == uids(other)
    assert 0 < len(one) <= len(hot) or "2001" in condition
    assert one.anchors.unmatched == len(hot) - len(one)  # type: ignore[attr-defined]
    keys = [rc.EpisodeKey(*k) for k in cold.episodes.keys.tolist()]
    table = lance.dataset(place).to_table(filter=parse(condition, SCHEMA).to_lance(keys, cold.facts))
    found = sorted(zip(table["writer"].to_pylist(), table["seq"].to_pylist(), strict=True))
    drawable = set(ids(hot))
    assert [i for i in found if i in drawable] == ids(one)
    if len(one):
        loaders = [
            rc.Loader(v, batch_size=5, seed=3, output="numpy", transforms=[rc.NStep(3, 0.9)]) for v in (one, other)
        ]
        assert take(loaders[0], 4) == take(loaders[1], 4)


def test_windows_next_observations_and_stacks_are_those_of_the_whole_view(tiers: tuple[rc.View, rc.View, str]) -> None:
    for view in tiers[:2]:
        whole = {}
        for batch in rc.Loader(view, batch_size=1, seed=0, epochs=1, output="numpy", transforms=[rc.NStep(3, 0.9)]):
            whole[int(batch["uid"][0])] = batch_bits(batch)
        part = view.where("uid % 5 = 2")
        seen = []
        for batch in rc.Loader(part, batch_size=1, seed=9, epochs=1, output="numpy", transforms=[rc.NStep(3, 0.9)]):
            uid = int(batch["uid"][0])
            seen.append(uid)
            mine = batch_bits(batch)
            for name in mine.keys() - {"/probability"}:
                assert mine[name] == whole[uid][name], (uid, name)
        assert sorted(seen) == sorted(uid for uid in whole if uid % 5 == 2)


def test_a_second_condition_narrows_the_first(tiers: tuple[rc.View, rc.View, str]) -> None:
    hot = tiers[0]
    twice = hot.where("reward > 0").where("episode.task = 'hopper' or uid = 3")
    assert uids(twice) == uids(hot.where("reward > 0 and (episode.task = 'hopper' or uid = 3)"))
    assert str(twice.filter) == "reward > 0 and (episode.task = 'hopper' or uid = 3)"
    assert repr(str(twice.filter)) in repr(twice)
    assert twice.anchors.unmatched == len(hot) - len(twice)  # type: ignore[attr-defined]
    assert hot.filter is None and hot.anchors.unmatched == 0  # type: ignore[attr-defined]


def test_nothing_chosen_is_said_and_not_drawn(tiers: tuple[rc.View, rc.View, str]) -> None:
    none = tiers[0].where("uid < 0")
    assert len(none) == 0 and len(none.rows) == len(tiers[0].rows)
    with pytest.raises(errors.ArgumentError, match="uid < 0"):
        rc.Loader(none, batch_size=2, seed=0)


def test_a_growing_view_chooses_what_a_view_of_its_cut_does() -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        for last in (None, 40):
            source = ws.live(last=last)
            for first in (0, 1000):
                write(ws, 3, first=first)
                grown = source.refresh()
                for condition in CONDITIONS:
                    assert ids(grown.where(condition)) == ids(ws.view(grown.cut).where(condition)), condition


def test_late_facts_count_from_their_cut_on() -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        write(ws, 3)
        before = ws.view()
        slot = int(before.anchors.select(np.array([4]))[0])
        target = rc.StepId(*before.rows.ids(np.array([slot]))[0].tolist())
        ws.annotate(target, reward=50.0, note="gefunden")
        ws.annotate("named1", lesson="look twice")
        after = ws.view()
        assert ids(after.where("reward = 50 and note = 'gefunden'")) == [tuple(target)]
        assert ids(before.where("reward = 50 or note = 'gefunden'")) == []
        assert len(after.where("episode.lesson like 'look%'")) == len(after.where("episode.id = 'named1'")) > 0
        assert ids(before.where("episode.lesson is not null")) == []


def test_a_loader_goes_on_with_its_condition_and_with_no_other(tmp_path: Path) -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        write(ws, 4)
        ws.snapshot(to=tmp_path / "b", tag="one")
        write(ws, 4, first=1000)
        ws.snapshot(to=tmp_path / "b", tag="two")
    buffer = rc.open_buffer(tmp_path / "b")
    one, two = (buffer.at(tag) for tag in ("one", "two"))
    condition = "reward >= 0 or episode.task = 'hopper'"

    def loader(view: rc.View) -> rc.Loader:
        return rc.Loader(view, batch_size=4, seed=2, output="numpy", lag=2)

    plain = loader(one.where(condition))
    take(plain, 3)
    with pytest.raises(errors.ArgumentError, match="another condition"):
        plain.advance(two)
    plain.advance(two.where(condition))
    take(plain, 1)
    state = plain.state_dict()
    want = take(plain, 6)
    again = loader(two.where(condition))
    again.load_state_dict(state)
    assert take(again, 6) == want
    chosen = set(ids(two.where(condition)))
    for batch in (next(again) for _ in range(20)):
        assert {tuple(i) for i in batch.ids.tolist()} <= chosen
    for other in (two, two.where("reward >= 0")):
        with pytest.raises(errors.ArgumentError, match="another where"):
            loader(other).load_state_dict(state)


def test_a_condition_that_cannot_be_read_is_refused(tiers: tuple[rc.View, rc.View, str]) -> None:
    with pytest.raises(errors.NotFound, match=r"no field 'rewrd'\. Did you mean 'reward'"):
        tiers[0].where("rewrd > 0")
    with pytest.raises(errors.ArgumentError, match="compares a number with text"):
        tiers[1].where("reward > 'a'")
