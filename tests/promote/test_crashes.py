"""Promotion is exactly once: killed anywhere, run twice at once, refused, or told nothing."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors
from recollect.cold.dataset import Datasets
from tests.support import all_ids, python, rows_of

SCHEMA = rc.Schema(
    {
        "observation": rc.Tensor("float32", (4,)),
        "reward": rc.Tensor("float32"),
        "note": rc.Text(optional=True),
        "uid": rc.Tensor("int64"),
    }
)

PROMOTER = """
import sys
import recollect as rc
name, to, tag = sys.argv[1:4]
ws = rc.open_workspace(name)
import recollect.cold.dataset, recollect.promote.snapshot
print("ready", flush=True)
sys.stdin.readline()
print(ws.snapshot(to, tag=tag or None).rows_added, flush=True)
"""


def _fill(ws: rc.Workspace, rounds: int, *, first: int = 0, length: int = 25) -> None:
    writer = ws.writer()
    for r in range(rounds):
        n = length
        writer.extend(
            {
                "episode": np.full(n, first + r),
                "step": np.arange(n),
                "observation": np.random.default_rng(first + r).random((n, 4)),
                "reward": np.zeros(n),
                "note": [f"row {first + r}.{i}" for i in range(n)],
                "uid": (first + r) * length + np.arange(n),
                "terminated": np.arange(n) == n - 1,
            }
        )
    writer.close()


def _exactly_once(buffer: Path, *names: str) -> None:
    """Fails unless the newest version holds every row and fact of the workspaces once, with equal values."""
    view = rc.open_buffer(buffer).at()
    ids = Counter(all_ids(view))
    assert set(ids.values()) <= {1}
    want: set[tuple[int, int]] = set()
    values: dict[int, Any] = {}
    facts = 0
    for name in names:
        hot = rc.open_workspace(name).view()
        want |= set(all_ids(hot))
        values |= rows_of(hot, batch_size=512)
        facts += sum(stop for _, stop in hot.cut.facts)
    assert set(ids) == want
    assert rows_of(view, batch_size=512) == values
    assert sum(stop for _, stop in view.cut.facts) == facts
    assert sum(len(h) for h in view.facts.history.values()) == facts


def _promoter(name: str, buffer: Path, tag: str = "") -> subprocess.Popen[str]:
    child = python(PROMOTER, name, str(buffer), tag)
    assert child.stdout is not None
    line = child.stdout.readline()
    assert line == "ready\n", child.communicate()[1]
    return child


def _go(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()


@pytest.mark.parametrize("kills", [14, pytest.param(150, marks=pytest.mark.torture)])
def test_a_promoter_killed_at_random_moments_leaves_every_row_once(kills: int, tmp_path: Path) -> None:
    buffer = tmp_path / "b"
    chance = random.Random(7)
    ws = rc.create_workspace("w", SCHEMA)
    finished = 0
    for k in range(kills):
        _fill(ws, 8, first=8 * k)
        writer = ws.writer()
        episode = writer.episode(id=f"e{k}")
        episode.append(observation=np.zeros(4), reward=0.0, uid=-1 - k, next_observation=np.ones(4))
        child = _promoter("w", buffer, f"t{k}")
        _go(child)
        time.sleep(chance.uniform(0.0, 0.12))
        child.send_signal(signal.SIGKILL)
        out, _ = child.communicate()
        finished += "\n" in out
        if k % 3 == 2:
            ws.snapshot(buffer)
            _exactly_once(buffer, "w")
            tags = rc.open_buffer(buffer).tags()
            assert all(rc.open_buffer(buffer).at(tag) for tag in tags)
    ws.snapshot(buffer, tag="last")
    ws.close()
    ws.snapshot(buffer)
    _exactly_once(buffer, "w")
    assert finished < kills, "no kill hit a promotion"


@pytest.mark.parametrize("names", [("a", "b"), ("a", "a")], ids=["two-workspaces", "one-workspace-twice"])
@pytest.mark.parametrize("rounds", [4, pytest.param(40, marks=pytest.mark.torture)])
def test_promoters_at_once_promote_every_row_once(names: tuple[str, str], rounds: int, tmp_path: Path) -> None:
    """They race from before the buffer exists."""
    buffer = tmp_path / "buffer"
    spaces = {name: rc.create_workspace(name, SCHEMA) for name in dict.fromkeys(names)}
    added = 0
    for round_ in range(rounds):
        for k, ws in enumerate(spaces.values()):
            _fill(ws, 3, first=1000 * k + 10 * round_)
        children = [_promoter(name, buffer) for name in names]
        for child in children:
            _go(child)
        for child in children:
            out, err = child.communicate(timeout=60)
            assert child.returncode == 0, err
            added += int(out)
    assert added == sum(len(ws.view().rows) for ws in spaces.values())
    _exactly_once(buffer, *spaces)


def test_threads_of_one_process_promote_every_row_once(tmp_path: Path) -> None:
    buffer = tmp_path / "buffer"
    spaces = [rc.create_workspace(f"w{k}", SCHEMA) for k in range(3)]
    failures: list[BaseException] = []

    def promote(ws: rc.Workspace, k: int) -> None:
        try:
            for r in range(3):
                _fill(ws, 2, first=100 * k + 10 * r)
                ws.snapshot(buffer)
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=promote, args=(ws, k)) for k, ws in enumerate(spaces)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures
    _exactly_once(buffer, *(ws.name for ws in spaces))


def _break_commit(
    monkeypatch: pytest.MonkeyPatch, after: Callable[[Callable[[], int]], int], times: int = 1
) -> list[int]:
    """Replaces the commit, the first `times` times, by `after(commit)`."""
    real = Datasets.commit_steps
    calls: list[int] = []

    def broken(self: Datasets, *arguments: Any) -> int:
        calls.append(len(calls))
        if len(calls) > times:
            return real(self, *arguments)
        return after(lambda: real(self, *arguments))

    monkeypatch.setattr(Datasets, "commit_steps", broken)
    return calls


def _lost(commit: Callable[[], int]) -> int:
    commit()
    raise errors.StoreError("the reply was lost")


def _refused(commit: Callable[[], int]) -> int:
    raise errors.ConflictError("others committed first")


def _landed_but_refused(commit: Callable[[], int]) -> int:
    """A store client that retries its own write finds it there, and calls that a conflict."""
    commit()
    raise errors.ConflictError("others committed first")


def _unreachable(commit: Callable[[], int]) -> int:
    raise errors.StoreError("the store cannot be reached")


@pytest.mark.parametrize("failure", [_lost, _refused, _landed_but_refused])
def test_a_commit_of_unknown_or_refused_outcome_ends_with_every_row_once(
    failure: Callable[[Callable[[], int]], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        _fill(ws, 3)
        _break_commit(monkeypatch, failure)
        snap = ws.snapshot(tmp_path / "b", tag="t")
        assert (snap.rows_added, snap.rows, snap.tag) == (75, 75, "t")
        buffer = rc.open_buffer(tmp_path / "b")
        assert len(buffer.versions()) == 1 and buffer.tags() == {"t": snap.version}
        assert ws.snapshot(tmp_path / "b").rows_added == 0
        _exactly_once(tmp_path / "b", "w")


def test_a_commit_that_never_landed_is_an_error_and_the_next_snapshot_promotes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        _fill(ws, 3)
        _break_commit(monkeypatch, _unreachable)
        with pytest.raises(errors.StoreError, match="cannot be reached"):
            ws.snapshot(tmp_path / "b", tag="t")
        assert rc.open_buffer(tmp_path / "b").versions() == []
        assert ws.snapshot(tmp_path / "b", tag="t").rows_added == 75
        _exactly_once(tmp_path / "b", "w")


def test_a_commit_that_others_always_win_ends_with_a_conflict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recollect.promote.snapshot.ATTEMPTS", 3)
    with rc.create_workspace("w", SCHEMA) as ws:
        _fill(ws, 1)
        calls = _break_commit(monkeypatch, _refused, times=99)
        with pytest.raises(errors.ConflictError, match="Run it again"):
            ws.snapshot(tmp_path / "b")
        assert len(calls) == 3


def test_another_workspaces_commit_in_between_makes_ours_look_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other promotion lands after our rows were staged, before our commit."""
    with rc.create_workspace("w", SCHEMA) as ws, rc.create_workspace("v", SCHEMA) as other:
        _fill(ws, 2)
        _fill(other, 2, first=50)

        def overtaken(commit: Callable[[], int]) -> int:
            other.snapshot(tmp_path / "b", tag="theirs")
            return commit()

        calls = _break_commit(monkeypatch, overtaken)
        snap = ws.snapshot(tmp_path / "b", tag="ours")
        assert len(calls) == 3 and snap.rows_added == 50 and snap.rows == 100
        assert rc.open_buffer(tmp_path / "b").tags() == {"theirs": 2, "ours": 3}
        _exactly_once(tmp_path / "b", "w", "v")


def test_a_death_between_commit_and_tag_is_made_good_by_the_next_snapshot(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def die(self: Datasets, tag: str, version: int) -> bool:
        raise Killed

    with rc.create_workspace("w", SCHEMA) as ws:
        _fill(ws, 2)
        with monkeypatch.context() as patch:
            patch.setattr(Datasets, "create_tag", die)
            with pytest.raises(Killed):
                ws.snapshot(tmp_path / "b", tag="one")
        assert rc.open_buffer(tmp_path / "b").tags() == {}
        _fill(ws, 2, first=10)
        assert ws.snapshot(tmp_path / "b", tag="two").rows_added == 50
        buffer = rc.open_buffer(tmp_path / "b")
        assert buffer.tags() == {"one": 2, "two": 3}
        assert len(buffer.at("one").rows) == 50
        _exactly_once(tmp_path / "b", "w")


def test_rows_that_arrive_while_a_snapshot_runs_wait_for_the_next(tmp_path: Path) -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        _fill(ws, 2)
        came: list[int] = []

        def more(done: int, total: int) -> None:
            if not came:
                came.append(total)
                _fill(ws, 2, first=10)

        assert ws.snapshot(tmp_path / "b", progress=more).rows_added == 50
        assert ws.snapshot(tmp_path / "b").rows_added == 50
        _exactly_once(tmp_path / "b", "w")


def test_a_snapshot_takes_no_lock_that_an_appending_agent_waits_for(tmp_path: Path) -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer:
        _fill(ws, 2)
        episode = writer.episode()
        ids: list[rc.StepId] = []

        def append(done: int, total: int) -> None:
            ids.append(episode.append(observation=np.zeros(4), reward=0.0, uid=-len(ids)))

        ws.snapshot(tmp_path / "b", progress=append)
        assert ids and ws.recent(1)[0].id == ids[-1]


if sys.platform != "linux":
    pytest.skip("the hot log needs Linux", allow_module_level=True)
