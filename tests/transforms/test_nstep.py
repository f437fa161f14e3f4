"""n-step returns against the sum written out, over layouts that interleave every kind of ending."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors
from tests.support import SCHEMAS, Trajectory, flags_of, order_of, random_trajectories, write_appends, write_block

GAMMA = 0.9
WITH_DISCOUNT = rc.Schema(
    {
        "observation": rc.Tensor("float32", (2,)),
        "reward": rc.Tensor("float32"),
        "discount": rc.Tensor("float32"),
        "uid": rc.Tensor("int64"),
    }
)


def _reference(
    schema: rc.Schema, trajectory: Trajectory, t: int, n: int, gamma: float
) -> tuple[float, float, bool, Any] | None:
    """Reward, discount, terminated and next observation of step t; None when it may not be drawn."""

    def seen(k: int) -> Any:
        given = trajectory.moments[k].following
        if given is not None:
            return given["observation"]
        return trajectory.moments[k + 1].values["observation"] if k + 1 < len(trajectory) else None

    def drawable(k: int) -> bool:
        return seen(k) is not None or flags_of(trajectory, k)["terminated"]

    if not drawable(t):
        return None
    reward, discount, last = 0.0, 1.0, t
    for k in range(t, min(t + n, len(trajectory))):
        if not drawable(k):
            break
        values = trajectory.moments[k].values
        reward += discount * float(values["reward"])
        discount *= gamma * float(values.get("discount", 1.0))
        last = k
    over = flags_of(trajectory, last)["terminated"]
    return reward, 0.0 if over else discount, over, seen(last)


def _layout(schema: rc.Schema, seed: int) -> list[Trajectory]:
    rng = np.random.default_rng([seed, 31])
    trajectories = random_trajectories(schema, rng, count=12, longest=9)
    for trajectory in trajectories:
        for t, moment in enumerate(trajectory.moments):
            moment.values["reward"] = np.float32(rng.integers(-8, 9))
            if "discount" in schema.by_path:
                moment.values["discount"] = np.float32(rng.choice([0.0, 0.5, 1.0]))
            # An environment that jumps is another test's subject.
            if moment.following is not None and t + 1 < len(trajectory):
                moment.following = {"observation": trajectory.moments[t + 1].values["observation"]}
    return trajectories


@pytest.mark.parametrize("n", range(1, 6))
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("kind", ["vector", "with-discount"])
def test_n_steps_equal_the_sum_written_out(kind: str, seed: int, n: int) -> None:
    schema = WITH_DISCOUNT if kind == "with-discount" else SCHEMAS["vector"]()
    trajectories = _layout(schema, seed)
    rng = np.random.default_rng([seed, n])
    with rc.create_workspace("w", schema) as ws:
        writer = ws.writer()
        order = order_of(trajectories, rng)
        if seed % 2:
            for trajectory in trajectories:
                for moment in trajectory.moments:
                    moment.following = None
            for at in range(0, len(order), 5):
                write_block(writer, schema, trajectories, order[at : at + 5])
        else:
            write_appends(writer, trajectories, order)
        loader = rc.Loader(
            ws.view(), batch_size=8, seed=0, epochs=1, transforms=[rc.NStep(n, gamma=GAMMA)], output="numpy"
        )
        got = {}
        for batch in loader:
            for i, uid in enumerate(batch["uid"].tolist()):
                got[uid] = (
                    float(batch["reward"][i]),
                    float(batch["discount"][i]),
                    bool(batch["terminated"][i]),
                    batch["next_observation"][i] if batch.valid["next_observation"][i] else None,
                )
    want = {
        int(moment.values["uid"]): row
        for trajectory in trajectories
        for t, moment in enumerate(trajectory.moments)
        if (row := _reference(schema, trajectory, t, n, GAMMA)) is not None
    }
    assert sorted(got) == sorted(want)
    for uid, (reward, discount, over, following) in want.items():
        assert got[uid][0] == pytest.approx(reward, rel=1e-5, abs=1e-5), uid
        assert got[uid][1] == pytest.approx(discount, rel=1e-5), uid
        assert got[uid][2] == over, uid
        assert np.asarray(got[uid][3]).tobytes() == np.asarray(following).tobytes(), uid


CASES: list[tuple[str, int, list[float], str, bool, list[float], list[float]]] = [
    # name, n, rewards, ending, next observation given at the end, n-step rewards, discounts (gamma 0.5)
    ("terminated", 3, [1, 2, 4, 8], "terminated", False, [3, 6, 8, 8], [0.125, 0, 0, 0]),
    ("truncated", 3, [1, 2, 4, 8], "truncated", True, [3, 6, 8, 8], [0.125, 0.125, 0.25, 0.5]),
    ("truncation without its observation", 3, [1, 2, 4, 8], "truncated", False, [3, 4, 4], [0.125, 0.25, 0.5]),
    ("open", 2, [1, 2, 4], "open", True, [2, 4, 4], [0.25, 0.25, 0.5]),
    ("open without a tail", 2, [1, 2, 4], "open", False, [2, 2], [0.25, 0.5]),
    ("one step", 5, [7], "terminated", False, [7], [0]),
    ("plain TD", 1, [1, 2, 4], "truncated", True, [1, 2, 4], [0.5, 0.5, 0.5]),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c[0])
def test_known_returns(case: tuple[str, int, list[float], str, bool, list[float], list[float]]) -> None:
    _, n, rewards, ending, given, want, discounts = case
    schema = rc.Schema({"observation": rc.Tensor("int32"), "reward": rc.Tensor("float32")})
    with rc.create_workspace("w", schema) as ws:
        episode = ws.writer().episode()
        for t, reward in enumerate(rewards):
            last = t == len(rewards) - 1
            episode.append(
                observation=t,
                reward=reward,
                terminated=last and ending == "terminated",
                truncated=last and ending == "truncated",
                next_observation=t + 1 if last and given else None,
            )
        batch = next(
            rc.Loader(ws.view(), batch_size=9, seed=0, epochs=1, transforms=[rc.NStep(n, gamma=0.5)], output="numpy")
        )
        order = np.argsort(batch["observation"])
        assert batch["reward"][order].tolist() == want
        assert batch["discount"][order].tolist() == discounts
        for i in order:
            t = int(batch["observation"][i])
            if batch["discount"][i]:
                assert batch["next_observation"][i] == min(t + n, t + len(want) - t)


@pytest.mark.parametrize("pad", ["zero", "repeat"])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_the_stack_after_n_steps_ends_at_the_bootstrap_observation(n: int, pad: Any) -> None:
    schema = rc.Schema(
        {"observation": rc.Frames((1,), stack=3, pad=pad), "reward": rc.Tensor("float32"), "uid": rc.Tensor("int64")}
    )
    length = 6
    with rc.create_workspace("w", schema) as ws:
        writer = ws.writer()
        episodes = [writer.episode(), writer.episode()]
        for t in range(length):
            for k, episode in enumerate(episodes):
                base = 1 + 100 * k
                episode.append(
                    observation=[base + t],
                    reward=1.0,
                    uid=10 * k + t,
                    truncated=t == length - 1,
                    next_observation=[base + t + 1] if t == length - 1 else None,
                )
        loader = rc.Loader(
            ws.view(), batch_size=50, seed=0, epochs=1, transforms=[rc.NStep(n, gamma=0.5)], output="numpy"
        )
        batch = next(loader)
    assert len(batch) == 2 * length
    for uid, stack, following in zip(
        batch["uid"].tolist(), batch["observation"], batch["next_observation"], strict=True
    ):
        k, t = divmod(uid, 10)
        for got, end in ((stack, t), (following, min(t + n, length))):
            planes = [
                1 + 100 * k + i if i >= 0 else (0 if pad == "zero" else 1 + 100 * k) for i in range(end - 2, end + 1)
            ]
            assert got[:, 0].tolist() == planes, (uid, end)


@pytest.mark.parametrize(
    "arguments", [{"n": 0, "gamma": 0.9}, {"n": -1, "gamma": 0.9}, {"n": 1, "gamma": 1.1}, {"n": 1, "gamma": -0.1}]
)
def test_bad_options_are_refused_with_their_value(arguments: dict[str, Any]) -> None:
    with pytest.raises(errors.ArgumentError, match="got"):
        rc.NStep(**arguments)


@pytest.mark.parametrize("gamma", [float("nan")])
def test_a_discount_that_is_no_number_is_refused(gamma: float) -> None:
    with pytest.raises(errors.ArgumentError):
        rc.NStep(1, gamma=gamma)


def test_n_steps_need_a_reward() -> None:
    schema = rc.Schema({"observation": rc.Tensor("float32"), "uid": rc.Tensor("int64")})
    with rc.create_workspace("w", schema) as ws, ws.writer() as writer, writer.episode() as episode:
        episode.append(observation=0.0, uid=0, terminated=True)
        with pytest.raises(errors.ArgumentError, match="reward"):
            next(rc.Loader(ws.view(), batch_size=1, seed=0, transforms=[rc.NStep(2, gamma=0.9)]))
