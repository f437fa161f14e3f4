"""Views that grow: at every moment what a view made from scratch is, and for ever what they were."""

from __future__ import annotations

import io
import json
import mmap
import os
import time
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors
from recollect.hot.read.live import LiveSource
from recollect.hot.read.log import WriterLog
from recollect.hot.read.store import HotStore
from recollect.hot.write import growing
from recollect.records import grow
from recollect.records.grow import Growing
from recollect.records.grown import GrownView
from recollect.records.layout import Layout
from recollect.view import Extent, FactIndex, StepId
from tests.hot.live_world import World, assert_same, deepest, everything, leave_out_cut_stacks
from tests.support import SCHEMAS, run_python

PLAIN = rc.Schema({"uid": rc.Tensor("int64"), "reward": rc.Tensor("float32")})
UNPUBLISHED = """
import os, sys
import recollect as rc
from recollect.hot.write.growing import GrowingLog
ws = rc.open_workspace(sys.argv[1])
episode = ws.writer(durability="process").episode()
for uid in range(3):
    if uid == 2:
        GrowingLog.publish = lambda self: os._exit(0)
    episode.append(uid=uid, reward=0.0)
"""
FORKED = """
import os, sys
import recollect as rc
ws = rc.open_workspace(sys.argv[1])
episode = ws.writer(durability="process").episode()
episode.append(uid=0, reward=0.0)
source = ws.live()
assert source.at(0).cut.rows == 1
here, there = os.pipe()
pid = os.fork()
if pid == 0:
    os.read(here, 1)
    os._exit(source.at(0).cut.rows)
episode.append(uid=1, reward=0.0)
os.write(there, b"x")
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""
SEEDS = [0, *(pytest.param(s, marks=pytest.mark.torture) for s in range(1, 40))]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", SCHEMAS)
def test_at_every_moment_it_is_what_a_view_of_its_cut_is(kind: str, seed: int) -> None:
    schema = SCHEMAS[kind]()
    rng = np.random.default_rng([seed, 21])
    with rc.create_workspace("w", schema) as ws:
        world = World(ws, schema, rng)
        for _ in range(int(rng.integers(0, 60))):
            world.act()
        source = ws.live()
        kept: list[tuple[rc.View, dict[str, Any]]] = []
        before: list[Any] = []
        for moment in range(24):
            for _ in range(int(rng.integers(0, 12))):
                world.act()
            view = source.at(0)
            have = everything(view, batches=moment % 8 == 7)
            assert_same(have, everything(ws.view(view.cut), batches=moment % 8 == 7))
            ids = view.rows.ids(np.arange(len(view.rows))).tolist()
            assert ids[: len(before)] == before, "a row's slot changed"
            before = ids
            assert sorted(view.cut.facts) == sorted(ws.cut().facts) and view.cut.rows == ws.cut().rows
            if moment % 4 == 3:
                kept.append((view, have))
        for view, have in kept:
            assert_same(everything(view, batches="batches" in have), have)


def test_an_observation_that_waited_is_the_next_one_though_its_log_is_read_after_the_steps_that_follow() -> None:
    """The episode went on with the very observation that had waited; both logs hold it by then."""
    schema = rc.Schema({"observation": rc.Tensor("float32", (1,)), "uid": rc.Tensor("int64")})
    layout = Layout.of(schema)
    with rc.create_workspace("w", schema) as ws:
        first, second = ws.writer(), ws.writer()
        episode = first.episode(id="e")
        episode.append(observation=[0], uid=0, next_observation=[1])
        episode.close()
        again = second.resume_episode("e")
        for k in range(1, 5):
            again.append(observation=[k], uid=k)
        store = ws._hot()
        ws.view()
        for late in (1, 2, 4):  # steps that are there before the final row comes
            rows = Growing(layout)
            for writer, start, stop in ((first.id, 0, 1), (second.id, 0, late), (first.id, 1, 2), (second.id, late, 4)):
                pieces = store.pieces((Extent(writer, start, stop),), layout) if stop > start else []
                assert rows.add(writer, start, pieces, strict=True) == stop - start
            view = GrownView(rows.anchors(lambda ids: []), (), lambda: FactIndex(), "w")
            (after,) = view.episodes.next_observation(np.arange(1))
            assert after == 1 + late


# -- windows ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", ["vector", "frames-zero", "nested-with-nulls", "no-observation"])
def test_a_window_is_a_view_of_its_newest_rows(kind: str, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grow, "KEPT_ROWS", 8)
    schema = SCHEMAS[kind]()
    stack = deepest(schema)
    rng = np.random.default_rng([seed, 22])
    with rc.create_workspace("w", schema) as ws:
        world = World(ws, schema, rng)
        for _ in range(60):
            world.act()
        last = 25
        source = ws.live(last=last)
        kept: list[tuple[rc.View, int, dict[str, Any]]] = []
        slot_of: dict[Any, int] = {}
        for moment in range(30):
            for _ in range(int(rng.integers(0, 14))):
                world.act()
            view = source.at(0)
            first = view.rows.first  # type: ignore[attr-defined]
            batches = stack == 1 and moment % 8 == 7
            have = everything(view, first=first, batches=batches)
            assert have["rows"] == view.cut.rows == min(last, first + have["rows"])
            for slot, i in enumerate(view.rows.ids(np.arange(first, first + have["rows"])).tolist(), first):
                assert slot_of.setdefault(i, slot) == slot, "a row's slot changed"
            scratch = ws.view(view.cut)
            want = everything(scratch, batches=batches)
            if stack > 1:
                leave_out_cut_stacks(scratch, stack, want)
            assert_same(have, want)
            moments = view.moment  # type: ignore[attr-defined]
            assert len(moments.address) <= 8 * last and len(moments.blocks) <= 40
            if moment % 5 == 4:
                kept.append((view, first, have))
        assert source.at(0).rows.first > 3 * last, "nothing was let go of"  # type: ignore[attr-defined]
        for view, first, have in kept:
            assert_same(everything(view, first=first, batches="batches" in have), have)


def test_a_window_begins_with_the_newest_rows_of_all_writers() -> None:
    with rc.create_workspace("w", PLAIN) as ws:
        episodes = [ws.writer().episode() for _ in range(3)]
        for uid in range(90):
            episodes[uid % 3].append(uid=uid, reward=0.0)
        view = ws.live(last=40).at(0)
        uids = view.rows.gather(np.arange(40), ("uid",))["uid"]
        assert sorted(uids.tolist()) == list(range(50, 90))
        assert len(ws.live(last=1000).at(0)) == len(ws.live().at(0)) == 90


def test_blocks_and_arrays_behind_a_window_are_let_go_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing, "SEGMENT_BYTES", (1 << 14,))
    with rc.create_workspace("w", PLAIN) as ws:
        writer = ws.writer()
        source = ws.live(last=200)
        sizes, blocks = [], []
        for k in range(60):
            writer.extend(
                {
                    "episode": np.full(400, k),
                    "step": np.arange(400),
                    "uid": np.arange(400),
                    "reward": np.zeros(400, np.float32),
                }
            )
            moment = source.at(0).moment  # type: ignore[attr-defined]
            sizes.append(len(moment.address))
            blocks.append(len(moment.blocks))
        assert len(list(ws.path.glob("log/*/*.seg"))) > 50
        assert max(sizes) <= 4 * 4096 and max(blocks) < 40
        assert len(moment.keys) < 30 and len(moment.cut_extents) == 1


# -- resumed episodes ------------------------------------------------------------------------------------------------


def _two(ws: rc.Workspace) -> tuple[rc.Writer, rc.Writer]:
    """Two writers with a step each, the one that is looked at later first."""
    later, earlier = sorted((ws.writer(), ws.writer()), key=lambda w: w.id)
    for writer in (later, earlier):
        writer.episode().append(uid=100, reward=0.0)
    return earlier, later


def _hand_over(earlier: rc.Writer, later: rc.Writer) -> None:
    """An episode of three steps, gone on with by a writer that is looked at before the one that began it."""
    episode = earlier.episode()
    for uid in range(3):
        episode.append(uid=uid, reward=0.0)
    episode.close()
    again = later.resume_episode(episode.key)
    for uid in range(3, 6):
        again.append(uid=uid, reward=0.0)


def _uids(view: rc.View) -> list[int]:
    return [int(u) for u in view.rows.gather(np.arange(len(view.rows)), ("uid",))["uid"]]


def _newest(view: rc.View, count: int) -> list[tuple[int, float]]:
    stop = view.rows.first + len(view.rows)  # type: ignore[attr-defined]
    found = view.rows.gather(np.arange(stop - count, stop), ("uid", "reward"))
    return list(zip(found["uid"].tolist(), found["reward"].tolist(), strict=True))


def _reader(ws: rc.Workspace) -> LiveSource:
    """A source with logs of its own, which have seen nothing yet."""
    return LiveSource(HotStore(ws.path / "log", ws._hot().layouts))


def test_a_resumed_step_comes_after_its_predecessor() -> None:
    with rc.create_workspace("w", PLAIN) as ws:
        _hand_over(*_two(ws))
        view = ws.live().at(0)
        slots = view.rows.find(ws.view().rows.ids(np.arange(8)))
        assert sorted(slots.tolist()) == list(range(8))
        uids = _uids(view)
        assert [u for u in uids if u < 100] == [0, 1, 2, 3, 4, 5]
        at = np.array([uids.index(u) for u in range(6)])
        assert view.episodes.offset(at, 1).tolist() == [*at[1:].tolist(), -1]


def test_a_predecessor_that_was_looked_at_too_early_is_looked_for_again(monkeypatch: pytest.MonkeyPatch) -> None:
    with rc.create_workspace("w", PLAIN) as ws:
        source = _reader(ws)
        earlier, later = _two(ws)
        assert _uids(source.at(0)) == [100, 100]
        _hand_over(earlier, later)
        look = WriterLog.refresh
        looks: list[int] = []

        def late(log: WriterLog) -> None:
            if log.writer == earlier.id:
                looks.append(1)
                if len(looks) == 1:
                    return  # as if its rows had been published just after this look
            look(log)

        monkeypatch.setattr(WriterLog, "refresh", late)
        view = source.at(0)
        assert _uids(view) == [100, 100, 0, 1, 2, 3, 4, 5]
        assert ws.cut().rows == 8
        assert_same(everything(view), everything(ws.view(view.cut)))


def test_what_came_after_lost_rows_is_left_out_until_they_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    with rc.create_workspace("w", PLAIN) as ws:
        source = _reader(ws)
        earlier, later = _two(ws)
        assert _uids(source.at(0)) == [100, 100]
        _hand_over(earlier, later)
        later.episode().append(uid=101, reward=0.0)
        with monkeypatch.context() as lost:
            look = WriterLog.refresh
            lost.setattr(WriterLog, "refresh", lambda log: None if log.writer == earlier.id else look(log))
            for _ in range(2):
                assert _uids(source.at(0)) == [100, 100]
        assert _uids(source.at(0)) == [100, 100, 0, 1, 2, 3, 4, 5, 101]


# -- late facts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("last", [None, 30])
def test_each_view_keeps_the_facts_of_its_cut(last: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A step is annotated again and again while rows arrive and leave."""
    monkeypatch.setattr(grow, "KEPT_ROWS", 16)
    with rc.create_workspace("w", PLAIN) as ws:
        episode = ws.writer().episode()
        ids = [episode.append(uid=uid, reward=-1.0) for uid in range(20)]
        source = ws.live(last=last)
        rewards = dict.fromkeys(range(20), -1.0)
        views = []
        for k in range(120):
            target = int(len(ids) - 1 - k % 7)
            ws.annotate(ids[target], reward=float(k))
            rewards[target] = float(k)
            if k % 3 == 0:
                rewards[len(ids)] = -1.0
                ids.append(episode.append(uid=len(ids), reward=-1.0))
            view = source.at(0)
            first = view.rows.first  # type: ignore[attr-defined]
            views.append((view, first, [rewards[u] for u in range(first, len(ids))]))
        for view, first, want in views:
            slots = np.arange(first, first + len(view.rows))
            assert view.rows.gather(slots, ("reward",))["reward"].tolist() == want


def test_a_fact_that_is_seen_before_its_step_waits_for_it() -> None:
    with rc.create_workspace("w", PLAIN) as ws:
        source = _reader(ws)
        earlier, _ = _two(ws)
        source.at(0)
        step = earlier.episode().append(uid=7, reward=0.0)
        ws.annotate(step, reward=5.0)
        source._store.refresh()
        log = source._store.logs[earlier.id]
        rows, log.rows = log.rows, log.rows - 1
        with pytest.MonkeyPatch.context() as early:
            early.setattr(source._store, "refresh", lambda: None)
            view = source.at(0)
            assert _uids(view) == [100, 100] and len(view.cut.facts) == 1
            log.rows = rows
            assert source.at(0).rows.gather(np.arange(3), ("reward",))["reward"].tolist() == [0.0, 0.0, 5.0]


# -- what a refresh costs --------------------------------------------------------------------------------------------


def _settle(ws: rc.Workspace) -> None:
    """Makes the folder of logs old enough to be believed."""
    os.utime(ws.path / "log", ns=(time.time_ns() - 10**10,) * 2)


def test_a_refresh_with_nothing_new_touches_counters_only(monkeypatch: pytest.MonkeyPatch) -> None:
    with rc.create_workspace("w", PLAIN) as ws:
        episodes = [ws.writer().episode(status="begun") for _ in range(3)]
        for episode in episodes:
            episode.append(uid=1, reward=0.0)
        source = ws.live()
        _settle(ws)
        view = source.at(0)
        calls: list[str] = []

        def forbid(owner: Any, name: str) -> None:
            real = getattr(owner, name)

            def counted(*a: Any, **k: Any) -> Any:
                calls.append(name)
                return real(*a, **k)

            monkeypatch.setattr(owner, name, counted)

        for owner, names in {
            os: ("listdir", "scandir", "open"),
            io: ("open",),
            mmap: ("mmap",),
            json: ("loads",),
            WriterLog: ("pieces", "tails", "fact_pieces", "_refresh"),
            np: ("empty", "array"),
        }.items():
            for name in names:
                forbid(owner, name)
        for _ in range(100):
            assert source.at(0) is view
        assert calls == []
        episodes[1].append(uid=2, reward=0.0)
        assert source.at(0).cut.rows == 4
        assert {"pieces", "empty"} <= set(calls) and not {"listdir", "scandir", "open", "loads"} & set(calls)


def test_a_new_writer_is_seen_at_once_however_young_or_old_the_folder() -> None:
    with rc.create_workspace("w", PLAIN) as ws:
        source = ws.live()
        for k in range(1, 4):
            _settle(ws)
            assert source.at(0).cut.rows == k - 1
            ws.writer().episode().append(uid=k, reward=0.0)
            assert source.at(0).cut.rows == k
        now = time.time_ns()
        os.utime(ws.path / "log", ns=(now, now))
        assert source.at(0).cut.rows == 3
        ws.writer().episode().append(uid=9, reward=0.0)
        os.utime(ws.path / "log", ns=(now, now))  # the file system's clock ticks some 100 times a second
        assert source.at(0).cut.rows == 4


def test_a_forked_child_sees_what_is_appended_after() -> None:
    with rc.create_workspace("w", PLAIN) as ws:
        assert run_python(FORKED, str(ws.path)) == "2\n"


def test_closed_logs_are_looked_at_no_more() -> None:
    with rc.create_workspace("w", PLAIN) as ws:
        writers = [ws.writer() for _ in range(3)]
        source = ws.live()
        for writer in writers:
            writer.episode().append(uid=0, reward=0.0)
        assert source.at(0).cut.rows == 3
        for writer in writers[:2]:
            writer.close()
        assert len(source.at(0).cut.facts) == 2, "a log that closes says that its episodes were interrupted"
        logs = ws._hot().logs
        assert [logs[w.id].sealed for w in writers] == [True, True, False]
        assert [s.durable for s in ws.stats().writers if not s.live] == [1, 1]
        assert [log.writer for log in source._growing] == [writers[2].id]


def test_a_dead_writers_log_is_what_its_recovery_says() -> None:
    """A frame that was whole when its writer died counts, published or not; readers find the seal by its mark."""
    with rc.create_workspace("w", PLAIN) as ws:
        child = run_python(UNPUBLISHED, str(ws.path))
        store = HotStore(ws.path / "log", ws._hot().layouts)
        source = LiveSource(store)
        before = source.at(0)
        assert before.rows.gather(np.arange(2), ("uid",))["uid"].tolist() == [0, 1]
        assert before.cut.rows == 2 and child == ""
        assert [r.rows for r in rc.open_workspace("w").recovered] == [3]
        view = source.at(0)
        assert view.rows.gather(np.arange(3), ("uid",))["uid"].tolist() == [0, 1, 2]
        assert store.logs[view.cut.extents[0].writer].sealed


# -- refusals --------------------------------------------------------------------------------------------------------


def test_what_is_no_window_is_refused() -> None:
    with rc.create_workspace("w", PLAIN) as ws:
        for bad in (0, -1, 1.5, True):
            with pytest.raises(errors.ArgumentError, match="last"):
                ws.live(last=bad)  # type: ignore[arg-type]
        assert len(ws.live().at(0)) == len(ws.live(last=3).at(0)) == 0
    with pytest.raises(errors.SchemaError, match="no schema"):
        rc.create_workspace("empty").live()


def test_a_cut_whose_rows_are_gone_is_refused_by_name() -> None:
    with rc.create_workspace("a", PLAIN) as a, rc.create_workspace("b", PLAIN) as b:
        writer = a.writer()
        writer.episode().append(uid=0, reward=0.0)
        source = a.live()
        cut = source.at(0).cut
        assert_same(everything(source.pinned(cut)), everything(source.at(0)))
        with pytest.raises(errors.NotFound, match=f"rows 0 to 1 of writer {writer.id}"):
            b.live().pinned(cut)
        with pytest.raises(errors.NotFound, match="rows 0 to 5"):
            source.pinned(rc.Cut((rc.Extent(writer.id, 0, 5),), ()))


def test_logs_that_are_gone_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer per episode would otherwise leave its numbers behind in every view and every mark."""
    monkeypatch.setattr(growing, "SEGMENT_BYTES", (1 << 14,))
    keep = rc.Keep(rows=100, unpromoted="drop")
    with rc.create_workspace("w", PLAIN, durability="process", keep=keep) as ws:
        source, whole = ws.live(last=100), ws.live()
        ids = []
        for k in range(60):
            with ws.writer() as writer, writer.episode() as episode:
                ids += [episode.append(uid=10 * k + i, reward=0.0, terminated=i == 9) for i in range(10)]
                ws.annotate(ids[-1], reward=1.0)
            source.refresh(), whole.refresh()
            if k % 10 == 9:
                ws.evict()
        view = source.refresh()
        logs = len(ws._hot().logs)
        assert logs < 25
        for one in (source, whole):
            assert len(one._seen) <= logs + 10 and len(one._facts_seen) <= logs + 10
        mark = source.mark(view)
        assert len(mark["seen"]) <= logs + 10
        assert _newest(view, 100) == [(u, float(u % 10 == 9)) for u in range(500, 600)]
        again = ws.live(last=100)
        assert again.restore([mark])[0].cut == view.cut and again.refresh().cut == view.cut
        with ws.writer() as writer:
            ids.append(writer.episode().append(uid=600, reward=0.0))
            assert _newest(again.refresh(), 2) == [(599, 1.0), (600, 0.0)] == _newest(source.refresh(), 2)

        gone, lost = ids[0], StepId(ids[0].writer, 10**6)
        whole._seen[gone.writer] = 10
        whole._unplaced = [gone, lost]
        whole._open_logs({gone.writer})
        assert whole._seen[gone.writer] == 10 and whole._unplaced == [gone, lost]
        whole._open_logs(())
        assert gone.writer not in whole._seen and whole._unplaced == [gone], "its row is still in the view"


@pytest.mark.parametrize("last", [60, 100, 140])
def test_a_window_that_begins_amid_many_episodes_keeps_each_writer_s_order(last: int) -> None:
    """Every open episode's first row in the window lacks its predecessor; those behind it must not overtake it."""
    with rc.create_workspace("w", PLAIN) as ws:
        writers = [ws.writer(durability="process") for _ in range(2)]
        episodes = [writer.episode() for writer in writers for _ in range(5)]
        for uid in range(200):
            episodes[uid * 7 % 10].append(uid=uid, reward=0.0)
        view = ws.live(last=last).at(0)
        first = int(getattr(view.rows, "first", 0))
        slots = np.arange(first, first + len(view.rows))
        assert len(slots) == last
        ids = view.rows.ids(slots)
        for writer in writers:
            seq = ids["seq"][ids["writer"] == writer.id]
            assert np.array_equal(seq, np.arange(seq[0], seq[0] + len(seq)))
        linked = view.episodes.offset(slots, 1) >= 0
        assert np.count_nonzero(~linked) == len(episodes), "only the newest step of each has none after it"
