"""One trajectory, three ways to write it, one view."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import recollect as rc
from recollect.schema import Frames, Leaf
from tests.support import (
    SCHEMAS,
    Trajectory,
    all_ids,
    assert_holds,
    order_of,
    random_trajectories,
    random_value,
    write_appends,
    write_block,
    write_lanes,
)

SEEDS = [*range(4), *(pytest.param(s, marks=pytest.mark.torture) for s in range(4, 60))]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", SCHEMAS)
def test_appends_give_back_the_trajectories(kind: str, seed: int) -> None:
    schema = SCHEMAS[kind]()
    rng = np.random.default_rng(seed)
    trajectories = random_trajectories(schema, rng, count=12)
    with rc.create_workspace("w", schema) as ws:
        writer = ws.writer()
        ids = write_appends(writer, trajectories, order_of(trajectories, rng))
        assert_holds(ws.view(), schema, trajectories)
        assert len(set(ids.values())) == len(ids)
        writer.close()
        assert_holds(ws.view(), schema, trajectories)
        known = set(all_ids(ws.view()))
        assert known >= {tuple(i) for i in ids.values()}
        assert rc.open_workspace("w").stats().drawable == len(ws.view())


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", SCHEMAS)
def test_blocks_of_any_split_give_back_the_trajectories(kind: str, seed: int) -> None:
    schema = SCHEMAS[kind]()
    rng = np.random.default_rng([seed, 7])
    # Whether a step comes with its next observation is decided by its block, so blocks are cut first.
    lengths = random_trajectories(schema, np.random.default_rng([seed, 8]), count=12, following=lambda uid: True)
    order = order_of(lengths, rng)
    parts = []
    at = 0
    while at < len(order):
        size = int(rng.integers(1, 9))
        parts.append(order[at : at + size])
        at += size
    for part in parts:
        if rng.random() < 0.5 or not schema.observations:
            for k, t in part:
                lengths[k].moments[t].following = None
    for trajectory in lengths:  # a block has no way to say that one row's next observation is partly null
        for moment in trajectory.moments:
            for leaf in schema.observations:
                if moment.following is not None:
                    moment.following.setdefault(leaf.path, random_value(rng, leaf))
    with rc.create_workspace("blocks", schema) as ws, rc.create_workspace("appends", schema) as other:
        writer = ws.writer()
        for part in parts:
            write_block(writer, schema, lengths, part)
        assert_holds(ws.view(), schema, lengths)
        writer.close()
        assert_holds(ws.view(), schema, lengths)
        second = other.writer()
        write_appends(second, lengths, order)
        assert_holds(other.view(), schema, lengths)


@pytest.mark.parametrize("following", [True, False], ids=["with-next", "without-next"])
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", SCHEMAS)
def test_lanes_give_back_the_trajectories(kind: str, seed: int, following: bool) -> None:
    schema = SCHEMAS[kind]()
    rng = np.random.default_rng([seed, 9])
    trajectories = random_trajectories(schema, rng, count=12, nulls=False, following=lambda uid: following)
    for trajectory in trajectories[9:]:
        trajectory.end = "terminated"
    with rc.create_workspace("w", schema) as ws:
        writer = ws.writer()
        lanes_of = [[0, 3, 6, 9], [1, 4, 7, 10], [2, 5, 8, 11]]
        write_lanes(writer, schema, trajectories, lanes_of, rng, following=following)
        assert_holds(ws.view(), schema, trajectories)
        writer.close()
        assert_holds(ws.view(), schema, trajectories)


@pytest.mark.parametrize("way", ["append", "extend"])
def test_a_mix_of_ways_into_one_episode_store_is_one_log(way: str) -> None:
    schema = SCHEMAS["vector"]()
    rng = np.random.default_rng(3)
    trajectories = random_trajectories(schema, rng, count=9, following=lambda uid: True)
    with rc.create_workspace("w", schema) as ws:
        writer = ws.writer()
        for k in range(len(trajectories)):
            part = [(k, t) for t in range(len(trajectories[k]))]
            if (k % 2 == 0) == (way == "append"):
                write_appends(writer, trajectories, part)
            else:
                write_block(writer, schema, trajectories, part)
        assert_holds(ws.view(), schema, trajectories)
        seqs = [seq for _, seq in all_ids(ws.view())]
        assert seqs == list(range(len(seqs)))


@pytest.mark.parametrize("form", ["single", "stacked"])
@pytest.mark.parametrize("pad", ["zero", "repeat"])
@pytest.mark.parametrize("way", ["append", "extend", "lanes"])
def test_single_and_stacked_frames_are_stored_alike(form: str, pad: str, way: str) -> None:
    schema = SCHEMAS[f"frames-{pad}"]()
    rng = np.random.default_rng(11)
    trajectories = random_trajectories(schema, rng, count=6, following=lambda uid: True)
    for k, trajectory in enumerate(trajectories):
        trajectory.end = ("terminated", "truncated")[k % 2]
        for t, moment in enumerate(trajectory.moments[:-1]):
            moment.following = {"observation": trajectory.moments[t + 1].values["observation"]}
    want = [Trajectory([*t.moments], t.end) for t in trajectories]
    leaf = schema.by_path["observation"]
    with rc.create_workspace("w", schema) as ws:
        writer = ws.writer()
        lanes = writer.lanes(1) if way == "lanes" else None
        for key, trajectory in enumerate(trajectories):
            episode = writer.episode() if way == "append" else None
            planes: list[NDArray[Any]] = []
            for t, moment in enumerate(trajectory.moments):
                planes.append(moment.values["observation"])
                assert moment.following is not None
                seen = moment.following["observation"]
                now, later = planes[-1], seen
                if form == "stacked":
                    now, later = _stacked(leaf, planes), _stacked(leaf, [*planes, seen])
                values = {k: v for k, v in moment.values.items() if k != "observation"}
                last = t == len(trajectory) - 1
                ends = {
                    "terminated": last and trajectory.end == "terminated",
                    "truncated": last and trajectory.end == "truncated",
                }
                if episode is not None:
                    episode.append(observation=now, next_observation=later, **values, **ends)
                    continue
                rows = {k: np.asarray(v)[None] for k, v in {**values, **ends}.items()}
                rows |= {"observation": now[None], "next_observation": later[None]}
                if lanes is not None:
                    lanes.append(**rows)
                else:
                    writer.extend({"episode": np.array([key]), "step": np.array([t]), **rows})
        assert_holds(ws.view(), schema, want)


def _stacked(leaf: Leaf, planes: list[NDArray[Any]]) -> NDArray[Any]:
    field = leaf.field
    assert isinstance(field, Frames)
    newest = planes[-field.stack :]
    pad = np.zeros(field.shape, field.dtype) if field.pad == "zero" else newest[0]
    return np.stack([pad] * (field.stack - len(newest)) + newest)


def test_an_inactive_lane_is_not_looked_at() -> None:
    """A vector environment's autoreset row: the lane's values belong to no step, its stack continues nothing."""
    schema = SCHEMAS["frames-zero"]()
    with rc.create_workspace("w", schema) as ws:
        lanes = ws.writer().lanes(2)
        first = np.zeros((2, 3, 2, 3), np.uint8)
        first[:, -1] = 1
        rest = {"action": np.zeros((2, 2), np.int16), "reward": np.zeros(2), "uid": np.arange(2)}
        lanes.append(observation=first, terminated=np.array([True, False]), **rest)
        second = np.full((2, 3, 2, 3), 9, np.uint8)
        second[1] = np.stack([np.zeros((2, 3)), np.ones((2, 3)), np.full((2, 3), 2)])
        lanes.append(observation=second, active=np.array([False, True]), **{**rest, "uid": np.arange(2, 4)})
        assert ws.stats().steps == 3


@pytest.mark.parametrize("kind", ["vector", "frames-zero", "frames-repeat", "nested-with-nulls"])
def test_after_termination_without_a_next_observation_it_is_zeros_and_not_valid(kind: str) -> None:
    schema = SCHEMAS[kind]()
    trajectories = random_trajectories(schema, np.random.default_rng(5), count=1, following=lambda uid: False)
    trajectories += [t for t in random_trajectories(schema, np.random.default_rng(6), count=8) if len(t) > 3][:1]
    trajectories[1].end, trajectories[1].moments[-1].following = "terminated", None
    with rc.create_workspace("w", schema) as ws:
        writer = ws.writer()
        for k in (0, 1):
            write_appends(writer, trajectories, [(k, t) for t in range(len(trajectories[k]))])
        batch = next(rc.Loader(ws.view(), batch_size=64, seed=0, epochs=1, output="numpy"))
        last = ~batch.valid["next_observation"]
        assert last.sum() == 2
        for leaf in schema.observations:
            assert not batch[f"next_{leaf.path}"][last].any(), leaf.path
