"""What plays: a small network in numpy, its greedy evaluation, and what was tuned. No torch here: actors stay light."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import gymnasium
import numpy as np
from numpy.typing import NDArray

F32 = NDArray[np.float32]
ENV_ID = "CartPole-v1"
OBSERVATIONS, ACTIONS = 4, 2


@dataclass(frozen=True)
class Config:
    """A double DQN that learns CartPole from snapshots (van Hasselt, Guez, Silver 2016).

    The slow target network matters most: refreshed every 20 steps instead of 100, the values run away.
    """

    rounds: int = 60
    steps_per_round: int = 2000
    updates_per_round: int = 500
    batch_size: int = 256
    hidden: int = 64
    learning_rate: float = 1e-3
    gamma: float = 0.99
    reward_scale: float = 0.1
    target_period: int = 100
    epsilon_end: float = 0.05
    epsilon_rounds: int = 5
    evaluation_episodes: int = 20
    stop_mean: float = 475.0
    stop_streak: int = 2

    def epsilon(self, round_: int) -> float:
        """Share of random actions while a round's steps are collected."""
        return 1.0 + min(1.0, round_ / self.epsilon_rounds) * (self.epsilon_end - 1.0)


@dataclass(frozen=True)
class Policy:
    """A perceptron with ReLU: weights `[fan_in, fan_out]` and biases `[fan_out]`, float32, layer by layer."""

    weights: tuple[F32, ...]
    biases: tuple[F32, ...]
    round: int = 0

    def values(self, observation: F32) -> F32:
        """Action values `[N, 2]` of observations `[N, 4]`."""
        x = observation
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = np.maximum(x @ weight + bias, np.float32(0))
        return x @ self.weights[-1] + self.biases[-1]

    def act(self, observation: F32, epsilon: float, rng: np.random.Generator) -> int:
        """One epsilon-greedy action for an observation `[4]`."""
        if rng.random() < epsilon:
            return int(rng.integers(ACTIONS))
        return int(self.values(observation[None])[0].argmax())

    def save(self, path: Path) -> None:
        """Publishes the policy whole: a reader sees the one before or this one."""
        arrays = {f"weight_{i}": w for i, w in enumerate(self.weights)}
        arrays |= {f"bias_{i}": b for i, b in enumerate(self.biases)}
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        with open(temporary, "wb") as file:
            np.savez(file, allow_pickle=False, round=np.asarray(self.round), **arrays)
        os.replace(temporary, path)

    @classmethod
    def load(cls, path: Path) -> Policy:
        with np.load(path) as arrays:
            layers = range(sum(name.startswith("weight_") for name in arrays.files))
            return cls(
                tuple(arrays[f"weight_{i}"] for i in layers),
                tuple(arrays[f"bias_{i}"] for i in layers),
                int(arrays["round"]),
            )


def evaluate(policy: Policy, episodes: int, seed: int) -> NDArray[np.float64]:
    """Returns `[episodes]` of greedy episodes, played in lockstep."""
    envs = [gymnasium.make(ENV_ID) for _ in range(episodes)]
    observation = np.stack([env.reset(seed=seed + i)[0] for i, env in enumerate(envs)])
    returns = np.zeros(episodes)
    running = list(range(episodes))
    while running:
        actions = policy.values(observation[running]).argmax(axis=1)
        going_on = []
        for i, action in zip(running, actions.tolist(), strict=True):
            observation[i], reward, terminated, truncated, _ = envs[i].step(action)
            returns[i] += float(reward)
            if not (terminated or truncated):
                going_on.append(i)
        running = going_on
    for env in envs:
        env.close()
    return returns
