"""Two samplers of one's own: a function, and an object that keeps what it knows of rows and takes feedback.

    python examples/own_sampler.py

A loader takes any object with `bind` and `to_dict` (`recollect.samplers.base.Sampler`), or a function of (view, rng,
n). It checks what they draw: rows that may not be drawn, wrong shapes and chances of 0 are refused by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

import recollect as rc
from recollect.samplers import Draw

SCHEMA = rc.Schema({"observation": rc.Tensor("float32"), "action": rc.Tensor("int64"), "reward": rc.Tensor("float32")})


def newest_hundred(view: rc.View, rng: np.random.Generator, n: int) -> tuple[Any, Any]:
    """A function: slots `[n]` of rows of the view, and the chance that each had `[n]`. It depends on its arguments
    alone, so that a resumed run draws the same rows."""
    size = min(100, len(view))
    ranks = len(view) - 1 - rng.integers(0, size, n)
    return view.anchors.select(ranks), np.full(n, 1 / size)


@dataclass(frozen=True)
class Rewarding:
    """An object: each batch is drawn with chances that grow with the reward, and fall with every draw of a row.

    Args:
        temperature: of the softmax over rewards.
    """

    temperature: float = 1.0

    def bind(self, view: rc.View, seed: int, state: Mapping[str, Any] | None = None) -> RewardingCursor:
        return RewardingCursor(self, view, seed, state)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "example.rewarding", "temperature": self.temperature}


class RewardingCursor:
    takes_feedback = True  # there is update()
    is_stateful = True  # a draw depends on the draws and updates before it

    def __init__(self, config: Rewarding, view: rc.View, seed: int, state: Mapping[str, Any] | None) -> None:
        self.config, self.seed = config, seed
        self.tired: dict[int, float] = {} if state is None else {int(s): x for s, x in state["tired"]}
        self.grow(view)

    def grow(self, view: rc.View) -> None:
        """A later view: rows came, some may have gone; a slot stays the slot of its row."""
        self.slots = view.anchors.select(np.arange(len(view)))
        reward = view.rows.gather(self.slots, ("reward",))["reward"].astype(np.float64)
        self.chances = np.exp((reward - reward.max()) / self.config.temperature)

    def draw(self, step: int, n: int, batches: int = 1) -> Draw:
        """Random numbers are made of (seed, step), so that nothing of them needs to be kept."""
        tired = np.array([self.tired.get(slot, 0.0) for slot in self.slots.tolist()])
        chances = self.chances * np.exp(-tired)
        chances /= chances.sum()
        at = np.random.default_rng([self.seed, step]).choice(len(chances), n, p=chances)
        keys = self.slots[at][None]
        return Draw(step, keys, chances[at][None], np.ones((1, n)))

    def update(self, keys: Any, signal: Any) -> rc.Receipt:
        """`loader.update_priorities(batch.ids, signal)` ends here: by how much more tired a row is."""
        known = np.isin(keys, self.slots)
        for slot, more in zip(keys[known].tolist(), signal[known].tolist(), strict=True):
            self.tired[slot] = self.tired.get(slot, 0.0) + more
        return rc.Receipt(int(known.sum()), int((~known).sum()), 0)

    def state(self) -> dict[str, Any]:
        """Plain values: with them, `bind` goes on where this cursor is."""
        return {"tired": [[slot, x] for slot, x in self.tired.items()]}


def main() -> dict[str, float]:
    """What each sampler draws: the share of rows among the newest hundred, or the mean reward."""
    with rc.create_workspace(None, SCHEMA, keep=rc.Keep(rows=10_000, unpromoted="drop")) as ws:
        rng = np.random.default_rng(0)
        with ws.writer() as writer:
            for _ in range(50):
                with writer.episode() as episode:
                    for t in range(20):
                        episode.append(observation=t, action=0, reward=rng.normal(), terminated=t == 19)
        view = ws.view()
        with rc.Loader(view, newest_hundred, batch_size=256, seed=0, output="numpy") as loader:
            ranks = np.searchsorted(np.arange(len(view)), view.rows.find(next(loader).ids))
            share = float((ranks >= len(view) - 100).mean())
        means = {"function": share}
        for name, sampler in (("uniform", rc.Uniform()), ("object", Rewarding())):
            total = []
            with rc.Loader(view, sampler, batch_size=256, seed=0, steps=20, output="numpy") as loader:
                for batch in loader:
                    total.append(batch["reward"].mean())
                    if name == "object":
                        loader.update_priorities(batch.ids, np.full(len(batch), 0.01))
            means[name] = float(np.mean(total))
    return means


if __name__ == "__main__":
    print(main())
