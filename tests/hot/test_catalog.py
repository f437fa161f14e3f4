"""The catalog against a scan of everything: after any workload, any damage to its file, beside any other process."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors
from recollect.hot.read import catalog, sidecar
from tests.hot.indexed import SCHEMA, Workload, assert_equals_a_scan, index_of, step_of
from tests.support import python, run_python


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """The index is used and brought up to date however small the workspace, in many small steps."""
    monkeypatch.setattr(catalog, "TAIL_ROWS", 20)
    monkeypatch.setattr(catalog, "TAIL_FACTS", 4)
    monkeypatch.setattr(catalog, "CHUNK_ROWS", 16)
    monkeypatch.setattr(catalog, "BATCH_ROWS", 64)
    monkeypatch.setattr(catalog, "BATCH_FACTS", 16)


def _entries(ws: rc.Workspace) -> int:
    counted = index_of(ws).file.read(lambda c: c.execute("SELECT count(*) FROM spans").fetchone()[0])
    return 0 if counted is None else int(counted)


@pytest.mark.parametrize("seed", range(6))
def test_random_workloads_read_like_a_scan(eager: None, seed: int) -> None:
    with rc.create_workspace("w", SCHEMA) as ws, rc.open_workspace("w") as other:
        load = Workload(ws, seed)
        for _ in range(4):
            load.run(8)
            assert_equals_a_scan(ws)
            assert_equals_a_scan(other)
        assert _entries(other) > 0
        assert index_of(ws).compare(ws.cut()) is None
        assert assert_equals_a_scan(rc.open_workspace("w")) > 5


def test_small_workspaces_need_no_file() -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        Workload(ws, 1).run(10)
        assert_equals_a_scan(ws)
        assert not index_of(ws).file.path.exists()


def test_an_episode_that_another_writer_goes_on_with_is_whole(eager: None) -> None:
    """Rows of one key in two logs, as resumed episodes have them."""
    with rc.create_workspace("w", SCHEMA) as ws:
        first, second = ws.writer(), ws.writer()
        episode = first.episode(id="shared")
        for uid in range(40):
            episode.append(**step_of(uid))
        taken = second.open_episode(None, None, {})
        taken.key, taken.step = episode.key, 40
        for uid in range(40, 90):
            second._append(taken, step_of(uid), False, False, None, None)
        assert index_of(ws).catch_up(ws.cut())
        got = ws.episode("shared")
        assert got["uid"].tolist() == list(range(90))
        assert {i.writer for i in got.ids} == {first.id, second.id}


def _damage(kind: str, path: Path) -> None:
    journal = path.with_name(path.name + "-journal")
    data = bytearray(path.read_bytes())
    if kind == "deleted":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    elif kind == "text":
        path.write_bytes(b"this is no database at all\n" * 400)
    elif kind == "cut short":
        path.write_bytes(data[: len(data) // 2])
    elif kind == "zeroed":
        path.write_bytes(data[:4096] + bytes(len(data) - 4096))
    elif kind == "noise":
        noise = random.Random(3).randbytes(len(data) - 4096)
        path.write_bytes(bytes(data[:4096]) + noise)
    elif kind == "another database":
        path.unlink()
        with sqlite3.connect(path) as c:
            c.execute("CREATE TABLE t (x)")
        c.close()
    elif kind == "noise in the journal":
        journal.write_bytes(random.Random(4).randbytes(9000))
    elif kind == "copied":
        copy = path.with_name("copy")
        copy.write_bytes(data)
        copy.rename(path)
    else:
        statement = {
            "another format": "UPDATE identity SET value = '999' WHERE place = 0",
            "another boot": "UPDATE identity SET value = 'another' WHERE place = 1",
            "a wrong span": "UPDATE spans SET first = first + 1, stop = stop + 1",
            "a wrong fact": "UPDATE facts SET seq = seq + 1000 WHERE seq % 2",
            "a wrong id": "UPDATE ids SET id = id || 'x'",
            "an id of another": "UPDATE ids SET episode = episode + 1",
            "a table gone": "DROP TABLE ids",
            "too far": "UPDATE writers SET rows = rows + 100000, facts = facts + 1000",
            "of another workspace": "INSERT INTO writers VALUES (77, 5, 5, 0)",
        }[kind]
        with sqlite3.connect(path) as c:
            c.execute(statement)
        c.close()


@pytest.mark.parametrize(
    "kind",
    [
        "deleted", "empty", "text", "cut short", "zeroed", "noise", "another database", "noise in the journal",
        "copied", "another format", "another boot", "a wrong span", "an id of another", "a table gone", "too far",
        "of another workspace",
    ],
)  # fmt: skip
@pytest.mark.parametrize("opened", ["before", "after"])
def test_whatever_happens_to_the_file_reads_are_right(eager: None, kind: str, opened: str) -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        load = Workload(ws, 11)
        load.run(25)
        assert index_of(ws).catch_up(ws.cut())
        assert_equals_a_scan(ws)
        reader = ws if opened == "before" else rc.open_workspace("w")
        if opened == "after":
            ws._hot().close()
        _damage(kind, index_of(ws).file.path)
        load.run(3)
        assert_equals_a_scan(reader)
        assert index_of(reader).catch_up(reader.cut())
        assert index_of(reader).compare(reader.cut()) is None
        assert_equals_a_scan(rc.open_workspace("w"))


def test_random_bytes_anywhere_are_no_error_for_the_user(eager: None) -> None:
    """SQLite finds what breaks its structure; what it cannot see may hide an episode, and never shows a wrong one."""
    rng = random.Random(5)
    with rc.create_workspace("w", SCHEMA) as ws:
        Workload(ws, 12).run(30)
        view = ws.view()
        path = index_of(ws).file.path
        for _ in range(30):
            assert index_of(ws).catch_up(ws.cut())
            data = bytearray(path.read_bytes())
            for _ in range(rng.choice([1, 1, 50])):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            ws._hot().close()
            path.write_bytes(data)
            reader = rc.open_workspace("w")
            for key in view.episodes.keys.tolist():
                try:
                    got = reader.episode(rc.EpisodeKey(*key))
                except errors.NotFound:
                    continue
                slots = view.episodes.rows_of(got.key)
                assert set(map(tuple, got.ids)) <= set(map(tuple, view.rows.ids(slots).tolist()))
            index_of(reader).compare(reader.cut())
            reader.close()
            index_of(ws).file.discard()


def test_a_folder_that_takes_no_file_is_read_by_scanning(eager: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        Workload(ws, 2).run(12)
        index_of(ws).file.path.mkdir()
        assert_equals_a_scan(ws)
        index_of(ws).file.path.rmdir()
        monkeypatch.setattr(sidecar, "PAUSE_S", 0.0)

        def full(*_: Any) -> None:
            raise sqlite3.OperationalError("database or disk is full")

        monkeypatch.setattr(index_of(ws), "_add", full)
        assert_equals_a_scan(ws)


LOADER = """
import sys, time
import numpy as np
import recollect as rc
from recollect.hot.read import catalog
catalog.TAIL_ROWS, catalog.TAIL_FACTS, catalog.BATCH_ROWS, catalog.CHUNK_ROWS, catalog.BATCH_FACTS = 0, 0, 50, 16, 10
ws = rc.open_workspace("w")
index = ws._hot().catalog
"""


def _filled(rows: int = 3000) -> rc.Workspace:
    ws = rc.create_workspace("w", SCHEMA)
    with ws.writer(durability="process") as writer:
        for at in range(0, rows, 500):
            uid = np.arange(at, at + 500)
            names = [f"task-{k // 7}" for k in uid.tolist()]
            steps = [k % 7 for k in uid.tolist()]
            end = np.array([k % 7 == 6 for k in uid.tolist()])
            seen = np.zeros((500, 2), np.float32)
            writer.extend({"episode": names, "step": steps, "observation": seen, "uid": uid, "terminated": end})
    return ws


def test_processes_that_catch_up_together_agree(eager: None) -> None:
    ws = _filled()
    code = LOADER + "print(index.catch_up(ws.cut()), ws.episode('task-100')['uid'].tolist())"
    children = [python(code) for _ in range(4)]
    answers = [child.communicate(timeout=60) for child in children]
    assert all("[700, 701, 702, 703, 704, 705, 706]" in out for out, _ in answers), answers
    assert index_of(ws).catch_up(ws.cut())
    assert index_of(ws).compare(ws.cut()) is None
    ws.close()


def test_a_process_killed_while_it_catches_up_costs_nothing_but_its_batch(eager: None) -> None:
    ws = _filled()
    code = LOADER + "print('go', flush=True)\nwhile True:\n    index.file.discard()\n    index.catch_up(ws.cut())"
    rng = random.Random(9)
    for _ in range(12):
        child = python(code)
        assert child.stdout is not None
        child.stdout.readline()
        time.sleep(rng.random() * 0.1)
        child.kill()
        child.communicate()
        for k in rng.sample(range(400), 5):
            assert ws.episode(f"task-{k}")["uid"].tolist() == list(range(7 * k, 7 * k + 7))
        assert index_of(ws).catch_up(ws.cut())
        assert index_of(ws).compare(ws.cut()) is None
    ws.close()


@pytest.mark.parametrize("where", ["between commits", "within a commit"])
def test_a_stopped_process_holds_nobody_up(eager: None, where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ws = _filled()
    assert index_of(ws).catch_up(ws.cut())
    held = "connection.execute('BEGIN EXCLUSIVE')" if where == "within a commit" else "pass"
    code = (
        LOADER
        + f"""
import sqlite3
lock = index.file._lock()
connection = sqlite3.connect(index.file.path, isolation_level=None)
{held}
print("held", flush=True)
time.sleep(600)
"""
    )
    child = python(code)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "held\n"
        os.kill(child.pid, signal.SIGSTOP)
        for reader in (ws, rc.open_workspace("w")):
            with reader.writer() as writer, writer.episode(id="new") as episode:
                for uid in range(60):
                    episode.append(**step_of(uid))
            assert reader.episode("new")["uid"].tolist() == list(range(60))
            assert reader.episode("task-100")["uid"].tolist() == list(range(700, 707))
            assert len(reader.recent(200)) == 200
            assert not index_of(reader).catch_up(reader.cut())
    finally:
        os.kill(child.pid, signal.SIGCONT)
        child.kill()
        child.communicate()
    monkeypatch.setattr(sidecar, "PAUSE_S", 0.0)
    fresh = rc.open_workspace("w")
    assert index_of(fresh).catch_up(fresh.cut())
    assert index_of(fresh).compare(fresh.cut()) is None
    ws.close()


def test_a_forked_child_reads_with_a_connection_of_its_own() -> None:
    out = run_python(
        """
import os
import recollect as rc
from recollect.hot.read import catalog
catalog.TAIL_ROWS = catalog.TAIL_FACTS = 0
ws = rc.create_workspace("f", rc.Schema({"uid": rc.Tensor("int64")}), durability="process")
writer = ws.writer()
for k in range(200):
    with writer.episode(id=f"t{k}") as episode:
        episode.append(uid=k, terminated=True)
assert ws.episode("t7")["uid"].tolist() == [7]
mine = ws._hot().catalog.file._connection
children = []
for c in range(3):
    child = os.fork()
    if not child:
        for k in range(c, 200, 3):
            assert ws.episode(f"t{k}")["uid"].tolist() == [k]
        assert ws._hot().catalog.file._connection is not mine
        os._exit(0)
    children.append(child)
for k in range(200):
    with writer.episode(id=f"u{k}") as episode:
        episode.append(uid=k, terminated=True)
    assert ws.episode(f"u{k}")["uid"].tolist() == [k]
assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
assert ws._hot().catalog.file._connection is mine
assert ws._hot().catalog.compare(ws.cut()) is None
print("fine")
"""
    )
    assert out == "fine\n"


def test_a_fork_does_not_keep_the_lock() -> None:
    out = run_python(
        """
import os, signal
import recollect as rc
ws = rc.create_workspace("f", rc.Schema({"uid": rc.Tensor("int64")}), durability="process")
with ws.writer() as writer, writer.episode(id="a") as episode:
    episode.append(uid=1)
file = ws._hot().catalog.file
ready, told = os.pipe()
def forks(connection):
    child = os.fork()
    if not child:
        os.write(told, b"x")
        signal.pause()
    return child
child = file.write(forks)
os.read(ready, 1)
print(ws._hot().catalog.catch_up(ws.cut()))
os.kill(child, signal.SIGKILL)
os.waitpid(child, 0)
"""
    )
    assert out == "True\n"


def test_an_index_of_more_than_the_logs_hold_is_not_believed(eager: None, tmp_path: Path) -> None:
    """A restored backup, like a log that was cut after a power cut, has less than the index says."""
    ws = rc.create_workspace("w", SCHEMA)
    load = Workload(ws, 21)
    load.run(15)
    for writer in load.writers:
        writer.sync()
    shutil.copytree(ws.path / "log", tmp_path / "backup")
    kept = ws.cut().rows
    load.run(25)
    assert index_of(ws).catch_up(ws.cut())
    ws.close()
    shutil.rmtree(ws.path / "log")
    shutil.copytree(tmp_path / "backup", ws.path / "log")
    again = rc.open_workspace("w")
    assert again.cut().rows == kept
    assert_equals_a_scan(again)
    assert index_of(again).catch_up(again.cut())
    assert index_of(again).compare(again.cut()) is None
    assert_equals_a_scan(again)


def test_evicted_rows_are_not_there_and_do_not_pile_up(eager: None) -> None:
    """Retention moves the start of an extent; what is before it is nobody's row any more."""
    ws = _filled()
    index, view = index_of(ws), ws.view()
    (extent,) = ws.cut().extents
    assert index.catch_up(ws.cut())
    whole = _entries(ws)
    for start in (5, 1000, 2000):
        cut = rc.Cut((extent._replace(start=start),), ws.cut().facts)
        for key in map(rc.EpisodeKey._make, view.episodes.keys[:: 40 if start > 5 else 1].tolist()):
            seqs = view.rows.ids(view.episodes.rows_of(key))["seq"]
            mine = index.rows_of(key, cut)
            assert [s for e in mine.extents for s in range(e.start, e.stop)] == seqs[seqs >= start].tolist()
            assert sum(high - low for _, low, high in mine.pieces) == (seqs >= start).sum()
        assert index.compare(cut) is None
    with ws.writer() as writer, writer.episode() as episode:
        for uid in range(50):
            episode.append(**step_of(uid))
    now = ws.cut()
    assert index.catch_up(rc.Cut(tuple(e._replace(start=2000) if e == extent else e for e in now.extents), now.facts))
    assert _entries(ws) < whole / 2
    ws.close()


DIES = """
import os
import recollect as rc
ws = rc.open_workspace("w")
writer = ws.writer(durability="process")
bare = writer.episode(id="bare")
step = dict(observation=[1.0, 2.0], uid=1)
ended, judged, never = (writer.episode(id=n) for n in ("ended", "judged", "never"))
bare.append(**step)
ended.append(**step, terminated=True)
judged.append(**step)
judged.finish(status="fine")
os.kill(os.getpid(), 9)
"""


def test_what_a_killed_writer_left_open_was_interrupted() -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        child = python(DIES)
        child.communicate(timeout=60)
        living = ws.writer().episode(id="living")
        living.append(**step_of(0))
        before = ws.episode("bare")
        assert "status" not in before.facts and not before.derived
        assert ws.stats().interrupted == 0
        for reader in (rc.open_workspace("w"), ws):
            got = reader.episode("bare")
            assert got.facts["status"] == "interrupted" and got.derived == {"status"}
            assert all("status" not in fact.values for fact in got.history)
            assert reader.episode("judged").facts["status"] == "fine" and not reader.episode("judged").derived
            for name in ("ended", "never", "living"):
                assert "status" not in reader.episode(name).facts
            assert reader.stats().interrupted == 1
        ws.annotate("bare", status="recovered")
        assert ws.episode("bare").facts["status"] == "recovered"
        assert ws.stats().interrupted == 0
        with ws.writer() as writer, writer.episode(id="left") as episode:
            episode.append(**step_of(1))
        assert ws.episode("left").facts["status"] == "interrupted" and not ws.episode("left").derived
        assert ws.stats().interrupted == 1


def test_a_reader_between_a_commit_and_the_next_look_finds_no_row_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(catalog, "TAIL_ROWS", 8)
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer, writer.episode("e", task="t") as episode:
        for uid in range(40):
            episode.append(**step_of(uid))
        key = ws.episode("e").key
        for uid in range(40, 45):
            episode.append(**step_of(uid))
        older = ws.cut()
        for uid in range(45, 80):
            episode.append(**step_of(uid))
        index, found = index_of(ws), []
        real = index.file.write

        def write(change: Callable[[sqlite3.Connection], Any]) -> Any:
            out = real(change)
            found.append(index.rows_of(key, older))  # another thread, before this one goes on
            return out

        monkeypatch.setattr(index.file, "write", write)
        assert len(ws.episode("e")) == 80
        assert found
        for own in found:
            assert (
                sum(stop - start for _, start, stop in own.pieces) == 45 == sum(e.stop - e.start for e in own.extents)
            )


def test_spans_that_overlap_are_not_believed(eager: None) -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer, writer.episode("e", task="t") as episode:
        for uid in range(40):
            episode.append(**step_of(uid))
        assert index_of(ws).catch_up(ws.cut())
        key = ws.episode("e").key
        assert index_of(ws).file.write(lambda c: c.execute("UPDATE spans SET stop = stop + 4 WHERE chunk = 0").rowcount)
        own = index_of(ws).rows_of(key, ws.cut())
        assert sum(stop - start for _, start, stop in own.pieces) == 40
