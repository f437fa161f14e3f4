"""A diff says what brute force says of the two versions, however their rows lie."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors
from recollect.versions import diff as module
from recollect.versions import shift as shifts
from recollect.versions.shift import Values, psi, shift

SCHEMA = rc.Schema(
    {
        "observation": rc.Tensor("float32", (3,)),
        "reward": rc.Tensor("float32", optional=True),
        "policy_version": rc.Tensor("int32"),
        "note": rc.Text(optional=True),
        "tokens": rc.Ragged("int16"),
        "image": rc.Frames((2, 3)),
    },
    episode={"task": rc.Text(), "seed": rc.Tensor("int64")},
)


def _write(ws: rc.Workspace, rng: np.random.Generator, episodes: int, shift: float) -> None:
    writer = ws.writer()
    for _ in range(episodes):
        n = int(rng.integers(1, 6))
        task: dict[str, Any] = {} if rng.random() < 0.2 else {"task": str(rng.choice(["hop", "walk"]))}
        end = rng.random() < 0.7
        with writer.episode(seed=int(rng.integers(3)), **task) as episode:
            for t in range(n):
                noise = float(rng.choice([rng.normal(shift), np.nan, np.inf], p=[0.9, 0.05, 0.05]))
                episode.append(
                    observation=rng.normal(shift, 1, 3),
                    reward=None if rng.random() < 0.1 else noise,
                    policy_version=int(shift),
                    tokens=np.arange(rng.integers(4)).astype("int16"),
                    note=None if rng.random() < 0.3 else "é" * int(rng.integers(5)),
                    image=rng.integers(0, 255, (2, 3)).astype("uint8"),
                    terminated=end and t == n - 1,
                    next_observation=rng.normal(size=3),
                )
    writer.close()


def _steps(view: rc.View) -> list[dict[str, Any]]:
    """Every step of a view, one by one."""
    slots = [s for s in range(len(view.rows)) if view.episodes.group[s] >= 0 and not view.episodes.is_final[s]]
    out = []
    for s in slots:
        at = np.array([s])
        got = {
            k: v[0]
            for k, v in view.rows.gather(at, [x.path for x in view.schema.numeric] + ["step", "terminated"]).items()
        }
        got = {k: (v if k in ("step", "terminated") or view.rows.valid(at, k)[0] else None) for k, v in got.items()}
        note, tokens = view.rows.heap_values(at, "note")[0], view.rows.heap_values(at, "tokens")[0]
        got |= {"note": None if note is None else len(note), "tokens": None if tokens is None else len(tokens) // 2}
        got["episode"] = tuple(view.episodes.keys[view.episodes.group[s]].tolist())
        got["id"] = tuple(view.rows.ids(at)[0].tolist())
        out.append(got)
    return out


def _same(told: Any, rows: list[dict[str, Any]], path: str) -> None:
    given = [np.asarray(r[path], np.float64).reshape(-1) for r in rows if r[path] is not None]
    values = np.concatenate(given) if given else np.empty(0)
    finite = np.sort(values[np.isfinite(values)])
    assert (told.rows, told.nulls) == (len(rows), sum(r[path] is None for r in rows))
    assert (told.count, told.nonfinite) == (len(finite), len(values) - len(finite))
    if not len(finite):
        assert told.mean is told.std is told.min is told.max is None and told.quantiles == ()
        return
    assert told.mean == pytest.approx(finite.mean(), abs=1e-9) and told.std == pytest.approx(finite.std(), abs=1e-9)
    assert (told.min, told.max) == (finite[0], finite[-1])
    wanted = [finite[math.ceil(q * len(finite)) - 1] for q in (0.05, 0.25, 0.5, 0.75, 0.95)]
    assert told.quantiles == pytest.approx(wanted)


def _returns(rows: list[dict[str, Any]]) -> dict[Any, float]:
    """Of whole episodes that ended."""
    out = {}
    for key in {r["episode"] for r in rows}:
        mine = [r for r in rows if r["episode"] == key]
        if any(r["terminated"] for r in mine):
            out[key] = float(sum(0.0 if r["reward"] is None else float(r["reward"]) for r in mine))
    return out


def _check(buffer: rc.Buffer, a: Any, b: Any, branch: str | None = None) -> module.Diff:
    found = buffer.diff(a, b, branch=branch)
    one, two = _steps(buffer.at(a)), _steps(buffer.at(b, branch=branch))
    for path in ("observation", "reward", "policy_version", "note", "tokens", "image"):
        told = found.fields[path]
        _same(told.a, one, path)
        _same(told.b, two, path)
    ids = [
        {tuple(i) for i in v.rows.ids(np.arange(len(v.rows))).tolist()}
        for v in (buffer.at(a), buffer.at(b, branch=branch))
    ]
    assert (found.rows_a, found.rows_b) == (len(ids[0]), len(ids[1]))
    assert (found.rows_added, found.rows_removed) == (len(ids[1] - ids[0]), len(ids[0] - ids[1]))
    lengths = [{k: sum(r["episode"] == k for r in rows) for k in {r["episode"] for r in rows}} for rows in (one, two)]
    assert (found.episodes_a, found.episodes_b) == (len(lengths[0]), len(lengths[1]))
    assert found.episodes_added == len(lengths[1].keys() - lengths[0].keys())
    assert found.episodes_removed == len(lengths[0].keys() - lengths[1].keys())
    assert found.episodes_changed == sum(lengths[1].get(k, n) != n for k, n in lengths[0].items())
    for side, rows, version in (("a", one, buffer.at(a)), ("b", two, buffer.at(b, branch=branch))):
        returns = _returns(rows)
        told = getattr(found.returns, side)
        finite = [v for v in returns.values() if math.isfinite(v)]
        assert told.count == len(finite) and told.mean == (pytest.approx(np.mean(finite)) if finite else None)
        for name in ("task", "seed"):
            of = {k: version.facts.episodes[rc.EpisodeKey(*k)].get(name) for k in {r["episode"] for r in rows}}
            groups = {g.value: g for g in found.groups[name]}
            assert set(of.values()) <= groups.keys()
            for value, g in groups.items():
                members = {k for k, v in of.items() if v == value}
                assert getattr(g, f"episodes_{side}") == len(members)
                assert getattr(g, f"rows_{side}") == sum(r["episode"] in members for r in rows)
                some = [returns[k] for k in members if k in returns and math.isfinite(returns[k])]
                mean = getattr(g.returns, side)
                assert (mean.count if mean else 0) == len(some)
                if some:
                    assert mean.mean == pytest.approx(np.mean(some))
        for g in found.groups["policy_version"]:
            assert getattr(g, f"rows_{side}") == sum(r["policy_version"] == g.value for r in rows)
    return found


@pytest.mark.parametrize("chunk", [8, 1 << 21])
def test_a_diff_is_what_brute_force_says(tmp_path: Path, chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_VALUES", chunk)
    rng = np.random.default_rng(5)
    with rc.create_workspace("w", SCHEMA) as ws:
        _write(ws, rng, 12, 0.0)
        ws.snapshot(tmp_path / "b", "a")
        buffer = rc.open_buffer(tmp_path / "b")
        buffer.branch("exp")
        _write(ws, rng, 9, 2.0)
        key = next(iter(buffer.at("a").facts.episodes))
        ws.annotate(key, task="swim")
        ws.snapshot(tmp_path / "b", "b")
        ws.snapshot(tmp_path / "b", "only-hop", branch="exp", where="episode.task = 'hop'")
        found = _check(buffer, "a", "b")
        assert found.rows_removed == 0 < found.rows_added and found.schema == ()
        assert found.facts_b > found.facts_a
        back = _check(buffer, "b", "a")
        assert (back.rows_added, back.rows_removed) == (found.rows_removed, found.rows_added)
        _check(buffer, "b", "only-hop", "exp")
        same = _check(buffer, "b", "b")
        assert all(s.psi == pytest.approx(0.0) for s in same.fields.values())
        assert found.fields["policy_version"].psi > 0.1 > abs(same.fields["observation"].psi)  # type: ignore[operator,arg-type]
        with pytest.raises(errors.NotFound, match="to group by"):
            buffer.diff("a", "b", by=["tsk"])
        assert set(buffer.diff("a", "b", by=["task"]).groups) == {"task"}


def test_psi_by_hand() -> None:
    a, b = np.array([0.0, 0, 0, 1]), np.array([0.0, 1, 1, 1])
    # Bins: below 0, [0], between, [1], above; n + 1/2 over 4 + 5/2.
    p, q = np.array([0.5, 3.5, 0.5, 1.5, 0.5]) / 6.5, np.array([0.5, 1.5, 0.5, 3.5, 0.5]) / 6.5
    assert psi(a, b) == pytest.approx(float(((q - p) * np.log(q / p)).sum()))
    assert psi(a, a) == 0.0 and psi(a, np.empty(0)) is None
    rng = np.random.default_rng(0)
    one = np.sort(rng.normal(0, 1, 50_000))
    near, far = psi(one, np.sort(rng.normal(0, 1, 50_000))), psi(one, np.sort(rng.normal(1, 1, 50_000)))
    assert near is not None and near < 0.01
    # Two normals of deviation 1 whose means differ by d: the symmetric divergence is d², less what bins lose.
    assert far is not None and 0.8 < far <= 1.0


def test_samples_are_bounded_and_near(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(1)
    values, valid = rng.normal(3, 2, (200_000, 1)), np.ones(200_000, np.bool_)
    ids = shifts.hash_ids(np.full(200_000, -7), np.arange(200_000))
    one, parts = Values(), [Values(), Values()]
    for k in range(0, 200_000, 10_000):
        one.add(ids[k : k + 10_000], values[k : k + 10_000], valid[k : k + 10_000])
        parts[k % 20_000 // 10_000].add(ids[k : k + 10_000], values[k : k + 10_000], valid[k : k + 10_000])
    assert len(one.sample) == shifts.SAMPLE_VALUES
    both = Values()
    for part in parts:
        both.merge(part)
    assert (both.sample == one.sample).all()  # whatever the order
    told = shift(one, both)
    assert told.psi == 0.0 and told.a is not None and told.b is not None
    assert told.a.mean == pytest.approx(values.mean()) and told.b.std == pytest.approx(values.std())
    for q, value in zip(shifts.QUANTILES, told.a.quantiles, strict=True):
        assert abs(float((values <= value).mean()) - q) < 0.01


def test_the_smallest_groups_are_told_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_GROUPS", 2)
    with rc.create_workspace("w", rc.Schema({"reward": rc.Tensor("float32")}, episode={"task": rc.Text()})) as ws:
        for k in range(5):
            with ws.writer() as writer, writer.episode(task=f"t{k}") as episode:
                for t in range(5 - k):
                    episode.append(reward=float(k), terminated=t == 4 - k)
        ws.snapshot(tmp_path / "b", "a")
        groups = rc.open_buffer(tmp_path / "b").diff("a", "a").groups["task"]
        assert [(g.value, g.rows_a, g.episodes_b) for g in groups] == [("t0", 5, 1), ("t1", 4, 1), ("(others)", 6, 3)]
        told = groups[2].returns.a
        assert told is not None and told.count == 3 and told.mean == pytest.approx((6 + 6 + 4) / 3)
