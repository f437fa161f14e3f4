"""The learner process: a double DQN that sees nothing but snapshots, one tagged version a round."""

from __future__ import annotations

import argparse
import copy
import json
import time
from pathlib import Path
from typing import Any

import torch

import recollect as rc
from recollect.demo.policy import ACTIONS, OBSERVATIONS, Config, Policy, evaluate


class Learner:
    """Double DQN with a Huber loss, bootstraps clipped to the values that CartPole's rewards allow."""

    def __init__(self, config: Config, seed: int) -> None:
        torch.set_num_threads(1)
        torch.manual_seed(seed)
        self.config = config
        self.updates = 0
        self.online = torch.nn.Sequential(
            torch.nn.Linear(OBSERVATIONS, config.hidden),
            torch.nn.ReLU(),
            torch.nn.Linear(config.hidden, config.hidden),
            torch.nn.ReLU(),
            torch.nn.Linear(config.hidden, ACTIONS),
        )
        self.target = copy.deepcopy(self.online).requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.online.parameters(), lr=config.learning_rate, fused=True)

    def update(self, batch: rc.Batch[torch.Tensor]) -> None:
        """One gradient step. `discount` is already 0 where an episode terminated, and only there."""
        config = self.config
        with torch.no_grad():
            best = self.online(batch["next_observation"]).argmax(dim=1, keepdim=True)
            bootstrap = self.target(batch["next_observation"]).gather(1, best).squeeze(1)
            bootstrap = bootstrap.clamp(0.0, config.reward_scale / (1.0 - config.gamma))
            goal = config.reward_scale * batch["reward"] + batch["discount"] * bootstrap
        chosen = self.online(batch["observation"]).gather(1, batch["action"].unsqueeze(1)).squeeze(1)
        loss = torch.nn.functional.smooth_l1_loss(chosen, goal)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(self.online.parameters(), 10.0)
        self.optimizer.step()
        self.updates += 1
        if self.updates % config.target_period == 0:
            self.target.load_state_dict(self.online.state_dict())

    def policy(self, round_: int) -> Policy:
        layers = [m for m in self.online if isinstance(m, torch.nn.Linear)]
        return Policy(
            tuple(m.weight.detach().numpy().T.copy() for m in layers),
            tuple(m.bias.detach().numpy().copy() for m in layers),
            round_,
        )


def learn(name: str, uri: str, control: Path, seed: int, config: Config) -> None:
    """Trains round by round and reports each as one JSON line on stdout; the last line is the final evaluation."""
    learner = Learner(config, seed)
    learner.policy(0).save(control / "policy.npz")
    best, best_mean, streak = learner.policy(0), -1.0, 0
    loader: rc.Loader | None = None
    with rc.open_workspace(name) as workspace:
        for round_ in range(1, config.rounds + 1):
            began = time.perf_counter()
            while workspace.cut().rows < round_ * config.steps_per_round:
                time.sleep(0.005)
            snapshot = workspace.snapshot(uri, tag=f"round-{round_}")
            snapped = time.perf_counter()
            view = rc.open_buffer(uri).at(f"round-{round_}")
            if loader is None:
                loader = rc.Loader(
                    view,
                    rc.Uniform(),
                    batch_size=config.batch_size,
                    seed=seed,
                    transforms=[rc.NStep(1, gamma=config.gamma)],
                )
            else:
                loader.advance(view)
            reading = 0.0
            for _ in range(config.updates_per_round):
                at = time.perf_counter()
                batch = next(loader)
                reading += time.perf_counter() - at
                learner.update(batch)
            policy = learner.policy(round_)
            policy.save(control / "policy.npz")
            mean = float(evaluate(policy, config.evaluation_episodes, 10_000 * (seed + 1) + 100 * round_).mean())
            if mean >= best_mean:
                best, best_mean = policy, mean
            streak = streak + 1 if mean >= config.stop_mean else 0
            report(
                round=round_,
                mean_return=mean,
                best=best_mean,
                version=snapshot.version,
                rows_added=snapshot.rows_added,
                rows=snapshot.rows,
                snapshot_s=snapshot.seconds,
                waited_s=snapped - began - snapshot.seconds,
                batches_per_s=config.updates_per_round / reading,
                round_s=time.perf_counter() - began,
            )
            if streak >= config.stop_streak:
                break
    best.save(control / "best.npz")
    final = evaluate(best, config.evaluation_episodes, 10_000_000 + 1000 * seed)
    report(final=float(final.mean()), lowest=float(final.min()), episodes=len(final))


def report(**event: Any) -> None:
    print(json.dumps(event), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("name")
    parser.add_argument("uri")
    parser.add_argument("control", type=Path)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--config", type=json.loads, required=True)
    given = parser.parse_args()
    learn(given.name, given.uri, given.control, given.seed, Config(**given.config))


if __name__ == "__main__":
    main()
