"""What was promoted may go, nothing else does, and no buffer is told a gap is whole."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors
from recollect.cold.dataset import Datasets
from recollect.cold.fold import Promotion, cut_of
from recollect.cold.location import Location
from recollect.hot.retention.evict import Eviction
from recollect.hot.write import growing
from recollect.promote.plan import missing, plan, watermark
from tests.support import all_ids, python, rows_of

SCHEMA = rc.Schema(
    {"observation": rc.Tensor("float32", (2,)), "reward": rc.Tensor("float32"), "uid": rc.Tensor("int64")},
    episode={"task": rc.Text()},
)
KEEP = rc.Keep(rows=300)
RING = rc.Keep(rows=300, unpromoted="drop")


@pytest.fixture(autouse=True)
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing, "SEGMENT_BYTES", (1 << 14,))


def _episodes(writer: rc.Writer, first: int, count: int, *, length: int = 30) -> None:
    for k in range(first, first + count):
        with writer.episode(task=f"t{k}") as episode:
            for i in range(length):
                uid = k * length + i
                episode.append(observation=[uid, i], reward=1.0, uid=uid, terminated=i == length - 1)


def _retention(ws: rc.Workspace) -> Any:
    found = ws.stats().retention
    assert found is not None
    return found


def _uids(view: rc.View) -> list[int]:
    found: list[int] = sorted(view.rows.gather(np.arange(len(view.rows)), ("uid",))["uid"].tolist())
    return found


# -- plans -------------------------------------------------------------------------------------------------------------


def _promotion(
    extents: list[tuple[int, int, int]], gaps: list[tuple[int, int, int]] | None = None, workspace: str = "w"
) -> Promotion:
    record = {
        "extents": [[str(w), a, b] for w, a, b in extents],
        "facts": [],
        "gaps": [[str(w), a, b] for w, a, b in gaps or []],
        "held": [],
    }
    return Promotion("p", "", "", 1, 0, workspace, "", 0, 0, record)


def test_a_gap_that_is_named_is_passed_and_one_that_is_not_is_corruption() -> None:
    first, named, silent = _promotion([(1, 0, 10)]), _promotion([(1, 25, 30)], [(1, 10, 25)]), _promotion([(1, 25, 30)])
    assert watermark([first, named])[1].rows == 30
    assert cut_of([first, named]).extents == (rc.Extent(1, 0, 10), rc.Extent(1, 25, 30))
    with pytest.raises(errors.CorruptionError):
        watermark([first, silent])
    with pytest.raises(errors.CorruptionError):
        watermark([first, _promotion([(1, 26, 30)], [(1, 10, 25)])])
    with pytest.raises(errors.CorruptionError):
        watermark([first, _promotion([(1, 25, 30)], [(2, 10, 25)])])


def test_a_plan_begins_where_the_log_does_and_names_what_is_before() -> None:
    cut = rc.Cut((rc.Extent(1, 25, 30), rc.Extent(2, 5, 9)), ())
    todo = plan(cut, watermark([_promotion([(1, 0, 10), (2, 0, 7)])]))
    assert todo.extents == (rc.Extent(1, 25, 30), rc.Extent(2, 7, 9))
    assert todo.gaps == (rc.Extent(1, 10, 25),)
    assert todo.rows == 7


def test_rows_that_are_missing_are_counted_over_logs_that_are_there_and_gone() -> None:
    chain = [_promotion([(1, 0, 10), (3, 0, 4)]), _promotion([(9, 0, 100)], workspace="other")]
    assert missing({1: 25, 2: 5}, 0, [], "w") == 30
    assert missing({1: 25, 2: 5}, 0, chain[:1], "w") == 20
    assert missing({1: 5}, 4, chain, "w") == 0
    assert missing({1: 25}, 40, chain, "w") == 15 + 36


# -- home --------------------------------------------------------------------------------------------------------------


def test_rows_go_once_the_home_buffer_has_them(tmp_path: Path) -> None:
    with rc.create_workspace("w", SCHEMA, keep=KEEP) as ws, ws.writer() as writer:
        _episodes(writer, 0, 50)
        before = rows_of(ws.view(), batch_size=256)
        one = ws.snapshot(tmp_path / "b", tag="one")
        assert (one.rows_added, one.gap_rows, one.note) == (1500, 0, "")
        assert one.evicted_rows > 1000
        assert ws.home == str(tmp_path / "b")
        assert len(ws.view().rows) == 1500 - one.evicted_rows >= 300
        kept = _retention(ws)
        assert (kept.evicted_rows, kept.dropped_rows, kept.over_limit, kept.problem) == (one.evicted_rows, 0, False, "")
        _episodes(writer, 50, 50)
        assert _retention(ws).over_limit
        two = ws.snapshot(tmp_path / "b", tag="two")
        assert (two.rows_added, two.rows, two.gap_rows) == (1500, 3000, 0)
        buffer = rc.open_buffer(tmp_path / "b")
        whole = buffer.at("two")
        assert set(Counter(all_ids(whole)).values()) == {1}
        assert _uids(whole) == list(range(3000))
        have = rows_of(whole, batch_size=256)
        assert {uid: have[uid] for uid in before} == before
        assert len(whole.facts.episodes) == 100
        assert buffer.versions()[-1].statistics["returns"]["count"] == 100
        hot, cold = ws.view(), buffer.at("two", cut=ws.cut())
        assert all_ids(hot) == all_ids(cold)
        assert rows_of(hot) == rows_of(cold)
        for key in hot.episodes.keys.tolist():
            assert hot.facts.episodes[rc.EpisodeKey(*key)] == cold.facts.episodes[rc.EpisodeKey(*key)]
        assert ws.snapshot(tmp_path / "b").rows_added == 0


@pytest.mark.parametrize("rounds", [6, pytest.param(60, marks=pytest.mark.torture)])
def test_the_disk_is_bounded_under_endless_writing_and_snapshots(rounds: int, tmp_path: Path) -> None:
    """Kept rows and two segments more per live writer, with one long-lived writer and one per episode beside it."""
    with rc.create_workspace("w", SCHEMA, keep=KEEP) as ws, ws.writer() as writer:
        sizes, at = [], 0
        for _ in range(rounds):
            for _ in range(5):
                _episodes(writer, at, 5)
                with ws.writer() as short:
                    _episodes(short, at + 5, 1)
                at += 6
            ws.snapshot(tmp_path / "b")
            sizes.append(sum(p.stat().st_size for p in (ws.path / "log").rglob("*") if p.is_file()))
        segment = len(writer._log.segment.map)
        assert max(sizes) <= segment * (300 // writer._log.segment.header.shape.rows + 12)
        assert max(sizes[len(sizes) // 2 :]) <= 1.2 * max(sizes[: len(sizes) // 2])
        assert _uids(rc.open_buffer(tmp_path / "b").at()) == list(range(30 * at))
        assert _retention(ws).dropped_rows == _retention(ws).dropped_facts == 0


def test_only_the_home_buffer_counts(tmp_path: Path) -> None:
    with rc.create_workspace("w", SCHEMA, keep=KEEP, home=tmp_path / "home") as ws, ws.writer() as writer:
        _episodes(writer, 0, 50)
        other = ws.snapshot(tmp_path / "other")
        assert (other.rows_added, other.evicted_rows) == (1500, 0)
        kept = _retention(ws)
        assert kept.over_limit and "no snapshot to the home buffer" in kept.problem
        assert [(t.uri, t.rows, t.home) for t in kept.targets] == [(str(tmp_path / "other"), 0, False)]
        assert ws.snapshot(tmp_path / "home").evicted_rows > 1000
        assert [t.home for t in _retention(ws).targets] == [True, False]


def test_a_buffer_behind_the_home_is_told_what_it_lacks(tmp_path: Path) -> None:
    with rc.create_workspace("w", SCHEMA, keep=KEEP) as ws:
        with ws.writer() as short:
            _episodes(short, 900, 1)
        writer = ws.writer()
        _episodes(writer, 0, 8)
        ws.snapshot(tmp_path / "home")
        first = ws.snapshot(tmp_path / "second")
        assert (first.rows_added, first.gap_rows, first.gap_facts) == (270, 0, 0)
        with ws.writer() as short:
            _episodes(short, 901, 2)
        _episodes(writer, 10, 60)
        assert ws.snapshot(tmp_path / "home").evicted_rows > 1000
        ws.retainer.close()
        left = len(ws.view().rows)
        assert [(t.home, t.rows > 0) for t in _retention(ws).targets] == [(True, False), (False, True)]
        second = ws.snapshot(tmp_path / "second", tag="two")
        assert second.gap_rows == 60 + 1800 - left
        assert second.rows_added == left and "were evicted" in second.message
        assert second.gap_facts > 0
        _episodes(writer, 70, 2)
        third = ws.snapshot(tmp_path / "second")
        assert (third.rows_added, third.gap_rows) == (60, 0), "a gap is told once"
        again = ws.snapshot(tmp_path / "second")
        assert (again.rows_added, again.gap_rows) == (0, 0)
        whole = rc.open_buffer(tmp_path / "second").at()
        assert set(Counter(all_ids(whole)).values()) == {1}
        assert len(whole.rows) == 270 + left + 60
        home = rows_of(rc.open_buffer(tmp_path / "home").at(), batch_size=256)
        have = rows_of(whole, batch_size=256)
        assert {uid: home[uid] for uid in have if uid in home} == {uid: have[uid] for uid in have if uid in home}
        writer.close()


def test_rows_that_were_dropped_are_a_gap_and_no_corruption(tmp_path: Path) -> None:
    with rc.create_workspace("w", SCHEMA, keep=RING) as ws, ws.writer() as writer:
        _episodes(writer, 0, 2)
        assert ws.snapshot(tmp_path / "b").rows_added == 60
        _episodes(writer, 2, 60, length=29)
        ws.evict()
        ws.retainer.close()
        left = len(ws.view().rows)
        dropped = _retention(ws).dropped_rows
        assert dropped == 60 + 60 * 29 - left - 60
        two = ws.snapshot(tmp_path / "b")
        assert (two.rows_added, two.gap_rows) == (left, dropped)
        assert two.facts_added + two.gap_facts == 60
        buffer = rc.open_buffer(tmp_path / "b")
        assert len(buffer.at().rows) == 60 + left
        returns = buffer.versions()[-1].statistics["returns"]
        assert returns["max"] == 30 and returns["min"] == 29, (
            "the return of an episode without its beginning is unknown"
        )
        assert returns["count"] == 2 + left // 29
        assert _retention(ws).dropped_rows == dropped


def test_a_log_that_went_whole_is_part_of_the_gap(tmp_path: Path) -> None:
    with rc.create_workspace("w", SCHEMA, keep=RING) as ws:
        with ws.writer() as writer:
            _episodes(writer, 0, 20)
        with ws.writer() as writer:
            _episodes(writer, 20, 20)
        ws.evict()
        ws.retainer.close()
        left = len(ws.view().rows)
        done = ws.snapshot(tmp_path / "b")
        assert (done.rows_added, done.gap_rows) == (left, 1200 - left)
        assert ws.snapshot(tmp_path / "b").gap_rows == 0
        assert ws.snapshot(tmp_path / "c").gap_rows == 1200 - left


# -- trouble -----------------------------------------------------------------------------------------------------------


def test_nothing_goes_beyond_what_was_last_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(location: Location) -> Datasets:
        raise errors.StoreError("the store cannot be reached")

    with rc.create_workspace("w", SCHEMA, keep=KEEP) as ws, ws.writer() as writer:
        _episodes(writer, 0, 50)
        with monkeypatch.context() as patch:
            patch.setattr(Datasets, "open_", _only_second(Datasets.open_, unreachable))
            done = ws.snapshot(tmp_path / "b")
        assert done.rows_added == 1500 and done.evicted_rows == 0
        assert "cannot be reached" in done.note
        assert ws.evict().rows == 0
        assert ws.snapshot(tmp_path / "b").evicted_rows > 1000
        shutil.move(tmp_path / "b", tmp_path / "away")
        ws.retainer.close()
        left = len(ws.view().rows)
        _episodes(writer, 50, 50)
        assert ws.evict().rows == 0
        assert len(ws.view().rows) == left + 1500
        assert "is gone" in _retention(ws).problem
        shutil.move(tmp_path / "away", tmp_path / "b")
        assert _retention(ws).problem == ""
        assert ws.evict().rows > 0, "what was read back before may still go"
        assert len(ws.view().rows) >= 1500


def _only_second(first: Any, then: Any) -> Any:
    """The first call goes through, as the snapshot's own does; every later one fails."""
    calls: list[Any] = []

    def open_(location: Location) -> Any:
        calls.append(location)
        try:
            return (first if len(calls) == 1 else then)(location)
        except errors.NotFound:
            calls.clear()
            Datasets.create(location, SCHEMA)
            calls.append(location)
            return first(location)

    return open_


@pytest.mark.parametrize("how", ["replaced", "went back"])
def test_a_home_that_does_not_go_on_from_what_was_seen_stops_eviction(how: str, tmp_path: Path) -> None:
    with rc.create_workspace("w", SCHEMA, keep=KEEP) as ws, ws.writer() as writer:
        _episodes(writer, 0, 20)
        ws.snapshot(tmp_path / "b")
        _episodes(writer, 20, 20)
        ws.snapshot(tmp_path / "b")
        _episodes(writer, 40, 30)
        ws.retainer.close()  # what rolled over has been evicted, by a thread of its own
        held = len(ws.view().rows)
        if how == "replaced":
            shutil.rmtree(tmp_path / "b")
        else:
            steps = Datasets.open_(Location(tmp_path / "b")).steps
            steps.checkout_version(2).restore()
        done = ws.snapshot(tmp_path / "b")
        assert done.evicted_rows == 0 and "set_home" in done.note
        assert done.gap_rows > 0, "what it no longer holds and is evicted cannot be had again"
        _episodes(writer, 70, 20)
        assert ws.snapshot(tmp_path / "b").evicted_rows == 0, "it stays so"
        assert len(ws.view().rows) == held + 600
        assert "no longer holds" in _retention(ws).problem
        ws.set_home(tmp_path / "b")
        assert ws.evict().rows == 0
        assert ws.snapshot(tmp_path / "b").evicted_rows > 0
        assert _retention(ws).problem == ""


@pytest.mark.parametrize("successor", ["none", "another", "one that was promoted too"])
def test_a_workspace_deleted_amid_its_snapshot_leaves_nothing_to_its_successor(successor: str, tmp_path: Path) -> None:
    ws = rc.create_workspace("w", SCHEMA)
    with ws.writer() as writer:
        _episodes(writer, 0, 20)
    others: list[rc.Workspace] = []

    def progress(done: int, todo: int) -> None:
        if others:
            return
        rc.delete_workspace("w")
        others.append(rc.create_workspace("w" if successor != "none" else "other", SCHEMA, keep=RING))
        if successor == "one that was promoted too":
            with others[0].writer() as writer:
                _episodes(writer, 100, 20)
            others[0].snapshot(tmp_path / "own")

    done = ws.snapshot(tmp_path / "replay", tag="t", progress=progress)
    (other,) = others
    rows = len(rc.open_buffer(tmp_path / "replay").at("t").rows)
    assert (done.rows_added, rows) == (rows, 20 * 30)
    assert "was deleted" in done.note and done.evicted_rows == 0
    assert other.home == (None if successor != "one that was promoted too" else str(tmp_path / "own"))
    assert [t.uri for t in _retention(other).targets] == ([other.home] if other.home else [])
    with pytest.raises(errors.NotFound, match="was deleted"):
        ws.snapshot(tmp_path / "replay")
    other.close()


def test_eviction_during_a_snapshot_takes_nothing_from_it(tmp_path: Path) -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer, rc.open_workspace("w") as other:
        _episodes(writer, 0, 50)
        went: list[Eviction] = []

        def meanwhile(done: int, total: int) -> None:
            ws.set_keep(RING)
            went.append(other.evict())
            went.append(ws.evict())
            ws.recent(3)

        done = ws.snapshot(tmp_path / "b", progress=meanwhile)
        assert sum(e.rows for e in went) > 1000
        assert (done.rows_added, done.gap_rows, done.gap_facts) == (1500, 0, 0)
        assert len(rc.open_buffer(tmp_path / "b").at().facts.episodes) == 50
        assert _uids(rc.open_buffer(tmp_path / "b").at()) == list(range(1500))
        assert ws.snapshot(tmp_path / "b").gap_rows == 0
        assert _retention(ws).unlinked_bytes == 0


PROMOTER = """
import sys
import recollect as rc
ws = rc.open_workspace("w")
import recollect.cold.dataset, recollect.promote.snapshot
print("ready", flush=True)
sys.stdin.readline()
print(ws.snapshot(sys.argv[1]).rows_added, flush=True)
"""


@pytest.mark.parametrize("kills", [10, pytest.param(150, marks=pytest.mark.torture)])
def test_promoters_killed_at_random_moments_lose_nothing(kills: int, tmp_path: Path) -> None:
    chance = random.Random(11)
    with rc.create_workspace("w", SCHEMA, keep=KEEP) as ws:
        writer, at = ws.writer(), 0
        for k in range(kills):
            _episodes(writer, at, 8)
            with ws.writer() as short:
                _episodes(short, at + 8, 2)
            at += 10
            child: subprocess.Popen[str] = python(PROMOTER, str(tmp_path / "b"))
            assert child.stdout is not None and child.stdin is not None
            assert child.stdout.readline() == "ready\n"
            child.stdin.write("\n")
            child.stdin.flush()
            time.sleep(chance.uniform(0.0, 0.15))
            child.send_signal(signal.SIGKILL)
            child.communicate()
            if k % 4 == 3:
                assert ws.snapshot(tmp_path / "b").gap_rows == 0
                whole = rc.open_buffer(tmp_path / "b").at()
                assert _uids(whole) == list(range(30 * at))
                assert len(whole.facts.episodes) == at
                assert len(ws.view().rows) < 900
        writer.close()
        ws.snapshot(tmp_path / "b")
        assert _uids(rc.open_buffer(tmp_path / "b").at()) == list(range(30 * at))
        assert _retention(ws).dropped_rows == 0
