"""An actor process: plays with the newest policy, appends every step, and notes each id once `append` has returned."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path

import gymnasium
import numpy as np

import recollect as rc
from recollect.demo.policy import ENV_ID, Config, Policy


def play(name: str, control: Path, index: int, seed: int, played: int, share: int) -> None:
    """Plays until the file `stop` appears in the control folder.

    Args:
        control: folder of `policy.npz`, `stop`, and this actor's list of acknowledged ids.
        played: steps that an earlier life of this actor appended; `share` its steps per round. An actor is never
            more than one round ahead of the policy.
    """
    config = Config()
    env = gymnasium.make(ENV_ID)
    rng = np.random.default_rng(np.random.SeedSequence([seed, index, played]))
    acknowledged = os.open(control / f"acknowledged-{index}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    policy = Policy.load(control / "policy.npz")
    with rc.open_workspace(name) as workspace, workspace.writer(agent=f"actor-{index}") as writer:
        first_seed: int | None = int(rng.integers(1 << 31))
        while True:
            observation, _ = env.reset(seed=first_seed)
            first_seed = None
            with writer.episode(policy_version=policy.round) as episode:
                ended = False
                while not ended:
                    while played >= share * (policy.round + 2):
                        time.sleep(0.005)
                        if (control / "stop").exists():
                            return
                        policy = Policy.load(control / "policy.npz")
                    action = policy.act(observation, config.epsilon(policy.round), rng)
                    following, reward, terminated, truncated, _ = env.step(action)
                    step = episode.append(
                        observation=observation,
                        action=action,
                        reward=float(reward),
                        next_observation=following,
                        terminated=bool(terminated),
                        truncated=bool(truncated),
                    )
                    os.write(acknowledged, f"{step}\n".encode())
                    observation, ended = following, bool(terminated or truncated)
                    played += 1
            if (control / "stop").exists():
                return
            policy = Policy.load(control / "policy.npz")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("control", type=Path)
    for option in ("--index", "--seed", "--played", "--share"):
        parser.add_argument(option, type=int, required=True)
    given = parser.parse_args()
    play(given.name, given.control, given.index, given.seed, given.played, given.share)


if __name__ == "__main__":
    main()
