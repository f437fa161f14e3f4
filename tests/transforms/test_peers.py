"""n-step returns, hindsight and frame stacks beside Stable-Baselines3, where the definitions agree.

They agree on finished episodes whose every next observation is stored.
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

import recollect as rc

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("torch")
    pytest.importorskip("stable_baselines3")
    buffers: Any = pytest.importorskip("stable_baselines3.common.buffers")
    her: Any = pytest.importorskip("stable_baselines3.her.her_replay_buffer")
    stacked: Any = pytest.importorskip("stable_baselines3.common.vec_env.stacked_observations")
    spaces: Any = pytest.importorskip("gymnasium").spaces

LENGTHS = [1, 7, 3, 12, 1, 5, 20, 2]
GOALS = ("achieved_goal", "desired_goal")


def _steps() -> Any:
    """(episode, step, uid, reward, terminated, truncated) of finished episodes; the observation after the last step of
    an episode is uid + 0.5, others are the next step's."""
    rng = np.random.default_rng(0)
    uid = 0
    for k, length in enumerate(LENGTHS):
        for t in range(length):
            last = t == length - 1
            yield k, t, uid, float(rng.integers(-9, 9)), last and k % 2 == 0, last and k % 2 == 1
            uid += 1


def _after(uid: int, ended: bool) -> float:
    return uid + (0.5 if ended else 1.0)


@pytest.mark.parametrize("n", [1, 2, 3, 5])
def test_n_step_returns_are_those_of_stable_baselines(n: int) -> None:
    box = spaces.Box(-1e9, 1e9, (1,), np.float32)
    theirs = buffers.NStepReplayBuffer(sum(LENGTHS) + 1, box, box, device="cpu", n_steps=n, gamma=0.9)
    schema = rc.Schema({"observation": rc.Tensor("float32", (1,)), "reward": rc.Tensor("float32")})
    with rc.create_workspace("w", schema) as ws:
        writer = ws.writer()
        episodes = [writer.episode() for _ in LENGTHS]
        for k, _, uid, reward, terminated, truncated in _steps():
            seen, after = np.array([uid], np.float32), np.array([_after(uid, terminated or truncated)], np.float32)
            theirs.add(
                seen[None],
                after[None],
                np.zeros((1, 1)),
                np.array([reward]),
                np.array([terminated or truncated]),
                [{"TimeLimit.truncated": truncated}],
            )
            episodes[k].append(
                observation=seen, reward=reward, terminated=terminated, truncated=truncated, next_observation=after
            )
        mine = {}
        for batch in rc.Loader(
            ws.view(), batch_size=16, seed=0, epochs=1, transforms=[rc.NStep(n, 0.9)], output="numpy"
        ):
            for i in range(len(batch)):
                row = (batch["reward"][i], batch["discount"][i], batch["next_observation"][i, 0])
                mine[int(batch["observation"][i, 0])] = row
    sample = theirs.sample(4000)
    seen_ = set()
    for i in range(4000):
        uid = int(sample.observations[i, 0])
        reward, discount, after = mine[uid]
        assert float(sample.rewards[i, 0]) == pytest.approx(reward, rel=1e-5, abs=1e-5)
        assert float(sample.discounts[i, 0] * (1 - sample.dones[i, 0])) == pytest.approx(discount, rel=1e-6)
        assert float(sample.next_observations[i, 0]) == after
        seen_.add(uid)
    assert seen_ == set(mine) == set(range(sum(LENGTHS)))


class _Env:
    """All that their buffer asks of an environment."""

    def env_method(self, name: str, achieved: Any, desired: Any, info: Any, indices: Any) -> list[Any]:
        assert name == "compute_reward"
        return [reward_of(achieved, desired, {})]


def reward_of(achieved: Any, desired: Any, info: Any) -> Any:
    return achieved[:, 0] - 3 * desired[:, 0]


@pytest.mark.parametrize("strategy", ["future", "final", "episode"])
def test_hindsight_finds_the_goals_that_stable_baselines_finds(strategy: Any) -> None:
    """The same goals for each row, each about as often, and the same rewards."""
    box = spaces.Box(-1e9, 1e9, (1,), np.float32)
    space = spaces.Dict(dict.fromkeys(("observation", *GOALS), box))
    theirs = her.HerReplayBuffer(
        sum(LENGTHS) + 1, space, box, _Env(), device="cpu", n_sampled_goal=4, goal_selection_strategy=strategy
    )
    schema = rc.Schema(
        {
            "observation": {name: rc.Tensor("float32", (1,)) for name in ("observation", *GOALS)},
            "reward": rc.Tensor("float32"),
        }
    )
    with rc.create_workspace("w", schema) as ws:
        writer = ws.writer()
        episodes = [writer.episode() for _ in LENGTHS]
        for k, _, uid, reward, terminated, truncated in _steps():
            after = _after(uid, terminated or truncated)
            here, there = ({"observation": [x], "achieved_goal": [x], "desired_goal": [-1.0]} for x in (uid, after))
            theirs.add(
                {name: np.array([value]) for name, value in here.items()},
                {name: np.array([value]) for name, value in there.items()},
                np.zeros((1, 1)),
                np.array([reward]),
                np.array([terminated or truncated]),
                [{"TimeLimit.truncated": truncated}],
            )
            episodes[k].append(
                observation=here, reward=reward, terminated=terminated, truncated=truncated, next_observation=there
            )
        transform = rc.HindsightRelabel(strategy, compute_reward=reward_of)
        loader = rc.Loader(ws.view(), batch_size=1000, seed=0, steps=40, transforms=[transform], output="numpy")
        mine = [
            (*(b[f"observation.{name}"][:, 0] for name in ("observation", "desired_goal")), b["reward"]) for b in loader
        ]
    np.random.seed(0)  # noqa: NPY002
    sample = theirs.sample(40_000)
    other = (sample.observations["observation"][:, 0], sample.observations["desired_goal"][:, 0], sample.rewards[:, 0])
    counts = []
    for columns in ([np.concatenate(c) for c in zip(*mine, strict=True)], [c.numpy() for c in other]):
        rows, count = np.unique(np.stack(columns, axis=1), axis=0, return_counts=True)
        counts.append({tuple(row): int(c) for row, c in zip(rows.tolist(), count.tolist(), strict=True)})
    # The rarest pair comes 40,000 × 0.8 / (51 × 20) = 31 times on average.
    assert set(counts[0]) == set(counts[1])
    for pair, often in counts[0].items():
        assert abs(often - counts[1][pair]) < 6 * (often + counts[1][pair]) ** 0.5, pair


def test_stacks_are_those_of_the_wrapper_of_stable_baselines() -> None:
    """Which pads with zeros. Their stack comes with the newest frame last, too."""
    space = spaces.Box(0, 255, (1, 2, 2), np.uint8)
    theirs = stacked.StackedObservations(1, 4, space, channels_order="first")
    schema = rc.Schema({"observation": rc.Frames((2, 2)), "uid": rc.Tensor("int64")})
    frames = np.random.default_rng(0).integers(1, 255, (2 * sum(LENGTHS), 2, 2), np.uint8)
    want: dict[int, tuple[Any, Any]] = {}
    there: Any = None
    with rc.create_workspace("w", schema) as ws:
        writer = ws.writer()
        episodes = [writer.episode() for _ in LENGTHS]
        for k, t, uid, _, terminated, truncated in _steps():
            ended = terminated or truncated
            after = frames[-1 - k] if ended else frames[uid + 1]
            here = theirs.reset(frames[uid][None, None]).copy() if t == 0 else there
            infos: list[dict[str, Any]] = [{"terminal_observation": after[None]} if ended else {}]
            there, infos = theirs.update(after[None, None], np.array([ended]), infos)
            there = there.copy()
            want[uid] = here[0], infos[0]["terminal_observation"] if ended else there[0]
            episodes[k].append(
                observation=frames[uid], uid=uid, terminated=terminated, truncated=truncated, next_observation=after
            )
        stacks = [rc.FrameStack(4, pad="zero")]
        for batch in rc.Loader(ws.view(), batch_size=16, seed=0, epochs=1, transforms=stacks, output="numpy"):
            for i, uid in enumerate(batch["uid"].tolist()):
                assert np.array_equal(batch["observation"][i], want[uid][0])
                assert np.array_equal(batch["next_observation"][i], want[uid][1])
                del want[uid]
    assert not want
