"""`HindsightRelabel`: goals that were reached later, in place of those that were not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from recollect.errors import ArgumentError
from recollect.records.along import around
from recollect.schema import Schema
from recollect.transforms.base import WHOLE, Chance, Columns, Data, Lookup, Reach, Reads, named
from recollect.view import Slots, View

Strategy = Literal["future", "final", "episode"]
Compute = Callable[[NDArray[Any], NDArray[Any], Columns], Any]
"""(achieved `[n, ...]`, desired `[n, ...]`, info: name → `[n, ...]`) → `[n]`."""
_WHETHER, _WHICH = 0, 1
_NAME = "hindsight"


@dataclass(frozen=True)
class HindsightRelabel:
    """Replaces the desired goal of some rows by one that was achieved in their episode, and computes the reward anew
    (Andrychowicz et al. 2017, "Hindsight experience replay").

    The goal is what was achieved after a step of the same episode, as far as it is stored. Steps of open episodes
    count; which are stored depends on the view alone. `desired` of the observation and of the next observation, the
    reward, and with `compute_terminated` also `terminated`, are those under the new goal, over all steps that a later
    `NStep`, `ReturnsToGo` or `Previous` reads. The steps of a sequence share one goal, chosen from its key. Nothing
    that is stored changes.

    A row stays as it is where nothing achieved is known of its episode, or where a step that counts for it has no
    stored next observation, without which its reward cannot be computed.

    Args:
        strategy: of which step: one of the row's own and later steps, each with equal chance (`"future"`); the
            episode's last (`"final"`); or any one of it (`"episode"`).
        k: relabelled rows for each that is not, 4 in the paper: a share of k / (k + 1).
        fraction: the share itself, 0 to 1, in place of `k`.
        compute_reward: (achieved, desired, info) → rewards `[n]`, over columns `[n, ...]`; as gymnasium-robotics names
            it. It goes row by row and depends on its arguments alone.
        compute_terminated: likewise → bools `[n]`; `terminated` stays as it was stored when None.
        achieved, desired: paths of the goal fields, both observations of one shape.
        info: paths of fields of fixed shape that `info` holds.

    Raises:
        ArgumentError: an unknown strategy, a share out of range, or no function.
    """

    strategy: Strategy = "future"
    k: float = 4
    fraction: float | None = None
    compute_reward: Compute | None = None
    compute_terminated: Compute | None = None
    achieved: str = "observation.achieved_goal"
    desired: str = "observation.desired_goal"
    info: Sequence[str] = ()

    def __post_init__(self) -> None:
        if self.strategy not in ("future", "final", "episode"):
            raise ArgumentError("unknown strategy", value=self.strategy, remedy="Use 'future', 'final' or 'episode'")
        if not self.k >= 0:
            raise ArgumentError("k is a number of at least 0", value=self.k)
        if self.fraction is not None and not 0 <= self.fraction <= 1:
            raise ArgumentError("fraction lies between 0 and 1", value=self.fraction)
        if not callable(self.compute_reward):
            raise ArgumentError(
                "hindsight needs a function for the reward under another goal",
                value=self.compute_reward,
                remedy="Pass compute_reward=env.unwrapped.compute_reward, or a function of (achieved, desired, info)",
            )
        if self.compute_terminated is not None and not callable(self.compute_terminated):
            raise ArgumentError("compute_terminated is a function", value=self.compute_terminated)
        if isinstance(self.info, str):
            raise ArgumentError("info is a list of names", value=self.info, remedy=f"Pass [{self.info!r}]")
        object.__setattr__(self, "info", tuple(self.info))

    @property
    def share(self) -> float:
        """Of all rows, how many are relabelled on average."""
        return self.k / (self.k + 1) if self.fraction is None else self.fraction

    @property
    def reach(self) -> Reach:
        return Reach(WHOLE if self.strategy == "episode" else 0, WHOLE, window=False)

    def needs(self, schema: Schema) -> frozenset[str]:
        reward = schema.role("reward")
        if reward is None:
            raise ArgumentError("hindsight needs a field with the role reward")
        for path in (self.achieved, self.desired):
            (leaf,) = found if len(found := schema.select([path])) == 1 else (None,)
            if leaf is None or not leaf.is_observation:
                raise ArgumentError(f"goal field {path!r} is no observation", remedy="Name the leaf, with its dots")
        ended = () if self.compute_terminated is None else ("terminated",)
        goals = (self.desired, f"next_{self.desired}", f"next_{self.achieved}")
        return frozenset([reward.path, *goals, *ended, *self.info])

    def to_dict(self) -> dict[str, Any]:
        ended = self.compute_terminated
        return {
            "kind": "hindsight",
            "strategy": self.strategy,
            "share": self.share,
            "compute_reward": named(self.compute_reward),  # type: ignore[arg-type]
            "compute_terminated": None if ended is None else named(ended),
            "achieved": self.achieved,
            "desired": self.desired,
            "info": list(self.info),
        }

    def plan(self, reads: Reads, view: View, chance: Chance) -> Reads:
        """Which rows are relabelled, and after which step their new goal was achieved."""
        episodes, length = view.episodes, reads.length
        keys = reads.keys[::length]
        steps = self._steps(view, keys, chance(_WHICH)[::length])
        reached = np.where(steps < 0, -1, episodes.next_observation(steps))
        flat = reads.window.reshape(-1)
        known = episodes.next_observation(flat) >= 0
        blind = (view.anchors.complete(flat) & ~known).reshape(len(keys), -1).any(axis=1)
        chosen = (chance(_WHETHER)[::length] < self.share) & (reached >= 0) & ~blind
        cells = np.repeat(chosen, length)[:, None] & known.reshape(reads.window.shape)
        lookup = Lookup(np.repeat(np.where(chosen, reached, -1), length), (self.achieved,))
        return reads.masked(_NAME, cells).looking(_NAME, lookup)

    def _steps(self, view: View, keys: Slots, chance: NDArray[np.float64]) -> Slots:
        """Of each key's run the chosen step, -1 where none has a next observation."""
        episodes = view.episodes
        behind, ahead = around(episodes, keys)
        # A run ends with a step, or with the observation after it as a row of its own.
        seen = episodes.next_observation(episodes.offset(keys, ahead)) >= 0
        top = np.where(seen, ahead, ahead - 1)
        if self.strategy == "final":
            at = top
        elif self.strategy == "future":
            at = np.minimum((chance * (top + 1)).astype(np.int64), top)
        else:
            at = np.minimum((chance * (behind + top + 1)).astype(np.int64), behind + top) - behind
        return np.where(top >= -behind * (self.strategy == "episode"), episodes.offset(keys, at), -1)

    def apply(self, data: Data, reads: Reads, schema: Schema) -> Data:
        assert self.compute_reward is not None
        reward, cells = schema.role("reward"), reads.masks[_NAME]
        assert reward is not None
        goal = data.found[_NAME][self.achieved]
        chosen = reads.lookups[_NAME].slots >= 0
        nexts, windows = data.windows[f"next_{self.achieved}"], data.windows
        for path in (self.desired, f"next_{self.desired}"):
            if windows[path].shape[2:] != goal.shape[1:] or nexts.shape[2:] != goal.shape[1:]:
                raise ArgumentError(
                    f"goal fields {self.achieved!r} and {self.desired!r} have one shape and are not stacked",
                    value=(goal.shape[1:], windows[path].shape[2:]),
                )
        spread = np.broadcast_to(goal[:, None], (*cells.shape, *goal.shape[1:]))
        given = nexts[cells], spread[cells], {name: windows[name][cells] for name in self.info}
        out = {reward.path: _placed(windows[reward.path], cells, self.compute_reward(*given))}
        if self.compute_terminated is not None:
            out["terminated"] = _placed(windows["terminated"], cells, self.compute_terminated(*given))
        at = chosen.reshape(-1, *(1,) * (goal.ndim - 1))
        wide = {p: np.where(at[:, None], spread, windows[p]) for p in (self.desired, f"next_{self.desired}")}
        done = data.with_windows(reads.now, {**out, **wide})
        following = f"next_{self.desired}"
        return done.with_rows(**{following: np.where(at, goal, data.rows[following])})


def _placed(old: NDArray[Any], cells: NDArray[np.bool_], values: Any) -> NDArray[Any]:
    """The stored values, and those of the cells in their place."""
    values = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    count = int(np.count_nonzero(cells))
    if values.shape != (count, *old.shape[2:]):
        raise ArgumentError(
            "a function of hindsight returns a number for each row",
            value=values.shape,
            remedy=f"Return shape {(count,)}",
        )
    out = old.copy()
    out[cells] = values
    return out
