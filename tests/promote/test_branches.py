"""Promotions onto branches: at the same time, killed anywhere, twice."""

from __future__ import annotations

import random
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

import recollect as rc
from recollect.cold.dataset import Datasets
from recollect.promote import snapshot as module
from tests.support import all_ids, python, rows_of

SCHEMA = rc.Schema(
    {"observation": rc.Tensor("float32", (2,)), "reward": rc.Tensor("float32"), "uid": rc.Tensor("int64")}
)
BRANCHES = ("one", "two")

PROMOTER = """
import sys
import recollect as rc
name, to, branch, tag = sys.argv[1:5]
ws = rc.open_workspace(name)
import recollect.cold.dataset, recollect.promote.snapshot
print("ready", flush=True)
sys.stdin.readline()
print(ws.snapshot(to, tag=tag or None, branch=branch or None).rows_added, flush=True)
"""


def write(name: str, first: int, count: int = 8) -> None:
    with rc.open_workspace(name) as ws, ws.writer() as writer, writer.episode() as episode:
        for uid in range(first, first + count):
            episode.append(observation=[uid, 0], reward=1.0, uid=uid, terminated=uid == first + count - 1)


def start(name: str, to: Path, branch: str, tag: str = "") -> subprocess.Popen[str]:
    child = python(PROMOTER, name, str(to), branch, tag)
    assert child.stdout is not None
    line = child.stdout.readline()
    assert line == "ready\n", child.communicate()[1]
    return child


def go(child: subprocess.Popen[str]) -> None:
    assert child.stdin is not None
    child.stdin.write("\n")
    child.stdin.flush()


def exactly_once(to: Path, branch: str, uids: list[int]) -> None:
    buffer = rc.open_buffer(to, branch=branch)
    view = buffer.at()
    ids = all_ids(view)
    assert len(set(ids)) == len(ids) == len(uids)
    assert sorted(rows_of(view, batch_size=64)) == sorted(uids)
    assert buffer.verify().ok


@pytest.fixture
def to(tmp_path: Path) -> Path:
    rc.create_workspace("w", SCHEMA).close()
    rc.create_workspace("v", SCHEMA).close()
    write("w", 0)
    with rc.open_workspace("w") as ws:
        ws.snapshot(tmp_path / "b", "fork")
    for name in BRANCHES:
        rc.open_buffer(tmp_path / "b").branch(name)
    return tmp_path / "b"


def test_processes_promote_to_main_and_two_branches_at_once(to: Path) -> None:
    want = list(range(8))
    for r in range(2):
        for k, name in enumerate(("w", "v")):
            first = 1000 * (r + 1) + 100 * k
            write(name, first)
            want += range(first, first + 8)
        children = [start(n, to, branch, f"{n}-{branch}-{r}") for n in ("w", "v") for branch in (*BRANCHES, "main")]
        for child in children:
            go(child)
        added = [child.communicate(timeout=300) for child in children]
        assert [(int(out), child.returncode) for (out, _), child in zip(added, children, strict=True)] == [(8, 0)] * 6
        for branch in (*BRANCHES, "main"):
            exactly_once(to, branch, want)
            tags = rc.open_buffer(to, branch=branch).tags()
            assert {f"{n}-{branch}-{k}" for n in ("w", "v") for k in range(r + 1)} <= tags.keys()
    # Each has a chain of its own, whose first link is the one it began with.
    chains = {
        b: [p.id for p in Datasets.open_(rc.open_buffer(to, branch=b)._data.location).history().log()] for b in BRANCHES
    }
    assert chains["one"][0] == chains["two"][0] and not set(chains["one"][1:]) & set(chains["two"][1:])


@pytest.mark.parametrize("rounds", [3, pytest.param(200, marks=[pytest.mark.torture, pytest.mark.timeout(7200)])])
def test_promoters_of_branches_are_killed_anywhere(to: Path, rounds: int) -> None:
    chance = random.Random(rounds)
    want = list(range(8))
    for r in range(rounds):
        write("w", 100 * (r + 1))
        want += range(100 * (r + 1), 100 * (r + 1) + 8)
        children = [start("w", to, branch) for branch in BRANCHES]
        for child in children:
            go(child)
        time.sleep(chance.uniform(0.0, 0.15))
        for child in children:
            child.kill()
            child.communicate()
    with rc.open_workspace("w") as ws:
        for branch in BRANCHES:
            ws.snapshot(to, branch=branch)
            assert ws.snapshot(to, branch=branch).rows_added == 0
            exactly_once(to, branch, want)
    exactly_once(to, "main", list(range(8)))


@pytest.mark.parametrize("moment", ["stage", "record", "commit", "tag"])
def test_a_kill_at_each_step_is_made_good_by_the_next_run(
    to: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    write("w", 100)
    with rc.open_workspace("w") as ws, monkeypatch.context() as m, pytest.raises(Killed):

        def dying(real: Any, *, before: bool) -> Any:
            def call(*args: Any, **named: Any) -> Any:
                if not before:
                    real(*args, **named)
                raise Killed

            return call

        if moment == "stage":
            m.setattr(module, "stage", dying(module.stage, before=False))  # type: ignore[attr-defined]
        elif moment == "record":
            m.setattr(Datasets, "record", dying(Datasets.record, before=False))
        elif moment == "commit":
            m.setattr(Datasets, "commit_steps", dying(Datasets.commit_steps, before=False))
        else:
            m.setattr(Datasets, "create_tag", dying(Datasets.create_tag, before=True))
        ws.snapshot(to, "named", branch="one")
    landed = moment in ("commit", "tag")
    exactly_once(to, "one", [*range(8), *(range(100, 108) if landed else ())])
    exactly_once(to, "two", list(range(8)))
    with rc.open_workspace("w") as ws:
        done = ws.snapshot(to, "named", branch="one")
        assert (done.rows_added, done.version) == (0 if landed else 8, 3)
    exactly_once(to, "one", [*range(8), *range(100, 108)])
    assert rc.open_buffer(to, branch="one").tags() == {"fork": 2, "named": 3}
    assert rc.open_buffer(to).tags() == {"fork": 2}


def test_a_wish_for_a_tag_of_main_is_not_granted_by_a_branch_twice(to: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A promoter of main died before its tag; a branch began behind it; whoever comes next makes the tag, on main."""
    write("w", 100)

    class Killed(BaseException):
        pass

    def die(*_: Any) -> bool:
        raise Killed

    with rc.open_workspace("w") as ws:
        with monkeypatch.context() as m, pytest.raises(Killed):
            m.setattr(Datasets, "create_tag", die)
            ws.snapshot(to, "late")
        rc.open_buffer(to).branch("three")
        write("w", 200)
        ws.snapshot(to, branch="three")
        assert rc.open_buffer(to).tags() == {"fork": 2, "late": 3} == rc.open_buffer(to, branch="three").tags()
        exactly_once(to, "three", [*range(8), *range(100, 108), *range(200, 208)])
        exactly_once(to, "main", [*range(8), *range(100, 108)])
