"""The small files of a workspace carry a checksum: no flipped bit changes what they say."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Callable
from pathlib import Path

import pytest

import recollect as rc
from recollect import errors
from recollect.hot.format.evicted import read_evicted
from recollect.hot.format.first import read_first
from recollect.hot.format.notes import pack, unpack
from recollect.hot.format.seal import read_seal
from recollect.hot.format.targets import read_cursors, read_home
from recollect.hot.home import describe, read_version
from recollect.recall.verify import verify
from tests.hot.retaining import RING, SCHEMA, small_segments, write_episodes

__all__ = ["small_segments"]
pytestmark = pytest.mark.usefixtures("small_segments")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A workspace with one of every note: promoted, evicted, evolved."""
    with rc.create_workspace("w", SCHEMA, keep=RING) as ws:
        with ws.writer() as writer:
            write_episodes(writer, 60)
        with ws.writer() as writer:
            write_episodes(writer, 60, first=60)
        ws.snapshot(tmp_path / "buffer")
        spec = {leaf.path: leaf.field for leaf in SCHEMA.leaves}
        ws.evolve(rc.Schema({**spec, "extra": rc.Tensor("float32", optional=True)}, episode={"task": rc.Text()}))
        assert ws.stats().retention is not None
        return ws.path


def test_a_note_says_what_was_packed_and_nothing_else() -> None:
    body = {"a": [1, [2.5, None]], "é": "☃", "z": {"k": True}}
    assert unpack(pack(body)) == body
    for raw in (b"", b"{", b"{}", b"[]", b'{"a": 1}', pack(body).replace(b"2.5", b"3.5"), b"\xff" + pack(body)):
        with pytest.raises(ValueError, match=r"checksum|Expecting|decode|utf"):
            unpack(raw)


def test_no_flipped_bit_of_a_note_is_believed(path: Path) -> None:
    """Whatever is flipped, the note is refused, is passed over, or says the same in other bytes."""
    chance = random.Random(1)
    log = next(p for p in sorted((path / "log").iterdir()) if (p / "first.json").exists())
    (target,) = (path / "targets").glob("*.json")
    notes: dict[Path, Callable[[], object]] = {
        path / "workspace.json": lambda: describe(path),
        path / "schema.json": lambda: read_version(path, 1),
        path / "schema.2.json": lambda: read_version(path, 2),
        path / "home.json": lambda: read_home(path),
        path / "evicted.json": lambda: read_evicted(path / "log"),
        log / "first.json": lambda: read_first(log),
        log / "sealed.json": lambda: read_seal(log),
        target: lambda: read_cursors(path),
    }
    for file, read in notes.items():
        whole, said = file.read_bytes(), read()
        assert said
        for _ in range(150):
            bit = chance.randrange(8 * len(whole))
            flipped = bytearray(whole)
            flipped[bit // 8] ^= 1 << bit % 8
            file.write_bytes(flipped)
            with contextlib.suppress(errors.CorruptionError):
                assert read() in (said, []), (file.name, bit)
        file.write_bytes(whole)
        assert read() == said


def test_changed_limits_keep_the_checksum(path: Path) -> None:
    with rc.open_workspace(path) as ws:
        before = describe(path)
        ws.set_keep(rc.Keep(rows=50, unpromoted="drop"))
        after = describe(path)
        assert after.keep.rows == 50 and (after.id, after.name, after.created_ns) == (
            before.id,
            before.name,
            before.created_ns,
        )


@pytest.mark.parametrize(
    ("name", "level"),
    [("evicted.json", "lost"), ("home.json", "repairable"), ("first.json", "lost"), ("targets", "repairable")],
)
def test_verify_finds_a_damaged_note_of_retention(path: Path, name: str, level: str) -> None:
    assert rc.open_workspace(path).verify().ok
    file = next(p for p in sorted(path.rglob("*.json")) if p.name == name or p.parent.name == name)
    file.write_bytes(file.read_bytes().replace(b'"', b"'", 1))
    report = verify(path)
    assert [p.level for p in report.problems if p.where.endswith(file.name)] == [level]
    assert not report.ok


def test_verify_of_an_evicted_workspace_begins_where_its_logs_do(path: Path) -> None:
    with rc.open_workspace(path) as ws:
        ws.similar("t3")
        ws.episode(ws.recent(1)[0].episode)
        view = ws.view()
        assert any(e.start for e in view.cut.extents)
        report = ws.verify()
        assert report.ok and report.problems == () and report.rows == len(view.rows)
        log = next(p for p in sorted((path / "log").iterdir()) if (p / "first.json").exists())
        middle = sorted(log.glob("*.seg"))[1]
        middle.unlink()
        assert any("is missing" in p.what for p in ws.verify().problems)
