"""Random workloads whose episodes an index must find, and what a scan of everything finds."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors
from recollect.hot.read.catalog import Catalog
from recollect.recall.results import EpisodeRecord

SCHEMA = rc.Schema(
    {
        "observation": rc.Tensor("float32", (2,)),
        "picture": rc.Frames((2,), stack=2, optional=True),
        "note": rc.Text(optional=True),
        "uid": rc.Tensor("int64"),
    },
    episode={"task": rc.Text()},
)


def step_of(uid: int, **more: Any) -> dict[str, Any]:
    """A step as `append` takes it."""
    picture = np.full(2, uid % 256, np.uint8) if uid % 3 else None
    return {
        "observation": np.full(2, uid, np.float32),
        "picture": picture,
        "note": f"n{uid}" * (uid % 4),
        "uid": uid,
        **more,
    }


def index_of(ws: rc.Workspace) -> Catalog:
    """The catalog that a handle reads with."""
    return ws._hot().catalog


def _described(episode: EpisodeRecord) -> dict[str, Any]:
    out: dict[str, Any] = {
        name: getattr(episode, name) for name in ("key", "id", "attempt", "facts", "history", "ids", "ended", "derived")
    }
    for name in ("observation", "picture", "uid", "step"):
        out[name] = np.asarray(episode[name]).tobytes()
    out["note"] = episode["note"]
    out["final"] = None if episode.final is None else {k: str(v) for k, v in episode.final.items()}
    return out


def assert_equals_a_scan(ws: rc.Workspace) -> int:
    """Every episode by key, by its id and by one of its steps, against a view of everything. Returns how many."""
    view = ws.view()
    keys = {rc.EpisodeKey(*k) for k in view.episodes.keys.tolist()} | set(view.facts.episodes)
    sealed = {w for w, log in ws._hot().logs.items() if log.sealed}
    for key in keys:
        slots = view.episodes.rows_of(key)
        writers = {key.writer, *view.rows.ids(slots)["writer"].tolist()}
        wanted = EpisodeRecord(view, key, slots, over=writers <= sealed)
        assert _described(ws.episode(key)) == _described(wanted)
        if wanted.ids:
            assert ws.episode(wanted.ids[-1]).key == key
        if view.facts.keys_of(wanted.id):
            assert ws.episode(wanted.id).key == view.facts.keys_of(wanted.id)[-1]
    newest = ws.recent(10_000)
    assert {s.id: (s.episode, s.episode_id) for s in newest} == {
        rc.StepId(*i): (key, view.facts.id_of(key))
        for key in keys
        for i in view.rows.ids(view.episodes.rows_of(key)[~view.episodes.is_final[view.episodes.rows_of(key)]]).tolist()
    }
    with pytest.raises(errors.NotFound):
        ws.episode("no such episode")
    return len(keys)


class Workload:
    """Random writing: single steps, blocks, lanes; episodes that interleave, pause, share ids, and get late facts."""

    def __init__(self, ws: rc.Workspace, seed: int) -> None:
        self.ws, self.rng = ws, random.Random(seed)
        self.writers = [ws.writer(durability="process") for _ in range(2)]
        self.open: list[rc.Episode] = []
        self.keys: list[rc.EpisodeKey] = []
        self.uid = 0

    def run(self, turns: int) -> None:
        moves: list[Callable[[], None]] = [self.steps, self.steps, self.begin, self.block, self.annotate, self.lanes]
        for _ in range(turns):
            self.rng.choice(moves)()

    def begin(self) -> None:
        name = self.rng.choice([None, "a", "b", f"own-{self.uid}"])
        attempt = self.rng.choice([None, 1, 2, 3])
        episode = self.rng.choice(self.writers).episode(id=name, attempt=attempt, task="t")
        self.open.append(episode)
        self.keys.append(episode.key)

    def steps(self) -> None:
        for _ in range(self.rng.randrange(1, 12)):
            if not self.open:
                self.begin()
            episode = self.rng.choice(self.open)
            ends = self.rng.random() < 0.1
            given = np.zeros(2, np.float32) if self.rng.random() < 0.3 else None
            episode.append(**step_of(self.uid), terminated=ends, next_observation=given)
            self.uid += 1
            if ends:
                self.open.remove(episode)

    def block(self) -> None:
        n = self.rng.randrange(1, 60)
        base = self.uid
        self.uid += n
        names = [f"block-{base}-{k % 3}" for k in range(n)]
        self.rng.choice(self.writers).extend(
            {
                "episode": names,
                "step": [k // 3 for k in range(n)],
                "observation": np.zeros((n, 2), np.float32),
                "uid": np.arange(base, base + n),
            }
        )

    def lanes(self) -> None:
        lanes = self.rng.choice(self.writers).lanes(4)
        for _ in range(self.rng.randrange(1, 9)):
            uids = np.arange(self.uid, self.uid + 4)
            self.uid += 4
            lanes.append(
                observation=np.zeros((4, 2), np.float32),
                uid=uids,
                terminated=np.array([self.rng.random() < 0.2 for _ in range(4)]),
                truncated=np.zeros(4, np.bool_),
            )

    def annotate(self) -> None:
        if self.keys:
            key = self.rng.choice(self.keys)
            self.ws.annotate(key, lesson=f"lesson {self.uid}", reward=self.rng.random())
            steps = self.ws.recent(3)
            if len(steps):
                self.ws.annotate(self.rng.choice(steps.ids), note=f"changed {self.uid}")
