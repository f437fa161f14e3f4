"""A deterministic environment whose observations say where they come from, and the log that recorders must match."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode


class Counting(gymnasium.Env[Any, Any]):
    """Observes (lane, episode, step, last action); episode k of lane l ends after 1 + (l + 2 k) % 5 steps.

    Even episodes terminate, odd ones are truncated. `form` shapes the observation.
    """

    def __init__(self, lane: int = 0, form: str = "box") -> None:
        self.lane, self.form = lane, form
        self.observation_space, self.action_space = SPACES[form], spaces.Discrete(7)
        self.episode, self.at, self.last = -1, 0, 0
        self._buffer = np.zeros(4, np.float32)

    def observe(self) -> Any:
        return FORMS[self.form](self)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.episode, self.at, self.last = self.episode + 1, 0, 0
        return self.observe(), {"level": self.episode}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        self.at, self.last = self.at + 1, int(action)
        over = self.at >= 1 + (self.lane + 2 * self.episode) % 5
        reward = self.lane * 100 + self.episode * 10 + self.at + self.last / 8
        info = {"at": self.at, "inner": {"lane": self.lane}}
        return self.observe(), np.float64(reward), over and not self.episode % 2, over and bool(self.episode % 2), info


def _numbers(env: Counting) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.array([env.lane, env.episode, env.at, env.last], np.float32)


def _in_place(env: Counting) -> Any:
    env._buffer[:] = _numbers(env)
    return env._buffer


_BOX = spaces.Box(-1000, 1000, (4,), np.float32)
_COUNT = spaces.Discrete(1000)
SPACES: dict[str, spaces.Space[Any]] = {
    "box": _BOX,
    "in_place": _BOX,
    "dict": spaces.Dict({"all": _BOX, "deep": spaces.Dict({"at": _COUNT})}),
    "dict_of_one": spaces.Dict({"all": _BOX}),
    "tuple": spaces.Tuple((_BOX, _COUNT)),
    "multi_discrete": spaces.MultiDiscrete([1000, 1000, 1000, 1000]),
    "discrete": spaces.Discrete(100_000),
    "text": spaces.Text(40),
    "named": spaces.Dict({"all": _BOX, "name": spaces.Text(40)}),
}
FORMS: dict[str, Callable[[Counting], Any]] = {
    "box": _numbers,
    "in_place": _in_place,
    "dict": lambda e: {"all": _numbers(e), "deep": {"at": np.int64(e.at)}},
    "dict_of_one": lambda e: {"all": _numbers(e)},
    "tuple": lambda e: (_numbers(e), e.at),
    "multi_discrete": lambda e: _numbers(e).astype(np.int64),
    "discrete": lambda e: np.int64(e.lane * 10_000 + e.episode * 100 + e.at * 10 + e.last),
    "text": lambda e: f"{e.lane}/{e.episode}/{e.at}/{e.last}",
    "named": lambda e: {"all": _numbers(e), "name": f"{e.lane}/{e.episode}/{e.at}/{e.last}"},
}


class Transition(NamedTuple):
    """One true step; observations as nested tuples of numbers and text."""

    observation: Any
    action: int
    reward: float
    terminated: bool
    truncated: bool
    next_observation: Any


def frozen(value: Any) -> Any:
    """Nested tuples of plain values, mappings in the order of their names."""
    if isinstance(value, Mapping):
        return tuple(frozen(value[k]) for k in sorted(value))
    if isinstance(value, tuple):
        return tuple(frozen(v) for v in value)
    return value.tolist() if isinstance(value, np.ndarray | np.generic) else value


class Truth:
    """Steps environments of its own, one lane at a time, as a mode says, and logs what is a transition."""

    def __init__(self, num_envs: int, form: str, mode: AutoresetMode | None) -> None:
        self.envs = [Counting(lane, form) for lane in range(num_envs)]
        self.mode = mode
        self.now: list[Any] = [None] * num_envs
        self.over = [False] * num_envs
        self.log: list[Transition] = []

    def reset(self, lanes: list[int] | None = None) -> None:
        for lane in range(len(self.envs)) if lanes is None else lanes:
            self.now[lane], self.over[lane] = frozen(self.envs[lane].reset()[0]), False

    def step(self, actions: Any) -> None:
        for lane, action in enumerate(actions):
            if self.over[lane]:
                if self.mode is AutoresetMode.NEXT_STEP:
                    self.reset([lane])
                continue
            observation, reward, terminated, truncated, _ = self.envs[lane].step(action)
            seen = frozen(observation)
            self.log.append(
                Transition(self.now[lane], int(action), float(np.float32(reward)), terminated, truncated, seen)
            )
            self.now[lane], self.over[lane] = seen, terminated or truncated
            if self.over[lane] and self.mode is AutoresetMode.SAME_STEP:
                self.reset([lane])
