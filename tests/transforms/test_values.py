"""Returns to go, previous values, relabelled and normalised ones against what the list of steps says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors
from tests.transforms.worlds import PLACES, SCHEMA, World, drawn, world

STATE = "observation.state"
READ = [STATE, f"next_{STATE}", "terminated", "action"]


def _rest(there: World, uid: int, gamma: float) -> tuple[float, float]:
    total, left = 0.0, 1.0
    steps = there.ahead(uid)
    for u in reversed(steps):
        total = float(there.values(u)["reward"]) + gamma * total
        left = 0.0 if there.ended(u)["terminated"] else left * gamma
    return total, left


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("gamma", "bootstrap"), [(1.0, False), (0.5, True)])
def test_returns_to_go_equal_the_sum_written_out(
    place: str, gamma: float, bootstrap: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with world(place, 4, tmp_path, monkeypatch) as there:
        for uid, row in drawn(there, [rc.ReturnsToGo(gamma, bootstrap=bootstrap)]):
            total, left = _rest(there, uid, gamma)
            assert row["return_to_go"] == np.float32(total), uid
            assert row["return_discount"] == np.float32(left), uid
            assert row["reward"] == there.values(uid)["reward"]
            after = there.after(there.ahead(uid)[-1] if bootstrap else uid)
            assert np.array_equal(row[f"next_{STATE}"], np.zeros(2) if after is None else after[STATE])


ENDINGS: list[tuple[str, bool, list[float], list[float]]] = [
    # ending, next observation given at the end, returns to go, what is left (rewards 1, 2, 4; gamma 0.5)
    ("terminated", True, [3, 4, 4], [0, 0, 0]),
    ("truncated", True, [3, 4, 4], [0.125, 0.25, 0.5]),
    ("truncated", False, [2, 2], [0.25, 0.5]),
    ("open", True, [3, 4, 4], [0.125, 0.25, 0.5]),
    ("open", False, [2, 2], [0.25, 0.5]),
]


@pytest.mark.parametrize("case", ENDINGS, ids=lambda c: f"{c[0]}-{c[1]}")
def test_known_returns_of_every_ending(case: tuple[str, bool, list[float], list[float]]) -> None:
    ending, given, want, left = case
    schema = rc.Schema({"observation": rc.Tensor("int32"), "reward": rc.Tensor("float32")})
    with rc.create_workspace("w", schema) as ws:
        episode = ws.writer().episode()
        for t, reward in enumerate([1.0, 2.0, 4.0]):
            last = t == 2
            flags = {name: last and ending == name for name in ("terminated", "truncated")}
            episode.append(observation=t, reward=reward, next_observation=3 if last and given else None, **flags)
        steps = [rc.ReturnsToGo(0.5)]
        batch = next(rc.Loader(ws.view(), batch_size=9, seed=0, epochs=1, transforms=steps, output="numpy"))
        order = np.argsort(batch["observation"])
        assert batch["return_to_go"][order].tolist() == want
        assert batch["return_discount"][order].tolist() == left


@pytest.mark.parametrize("place", PLACES)
def test_previous_values_are_those_of_the_step_before(
    place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = ("action", "reward", "extra", "observation.camera")
    with world(place, 5, tmp_path, monkeypatch) as there:
        known = 0
        for uid, row in drawn(there, [rc.Previous(*names)]):
            run = there.run(uid)
            before = run[run.index(uid) - 1] if run.index(uid) else None
            values = {} if before is None else there.values(before)
            for name in names:
                want = values.get(name, 0 if before is None else np.nan)
                assert np.array_equal(
                    row[f"previous_{name}"], np.broadcast_to(want, row[name].shape), equal_nan=True
                ), uid
                assert row[f"valid/previous_{name}"] == (name in values), (uid, name)
            known += before is not None
        assert known > 50


def test_previous_values_of_sequences_lead_into_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with world("hot", 6, tmp_path, monkeypatch) as there:
        sampler = rc.Sequence(5, burn_in=1, stride=2)
        steps = [rc.Previous("action", "reward")]
        for batch in rc.Loader(there.view, sampler, batch_size=16, seed=0, steps=6, transforms=steps, output="numpy"):
            mask = np.asarray(batch.mask)
            assert not batch["previous_action"][~mask].any()
            for b, t in zip(*np.nonzero(mask), strict=True):
                run = there.run(int(batch["uid"][b, t]))
                at = run.index(int(batch["uid"][b, t]))
                assert batch.valid["previous_reward"][b, t] == (at > 0)
                want = there.values(run[at - 1])["reward"] if at else 0
                assert batch["previous_reward"][b, t] == want


def score(step: dict[str, Any]) -> dict[str, Any]:
    """Reads this step, the next observation and a flag."""
    reward = step[STATE][:, 0] + 2 * step[f"next_{STATE}"][:, 1] + 8 * step["terminated"] + step["action"][:, 0]
    return {"reward": reward, "bonus": step["action"].astype(np.float64) * 2}


def _score(there: World, uid: int) -> np.float32:
    values, after = there.values(uid), there.after(uid)
    later = np.zeros(2, np.float32) if after is None else after[STATE]
    return values[STATE][0] + 2 * later[1] + 8 * there.ended(uid)["terminated"] + values["action"][0]  # type: ignore[no-any-return]


@pytest.mark.parametrize(("place", "fields"), [*((p, READ) for p in PLACES), ("hot", None), ("live", None)])
@pytest.mark.parametrize("n", [1, 3])
def test_relabelled_values_are_what_later_transforms_see(
    place: str, fields: Any, n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with world(place, 7, tmp_path, monkeypatch) as there:
        steps = [rc.Relabel(score, fields), rc.NStep(n, 0.5), rc.Previous("reward")]
        for uid, row in drawn(there, steps):
            total = sum(0.5**j * float(_score(there, u)) for j, u in enumerate(there.ahead(uid)[:n]))
            assert row["reward"] == pytest.approx(total, rel=1e-5, abs=1e-5), uid
            assert row["reward"].dtype == np.float32
            run = there.run(uid)
            before = float(_score(there, run[run.index(uid) - 1])) if run.index(uid) else 0.0
            assert row["previous_reward"] == pytest.approx(before, rel=1e-5, abs=1e-5), uid
            assert np.array_equal(row["bonus"], there.values(uid)["action"] * 2.0) and row["bonus"].dtype == np.float64


@pytest.mark.parametrize("n", [1, 3])
def test_a_relabelling_sees_stacks(n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of every step of a window, and of its own next observation."""
    camera = "observation.camera"

    def brightness(step: dict[str, Any]) -> dict[str, Any]:
        both = [
            step[name].reshape(len(step[name]), -1).sum(axis=1, dtype=np.int64) for name in (camera, f"next_{camera}")
        ]
        return {"reward": both[0] + 3 * both[1]}

    def of(there: World, uid: int) -> int:
        here, after = there.stacked(camera, uid, 3, "repeat"), there.next_stacked(camera, uid, 3, "repeat")
        assert here is not None
        return int(here.sum(dtype=np.int64)) + 3 * (0 if after is None else int(after.sum(dtype=np.int64)))

    with world("hot", 11, tmp_path, monkeypatch) as there:
        steps = [rc.Relabel(brightness, [camera, f"next_{camera}"]), rc.NStep(n, 0.5), rc.FrameStack(3)]
        for uid, row in drawn(there, steps):
            assert row["reward"] == sum(0.5**j * of(there, u) for j, u in enumerate(there.ahead(uid)[:n])), uid


def test_a_next_observation_is_not_relabelled_amid_a_window() -> None:
    schema = rc.Schema({"observation": rc.Tensor("float32"), "reward": rc.Tensor("float32")})
    mine = rc.Relabel(lambda step: {"next_observation": -step["next_observation"]}, ["next_observation"])
    with rc.create_workspace("w", schema) as ws, ws.writer() as writer, writer.episode() as episode:
        for t in range(3):
            episode.append(observation=float(t), reward=0.0, next_observation=t + 1.0)
        single = next(rc.Loader(ws.view(), batch_size=3, seed=0, epochs=1, transforms=[mine], output="numpy"))
        assert sorted(single["next_observation"].tolist()) == [-3, -2, -1]
        with pytest.raises(errors.ArgumentError, match="cannot be relabelled"):
            next(rc.Loader(ws.view(), batch_size=1, seed=0, transforms=[mine, rc.NStep(2, 0.5)]))


@pytest.mark.parametrize(
    ("fn", "match"),
    [
        (lambda step: [1], "mapping"),
        (lambda step: {"reward": step["reward"][1:]}, "length"),
        (lambda step: {"reward": step["observation"]}, "shape"),
    ],
)
def test_a_relabelling_that_does_not_fit_is_refused(fn: Any, match: str) -> None:
    schema = rc.Schema({"observation": rc.Tensor("float32", (2,)), "reward": rc.Tensor("float32")})
    with rc.create_workspace("w", schema) as ws, ws.writer() as writer, writer.episode() as episode:
        for _ in range(3):
            episode.append(observation=[0, 0], reward=0.0, next_observation=[0, 0])
        with pytest.raises(errors.ArgumentError, match=match):
            next(rc.Loader(ws.view(), batch_size=2, seed=0, transforms=[rc.Relabel(fn)]))
        with pytest.raises(errors.NotFound, match="nothing"):
            rc.Loader(ws.view(), batch_size=2, seed=0, transforms=[rc.Relabel(fn, ["nothing"])])
        with pytest.raises(errors.NotFound, match="next_reward"):
            rc.Loader(ws.view(), batch_size=2, seed=0, transforms=[rc.Relabel(fn, ["next_reward"])])


@pytest.mark.parametrize("place", ["hot", "cold", "newest"])
@pytest.mark.parametrize("n", [1, 2])
def test_normalised_values_use_the_statistics_of_the_drawable_rows(
    place: str, n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with world(place, 8, tmp_path, monkeypatch) as there:
        known = there.view.statistics([STATE, "reward", "extra"])
        states = np.array([there.values(u)[STATE] for u in sorted(there.present) if there.is_drawable(u)], np.float64)
        assert np.allclose(known[STATE].mean, states.mean(axis=0), rtol=1e-12)
        assert np.allclose(known[STATE].std, states.std(axis=0), rtol=1e-12)
        assert known["extra"].count < known["reward"].count == len(states)
        mean, std = float(known["reward"].mean), float(known["reward"].std)
        steps = [rc.Normalize(known, [STATE, "reward"]), rc.NStep(n, 0.5), rc.FrameStack(2, field=STATE)]
        for uid, row in drawn(there, steps):
            want = there.stacked(STATE, uid, 2, "repeat")
            assert want is not None
            assert np.allclose(row[STATE], (want - known[STATE].mean) / known[STATE].std, rtol=1e-5, atol=1e-6)
            assert row[STATE].dtype == np.float32
            total = sum(
                0.5**j * (float(there.values(u)["reward"]) - mean) / std for j, u in enumerate(there.ahead(uid)[:n])
            )
            assert row["reward"] == pytest.approx(total, rel=1e-4, abs=1e-5)
            after = there.next_stacked(STATE, there.ahead(uid)[:n][-1], 2, "repeat")
            if after is not None:
                assert np.allclose(
                    row[f"next_{STATE}"], (after - known[STATE].mean) / known[STATE].std, rtol=1e-5, atol=1e-6
                )


ORDERS: list[tuple[list[Any], str]] = [
    ([rc.NStep(1, 0.9), rc.NStep(2, 0.9)], "once"),
    ([rc.ReturnsToGo(), rc.ReturnsToGo()], "once"),
    ([rc.NStep(2, 0.9), rc.Relabel(score)], "List Relabel first"),
    ([rc.Previous("reward"), rc.Relabel(score)], "List Relabel first"),
    ([rc.ReturnsToGo(), rc.Relabel(score)], "List Relabel first"),
    ([rc.NStep(2, 0.9), rc.ReturnsToGo(bootstrap=True)], "both move"),
    ([rc.NStep], "list of transforms"),
    (["nstep"], "list of transforms"),
]


@pytest.mark.parametrize("case", ORDERS, ids=lambda c: c[1])
def test_transforms_that_do_not_go_together_are_refused(case: tuple[list[Any], str]) -> None:
    with rc.create_workspace("w", SCHEMA) as ws, pytest.raises(errors.ArgumentError, match=case[1]):
        rc.Loader(ws.view(), batch_size=1, seed=0, transforms=case[0])


def test_bad_numbers_and_names_are_refused() -> None:
    known = rc.Statistics({})
    for make, match in (
        (lambda: rc.ReturnsToGo(1.5), "gamma"),
        (lambda: rc.Previous(), "names"),
        (lambda: rc.Relabel(3), "function"),  # type: ignore[arg-type]
        (lambda: rc.Relabel(score, "reward"), "list of names"),
        (lambda: rc.Normalize({}), "statistics"),  # type: ignore[arg-type]
        (lambda: rc.Normalize(known, epsilon=0), "epsilon"),
        (lambda: rc.Normalize(known, clip=-1), "clip"),
    ):
        with pytest.raises(errors.ArgumentError, match=match):
            make()
    with pytest.raises(errors.NotFound, match="reward"):
        rc.Normalize(known, ["reward"])
