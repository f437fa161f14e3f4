"""Snapshots of some episodes: what is left out stays promotable, exactly once, and a dry run leaves no trace."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors
from recollect.cold.dataset import Datasets
from recollect.cold.fold import Promotion
from recollect.cold.history import History
from recollect.cold.location import Location
from recollect.hot.write import growing
from recollect.promote import stage
from recollect.promote.choose import left_alone
from tests.support import SCHEMAS, all_ids, order_of, python, random_trajectories, rows_of, write_appends

SCHEMA = rc.Schema(
    {"observation": rc.Tensor("float32", (2,)), "reward": rc.Tensor("float32"), "uid": rc.Tensor("int64")},
    episode={"task": rc.Text()},
)
TASKS = ("hopper", "walker", "ant")


def _same(hot: rc.View, cold: rc.View) -> None:
    """Fails unless two views have the same slots, values, links, drawable rows and facts."""
    assert hot.cut.extents == cold.cut.extents and all_ids(hot) == all_ids(cold)
    slots = np.arange(len(hot.rows))
    assert hot.anchors.mask(slots).tolist() == cold.anchors.mask(slots).tolist()
    assert (hot.anchors.undrawable_open, hot.anchors.undrawable_truncated, hot.anchors.undrawable_beheaded) == (
        cold.anchors.undrawable_open,
        cold.anchors.undrawable_truncated,
        cold.anchors.undrawable_beheaded,
    )
    after = [view.episodes.next_observation(slots) >= 0 for view in (hot, cold)]
    assert after[0].tolist() == after[1].tolist()
    assert hot.episodes.keys.tolist() == cold.episodes.keys.tolist()
    assert rows_of(hot) == rows_of(cold)


def _uids(view: rc.View) -> list[int]:
    """Those of the steps, final rows left out."""
    found: list[int] = view.rows.gather(np.flatnonzero(~view.episodes.is_final), ("uid",))["uid"].tolist()
    return found


class _Play:
    """Episodes of one writer that take turns, each with a task; uids count up."""

    def __init__(self, writer: rc.Writer, first: int = 0) -> None:
        self.writer, self.uid = writer, first
        self.open: dict[int, rc.Episode] = {}
        self.steps: dict[int, int] = {}
        self.opened = 0

    def begin(self, lane: int) -> rc.Episode:
        task = TASKS[self.opened % len(TASKS)]
        self.opened += 1
        self.steps[lane] = 0
        self.open[lane] = self.writer.episode(id=f"{self.writer.id}/{self.opened}", task=task)
        return self.open[lane]

    def step(self, lane: int, *, end: bool = False) -> None:
        episode = self.open.get(lane) or self.begin(lane)
        uid, at = self.uid, self.steps[lane]
        self.uid += 1
        self.steps[lane] += 1
        episode.append(observation=[at, lane], reward=1.0, uid=uid, terminated=end, next_observation=[at + 1, lane])
        if end:
            del self.open[lane]

    def turns(self, count: int, *, lanes: int = 5, seed: int = 0) -> None:
        chance = random.Random(seed)
        for k in range(count):
            self.step(k % lanes, end=chance.random() < 0.15)

    def finish(self) -> None:
        for lane in list(self.open):
            self.step(lane, end=True)


def test_held_back_rows_come_later_once_and_every_version_equals_its_hot_view(tmp_path: Path) -> None:
    to = tmp_path / "b"
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as one, ws.writer() as two:
        plays = [_Play(one), _Play(two, 10_000)]
        asked: list[dict[str, Any]] = [
            {"where": "episode.task = 'hopper'"},
            {"finished_only": True},
            {"finished_only": True, "where": "episode.task != 'ant'"},
            {},
            {"finished_only": True},
        ]
        held = []
        for k, options in enumerate(asked):
            for play in plays:
                play.turns(60, seed=k)
            before = rc.open_buffer(to).at().cut.rows if k else 0
            hot = ws.view()
            done = ws.snapshot(to, tag=f"t{k}", **options)
            assert done.cut is not None and done.rows == before + done.rows_added
            assert done.rows + done.held_rows == len(hot.rows)
            held.append(done.held_rows)
            view = rc.open_buffer(to).at(f"t{k}")
            _same(ws.view(cut=view.cut), view)
            _same(ws.view(cut=done.cut), rc.open_buffer(to).at(f"t{k}", cut=done.cut))
            ended = {key for key, n in _ends(hot).items() if n}
            here = {key for key, n in Counter(_keys(rc.open_buffer(to).at(f"t{k}", cut=done.cut))).items() if n}
            if "where" in options:
                tasks = {str(hot.facts.episodes[key]["task"]) for key in here}
                assert tasks == {"hopper"} if k == 0 else tasks == {"hopper", "walker"}
            if "finished_only" in options:
                assert here <= ended
                assert done.open_episodes == 0
        assert held[0] and held[1] and held[2] and not held[3] and held[4]
        for play in plays:
            play.finish()
        last = ws.snapshot(to, finished_only=True)
        assert last.held_rows == last.held_episodes == 0
        whole = rc.open_buffer(to).at()
        assert sorted(_uids(whole)) == sorted(_uids(ws.view()))
        assert set(Counter(all_ids(whole)).values()) == {1}
        assert whole.anchors.undrawable_open == 0, "every step found its successor"
        assert rc.open_buffer(to).verify().ok
        returns = rc.open_buffer(to).versions()[-1].statistics["returns"]
        assert returns["count"] == sum(play.opened for play in plays)
        assert returns["mean"] * returns["count"] == pytest.approx(len(_uids(whole)))
        assert ws.snapshot(to).rows_added == 0


def _keys(view: rc.View) -> list[rc.EpisodeKey]:
    keys = [rc.EpisodeKey(*key) for key in view.episodes.keys.tolist()]
    return [keys[k] for k in view.episodes.group.tolist() if k >= 0]


def _ends(view: rc.View) -> Counter[rc.EpisodeKey]:
    out: Counter[rc.EpisodeKey] = Counter()
    got = view.rows.gather(np.arange(len(view.rows)), ("terminated", "episode_writer", "episode"))
    for over, writer, counter in zip(*(got[k].tolist() for k in got), strict=True):
        out[rc.EpisodeKey(writer, counter)] += over
    return out


@pytest.mark.parametrize("kind", SCHEMAS)
def test_values_of_every_type_survive_being_held_back(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Long and short pieces, joined and not: the rows of one block are copied together before they are staged."""
    monkeypatch.setattr(stage, "SHORT_ROWS", 4)
    monkeypatch.setattr(stage, "JOINED_ROWS", 11)
    schema = SCHEMAS[kind]()
    rng = np.random.default_rng(5)
    trajectories = random_trajectories(schema, rng, count=24)
    with rc.create_workspace("w", schema) as ws, ws.writer() as writer:
        write_appends(writer, trajectories, order_of(trajectories, rng))
        names = sorted({ws.view().facts.id_of(rc.EpisodeKey(*k)) for k in ws.view().episodes.keys.tolist()})
        chosen = ", ".join(f"'{name}'" for name in names[::2])
        one = ws.snapshot(tmp_path / "b", where=f"episode.id in ({chosen})")
        assert one.rows_added and one.held_rows
        two = ws.snapshot(tmp_path / "b")
        assert (two.rows_added, two.held_rows) == (one.held_rows, 0)
        view = rc.open_buffer(tmp_path / "b").at()
        _same(ws.view(cut=view.cut), view)
        assert rows_of(view) == rows_of(ws.view())


# -- which episodes are finished ---------------------------------------------------------------------------------------


def test_an_episode_is_finished_when_it_ended_or_nobody_has_it_open(tmp_path: Path) -> None:
    def append(episode: rc.Episode, uid: int, **flags: Any) -> None:
        episode.append(observation=[uid, 0], reward=0.0, uid=uid, **flags)

    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer:
        left = ws.writer()
        for uid, (by, name) in enumerate([(left, "left"), (writer, "closed"), (writer, "open"), (writer, "empty")]):
            episode = by.episode(id=name)
            if name != "empty":
                append(episode, uid)
            if name == "closed":
                episode.close()
        append(writer.episode(id="terminated"), 10, terminated=True)
        append(writer.episode(id="truncated"), 11, truncated=True, next_observation=[0, 0])
        judged = writer.episode(id="judged", task="hopper")
        append(judged, 12)
        ws.annotate("judged", status="done")
        writer.extend(
            {"episode": [5, 5], "step": [0, 1], "observation": np.zeros((2, 2)), "reward": [0, 0], "uid": [13, 14]}
        )

        def snapshot() -> tuple[set[int], int]:
            done = ws.snapshot(tmp_path / "b", finished_only=True)
            view = rc.open_buffer(tmp_path / "b").at()
            assert done.open_episodes == 0
            return set(_uids(view)), done.held_episodes

        assert snapshot() == ({1, 10, 11}, 4)
        left.close()
        assert snapshot() == ({0, 1, 10, 11}, 3)
        with ws.writer() as other:
            again = other.resume_episode("left")
            append(again, 20)
            assert snapshot() == ({0, 1, 10, 11}, 4), "what was finished goes on, and is open again"
            append(again, 21, terminated=True)
            assert snapshot() == ({0, 1, 10, 11, 20, 21}, 3)
        open_ = ws.snapshot(tmp_path / "b", where="episode.id = 'judged'")
        assert (open_.rows_added, open_.episodes, open_.open_episodes) == (1, 1, 1)
        append(judged, 30, terminated=True)
        assert ws.snapshot(tmp_path / "b", where="episode.id = 'judged'").open_episodes == 0
        assert [v.open_episodes for v in rc.open_buffer(tmp_path / "b").versions()][-2:] == [1, 0]
        view = rc.open_buffer(tmp_path / "b").at()
        _same(ws.view(cut=view.cut), view)


def test_what_became_known_after_the_cut_does_not_count(tmp_path: Path) -> None:
    """An episode that grew and was then closed, or whose writer went, is not whole in an older cut."""
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as stays:
        goes = ws.writer()
        episodes = [stays.episode(), goes.episode()]
        for episode in episodes:
            episode.append(observation=[0, 0], reward=0.0, uid=0)
        store = ws._hot()
        old = store.cut()
        for episode in episodes:
            episode.append(observation=[1, 0], reward=0.0, uid=1)
        episodes[0].close()
        goes.close()
        new = store.cut()
        assert [left_alone(store, old)(e.key) for e in episodes] == [False, False]
        assert [left_alone(store, new)(e.key) for e in episodes] == [True, True]
        again = stays.resume_episode(episodes[1].key)
        again.append(observation=[2, 0], reward=0.0, uid=2)
        assert not left_alone(store, store.cut())(episodes[1].key)
        again.close()
        assert left_alone(store, store.cut())(episodes[1].key)


def test_the_last_observation_of_an_episode_follows_it_whatever_the_filter(tmp_path: Path) -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer:
        episode = writer.episode(task="ant")
        episode.append(observation=[0, 0], reward=0.0, uid=0, next_observation=[1, 0])
        assert ws.snapshot(tmp_path / "b").rows_added == 1
        episode.close()
        rows = len(ws.view().rows)
        assert rows == 2
        done = ws.snapshot(tmp_path / "b", where="episode.task = 'hopper'")
        assert (done.rows_added, done.held_rows) == (1, 0)


def test_a_resumed_episode_comes_with_its_held_back_beginning(tmp_path: Path) -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as last:
        with ws.writer() as first:
            with first.episode(id="long", task="walker") as episode:
                for uid in range(3):
                    episode.append(observation=[uid, 0], reward=1.0, uid=uid)
            with first.episode(id="short", task="hopper") as episode:
                episode.append(observation=[9, 0], reward=1.0, uid=9, terminated=True)
        assert ws.snapshot(tmp_path / "b", where="episode.task = 'hopper'").held_rows == 3
        resumed = last.resume_episode("long")
        resumed.append(observation=[3, 0], reward=1.0, uid=3)
        assert ws.snapshot(tmp_path / "b", finished_only=True).rows_added == 0
        resumed.append(observation=[4, 0], reward=1.0, uid=4, terminated=True)
        assert ws.snapshot(tmp_path / "b", finished_only=True).rows_added == 5
        view = rc.open_buffer(tmp_path / "b").at()
        _same(ws.view(cut=view.cut), view)
        steps = view.rows.gather(np.arange(len(view.rows)), ("uid", "step"))
        assert dict(zip(steps["uid"].tolist(), steps["step"].tolist(), strict=True)) == {
            **{uid: uid for uid in range(5)},
            9: 0,
        }
        returns = rc.open_buffer(tmp_path / "b").versions()[-1].statistics["returns"]
        assert (returns["count"], returns["max"]) == (2, 5)


def test_a_fact_that_comes_late_lets_an_episode_in(tmp_path: Path) -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer:
        play = _Play(writer)
        play.turns(9, lanes=3)
        where = "episode.reward > 0.5"
        none = ws.snapshot(tmp_path / "b", where=where)
        assert (none.rows_added, none.version, none.created) == (0, None, False)
        assert none.held_rows == 9 and "not made" in none.message
        assert not (tmp_path / "b").exists(), "nothing to put into it"
        key = ws.view().episodes.keys.tolist()[0]
        ws.annotate(rc.EpisodeKey(*key), reward=1.0)
        done = ws.snapshot(tmp_path / "b", where=where)
        assert done.episodes == 1 and done.rows_added + done.held_rows == 9 and done.created


def test_the_filter_is_part_of_the_lineage(tmp_path: Path) -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer:
        _Play(writer).turns(90)
        rows = len(ws.view().rows)
        ws.snapshot(tmp_path / "b", where="episode.task   in ('hopper')", finished_only=True)
        ws.snapshot(tmp_path / "b")
        one, two = rc.open_buffer(tmp_path / "b").versions()
        assert (one.finished_only, one.where, one.held_rows + one.rows) == (True, "episode.task in ('hopper')", rows)
        assert (two.finished_only, two.where, two.held_rows) == (False, None, 0)


def test_rows_left_out_without_a_word_are_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A promotion that skips rows and does not say so: verify names them, and no snapshot goes on from it."""
    real = Datasets.record

    def silent(self: Datasets, promotion: Promotion, parent: History) -> None:
        real(self, replace(promotion, record={**promotion.record, "held": []}), parent)

    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer:
        _Play(writer).turns(30)
        monkeypatch.setattr(Datasets, "record", silent)
        with pytest.raises(errors.CorruptionError, match="in no promotion"):
            ws.snapshot(tmp_path / "b", where="episode.task = 'walker'")  # reads back what it did
        report = rc.open_buffer(tmp_path / "b").verify()
        assert any("are in no promotion" in f.what for f in report.findings)
        with pytest.raises(errors.CorruptionError, match="in no promotion"):
            ws.snapshot(tmp_path / "b")


@pytest.mark.parametrize("where", ["reward > 0", "episode.task = 'a' or uid = 1", "episode.nope = 1", "", "task ="])
def test_a_condition_that_is_not_about_episodes_is_refused_first(where: str, tmp_path: Path) -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer:
        _Play(writer).turns(5)
        with pytest.raises((errors.ArgumentError, errors.NotFound)):
            ws.snapshot(tmp_path / "b", where=where)
        assert not (tmp_path / "b").exists() and not (ws.path / "targets").exists()


# -- dry runs ----------------------------------------------------------------------------------------------------------


def _state(to: Path, workspace: Path) -> tuple[Any, ...]:
    """The buffer, how far it was seen to get, and what else the workspace's folder holds beside the log itself, whose
    writer makes segments ready at any time."""

    def tree(root: Path) -> dict[str, Any]:
        return {str(p): p.stat().st_mtime_ns if p.is_dir() else p.read_bytes() for p in root.rglob("*")}

    return to.exists(), tree(to), tree(workspace / "targets"), {p.name for p in workspace.iterdir()}


def test_a_dry_run_says_what_a_snapshot_then_does_and_writes_nothing(tmp_path: Path) -> None:
    to = tmp_path / "b"
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer:
        assert ws.snapshot(to, dry_run=True).message.startswith("nothing to promote")
        play = _Play(writer)
        for k, options in enumerate(({"finished_only": True}, {"where": "episode.task = 'ant'"}, {}, {})):
            if k < 3:
                play.turns(50, seed=k)
            before = _state(to, ws.path)
            plan = ws.snapshot(to, f"t{k}", dry_run=True, **options)  # type: ignore[arg-type]
            assert _state(to, ws.path) == before
            assert plan.dry_run and plan.created == (k == 0)
            done = ws.snapshot(to, f"t{k}", **options)  # type: ignore[arg-type]
            for name in (
                "tag", "rows_added", "facts_added", "rows", "created", "cut", "gap_rows", "episodes", "open_episodes",
                "held_rows", "held_episodes",
            ):  # fmt: skip
                assert getattr(plan, name) == getattr(done, name), name
        with pytest.raises(errors.AlreadyExists):
            play.turns(5)
            ws.snapshot(to, "t0", dry_run=True)


# -- retention ---------------------------------------------------------------------------------------------------------


def test_held_back_rows_are_not_evicted_until_they_are_promoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growing, "SEGMENT_BYTES", (1 << 14,))
    where = "episode.task = 'hopper'"
    with rc.create_workspace("w", SCHEMA, keep=rc.Keep(rows=100)) as ws, ws.writer() as writer:
        play = _Play(writer)
        play.turns(1500)
        play.finish()
        done = ws.snapshot(tmp_path / "b", where=where)
        assert done.held_rows > 500 and done.evicted_rows == 0, "every segment holds rows that were held back"
        ws.evict()
        assert len(ws.view().rows) == done.rows + done.held_rows
        kept = ws.stats().retention
        assert kept is not None and kept.over_limit and kept.waiting_rows > 1000
        assert kept.targets[0].rows == done.held_rows
        rest = ws.snapshot(tmp_path / "b")
        assert rest.rows_added == done.held_rows and rest.evicted_rows > 1000 and rest.gap_rows == 0
        assert sorted(_uids(rc.open_buffer(tmp_path / "b").at())) == list(range(play.uid))
        again = ws.stats().retention
        assert again is not None and (again.dropped_rows, again.targets[0].rows) == (0, 0)


def test_held_back_rows_that_are_dropped_are_counted_and_become_a_gap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(growing, "SEGMENT_BYTES", (1 << 14,))
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer:
        play = _Play(writer)
        play.turns(1500)
        play.finish()
        whole = ws.view()
        done = ws.snapshot(tmp_path / "b", where="episode.task = 'hopper'")
        ws.set_keep(rc.Keep(rows=100, unpromoted="drop"))
        ws.evict()
        left = ws.view()
        sent = rc.open_buffer(tmp_path / "b").at()
        lost = set(all_ids(whole)) - set(all_ids(left)) - set(all_ids(sent))
        kept = ws.stats().retention
        assert lost and kept is not None and kept.dropped_rows == len(lost)
        play.turns(10)
        now = set(all_ids(ws.view()))
        rest = ws.snapshot(tmp_path / "b")
        assert (rest.gap_rows, rest.held_rows) == (len(lost), 0)
        ids = Counter(all_ids(rc.open_buffer(tmp_path / "b").at()))
        assert set(ids.values()) == {1} and set(ids) == (set(all_ids(whole)) | now) - lost
        assert rest.rows_added == rest.rows - done.rows == len(set(ids) - set(all_ids(sent)))
        assert rc.open_buffer(tmp_path / "b").verify().ok
        assert ws.snapshot(tmp_path / "b").gap_rows == 0


# -- crashes -----------------------------------------------------------------------------------------------------------

PROMOTER = """
import sys
import recollect as rc
name, to, finished, where = sys.argv[1:5]
ws = rc.open_workspace(name)
import recollect.cold.dataset, recollect.promote.snapshot
print("ready", flush=True)
sys.stdin.readline()
print(ws.snapshot(to, finished_only=bool(finished), where=where or None).rows_added, flush=True)
"""


@pytest.mark.parametrize("kills", [8, pytest.param(100, marks=pytest.mark.torture)])
def test_filtered_promoters_killed_at_random_moments_leave_every_row_once(kills: int, tmp_path: Path) -> None:
    chance = random.Random(3)
    to = tmp_path / "b"
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer:
        play = _Play(writer)
        for k in range(kills):
            play.turns(40, seed=k)
            where = chance.choice(["", *(f"episode.task = '{task}'" for task in TASKS)])
            children = [python(PROMOTER, "w", str(to), chance.choice(["", "yes"]), where) for _ in range(2)]
            for child in children:
                assert child.stdout is not None and child.stdout.readline() == "ready\n"
            for child in children:
                assert child.stdin is not None
                child.stdin.write("\n")
                child.stdin.flush()
            time.sleep(chance.uniform(0.0, 0.2))
            children[0].send_signal(signal.SIGKILL)
            for child in children:
                child.communicate(timeout=60)
            assert children[1].returncode == 0, "one of two goes on, whatever became of the other"
        play.finish()
        ws.snapshot(to, finished_only=True)
        whole = rc.open_buffer(to).at()
        assert set(Counter(all_ids(whole)).values()) == {1}
        assert sorted(_uids(whole)) == sorted(_uids(ws.view()))
        _same(ws.view(cut=whole.cut), whole)
        assert rc.open_buffer(to).verify().ok


def test_another_filter_that_lands_first_makes_ours_look_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    to = tmp_path / "b"
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer, rc.create_workspace("v", SCHEMA) as away:
        with away.writer() as elsewhere:
            _Play(elsewhere, 50_000).turns(3)
        away.snapshot(to)
        _Play(writer).turns(60)
        real = Datasets.commit_steps
        calls: list[int] = []

        def overtaken(self: Datasets, *arguments: Any) -> int:
            calls.append(len(calls))
            if len(calls) == 1:
                with rc.open_workspace("w") as other:
                    # Another machine's promoter: it does not wait for the lock of this one.
                    monkeypatch.setattr("recollect.promote.snapshot.locked", _no_lock)
                    other.snapshot(Location(to).uri, where="episode.task in ('hopper', 'ant')")
            return real(self, *arguments)

        monkeypatch.setattr("recollect.promote.retention.locked", _no_lock)
        monkeypatch.setattr(Datasets, "commit_steps", overtaken)
        done = ws.snapshot(to, where="episode.task in ('hopper', 'walker')")
        assert len(calls) == 3
        assert ws.snapshot(to).rows_added == 0 and done.held_rows == 0
        whole = rc.open_buffer(to).at()
        assert set(Counter(all_ids(whole)).values()) == {1} and len(_uids(whole)) == 63


class _no_lock:
    def __init__(self, *_: Any) -> None: ...
    def __enter__(self) -> None: ...
    def __exit__(self, *_: Any) -> None: ...
