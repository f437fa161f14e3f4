"""Statistics of a version: what numpy says of its rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import recollect as rc


def test_statistics_of_a_version_equal_numpy_on_the_rows(tmp_path: Path) -> None:
    schema = rc.Schema(
        {
            "observation": rc.Tensor("float64", (3,)),
            "picture": rc.Frames((4, 4)),
            "reward": rc.Tensor("float32"),
            "choice": rc.Tensor("int32", optional=True),
        }
    )
    rng = np.random.default_rng(0)
    rewards, choices, observations, pictures, returns, lengths = [], [], [], [], [], []
    with rc.create_workspace("w", schema) as ws:
        writer = ws.writer()
        for round_ in range(3):
            carried = writer.episode()
            for k in range(4):
                episode = carried if k == 3 else writer.episode()
                length = int(rng.integers(1, 30))
                total = 0.0
                for t in range(length):
                    reward = float("nan") if rng.random() < 0.1 else float(np.float32(rng.standard_normal()))
                    choice = None if rng.random() < 0.3 else int(rng.integers(-5, 5))
                    observation = rng.standard_normal(3) * 100 + 1e6
                    picture = rng.integers(0, 256, (4, 4)).astype(np.uint8)
                    last = t == length - 1 and k < 3
                    episode.append(
                        observation=observation,
                        picture=picture,
                        reward=reward,
                        choice=choice,
                        terminated=last and k == 0,
                        truncated=last and k > 0,
                    )
                    rewards.append(reward)
                    choices.append(choice)
                    observations.append(observation)
                    pictures.append(picture)
                    total += reward
                if k < 3:
                    returns.append(total)
                    lengths.append(length)
            ws.snapshot(tmp_path / "b", tag=f"r{round_}")
        got = rc.open_buffer(tmp_path / "b").versions()[-1].statistics
    # A NaN reward makes its episode's return NaN; like every NaN it is counted apart.
    whole = np.array([r for r in returns if not np.isnan(r)])
    assert got["returns"]["nans"] == len(returns) - len(whole) > 0
    known = np.array([r for r in rewards if not np.isnan(r)], np.float64)
    assert (got["reward"]["rows"], got["reward"]["nans"], got["reward"]["nulls"]) == (
        len(rewards),
        sum(np.isnan(r) for r in rewards),
        0,
    )
    chosen = np.array([c for c in choices if c is not None], np.float64)
    assert (got["choice"]["rows"], got["choice"]["nulls"]) == (len(choices), sum(c is None for c in choices))
    for name, values in (
        ("reward", known),
        ("choice", chosen),
        ("observation", np.array(observations)),
        ("returns", whole),
        ("lengths", np.array(lengths, np.float64)),
    ):
        for key, want in (
            ("count", np.full(values.shape[1:], len(values))),
            ("mean", values.mean(0)),
            ("std", values.std(0)),
            ("min", values.min(0)),
            ("max", values.max(0)),
        ):
            np.testing.assert_allclose(got[name][key], want, rtol=1e-6, atol=1e-9, err_msg=f"{name} {key}")
    pixels = np.array(pictures, np.float64)
    assert got["picture"]["mean"] == pytest.approx(pixels.mean())
    assert got["picture"]["std"] == pytest.approx(pixels.std())
    assert (got["picture"]["min"], got["picture"]["max"]) == (pixels.min(), pixels.max())


def test_a_null_reward_is_left_out_of_a_return(tmp_path: Path) -> None:
    """Null is not NaN: a language agent's episode often has one reward, at its end."""
    schema = rc.Schema({"reward": rc.Tensor("float32", optional=True)})
    with rc.create_workspace("w", schema) as ws, ws.writer() as writer:
        with writer.episode() as episode:
            for reward in (None, None, 2.0, None, 3.0):
                episode.append(reward=reward, terminated=reward == 3.0)
        ws.snapshot(tmp_path / "b")
        got = rc.open_buffer(tmp_path / "b").versions()[-1].statistics
    assert (got["returns"]["count"], got["returns"]["mean"], got["lengths"]["mean"]) == (1, 5.0, 5.0)
    assert (got["reward"]["rows"], got["reward"]["nulls"], got["reward"]["nans"]) == (5, 3, 0)
