"""What is deleted from a buffer is gone from every line, once and for good, whoever writes beside it or is killed."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lance.file import LanceFileReader

import recollect as rc
from recollect import errors
from recollect.cold import history as chain
from recollect.cold.dataset import Datasets
from recollect.versions import delete as module
from tests import stores
from tests.support import (
    SCHEMAS,
    all_ids,
    flags_of,
    nest,
    next_of,
    order_of,
    python,
    random_trajectories,
    rows_of,
)

SCHEMA = rc.Schema(
    {"observation": rc.Tensor("float32", (2,)), "reward": rc.Tensor("float32"), "uid": rc.Tensor("int64")},
    episode={"task": rc.Text()},
)
Place = tuple[str, dict[str, str] | None]


def write(ws: rc.Workspace, first: int, count: int = 4) -> rc.EpisodeKey:
    with ws.writer() as writer, writer.episode(task=f"t{first}") as episode:
        for uid in range(first, first + count):
            episode.append(observation=[uid, 0], reward=1.0, uid=uid, terminated=uid == first + count - 1)
        return episode.key


def uids(view: rc.View) -> list[int]:
    return sorted(view.rows.gather(np.arange(len(view.rows)), ("uid",))["uid"].tolist())


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with stores.moto() as url:
        yield url


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    if request.param == "local":
        return str(tmp_path / "b"), None
    at: str = request.getfixturevalue("endpoint")
    bucket = stores.make_bucket(at, f"b{tmp_path.name.lower().replace('_', '')[-40:]}{time.time_ns() % 10**6}")
    return f"s3://{bucket}/replay", stores.s3_options(at)


@pytest.mark.timeout(600)
def test_rows_are_gone_from_every_line_at_once_and_stay_in_older_versions(place: Place) -> None:
    uri, options = place
    with rc.create_workspace("w", SCHEMA) as ws:
        for first in (0, 10, 20):
            write(ws, first)
        ws.snapshot(uri, "r1", storage_options=options)
        buffer = rc.open_buffer(uri, storage_options=options)
        fork, late = buffer.branch("fork"), buffer.branch("late")
        write(ws, 30)
        ws.snapshot(uri, "r2", storage_options=options)
        where = "uid = 1 or episode.task = 't20' or uid = 30"
        tried = buffer.delete(where=where, reason="poisoned", dry_run=True)
        assert tried.dry_run and tried.versions == {} and len(buffer.at().rows) == 16
        before = time.time()
        done = buffer.delete(where=where, reason="poisoned")
        assert (done.rows, done.episodes, done.whole_episodes, done.facts) == (6, 3, 1, 1)
        assert (tried.rows, tried.ids, tried.facts) == (done.rows, done.ids, done.facts)
        assert done.versions == {"main": 4, "fork": 3, "late": 3}
        assert done.tags == ("r1", "r2") and done.workspaces == ("w",)
        assert uids(buffer.at()) == [0, 2, 3, 10, 11, 12, 13, 31, 32, 33]
        assert uids(fork.at()) == uids(late.at()) == [0, 2, 3, 10, 11, 12, 13]
        assert len(buffer.at("r1").rows) == 12 and len(buffer.at("r2").rows) == 16
        assert "t20" not in [facts.get("task") for facts in buffer.at().facts.episodes.values()]
        assert "t20" in [facts.get("task") for facts in buffer.at("r2").facts.episodes.values()]
        for line in (buffer, fork, late):
            newest = line.versions()[-1]
            assert newest.reason == "poisoned" and sum(e.stop - e.start for e in newest.deleted) == -newest.rows_added
            assert newest.time >= datetime.fromtimestamp(before, UTC).replace(microsecond=0)
            assert line.verify().ok
        again = buffer.delete(where=where, reason="poisoned")
        assert (again.rows, again.versions) == (0, {}) and again.tags == ()
        assert buffer.delete(done.ids, reason="poisoned").versions == {}
        # No snapshot brings them again, to any line.
        assert ws.snapshot(uri, storage_options=options).rows_added == 0
        assert ws.snapshot(uri, storage_options=options, branch="fork").rows_added == 4
        write(ws, 40)
        snapshot = ws.snapshot(uri, storage_options=options)
        assert (snapshot.rows_added, snapshot.rows, snapshot.gap_rows) == (4, 14, 0)
        assert uids(buffer.at()) == [0, 2, 3, 10, 11, 12, 13, 31, 32, 33, 40, 41, 42, 43]
        assert uids(fork.at()) == [0, 2, 3, 10, 11, 12, 13, 30, 31, 32, 33]
        assert buffer.verify().ok and fork.verify().ok


def test_by_episode_by_id_and_by_a_column_of_a_branch(tmp_path: Path) -> None:
    at = tmp_path / "b"
    with rc.create_workspace("w", SCHEMA) as ws:
        keys = [write(ws, first) for first in (0, 10, 20)]
        ws.snapshot(at)
        buffer = rc.open_buffer(at)
        fork = buffer.branch("fork")
        fork.add_column("odd", lambda rows: rows["uid"] % 2, field=rc.Tensor("int64"), fields=["uid"])
        done = buffer.delete(where="odd = 1 and uid < 4", reason="what one line shows goes from all")
        assert done.versions == {"main": 3, "fork": 4} and done.rows == 2
        assert uids(buffer.at()) == uids(fork.at()) == [0, 2, 10, 11, 12, 13, 20, 21, 22, 23]
        by_name = buffer.delete(episodes=[buffer.at().facts.id_of(keys[1])], reason="private")
        assert (by_name.rows, by_name.whole_episodes) == (4, 1)
        step = rc.StepId(*next(i for i in all_ids(buffer.at())))
        kept = len(buffer.at().rows)
        assert buffer.delete([str(step), (1, 1)], reason="one").rows == 1
        assert step not in all_ids(buffer.at()) and len(buffer.at().rows) == kept - 1
        fork = rc.open_buffer(at, branch="fork")
        odd = rc.open_buffer(at, branch="fork").at()
        assert odd.rows.gather(np.arange(len(odd.rows)), ("odd",))["odd"].tolist() == [
            u % 2 for u in odd.rows.gather(np.arange(len(odd.rows)), ("uid",))["uid"].tolist()
        ]
        assert buffer.verify().ok and fork.verify().ok
        # A fact that a workspace learns later about what was deleted whole is not shown.
        ws.annotate(keys[1], lesson="secret")
        ws.snapshot(at)
        assert not any("secret" in str(f) for f in buffer.at().facts.history.values())
        ws.annotate(keys[2], lesson="known")
        ws.snapshot(at)
        assert buffer.at().facts.episodes[keys[2]]["lesson"] == "known"


def test_what_cannot_be_asked(tmp_path: Path) -> None:
    at = tmp_path / "b"
    with rc.create_workspace("w", SCHEMA) as ws:
        write(ws, 0)
        ws.snapshot(at)
    buffer = rc.open_buffer(at)
    for wrong in ({}, {"where": "uid = 1", "ids": []}, {"ids": ["x"]}, {"ids": "1:1"}, {"where": "uid ="}):
        with pytest.raises(errors.ArgumentError):
            buffer.delete(**wrong, reason="r")
    with pytest.raises(errors.ArgumentError, match="reason"):
        buffer.delete(where="uid = 1", reason=" ")
    for nothing in ({"where": "nobody = 1"}, {"episodes": ["nobody"]}):
        with pytest.raises(errors.NotFound):
            buffer.delete(**nothing, reason="r")
    assert len(buffer.versions()) == 1


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.torture)])
def test_cold_equals_hot_for_every_field_type(name: str, seed: int, tmp_path: Path) -> None:
    """The workspace and the buffer lose the same rows, and then give the same batches: final rows go with their steps,
    nobody gets the observation of another, and what waited for a successor in an earlier version is not shown."""
    schema, rng = SCHEMAS[name](), np.random.default_rng([seed, *name.encode()])
    trajectories = random_trajectories(schema, rng, count=14)
    order = order_of(trajectories, rng)
    at = tmp_path / "b"
    with rc.create_workspace("w", schema) as ws:
        with ws.writer() as writer:
            episodes: dict[int, rc.Episode] = {}
            for n, (k, t) in enumerate(order):
                moment = trajectories[k].moments[t]
                if k not in episodes:
                    episodes[k] = writer.episode()
                episodes[k].append(
                    **nest(moment.values), next_observation=next_of(moment.following), **flags_of(trajectories[k], t)
                )
                if n in (len(order) // 3, len(order) // 2):
                    ws.snapshot(at)
        ws.snapshot(at)
        buffer = rc.open_buffer(at)
        assert rows_of(buffer.at()) == rows_of(ws.view())
        ids = [i for i in all_ids(ws.view()) if rng.random() < 0.2]
        hot = ws.delete(ids, reason="r")
        cold = buffer.delete(ids, reason="r")
        assert sorted(cold.ids) == sorted(hot.ids) and cold.rows == hot.rows >= len(ids)
        assert (cold.episodes, cold.whole_episodes, cold.facts) == (hot.episodes, hot.whole_episodes, hot.facts)
        assert cold.workspaces == ()
        view = ws.view()
        assert rows_of(buffer.at()) == rows_of(view)
        assert buffer.at().facts.episodes == view.facts.episodes
        assert ws.snapshot(at).rows_added == 0
        assert buffer.verify().ok


class Killed(BaseException):
    pass


@pytest.mark.parametrize("landed", [False, True])
@pytest.mark.parametrize("step", ["stage_deletions", "record", "commit_steps"])
@pytest.mark.parametrize("nth", [0, 1])
def test_killed_at_each_step_the_same_again_does_the_rest(
    step: str, landed: bool, nth: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    at, where = tmp_path / "b", "uid = 2 or uid >= 10"
    with rc.create_workspace("w", SCHEMA) as ws:
        write(ws, 0)
        write(ws, 10)
        ws.snapshot(at)
        buffer = rc.open_buffer(at)
        buffer.branch("fork")
        owner: Any = module if step == "stage_deletions" else Datasets
        real, calls = getattr(owner, step), [0]

        def dying(*args: Any, **named: Any) -> Any:
            calls[0] += 1
            if calls[0] <= nth:
                return real(*args, **named)
            if landed:
                real(*args, **named)
            raise Killed

        with monkeypatch.context() as m, pytest.raises(Killed):
            m.setattr(owner, step, dying)
            rc.open_buffer(at).delete(where=where, reason="r")
        for branch in ("main", "fork"):
            line = rc.open_buffer(at, branch=branch)
            assert uids(line.at()) in ([0, 1, 3], [0, 1, 2, 3, 10, 11, 12, 13]) and line.verify().ok
        buffer.delete(where=where, reason="r")
        for branch in ("main", "fork"):
            line = rc.open_buffer(at, branch=branch)
            assert uids(line.at()) == [0, 1, 3] and line.verify().ok
            assert [v.reason for v in line.versions()].count("r") == 1
            assert ws.snapshot(at, branch=branch).rows_added == 0


def test_a_lost_reply_is_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    at = tmp_path / "b"
    with rc.create_workspace("w", SCHEMA) as ws:
        write(ws, 0)
        ws.snapshot(at)
    real, calls = Datasets.commit_steps, [0]

    def lossy(*args: Any, **named: Any) -> Any:
        done = real(*args, **named)
        calls[0] += 1
        raise errors.StoreUnavailable("lost") if calls[0] == 1 else errors.ConflictError(str(done))

    monkeypatch.setattr(Datasets, "commit_steps", lossy)
    buffer = rc.open_buffer(at)
    assert buffer.delete(where="uid = 1", reason="r").versions == {"main": 3}
    assert buffer.delete(where="uid = 2", reason="r").versions == {"main": 4}
    assert [(v.version, v.rows, v.rows_added) for v in buffer.versions()] == [(2, 4, 4), (3, 3, -1), (4, 2, -1)]


def test_deleted_rows_outlive_folds_compaction_and_cleanup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(chain, "FOLD_LINKS", 3)
    at, left = tmp_path / "b", []
    with rc.create_workspace("w", SCHEMA) as ws:
        buffer = None
        for k in range(8):
            write(ws, 10 * k)
            ws.snapshot(at)
            buffer = rc.open_buffer(at)
            buffer.delete(where=f"uid = {10 * k + 1} or uid >= {10 * k} and episode.task = 't30'", reason=f"r{k}")
            left += [u for u in range(10 * k, 10 * k + 4) if u != 10 * k + 1 and not 30 <= u < 40]
            assert uids(buffer.at()) == left
        assert buffer is not None and buffer.compact().version is not None
        assert uids(buffer.at()) == left and buffer.verify().ok
        assert [v.reason for v in buffer.versions() if v.reason] == [f"r{k}" for k in range(8)]
        assert ws.snapshot(at).rows_added == 0
        buffer.cleanup(timedelta(0))
        assert uids(buffer.at()) == left and buffer.verify().ok
        assert "t30" not in [facts.get("task") for facts in buffer.at().facts.episodes.values()]
        buffer.delete(where="uid >= 0", reason="all")
        assert uids(buffer.at()) == [] and buffer.verify().ok
        write(ws, 100)
        assert ws.snapshot(at).rows == 4 and uids(buffer.at()) == [100, 101, 102, 103] and buffer.verify().ok


def test_compaction_and_cleanup_take_the_values_out_of_the_files(tmp_path: Path) -> None:
    at, secret = tmp_path / "b", 123_456_789
    with rc.create_workspace("w", SCHEMA) as ws:
        write(ws, 0, 40)
        write(ws, secret, 3)
        ws.snapshot(at)
        rc.open_buffer(at).branch("fork")
        write(ws, 100, 3)
        ws.snapshot(at)

    def stored() -> set[int]:
        files = sorted((at / "steps.lance").rglob("*.lance"))
        return {u for f in files for u in LanceFileReader(str(f)).read_all().to_table().column("uid").to_pylist()}

    assert secret in stored()
    rc.open_buffer(at).delete(where=f"uid >= {secret}", reason="private")
    assert secret in stored()
    for branch in ("fork", "main"):
        buffer = rc.open_buffer(at, branch=branch)
        before = uids(buffer.at())
        assert buffer.compact().version is not None and uids(buffer.at()) == before and secret not in before
        assert buffer.compact().version is None and buffer.verify().ok
        buffer.cleanup(timedelta(0))
        if branch == "fork":
            buffer.tag("kept")
    # The version that the branch began with holds them still, and is kept for it.
    assert secret in stored()
    rc.open_buffer(at).delete_branch("fork", with_tags=True)
    rc.open_buffer(at).cleanup(timedelta(0))
    assert stored() == {*range(40), 100, 101, 102}


def test_a_column_is_refused_by_a_deletion_that_lands_first(tmp_path: Path) -> None:
    at = tmp_path / "b"
    with rc.create_workspace("w", SCHEMA) as ws:
        write(ws, 0)
        write(ws, 10)
        ws.snapshot(at)
    fork = rc.open_buffer(at).branch("fork")
    seen: list[list[int]] = []

    def twice(rows: Any) -> Any:
        if not seen:
            assert rc.open_buffer(at).delete(where="uid = 2", reason="r").versions == {"main": 3, "fork": 3}
        seen.append(rows["uid"].tolist())
        return rows["uid"] * 2

    assert fork.add_column("twice", twice, field=rc.Tensor("int64"), fields=["uid"]) == 4
    view = rc.open_buffer(at, branch="fork").at()
    found = view.rows.gather(np.arange(len(view.rows)), ("uid", "twice"))
    assert sorted(found["twice"].tolist()) == [0, 2, 6, 20, 22, 24, 26] and len(seen) == 2
    assert (found["twice"] == 2 * found["uid"]).all() and fork.verify().ok


def test_a_diff_and_a_cut_over_a_deletion(tmp_path: Path) -> None:
    at = tmp_path / "b"
    with rc.create_workspace("w", SCHEMA) as ws:
        write(ws, 0)
        write(ws, 10)
        done = ws.snapshot(at, "r1")
    buffer = rc.open_buffer(at)
    buffer.delete(where="uid = 1 or uid >= 10", reason="r")
    told = buffer.diff("r1")
    assert (told.rows_a, told.rows_b, told.rows_added, told.rows_removed) == (8, 3, 0, 5)
    assert (told.episodes_removed, told.episodes_changed) == (1, 1)
    assert len(buffer.at("r1", cut=done.cut).rows) == 8
    with pytest.raises(errors.NotFound):
        buffer.at(cut=done.cut)


PROMOTER = """
import json
import sys
import recollect as rc
name, to, options, episodes = sys.argv[1:5]
ws = rc.open_workspace(name)
print("ready", flush=True)
sys.stdin.readline()
for first in range(1000, 1000 + 10 * int(episodes), 10):
    with ws.writer() as writer, writer.episode(task="more") as episode:
        for uid in range(first, first + 4):
            episode.append(observation=[uid, 0], reward=1.0, uid=uid, terminated=uid == first + 3)
    ws.snapshot(to, storage_options=json.loads(options))
"""


@pytest.mark.timeout(600)
def test_two_deleters_a_compactor_and_a_promoter_at_once(place: Place) -> None:
    uri, options = place
    episodes = 10 if options is None else 3
    firsts = range(0, 10 * episodes, 10)

    def buffer(branch: str = "main") -> rc.Buffer:
        return rc.open_buffer(uri, branch=branch, storage_options=options)

    with rc.create_workspace("w", SCHEMA) as ws:
        for first in firsts:
            write(ws, first)
            ws.snapshot(uri, storage_options=options)
        buffer().branch("fork")
    child = python(PROMOTER, "w", uri, json.dumps(options), str(episodes))
    assert child.stdout is not None and child.stdin is not None
    assert child.stdout.readline() == "ready\n"
    child.stdin.write("\n")
    child.stdin.flush()
    failed: list[BaseException] = []

    def deleting(odd: int) -> None:
        try:
            for first in firsts:
                # Both want the first step of an episode, each one of the others.
                buffer().delete(where=f"uid = {first} or uid = {first + 1 + odd}", reason=f"d{odd}")
        except BaseException as e:
            failed.append(e)

    def compacting() -> None:
        try:
            for _ in range(4):
                buffer().compact()
        except BaseException as e:
            failed.append(e)

    threads = [threading.Thread(target=deleting, args=(k,)) for k in range(2)] + [threading.Thread(target=compacting)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _, told = child.communicate(timeout=300)
    assert child.returncode == 0 and not failed, (told, failed)
    old = [first + 3 for first in firsts]
    more = [1000 + u for first in firsts for u in range(first, first + 4)]
    for branch, want in (("main", old + more), ("fork", old)):
        line = buffer(branch)
        assert uids(line.at()) == want and line.verify().ok
        gone = [i for v in line.versions() for e in v.deleted for i in range(e.start, e.stop) if v.reason]
        assert len(gone) == 3 * episodes
    with rc.open_workspace("w") as ws:
        assert ws.snapshot(uri, storage_options=options).rows_added == 0
