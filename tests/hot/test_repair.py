"""verify --repair: what is damaged is given up by id, and everything else is as it was written."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest

import recollect as rc
from recollect.errors import CorruptionError, EpisodeError
from recollect.hot.format.layouts import Layouts
from recollect.hot.format.segment import Segment
from recollect.hot.write import growing
from recollect.recall.verify import verify
from recollect.records.rows import PackedRows
from recollect.view import EpisodeKey

FIELDS: dict[str, Any] = {
    "observation": rc.Tensor("float32", (2,)),
    "picture": rc.Frames((3,), optional=True),
    "note": rc.Text(optional=True),
    "uid": rc.Tensor("int64"),
}
SCHEMA = rc.Schema(FIELDS, episode={"task": rc.Text()})
Row = tuple[int, int]


def _step(uid: int) -> dict[str, Any]:
    return {
        "observation": np.full(2, uid, np.float32),
        "picture": np.full(3, uid % 250 + 1, np.uint8),
        "note": f"note number {uid}",
        "uid": uid,
    }


def _fill(ws: rc.Workspace) -> None:
    """One log of single appends by turns, jumps and open ends; one of blocks; late facts."""
    writer = ws.writer(durability="process")
    lanes = [writer.episode(id=f"e{k}", task="find the way") for k in range(3)]
    for uid in range(150):
        k = uid % 3
        jump: dict[str, Any] = {"next_observation": np.full(2, -uid, np.float32)} if uid % 7 == 0 else {}
        lanes[k].append(**_step(uid), **jump, terminated=uid >= 60 and uid % 20 == 19)
        if uid >= 60 and uid % 20 == 19:
            lanes[k].finish(status="success", reward=float(uid))
            lanes[k] = writer.episode(task="again")
    with ws.writer(durability="process") as block:
        for start in range(1000, 1200, 40):
            uids = np.arange(start, start + 40)
            block.extend(
                {
                    "episode": uids // 20,
                    "step": uids % 20,
                    "observation": np.repeat(uids.astype(np.float32)[:, None], 2, 1),
                    "picture": np.repeat((uids % 250 + 1).astype(np.uint8)[:, None], 3, 1),
                    "note": [f"note number {u}" for u in uids.tolist()],
                    "uid": uids,
                    "terminated": uids % 20 == 19,
                }
            )
    for uid in (3, 40, 77):
        hit = next(s for s in ws.recent(500) if s["uid"] == uid)
        ws.annotate(hit.id, uid=uid + 5000)
    writer.close()


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing, "SEGMENT_BYTES", (1 << 13,))


@pytest.fixture
def whole(small_segments: None) -> Path:
    """A workspace with two sealed logs of several segments, and a short one of facts."""
    with rc.create_workspace("w", SCHEMA) as ws:
        _fill(ws)
        assert len(ws.similar("number 77")) and ws._hot().catalog.catch_up(ws.cut())
    return ws.path


def read(ws: rc.Workspace) -> dict[Row, tuple[Any, ...]]:
    """Every row of the workspace: what it holds, and the id of the row that holds its next observation."""
    view = ws.view()
    slots = np.arange(len(view.rows))
    ids = [tuple(i) for i in view.rows.ids(slots).tolist()]
    got = view.rows.gather(slots, ("observation", "uid", "step", "episode_writer", "episode"))
    notes = view.rows.heap_values(slots, "note")
    after = view.episodes.next_observation(slots)
    seen = view.rows.gather(after, ("observation",))["observation"]
    rows = cast(PackedRows, view.rows)
    raw = [rows.locate(int(s), raw=True) for s in slots]
    uids = [int(block.records["/uid"][row]) for block, row in raw]
    return {
        ids[k]: (
            got["observation"][k].tobytes(),
            uids[k],
            int(got["step"][k]),
            (int(got["episode_writer"][k]), int(got["episode"][k])),
            notes[k],
            seen[k].tobytes() if after[k] >= 0 else None,
        )
        for k in range(len(ids))
    }


def facts(ws: rc.Workspace) -> dict[Row, Any]:
    history = ws.view().facts.history
    return {(f.writer, f.seq): f for found in history.values() for f in found}


def named(extents: Any) -> set[Row]:
    return {(e.writer, seq) for e in extents for seq in range(e.start, e.stop)}


def assert_repaired(path: Path, rows: dict[Row, Any], told: dict[Row, Any], what: str) -> rc.Workspace | None:
    """Repairs, and holds what is left against what was written."""
    report = verify(path, repair=True)
    lasting = [
        p for p in report.problems if p.level == "lost" or not p.where.endswith(".sqlite")
    ]  # those are made again
    assert all(p.level == "harmless" for p in lasting), (what, lasting)
    assert report.repaired is not None and not report.repaired.failed, (what, report.repaired)
    gone, untold = named(report.repaired.rows), named(report.repaired.facts)
    undrawable = named(report.repaired.undrawable)
    with rc.open_workspace(path) as ws:
        now = read(ws)
        gone |= {(w, seq) for w, end in report.repaired.cut_off for w_, seq in rows if w_ == w and seq >= end}
        assert now.keys() == rows.keys() - gone, (what, rows.keys() - gone - now.keys(), now.keys() - rows.keys())
        for key, row in now.items():
            assert row[:-1] == rows[key][:-1], (what, key)
            if row[-1] != rows[key][-1]:
                # It lost what came next, and says so; it never gets another.
                assert row[-1] is None and (gone or key in undrawable), (what, key, row, rows[key])
        if not report.repaired.cut_off:
            assert facts(ws) == {key: f for key, f in told.items() if key not in untold}, what
        assert all(told[key] == f for key, f in facts(ws).items()), what
        for key in {EpisodeKey(*row[3]) for row in now.values()}:
            ws.episode(key)
        assert all(hit.id in {*now} for hit in ws.recent(40))
        assert all(hit.id in {*now} for hit in ws.similar("note number 77"))
        again = verify(path, repair=True)
        assert again.ok and again.repaired is not None and not again.repaired.changed, (what, again)
    return None


def _files(path: Path) -> list[Path]:
    kinds = ("*.seg", "*.tails", "sealed.json", "evicted.json", "holes*.json", "*.sqlite")
    found = {f for kind in kinds for f in path.rglob(kind) if f.stat().st_size}
    return sorted(found, key=lambda f: (len([*f.parent.iterdir()]), f.name))  # the names of logs are random


def _damage(path: Path, chance: random.Random) -> str:
    file = chance.choice(_files(path))
    raw = bytearray(file.read_bytes())
    kind = chance.choice(("flip", "zeros", "cut", "gone", "flip", "zeros"))
    used = [k for k in range(0, len(raw), 64) if any(raw[k : k + 64])]
    at = chance.choice(used) + chance.randrange(64) if used else 0
    at = min(at, len(raw) - 1)
    if kind == "flip":
        raw[at] ^= 1 << chance.randrange(8)
        file.write_bytes(raw)
    elif kind == "zeros":
        stop = min(len(raw), at + chance.choice((8, 100, 4096)))
        raw[at:stop] = bytes(stop - at)
        file.write_bytes(raw)
    elif kind == "cut":
        file.write_bytes(raw[:at])
    else:
        file.unlink()
    return f"{kind} {file.relative_to(path)} at {at} of {len(raw)}"


def _fuzz(whole: Path, seeds: range) -> None:
    with rc.open_workspace(whole) as ws:
        rows, told = read(ws), facts(ws)
    for seed in seeds:
        chance = random.Random(seed)
        copy = whole.with_name(f"copy{seed}")
        shutil.copytree(whole, copy)
        what = ", ".join(_damage(copy, chance) for _ in range(chance.choice((1, 1, 1, 2, 5))))
        assert_repaired(copy, rows, told, f"seed {seed}: {what}")
        shutil.rmtree(copy)


def test_any_damage_is_repaired(whole: Path) -> None:
    _fuzz(whole, range(60))


@pytest.mark.torture
def test_any_damage_is_repaired_at_length(whole: Path) -> None:
    _fuzz(whole, range(60, 3000))


def test_a_whole_workspace_is_left_alone(whole: Path) -> None:
    before = {p: p.read_bytes() for p in whole.rglob("*") if p.is_file()}
    report = verify(whole, repair=True)
    assert report.ok and report.repaired is not None and not report.repaired.changed
    after = {p: p.read_bytes() for p in whole.rglob("*") if p.is_file()}
    assert {p.name for p in after.keys() - before.keys()} <= {"evict.lock"}
    assert all(after[p] == raw for p, raw in before.items())


def dying(monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    """So many of the calls by which files change are carried out; the next one is interrupted."""
    left = [calls]

    def wrap(real: Any) -> Any:
        def call(*arguments: Any, **named_: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise KeyboardInterrupt
            return real(*arguments, **named_)

        return call

    for name in ("replace", "rename", "fsync", "unlink"):
        monkeypatch.setattr(os, name, wrap(getattr(os, name)))
    monkeypatch.setattr(Path, "unlink", wrap(Path.unlink))


def _cases(path: Path) -> None:
    """Damage of every kind at once: a segment unreadable, one gone, rows, facts, a tails file, both kinds of notes."""
    first, second, *_ = sorted((p for p in (path / "log").iterdir() if p.is_dir()), key=lambda p: -len([*p.iterdir()]))
    files = sorted(first.glob("*.seg"))
    files[1].write_bytes(b"nothing")
    files[3].unlink()
    raw = bytearray(files[0].read_bytes())
    segment = Segment.open_(files[0], Layouts({1: SCHEMA}.get))
    raw[segment.records_at + 5 * segment.layout.itemsize + 60] ^= 1
    files[0].write_bytes(raw)
    (first / "00000000.tails").write_bytes(b"")
    (second / "sealed.json").write_bytes(b"{}")
    (path / "evicted.json").write_bytes(b"{}")


@pytest.mark.parametrize("point", [*range(0, 40, 3), pytest.param(-1, marks=pytest.mark.torture)])
def test_a_repair_killed_at_any_call_goes_on(whole: Path, point: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with rc.open_workspace(whole) as ws:
        rows, told = read(ws), facts(ws)
    _cases(whole)
    finished = False
    for calls in range(200) if point < 0 else [point]:
        copy = whole.with_name(f"copy{calls}")
        shutil.copytree(whole, copy)
        with monkeypatch.context() as patch:
            dying(patch, calls)
            try:
                verify(copy, repair=True)
                finished = True
            except KeyboardInterrupt:
                pass
        # Some ids may have been named by the repair that was killed: the notes know all of them.
        verify(copy, repair=True)
        with rc.open_workspace(copy) as ws:
            now = read(ws)
            holes = {log.writer: log.holes.rows for log in ws._hot().logs.values()}
            gone = {(writer, seq) for writer, rows_ in holes.items() for a, b in rows_ for seq in range(a, b)}
            assert now.keys() == rows.keys() - gone and 0 < len(now) < len(rows)
            assert all(row[:-1] == rows[key][:-1] and row[-1] in (rows[key][-1], None) for key, row in now.items())
            assert {f: told[f] for f in facts(ws)} == facts(ws)
        again = verify(copy, repair=True)
        assert again.ok and again.repaired is not None and not again.repaired.changed
        shutil.rmtree(copy)
    assert finished or 0 <= point < 60


def test_a_live_writers_damage_is_repaired(small_segments: None) -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer(durability="process") as writer:
        episode = writer.episode(id="a")
        ids = [episode.append(**_step(uid)) for uid in range(100)]
        reader = rc.open_workspace("w")
        file = sorted(ws.path.rglob("*.seg"))[0]
        segment = Segment.open_(file, Layouts({1: SCHEMA}.get))
        with file.open("r+b") as f:
            f.seek(segment.records_at + 7 * segment.layout.itemsize + 60)
            f.write(b"\xff\xff")
        fresh = rc.open_workspace("w")
        with pytest.raises(CorruptionError, match="checksum"):
            fresh.view()
        report = ws.verify(repair=True)
        assert report.ok and report.repaired is not None and named(report.repaired.rows) == {tuple(ids[7])}
        ids.append(episode.append(**_step(100)))
        for seen in (fresh, reader, rc.open_workspace("w")):
            assert {tuple(i) for i in ids} - read(seen).keys() == {tuple(ids[7])}
            seen.close()


def test_an_episode_is_not_resumed_where_its_newest_steps_may_be_damaged(small_segments: None) -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        with ws.writer(durability="process") as writer:
            one, two = writer.episode(id="one"), writer.episode(id="two")
            for uid in range(20):
                one.append(**_step(uid))
            for uid in range(20, 40):
                two.append(**_step(uid))
        file = sorted(ws.path.rglob("*.seg"))[0]
        segment = Segment.open_(file, Layouts({1: SCHEMA}.get))
        raw = bytearray(file.read_bytes())
        raw[segment.records_at + 30 * segment.layout.itemsize + 60] ^= 1
        file.write_bytes(raw)
    assert verify(ws.path, repair=True).ok
    with rc.open_workspace("w") as ws, ws.writer() as writer:
        with pytest.raises(EpisodeError, match="damaged"):
            writer.resume_episode("one")  # row 30 may have been its own
        writer.resume_episode("two").append(**_step(40))
        assert len(ws.episode("two")) == 20


def test_both_notes_are_needed_to_lose_what_was_deleted(whole: Path) -> None:
    with rc.open_workspace(whole) as ws:
        ws.delete(where="uid < 10", reason="private")
        left = read(ws)
    (note,) = {p for p in whole.rglob("holes.json") if "private" in p.read_text() and "rows" in p.read_text()}
    for damaged in (note, note.with_name("holes.copy.json")):
        raw = damaged.read_bytes()
        damaged.write_bytes(raw[:-9])
        with rc.open_workspace(whole) as ws:
            assert read(ws) == left
        assert not verify(whole).ok
        assert verify(whole, repair=True).ok and damaged.read_bytes() == raw
        with rc.open_workspace(whole) as ws:
            assert read(ws) == left
    for damaged in (note, note.with_name("holes.copy.json")):
        damaged.write_bytes(b"")
    report = verify(whole, repair=True)
    assert not report.ok and report.repaired is not None and report.repaired.failed


def _flip(file: Path, row: int) -> None:
    segment = Segment.open_(file, Layouts({1: SCHEMA}.get))
    raw = bytearray(file.read_bytes())
    raw[segment.records_at + row * segment.layout.itemsize + 60] ^= 1
    file.write_bytes(raw)


def test_what_was_seen_before_a_jump_is_not_made_up(small_segments: None) -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer(durability="process") as writer:
        episode = writer.episode(id="a")
        ids = [episode.append(**_step(0), next_observation=np.full(2, -1, np.float32))]
        ids += [episode.append(**_step(uid)) for uid in range(1, 5)]
        assert ids[1].seq == 2  # row 1 holds what was seen after step 0
    _flip(next(ws.path.rglob("00000000.seg")), 1)
    report = verify(ws.path, repair=True)
    assert report.ok and report.repaired is not None
    assert named(report.repaired.rows) == {(ids[0].writer, 1), (ids[0].writer, 2)}
    with rc.open_workspace("w") as ws:
        now = read(ws)
        assert now.keys() == {tuple(i) for i in [ids[0], *ids[2:]]}
        assert now[ids[0]][-1] == np.full(2, -1, np.float32).tobytes()  # it is still in its tail
        assert now[ids[2]][-1] == np.full(2, 3, np.float32).tobytes()


def test_what_was_seen_before_a_resumption_is_not_made_up(small_segments: None) -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer(durability="process") as writer:
        pid = os.fork()
        if not pid:
            with contextlib.suppress(BaseException):
                mine = rc.open_workspace("w").writer(durability="process")
                mine.episode(id="a").append(**_step(0), next_observation=np.full(2, -1, np.float32))
            os.kill(os.getpid(), signal.SIGKILL)
        os.waitpid(pid, 0)
        with rc.open_workspace("w"):
            pass  # seals the log of the dead
        (first,) = (hit.id for hit in ws.recent(5))
        other = writer.episode(id="b")
        other.append(**_step(10))
        episode = writer.resume_episode("a")
        other.append(**_step(11))
        ids = [episode.append(**_step(uid)) for uid in range(1, 3)]
        assert ids[0].seq == 3  # row 1 of the new log holds what was seen after step 0
    files = [f for f in ws.path.rglob("00000000.seg") if f.parent.name == f"{ids[0].writer:016x}"]
    _flip(files[0], 1)
    report = verify(ws.path, repair=True)
    assert report.repaired is not None and named(report.repaired.rows) == {(ids[0].writer, 1), tuple(ids[0])}
    with rc.open_workspace("w") as ws:
        now = read(ws)
        assert now[first][-1] in (None, np.full(2, -1, np.float32).tobytes()) and tuple(ids[0]) not in now


@pytest.mark.parametrize("how", ["damaged", "gone"])
def test_the_beginning_of_an_evicted_log_is_found_again(whole: Path, how: str) -> None:
    with rc.open_workspace(whole) as ws:
        ws.set_keep(rc.Keep(rows=150, unpromoted="drop"))
        ws.evict()
        ws.set_keep(rc.Keep())
        left = read(ws)
        assert len(left) < 250
    note = next(whole.rglob("first.json"))
    if how == "damaged":
        note.write_bytes(b"{}")
        with pytest.raises(CorruptionError):
            rc.open_workspace(whole).view()
    else:
        note.unlink()
    report = verify(whole, repair=True)
    assert report.ok and report.repaired is not None and not report.repaired.failed, report
    with rc.open_workspace(whole) as ws:
        assert read(ws) == left
        assert not verify(whole, repair=True).repaired.changed  # type: ignore[union-attr]


def test_a_log_that_lost_its_seal_and_its_end_says_from_where(whole: Path) -> None:
    with rc.open_workspace(whole) as ws:
        rows, told = read(ws), facts(ws)
    log = max((p for p in (whole / "log").iterdir() if p.is_dir()), key=lambda p: len([*p.glob("*.seg")]))
    (log / "sealed.json").write_bytes(b"{}")
    max(log.glob("*.seg")).unlink()
    assert_repaired(whole, rows, told, "seal and last segment")
