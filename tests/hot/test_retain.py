"""Eviction: whole segments go from the front of each log, and what is left reads as if nothing had happened."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors
from recollect.hot import growing, private
from recollect.hot.evicted import read_evicted, write_evicted
from recollect.hot.first import read_first, write_first
from tests.support import SCHEMAS, all_ids, order_of, python, random_trajectories, rows_of, write_appends

SCHEMA = rc.Schema(
    {"observation": rc.Tensor("float32", (2,)), "reward": rc.Tensor("float32"), "uid": rc.Tensor("int64")},
    episode={"task": rc.Text()},
)
RING = rc.Keep(rows=300, unpromoted="drop")
SMALL = (1 << 14,)


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing, "SEGMENT_BYTES", SMALL)


def _episodes(writer: rc.Writer, count: int, *, length: int = 30, first: int = 0, **facts: Any) -> None:
    for k in range(first, first + count):
        with writer.episode(task=f"t{k}", **facts) as episode:
            for i in range(length):
                uid = k * length + i
                episode.append(observation=[uid, i], reward=1.0, uid=uid, terminated=i == length - 1)


def _files(ws: rc.Workspace) -> list[str]:
    return sorted(str(p.relative_to(ws.path / "log")) for p in (ws.path / "log").rglob("*") if p.is_file())


def _retention(ws: rc.Workspace) -> Any:
    found = ws.stats().retention
    assert found is not None
    return found


# -- limits ----------------------------------------------------------------------------------------------------------


def test_a_workspace_keeps_everything_unless_told_otherwise() -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer:
        _episodes(writer, 40)
        assert ws.evict().rows == 0
        assert ws.keep == rc.Keep()
        assert len(ws.view().rows) == 1200
        assert not _retention(ws).over_limit


def test_the_newest_rows_stay_and_what_went_is_counted() -> None:
    with rc.create_workspace("w", SCHEMA, keep=RING) as ws:
        writer = ws.writer()
        _episodes(writer, 100)
        ws.retainer.close()
        ws.evict()
        view = ws.view()
        per_segment = writer._log.segment.header.shape.rows
        assert 300 <= len(view.rows) <= 300 + 2 * per_segment
        assert [u for _, u in all_ids(view)] == list(range(3000 - len(view.rows), 3000))
        assert {i["uid"] for i in rows_of(view).values()} == {i["uid"] for i in rows_of(view).values()}
        kept = _retention(ws)
        assert kept.evicted_rows == kept.dropped_rows == 3000 - len(view.rows)
        assert kept.evicted_facts == kept.dropped_facts == 100 - ws.stats().facts
        assert not kept.over_limit
        assert ws.stats().writers[0].first_row == kept.evicted_rows
        assert ws.recent(3).ids == [rc.StepId(writer.id, 2999 - k) for k in range(3)]
    with rc.open_workspace("w") as ws:
        assert len(ws.view().rows) == len(view.rows)
        assert _retention(ws).dropped_rows == kept.dropped_rows


def test_nothing_unpromoted_goes_by_default_and_the_workspace_says_that_it_is_over_its_limit() -> None:
    with rc.create_workspace("w", SCHEMA, keep=rc.Keep(rows=300)) as ws, ws.writer() as writer:
        _episodes(writer, 100)
        assert ws.evict().rows == 0
        kept = _retention(ws)
        assert len(ws.view().rows) == 3000
        assert kept.over_limit and kept.waiting_rows > 2000 and kept.waiting_bytes > 0
        assert "no snapshot" in kept.problem


def test_a_limit_of_bytes_bounds_the_disk() -> None:
    limit = 600_000
    with rc.create_workspace("w", SCHEMA, keep=rc.Keep(bytes=limit, unpromoted="drop")) as ws, ws.writer() as writer:
        for k in range(40):
            _episodes(writer, 10, first=10 * k)
            ws.evict()
            assert ws.stats().disk_bytes <= limit + 2 * len(writer._log.segment.map)


def test_a_limit_of_age_lets_old_segments_go(monkeypatch: pytest.MonkeyPatch) -> None:
    with rc.create_workspace("w", SCHEMA, keep=rc.Keep(age=60, unpromoted="drop")) as ws, ws.writer() as writer:
        _episodes(writer, 20)
        assert ws.evict().rows == 0
        now = time.time_ns()
        monkeypatch.setattr(time, "time_ns", lambda: now + 61 * 10**9)
        went = ws.evict().rows
        assert went > 0
        assert len(ws.view().rows) == 600 - went


def test_limits_change_for_every_handle() -> None:
    with rc.create_workspace("w", SCHEMA) as ws, rc.open_workspace("w") as other, ws.writer() as writer:
        _episodes(writer, 100)
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
            _episodes(writer, 20, first=20 * k)
            ws.retainer.close()
        assert len(_files(ws)) < 20
        if durability == "process":
            writer._log.roll()
            assert len(writer._log._unsynced) < 15, "maps of evicted segments are given up"
        writer.close()
        assert len(ws.view().rows) < 1000


def test_a_writer_per_episode_leaves_no_folders_behind() -> None:
    with rc.create_workspace("w", SCHEMA, keep=RING) as ws:
        sizes = []
        for k in range(60):
            with ws.writer() as writer:
                _episodes(writer, 1, first=k)
            with ws.writer():
                pass  # one that never wrote
            ws.evict()
            sizes.append(ws.stats().disk_bytes)
        folders = list((ws.path / "log").iterdir())
        assert len(folders) <= 12
        assert max(sizes[20:]) <= 1.2 * sizes[15]
        kept = _retention(ws)
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
        _episodes(writer, 50)
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
        assert _retention(ws).unlinked_bytes > 0
        del view
        assert _retention(ws).unlinked_bytes == 0


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
            _episodes(writer, 5, first=5 * k)
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
        _episodes(writer, 60, first=1000)
        ws.evict()
        carried = {f.episode for f in read_first(ws.path / "log" / f"{writer.id:016x}").facts}
        assert carried <= {rc.EpisodeKey(*k) for k in ws.view().episodes.keys.tolist()}
        assert read_first(ws.path / "log" / f"{writer.id:016x}").open == ()
        writer.close()


def test_facts_keep_their_numbers_and_a_cut_its_facts() -> None:
    with rc.create_workspace("w", SCHEMA, keep=RING) as ws, ws.writer() as writer:
        _episodes(writer, 40)
        whole = {f.seq: f for h in ws.view().facts.history.values() for f in h}
        _episodes(writer, 10, first=40)
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
            _episodes(writer, 5, first=5 * k)
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
        assert len(_files(ws)) < 30
        writer.close()


def test_facts_of_a_dead_annotator_stay_until_their_episodes_go() -> None:
    with rc.create_workspace("w", SCHEMA, keep=RING) as ws:
        writer = ws.writer()
        _episodes(writer, 5)
        with rc.open_workspace("w") as other:
            other.annotate(rc.EpisodeKey(writer.id, 4), reward=4.5)
        steady = writer.episode(id="steady")
        steady.append(observation=[0, 0], reward=0.0, uid=-1)
        with rc.open_workspace("w") as other:
            other.annotate("steady", reward=2.5)
        for k in range(10):
            _episodes(writer, 10, first=5 + 10 * k)
            steady.append(observation=[0, 0], reward=0.0, uid=-2 - k)
            ws.evict()
        assert ws.episode("steady").facts["reward"] == 2.5
        assert len(list((ws.path / "log").iterdir())) == 2, "one annotator is gone, the other one's fact is carried"
        steady.close()
        _episodes(writer, 40, first=1000)
        ws.evict()
        assert len(list((ws.path / "log").iterdir())) == 1
        writer.close()


# -- crashes and company -----------------------------------------------------------------------------------------------

EVICTOR = """
import sys
import recollect as rc
from recollect.hot import growing
growing.SEGMENT_BYTES = (1 << 14,)
ws = rc.open_workspace(sys.argv[1])
print("ready", flush=True)
for line in sys.stdin:
    ws.set_keep(rc.Keep(rows=int(line), unpromoted="drop"))
    print(ws.evict().rows, flush=True)
"""


def _child(code: str, *arguments: str) -> subprocess.Popen[str]:
    child = python(code, *arguments)
    assert child.stdout is not None
    line = child.stdout.readline()
    assert line == "ready\n", child.communicate()[1]
    return child


def _tell(child: subprocess.Popen[str], line: str) -> None:
    assert child.stdin is not None
    child.stdin.write(line + "\n")
    child.stdin.flush()


def _whole(ws: rc.Workspace, values: dict[int, Any], rows: int) -> None:
    """Fails unless the workspace holds a suffix of what was written, with equal values, facts and counts."""
    view = ws.view()
    have = rows_of(view, batch_size=256)
    assert have == {uid: values[uid] for uid in have}
    for key in [rc.EpisodeKey(*k) for k in view.episodes.keys.tolist()]:
        uid = int(view.rows.gather(view.episodes.rows_of(key)[:1], ("uid",))["uid"][0])
        assert view.facts.episodes[key]["task"] == f"t{uid // 30}"
    assert _retention(ws).evicted_rows + len(view.rows) == rows


@pytest.mark.parametrize("point", range(12))
def test_an_eviction_killed_at_any_step_leaves_the_old_or_the_new(point: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call that changes the disk fails in turn, as if the process had died there."""
    with rc.create_workspace("w", SCHEMA) as ws:
        writer = ws.writer()
        _episodes(writer, 30)
        with ws.writer() as short:
            _episodes(short, 1, first=30)
        _episodes(writer, 30, first=31)
        values, reader, rows = rows_of(ws.view(), batch_size=256), rc.open_workspace("w"), 30 * 61
        mapped = reader.view()
        ws.set_keep(RING)
        left = [point]

        def dying(real: Any) -> Any:
            def call(*arguments: Any, **named: Any) -> Any:
                left[0] -= 1
                if left[0] < 0:
                    raise KeyboardInterrupt
                return real(*arguments, **named)

            return call

        with monkeypatch.context() as patch:
            patch.setattr("recollect.hot.evict.write_first", dying(write_first))
            patch.setattr("recollect.hot.evict.write_evicted", dying(write_evicted))
            patch.setattr(Path, "unlink", dying(Path.unlink))
            patch.setattr(Path, "rename", dying(Path.rename))
            patch.setattr(shutil, "rmtree", dying(shutil.rmtree))
            try:
                ws.evict()
            except KeyboardInterrupt:
                pass
            else:
                assert point > 6
        _whole(ws, values, rows)
        _whole(reader, values, rows)
        with rc.open_workspace("w") as fresh:  # evicts too
            _whole(fresh, values, rows)
        assert rows_of(mapped, batch_size=256) == values
        ws.evict()
        _whole(ws, values, rows)
        _whole(reader, values, rows)
        assert len(_files(ws)) < 15 and not list((ws.path / "log").glob(".*evicted"))
        assert len(ws.view().rows) < 600
        writer.close()
        reader.close()


@pytest.mark.parametrize("kills", [15, pytest.param(300, marks=pytest.mark.torture)])
def test_evictors_killed_at_random_moments_harm_nobody(kills: int) -> None:
    chance = random.Random(3)
    with rc.create_workspace("w", SCHEMA) as ws:
        writer, values, episodes = ws.writer(), dict[int, Any](), 0
        for _ in range(kills):
            _episodes(writer, 30, first=episodes)
            with ws.writer() as short:
                _episodes(short, 1, first=episodes + 30)
            episodes += 31
            rows = 30 * episodes
            values |= rows_of(ws.view(), batch_size=256)
            child = _child(EVICTOR, "w")
            _tell(child, str(chance.choice([30, 300, 600])))
            time.sleep(chance.uniform(0.0, 0.02))
            child.send_signal(signal.SIGKILL)
            child.communicate()
            _whole(ws, values, rows)
        ws.set_keep(RING)
        ws.evict()
        _whole(ws, values, rows)
        assert len(_files(ws)) < 20
        writer.close()


READER = """
import sys
import recollect as rc
ws = rc.open_workspace(sys.argv[1])
print("ready", flush=True)
looked = 0
while True:
    view = ws.view() if looked % 2 else rc.open_workspace(sys.argv[1]).view()
    got = view.rows.gather(__import__("numpy").arange(len(view.rows)), ("uid", "seq"))
    assert len(view.rows) >= 300
    ws.recent(5)
    assert {k for k in view.facts.episodes} >= {rc.EpisodeKey(*k) for k in view.episodes.keys.tolist()}
    looked += 1
    print(looked, flush=True)
"""


def test_readers_and_several_evictors_at_once() -> None:
    """Other processes read, open and evict while a writer appends; nobody sees an error."""
    with rc.create_workspace("w", SCHEMA, keep=rc.Keep(rows=400, unpromoted="drop")) as ws:
        writer = ws.writer()
        _episodes(writer, 20)
        readers = [_child(READER, "w") for _ in range(2)]
        evictors = [_child(EVICTOR, "w") for _ in range(2)]
        failures: list[BaseException] = []

        def look() -> None:
            try:
                for _ in range(60):
                    ws.evict()
                    view = ws.view()
                    assert len(rows_of(view, batch_size=512)) == len(view)
            except BaseException as e:
                failures.append(e)

        thread = threading.Thread(target=look)
        thread.start()
        try:
            for k in range(40):
                _episodes(writer, 10, first=20 + 10 * k)
                for child in evictors:
                    _tell(child, "400")
                with ws.writer() as short:
                    _episodes(short, 1, first=10_000 + k)
        finally:
            thread.join()
            said = []
            for child in [*readers, *evictors]:
                child.kill()
                said.append(child.communicate())
        assert not failures, failures
        assert not any(err for _, err in said), said
        assert all(len(out.split()) > 3 for out, _ in said[:2]), "the readers read"
        ws.retainer.close()
        ws.evict()
        assert 400 <= len(ws.view().rows) < 900
        writer.close()


def test_a_dead_writers_evicted_log_is_recovered() -> None:
    code = """
import os, sys
import recollect as rc
from recollect.hot import growing
growing.SEGMENT_BYTES = (1 << 14,)
ws = rc.open_workspace("w")
writer = ws.writer()
for k in range(60):
    with writer.episode(task=f"t{k}") as episode:
        for i in range(30):
            episode.append(observation=[0, i], reward=1.0, uid=30 * k + i, terminated=i == 29)
ws.retainer.close()
ws.evict()
print(len(ws.view().rows), flush=True)
os._exit(0)
"""
    rc.create_workspace("w", SCHEMA, keep=RING).close()
    child = python(code)
    out, err = child.communicate()
    assert not err, err
    with rc.open_workspace("w") as ws:
        assert [r.rows for r in ws.recovered] == [1800] and not ws.recovered[0].lost_rows
        view = ws.view()
        assert len(view.rows) == int(out)
        assert sorted(rows_of(view)) == list(range(1800 - int(out), 1800))


def test_a_damaged_note_is_reported() -> None:
    with rc.create_workspace("w", SCHEMA, keep=RING) as ws:
        writer = ws.writer()
        _episodes(writer, 60)
        ws.evict()
        writer.close()
        note = ws.path / "log" / f"{writer.id:016x}" / "first.json"
        note.write_bytes(note.read_bytes().replace(b'"row": ', b'"row": 1'))
    with pytest.raises(errors.CorruptionError, match="damaged"):
        rc.open_workspace("w").view()


# -- private workspaces ------------------------------------------------------------------------------------------------


def test_a_ring_in_memory_is_one_line(tmp_path: Path) -> None:
    ws = rc.create_workspace(None, SCHEMA, keep=rc.Keep(rows=300, unpromoted="drop"))
    assert ws.durability == "process"
    assert rc.list_workspaces() == []
    with ws.writer() as writer:
        _episodes(writer, 100)
        view = ws.view()
        loader = rc.Loader(view, rc.Uniform(), batch_size=16, seed=0, steps=2, output="numpy")
        assert [len(b) for b in loader] == [16, 16]
    ws.evict()
    kept = len(ws.view().rows)
    assert 300 <= kept < 600
    snapshot = ws.snapshot(tmp_path / "b")
    assert (snapshot.rows_added, snapshot.gap_rows) == (kept, 3000 - kept)
    ws.close()
    assert not ws.path.exists()
    assert len(rows_of(view)) == len(view), "a view outlives its workspace"


def test_a_private_workspace_goes_with_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
import os, sys
import recollect as rc
from recollect.hot import private
from pathlib import Path
private.SHARED_MEMORY = Path(sys.argv[2])
ws = rc.create_workspace(None, rc.Schema({"reward": rc.Tensor("float32")}))
if sys.argv[1] == "fork":
    pid = os.fork()
    if pid == 0:
        sys.exit(0)
    os.waitpid(pid, 0)
    assert ws.path.exists()
print(ws.path, flush=True)
if sys.argv[1] == "wait":
    sys.stdin.readline()
"""
    monkeypatch.setattr(private, "SHARED_MEMORY", tmp_path)
    for how in ("exit", "fork"):
        child = python(code, how, str(tmp_path))
        out, err = child.communicate()
        assert out.startswith(str(tmp_path)) and not Path(out.strip()).exists(), err
    child = python(code, "wait", str(tmp_path))
    assert child.stdout is not None
    path = Path(child.stdout.readline().strip())
    with rc.create_workspace(None, SCHEMA) as mine:
        assert path.exists() and mine.path.parent == path.parent
        child.kill()
        child.communicate()
        assert path.exists()
        with rc.create_workspace(None, SCHEMA):
            assert not path.exists(), "whoever creates one sweeps up"
            assert mine.path.exists()


def test_a_private_workspace_goes_to_disk_where_memory_has_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(private, "ROOM_BYTES", 1 << 62)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with rc.create_workspace(None, SCHEMA) as ws:
        assert ws.path.is_relative_to(tmp_path)
