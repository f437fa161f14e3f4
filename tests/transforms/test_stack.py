"""Stacks made at draw against stacks written out, wherever rows lie."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors
from tests.transforms.worlds import PLACES, drawn, world

CAMERA = "observation.camera"


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(("k", "pad", "n"), [(2, "zero", 1), (4, "repeat", 1), (4, "zero", 3), (20, "repeat", 2)])
def test_stacks_equal_those_written_out(
    place: str, k: int, pad: Any, n: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of frames and of inline fields, with the next observation after n steps; nothing is drawn whose stack is gone."""
    path = "observation.state"
    with world(place, 1, tmp_path, monkeypatch) as there:
        seen = set()
        stacks = [rc.FrameStack(k, pad=pad), rc.FrameStack(3, field=[path, "action"], pad="zero")]
        for uid, row in drawn(there, [*stacks, rc.NStep(n, 0.9)]):
            seen.add(uid)
            last = there.ahead(uid)[:n][-1]
            for name, depth, how in ((CAMERA, k, pad), (path, 3, "zero")):
                want = there.stacked(name, uid, depth, how)
                assert want is not None, "its stack reaches into what is gone"
                assert np.array_equal(row[name], want), (uid, name)
                after = there.next_stacked(name, last, depth, how)
                zeros = np.zeros_like(want)
                assert np.array_equal(row[f"next_{name}"], zeros if after is None else after), (uid, name)
            actions = there.stacked("action", uid, 3, "zero")
            assert actions is not None and np.array_equal(row["action"], actions)
        deepest = max(k, 3)
        whole = {u for u in there.present if there.stacked(CAMERA, u, deepest, pad) is not None}
        want_seen = {u for u in whole if there.is_drawable(u)}
        # An epoch visits every row; draws from what moves reach nearly all of them.
        assert seen == want_seen if isinstance(there.source(), rc.View) else seen <= want_seen
        assert len(seen) > 0.9 * len(want_seen)
        if place in ("newest", "evicted"):
            assert whole < there.present, "some stacks reach into what is gone"


@pytest.mark.parametrize("pad", ["zero", "repeat"])
def test_a_stack_at_draw_equals_one_that_the_schema_declares(pad: Any) -> None:
    """Over episodes that go on after a row that was cut off: the same rows, the same bytes."""
    frames = np.random.default_rng(0).integers(0, 255, (40, 3, 3), np.uint8)
    got = []
    for stack in (3, 1):
        schema = rc.Schema({"observation": rc.Frames((3, 3), stack=stack, pad=pad), "uid": rc.Tensor("int64")})
        with rc.create_workspace(f"w{stack}", schema) as ws, ws.writer() as writer:
            for first in (0, 20):
                with writer.episode() as episode:
                    for uid in range(first, first + 20):
                        episode.append(observation=frames[uid], uid=uid, terminated=uid % 20 == 19)
            stacks = [] if stack == 3 else [rc.FrameStack(3, pad=pad)]
            with rc.Loader(
                ws.live(last=33), batch_size=8, seed=2, steps=9, transforms=stacks, output="numpy"
            ) as loader:
                got.append(
                    [(b["uid"].tolist(), b["observation"].tobytes(), b["next_observation"].tobytes()) for b in loader]
                )
                rows = {u for uids, _, _ in got[-1] for u in uids}
    assert got[0] == got[1]
    assert not {7, 8} & rows and {9, 39} <= rows


def test_a_schema_s_own_stack_is_read_as_another() -> None:
    schema = rc.Schema({"observation": rc.Frames((1,), stack=4), "uid": rc.Tensor("int64")})
    with rc.create_workspace("w", schema) as ws, ws.writer() as writer, writer.episode() as episode:
        for uid in range(6):
            episode.append(observation=[uid + 1], uid=uid, terminated=uid == 5)
        view = ws.view()
        for k, want in ((1, [6]), (2, [[5], [6]]), (4, [[3], [4], [5], [6]])):
            batch = next(rc.Loader(view, batch_size=6, seed=0, epochs=1, transforms=[rc.FrameStack(k)], output="numpy"))
            assert batch["observation"][batch["uid"].tolist().index(5)].tolist() == want


def test_what_cannot_be_stacked_is_refused() -> None:
    with pytest.raises(errors.ArgumentError, match="k of at least 1"):
        rc.FrameStack(0)
    with pytest.raises(errors.ArgumentError, match="pad"):
        rc.FrameStack(2, pad="x")  # type: ignore[arg-type]
    schema = rc.Schema({"observation": rc.Tensor("float32"), "note": rc.Text(), "uid": rc.Tensor("int64")})
    with rc.create_workspace("w", schema) as ws, ws.writer() as writer, writer.episode() as episode:
        episode.append(observation=0.0, note="", uid=0, terminated=True)
        for stacks, match in (
            ([rc.FrameStack(2)], "Frames"),
            ([rc.FrameStack(2, field="note")], "fixed shape"),
            ([rc.FrameStack(2, field="uid"), rc.FrameStack(3, field=["uid"])], "twice"),
        ):
            with pytest.raises(errors.ArgumentError, match=match):
                rc.Loader(ws.view(), batch_size=1, seed=0, transforms=stacks)
        with pytest.raises(errors.NotFound, match="nothing"):
            rc.Loader(ws.view(), batch_size=1, seed=0, transforms=[rc.FrameStack(2, field="nothing")])


@pytest.mark.parametrize("sampler", [rc.Uniform(), rc.Mixture(a=(1, rc.Uniform()), b=(1, rc.Uniform()))], ids=str)
def test_joined_parts_draw_no_stack_that_is_cut(sampler: Any) -> None:
    schema = rc.Schema({"observation": rc.Tensor("float32"), "uid": rc.Tensor("int64")})
    with rc.create_workspace("a", schema) as a, rc.create_workspace("b", schema) as b:
        for first, ws in ((0, a), (100, b)):
            with ws.writer() as writer, writer.episode() as episode:
                for uid in range(first, first + 20):
                    episode.append(observation=float(uid), uid=uid, terminated=uid % 20 == 19)
        source = rc.join(a=a.live(last=10), b=b.live(last=12))
        stacks = [rc.FrameStack(3, field="observation")]
        seen = set()
        with rc.Loader(source, sampler, batch_size=16, seed=0, steps=20, transforms=stacks, output="numpy") as loader:
            for batch in loader:
                uids = batch["uid"]
                seen |= set(uids.tolist())
                assert np.array_equal(batch["observation"], uids[:, None] + np.arange(-2, 1))
        assert seen == {*range(12, 20), *range(110, 120)}
