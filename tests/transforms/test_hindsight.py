"""Relabelled goals and rewards against those worked out from the list of steps."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors
from tests.support import batch_bits, take
from tests.transforms.worlds import PLACES, World, drawn, world

ACHIEVED, DESIRED = "observation.achieved_goal", "observation.desired_goal"


def reward_of(achieved: Any, desired: Any, info: Any) -> Any:
    """Numbers that float32 holds exactly, so that sums compare bit for bit."""
    out = achieved[:, 0] - 2 * desired[:, 0]
    return out + info["action"][:, 0] if "action" in info else out


def reached(achieved: Any, desired: Any, info: Any) -> Any:
    return achieved[:, 0] == desired[:, 0]


def hindsight(**options: Any) -> rc.HindsightRelabel:
    return rc.HindsightRelabel(**{"compute_reward": reward_of, **options})


def _reward(there: World, uid: int, goal: float | None, info: bool) -> float:
    """Of one step, under another goal when there is one."""
    values = there.values(uid)
    if goal is None:
        return float(values["reward"])
    after = there.after(uid)
    assert after is not None
    return float(after[ACHIEVED][0]) - 2 * goal + (float(values["action"][0]) if info else 0.0)


def _check(there: World, uid: int, row: dict[str, Any], strategy: str, n: int, *, info: bool, ends: bool) -> bool:
    """Whether a row was relabelled; fails unless everything in it fits."""
    goal = float(row[DESIRED][0])
    steps = there.ahead(uid)[:n]
    if goal < 0:
        assert np.array_equal(row[DESIRED], there.values(uid)[DESIRED])
        after = there.after(steps[-1])
        assert np.array_equal(row[f"next_{DESIRED}"], np.zeros(2) if after is None else after[DESIRED])
        kept: float | None = None
    else:
        assert goal in there.reached(uid, strategy)
        assert all(there.after(u) is not None for u in steps), "no reward can be computed of such a step"
        assert np.array_equal(row[DESIRED], row[f"next_{DESIRED}"])
        kept = goal
    over = False
    total, discount = 0.0, 1.0
    for u in steps:
        total += discount * _reward(there, u, kept, info)
        discount *= 0.5
        after = there.after(u)
        over = there.ended(u)["terminated"]
        if ends and kept is not None and after is not None:
            over = float(after[ACHIEVED][0]) == kept
        if over:
            break
    assert row["reward"] == np.float32(total), uid
    assert bool(row["terminated"]) == over, uid
    assert row["discount"] == np.float32(0 if over else discount), uid
    return kept is not None


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("strategy", ["future", "final", "episode"])
def test_goals_and_rewards_are_those_of_the_episode(
    place: str, strategy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Alone and before a sum over three steps; with and without an end of its own."""
    with world(place, 2, tmp_path, monkeypatch) as there:
        for n, info, ends in ((1, True, False), (3, False, False), (3, True, True)):
            transform = hindsight(
                strategy=strategy, compute_terminated=reached if ends else None, info=["action"] if info else []
            )
            changed: Counter[tuple[int, bool]] = Counter()
            possible = set()
            for uid, row in drawn(there, [transform, rc.NStep(n, 0.5)]):
                changed[uid, _check(there, uid, row, strategy, n, info=info, ends=ends)] += 1
                if all(there.after(u) is not None for u in there.ahead(uid)[:n]):
                    possible.add(uid)
            those = sum(count for (uid, yes), count in changed.items() if yes)
            every = sum(count for (uid, _), count in changed.items() if uid in possible)
            assert abs(those / every - 0.8) < 5 * (0.16 / every) ** 0.5
            assert not any(yes for uid, yes in changed if uid not in possible)


@pytest.mark.parametrize(
    ("options", "share"), [({"k": 4}, 0.8), ({"k": 1}, 0.5), ({"fraction": 0.25}, 0.25), ({"k": 0}, 0)]
)
def test_the_share_of_relabelled_rows_is_the_one_asked_for(options: dict[str, Any], share: float) -> None:
    with _line(30) as ws:
        loader = rc.Loader(
            ws.view(), batch_size=500, seed=3, steps=20, transforms=[hindsight(**options)], output="numpy"
        )
        seen = np.concatenate([b[DESIRED][:, 0] >= 0 for b in loader])
    assert abs(seen.mean() - share) <= 4 * (share * (1 - share) / len(seen)) ** 0.5


@pytest.mark.parametrize(("strategy", "low"), [("future", 6), ("episode", 0), ("final", 9)])
def test_goals_are_drawn_with_equal_chances(strategy: Any, low: int) -> None:
    """χ² of step 6 of 10: one of the steps that the strategy names, each as often."""
    with _line(10) as ws:
        view = ws.view().where("uid = 6")
        transform = hindsight(strategy=strategy, fraction=1)
        loader = rc.Loader(view, batch_size=400, seed=1, steps=10, transforms=[transform], output="numpy")
        goals = np.concatenate([b[DESIRED][:, 0] for b in loader]).astype(int)
    count = np.bincount(goals, minlength=11)
    steps = count[low + 1 :]
    assert steps.sum() == 4000 and len(steps) == 10 - low
    expected = 4000 / len(steps)
    assert ((steps - expected) ** 2 / expected).sum() < 30  # p = 0.0004 with nine degrees of freedom


def _line(length: int) -> Any:
    """One episode; the goal achieved in observation t is t."""
    schema = rc.Schema(
        {
            "observation": {
                "achieved_goal": rc.Tensor("float32", (1,)),
                "desired_goal": rc.Tensor("float32", (1,)),
            },
            "action": rc.Tensor("int16", (1,)),
            "reward": rc.Tensor("float32"),
            "uid": rc.Tensor("int64"),
        }
    )
    ws = rc.create_workspace("line", schema)
    with ws.writer() as writer, writer.episode() as episode:
        for uid in range(length):
            episode.append(
                observation={"achieved_goal": [uid], "desired_goal": [-1]},
                action=[0],
                reward=0.0,
                uid=uid,
                truncated=uid == length - 1,
                next_observation={"achieved_goal": [uid + 1], "desired_goal": [-1]},
            )
    return ws


@pytest.mark.parametrize("inner", [rc.Uniform(), rc.Prioritized()], ids=["ahead", "one by one"])
def test_draws_depend_on_the_seed_alone_and_resume_bit_for_bit(inner: Any) -> None:
    """However many batches are gathered at a time, epochs' short ends included; another place has other numbers."""
    with _line(23) as ws:
        view = ws.view()

        def make(seed: int = 5, **options: Any) -> rc.Loader:
            steps: list[Any] = [hindsight(info=["action"]), rc.NStep(2, 0.5)]
            return rc.Loader(view, inner, batch_size=4, seed=seed, transforms=steps, output="numpy", **options)

        want = take(make(ahead=1), 14)
        assert take(make(ahead=5), 14) == want == take(make(), 14)
        assert take(make(seed=6), 14) != want
        loader = make()
        for at in range(12):
            resumed = make()
            resumed.load_state_dict(json.loads(json.dumps(loader.state_dict())))
            assert take(resumed, 2) == want[at : at + 2]
            assert batch_bits(next(loader)) == want[at]
        if isinstance(inner, rc.Uniform):
            assert [batch_bits(b) for b in make(epochs=2, ahead=1)] == [batch_bits(b) for b in make(epochs=2)]
        other = rc.Loader(view, inner, batch_size=4, seed=5, transforms=[hindsight(fraction=0.5)], output="numpy")
        with pytest.raises(errors.ArgumentError, match="another transforms"):
            other.load_state_dict(make().state_dict())


@pytest.mark.parametrize("n", [1, 3])
def test_the_steps_of_a_sequence_share_one_goal(n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with world("hot", 3, tmp_path, monkeypatch) as there:
        sampler = rc.Sequence(4, burn_in=2, stride=2)
        steps: list[Any] = [hindsight(), rc.NStep(n, 0.5)]
        loader = rc.Loader(there.view, sampler, batch_size=32, seed=0, steps=8, transforms=steps, output="numpy")
        kinds: Counter[bool] = Counter()
        for batch in loader:
            keys = there.view.rows.gather(there.view.rows.find(batch.ids), ("uid",))["uid"].tolist()
            paths = batch._paths()
            columns = {name: batch[name] for name in paths}
            for b, key in enumerate(keys):
                mask = np.asarray(batch.mask)[b]
                assert all(not column[b][~mask].any() for column in columns.values())
                goals = set(columns[DESIRED][b][mask][:, 0].tolist())
                assert len(goals) == 1
                goal = goals.pop()
                kinds[goal >= 0] += 1
                if goal >= 0:
                    assert goal in there.reached(key, "future")
                for t in np.flatnonzero(mask).tolist():
                    uid, row = int(columns["uid"][b, t]), {name: column[b, t] for name, column in columns.items()}
                    if goal >= 0:
                        row |= {DESIRED: row[DESIRED]}
                        total = sum(0.5**j * _reward(there, u, goal, False) for j, u in enumerate(there.ahead(uid)[:n]))
                        assert row["reward"] == np.float32(total)
                    else:
                        _check(there, uid, row, "future", n, info=False, ends=False)
        assert kinds[True] > kinds[False] > 0


def test_bad_options_and_goals_are_refused_by_name() -> None:
    for options, match in (
        ({"strategy": "past"}, "strategy"),
        ({"k": -1}, "k is"),
        ({"fraction": 1.5}, "fraction"),
        ({"compute_reward": None}, "compute_reward"),
        ({"compute_terminated": 3}, "compute_terminated"),
        ({"info": "action"}, "list of names"),
    ):
        with pytest.raises(errors.ArgumentError, match=match):
            hindsight(**options)
    bad: tuple[tuple[dict[str, Any], type[Exception], str], ...] = (
        ({"achieved": "observation"}, errors.ArgumentError, "Name the leaf"),
        ({"desired": "action"}, errors.ArgumentError, "no observation"),
        ({"desired": "nothing"}, errors.NotFound, "nothing"),
        ({"info": ["nothing"]}, errors.NotFound, "nothing"),
    )
    with _line(3) as ws:
        for given, kind, match in bad:
            with pytest.raises(kind, match=match):
                rc.Loader(ws.view(), batch_size=1, seed=0, transforms=[hindsight(**given)])
        wrong = hindsight(compute_reward=lambda a, d, i: np.zeros(len(a) + 1), fraction=1)
        with pytest.raises(errors.ArgumentError, match="Return shape"):
            next(rc.Loader(ws.view(), batch_size=2, seed=0, transforms=[wrong]))
