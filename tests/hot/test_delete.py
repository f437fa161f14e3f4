"""Deletion: gone from every read in every process at the next look; with purge, from every file of the workspace."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect.errors import ArgumentError, EpisodeError, NotFound, WriterError
from recollect.hot.format.holes import read_holes
from recollect.hot.retention.delete import delete_rows
from recollect.hot.write import growing
from recollect.view import Extent, StepId
from tests.hot.test_repair import FIELDS, SCHEMA, _fill, _step, dying, facts, read
from tests.support import python

SECRET = "the secret of the seventh seal"
MARK = 1234.5625
"""A number whose bytes are looked for."""


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing, "SEGMENT_BYTES", (1 << 13,))


@pytest.fixture
def filled(small_segments: None) -> Path:
    with rc.create_workspace("w", SCHEMA) as ws:
        _fill(ws)
    return ws.path


def named(extents: Any) -> set[tuple[int, int]]:
    return {(e.writer, seq) for e in extents for seq in range(e.start, e.stop)}


def test_rows_are_gone_from_every_read(filled: Path) -> None:
    with rc.open_workspace(filled) as ws, rc.open_workspace(filled) as other:
        rows, told, view = read(other), facts(other), other.view()
        assert len(other.similar("number 77")) and other.live().refresh()
        uids = {*range(60, 90)} - {77}  # whose newest value is another, by a late fact
        trial = ws.delete(where="uid >= 60 and uid < 90", reason="poisoned", dry_run=True)
        assert trial.dry_run and read(other) == rows
        done = ws.delete(where="uid >= 60 and uid < 90", reason="poisoned")
        assert (done.rows, done.ids, done.facts) == (trial.rows, trial.ids, trial.facts) and done.rows >= len(uids)
        gone = named(done.ids)
        for seen in (ws, other):
            now = read(seen)
            assert now.keys() == rows.keys() - gone
            assert not {row[1] for row in now.values()} & uids
            for key, row in now.items():
                assert row[:-1] == rows[key][:-1] and row[-1] in (rows[key][-1], None)
                # The observation of a deleted step is gone wherever it could be read.
                assert row[-1] not in {np.full(2, uid, np.float32).tobytes() for uid in uids}
            assert not {hit["uid"] for hit in seen.recent(1000)} & uids
            assert all(hit["note"][-9:] != "number 78" for hit in seen.similar("number 78"))
            assert len(facts(seen)) == len(told) - done.facts
            assert seen.stats().rows == len(now)
            for row in now.values():
                seen.episode(rc.EpisodeKey(*row[3]))
        assert len(view.rows) == len(rows)  # what was made before is as it was
        assert ws.verify().ok
        with pytest.raises(NotFound):
            ws.annotate(StepId(*min(gone)), uid=1)
        again = ws.delete(ids=sorted(gone), reason="again")
        assert again.rows == 0


def test_by_episode_and_by_id(filled: Path) -> None:
    with rc.open_workspace(filled) as ws:
        rows = read(ws)
        key = ws.episode("e1").key
        mine = {i for i, row in rows.items() if row[3] == key}
        done = ws.delete(episodes=["e1"], reason="private")
        assert named(done.ids) == mine and done.whole_episodes == 1 and done.facts >= 1
        with pytest.raises(NotFound):
            ws.episode("e1")
        one = next(i for i, row in read(ws).items() if row[1] == 1003)
        assert named(ws.delete(ids=[str(StepId(*one))], reason="one").ids) == {one}
        assert one not in read(ws)
        with pytest.raises(NotFound):
            ws.delete(episodes=["nobody"], reason="x")
        for wrong in ({}, {"ids": [], "where": "uid = 1"}, {"ids": "1:2"}, {"ids": ["what"]}):
            with pytest.raises(ArgumentError):
                ws.delete(**wrong, reason="x")
        with pytest.raises(ArgumentError):
            ws.delete(ids=[], reason=" ")
        notes = [p.read_text() for p in ws.path.rglob("holes.json")]
        assert any("private" in note for note in notes) and not any("note number" in note for note in notes)


def test_a_step_never_gets_the_observation_of_another(filled: Path) -> None:
    with rc.open_workspace(filled) as ws:
        rows = read(ws)
        finals = ws.view().episodes.is_final
        slots = np.flatnonzero(finals)
        chosen = [tuple(i) for i in ws.view().rows.ids(slots).tolist()][::2]
        done = ws.delete(ids=chosen, reason="finals")
        assert done.rows == 2 * len(chosen)  # with the steps that they follow
        for key, row in read(ws).items():
            assert row[-1] in (rows[key][-1], None)


def _grep(path: Path, *needles: bytes) -> list[str]:
    return [
        f"{file.relative_to(path)}: {needle!r}"
        for file in sorted(path.rglob("*"))
        if file.is_file()
        for needle in needles
        if needle in file.read_bytes()
    ]


def _secrets(ws: rc.Workspace) -> None:
    writer = ws.writer(durability="process")
    episode = writer.episode(id="ordinary", task="walk")
    for uid in range(40):
        episode.append(**_step(uid))
    with writer.episode(id="hidden", task=SECRET) as hidden:
        for uid in range(40, 80):
            values = {**_step(uid), "note": f"{SECRET} {uid}", "observation": np.full(2, MARK, np.float32)}
            hidden.append(**values, next_observation=np.full(2, MARK, np.float32))
            episode.append(**_step(100 + uid))
        hidden.finish(status="failure", lesson=SECRET)
    writer.extend(
        {
            "episode": np.array([7] * 8),
            "step": np.arange(8),
            "observation": np.array([[k, MARK if k == 5 else k] for k in range(8)], np.float32),
            "picture": np.array([[k + 1] * 3 for k in range(8)], np.uint8),
            "note": [SECRET if k == 5 else f"plain {k}" for k in range(8)],
            "uid": np.arange(200, 208),
            "terminated": np.arange(8) == 7,
        }
    )
    episode.append(**_step(300))
    ws.annotate("hidden", lesson=SECRET + " again")
    assert len(ws.similar("seventh seal")) and ws._hot().catalog.catch_up(ws.cut())
    writer.close()


def test_purged_values_are_in_no_file(small_segments: None) -> None:
    needles = (SECRET.encode(), b"seventh", np.float32(MARK).tobytes())
    with rc.create_workspace("w", SCHEMA) as ws:
        _secrets(ws)
    with rc.open_workspace(ws.path) as ws:
        assert _grep(ws.path, *needles)
        hidden = ws.episode("hidden").key
        before = {i: row for i, row in read(ws).items() if row[3] != hidden and row[1] != 205}
        held, view = read(ws), ws.view()
        where = "uid >= 40 and uid < 80 or uid = 205"
        assert ws.delete(where=where, reason="private").rows >= 41
        assert _grep(ws.path, *needles)  # still in the files
        done = ws.delete(purge=True, reason="private")
        assert done.purged and done.rows == 0
        assert not _grep(ws.path, *needles)
        now = read(ws)
        assert {i: row[:-1] for i, row in now.items()} == {i: row[:-1] for i, row in before.items()}
        assert len(view.rows) == len(held)  # its maps are the old files
        assert any(MARK in row for row in view.rows.gather(np.arange(len(view.rows)), ("observation",))["observation"])
        assert ws.verify().ok
        sizes = {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in ws.path.rglob("*.seg")}
        ws.delete(purge=True, reason="again")
        assert {p: (p.stat().st_ino, p.stat().st_mtime_ns) for p in ws.path.rglob("*.seg")} == sizes
    with rc.open_workspace(ws.path) as ws:
        assert {i: row[:-1] for i, row in read(ws).items()} == {i: row[:-1] for i, row in before.items()}
        assert not ws.similar("seventh seal") and ws.verify(repair=True).ok


def test_a_live_writers_rows_are_deleted_and_not_purged(small_segments: None) -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        with ws.writer(durability="process") as writer:
            episode = writer.episode(id="a")
            ids = [episode.append(**_step(uid)) for uid in range(300)]
            with pytest.raises(WriterError, match="live"):
                ws.delete(ids=ids[100:150], reason="x", purge=True)
            assert len(read(ws)) == 300
            ws.delete(ids=ids[100:150], reason="x")
            more = [episode.append(**_step(uid)) for uid in range(300, 320)]
            kept = {tuple(i) for i in [*ids[:100], *ids[150:], *more]}
            assert read(ws).keys() == kept
            ws.delete(ids=more[-1:], reason="newest")
            last = episode.append(**_step(320))
        ws.delete(purge=True, reason="x")
        assert read(ws).keys() == (kept - {tuple(more[-1])}) | {tuple(last)}
        assert not _grep(ws.path, b"note number 120", b"note number 319") and _grep(ws.path, b"note number 99")


def test_a_growing_view_keeps_its_slots(small_segments: None) -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer(durability="process") as writer:
        episode = writer.episode(id="a")
        ids = [episode.append(**_step(uid)) for uid in range(60)]
        live, window = ws.live(), ws.live(last=40)
        old, small = live.refresh(), window.refresh()
        loader = rc.Loader(ws.live(), rc.Prioritized(), batch_size=16, seed=0)
        next(loader)
        ws.delete(ids=ids[30:50], reason="x")
        ids += [episode.append(**_step(uid)) for uid in range(60, 70)]
        ws.delete(ids=ids[65:67], reason="y")  # never seen
        gone = {tuple(i) for i in ids[30:50] + ids[65:67]}
        for source, before in ((live, old), (window, small)):
            view = source.refresh()
            drawable = view.anchors.select(np.arange(len(view)))
            there = {tuple(i) for i in view.rows.ids(drawable).tolist()}
            assert not there & gone and not {tuple(ids[29]), tuple(ids[64])} & there  # nothing follows them
            assert {tuple(i) for i in ids[51:64]} <= there
            known = before.anchors.select(np.arange(len(before)))
            slots = {tuple(i): int(s) for s, i in zip(known, before.rows.ids(known).tolist(), strict=True)}
            for slot, i in zip(drawable.tolist(), view.rows.ids(drawable).tolist(), strict=True):
                assert slots.get(tuple(i), slot) == slot
            after = view.episodes.offset(drawable, 1)
            step = view.rows.gather(drawable, ("step",))["step"]
            follows = view.rows.gather(after, ("step",))["step"]
            assert (follows[after >= 0] == step[after >= 0] + 1).all()
            assert len(old) == 59
        for _ in range(20):
            drawn = next(loader)
        assert not {tuple(i) for i in drawn.ids.tolist()} & gone


def test_promotion_passes_a_hole_once(filled: Path, tmp_path: Path) -> None:
    with rc.open_workspace(filled) as ws:
        rows = read(ws)
        first = ws.snapshot(tmp_path / "b", tag="one", where="episode.task = 'again'")
        assert first.held_rows and not first.gap_rows
        done = ws.delete(where="uid < 30 or uid > 140 and uid < 145", reason="x")
        left = {i for i, row in read(ws).items()}
        held = {i for i in named(done.ids) if rows[i][1] < 30}
        with rc.open_buffer(tmp_path / "b") as buffer:
            before = {tuple(i) for i in buffer.at("one").rows.ids(np.arange(len(buffer.at("one").rows))).tolist()}
        second = ws.snapshot(tmp_path / "b", tag="two")
        assert second.rows_added == len(left - before) and second.gap_rows == len(named(done.ids) - before) >= len(held)
        third = ws.snapshot(tmp_path / "b", tag="three")
        assert third.rows_added == 0 and third.gap_rows == 0
        with rc.open_buffer(tmp_path / "b") as buffer:
            view = buffer.at("two")
            ids = [tuple(i) for i in view.rows.ids(np.arange(len(view.rows))).tolist()]
            assert set(ids) == left | before and len(ids) == len(set(ids))
        with ws.writer(durability="process") as writer, writer.episode() as episode:
            episode.append(**_step(9), terminated=True)
        assert ws.snapshot(tmp_path / "b").rows_added == 1
        ws.set_keep(rc.Keep(rows=1))
        ws.evict()
        assert ws.stats().rows <= 50 and ws.stats().retention is not None
        assert ws.stats().retention.dropped_rows == 0  # type: ignore[union-attr]
        assert ws.snapshot(tmp_path / "b").gap_rows == 0 and ws.verify().ok


def test_an_episode_whose_newest_steps_are_gone_is_not_resumed(small_segments: None) -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        with ws.writer(durability="process") as writer:
            episode = writer.episode(id="a")
            ids = [episode.append(**_step(uid)) for uid in range(9)]
            other = writer.episode(id="b")
            kept = [other.append(**_step(uid)) for uid in range(9)]
        ws.delete(ids=ids[6:], reason="x")
        ws.delete(ids=kept[2:4], reason="x")
        with ws.writer(durability="process") as writer:
            with pytest.raises(EpisodeError):
                writer.resume_episode("a")
            writer.resume_episode("b").append(**_step(9))
        assert len(ws.episode("b")) == 8
        ws.delete(ids=ids, reason="all of it")
        with ws.writer() as writer, pytest.raises((EpisodeError, NotFound)):
            writer.resume_episode(rc.EpisodeKey(ids[0].writer, 0))


def test_extents_may_name_what_is_not_there(filled: Path) -> None:
    with rc.open_workspace(filled) as ws:
        writer = ws.cut().extents[0].writer
        done = delete_rows(ws._hot(), [Extent(writer, 0, 1 << 40), Extent(5, 0, 10)], "all of it")
        assert done.rows and not any(e.writer == writer for e in ws.cut().extents)
        assert delete_rows(ws._hot(), [Extent(writer, 0, 5)], "again").rows == 0
        assert ws.verify().ok


def test_beside_a_writer_a_live_view_and_a_promoter(small_segments: None, tmp_path: Path) -> None:
    """Rows are deleted as they come, in one process while it promotes, reads and grows views of another's log."""
    child = python(
        "import sys, time, numpy as np, recollect as rc\n"
        "from recollect.hot.write import growing\n"
        "growing.SEGMENT_BYTES = (1 << 13,)\n"
        "ws = rc.open_workspace(sys.argv[1])\n"
        "with ws.writer(durability='process') as writer:\n"
        "    for start in range(0, 3000, 50):\n"
        "        with writer.episode(id=str(start)) as episode:\n"
        "            for uid in range(start, start + 50):\n"
        "                episode.append(observation=np.full(2, uid, np.float32), uid=uid, terminated=uid % 50 == 49)\n"
        "        time.sleep(0.01)\n",
        str(rc.create_workspace("w", SCHEMA).path),
    )
    with rc.open_workspace("w") as ws:
        live = ws.live()
        gone: set[tuple[int, int]] = set()
        stop = threading.Event()
        failed: list[BaseException] = []

        def promote() -> None:
            try:
                with rc.open_workspace("w") as mine:
                    while not stop.is_set():
                        mine.snapshot(tmp_path / "b")
            except BaseException as e:
                failed.append(e)

        thread = threading.Thread(target=promote)
        thread.start()
        turn = 0
        while child.poll() is None or turn < 5:
            turn += 1
            gone |= named(ws.delete(where=f"uid % 10 = {turn % 10} and uid < 2500", reason="x").ids)
            view = live.refresh()
            drawable = view.anchors.select(np.arange(len(view)))
            assert not {tuple(i) for i in view.rows.ids(drawable).tolist()} & gone
            assert not read(ws).keys() & gone
        stop.set()
        thread.join()
        child.communicate()
        assert child.returncode == 0 and not failed, failed
        ws.snapshot(tmp_path / "b")
        left = read(ws).keys()
        assert len(left | gone) == 3000 and not left & gone
        with rc.open_buffer(tmp_path / "b") as buffer:
            view = buffer.at()
            ids = [tuple(i) for i in view.rows.ids(np.arange(len(view.rows))).tolist()]
            assert len(ids) == len(set(ids)) and set(ids) >= left and set(ids) <= left | gone
        assert ws.verify().ok


@pytest.mark.parametrize("point", [*range(0, 30, 3), pytest.param(-1, marks=pytest.mark.torture)])
def test_a_deletion_killed_at_any_call_is_done_by_the_next(
    small_segments: None, point: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    needles = (SECRET.encode(), b"seventh", np.float32(MARK).tobytes())
    where = "uid >= 40 and uid < 80 or uid = 205"
    with rc.create_workspace("w", SCHEMA) as ws:
        _secrets(ws)
    with rc.open_workspace(ws.path) as ws:
        rows = read(ws)
    finished = False
    for calls in range(100) if point < 0 else [point]:
        copy = ws.path.with_name(f"copy{calls}")
        shutil.copytree(ws.path, copy)
        with rc.open_workspace(copy) as mine, rc.open_workspace(copy) as other:
            read(other)
            with monkeypatch.context() as patch:
                dying(patch, calls)
                try:
                    mine.delete(where=where, reason="private", purge=True)
                    finished = True
                except KeyboardInterrupt:
                    pass
            for seen in (mine, other):
                now = read(seen)
                assert all(row[:-1] == rows[key][:-1] and row[-1] in (rows[key][-1], None) for key, row in now.items())
            mine.delete(where=where, reason="private", purge=True)
            assert not _grep(copy, *needles)
            left = read(mine)
            assert read(other) == left and {row[1] for row in left.values()} & {*range(40, 80), 205} == set()
            assert {row[1] for row in left.values()} >= {*range(40), *range(200, 205), 206, 207, 300}
            report = mine.verify()
            assert report.ok, report.problems
        shutil.rmtree(copy)
    assert finished or 0 <= point < 30


def test_rows_of_an_older_schema_are_deleted(small_segments: None) -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        with ws.writer(durability="process") as writer:
            episode = writer.episode(id="a")
            ids = [episode.append(**_step(uid)) for uid in range(100)]
        live, cut = ws.live(), ws.cut()
        live.refresh()
        fields = {**FIELDS, "extra": rc.Tensor("int32", optional=True)}
        ws.evolve(rc.Schema(fields, episode={"task": rc.Text()}))
        ws.delete(ids=ids[20:40], reason="x")
        assert read(ws).keys() == {tuple(i) for i in ids[:20] + ids[40:]}
        old = ws.view(cut)  # a cut that names them: their slots are blank
        assert len(old.rows) == 100 and (old.episodes.group == -1).sum() == 20
        view = live.refresh()
        drawable = {tuple(i) for i in view.rows.ids(view.anchors.select(np.arange(len(view)))).tolist()}
        assert drawable == {tuple(i) for i in ids[:19] + ids[40:99]} and "extra" in view.schema.by_path
        with ws.writer(durability="process") as writer, writer.episode() as episode:
            episode.append(**_step(500), extra=7)
        ws.delete(where="extra = 7", reason="x")
        assert 500 not in {row[1] for row in read(ws).values()}


def test_frames_are_not_stacked_over_a_hole(small_segments: None) -> None:
    schema = rc.Schema({"observation": rc.Frames((2, 2), stack=3), "uid": rc.Tensor("int64")})
    with rc.create_workspace("w", schema) as ws:
        with ws.writer(durability="process") as writer, writer.episode() as episode:
            ids = [
                episode.append(observation=np.full((2, 2), uid, np.uint8), uid=uid, terminated=uid == 19)
                for uid in range(20)
            ]
        live = ws.live()
        live.refresh()
        ws.delete(ids=ids[8:10], reason="x")
        for view in (ws.view(), live.refresh()):
            slots = view.anchors.select(np.arange(len(view)))
            # 7 has no next observation, and the stacks of 10 and 11 reach into the hole.
            assert sorted(view.rows.gather(slots, ("uid",))["uid"].tolist()) == [*range(7), *range(12, 20)]
            with rc.Loader(view, rc.Uniform(), batch_size=8, seed=0) as loader:
                for _ in range(5):
                    batch = next(loader)
                    newest, oldest = batch["observation"][:, -1, 0, 0], batch["observation"][:, 0, 0, 0]
                    follows = batch["next_observation"][:, -1, 0, 0]
                    assert all((newest >= 2) <= (newest - oldest == 2))
                    assert all((follows - newest == 1) | (newest == 19))
        assert [hit["uid"] for hit in ws.recent(5)] == [19, 18, 17, 16, 15]


def test_a_workspace_without_holes_is_read_as_ever(filled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No note is looked for but once a log: a look at what is new asks nothing more than before."""
    with rc.open_workspace(filled) as ws:
        ws.view()
        asked: list[Path] = []

        def counted(folder: Path) -> Any:
            asked.append(folder)
            return read_holes(folder)

        monkeypatch.setattr("recollect.hot.read.log.read_holes", counted)
        for _ in range(10):
            ws.view()
        assert not asked


def test_an_index_is_not_filled_with_what_was_purged_meanwhile(filled: Path) -> None:
    """A reader is amid bringing an index up to date with rows that it looked for before they were purged."""
    with rc.open_workspace(filled) as ws, rc.open_workspace(filled) as slow:
        store = slow._hot()
        text = slow._text_index()
        with store.pinned():
            cut = store.cut()
            ws.delete(where="uid = 78", reason="x", purge=True)
            assert text.file.write(lambda connection: text._add(connection, cut)) is None
            assert not store.catalog.catch_up(cut)
        assert not _grep(ws.path, b"number 78")
        assert slow.similar("number 79") and not _grep(ws.path, b"number 78")
        assert text.catch_up(store.cut()) and ws.verify().ok


def test_whoever_works_on_a_cut_goes_on_and_nobody_else(filled: Path, tmp_path: Path) -> None:
    """A snapshot of minutes reads its rows to the end; other threads of its process do not see them any more."""
    with rc.open_workspace(filled) as ws, rc.open_workspace(filled) as other:
        store = other._hot()
        with store.pinned():
            cut = store.cut()
            held = store.pieces(cut.extents)
            ws.delete(episodes=["e1"], reason="x", purge=True)
            store.refresh()
            again = store.pieces(cut.extents)
            assert [b.records[i:j].tobytes() for b, i, j in again] == [b.records[i:j].tobytes() for b, i, j in held]
            seen: list[object] = []

            def look() -> None:
                try:
                    other.episode("e1")
                except NotFound as e:
                    seen.append(e)
                seen.append(read(other))

            thread = threading.Thread(target=look)
            thread.start()
            thread.join()
            assert len(seen) == 2 and seen[1] == read(ws)
        assert read(other) == read(ws)
        with pytest.raises(NotFound):
            other.episode("e1")
