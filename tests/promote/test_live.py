"""Snapshots while agents go on writing, and snapshots that were stopped before they were through."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect.cold.dataset import Datasets

SCHEMA = rc.Schema({"observation": rc.Tensor("float32", (3,)), "reward": rc.Tensor("float32")})


def _step(episode: rc.Episode, k: int, **more: Any) -> None:
    episode.append(
        observation=np.full(3, k, np.float32),
        reward=1.0,
        next_observation=np.full(3, k + 1, np.float32),
        **more,
    )


def test_an_observation_that_waited_at_the_cut_is_promoted_though_the_agent_went_on(tmp_path: Path) -> None:
    """Two appends during the snapshot overwrite the tail slot that the cut's last step needs."""
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer:
        episode = writer.episode()
        for k in range(5):
            _step(episode, k)
        went_on: list[int] = []

        def go_on(done: int, total: int) -> None:
            for k in range(5, 8) if not went_on else ():
                _step(episode, k)
            went_on.append(done)

        snap = ws.snapshot(tmp_path / "b", tag="t", progress=go_on)
        assert went_on and snap.cut is not None and snap.rows_added == 5
        hot, cold = ws.view(snap.cut), rc.open_buffer(tmp_path / "b").at("t")
        assert len(hot) == len(cold) == 5
        batches = [next(rc.Loader(v, batch_size=5, seed=0, epochs=1, output="numpy")) for v in (hot, cold)]
        assert np.array_equal(batches[0]["next_observation"], batches[1]["next_observation"])
        assert set(batches[1]["next_observation"][:, 0].tolist()) == {1.0, 2.0, 3.0, 4.0, 5.0}


def test_an_episode_that_ends_while_it_is_promoted_has_its_whole_return(tmp_path: Path) -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        writer = ws.writer()
        episode = writer.episode()
        for k in range(5):
            _step(episode, k)

        def end(done: int, total: int) -> None:
            if episode._state.step == 5:
                for k in range(5, 10):
                    _step(episode, k, terminated=k == 9)
                writer.close()

        ws.snapshot(tmp_path / "b", progress=end)
        ws.snapshot(tmp_path / "b")
    got = rc.open_buffer(tmp_path / "b").versions()[-1].statistics
    assert (got["returns"]["count"], got["returns"]["mean"], got["lengths"]["mean"]) == (1, 10.0, 10.0)


def test_a_tagged_snapshot_that_was_stopped_before_its_tag_is_finished_by_the_same_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer:
        episode = writer.episode()
        _step(episode, 0)

        def die(self: Datasets, tag: str, version: int) -> bool:
            raise KeyboardInterrupt

        with monkeypatch.context() as m:
            m.setattr(Datasets, "create_tag", die)
            with pytest.raises(KeyboardInterrupt):
                ws.snapshot(tmp_path / "b", tag="t")
        _step(episode, 1)
        again = ws.snapshot(tmp_path / "b", tag="t")
        assert (again.version, again.tag, again.rows_added, again.rows) == (2, "t", 0, 1)
        assert "stopped before" in again.message
        later = ws.snapshot(tmp_path / "b", tag="u")
        assert (later.rows_added, later.rows) == (1, 2)
        assert len(rc.open_buffer(tmp_path / "b").at("t").rows) == 1


def test_threads_that_read_facts_at_once_read_each_once() -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer:
        episode = writer.episode()
        for k in range(800):
            episode.finish(reward=float(k))
        log = ws._hot().log(writer.id)
        ws.cut()
        lengths: list[int] = []
        threads = [threading.Thread(target=lambda: lengths.append(len(log.read_facts(800)))) for _ in range(6)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
        assert lengths == [800] * 6 and [f.seq for f in log.read_facts(800)] == list(range(800))
