"""Evictions that are killed, that meet each other, and that meet readers: nobody sees more than the old or the new."""

from __future__ import annotations

import random
import signal
import threading
import time
from typing import Any

import pytest

import recollect as rc
from recollect import errors
from tests.hot.retaining import (
    EVICTOR,
    RING,
    SCHEMA,
    child_of,
    evictions_cut_short,
    files,
    retention,
    small_segments,
    tell,
    write_episodes,
)
from tests.support import python, rows_of

__all__ = ["small_segments"]
pytestmark = pytest.mark.usefixtures("small_segments")


def _whole(ws: rc.Workspace, values: dict[int, Any], rows: int) -> None:
    """Fails unless the workspace holds a suffix of what was written, with equal values, facts and counts."""
    view = ws.view()
    have = rows_of(view, batch_size=256)
    assert have == {uid: values[uid] for uid in have}
    for key in [rc.EpisodeKey(*k) for k in view.episodes.keys.tolist()]:
        uid = int(view.rows.gather(view.episodes.rows_of(key)[:1], ("uid",))["uid"][0])
        assert view.facts.episodes[key]["task"] == f"t{uid // 30}"
    assert retention(ws).evicted_rows + len(view.rows) == rows


@pytest.mark.parametrize("point", range(12))
def test_an_eviction_killed_at_any_step_leaves_the_old_or_the_new(point: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every call that changes the disk fails in turn, as if the process had died there."""
    with rc.create_workspace("w", SCHEMA) as ws:
        writer = ws.writer()
        write_episodes(writer, 30)
        with ws.writer() as short:
            write_episodes(short, 1, first=30)
        write_episodes(writer, 30, first=31)
        values, reader, rows = rows_of(ws.view(), batch_size=256), rc.open_workspace("w"), 30 * 61
        mapped = reader.view()
        ws.set_keep(RING)
        with evictions_cut_short(monkeypatch, point):
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
        assert len(files(ws)) < 15 and not list((ws.path / "log").glob(".*evicted"))
        assert len(ws.view().rows) < 600
        writer.close()
        reader.close()


@pytest.mark.parametrize("kills", [15, pytest.param(300, marks=pytest.mark.torture)])
def test_evictors_killed_at_random_moments_harm_nobody(kills: int) -> None:
    chance = random.Random(3)
    with rc.create_workspace("w", SCHEMA) as ws:
        writer, values, episodes = ws.writer(), dict[int, Any](), 0
        for _ in range(kills):
            write_episodes(writer, 30, first=episodes)
            with ws.writer() as short:
                write_episodes(short, 1, first=episodes + 30)
            episodes += 31
            rows = 30 * episodes
            values |= rows_of(ws.view(), batch_size=256)
            child = child_of(EVICTOR, "w")
            tell(child, str(chance.choice([30, 300, 600])))
            time.sleep(chance.uniform(0.0, 0.02))
            child.send_signal(signal.SIGKILL)
            child.communicate()
            _whole(ws, values, rows)
        ws.set_keep(RING)
        ws.evict()
        _whole(ws, values, rows)
        assert len(files(ws)) < 20
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
        write_episodes(writer, 20)
        readers = [child_of(READER, "w") for _ in range(2)]
        evictors = [child_of(EVICTOR, "w") for _ in range(2)]
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
                write_episodes(writer, 10, first=20 + 10 * k)
                for child in evictors:
                    tell(child, "400")
                with ws.writer() as short:
                    write_episodes(short, 1, first=10_000 + k)
        finally:
            thread.join()
            said = []
            for child in [*readers, *evictors]:
                child.kill()
                said.append(child.communicate())
        assert not failures, failures
        assert not any(err for _, err in said), [err for _, err in said]
        assert all(len(out.split()) > 3 for out, _ in said[:2]), "the readers read"
        ws.retainer.close()
        ws.evict()
        assert 400 <= len(ws.view().rows) < 900
        writer.close()


def test_a_dead_writers_evicted_log_is_recovered() -> None:
    code = """
import os, sys
import recollect as rc
from recollect.hot.write import growing
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
        write_episodes(writer, 60)
        ws.evict()
        writer.close()
        note = ws.path / "log" / f"{writer.id:016x}" / "first.json"
        note.write_bytes(note.read_bytes().replace(b'"row": ', b'"row": 1'))
    with pytest.raises(errors.CorruptionError, match="damaged"):
        rc.open_workspace("w").view()


def test_that_an_episode_was_resumed_and_closed_outlives_the_segment_which_says_so() -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as one, ws.writer() as two, ws.writer() as three:
        write_episodes(one, 1)
        with one.episode("left") as episode:
            episode.append(observation=[1, 1], reward=1.0, uid=1)
        early = rc.open_workspace("w")
        early.view()
        for writer in (two, three):
            with writer.resume_episode("left"):
                pass
        write_episodes(three, 30, first=2)
        ws.set_keep(RING)
        ws.evict()
        late = rc.open_workspace("w")
        for store in (late._hot(), early._hot()):
            store.refresh()
            log = store.log(three.id)
            assert log.first.fact > log.closed[episode.key]
            assert [r.turn for r in log.resumed[episode.key]] == [2]
        assert late.writer().resume_episode("left").key == episode.key
