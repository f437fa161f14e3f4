"""verify: every planted damage found, and its rows named."""

from __future__ import annotations

import json
import os
import random
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect.hot.format.layouts import Layouts
from recollect.hot.format.segment import ROWS_MASK, Segment
from recollect.hot.write import growing
from recollect.recall.verify import verify
from recollect.records.layout import column
from tests.hot.checked import ROWS, SCHEMA, assert_silent, closed_workspace, log_of, step_of


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing, "SEGMENT_BYTES", (1 << 13,))


@pytest.fixture
def closed(small_segments: None) -> Path:
    """A workspace with one sealed log of several segments, and both indexes."""
    return closed_workspace()


def _segment(path: Path, number: int = 1) -> Segment:
    return Segment.open_(sorted(log_of(path).glob("*.seg"))[number], Layouts({1: SCHEMA}.get))


def _flip(path: Path, at: int, bit: int = 0) -> None:
    with path.open("r+b") as f:
        f.seek(at)
        (byte,) = f.read(1)
        f.seek(at)
        f.write(bytes([byte ^ 1 << bit]))


def _store(path: Path, at: int, data: bytes) -> None:
    with path.open("r+b") as f:
        f.seek(at)
        f.write(data)


def _in_record(path: Path) -> tuple[Path, set[int]]:
    segment = _segment(path)
    row = 7
    at = segment.records_at + row * segment.layout.itemsize + segment.layout.offset(column("uid")) + 2
    return _damaged(segment, at, row)


def _in_header_columns(path: Path) -> tuple[Path, set[int]]:
    segment = _segment(path)
    at = segment.records_at + 3 * segment.layout.itemsize + segment.layout.offset("seq")
    return _damaged(segment, at, 3)


def _in_frame(path: Path) -> tuple[Path, set[int]]:
    segment = _segment(path)
    at = segment.records_at + 5 * segment.layout.itemsize + segment.layout.offset("frame")
    return _damaged(segment, at, 5)


def _in_plane(path: Path) -> tuple[Path, set[int]]:
    segment = _segment(path)
    plane = int(segment.records[column("picture")][4])
    at = segment.planes["picture"].ctypes.data - np.frombuffer(segment.map, np.uint8).ctypes.data + 3 * plane
    return _damaged(segment, at, 4)


def _in_heap(path: Path) -> tuple[Path, set[int]]:
    segment = _segment(path)
    return _damaged(segment, segment.heap_at + int(segment.records[column("note")]["at"][6]) + 1, 6)


def _damaged(segment: Segment, at: int, row: int) -> tuple[Path, set[int]]:
    _flip(segment.path, at, 3)
    return segment.path, {segment.header.first_row + row}


@pytest.mark.parametrize("plant", [_in_record, _in_header_columns, _in_frame, _in_plane, _in_heap])
def test_a_flip_in_a_row_is_found_and_the_row_named(closed: Path, plant: Callable[[Path], Any]) -> None:
    file, rows = plant(closed)
    report = verify(closed)
    (problem, *rest) = (p for p in report.problems if p.level == "lost")
    assert not rest and not report.ok
    assert problem.where.endswith(file.name) and "checksum" in problem.what and problem.remedy
    assert {r for e in problem.rows for r in range(e.start, e.stop)} == rows
    assert report.rows == 405 - len(rows)


def test_flips_in_blocks_cost_their_frame_only() -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer(durability="process") as writer:
        for k in range(5):
            writer.extend(
                {"episode": [k] * 10, "step": range(10), "observation": np.ones((10, 2), np.float32),
                 "uid": np.arange(10)}
            )  # fmt: skip
    segment = _segment(ws.path, 0)
    for row in (13, 15, 30):
        _flip(segment.path, segment.records_at + row * segment.layout.itemsize + segment.layout.offset(column("uid")))
    (problem,) = verify(ws.path).problems
    assert [(e.start, e.stop) for e in problem.rows] == [(10, 20), (30, 40)]


@pytest.mark.parametrize("part", ["record", "heap"])
def test_a_flip_in_a_fact_is_found(closed: Path, part: str) -> None:
    segment = _segment(closed)
    fact = segment.facts[2]
    base = segment.facts.ctypes.data - np.frombuffer(segment.map, np.uint8).ctypes.data
    at = base + 2 * segment.facts.itemsize + 40 if part == "record" else segment.heap_at + int(fact["heap_at"]) + 3
    name = f"{fact['writer']}:{fact['seq']}"
    _flip(segment.path, at)
    lost = [p for p in verify(closed).problems if p.level == "lost"]
    assert len(lost) == 1 and name in lost[0].what


@pytest.mark.parametrize("where", ["magic", "size", "body", "checksum"])
def test_a_flip_in_a_segments_header_is_found(closed: Path, where: str) -> None:
    segment = _segment(closed)
    _flip(segment.path, {"magic": 1, "size": 8, "checksum": 13, "body": 60}[where])
    report = verify(closed)
    assert any(p.level == "lost" and p.where.endswith(segment.path.name) for p in report.problems)


@pytest.mark.parametrize("keep", [0, 100, 5000, 12_000])
def test_a_segment_cut_short_is_found(closed: Path, keep: int) -> None:
    segment = _segment(closed)
    os.truncate(segment.path, keep)
    assert any(p.level == "lost" and p.where.endswith(segment.path.name) for p in verify(closed).problems)


@pytest.mark.parametrize("which", [0, 1, -1])
def test_a_missing_segment_is_found_and_its_rows_named(closed: Path, which: int) -> None:
    files = sorted(log_of(closed).glob("*.seg"))
    segment = Segment.open_(files[which], Layouts({1: SCHEMA}.get))
    first, count = segment.header.first_row, segment.word & ROWS_MASK
    files[which].unlink()
    lost = [p for p in verify(closed).problems if p.level == "lost"]
    assert [(e.start, e.stop) for p in lost for e in p.rows] == [(first, first + count)]


def test_swapped_segments_are_found(closed: Path) -> None:
    one, two = sorted(log_of(closed).glob("*.seg"))[1:3]
    spare = one.with_name("spare")
    one.rename(spare)
    two.rename(one)
    spare.rename(two)
    assert sum("belongs elsewhere" in p.what for p in verify(closed).problems) == 2


def test_a_counter_that_is_wrong_is_harmless_once_the_log_is_sealed(closed: Path) -> None:
    segment = _segment(closed, -1)
    control = segment.control.ctypes.data - np.frombuffer(segment.map, np.uint8).ctypes.data
    _flip(segment.path, control)
    report = verify(closed)
    assert report.ok
    (problem,) = (p for p in report.problems if p.where.endswith(".seg"))
    assert problem.level == "harmless" and "counter" in problem.what


@pytest.fixture
def unsealed(small_segments: None) -> Iterator[Path]:
    """A log whose writer died: an unlocked copy of a live one, taken when all was synced."""
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer(durability="process") as writer:
        episode = writer.episode()
        for uid in range(100):
            episode.append(**step_of(uid), next_observation=np.ones(2, np.float32))
        writer.sync()
        shutil.copytree(ws.path, ws.path.with_name("copy"))
    yield ws.path.with_name("copy")


def _control(path: Path) -> tuple[Segment, int]:
    segment = _segment(path, -1)
    return segment, segment.control.ctypes.data - np.frombuffer(segment.map, np.uint8).ctypes.data


def test_the_unsealed_copy_is_fine(unsealed: Path) -> None:
    report = verify(unsealed)
    assert_silent(report)
    assert report.unsealed == 1


@pytest.mark.parametrize("word", [0, 1, (1 << 31) - 1, (5 << 32) | 3])
def test_a_counter_that_is_wrong_is_found_before_the_log_is_sealed(unsealed: Path, word: int) -> None:
    segment, at = _control(unsealed)
    assert segment.word & ROWS_MASK > 4
    _store(segment.path, at, word.to_bytes(8, "little"))
    assert not verify(unsealed).ok


def test_a_counter_of_facts_that_is_behind_is_found_and_the_indexes_are_made_again(closed: Path) -> None:
    (log_of(closed) / "sealed.json").unlink()
    assert_silent(verify(closed))
    segment, at = _control(closed)
    assert segment.word >> 32 > 2
    _store(segment.path, at + 4, bytes(4))
    report = verify(closed)
    (behind,) = (p for p in report.problems if "facts that are there" in p.what)
    assert behind.level == "repairable" and not report.ok
    for name in ("catalog.sqlite", "text.sqlite"):
        assert any(p.where == name for p in report.problems)
    with rc.open_workspace(closed) as ws:
        assert ws.verify().rows == 405 and ws.verify().ok and len(ws.similar("number 77"))


@pytest.mark.parametrize("more", ["rows", "facts"])
@pytest.mark.parametrize("index", ["catalog.sqlite", "text.sqlite"])
def test_an_index_that_says_more_than_the_logs_is_made_again(closed: Path, index: str, more: str) -> None:
    with sqlite3.connect(closed / index) as connection:
        connection.execute(f"UPDATE writers SET {more} = {more} + 1")
    connection.close()
    report = verify(closed)
    assert [(p.level, p.where) for p in report.problems] == [("repairable", index)]
    assert verify(closed).indexes == ("catalog.sqlite", "text.sqlite")
    assert verify(closed).ok


def test_a_counter_of_an_earlier_segment_that_is_wrong_is_found(unsealed: Path) -> None:
    segment = _segment(unsealed, 0)
    at = segment.control.ctypes.data - np.frombuffer(segment.map, np.uint8).ctypes.data
    _store(segment.path, at, (segment.word - 1).to_bytes(8, "little"))
    assert not verify(unsealed).ok


def _swap(log: Path) -> None:
    first, second = log / "00000000.seg", log / "00000001.seg"
    first.rename(log / "00000000.swapped")
    second.rename(first)
    (log / "00000000.swapped").rename(second)


def _unlink_all(log: Path) -> None:
    for path in log.glob("*.seg"):
        path.unlink()


@pytest.mark.parametrize(
    ("wound", "known", "segments"),
    [
        (lambda log: _flip(log / "00000000.seg", 40), True, 1),
        (lambda log: (log / "00000000.seg").unlink(), True, 1),
        (_swap, True, 0),
        (lambda log: _flip(max(log.glob("*.seg")), 40), False, 1),
        (_unlink_all, False, 1),
    ],
)
def test_what_recovery_cut_off_is_lost_and_told_for_ever(
    unsealed: Path, wound: Callable[[Path], Any], known: bool, segments: int
) -> None:
    rows = verify(unsealed).rows if known else 0
    wound(log_of(unsealed))
    assert {p.level for p in verify(unsealed).problems} & {"lost"}
    with rc.open_workspace(unsealed) as ws:
        (recovery,) = ws.recovered
        assert (recovery.lost_rows, recovery.lost_segments) == (rows, segments)
    for _ in range(2):
        report = verify(unsealed)
        assert not report.ok
        (problem,) = (p for p in report.problems if p.where.endswith("sealed.json"))
        assert problem.level == "lost" and problem.what.startswith("recovery cut it off")
        assert sum(e.stop - e.start for e in problem.rows) == rows
        left = {p.name for p in log_of(unsealed).glob("*.seg")}
        beyond = {p.where.rpartition("/")[2] for p in report.problems if "beyond" in p.what}
        assert beyond == {name for name in left if known or name == max(left)}


def test_a_segment_beyond_the_seal_is_found(closed: Path) -> None:
    log = log_of(closed)
    count = len(list(log.glob("*.seg")))
    shutil.copy(log / "00000000.seg", log / f"{count:08d}.seg")
    (problem,) = verify(closed).problems
    assert problem.level == "lost" and problem.where.endswith(f"{count:08d}.seg")


def test_a_missing_mark_that_the_log_goes_on_is_found(unsealed: Path) -> None:
    segment = _segment(unsealed, 0)
    at = segment.control.ctypes.data - np.frombuffer(segment.map, np.uint8).ctypes.data
    _store(segment.path, at + 8, bytes(8))
    (problem,) = verify(unsealed).problems
    assert problem.level == "repairable" and "follows" in problem.what


def test_a_waiting_observation_that_is_gone_is_found(unsealed: Path) -> None:
    tails = sorted(log_of(unsealed).glob("*.tails"))
    assert tails
    for file in tails:
        file.write_bytes(bytes(file.stat().st_size))
    (problem,) = verify(unsealed).problems
    assert problem.level == "lost" and "waited" in problem.what and len(problem.rows) == 1
    os.truncate(tails[0], 5000)
    assert any("cut short" in p.what for p in verify(unsealed).problems)


@pytest.mark.parametrize("synced", [True, False])
def test_a_waiting_observation_that_is_damaged_after_recovery_or_was_synced_is_lost(
    synced: bool, tmp_path: Path
) -> None:
    schema = rc.Schema({"observation": rc.Tensor("float32", (2,))})
    with rc.create_workspace(tmp_path / "w", schema) as ws, ws.writer(durability="process") as writer:
        writer.episode().append(observation=[0, 0], next_observation=[1, 1])
        if synced:
            writer.sync()
        shutil.copytree(ws.path, tmp_path / "early")
        shutil.copytree(ws.path, tmp_path / "late")
    for name in ("early", "late"):
        if name == "late":
            rc.open_workspace(tmp_path / name).close()
        (tails,) = (tmp_path / name / "log").glob("*/*.tails")
        tails.write_bytes(bytes(tails.stat().st_size))
        if name == "early":
            levels = {p.level for p in verify(tmp_path / name).problems if "waited after" in p.what}
            assert levels == ({"lost"} if synced else {"repairable"})
            rc.open_workspace(tmp_path / name).close()
        levels = {p.level for p in verify(tmp_path / name).problems if "waited after" in p.what}
        assert levels == ({"lost"} if synced or name == "late" else {"harmless"}), name


@pytest.mark.parametrize("text", ["", "{}", "not json", '{"rows": "many"}', "\x00\x00"])
def test_a_damaged_seal_is_found(closed: Path, text: str) -> None:
    (log_of(closed) / "sealed.json").write_text(text)
    report = verify(closed)
    assert any("seal" in p.what or "seal" in p.where for p in report.problems) and not report.ok


@pytest.mark.parametrize("name", ["workspace.json", "schema.json"])
def test_a_damaged_description_is_found(closed: Path, name: str) -> None:
    (closed / name).write_text("{")
    assert [p.where for p in verify(closed).problems] == [name]
    assert not verify(closed).ok


@pytest.mark.parametrize(
    ("index", "change", "what"),
    [
        ("catalog.sqlite", "UPDATE spans SET stop = stop + 1 WHERE episode = 3", "1 entries missing, 1"),
        ("catalog.sqlite", "DELETE FROM spans WHERE episode = 3", "1 entries missing, 0"),
        ("catalog.sqlite", "INSERT INTO spans VALUES (9, 9, 9, 9, 9, 9)", "0 entries missing, 1"),
        ("catalog.sqlite", "DELETE FROM facts WHERE seq = 3", "1 entries missing, 0"),
        ("catalog.sqlite", "UPDATE ids SET id = 'x' WHERE seq = 3", "1 entries missing, 1"),
        ("catalog.sqlite", "UPDATE writers SET rows = rows - 9", "extra"),
        ("text.sqlite", "DELETE FROM documents WHERE seq = 3 AND kind = 0", "missing, 0"),
        ("text.sqlite", "UPDATE documents SET seq = 9999 WHERE seq = 3 AND kind = 0", "missing"),
        ("text.sqlite", "INSERT INTO terms(rowid, text) VALUES (3, 'surplus')", "missing, 1"),
    ],
)
def test_a_wrong_index_is_found_and_made_again(closed: Path, index: str, change: str, what: str) -> None:
    with sqlite3.connect(closed / index) as connection:
        connection.execute(change)
    connection.close()
    (problem,) = verify(closed).problems
    assert (problem.level, problem.where) == ("repairable", index)
    assert what in problem.what or what == "extra"
    assert "made again" in problem.remedy
    assert_silent(verify(closed))
    with rc.open_workspace("w") as ws:
        assert ws.episode("e27")["uid"].tolist() == list(range(27, 36))
        assert ws.similar("number 31")[0]["uid"] == 31


@pytest.mark.parametrize("index", ["catalog.sqlite", "text.sqlite"])
@pytest.mark.parametrize("damage", ["noise", "half"])
def test_a_damaged_index_file_is_found_and_made_again(closed: Path, index: str, damage: str) -> None:
    data = (closed / index).read_bytes()
    noise = data[:4096] + random.Random(1).randbytes(len(data) - 4096)
    (closed / index).write_bytes(noise if damage == "noise" else data[: len(data) // 2])
    (problem,) = verify(closed).problems
    assert (problem.level, problem.where) == ("repairable", index)
    assert_silent(verify(closed))


def test_leftovers_are_told_and_harmless(closed: Path) -> None:
    (log_of(closed) / ".00000009.seg.new").write_bytes(b"x")
    closed.with_name(f".{closed.name}.deleted.1234abcd").mkdir()
    old = closed / ".schema.json.12.ab"
    old.write_bytes(b"{")
    os.utime(old, (0, 0))
    report = verify(closed)
    assert report.ok and len(report.problems) == 3
    assert all(p.level == "harmless" and p.remedy for p in report.problems)
    (closed / "log" / "something").mkdir()
    report = verify(closed)
    assert report.ok and "log/something" in {p.where for p in report.problems}
    assert report.indexes == ("catalog.sqlite", "text.sqlite")


def test_any_byte_of_a_segment_flipped_is_found_or_harmless(closed: Path) -> None:
    """Rows, facts, planes and heap that are in use have no byte that may change unseen."""
    rng = random.Random(7)
    segment = _segment(closed)
    whole = segment.path.read_bytes()
    for index in closed.glob("*.sqlite"):
        index.unlink()
    with rc.open_workspace("w") as ws:
        before = json.dumps([str(s.fields) for s in ws.recent(ROWS)])
    for _ in range(80):
        at, bit = rng.randrange(len(whole)), rng.randrange(8)
        _flip(segment.path, at, bit)
        report = verify(closed)
        if report.ok:
            with rc.open_workspace("w") as ws:
                assert json.dumps([str(s.fields) for s in ws.recent(ROWS)]) == before, at
        _flip(segment.path, at, bit)
    assert segment.path.read_bytes() == whole
