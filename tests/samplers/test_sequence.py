"""Sequences against lists of steps: windows, padding, priorities, resumes."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors
from tests.support import batch_bits

SCHEMA = rc.Schema({"observation": rc.Tensor("float32"), "reward": rc.Tensor("float32"), "uid": rc.Tensor("int64")})
LENGTHS = [7, 1, 12, 3, 9]
"""Steps of the episodes: terminated, but for the third (truncated, next observation lost) and the last (open)."""


def _write(ws: rc.Workspace) -> None:
    """Interleaved; uid = 100 × episode + step."""
    writer = ws.writer(durability="process")
    episodes = [writer.episode() for _ in LENGTHS]
    for t in range(max(LENGTHS)):
        for k, count in enumerate(LENGTHS):
            if t < count:
                last = t == count - 1
                episodes[k].append(
                    observation=float(100 * k + t),
                    reward=1.0,
                    uid=100 * k + t,
                    terminated=last and k not in (2, 4),
                    truncated=last and k == 2,
                )


def _steps(k: int) -> list[int]:
    """The uids of an episode's steps that could be drawn: the lost and the open one end before their last."""
    count = LENGTHS[k] - (k in (2, 4))
    return [100 * k + t for t in range(count)]


def _expected(uid: int, config: rc.Sequence) -> tuple[list[int], list[bool]]:
    """uid by column, -1 for padding; and which columns are trained."""
    k, t = divmod(uid, 100)
    steps = _steps(k)
    before = steps[max(0, t - config.burn_in) : t]
    after = steps[t : t + config.length + config.bootstrap]
    trained = [False] * len(before) + [j < config.length for j in range(len(after))]
    row = before + after
    size = config.burn_in + config.length + config.bootstrap
    left = config.burn_in - len(before) if config.pad == "right" else size - len(row)
    right = size - left - len(row)
    return [-1] * left + row + [-1] * right, [False] * left + trained + [False] * right


CONFIGS: list[dict[str, Any]] = [
    {"length": 4},
    {"length": 4, "burn_in": 3, "stride": 2},
    {"length": 4, "burn_in": 3, "stride": 2, "pad": "left"},
    {"length": 3, "burn_in": 1, "bootstrap": 2, "pad": "left"},
    {"length": 20, "start_only": True},
    {"length": 20, "start_only": True, "pad": "left", "inner": rc.Prioritized()},
]


@pytest.mark.parametrize("live", [False, True], ids=["view", "live"])
@pytest.mark.parametrize("output", ["numpy", "torch"])
@pytest.mark.parametrize("options", CONFIGS, ids=str)
def test_sequences_are_stretches_of_their_episodes(options: dict[str, Any], output: Any, live: bool) -> None:
    if output == "torch":
        pytest.importorskip("torch")
    config = rc.Sequence(**options)
    with rc.create_workspace("w", SCHEMA) as ws:
        _write(ws)
        view = ws.view()
        seen = set()
        loader = rc.Loader(ws.live() if live else view, config, batch_size=16, seed=0, steps=30, output=output)
        for batch in loader:
            keys = view.rows.gather(view.rows.find(batch.ids), ("uid",))["uid"].tolist()
            want = np.array([_expected(uid, config)[0] for uid in keys])
            mask = np.asarray(batch.mask)
            assert len(batch) == 16 and mask.shape == want.shape == (16, config.span.length)
            assert np.array_equal(mask, want >= 0)
            assert np.array_equal(np.asarray(batch["uid"]), np.where(mask, want, 0))
            assert np.array_equal(np.asarray(batch["observation"]), np.where(mask, want, 0))
            assert np.array_equal(np.asarray(batch["step_index"]), np.where(mask, want % 100, 0))
            assert np.array_equal(np.asarray(batch["is_first"]), mask & (want % 100 == 0))
            ends = np.isin(want, [_steps(k)[-1] for k in (0, 1, 3)])
            assert np.array_equal(np.asarray(batch["terminated"]), ends)
            assert np.array_equal(np.asarray(batch.valid["next_observation"]), mask & ~ends)
            assert np.array_equal(np.asarray(batch["next_observation"]), np.where(mask & ~ends, want + 1, 0))
            assert batch.step_ids is not None
            found = view.rows.find(batch.step_ids[mask])
            assert np.array_equal(view.rows.gather(found, ("uid",))["uid"], want[mask])
            assert np.asarray(batch.weight).shape == np.asarray(batch.probability).shape == (16,)
            seen |= set(keys)
        every = {
            u
            for k in range(5)
            for u in _steps(k)
            if (u % 100 == 0 if config.start_only else u % 100 % config.stride == 0)
        }
        assert seen == every
        assert np.allclose(np.asarray(batch.probability), 1 / len(every))


def test_signals_become_one_priority_a_sequence() -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        _write(ws)
        view = ws.view()
        config = rc.Sequence(4, burn_in=2, pad="left", bootstrap=1, inner=rc.Prioritized(alpha=1.0), eta=0.9)
        loader = rc.Loader(view, config, batch_size=8, seed=0, lag=0, output="numpy")
        batch = next(loader)
        ids, first = np.unique(batch.ids, return_index=True)
        signal = np.random.default_rng(0).random((8, 7)) + 1
        uids = view.rows.gather(view.rows.find(ids), ("uid",))["uid"].tolist()
        assert loader.update_priorities(ids, signal[first]) == (len(ids), 0, 0)
        want = {}
        for uid, row in zip(uids, signal[first], strict=True):
            trained = row[_expected(uid, config)[1]]
            want[uid] = 0.9 * trained.max() + 0.1 * trained.mean() + 1e-6
        total = sum(want.values()) + len(view) - len(want)
        for _ in range(20):
            batch = next(loader)
            keys = view.rows.gather(view.rows.find(batch.ids), ("uid",))["uid"].tolist()
            assert np.allclose(batch.probability, [want.get(u, 1.0) / total for u in keys], rtol=1e-6)
        with pytest.raises(errors.ArgumentError, match="B, T"):
            loader.update_priorities(batch.ids, np.ones((8, 4)))


@pytest.mark.parametrize("inner", [rc.Uniform(), rc.Prioritized()], ids=["uniform", "prioritized"])
def test_a_resumed_loader_of_sequences_goes_on_bit_for_bit(inner: Any) -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        _write(ws)
        view = ws.view()

        def make(ahead: int | None = None) -> rc.Loader:
            config = rc.Sequence(3, burn_in=2, stride=2, inner=inner)
            steps = [rc.NStep(2, gamma=0.5)]
            return rc.Loader(view, config, batch_size=4, seed=1, ahead=ahead, transforms=steps, output="numpy")

        whole = make(1)
        want = [batch_bits(next(whole)) for _ in range(10)]
        loader = make()
        for position in range(8):
            resumed = make()
            resumed.load_state_dict(json.loads(json.dumps(loader.state_dict())))
            assert [batch_bits(next(resumed)) for _ in range(2)] == want[position : position + 2]
            assert batch_bits(next(loader)) == want[position]


@pytest.mark.parametrize("options", [{"length": 0}, {"burn_in": -1}, {"stride": 0}, {"pad": "x"}, {"eta": 2}], ids=str)
def test_a_bad_option_is_refused_by_name(options: dict[str, Any]) -> None:
    with pytest.raises(errors.ArgumentError, match=next(iter(options))):
        rc.Sequence(**{"length": 2, **options})


def test_what_sequences_cannot_hold_is_refused() -> None:
    schema = rc.Schema({"observation": rc.Tensor("float32"), "note": rc.Text(optional=True)})
    with rc.create_workspace("w", schema) as ws, ws.writer() as writer, writer.episode() as episode:
        episode.append(observation=0.0, terminated=True)
        with pytest.raises(errors.ArgumentError, match="fixed shape"):
            next(rc.Loader(ws.view(), rc.Sequence(2), batch_size=2, seed=0, fields=["note"], output="numpy"))
    with pytest.raises(errors.ArgumentError, match="single steps"):
        rc.Mixture(a=(1, rc.Sequence(2)))
    with pytest.raises(errors.ArgumentError, match="single steps"):
        rc.Sequence(2, inner=rc.Sequence(2))
