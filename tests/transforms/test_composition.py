"""What a batch holds under several transforms at once, in every place that rows lie: the table of design/0020."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect.records.part import part_of
from tests.support import take
from tests.transforms.worlds import PLACES, World, drawn, world

CAMERA, STATE = "observation.camera", "observation.state"
ACHIEVED, DESIRED = "observation.achieved_goal", "observation.desired_goal"


def reward_of(achieved: Any, desired: Any, info: Any) -> Any:
    return achieved[:, 0] - 2 * desired[:, 0]


def doubled(step: dict[str, Any]) -> dict[str, Any]:
    return {"reward": 2 * step["reward"]}


def _everything(there: World, n: int) -> list[Any]:
    return [
        rc.HindsightRelabel("future", compute_reward=reward_of),
        rc.Relabel(doubled, ["reward"]),
        rc.Previous("reward", "action"),
        rc.NStep(n, 0.5),
        rc.ReturnsToGo(0.5),
        rc.FrameStack(3),
        rc.Normalize(there.view.statistics([STATE])),
    ]


def _reward(there: World, uid: int, goal: float) -> float:
    after = there.after(uid)
    if goal < 0 or after is None:
        return 2 * float(there.values(uid)["reward"])
    return 2 * (float(after[ACHIEVED][0]) - 2 * goal)


def _check(there: World, uid: int, row: dict[str, Any], n: int, known: Any) -> None:
    goal = float(row[DESIRED][0])
    rest = there.ahead(uid)
    steps = rest[:n]
    assert goal < 0 or all(there.after(u) is not None for u in rest), "a return needs the reward of every step"
    assert row["reward"] == np.float32(sum(0.5**j * _reward(there, u, goal) for j, u in enumerate(steps)))
    total = 0.0
    for u in reversed(rest):
        total = _reward(there, u, goal) + 0.5 * total
    assert row["return_to_go"] == pytest.approx(total, rel=1e-6), uid
    over = there.ended(steps[-1])["terminated"]
    assert bool(row["terminated"]) == over and row["discount"] == (0 if over else np.float32(0.5 ** len(steps)))
    run = there.run(uid)
    before = run[run.index(uid) - 1] if run.index(uid) else None
    lost = before is not None and goal >= 0 and there.after(before) is None
    assert not lost, "the step before has a next observation: this one"
    assert row["previous_reward"] == (0 if before is None else np.float32(_reward(there, before, goal))), uid
    assert np.array_equal(row["previous_action"], [0, 0] if before is None else there.values(before)["action"])
    stack = there.stacked(CAMERA, uid, 3, "repeat")
    assert stack is not None and np.array_equal(row[CAMERA], stack)
    after, seen = there.next_stacked(CAMERA, steps[-1], 3, "repeat"), there.after(steps[-1])
    if after is not None and seen is not None:
        assert np.array_equal(row[f"next_{CAMERA}"], after)
        assert np.allclose(row[f"next_{STATE}"], (seen[STATE] - known.mean) / known.std, rtol=1e-5, atol=1e-6)
        assert row[f"next_{DESIRED}"][0] == (goal if goal >= 0 else seen[DESIRED][0])
    assert np.allclose(row[STATE], (there.values(uid)[STATE] - known.mean) / known.std, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("place", PLACES)
def test_all_of_them_at_once(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with world(place, 9, tmp_path, monkeypatch) as there:
        known = there.view.statistics([STATE])[STATE]
        relabelled = 0
        for uid, row in drawn(there, _everything(there, 3)):
            _check(there, uid, row, 3, known)
            relabelled += float(row[DESIRED][0]) >= 0
        assert relabelled > 20


def test_a_condition_restricts_what_is_drawn_not_what_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with world("hot", 9, tmp_path, monkeypatch) as there:
        chosen = there.view.where("reward > 3")
        known = there.view.statistics([STATE])[STATE]
        loader = rc.Loader(chosen, batch_size=16, seed=0, epochs=1, transforms=_everything(there, 2), output="numpy")
        seen = 0
        for batch in loader:
            columns = {name: batch[name] for name in batch._paths()}
            for i, uid in enumerate(batch["uid"].tolist()):
                assert there.values(uid)["reward"] > 3
                _check(there, uid, {name: column[i] for name, column in columns.items()}, 2, known)
                seen += 1
        assert seen == len(chosen) > 10
        assert chosen.statistics(["reward"])["reward"].min > 3


@pytest.mark.parametrize("place", ["hot", "newest"])
def test_steps_of_sequences_are_those_of_single_rows(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with world(place, 9, tmp_path, monkeypatch) as there:
        known = there.view.statistics([STATE])[STATE]
        sampler = rc.Sequence(4, stride=2, bootstrap=1, pad="left")
        steps = _everything(there, 2)
        relabelled = 0
        for batch in rc.Loader(
            there.source(), sampler, batch_size=16, seed=0, steps=12, transforms=steps, output="numpy"
        ):
            columns = {name: batch[name] for name in batch._paths()}
            mask = np.asarray(batch.mask)
            assert all(not column[~mask].any() for column in columns.values())
            for b, t in zip(*np.nonzero(mask), strict=True):
                row = {name: column[b, t] for name, column in columns.items()}
                _check(there, int(row["uid"]), row, 2, known)
                relabelled += float(row[DESIRED][0]) >= 0
        assert relabelled > 100


@pytest.mark.parametrize("sampler", [rc.Uniform(), rc.Sequence(3, inner=rc.Prioritized())], ids=["rows", "sequences"])
def test_everything_at_once_resumes_bit_for_bit_hot_and_cold(
    sampler: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rows that are hot, and the same cut cold: equal batches, one at a time or many, from every point of a run."""
    with world("cold", 10, tmp_path, monkeypatch) as there:
        cold = there.view
        with rc.open_workspace("w-cold-10") as ws:
            hot = part_of(ws.view(), cold.cut)
        assert hot.cut == cold.cut and cold.statistics() == hot.statistics()

        def make(view: rc.View, ahead: int | None = None) -> rc.Loader:
            steps = _everything(there, 3)
            return rc.Loader(view, sampler, batch_size=5, seed=4, ahead=ahead, transforms=steps, output="numpy")

        want = take(make(cold, 1), 9)
        assert take(make(hot), 9) == want == take(make(cold, 3), 9)
        loader = make(cold)
        for at in range(7):
            resumed = make(hot)
            resumed.load_state_dict(json.loads(json.dumps(loader.state_dict())))
            assert take(resumed, 2) == want[at : at + 2]
            next(loader)


def test_torch_gets_what_numpy_gets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    with world("hot", 9, tmp_path, monkeypatch) as there:
        got = []
        for output in ("numpy", "torch"):
            options: Any = {"batch_size": 8, "seed": 0, "steps": 4, "output": output}
            got.append(take(rc.Loader(there.view, transforms=_everything(there, 3), **options), 4))
        assert got[0] == got[1]
