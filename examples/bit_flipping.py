"""Bit flipping with hindsight (Andrychowicz et al. 2017, "Hindsight experience replay", section 3.1).

    python examples/bit_flipping.py              # 15 bits, with hindsight and without: a few minutes on two cores
    python examples/bit_flipping.py --bits 10

A state is n bits, an action flips one of them, and the reward is -1 until the bits are those of the goal. With 15 bits
an agent that explores at random never sees another reward. What it did reach teaches it all the same, once the goal is
changed in hindsight: one entry in the list of the loader's transforms. The log keeps what happened.
"""

from __future__ import annotations

import argparse
import copy
import time
from typing import Any

import numpy as np
import torch

import recollect as rc

GAMMA = 0.98
EPISODES = 16
"""Episodes that are played between two rounds of updates, and updates of a round."""
UPDATES = 40


def schema_of(bits: int) -> rc.Schema:
    goal = rc.Tensor("float32", (bits,))
    return rc.Schema(
        {
            "observation": {"achieved_goal": goal, "desired_goal": goal},
            "action": rc.Tensor("int64"),
            "reward": rc.Tensor("float32"),
        }
    )


def compute_reward(achieved: Any, desired: Any, info: Any) -> Any:
    return np.where(is_reached(achieved, desired, info), 0.0, -1.0)


def is_reached(achieved: Any, desired: Any, info: Any) -> Any:
    return (achieved == desired).all(axis=-1)


class Agent:
    """A Q-network of one hidden layer over the state and the goal, with its target."""

    def __init__(self, bits: int, seed: int) -> None:
        torch.manual_seed(seed)
        self.net = torch.nn.Sequential(torch.nn.Linear(2 * bits, 256), torch.nn.ReLU(), torch.nn.Linear(256, bits))
        self.target = copy.deepcopy(self.net)
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-3)

    @torch.no_grad()
    def act(self, state: Any, goal: Any, epsilon: float, rng: np.random.Generator) -> Any:
        values = self.net(torch.from_numpy(np.concatenate([state, goal], axis=1)))
        greedy = values.argmax(dim=1).numpy()
        return np.where(rng.random(len(state)) < epsilon, rng.integers(0, state.shape[1], len(state)), greedy)

    def learn(self, batch: Any) -> None:
        inputs = [
            torch.cat([batch[o]["achieved_goal"], batch[o]["desired_goal"]], 1)
            for o in ("observation", "next_observation")
        ]
        with torch.no_grad():
            following = self.target(inputs[1]).max(dim=1).values
            goal = (batch["reward"] + batch["discount"] * following).clamp(-1 / (1 - GAMMA), 0)
        value = self.net(inputs[0]).gather(1, batch["action"][:, None])[:, 0]
        loss = torch.nn.functional.smooth_l1_loss(value, goal)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()

    @torch.no_grad()
    def follow(self, share: float = 0.05) -> None:
        """Moves the target a little."""
        for theirs, mine in zip(self.target.parameters(), self.net.parameters(), strict=True):
            theirs.lerp_(mine, share)


def play(agent: Agent, bits: int, count: int, epsilon: float, rng: np.random.Generator, writer: Any = None) -> float:
    """Plays episodes side by side, writes them where there is a writer, and returns the share that reached its goal."""
    state, goal = (rng.integers(0, 2, (count, bits)).astype(np.float32) for _ in range(2))
    episodes = [None if writer is None else writer.episode() for _ in range(count)]
    done = (state == goal).all(axis=1)
    for t in range(bits):
        if done.all():
            break
        action = agent.act(state, goal, epsilon, rng)
        after = state.copy()
        after[np.arange(count), action] = 1 - after[np.arange(count), action]
        reached = (after == goal).all(axis=1)
        for k in np.flatnonzero(~done) if writer is not None else ():
            episodes[k].append(
                observation={"achieved_goal": state[k], "desired_goal": goal[k]},
                action=action[k],
                reward=0.0 if reached[k] else -1.0,
                terminated=bool(reached[k]),
                truncated=bool(t == bits - 1 and not reached[k]),
                next_observation={"achieved_goal": after[k], "desired_goal": goal[k]},
            )
        state[~done] = after[~done]
        done |= reached
    return float(done.mean())


def train(bits: int, rounds: int, *, hindsight: bool, seed: int = 0, enough: float = 2.0) -> list[float]:
    """The share of goals that the greedy policy reaches, after every tenth round; ends once it is `enough`."""
    rng, agent = np.random.default_rng(seed), Agent(bits, seed)
    transforms: list[Any] = [rc.NStep(1, GAMMA)]
    if hindsight:
        transforms.insert(
            0, rc.HindsightRelabel("future", k=4, compute_reward=compute_reward, compute_terminated=is_reached)
        )
    out = []
    with rc.create_workspace(None, schema_of(bits)) as ws, ws.writer() as writer:
        play(agent, bits, EPISODES, 1.0, rng, writer)
        loader = rc.Loader(ws.live(), batch_size=256, seed=seed, transforms=transforms, lag=0, output="torch")
        for done in range(1, rounds + 1):
            play(agent, bits, EPISODES, 0.2, rng, writer)
            for _ in range(UPDATES):
                agent.learn(next(loader))
                agent.follow()
            if done % 10 == 0:
                out.append(play(agent, bits, 100, 0.0, rng))
                if out[-1] >= enough:
                    break
        loader.close()
    return out


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--bits", type=int, default=15)
    parser.add_argument("--rounds", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    for hindsight in (True, False):
        started = time.perf_counter()
        shares = train(given.bits, given.rounds, hindsight=hindsight, seed=given.seed)
        title = "with hindsight" if hindsight else "without"
        line = " ".join(f"{100 * s:.0f}" for s in shares)
        print(f"{given.bits} bits {title}: % of goals reached after every 10 rounds: {line}")
        print(f"  the last five: {100 * np.mean(shares[-5:]):.0f}%, {time.perf_counter() - started:.0f} s", flush=True)


if __name__ == "__main__":
    main()
