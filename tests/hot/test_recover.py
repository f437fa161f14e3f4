"""What a log is worth after its writer died: counts from whole frames, damage found when it is read, tails kept."""

from __future__ import annotations

import json
import os
import shutil
import struct
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors
from recollect.hot.format.fields import OpenEpisode
from recollect.hot.format.files import is_locked, lock_when_free, locked, try_lock
from recollect.hot.format.layouts import Layouts
from recollect.hot.format.segment import Segment
from recollect.hot.format.tails import TailLanes
from recollect.hot.recovery.recover import recover
from recollect.hot.write import growing
from recollect.hot.write.growing import GATE
from recollect.hot.write.writer import Writer
from recollect.records.layout import Layout
from recollect.view import EpisodeKey, Extent
from tests.support import python, run_python

FIELDS: dict[str, Any] = {
    "observation": rc.Tensor("float32", (2,)),
    "picture": rc.Frames((4, 4), optional=True),
    "note": rc.Text(optional=True),
}
SCHEMA = rc.Schema(FIELDS)
LAYOUT = Layout.of(SCHEMA)
LAYOUTS = Layouts({1: SCHEMA}.get)


def _fill(writer: Writer, n: int = 12) -> None:
    with writer.episode("a") as episode:
        for i in range(n):
            picture = np.full((4, 4), i, np.uint8) if i % 2 else None
            episode.append(observation=[i, i], note="x" * i, picture=picture)
        episode.finish(reward=1.0)


def _log(ws: rc.Workspace) -> Path:
    return next((ws.path / "log").glob("[0-9a-f]*"))


def _rewrite(path: Path, change: Callable[[bytearray], None]) -> None:
    data = bytearray(path.read_bytes())
    change(data)
    path.unlink()
    path.write_bytes(data)


def _flip(at: int) -> Callable[[bytearray], None]:
    def change(data: bytearray) -> None:
        data[at] ^= 0xFF

    return change


def _closed(tmp_path: Path) -> tuple[rc.Workspace, Segment]:
    with rc.create_workspace(tmp_path / "w", SCHEMA) as ws, ws.writer() as writer:
        _fill(writer)
    ws = rc.open_workspace(tmp_path / "w")
    return ws, Segment.open_(_log(ws) / "00000000.seg", LAYOUTS)


@pytest.mark.parametrize("where", ["record", "plane", "heap"])
def test_a_damaged_row_is_refused_and_those_before_it_are_read(tmp_path: Path, where: str) -> None:
    ws, segment = _closed(tmp_path)
    at = {
        "record": segment.records_at + 7 * LAYOUT.itemsize + LAYOUT.offset("/observation"),
        "plane": segment.planes["picture"].ctypes.data - np.frombuffer(segment.map, np.uint8).ctypes.data + 3 * 16,
        "heap": segment.heap_at + int(segment.records["heap_at"][7]),
    }[where]
    _rewrite(segment.path, _flip(at))
    ws = rc.open_workspace(ws.path)
    writer = segment.header.writer
    with pytest.raises(errors.CorruptionError, match=f"row {writer}:7 .* does not have the checksum"):
        ws.view()
    assert len(ws.view(rc.Cut((Extent(writer, 0, 7),), ())).rows) == 7


def test_a_damaged_fact_is_refused(tmp_path: Path) -> None:
    ws, segment = _closed(tmp_path)
    _rewrite(segment.path, _flip(segment.heap_at + int(segment.facts["heap_at"][1]) + 3))
    with pytest.raises(errors.CorruptionError, match=r"fact \d+:1 "):
        rc.open_workspace(ws.path).episode("a")


@pytest.mark.parametrize("counter", [0, 3, 1 << 40])
def test_the_counter_of_a_sealed_log_is_not_believed(tmp_path: Path, counter: int) -> None:
    ws, segment = _closed(tmp_path)
    at = segment.records_at - 2 * 4096

    def change(data: bytearray) -> None:
        data[at : at + 8] = counter.to_bytes(8, "little")

    _rewrite(segment.path, change)
    assert len(rc.open_workspace(ws.path).view().rows) == 12


@pytest.mark.parametrize(
    "text", [b"", b"{", b"[]", b"3", b'{"rows": 1}', b"\xff\xfe", b'{"rows":1,"facts":0,"segments":1,"crc":5}']
)
def test_a_damaged_seal_is_made_anew(tmp_path: Path, text: bytes) -> None:
    ws, _ = _closed(tmp_path)
    before = json.loads((_log(ws) / "sealed.json").read_bytes())
    (_log(ws) / "sealed.json").write_bytes(text)
    again = rc.open_workspace(ws.path)
    assert [(r.rows, r.lost) for r in again.recovered] == [(12, None)]
    assert len(again.view().rows) == 12
    after = json.loads((_log(ws) / "sealed.json").read_bytes())
    assert (after["rows"], after["facts"], after["segments"]) == (before["rows"], before["facts"], before["segments"])


def test_a_seal_that_is_damaged_under_an_open_handle_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    ws, _ = _closed(tmp_path)
    (_log(ws) / "sealed.json").write_bytes(b"{}")
    with pytest.raises(errors.CorruptionError, match="sealed anew"):
        ws.view()


def test_a_missing_segment_of_a_sealed_log_is_an_error(tmp_path: Path) -> None:
    ws, segment = _closed(tmp_path)
    segment.path.unlink()
    segment.path.with_name("00000000.seg").write_bytes(b"")
    with pytest.raises(errors.CorruptionError, match="cut short"):
        rc.open_workspace(ws.path).view()


def test_of_a_copied_log_the_rows_below_its_durable_point_are_checked_too(tmp_path: Path) -> None:
    with rc.create_workspace(tmp_path / "w", SCHEMA) as ws, ws.writer(durability="process") as writer:
        _fill(writer)
        writer.sync()
        shutil.copytree(ws.path, tmp_path / "copy")
        segment = Segment.open_(tmp_path / "copy" / "log" / _log(ws).name / "00000000.seg", LAYOUTS)
        _rewrite(segment.path, _flip(segment.records_at + 4 * LAYOUT.itemsize + 40))
        copied = rc.open_workspace(tmp_path / "copy")
        (found,) = copied.recovered
        assert (found.rows, found.lost) == (4, Extent(writer.id, 4, 12))
        assert len(copied.view().rows) == 4
        assert [(w.visible, w.lost) for w in copied.stats().writers] == [(4, 8)]
        assert recover(tmp_path / "copy" / "log", LAYOUTS) == []


def test_recovery_reads_only_what_was_not_durable(tmp_path: Path) -> None:
    with rc.create_workspace(tmp_path / "w", SCHEMA) as ws:
        child = python(
            f"""
import sys
import recollect as rc
ws = rc.open_workspace({str(ws.path)!r})
writer = ws.writer(durability="process")
with writer.episode() as episode:
    for i in range(50):
        episode.append(observation=[i, i])
        if i == 39:
            writer.sync()
    print("ready", flush=True)
    sys.stdin.read()
"""
        )
        assert child.stdout is not None
        child.stdout.readline()
        child.kill()
        child.communicate()
        (found,) = rc.open_workspace(ws.path).recovered
        assert (found.rows, found.checked, found.lost) == (50, 10, None)


# -- tails -----------------------------------------------------------------------------------------------------


def test_no_slot_is_overwritten_that_a_power_cut_could_bring_back(tmp_path: Path) -> None:
    """Any order of tails and syncs: the newest tail of the last completed sync, and of one under way, stay. A sync may
    begin between an append's choice of a slot and its publication."""
    rng = np.random.default_rng(3)
    layout = Layout.of(rc.Schema({"observation": rc.Tensor("float32", ())}))
    tails = TailLanes(tmp_path, layout)
    tails.ensure(2)
    lanes: list[Any] = [OpenEpisode(EpisodeKey(1, k)) for k in range(2)]
    content: dict[int, int] = {}
    newest: dict[int, int] = {}
    durable: dict[int, int] = {}
    covered: dict[int, int] = {}
    published, syncing = 0, False
    for episode in lanes:
        tails.take(episode)

    def begin() -> None:
        nonlocal syncing, covered
        tails.sync_begins(memoryview(struct.pack("4Q", published - 7, 0, 0, 7)).cast("Q"))
        syncing, covered = True, {k: row for k, row in newest.items() if row < published}

    published = 7
    for _ in range(20_000):
        move = rng.integers(6)
        if move == 0 and not syncing:
            begin()
        elif move == 1 and syncing:
            tails.sync_completed()
            syncing, durable = False, covered
        elif move == 2:
            k = int(rng.integers(2))
            tails.give_back(lanes[k])
            tails.take(lanes[k])
        else:
            k = int(rng.integers(2))
            row = published
            tails.turn(lanes[k], row)
            before = newest.get(k)
            if rng.integers(8) == 0 and not syncing:
                begin()  # does not count the row that is being written
            content[tails.slot(lanes[k])[1]] = row
            newest[k] = row
            assert before is None or before in content.values()
            published += 1
        for kept in (*newest.values(), *durable.values(), *(covered.values() if syncing else ())):
            assert kept in content.values()


def test_a_synced_waiting_observation_survives_a_power_cut_after_many_more_appends(tmp_path: Path) -> None:
    """The disk after the cut: the segment as it was at the sync, the tails file with every later page written back."""
    with rc.create_workspace(tmp_path / "w", SCHEMA) as ws, ws.writer(durability="process") as writer:
        episode = writer.episode()
        episode.append(observation=[0, 0], next_observation=[1, 1])
        episode.append(observation=[1, 1], next_observation=[2, 2])
        writer.sync()
        shutil.copytree(ws.path, tmp_path / "cut")
        for i in range(2, 9):
            episode.append(observation=[i, i], next_observation=[i + 1, i + 1])
        shutil.copy(_log(ws) / "00000000.tails", tmp_path / "cut" / "log" / _log(ws).name)
        cut = rc.open_workspace(tmp_path / "cut")
        view = cut.view()
        assert len(view) == 2
        after = view.rows.gather(view.episodes.next_observation(np.arange(2)), ("observation",))["observation"]
        assert after.tolist() == [[1, 1], [2, 2]]


def test_damaged_tails_are_reported_by_recovery_and_refused_later(tmp_path: Path) -> None:
    with rc.create_workspace(tmp_path / "w", SCHEMA) as ws, ws.writer() as writer:
        episode = writer.episode()
        episode.append(observation=[0, 0], next_observation=[1, 1])
        for name in ("early", "late"):
            shutil.copytree(ws.path, tmp_path / name)
    for name in ("early", "late"):
        tails = next((tmp_path / name / "log").glob("*/*.tails"))
        if name == "late":
            assert rc.open_workspace(tmp_path / name).recovered[0].lost_tails == 0
        where = tails.read_bytes().index(np.float32(1).tobytes() * 2)
        _rewrite(tails, _flip(where))
        if name == "early":
            copied = rc.open_workspace(tmp_path / name)
            assert copied.recovered[0].lost_tails == 1
            assert (len(copied.view()), copied.view().anchors.undrawable_open) == (0, 1)
        else:
            with pytest.raises(errors.CorruptionError, match="waits after step"):
                rc.open_workspace(tmp_path / name).view()


# -- locks -----------------------------------------------------------------------------------------------------


def test_asking_whether_a_lock_is_held_does_not_look_like_holding_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    lock = try_lock(path)
    assert lock is not None and is_locked(path) and lock_when_free(path) is None
    lock.close()
    with locked(path, 1.0, shared=True), locked(path, 1.0, shared=True):
        assert not is_locked(path)
    with (
        locked(path, 1.0),
        pytest.raises(errors.ConflictError, match="has held"),
        locked(path, 0.05),
    ):
        pass


def test_a_workspace_is_not_deleted_while_a_writer_starts(tmp_path: Path) -> None:
    ws = rc.create_workspace(tmp_path / "w", SCHEMA)
    gate = locked(ws.path / "log" / GATE, 1.0, shared=True)
    gate.__enter__()
    thread = threading.Thread(target=rc.delete_workspace, args=(tmp_path / "w",))
    thread.start()
    time.sleep(0.1)
    assert thread.is_alive() and ws.path.exists()
    gate.__exit__(None, None, None)
    thread.join()
    assert not ws.path.exists()
    with pytest.raises(errors.NotFound, match="was deleted"):
        ws.writer()


def test_folders_of_writers_that_died_before_they_had_a_log_go_in_time(tmp_path: Path) -> None:
    with rc.create_workspace(tmp_path / "w", SCHEMA) as ws, ws.writer() as writer:
        old, young = (ws.path / "log" / f".{name}.new" for name in ("00000000000000aa", "00000000000000bb"))
        for folder in (old, young):
            folder.mkdir()
            (folder / "lock").touch()
        os.utime(old, (1, 1))
        _fill(writer)
        other = rc.open_workspace(ws.path)
        assert len(other.view().rows) == 12
        assert (old.exists(), young.exists()) == (False, True)


def test_a_forked_child_reads_and_writes_though_a_thread_held_the_handle(tmp_path: Path) -> None:
    with rc.create_workspace(tmp_path / "w", SCHEMA) as ws, ws.writer() as writer:
        _fill(writer)
        store = ws._hot()
        held, leave = threading.Event(), threading.Event()

        def hold() -> None:
            with store._lock, ws._lock:
                held.set()
                leave.wait(30)

        thread = threading.Thread(target=hold)
        thread.start()
        held.wait()
        pid = os.fork()
        if not pid:
            ok = len(ws.view().rows) == 12
            ws.annotate("a", lesson="from the child")
            with ws.writer() as mine, mine.episode("b") as episode:
                episode.append(observation=[0, 0])
            ok = ok and ws.episode("a").facts["lesson"] == "from the child" and len(ws.episode("b")) == 1
            ws.close()
            os._exit(0 if ok else 1)
        leave.set()
        thread.join()
        assert os.waitpid(pid, 0)[1] == 0
        assert ws.episode("a").facts["lesson"] == "from the child"


def test_a_reader_of_many_logs_is_not_stopped_by_the_soft_limit_of_descriptors(tmp_path: Path) -> None:
    with rc.create_workspace(tmp_path / "w", SCHEMA) as ws:
        for i in range(40):
            with ws.writer(durability="process") as writer, writer.episode() as episode:
                episode.append(observation=[i, i])
        script = f"""
import resource
import recollect as rc
ws = rc.open_workspace({str(ws.path)!r})
resource.setrlimit(resource.RLIMIT_NOFILE, (24, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
print(sum(w.visible for w in ws.stats().writers))
"""
        assert run_python(script).strip() == "40"


@pytest.mark.parametrize("version", [1, 2])
def test_a_schema_that_is_missing_beside_logs_is_damage_and_nobody_fixes_another(tmp_path: Path, version: int) -> None:
    with rc.create_workspace(tmp_path / "w", SCHEMA) as ws, ws.writer() as writer:
        _fill(writer)
        if version == 2:
            ws.evolve(rc.Schema({**FIELDS, "more": rc.Text(optional=True)}))
    handle = rc.open_workspace(tmp_path / "w")
    (ws.path / "schema.json").unlink()
    with pytest.raises(errors.CorruptionError, match=r"schema.json is missing, but logs are there"):
        rc.open_workspace(ws.path)
    other = rc.Schema({"observation": rc.Tensor("int8", (1,))})
    for schema in (other, SCHEMA):
        with pytest.raises(errors.CorruptionError, match=r"schema.json is missing"):
            handle.writer(schema=schema)
    with pytest.raises(errors.CorruptionError, match=r"schema.json is missing"):
        handle.evolve(other)
    assert not (ws.path / "schema.json").exists()
    report = handle.verify()
    assert not report.ok and [p.where for p in report.problems if p.level == "lost"] == ["schema.json"]


def test_what_lies_beside_the_logs_is_no_log(tmp_path: Path) -> None:
    ws = rc.create_workspace(tmp_path / "w", SCHEMA)
    (ws.path / "log" / "README").write_text("logs")
    (ws.path / "log" / "lost+found").mkdir()
    (ws.path / "log" / "0123456789abcdef").write_text("a file")
    with ws.writer() as writer:
        _fill(writer)
        assert len(ws.recent(1)) == 1
        assert ws.stats().writers
        with pytest.raises(errors.WriterError):
            rc.delete_workspace(ws.path)
    again = rc.open_workspace(ws.path)
    assert len(again.recent(100)) == 12
    assert again.verify().ok
    assert not list((ws.path / "log" / "lost+found").iterdir())
    rc.delete_workspace(ws.path)


def test_a_forked_child_reads_though_a_thread_looked_for_a_schema(tmp_path: Path) -> None:
    with rc.create_workspace(tmp_path / "w", SCHEMA) as ws:
        with ws.writer() as writer:
            _fill(writer)
        ws.recent(1)
        layouts = ws._hot().layouts
        with layouts._lock:  # as when another thread was within `refresh`
            pid = os.fork()
            if pid == 0:
                free = layouts._lock.acquire(timeout=5)
                if free:
                    layouts._lock.release()
                os._exit(0 if free and len(ws.recent(1)) == 1 else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize("sealed", [True, False])
def test_a_missing_segment_is_not_passed_over(
    number: int, sealed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growing, "SEGMENT_BYTES", (1 << 14,))
    with rc.create_workspace(tmp_path / "w", SCHEMA) as ws:
        with ws.writer() as writer, writer.episode() as episode:
            for k in range(1000):
                episode.append(observation=[k, k])
        with ws.writer() as writer, writer.episode() as episode:
            episode.append(observation=[1, 1])
        log = ws.path / "log" / f"{next(e.writer for e in ws.cut().extents if e.stop >= 1000):016x}"
    assert len(list(log.glob("*.seg"))) > 2
    (log / f"{number:08d}.seg").unlink()
    if sealed:
        with rc.open_workspace(tmp_path / "w") as ws:
            for read in (ws.cut, ws.stats, lambda: ws.recent(1), lambda: ws.snapshot(tmp_path / "b")):
                with pytest.raises(errors.CorruptionError, match=f"segment {number} of writer"):
                    read()
    else:
        (log / "sealed.json").unlink()
        with rc.open_workspace(tmp_path / "w") as ws:
            (done,) = ws.recovered
            assert done.lost is not None and done.lost.stop == 1000 and done.lost_segments
            (told,) = (w for w in ws.stats().writers if w.writer == done.writer)
            assert told.lost == done.lost_rows and len(ws.view().rows) == 1 + done.rows
            if number == 0:
                assert done.rows == 0
