"""A snapshot that returned survives a power cut of a local disk; one that was cut off leaves nothing lost and nothing
twice.

Lance flushes nothing, so that all that is kept of a buffer is what `cold.durable` flushed. The model: a file holds what
it held when it was last flushed; a name is kept once its folder was flushed after it. Anything else may be there, or
not, or empty, cut short or zeros: `remains` makes up one such folder.
"""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

import recollect as rc
from recollect.buffer import repair_buffer
from recollect.cold import compact, durable
from recollect.errors import CorruptionError
from tests.support import all_ids, rows_of

SCHEMA = rc.Schema(
    {"observation": rc.Tensor("float32", (2,)), "reward": rc.Tensor("float32"), "uid": rc.Tensor("int64")},
    episode={"task": rc.Text()},
)


class PowerCut(BaseException):
    """The power goes."""


class Disk:
    """What a power cut would leave for sure of the files below a folder, and when it comes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.kept: dict[Path, bytes] = {}
        self.named: set[Path] = set()
        self.left = -1
        """Flushes until the power goes; negative for never."""
        self.real = durable._sync_path

    def sync(self, path: Path, flags: int) -> None:
        if self.left == 0:
            raise PowerCut
        self.left -= 1
        self.real(path, flags)
        if self.root not in (path, *path.parents):
            return
        if path.is_dir():
            there = set(path.iterdir())
            self.named = {p for p in self.named if p.parent != path} | there
        else:
            self.kept[path] = path.read_bytes()

    def remains(self, to: Path, chance: random.Random) -> None:
        """Makes up what a cut now could leave."""
        for path in sorted(p for p in self.root.rglob("*") if p.is_file()):
            flushed = self.kept.get(path)
            whole = all(p in self.named for p in (path, *path.parents) if self.root in p.parents)
            if flushed is not None and (whole or chance.random() < 0.5):
                data: bytes | None = flushed
                now = path.read_bytes()
                if now != flushed and chance.random() < 0.5:
                    data = now
            else:
                now = path.read_bytes()
                data = chance.choice((None, None, b"", now[: len(now) // 2], bytes(len(now)), now))
            if data is not None:
                target = to / path.relative_to(self.root)
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(data)


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    made = Disk(tmp_path / "live")
    monkeypatch.setattr(durable, "_sync_path", made.sync)
    yield made


def _write(writer: rc.Writer, first: int, count: int = 4) -> None:
    episode = writer.episode(task=f"t{first}")
    for uid in range(first, first + count):
        episode.append(observation=[uid, 0], reward=1.0, uid=uid, next_observation=[uid + 1, 0])


def _holds(buffer: rc.Buffer, ws: rc.Workspace, tag: str | None) -> None:
    """The version is whole and equals the workspace's rows of its cut."""
    view = buffer.at(tag)
    hot = ws.view(cut=view.cut)
    assert (all_ids(view), rows_of(view)) == (all_ids(hot), rows_of(hot))
    assert len(set(all_ids(view))) == len(view.rows)
    assert sum(len(h) for h in view.facts.history.values()) == sum(n for _, n in view.cut.facts)
    assert buffer.verify().ok


@pytest.mark.parametrize("seed", range(6))
def test_a_snapshot_that_returned_survives_a_power_cut(seed: int, disk: Disk, tmp_path: Path) -> None:
    chance = random.Random(seed)
    disk.root.mkdir()
    with rc.create_workspace("w", SCHEMA) as ws:
        for k in range(3):
            _write(ws.writer(), 1000 * k)
            made = ws.snapshot(disk.root / "b", tag=f"t{k}")
        disk.remains(tmp_path / "after", chance)
        buffer = rc.open_buffer(tmp_path / "after" / "b")
        assert buffer.tags() == {"t0": 2, "t1": 3, "t2": 4}
        assert len(buffer.at("t2").rows) == made.rows
        for k in range(3):
            _holds(buffer, ws, f"t{k}")
        assert ws.snapshot(tmp_path / "after" / "b").rows_added == 0


@pytest.mark.parametrize("compacting", [False, True])
@pytest.mark.parametrize("rounds", [25, pytest.param(400, marks=pytest.mark.torture)])
def test_a_power_cut_at_any_flush_loses_nothing_and_doubles_nothing(
    rounds: int, compacting: bool, disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if compacting:
        monkeypatch.setattr(compact, "AUTOMATIC", 3)
    chance = random.Random(rounds + compacting)
    cuts = repairs = 0
    with rc.create_workspace("w", SCHEMA) as ws:
        for k in range(rounds):
            disk.root = folder = tmp_path / f"disk{k % 2}"
            folder.mkdir(exist_ok=True)
            for path in folder.rglob("*"):
                if path.is_file():
                    disk.kept[path] = path.read_bytes()
                disk.named.add(path)
            _write(ws.writer(), 1000 * k)
            disk.left = chance.randrange(24)
            acknowledged = False
            try:
                ws.snapshot(folder / "b", tag=f"t{k}")
                acknowledged = True
            except PowerCut:
                cuts += 1
            disk.left = -1
            after = tmp_path / f"disk{(k + 1) % 2}"
            _clear(after)
            disk.remains(after, chance)
            _clear(folder)
            try:
                ws.snapshot(after / "b")
            except CorruptionError as e:
                assert "--repair" in str(e) and not acknowledged
                assert repair_buffer(after / "b")
                ws.snapshot(after / "b")
                repairs += 1
            buffer = rc.open_buffer(after / "b")
            if acknowledged:
                assert f"t{k}" in buffer.tags()
            _holds(buffer, ws, None)
            assert len(buffer.at().rows) == len(ws.view().rows)
    assert cuts and repairs, "no cut tore a version"


@pytest.mark.parametrize("rounds", [20, pytest.param(300, marks=pytest.mark.torture)])
def test_a_deletion_is_there_or_not_after_a_power_cut(rounds: int, disk: Disk, tmp_path: Path) -> None:
    """One that returned stays; of one that was cut off the same again does the rest."""
    chance = random.Random(rounds)
    outcomes = set()
    with rc.create_workspace("w", SCHEMA) as ws:
        _write(ws.writer(), 0)
        _write(ws.writer(), 1000)
        for k in range(rounds):
            disk.root = folder = tmp_path / f"disk{k}"
            folder.mkdir()
            ws.snapshot(folder / "b")
            disk.left = chance.randrange(14) if k else -1
            acknowledged = False
            try:
                rc.open_buffer(folder / "b").delete(where="uid = 1 or uid >= 1000", reason="r")
                acknowledged = True
            except PowerCut:
                pass
            disk.left = -1
            after = tmp_path / f"after{k}"
            disk.remains(after, chance)
            try:
                buffer = rc.open_buffer(after / "b")
            except CorruptionError as e:
                assert "--repair" in str(e) and not acknowledged
                assert repair_buffer(after / "b")
                buffer = rc.open_buffer(after / "b")
            rows = len(buffer.at().rows)
            outcomes.add((acknowledged, rows))
            assert rows == 3 if acknowledged else rows in (3, 8)
            assert buffer.verify().ok
            buffer.delete(where="uid = 1 or uid >= 1000", reason="r")
            assert len(buffer.at().rows) == 3 and buffer.verify().ok
            assert ws.snapshot(after / "b").rows_added == 0
            _clear(folder)
            _clear(after)
    assert {(True, 3), (False, 8)} <= outcomes


def _clear(folder: Path) -> None:
    for at, folders, names in os.walk(folder, topdown=False):
        for name in names:
            (Path(at) / name).unlink()
        for name in folders:
            (Path(at) / name).rmdir()
