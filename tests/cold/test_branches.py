"""A branch begins with a version and goes on by itself: nothing of it reaches main, and nothing of main reaches it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import lance
import pytest

import recollect as rc
from recollect import errors
from recollect.buffer import repair_buffer
from recollect.cold import branches as module
from recollect.cold import cleanup as cleaning
from recollect.cold.dataset import Datasets
from recollect.cold.durable import manifest_path
from recollect.cold.location import Location
from recollect.promote import snapshot as promoting
from tests import stores
from tests.support import all_ids, rows_of

SCHEMA = rc.Schema(
    {"observation": rc.Tensor("float32", (2,)), "reward": rc.Tensor("float32"), "uid": rc.Tensor("int64")},
    episode={"task": rc.Text()},
)
NOW = timedelta(0)


def write(ws: rc.Workspace, first: int, count: int = 4) -> None:
    with ws.writer() as writer, writer.episode(task=f"t{first}") as episode:
        for uid in range(first, first + count):
            episode.append(observation=[uid, 0], reward=1.0, uid=uid, terminated=uid == first + count - 1)


def uids(view: rc.View) -> list[int]:
    return sorted(rows_of(view, batch_size=64))


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    with stores.moto() as url:
        yield url


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, dict[str, str] | None]:
    if request.param == "local":
        return str(tmp_path / "b"), None
    at: str = request.getfixturevalue("endpoint")
    bucket = stores.make_bucket(at, f"b{tmp_path.name.lower().replace('_', '')[-40:]}{time.time_ns() % 10**6}")
    return f"s3://{bucket}/deep/replay", stores.s3_options(at)


@pytest.mark.timeout(600)
def test_main_and_branches_go_on_by_themselves(place: tuple[str, dict[str, str] | None]) -> None:
    uri, options = place
    with rc.create_workspace("w", SCHEMA) as ws:
        write(ws, 0)
        ws.snapshot(uri, "r1", storage_options=options)
        write(ws, 10)
        ws.snapshot(uri, "r2", storage_options=options)
        buffer = rc.open_buffer(uri, storage_options=options)
        before = datetime.now(UTC)
        fork = buffer.branch("exp", at="r1")
        assert [(b.name, b.parent, b.version) for b in buffer.branches()] == [("exp", "main", 2)]
        assert uids(fork.at()) == [0, 1, 2, 3] and uids(buffer.at()) == [0, 1, 2, 3, 10, 11, 12, 13]
        write(ws, 20)
        done = ws.snapshot(uri, "e1", storage_options=options, branch="exp", commit="abc123")
        assert (done.rows_added, done.version, done.rows) == (8, 3, 12)
        assert ws.snapshot(uri, storage_options=options, branch="exp").rows_added == 0
        both = uids(fork.at())
        assert both == [0, 1, 2, 3, 10, 11, 12, 13, 20, 21, 22, 23]
        assert len(buffer.at().rows) == 8
        assert ws.snapshot(uri, "r3", storage_options=options).rows_added == 4
        assert uids(buffer.at()) == both
        assert buffer.tags() == {"r1": 2, "r2": 3, "r3": 4} and fork.tags() == {"r1": 2, "e1": 3}
        assert uids(fork.at("r1")) == uids(fork.at(2)) == [0, 1, 2, 3]
        assert uids(fork.at(before)) == [0, 1, 2, 3] and len(buffer.at(before).rows) == 8
        assert uids(buffer.at("e1", branch="exp")) == both
        with pytest.raises(errors.NotFound, match="another branch"):
            buffer.at("e1")
        with pytest.raises(errors.AlreadyExists, match="another branch"):
            ws.snapshot(uri, "r3", storage_options=options, branch="exp")
        told = fork.versions()
        assert [(v.version, v.branch, v.parent, v.commit, v.tags) for v in told] == [
            (2, "main", 1, None, ("r1",)), (3, "exp", 2, "abc123", ("e1",)),
        ]  # fmt: skip
        assert told[1].cut == done.cut and told[1].workspace_id == ws.id and told[1].schema == SCHEMA.fingerprint
        again = rc.open_buffer(uri, branch="exp", storage_options=options)
        twig = again.branch("twig")
        write(ws, 30)
        assert ws.snapshot(uri, storage_options=options, branch="twig").rows_added == 4
        assert uids(twig.at()) == [*both, 30, 31, 32, 33] and uids(twig.at("e1")) == both and uids(again.at()) == both
        assert [v.branch for v in twig.versions()] == ["main", "exp", "twig"]
        assert buffer.verify().ok and again.verify().ok and twig.verify().ok
        # Facts come with the version that they were promoted in.
        key = next(iter(fork.at("r1").facts.episodes))
        ws.annotate(key, lesson="late")
        ws.snapshot(uri, storage_options=options, branch="exp")
        assert again.at().facts.episodes[key]["lesson"] == "late"
        assert all(view.facts.episodes[key].get("lesson") is None for view in (again.at("e1"), twig.at(), buffer.at()))
        # Whatever is cleaned up on any of them, what another one needs stays.
        for one in (buffer, again, twig):
            one.cleanup(NOW)
        assert uids(again.at()) == sorted([*both, 30, 31, 32, 33]) and uids(fork.at("r1")) == [0, 1, 2, 3]
        assert buffer.verify().ok and again.verify().ok and twig.verify().ok
        with pytest.raises(errors.ConflictError, match="branch twig began on it"):
            buffer.delete_branch("exp")
        assert buffer.delete_branch("twig") == []
        with pytest.raises(errors.ConflictError, match="tag e1"):
            buffer.delete_branch("exp")
        assert buffer.delete_branch("exp", with_tags=True) == ["e1"]
        assert buffer.branches() == [] and buffer.tags() == {"r1": 2, "r2": 3, "r3": 4}
        with pytest.raises(errors.NotFound, match="was deleted"):
            again.at()
        with pytest.raises(errors.NotFound, match="no branch 'exp'"):
            ws.snapshot(uri, storage_options=options, branch="exp")
        assert uids(buffer.at()) == both and buffer.verify().ok


@pytest.mark.parametrize("name", ["", "main", "7", "a/b", "a b", ".a", "-a", "a..b", "a.lock", "é", "x" * 101])
def test_names_are_checked(tmp_path: Path, name: str) -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        write(ws, 0)
        ws.snapshot(tmp_path / "b")
    with pytest.raises(errors.ArgumentError):
        rc.open_buffer(tmp_path / "b").branch(name)


def test_a_branch_that_is_not_there_is_never_made_by_a_snapshot(tmp_path: Path) -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        write(ws, 0)
        with pytest.raises(errors.NotFound, match="no buffer"):
            ws.snapshot(tmp_path / "b", branch="exp")
        assert not (tmp_path / "b").exists()
        ws.snapshot(tmp_path / "b")
        with pytest.raises(errors.NotFound, match="no branch 'exp'"):
            ws.snapshot(tmp_path / "b", branch="exp")
        with pytest.raises(errors.NotFound, match="no version 9"):
            rc.open_buffer(tmp_path / "b").branch("exp", at=9)
        assert rc.open_buffer(tmp_path / "b").branches() == []


def test_of_many_that_make_one_branch_one_does(tmp_path: Path) -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        write(ws, 0)
        ws.snapshot(tmp_path / "b")
    made: list[str] = []

    def make() -> None:
        try:
            rc.open_buffer(tmp_path / "b").branch("exp")
            made.append("made")
        except errors.AlreadyExists:
            made.append("taken")

    threads = [threading.Thread(target=make) for _ in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert sorted(made) == ["made", *["taken"] * 5]
    data = Datasets.open_(Location(tmp_path / "b"))
    assert list(data.forks()) == list(module.registered(data.location).values())  # nothing is left of the others
    assert uids(rc.open_buffer(tmp_path / "b", branch="exp").at()) == [0, 1, 2, 3]


def test_a_making_or_deletion_that_was_killed_is_in_nobodys_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        write(ws, 0)
        ws.snapshot(tmp_path / "b")
        buffer = rc.open_buffer(tmp_path / "b")

        class Killed(BaseException):
            pass

        def die(*_: Any) -> bool:
            raise Killed

        with monkeypatch.context() as m, pytest.raises(Killed):
            m.setattr(module, "_swap", die)
            buffer.branch("exp")
        assert buffer.branches() == []
        with pytest.raises(errors.NotFound):
            buffer.on("exp")
        buffer.branch("exp")
        write(ws, 10)
        ws.snapshot(tmp_path / "b", "e1", branch="exp")
        with monkeypatch.context() as m, pytest.raises(Killed):
            m.setattr(module, "_remove", die)
            buffer.delete_branch("exp", with_tags=True)
        assert buffer.branches() == []
        buffer.branch("exp")
        assert uids(buffer.on("exp").at()) == [0, 1, 2, 3]
        assert len(Datasets.open_(Location(tmp_path / "b")).forks()) == 3
        buffer.cleanup(NOW)
        assert len(Datasets.open_(Location(tmp_path / "b")).forks()) == 3  # they may be somebody's who is at work
        monkeypatch.setattr(cleaning, "STAGED_S", 0.0)
        buffer.cleanup(NOW)
        assert len(Datasets.open_(Location(tmp_path / "b")).forks()) == 1
        assert ws.snapshot(tmp_path / "b", "e1", branch="exp").rows_added == 4
        assert uids(buffer.on("exp").at()) == [0, 1, 2, 3, 10, 11, 12, 13] and buffer.verify().ok


def test_nothing_lands_on_a_branch_that_took_the_name_of_a_deleted_one(tmp_path: Path, monkeypatch: Any) -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        write(ws, 0)
        ws.snapshot(tmp_path / "b")
        buffer = rc.open_buffer(tmp_path / "b")
        buffer.branch("exp")
        write(ws, 10)
        real = Datasets.commit_steps

        def replaced(self: Datasets, *args: Any, **named: Any) -> int:
            monkeypatch.setattr(Datasets, "commit_steps", real)
            buffer.delete_branch("exp")
            buffer.branch("exp")
            return real(self, *args, **named)

        monkeypatch.setattr(Datasets, "commit_steps", replaced)
        with pytest.raises(errors.NotFound, match="was deleted"):
            ws.snapshot(tmp_path / "b", branch="exp")
        assert uids(buffer.on("exp").at()) == [0, 1, 2, 3]
        assert ws.snapshot(tmp_path / "b", branch="exp").rows_added == 4
        assert uids(buffer.on("exp").at()) == [0, 1, 2, 3, 10, 11, 12, 13]
        assert buffer.on("exp").verify().ok


def test_rows_stay_in_the_workspace_until_main_has_them(tmp_path: Path) -> None:
    with rc.create_workspace("w", SCHEMA, keep=rc.Keep(rows=1)) as ws:
        write(ws, 0)
        ws.snapshot(tmp_path / "b")
        rc.open_buffer(tmp_path / "b").branch("exp")
        for k in range(1, 4):
            write(ws, 10 * k)
        ws.snapshot(tmp_path / "b", branch="exp")
        assert uids(ws.view())[-12:] == uids(rc.open_buffer(tmp_path / "b", branch="exp").at())[-12:]
        assert ws.snapshot(tmp_path / "b").rows_added == 12
        ws.retainer.run() if hasattr(ws.retainer, "run") else None
        assert uids(rc.open_buffer(tmp_path / "b").at()) == uids(rc.open_buffer(tmp_path / "b", branch="exp").at())


def test_pins_keep_a_branch_and_its_versions(tmp_path: Path) -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        write(ws, 0)
        ws.snapshot(tmp_path / "b")
        buffer = rc.open_buffer(tmp_path / "b")
        fork = buffer.branch("exp")
        for k in range(1, 4):
            write(ws, 10 * k)
            ws.snapshot(tmp_path / "b", branch="exp")
        with fork.pin(3) as pin:
            with pytest.raises(errors.ConflictError, match="pin"):
                buffer.delete_branch("exp")
            assert buffer.branches() and fork.tags() == {}
            done = fork.cleanup(NOW)
            assert done.pinned == {3: pin.until} and 4 in done.versions
            assert uids(fork.at(3)) == [0, 1, 2, 3, 10, 11, 12, 13]
        assert 3 in fork.cleanup(NOW).versions
        with pytest.raises(errors.NotFound):
            fork.at(3)
        main = buffer.cleanup(NOW)
        assert main.versions == (1,) and uids(buffer.at(2)) == [0, 1, 2, 3]
        buffer.delete_branch("exp")


def test_the_version_that_a_branch_began_with_stays(tmp_path: Path) -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        for k in range(4):
            write(ws, 10 * k)
            ws.snapshot(tmp_path / "b")
        buffer = rc.open_buffer(tmp_path / "b")
        fork = buffer.branch("exp", at=3)
        tried = buffer.cleanup(NOW, dry_run=True)
        done = buffer.cleanup(NOW)
        assert done.versions == tried.versions == (1, 2, 4) and done.branched == tried.branched == {3: ("exp",)}
        assert uids(fork.at()) == uids(buffer.at(3)) == [0, 1, 2, 3, 10, 11, 12, 13]
        assert [v.kept for v in fork.versions()] == [False, True]
        assert buffer.verify().ok and fork.verify().ok


def test_compaction_of_a_branch_keeps_rows_and_leaves_main_alone(tmp_path: Path) -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        for k in range(5):
            write(ws, 10 * k)
            ws.snapshot(tmp_path / "b")
        buffer = rc.open_buffer(tmp_path / "b")
        fork = buffer.branch("exp")
        for k in range(5, 10):
            write(ws, 10 * k)
            ws.snapshot(tmp_path / "b", branch="exp")
        ids, newest = all_ids(fork.at()), buffer.versions()[-1].version
        done = fork.compact()
        assert (done.fragments_before, done.fragments_after) == (10, 1)
        fork.cleanup(NOW)
        assert all_ids(fork.at()) == ids and len(ids) == 40
        assert buffer.versions()[-1].version == newest and fork.verify().ok and buffer.verify().ok


def test_a_branch_of_a_buffer_that_was_moved_is_refused(tmp_path: Path) -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        write(ws, 0)
        ws.snapshot(tmp_path / "b")
        rc.open_buffer(tmp_path / "b").branch("exp")
    (tmp_path / "b").rename(tmp_path / "c")
    assert uids(rc.open_buffer(tmp_path / "c").at()) == [0, 1, 2, 3]
    with pytest.raises(errors.StoreError, match="was made at"):
        rc.open_buffer(tmp_path / "c", branch="exp")
    rc.open_buffer(tmp_path / "c").branch("again")
    rc.open_buffer(tmp_path / "c").cleanup(NOW)
    assert rc.open_buffer(tmp_path / "c").delete_branch("again") == []
    (tmp_path / "b").symlink_to(tmp_path / "c")
    assert uids(rc.open_buffer(tmp_path / "c", branch="exp").at()) == [0, 1, 2, 3]
    (tmp_path / "b").unlink()
    rc.open_buffer(tmp_path / "c").delete_branch("exp")
    assert uids(rc.open_buffer(tmp_path / "c").branch("exp").at()) == [0, 1, 2, 3]


def test_lance_itself_reads_a_branch(tmp_path: Path) -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        write(ws, 0)
        ws.snapshot(tmp_path / "b")
        rc.open_buffer(tmp_path / "b").branch("exp")
        write(ws, 10)
        ws.snapshot(tmp_path / "b", branch="exp")
    steps = lance.dataset(str(tmp_path / "b" / "steps.lance"))
    (name,) = steps.branches.list()
    assert name.startswith("exp.")
    assert steps.checkout_version((name, None)).count_rows() == 8 and steps.count_rows() == 4


@pytest.mark.parametrize(("promotes", "cleans"), [("exp", "main"), ("main", "exp"), ("exp", "exp")])
def test_nothing_lands_on_what_a_cleanup_of_another_branch_took(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, promotes: str, cleans: str
) -> None:
    """A promotion is stopped before its commit, for longer than what it staged is spared."""
    with rc.create_workspace("w", SCHEMA) as ws:
        write(ws, 0)
        ws.snapshot(tmp_path / "b")
        rc.open_buffer(tmp_path / "b").branch("exp")
        write(ws, 10)
        monkeypatch.setattr(cleaning, "STAGED_S", 0.0)
        monkeypatch.setattr(promoting, "STAGE_LIFETIME_S", 0.0)
        real, taken = Datasets.commit_steps, list[int]()

        def stopped(self: Datasets, *args: Any, **named: Any) -> int:
            if not taken:
                taken.append(rc.open_buffer(tmp_path / "b", branch=cleans).cleanup(NOW).rows)
            return real(self, *args, **named)

        monkeypatch.setattr(Datasets, "commit_steps", stopped)
        assert ws.snapshot(tmp_path / "b", branch=promotes).rows_added == 4
        assert taken == [1]
        view = rc.open_buffer(tmp_path / "b", branch=promotes).at()
        assert sorted(f["task"] for f in view.facts.episodes.values()) == ["t0", "t10"]
        assert all(rc.open_buffer(tmp_path / "b", branch=b).verify().ok for b in ("main", "exp"))


def test_a_power_cut_that_tears_a_branch_is_repaired(tmp_path: Path) -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        write(ws, 0)
        ws.snapshot(tmp_path / "b")
        rc.open_buffer(tmp_path / "b").branch("exp")
        write(ws, 10)
        ws.snapshot(tmp_path / "b", "m3")
        ws.snapshot(tmp_path / "b", "e3", branch="exp")
        held = Datasets.open_(rc.open_buffer(tmp_path / "b", branch="exp")._data.location).location
        path = manifest_path(Path(held.dataset("steps")), 3)
        path.write_bytes(bytes(path.stat().st_size))
        assert rc.open_buffer(tmp_path / "b").verify().ok
        with pytest.raises(errors.CorruptionError, match="--repair"):
            rc.open_buffer(tmp_path / "b", branch="exp")
        done = repair_buffer(tmp_path / "b")
        assert [line.partition(":")[0] for line in done] == ["branch exp"] * 2
        fork = rc.open_buffer(tmp_path / "b", branch="exp")
        assert uids(fork.at()) == [0, 1, 2, 3] and fork.tags() == {}
        assert rc.open_buffer(tmp_path / "b").tags() == {"m3": 3}
        assert ws.snapshot(tmp_path / "b", "e3", branch="exp").rows_added == 4
        assert uids(fork.at("e3")) == [0, 1, 2, 3, 10, 11, 12, 13] and fork.verify().ok
