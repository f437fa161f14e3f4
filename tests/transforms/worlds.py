"""Random episode layouts in every place that rows can lie, and what is known of them from the list of steps alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect.hot.write import growing
from tests.support import Moment, Trajectory, flags_of, nest, next_of, order_of

SCHEMA = rc.Schema(
    {
        "observation": {
            "camera": rc.Frames((2, 2)),
            "state": rc.Tensor("float32", (2,)),
            "achieved_goal": rc.Tensor("float32", (2,)),
            "desired_goal": rc.Tensor("float32", (2,)),
        },
        "action": rc.Tensor("int16", (2,)),
        "reward": rc.Tensor("float32"),
        "extra": rc.Tensor("float32", optional=True),
        "uid": rc.Tensor("int64"),
    }
)
ENDS: Any = ("terminated", "truncated", "open")
PLACES = ("hot", "cold", "live", "newest", "evicted", "rotating")


def _observation(rng: np.random.Generator, k: int, mark: int) -> dict[str, Any]:
    """Marks are distinct, so that a goal says which step it was achieved at; desired goals are negative."""
    return {
        "observation.camera": rng.integers(1, 255, (2, 2), np.uint8),
        "observation.state": rng.standard_normal(2).astype(np.float32),
        "observation.achieved_goal": np.array([mark, k], np.float32),
        "observation.desired_goal": np.array([-1 - k, -1], np.float32),
    }


def trajectories_of(seed: int, count: int = 36, longest: int = 14) -> list[Trajectory]:
    """Episodes of every ending, the first three of one step. Environments jump now and then; some steps come without
    their next observation."""
    rng = np.random.default_rng([seed, 77])
    out, uid, mark = [], 0, 1000
    for k in range(count):
        length = 1 if k < 3 else int(rng.integers(1, longest + 1))
        trajectory = Trajectory(end=ENDS[int(rng.integers(3))] if k >= 3 else ENDS[k])
        for _ in range(length):
            values = _observation(rng, k, uid)
            values |= {"action": rng.integers(-9, 9, 2, np.int16), "reward": np.float32(rng.integers(-8, 9))}
            values |= {"uid": np.int64(uid)}
            if rng.random() < 0.6:
                values["extra"] = np.float32(rng.integers(1, 9))
            trajectory.moments.append(Moment(values))
            uid += 1
        for t, moment in enumerate(trajectory.moments):
            last = t == length - 1
            if (last and rng.random() < 0.7) or rng.random() < 0.1:
                mark += 1
                moment.following = _observation(rng, k, mark)
            elif not last and rng.random() < 0.3:
                after = trajectory.moments[t + 1].values
                moment.following = {x.path: after[x.path] for x in SCHEMA.observations}
        out.append(trajectory)
    return out


@dataclass
class World:
    """A place to draw from, and the steps that are there.

    Attributes:
        source: what a loader takes.
        view: a view of the rows, for ids.
        present: uids of the steps that can be read.
    """

    name: str
    trajectories: list[Trajectory]
    source: Callable[[], Any]
    view: rc.View
    present: set[int]

    def __post_init__(self) -> None:
        self.place = {
            int(m.values["uid"]): (k, t) for k, e in enumerate(self.trajectories) for t, m in enumerate(e.moments)
        }

    def values(self, uid: int) -> dict[str, Any]:
        k, t = self.place[uid]
        return self.trajectories[k].moments[t].values

    def ended(self, uid: int) -> dict[str, bool]:
        k, t = self.place[uid]
        return flags_of(self.trajectories[k], t)

    def after(self, uid: int) -> dict[str, Any] | None:
        """The observation after a step."""
        k, t = self.place[uid]
        moments = self.trajectories[k].moments
        if moments[t].following is not None:
            return moments[t].following
        return moments[t + 1].values if t + 1 < len(moments) else None

    def is_drawable(self, uid: int) -> bool:
        return uid in self.present and (self.after(uid) is not None or self.ended(uid)["terminated"])

    def run(self, uid: int) -> list[int]:
        """The uids of the step's episode that are there and hang together with it, in order."""
        k, t = self.place[uid]
        uids = [int(m.values["uid"]) for m in self.trajectories[k].moments]
        low = t
        while low > 0 and uids[low - 1] in self.present:
            low -= 1
        high = t
        while high + 1 < len(uids) and uids[high + 1] in self.present:
            high += 1
        return uids[low : high + 1]

    def ahead(self, uid: int) -> list[int]:
        """The step and those after it that could be drawn."""
        run = self.run(uid)
        out = []
        for other in run[run.index(uid) :]:
            if not self.is_drawable(other):
                break
            out.append(other)
        return out

    def stacked(self, path: str, uid: int, k: int, pad: str) -> np.ndarray[Any, Any] | None:
        """The newest k values up to a step; None where earlier ones are gone."""
        run, (_, t) = self.run(uid), self.place[uid]
        newest = run[: run.index(uid) + 1][-k:]
        planes = [self.values(u)[path] for u in newest]
        if len(planes) < min(k, t + 1):
            return None
        return _padded(planes, k, pad)

    def next_stacked(self, path: str, uid: int, k: int, pad: str) -> np.ndarray[Any, Any] | None:
        """Likewise, up to the observation after a step; None without one."""
        seen = self.after(uid)
        if seen is None:
            return None
        run = self.run(uid)
        planes = [self.values(u)[path] for u in run[: run.index(uid) + 1]] + [seen[path]]
        return _padded(planes[-k:], k, pad)

    def reached(self, uid: int, strategy: str) -> set[float]:
        """The marks of the goals that may be put in place of a step's own."""
        run = self.run(uid)
        known = [u for u in run if self.after(u) is not None]
        if strategy == "future":
            known = [u for u in known if u >= uid]
        if strategy == "final":
            known = known[-1:] if known and known[-1] >= uid else []
        return {float(self.after(u)["observation.achieved_goal"][0]) for u in known}  # type: ignore[index]


def _padded(planes: list[Any], k: int, pad: str) -> np.ndarray[Any, Any]:
    head = planes[0] if pad == "repeat" else np.zeros_like(planes[0])
    return np.stack([head] * (k - len(planes)) + planes)


def _write(ws: rc.Workspace, trajectories: list[Trajectory], seed: int, *, folder: Path | None = None) -> None:
    """By two writers in turns, several episodes interleaved in each; snapshots on the way when there is a folder."""
    rng = np.random.default_rng([seed, 5])
    order = order_of(trajectories, rng)
    writers = [ws.writer(), ws.writer()]
    episodes: dict[int, rc.Episode] = {}
    for n, (k, t) in enumerate(order):
        moment = trajectories[k].moments[t]
        if k not in episodes:
            episodes[k] = writers[k % 2].episode()
        episodes[k].append(
            **nest(moment.values), next_observation=next_of(moment.following), **flags_of(trajectories[k], t)
        )
        if folder is not None and (n + 1) % (len(order) // 4) == 0:
            ws.snapshot(folder / "buffer")
    for writer in writers:
        writer.close()


@contextmanager
def world(name: str, seed: int, folder: Path, patch: pytest.MonkeyPatch) -> Iterator[World]:
    """Episodes in one of `PLACES`, over segments of a few dozen rows."""
    patch.setattr(growing, "SEGMENT_BYTES", (1 << 13,))
    trajectories = trajectories_of(seed)
    keep = rc.Keep(rows=100, unpromoted="drop") if name == "evicted" else rc.Keep()
    with rc.create_workspace(f"w-{name}-{seed}", SCHEMA, keep=keep) as ws:
        stored = name in ("cold", "rotating")
        _write(ws, trajectories, seed, folder=folder if stored else None)
        if name == "evicted":
            ws.evict()
        view, last = ws.view(), len(ws.view().rows) // 2 if name == "newest" else None
        source: Any = ws.view
        if name in ("live", "newest"):
            view = ws.live(last=last).at(0)

            def source() -> Any:
                return ws.live(last=last)

        if stored:
            ws.snapshot(folder / "buffer")
            buffer = rc.open_buffer(folder / "buffer")
            view = buffer.at()
            source = buffer.at
            if name == "rotating":
                spans = buffer.rotate(resident_bytes=1 << 30).version.spans
                assert len(spans) > 3
                room = (2 + 2) * max(s.bytes for s in spans)

                def source() -> Any:
                    return buffer.rotate(resident_bytes=room)

        slots = np.arange(getattr(view.rows, "first", 0), getattr(view.rows, "first", 0) + len(view.rows))
        slots = slots[~view.episodes.is_final[slots] & (view.episodes.group[slots] >= 0)]
        present = set(view.rows.gather(slots, ("uid",))["uid"].tolist())
        every = sum(map(len, trajectories))
        assert len(present) == every if name not in ("newest", "evicted") else 0 < len(present) < every
        yield World(name, trajectories, source, view, present)


def drawn(
    there: World, transforms: list[Any], *, seed: int = 0, **options: Any
) -> Iterator[tuple[int, dict[str, Any]]]:
    """(uid, row) of batches: each row once where the view stays as it is, else of so many batches that it comes."""
    source = there.source()
    options = {"batch_size": 16, "output": "numpy", **options}
    if isinstance(source, rc.View):
        options.setdefault("epochs", 1)
    else:
        options.setdefault("steps", 400 if there.name == "rotating" else 250)
    with rc.Loader(source, seed=seed, transforms=transforms, **options) as loader:
        for batch in loader:
            columns = {name: batch[name] for name in batch._paths()}
            columns |= {f"valid/{name}": value for name, value in batch.valid.items()}
            for i, uid in enumerate(batch["uid"].tolist()):
                yield uid, {name: column[i] for name, column in columns.items()}
