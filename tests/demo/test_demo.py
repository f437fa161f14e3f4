"""The main job in a short form: real processes, a real kill, few and small rounds."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch", reason="the demo needs torch")
pytest.importorskip("gymnasium", reason="the demo needs gymnasium")
pytest.importorskip("matplotlib", reason="the demo draws a picture")


def test_three_rounds_with_a_killed_actor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from recollect.demo import main
    from recollect.demo.policy import Config

    small = dataclasses.replace(Config(), steps_per_round=300, updates_per_round=20)
    monkeypatch.setattr("recollect.demo.main.Config", lambda: small)
    assert main.run(seed=3, rounds=3, out=tmp_path) == 0
    printed = capsys.readouterr().out
    assert "killed with SIGKILL" in printed and ", 0 missing; 1 log sealed" in printed
    assert "0 missing in the workspace, 0 missing in version 'final'" in printed
    assert (tmp_path / "learning-curve.png").read_bytes()[:4] == b"\x89PNG"


def test_a_learner_that_dies_fails_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from recollect.demo import main
    from recollect.demo.policy import Config
    from recollect.errors import RecollectError

    broken = dataclasses.replace(Config(), batch_size=0)
    monkeypatch.setattr("recollect.demo.main.Config", lambda: broken)
    with pytest.raises(RecollectError, match="learner"):
        main.run(seed=0, rounds=1, out=tmp_path, quiet=True)


def test_a_missing_step_is_noticed(tmp_path: Path) -> None:
    """The check behind 'nothing is missing' can fail."""
    import recollect as rc
    from recollect.demo import main
    from recollect.view import ID_DTYPE

    with rc.create_workspace(tmp_path / "w", rc.Schema({"x": rc.Tensor("float32")})) as ws:
        with ws.writer() as writer, writer.episode() as episode:
            known = episode.append(x=1.0)
        ids = np.array([known, (known.writer, known.seq + 1)], ID_DTYPE)
        assert main._missing(ws, ids).tolist() == [(known.writer, known.seq + 1)]


def test_a_policy_is_published_whole_and_read_back(tmp_path: Path) -> None:
    from recollect.demo.policy import Policy

    rng = np.random.default_rng(0)
    shapes: list[Any] = [(4, 8), (8, 2)]
    policy = Policy(
        tuple(rng.standard_normal(s).astype(np.float32) for s in shapes),
        tuple(rng.standard_normal(s[1]).astype(np.float32) for s in shapes),
        7,
    )
    policy.save(tmp_path / "policy.npz")
    read = Policy.load(tmp_path / "policy.npz")
    observation = rng.standard_normal((5, 4)).astype(np.float32)
    assert read.round == 7 and np.array_equal(read.values(observation), policy.values(observation))
    assert [p.name for p in tmp_path.iterdir()] == ["policy.npz"]
