"""Blind Cliffwalk: how many updates each sampler needs where only few of exponentially many rows matter.

Schaul, Quan, Antonoglou, Silver 2016, "Prioritized experience replay" (arXiv 1511.05952), appendix B.1. A walk of `n`
states; in each, one of two actions goes on and the other one ends the episode. Going on from the last state gives the
reward 1, all else 0. All 2^n sequences of actions are in the store, in random order: 2^(n+1) - 2 steps, of which one
has a reward. A table is trained by Q-learning, one step at a time, until its mean squared error is below 0.001.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

import recollect as rc
from recollect.samplers import Draw, State
from recollect.view import F64, Slots

STEP_SIZE = 0.25
CLOSE_ENOUGH = 1e-3
SCHEMA = rc.Schema(
    {"observation": rc.Tensor("int64"), "action": rc.Tensor("int64"), "reward": rc.Tensor("float32")},
)
METHODS = ("uniform", "oracle", "greedy", "proportional", "proportional 0.6", "rank")
"""What `updates` compares."""


def right(state: int) -> int:
    """The action that goes on: it alternates, so that no constant policy gets anywhere."""
    return state % 2


def fill(ws: rc.Workspace, n: int, seed: int) -> rc.View:
    """Writes every sequence of actions, in random order, and returns a view of them."""
    order = np.random.default_rng([seed, n]).permutation(2**n)
    # The bits of a sequence's number say where it fails; the one without any does not.
    length = np.array([n if i == 0 else n - int(i).bit_length() + 1 for i in order.tolist()])
    episode = np.repeat(np.arange(len(order)), length)
    step = np.concatenate([np.arange(k) for k in length])
    last = np.concatenate([np.arange(k) == k - 1 for k in length])
    wins = last & (np.repeat(order, length) == 0)
    action = np.where(last & ~wins, 1 - step % 2, step % 2)
    with ws.writer() as writer:
        writer.extend(
            {
                "episode": episode,
                "step": step,
                "observation": step,
                "action": action,
                "reward": wins.astype(np.float32),
                "terminated": last,
            }
        )
    return ws.view()


class Learner:
    """A table of action values, one number for each state and action."""

    def __init__(self, n: int, seed: int) -> None:
        self.n, self.gamma = n, 1 - 1 / n
        self.values: list[list[float]] = np.random.default_rng([seed, n, 1]).normal(0, 0.1, (n, 2)).tolist()
        self.truth = [[self.gamma ** (n - 1 - s) * (a == right(s)) for a in (0, 1)] for s in range(n)]
        self._squares = float(np.square(np.subtract(self.values, self.truth)).sum())

    @property
    def is_done(self) -> bool:
        """Whether the mean squared error is small enough."""
        return self._squares / (2 * self.n) < CLOSE_ENOUGH

    def error(self, state: int, action: int) -> float:
        """The temporal-difference error of the step that this action takes in this state."""
        goal = 0.0
        if action == right(state):
            goal = 1.0 if state == self.n - 1 else self.gamma * max(self.values[state + 1])
        return goal - self.values[state][action]

    def gain(self, state: int, action: int) -> float:
        """By how much an update with this step lowers the squared error."""
        off = self.values[state][action] - self.truth[state][action]
        return off**2 - (off + STEP_SIZE * self.error(state, action)) ** 2

    def learn(self, state: int, action: int, goal: float) -> float:
        """One update towards a goal. Returns the error before it."""
        value, truth = self.values[state][action], self.truth[state][action]
        error = goal - value
        self.values[state][action] = value + STEP_SIZE * error
        self._squares += (value + STEP_SIZE * error - truth) ** 2 - (value - truth) ** 2
        return error


@dataclass(frozen=True)
class Greedy:
    """Always the row whose error was largest when it was last used; rows that were never used first."""

    def bind(self, view: rc.View, seed: int, state: State | None = None) -> GreedyCursor:
        return GreedyCursor(view, state)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "cliffwalk.greedy"}


class GreedyCursor:
    takes_feedback = is_stateful = True

    def __init__(self, view: rc.View, state: State | None) -> None:
        self._signal: dict[int, float] = {} if state is None else {int(s): x for s, x in state["signal"]}
        self.grow(view)

    def grow(self, view: rc.View) -> None:
        self._view = view
        slots = view.anchors.select(np.arange(len(view))).tolist()
        self._signal = {slot: self._signal.get(slot, np.inf) for slot in slots}
        self._heap = [(-signal, slot) for slot, signal in self._signal.items()]
        heapq.heapify(self._heap)

    def draw(self, step: int, n: int, batches: int = 1) -> Draw:
        while -self._heap[0][0] != self._signal[self._heap[0][1]]:
            heapq.heappop(self._heap)  # it was used since
        keys = np.full((1, n), self._heap[0][1], np.int64)
        return Draw(step, keys, np.asarray(1.0), np.asarray(1.0))

    def update(self, keys: Slots, signal: F64) -> rc.Receipt:
        for slot, x in zip(keys.tolist(), signal.tolist(), strict=True):
            self._signal[slot] = x
            heapq.heappush(self._heap, (-x, slot))
        return rc.Receipt(len(keys), 0, 0)

    def state(self) -> Mapping[str, Any]:
        return {"signal": [[slot, x] for slot, x in self._signal.items() if x < np.inf]}


def oracle(learner: Learner, view: rc.View) -> Callable[[rc.View, np.random.Generator, int], tuple[Slots, F64]]:
    """A sampler that knows the truth: the step whose update lowers the error most. A yardstick, not a method."""
    slots = view.anchors.select(np.arange(len(view)))
    got = view.rows.gather(slots, ("observation", "action"))
    found: dict[tuple[int, int], int] = {}
    for slot, state, action in zip(slots.tolist(), got["observation"].tolist(), got["action"].tolist(), strict=True):
        found.setdefault((state, action), slot)

    def best(view: rc.View, rng: np.random.Generator, n: int) -> tuple[Slots, F64]:
        key = max(found, key=lambda step: learner.gain(*step))
        return np.full(n, found[key]), np.ones(n)

    return best


def updates(view: rc.View, n: int, method: str, seed: int, most: int = 10_000_000) -> int:
    """Updates until the table is close to the truth, through a loader on the view; `most` where it never is."""
    learner = Learner(n, seed)
    sampler: Any = {
        "uniform": rc.Uniform(),
        "greedy": Greedy(),
        "proportional": rc.Prioritized(alpha=1.0, beta=0.0),
        "proportional 0.6": rc.Prioritized(alpha=0.6, beta=0.0),
        "rank": rc.Prioritized(kind="rank", alpha=0.7, beta=0.0),
    }.get(method)
    if method == "oracle":
        sampler = oracle(learner, view)
    count = 0
    # Uniform draws do not depend on what is learnt, so that many can be read together.
    size = 256 if method == "uniform" else 1
    loader = rc.Loader(view, sampler, batch_size=size, seed=seed, lag=0, ahead=1, output="numpy")
    with loader:
        feeds = method not in ("uniform", "oracle")
        for batch in loader:
            columns = (batch[k].tolist() for k in ("observation", "action", "reward", "terminated", "next_observation"))
            for state, action, reward, ended, following in zip(*columns, strict=True):
                goal = reward if ended else reward + learner.gamma * max(learner.values[following])
                error = learner.learn(state, action, goal)
                count += 1
                if learner.is_done or count >= most:
                    return count
            if feeds:
                loader.update_priorities(batch.ids, np.array([abs(error)]))
    raise AssertionError("an endless loader ended")
