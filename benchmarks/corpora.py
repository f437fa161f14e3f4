"""Experience of three kinds, for what it takes on disk: CartPole, a run like HalfCheetah's, and Atari frames."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class Episode:
    """`observations` `[t + 1, ...]`; `actions`, `rewards` `[t, ...]`; how it ended, if it did."""

    observations: NDArray[Any]
    actions: NDArray[Any]
    rewards: NDArray[np.float32]
    terminated: bool
    truncated: bool

    def __len__(self) -> int:
        return len(self.rewards)


def cartpole(steps: int) -> list[Episode]:
    """CartPole-v1 under a policy that is random."""
    import gymnasium

    env = gymnasium.make("CartPole-v1")
    env.action_space.seed(0)
    out: list[Episode] = []
    while sum(map(len, out)) < steps:
        seen, actions, rewards = [env.reset(seed=len(out))[0]], [], []
        terminated = truncated = False
        while not (terminated or truncated):
            action = env.action_space.sample()
            observation, reward, terminated, truncated, _ = env.step(action)
            seen.append(observation)
            actions.append(action)
            rewards.append(reward)
        out.append(
            Episode(
                np.array(seen, np.float32),
                np.array(actions, np.int64),
                np.array(rewards, np.float32),
                terminated,
                truncated,
            )
        )
    return out


def runner(steps: int, length: int = 1000) -> list[Episode]:
    """Joints and velocities of a driven, damped chain: 17 smooth floats, 6 random actions, as in HalfCheetah."""
    rng = np.random.default_rng(0)
    out = []
    for _ in range(steps // length):
        place, speed = rng.normal(0, 0.1, 9), rng.normal(0, 0.1, 9)
        actions = rng.uniform(-1, 1, (length, 6)).astype(np.float32)
        seen, rewards = [np.concatenate([place[1:], speed])], []
        for action in actions:
            force = np.concatenate([np.zeros(3), 8.0 * action])
            for _ in range(5):
                pull = 2 * (np.roll(place, 1) + np.roll(place, -1) - 2 * place)
                speed = speed + 0.01 * (force - 6 * place - 0.8 * speed + pull)
                place = place + 0.01 * speed
            seen.append(np.concatenate([place[1:], speed]))
            rewards.append(speed[0] - 0.1 * float(action @ action))
        out.append(Episode(np.array(seen, np.float32), actions, np.array(rewards, np.float32), False, True))
    return out


def atari(steps: int, game: str = "breakout") -> list[Episode]:
    """84×84 frames of an Atari game under a policy that is random, four frames a step."""
    from ale_py.vector_env import AtariVectorEnv

    env = AtariVectorEnv(game=game, num_envs=1, stack_num=1)
    rng = np.random.default_rng(0)
    choices = int(env.single_action_space.n)
    out: list[Episode] = []
    observation, _ = env.reset(seed=0)
    while sum(map(len, out)) < steps:
        seen, actions, rewards = [observation[0, 0].copy()], [], []
        terminated = truncated = False
        while not (terminated or truncated) and len(rewards) < 5000:
            action = int(rng.integers(choices))
            observation, reward, ended, cut, _ = env.step(np.array([action]))
            terminated, truncated = bool(ended[0]), bool(cut[0])
            seen.append(observation[0, 0].copy())
            actions.append(action)
            rewards.append(reward[0])
        out.append(
            Episode(np.array(seen), np.array(actions, np.int64), np.array(rewards, np.float32), terminated, truncated)
        )
        observation, _, _, _, _ = env.step(np.array([0]))  # begins the next episode
    return out
