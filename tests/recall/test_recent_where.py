"""recent(where=): the newest steps that a condition is true of, against all steps gone through one by one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors
from recollect.recall import choose

SCHEMA = rc.Schema(
    {"observation": rc.Frames((2,), stack=2), "reward": rc.Tensor("float32", optional=True), "uid": rc.Tensor("int64")},
    episode={"task": rc.Text()},
)


def fill(ws: rc.Workspace, writers: int, episodes: int, steps: int) -> None:
    rng, uid = np.random.default_rng(writers), 0
    open_writers = [ws.writer() for _ in range(writers)]
    for k in range(episodes):
        with open_writers[k % writers].episode(task=["hopper", "walker"][k % 2]) as episode:
            for t in range(steps):
                reward = [None, np.nan, 0.0, 1.0][rng.integers(4)]
                episode.append(
                    observation=np.full(2, uid % 250, np.uint8), reward=reward, uid=uid, terminated=t == steps - 1
                )
                uid += 1
    for writer in open_writers:
        writer.close()


@pytest.mark.parametrize(("first", "most"), [(256, 32_768), (3, 7)])
@pytest.mark.parametrize(
    ("condition", "means"),
    [
        ("uid < 5", lambda step, task: step["uid"] < 5),
        ("reward > 0 and episode.task = 'hopper'", lambda step, task: step["reward"] == 1.0 and task == "hopper"),
        ("reward is null", lambda step, task: step["reward"] is None),
        ("uid % 10 = 0 or episode.task = 'none'", lambda step, task: step["uid"] % 10 == 0),
        ("uid < 0", lambda step, task: False),
    ],
)
def test_the_newest_that_match_come_newest_first(
    monkeypatch: pytest.MonkeyPatch, first: int, most: int, condition: str, means: Any
) -> None:
    monkeypatch.setattr(choose, "FIRST_ROWS", first)
    monkeypatch.setattr(choose, "MOST_ROWS", most)
    with rc.create_workspace("w", SCHEMA) as ws:
        fill(ws, writers=3, episodes=12, steps=5)
        every = ws.recent(10_000)
        tasks = {step.episode: ws.episode(step.episode).facts["task"] for step in every}
        want = [step for step in every if means(step, tasks[step.episode])]
        for k in (1, 4, 1000):
            got = ws.recent(k, where=condition)
            assert [s.id for s in got] == [s.id for s in want][:k]
            for mine, theirs in zip(got, want, strict=False):
                assert mine["uid"] == theirs["uid"]
                assert np.array_equal(mine["observation"], theirs["observation"])


def test_late_facts_are_seen() -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        fill(ws, writers=1, episodes=3, steps=4)
        newest = ws.recent(1)[0]
        oldest = ws.recent(1, where="uid = 0")[0]
        ws.annotate(oldest.id, reward=9.0)
        ws.annotate(newest.episode, lesson="x")
        assert ws.recent(5, where="reward > 5").ids == [oldest.id]
        assert [s["uid"] for s in ws.recent(9, where="episode.lesson = 'x'")] == [11, 10, 9, 8]


def test_logs_that_ended_before_what_was_found_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        fill(ws, writers=1, episodes=2, steps=5)
        fill(ws, writers=1, episodes=2, steps=5)
        ws.recent(1)
        read: list[int] = []
        look = choose.Chooser._matches

        def noting(self: Any, part: Any, pieces: Any) -> Any:
            read.append(part.writer)
            return look(self, part, pieces)

        monkeypatch.setattr(choose.Chooser, "_matches", noting)
        newest = ws.recent(3, where="uid >= 0")
        assert set(read) == {newest[0].id.writer}


def test_what_cannot_be_read_is_refused_and_an_empty_workspace_has_nothing() -> None:
    with rc.create_workspace("empty") as ws:
        assert len(ws.recent(3, where="reward > 0")) == 0
    with rc.create_workspace("w", SCHEMA) as ws:
        assert len(ws.recent(3, where="reward > 0")) == 0
        with pytest.raises(errors.NotFound, match=r"'episode\.taks'"):
            ws.recent(3, where="episode.taks = 'a'")
        with pytest.raises(errors.ArgumentError, match="not understood"):
            ws.recent(3, where="reward >")
