"""Eviction: whole segments go from the front of each log, and what is left reads as if nothing had happened."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors
from recollect.hot.format.evicted import read_evicted
from recollect.hot.format.first import read_first
from tests.hot.retaining import RING, SCHEMA, files, retention, small_segments, write_episodes
from tests.support import SCHEMAS, all_ids, order_of, random_trajectories, rows_of, write_appends

__all__ = ["small_segments"]
pytestmark = pytest.mark.usefixtures("small_segments")


# -- limits ----------------------------------------------------------------------------------------------------------


def test_a_workspace_keeps_everything_unless_told_otherwise() -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer:
        write_episodes(writer, 40)
        assert ws.evict().rows == 0
        assert ws.keep == rc.Keep()
        assert len(ws.view().rows) == 1200
        assert not retention(ws).over_limit


def test_the_newest_rows_stay_and_what_went_is_counted() -> None:
    with rc.create_workspace("w", SCHEMA, keep=RING) as ws:
        writer = ws.writer()
        write_episodes(writer, 100)
        ws.retainer.close()
        ws.evict()
        view = ws.view()
        per_segment = writer._log.segment.header.shape.rows
        assert 300 <= len(view.rows) <= 300 + 2 * per_segment
        assert [u for _, u in all_ids(view)] == list(range(3000 - len(view.rows), 3000))
        assert {i["uid"] for i in rows_of(view).values()} == {i["uid"] for i in rows_of(view).values()}
        kept = retention(ws)
        assert kept.evicted_rows == kept.dropped_rows == 3000 - len(view.rows)
        assert kept.evicted_facts == kept.dropped_facts == 100 - ws.stats().facts
        assert not kept.over_limit
        assert ws.stats().writers[0].first_row == kept.evicted_rows
        assert ws.recent(3).ids == [rc.StepId(writer.id, 2999 - k) for k in range(3)]
    with rc.open_workspace("w") as ws:
        assert len(ws.view().rows) == len(view.rows)
        assert retention(ws).dropped_rows == kept.dropped_rows


def test_nothing_unpromoted_goes_by_default_and_the_workspace_says_that_it_is_over_its_limit() -> None:
    with rc.create_workspace("w", SCHEMA, keep=rc.Keep(rows=300)) as ws, ws.writer() as writer:
        write_episodes(writer, 100)
        assert ws.evict().rows == 0
        kept = retention(ws)
        assert len(ws.view().rows) == 3000
        assert kept.over_limit and kept.waiting_rows > 2000 and kept.waiting_bytes > 0
        assert "no snapshot" in kept.problem


def test_a_limit_of_bytes_bounds_the_disk() -> None:
    limit = 600_000
    with rc.create_workspace("w", SCHEMA, keep=rc.Keep(bytes=limit, unpromoted="drop")) as ws, ws.writer() as writer:
        for k in range(40):
            write_episodes(writer, 10, first=10 * k)
            ws.evict()
            assert ws.stats().disk_bytes <= limit + 2 * len(writer._log.segment.map)


def test_a_limit_of_age_lets_old_segments_go(monkeypatch: pytest.MonkeyPatch) -> None:
    with rc.create_workspace("w", SCHEMA, keep=rc.Keep(age=60, unpromoted="drop")) as ws, ws.writer() as writer:
        write_episodes(writer, 20)
        assert ws.evict().rows == 0
        now = time.time_ns()
        monkeypatch.setattr(time, "time_ns", lambda: now + 61 * 10**9)
        went = ws.evict().rows
        assert went > 0
        assert len(ws.view().rows) == 600 - went


def test_limits_change_for_every_handle() -> None:
    with rc.create_workspace("w", SCHEMA) as ws, rc.open_workspace("w") as other, ws.writer() as writer:
        write_episodes(writer, 100)
        ws.retainer.close()  # one that a roll began would take some of it
        other.set_keep(RING)
        assert ws.keep == RING
        assert ws.evict().rows > 2000
        assert len(other.view().rows) < 500
        with pytest.raises(errors.ArgumentError):
            ws.set_keep({"rows": 3})  # type: ignore[arg-type]


@pytest.mark.parametrize("durability", ["process", "interval"])
def test_a_writer_that_only_appends_stays_within_bounds(durability: Any) -> None:
    """Nobody opens, nobody takes a snapshot: eviction runs behind the rolls."""
    with rc.create_workspace("w", SCHEMA, durability=durability, keep=RING) as ws:
        writer = ws.writer()
        for k in range(30):
            write_episodes(writer, 20, first=20 * k)
            ws.retainer.close()
        assert len(files(ws)) < 20
        if durability == "process":
            writer._log.roll()
            assert len(writer._log.behind.unsynced) < 15, "maps of evicted segments are given up"
        writer.close()
        assert len(ws.view().rows) < 1000


def test_a_writer_per_episode_leaves_no_folders_behind() -> None:
    with rc.create_workspace("w", SCHEMA, keep=RING) as ws:
        sizes = []
        for k in range(60):
            with ws.writer() as writer:
                write_episodes(writer, 1, first=k)
            with ws.writer():
                pass  # one that never wrote
            ws.evict()
            sizes.append(ws.stats().disk_bytes)
        folders = list((ws.path / "log").glob("[0-9a-f]*"))
        assert len(folders) <= 12
        assert max(sizes[20:]) <= 1.2 * sizes[15]
        kept = retention(ws)
        assert kept.evicted_rows == 1800 - len(ws.view().rows)
        assert kept.evicted_facts == 60 - ws.stats().facts
        assert read_evicted(ws.path / "log").writers > 80


# -- what is left ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", SCHEMAS)
def test_what_is_left_reads_bit_for_bit_as_before(kind: str) -> None:
    schema, rng = SCHEMAS[kind](), np.random.default_rng(5)
    told = random_trajectories(schema, rng, count=120, longest=9)
    with rc.create_workspace("w", schema) as ws:
        writer = ws.writer()
        write_appends(writer, told, order_of(told, rng))
        before, ids = rows_of(ws.view()), all_ids(ws.view())
        ws.set_keep(rc.Keep(rows=200, unpromoted="drop"))
        assert ws.evict().rows > 0
        view = ws.view()
        assert all_ids(view) == ids[len(ids) - len(view.rows) :]
        after = rows_of(view)
        assert after == {uid: before[uid] for uid in after}
        beheaded = view.anchors.undrawable_beheaded
        assert beheaded == 0 or "frames" in kind or "nested" in kind
        ws.set_keep(rc.Keep())
        writer.close()
    with rc.open_workspace("w") as ws:
        again = rows_of(ws.view())
        assert {uid: again[uid] for uid in after} == after


def test_stacks_that_reach_into_evicted_steps_are_not_drawn() -> None:
    schema = rc.Schema(
        {"observation": rc.Frames((2, 2), stack=4), "reward": rc.Tensor("float32"), "uid": rc.Tensor("int64")}
    )
    with rc.create_workspace("w", schema, keep=rc.Keep(rows=100, unpromoted="drop")) as ws, ws.writer() as writer:
        with writer.episode() as episode:
            for uid in range(500):
                frame = np.full((2, 2), uid % 251, np.uint8)
                episode.append(observation=frame, reward=0.0, uid=uid, terminated=uid == 499)
        before = rows_of(ws.view())
        ws.evict()
        view = ws.view()
        first = 500 - len(view.rows)
        assert 0 < first < 400
        assert view.anchors.undrawable_beheaded == ws.stats().undrawable_beheaded == 3
        after = rows_of(view)
        assert sorted(after) == list(range(first + 3, 500))
        assert after == {uid: before[uid] for uid in after}
        record = ws.episode(rc.EpisodeKey(writer.id, 0))
        assert record.valid("observation").tolist() == [False] * 3 + [True] * (len(record) - 3)
        assert record["observation"].shape == (len(record), 4, 2, 2)
        assert record["step"][0] == first
        assert ws.recent(len(record))[len(record) - 1].fields["observation"] is None
        assert ws.recent(len(record) - 3)[len(record) - 4].fields["observation"].shape == (4, 2, 2)
        loader = rc.Loader(
            view, rc.Uniform(), batch_size=8, seed=0, epochs=1, output="numpy", transforms=[rc.NStep(3, 0.9)]
        )
        assert all(int(b["step_index"].min()) >= first + 3 for b in loader)


def test_an_old_cut_says_where_its_rows_went() -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer:
        write_episodes(writer, 50)
        cut, first = ws.cut(), ws.recent(1500).ids[-1]
        view = ws.view()
        before = rows_of(view)
        ws.set_keep(RING)
        ws.evict()
        with pytest.raises(errors.NotFound, match="were evicted"):
            ws.view(cut)
        with pytest.raises(errors.NotFound, match="was evicted"):
            ws.episode(first)
        with pytest.raises(errors.NotFound):
            ws.episode(rc.EpisodeKey(writer.id, 0))
        with pytest.raises(errors.NotFound):
            ws.annotate(rc.EpisodeKey(writer.id, 0), reward=1.0)
        assert rows_of(view) == before, "a view that is held keeps its rows"
        assert len(view.facts.episodes) == 50, "and its facts, though they were not read before"
        assert retention(ws).unlinked_bytes > 0
        del view
        assert retention(ws).unlinked_bytes == 0


# -- facts -----------------------------------------------------------------------------------------------------------


def test_facts_outlive_the_segment_they_were_written_in() -> None:
    with rc.create_workspace("w", SCHEMA, keep=RING) as ws:
        writer = ws.writer()
        long = writer.episode(id="long", task="outlives")
        long.append(observation=[0, 0], reward=0.0, uid=-1)
        idle = writer.episode(id="idle", task="waits")
        idle.append(observation=[0, 0], reward=0.0, uid=-2)
        unborn = writer.episode(id="unborn", task="comes")
        for k in range(20):
            write_episodes(writer, 5, first=5 * k)
            long.append(observation=[0, k + 1], reward=0.0, uid=10**6 + k)
            ws.evict()
        facts = ws.view().facts
        key = ws.episode("long").key
        assert facts.episodes[key]["task"] == "outlives"
        assert ws.episode("long").facts["task"] == "outlives"
        for name, episode in (("idle", idle), ("unborn", unborn)):
            episode.append(observation=[0, 0], reward=0.0, uid=-3, terminated=True)
            assert ws.episode(name).facts["task"] == {"idle": "waits", "unborn": "comes"}[name]
        long.close()
        write_episodes(writer, 60, first=1000)
        ws.evict()
        carried = {f.episode for f in read_first(ws.path / "log" / f"{writer.id:016x}").facts}
        assert carried <= {rc.EpisodeKey(*k) for k in ws.view().episodes.keys.tolist()}
        assert read_first(ws.path / "log" / f"{writer.id:016x}").open == ()
        writer.close()


def test_facts_keep_their_numbers_and_a_cut_its_facts() -> None:
    with rc.create_workspace("w", SCHEMA, keep=RING) as ws, ws.writer() as writer:
        write_episodes(writer, 40)
        whole = {f.seq: f for h in ws.view().facts.history.values() for f in h}
        write_episodes(writer, 10, first=40)
        cut = ws.cut()
        ws.evict()
        now = ws.cut()
        assert now.facts == cut.facts
        left = {f.seq: f for h in ws.view().facts.history.values() for f in h}
        assert 0 < len(left) < 50 and max(left) == 49
        assert all(left[seq] == whole[seq] for seq in left if seq in whole)
        older = rc.Cut(now.extents, ((writer.id, 45),))
        assert max(f.seq for h in ws.view(older).facts.history.values() for f in h) == 44


def test_late_facts_of_rows_that_are_there_stay_and_the_annotators_log_does_not_grow() -> None:
    with rc.create_workspace("w", SCHEMA, keep=RING) as ws:
        writer = ws.writer()
        for k in range(80):
            write_episodes(writer, 5, first=5 * k)
            for key in [rc.EpisodeKey(writer.id, 5 * k + j) for j in range(5)]:
                ws.annotate(key, reward=float(key.counter), lesson="x" * 300)
            ws.annotate(ws.recent(1).ids[0], reward=-7.0)
            ws.evict()
        ws.retainer.close()
        view = ws.view()
        held = {rc.EpisodeKey(*k) for k in view.episodes.keys.tolist()}
        assert len(held) < 40
        for key in held:
            assert view.facts.episodes[key]["reward"] == float(key.counter)
            assert view.facts.episodes[key]["task"] == f"t{key.counter}"
        slots = view.rows.find(np.array(list(view.facts.steps), dtype=[("writer", "<i8"), ("seq", "<i8")]))
        there = slots[slots >= 0]
        assert len(there) and (view.rows.gather(there, ("reward",))["reward"] == -7.0).all()
        assert ws.stats().facts < 400
        assert len(files(ws)) < 30
        writer.close()


def test_facts_of_a_dead_annotator_stay_until_their_episodes_go() -> None:
    with rc.create_workspace("w", SCHEMA, keep=RING) as ws:
        writer = ws.writer()
        write_episodes(writer, 5)
        with rc.open_workspace("w") as other:
            other.annotate(rc.EpisodeKey(writer.id, 4), reward=4.5)
        steady = writer.episode(id="steady")
        steady.append(observation=[0, 0], reward=0.0, uid=-1)
        with rc.open_workspace("w") as other:
            other.annotate("steady", reward=2.5)
        for k in range(10):
            write_episodes(writer, 10, first=5 + 10 * k)
            steady.append(observation=[0, 0], reward=0.0, uid=-2 - k)
            ws.evict()
        assert ws.episode("steady").facts["reward"] == 2.5
        left = list((ws.path / "log").glob("[0-9a-f]*"))
        assert len(left) == 2, "one annotator is gone, the other one's fact is carried"
        steady.close()
        write_episodes(writer, 40, first=1000)
        ws.evict()
        assert len(list((ws.path / "log").glob("[0-9a-f]*"))) == 1
        writer.close()
