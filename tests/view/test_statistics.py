"""Statistics in parts against those of all rows at once."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors
from recollect.view import statistics

SCHEMA = rc.Schema(
    {
        "observation": {"camera": rc.Frames((2, 3)), "pose": rc.Tensor("float32", (2,))},
        "reward": rc.Tensor("float64"),
        "choice": rc.Tensor("int32", optional=True),
        "note": rc.Text(optional=True),
        "uid": rc.Tensor("int64"),
    }
)


def _write(ws: rc.Workspace, count: int) -> dict[str, list[Any]]:
    rng = np.random.default_rng(0)
    out: dict[str, list[Any]] = {"observation.camera": [], "observation.pose": [], "reward": [], "choice": []}
    with ws.writer() as writer, writer.episode() as episode:
        for uid in range(count):
            camera, pose = rng.integers(0, 255, (2, 3), np.uint8), rng.standard_normal(2).astype(np.float32) + 1e4
            choice = int(rng.integers(9)) if rng.random() < 0.5 else None
            reward = float(rng.standard_normal() + 1e9)
            episode.append(observation={"camera": camera, "pose": pose}, reward=reward, choice=choice, uid=uid)
            for name, value in zip(out, (camera, pose, reward, choice), strict=True):
                if value is not None and uid < count - 1:  # the last step's next observation is not known
                    out[name].append(value)
    return out


@pytest.mark.parametrize("chunk", [1, 100, 1 << 20])
def test_parts_add_up_to_the_whole(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Far from zero too, where a sum of squares would lose the deviation."""
    monkeypatch.setattr(statistics, "CHUNK_BYTES", chunk)
    with rc.create_workspace("w", SCHEMA) as ws:
        written = _write(ws, 200)
        known = ws.view().statistics()
        assert set(known) == {*written, "uid"}
        for path, values in written.items():
            column = np.array(values, np.float64)
            got = known[path]
            assert got.count == len(column) and got.mean.shape == column.shape[1:]
            assert np.allclose(got.mean, column.mean(axis=0), rtol=1e-14)
            assert np.allclose(got.std, column.std(axis=0), rtol=1e-7)
            assert np.array_equal(got.min, column.min(axis=0)) and np.array_equal(got.max, column.max(axis=0))
        again = rc.Statistics.from_dict(json.loads(json.dumps(known.to_dict())))
        assert again == known and again.digest == known.digest
        assert set(ws.view().statistics(["observation"])) == {"observation.camera", "observation.pose"}
        restricted = ws.view().where("uid < 50").statistics(["uid"])["uid"]
        assert (restricted.count, float(restricted.mean), float(restricted.max)) == (50, 24.5, 49)


def test_a_field_without_values_has_no_mean() -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer:
        known = ws.view().statistics(["reward"])["reward"]
        assert known.count == 0 and np.isnan(known.mean) and np.isnan(known.std)
        with writer.episode() as episode:
            zeros = {"camera": np.zeros((2, 3), np.uint8), "pose": [np.nan, np.inf]}
            episode.append(observation=zeros, reward=1.0, uid=0, terminated=True)
        known_pose = ws.view().statistics(["observation.pose"])["observation.pose"]
        assert np.isnan(known_pose.mean[0]) and np.isnan(known_pose.std[0])
        assert ws.view().statistics(["choice"])["choice"].count == 0


def test_what_has_no_statistics_is_refused_by_name() -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        with pytest.raises(errors.NotFound, match="nothing"):
            ws.view().statistics(["nothing"])
        with pytest.raises(errors.ArgumentError, match="note"):
            ws.view().statistics(["note"])
        with pytest.raises(errors.ArgumentError, match="list of names"):
            ws.view().statistics("reward")
