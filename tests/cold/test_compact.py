"""Compaction keeps every row in its place, touches no large file, and loses to every promotion."""

from __future__ import annotations

import math
from datetime import timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import recollect as rc
from recollect.cold import compact as module
from recollect.cold.compact import GROWTH, plan
from recollect.cold.dataset import Datasets
from recollect.cold.leases import Leases
from recollect.cold.location import Location
from tests.support import SCHEMAS, all_ids, order_of, random_trajectories, rows_of, write_appends

SCHEMA = rc.Schema(
    {"observation": rc.Tensor("float32", (2,)), "reward": rc.Tensor("float32"), "uid": rc.Tensor("int64")},
    episode={"task": rc.Text()},
)


def _write(writer: rc.Writer, first: int, count: int) -> None:
    with writer.episode(task=f"t{first}") as episode:
        for uid in range(first, first + count):
            episode.append(observation=[uid, 0], reward=1.0, uid=uid, next_observation=[uid + 1, 0])


def _fill(ws: rc.Workspace, buffer: Path, rounds: int, *, first: int = 0, rows: int = 4) -> None:
    for k in range(first, first + rounds):
        _write(ws.writer(), 1000 * k, rows)
        ws.snapshot(buffer, tag=f"t{k}")


def _files(buffer: Path) -> list[str]:
    return [f.metadata.files[0].path for f in Datasets.open_(Location(buffer)).steps.get_fragments()]


@given(st.lists(st.integers(1, 1200), max_size=60))
def test_a_row_is_rewritten_only_into_a_much_larger_file(sizes: list[int]) -> None:
    full = 1000
    groups = plan(sizes, full)
    assert all(low + 1 < high for low, high in groups)
    assert all(a[1] <= b[0] for a, b in pairwise(groups))
    for low, high in groups:
        total, largest = sum(sizes[low:high]), max(sizes[low:high])
        assert 2 * largest < full
        files = math.ceil(total / full)
        assert files <= high - low
        assert total >= GROWTH * largest or 2 * (total // files) >= full - files


@given(st.integers(1, 400), st.integers(1, 5))
def test_promotions_of_one_size_leave_few_files_and_are_rewritten_few_times(count: int, size: int) -> None:
    full = 256 * size
    files: list[tuple[int, int]] = []  # (rows, times they were rewritten)
    for _ in range(count):
        files.append((size, 0))
        if len(files) % 16:
            continue
        for low, high in reversed(plan([f[0] for f in files], full)):
            total = sum(f[0] for f in files[low:high])
            parts = math.ceil(total / full)
            times = 1 + max(f[1] for f in files[low:high])
            files[low:high] = [(total // parts + (k < total % parts), times) for k in range(parts)]
    small = [f for f in files if 2 * f[0] < full]
    assert len(small) <= 16 + GROWTH * 5
    assert max(f[1] for f in files) <= math.log(256, GROWTH) + 1


@pytest.mark.parametrize("kind", SCHEMAS)
def test_a_compacted_buffer_holds_the_same_bits_in_the_same_order(kind: str, tmp_path: Path) -> None:
    schema = SCHEMAS[kind]()
    rng = np.random.default_rng(5)
    uid = 0
    with rc.create_workspace("w", schema) as ws:
        writer = ws.writer()
        for k in range(7):
            part = random_trajectories(schema, rng, count=3)
            for moment in (m for t in part for m in t.moments):
                moment.values["uid"], uid = np.int64(uid), uid + 1
            write_appends(writer, part, order_of(part, rng))
            ws.snapshot(tmp_path / "b", tag=f"t{k}")
        buffer = rc.open_buffer(tmp_path / "b")
        old = {v.tags[0]: (all_ids(buffer.at(v.version)), rows_of(buffer.at(v.version))) for v in buffer.versions()}
        done = buffer.compact()
        assert (done.fragments_before, done.fragments_after, done.version) == (7, 1, 9)
        assert done.rows == len(buffer.at().rows) and done.bytes > 0
        hot, cold = ws.view(cut=buffer.at().cut), buffer.at(9)
        assert all_ids(cold) == all_ids(hot) == old["t6"][0]
        assert rows_of(cold) == rows_of(hot) == old["t6"][1]
        for tag, (ids, rows) in old.items():
            assert (all_ids(buffer.at(tag)), rows_of(buffer.at(tag))) == (ids, rows)
        assert buffer.versions()[-1].version == 8, "a compaction is no snapshot"
        assert ws.snapshot(tmp_path / "b").rows_added == 0
        assert buffer.verify().ok


def test_a_group_in_the_middle_stays_in_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_ROWS", 100)
    monkeypatch.setattr(module, "MAX_BYTES", 1 << 40)
    monkeypatch.setattr(module, "full_rows", lambda row_bytes: 100)
    with rc.create_workspace("w", SCHEMA) as ws:
        for first, rows in enumerate([60, 5, 5, 5, 5, 70, 6, 6, 6, 6, 30]):
            _fill(ws, tmp_path / "b", 1, first=first, rows=rows)
        before = _files(tmp_path / "b")
        buffer = rc.open_buffer(tmp_path / "b")
        want = all_ids(buffer.at())
        done = buffer.compact()
        after = _files(tmp_path / "b")
        assert (done.fragments_before, done.fragments_after) == (11, 5)
        assert [f in before for f in after] == [True, False, True, False, True]
        assert all_ids(buffer.at()) == want
        _fill(ws, tmp_path / "b", 2, first=20)
        assert all_ids(buffer.at()) == all_ids(ws.view(cut=buffer.at().cut))
        assert buffer.verify().ok


@pytest.mark.parametrize("full", [4, 1000])
@pytest.mark.parametrize("losing", [(0,), (1,), (0, 1), (0, 2), (2,), (0, 1, 2)])
def test_files_with_deleted_rows_are_written_again_in_their_place(
    losing: tuple[int, ...], full: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also the first of all, whose number lance does not give again, and where every file is full."""
    monkeypatch.setattr(module, "full_rows", lambda _: full)
    with rc.create_workspace("w", SCHEMA) as ws:
        _fill(ws, tmp_path / "b", 3)
    buffer = rc.open_buffer(tmp_path / "b")
    buffer.delete(where=" or ".join(f"uid = {1000 * k + 1}" for k in losing), reason="r")
    want, files = rows_of(buffer.at(), batch_size=64), _files(tmp_path / "b")
    order = all_ids(buffer.at())
    assert buffer.compact().rows >= 3 * len(losing)
    after = _files(tmp_path / "b")
    assert not {files[k] for k in losing} & set(after)
    assert (files[2] in after) == (2 not in losing)
    assert all_ids(buffer.at()) == order and rows_of(buffer.at(), batch_size=64) == want
    assert buffer.verify().ok and buffer.compact().version is None


def test_what_a_large_file_holds_is_not_decoded_again(tmp_path: Path) -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        _fill(ws, tmp_path / "b", 1, rows=400)
        buffer = rc.open_buffer(tmp_path / "b")
        assert len(buffer.at()) and buffer.decoded_files == 1
        _fill(ws, tmp_path / "b", 8, first=1)
        assert buffer.compact().rows == 40  # final rows included
        assert len(buffer.at()) and buffer.decoded_files == 2
        assert not buffer.compact().rows


def test_snapshots_compact_by_themselves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AUTOMATIC", 5)
    with rc.create_workspace("w", SCHEMA) as ws:
        for k in range(20):
            _fill(ws, tmp_path / "b", 1, first=k)
            data = Datasets.open_(Location(tmp_path / "b"))
            assert len(data.steps.get_fragments()) <= 10
            assert len(data.dataset("facts").get_fragments()) <= 10
        buffer = rc.open_buffer(tmp_path / "b")
        assert len(buffer.versions()) == 20
        assert all_ids(buffer.at()) == all_ids(ws.view(cut=buffer.at().cut))
        assert sum(len(h) for h in buffer.at().facts.history.values()) == sum(n for _, n in buffer.at().cut.facts)


def test_a_promotion_in_between_refuses_the_compaction_and_not_the_other_way_round(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module._rewrite
    with rc.create_workspace("w", SCHEMA) as ws:
        _fill(ws, tmp_path / "b", 6)
        rounds = iter(range(50, 60))

        def overtaken(*arguments: Any) -> Any:
            made = real(*arguments)
            _fill(ws, tmp_path / "b", 1, first=next(rounds))
            return made

        buffer = rc.open_buffer(tmp_path / "b")
        monkeypatch.setattr(module, "_rewrite", overtaken)
        done = buffer.compact()
        assert done.version is None and done.note
        assert len(buffer.versions()) == 8
        monkeypatch.setattr(module, "_rewrite", real)
        assert buffer.compact().fragments_after == 1
        assert all_ids(buffer.at()) == all_ids(ws.view(cut=buffer.at().cut))


def test_a_compaction_in_between_makes_a_promotion_look_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes on with the files that it had staged."""
    real, stage = Datasets.commit_steps, Datasets.stage_steps
    staged: list[int] = []
    with rc.create_workspace("w", SCHEMA) as ws:
        _fill(ws, tmp_path / "b", 6)

        def overtaken(self: Datasets, *arguments: Any) -> int:
            monkeypatch.setattr(Datasets, "commit_steps", real)
            assert rc.open_buffer(tmp_path / "b").compact().version is not None
            return real(self, *arguments)

        def counted(self: Datasets, *arguments: Any, **options: Any) -> Any:
            staged.append(1)
            return stage(self, *arguments, **options)

        monkeypatch.setattr(Datasets, "commit_steps", overtaken)
        monkeypatch.setattr(Datasets, "stage_steps", counted)
        _fill(ws, tmp_path / "b", 1, first=10)
        buffer = rc.open_buffer(tmp_path / "b")
        assert len(staged) == 1 and len(_files(tmp_path / "b")) == 2
        assert all_ids(buffer.at()) == all_ids(ws.view(cut=buffer.at().cut))
        assert buffer.verify().ok


def test_a_compactor_that_finds_another_at_work_leaves_it_alone(tmp_path: Path) -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        _fill(ws, tmp_path / "b", 5)
        buffer = rc.open_buffer(tmp_path / "b")
        leases = Leases(Location(tmp_path / "b"))
        with leases.hold("compact", 60) as first, leases.hold("compact", 60) as second:
            assert (first, second) == (True, False)
            assert "another" in buffer.compact().note
        assert buffer.compact().version is not None


def test_a_lease_that_ran_out_is_taken_over_and_not_given_back_by_its_old_holder(tmp_path: Path) -> None:
    leases = Leases(Datasets.create(Location(tmp_path / "b"), SCHEMA).location)
    with leases.hold("x", 0) as first:
        with leases.hold("x", 60) as second:
            assert first and second
            with leases.hold("y", 60) as other:
                assert other
            assert leases.is_held("x") and not leases.is_held("y")
        assert not leases.is_held("x")
    with leases.hold("x", -timedelta(hours=1).total_seconds()) as late, leases.hold("x", 60):
        pass
    assert late and not leases.is_held("x")
