"""A state machine over the versions of one buffer: two workspaces, main and branches, against dicts.

The model is a tree of versions: `lines` holds, by branch, what each of its own versions holds, and where it began.
A rule of its own for what else changes a buffer (deletion, purge) adds a version to a line, or takes uids out of
`Held.rows` of the versions it rewrites; `_check` compares every version that has to be there.
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

import recollect as rc
from recollect import errors

SCHEMA = rc.Schema(
    {"observation": rc.Tensor("float32", (2,)), "reward": rc.Tensor("float32"), "uid": rc.Tensor("int64")},
    episode={"task": rc.Text()},
)
MAIN = "main"
START = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Held:
    """What a version holds: uids in order, lessons by uid of an episode's first step, and uid → value of columns; and
    the uids that it held once and that were deleted. `deletion` whether it was made by one."""

    rows: tuple[int, ...]
    lessons: dict[int, str]
    columns: dict[str, dict[int, float]] = field(default_factory=dict)
    made: datetime = START
    gone: frozenset[int] = frozenset()
    deletion: bool = False


@dataclass
class Line:
    """A branch.

    Attributes:
        parent, began: the branch and version that it began with.
        own: number → what it holds; those that cleanup may have taken are in `loose`.
        seen: by workspace, the rows and lessons of it that the branch was promoted.
    """

    parent: str
    began: int
    own: dict[int, Held]
    seen: list[tuple[set[int], dict[int, str]]]
    loose: set[int] = field(default_factory=set)


class VersionsMachine(RuleBasedStateMachine):
    """Promote, branch, tag, add columns, delete steps, compact, cleanup, delete branches, reopen."""

    @initialize()
    def begin(self) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="versions-"))
        self.at = self.root / "b"
        self.spaces = [rc.create_workspace(self.root / f"w{k}", SCHEMA) for k in range(2)]
        self.written: list[list[int]] = [[], []]
        self.lessons: list[dict[int, str]] = [{}, {}]
        self.keys: dict[int, Any] = {}
        self.uid = self.names = 0
        self.lines: dict[str, Line] = {MAIN: Line("", 0, {}, [(set(), {}), (set(), {})])}
        self.tags: dict[str, tuple[str, int]] = {}
        self._write(0, 2)
        self._promote(MAIN, 0, None)

    # -- rules ---------------------------------------------------------------------------------------------

    @rule(space=st.integers(0, 1), count=st.integers(1, 4))
    def write(self, space: int, count: int) -> None:
        self._write(space, count)

    @rule(space=st.integers(0, 1), pick=st.integers(0, 99))
    def learn(self, space: int, pick: int) -> None:
        """A late fact about an episode."""
        firsts = [u for u in self.written[space] if u in self.keys]
        if firsts:
            first = firsts[pick % len(firsts)]
            text = f"l{self.uid}-{pick}"
            self.spaces[space].annotate(self.keys[first], lesson=text)
            self.lessons[space][first] = text

    @rule(space=st.integers(0, 1), pick=st.integers(0, 99), tagged=st.booleans())
    def promote(self, space: int, pick: int, tagged: bool) -> None:
        self._promote(self._branch(pick), space, self._name("p") if tagged else None)

    @rule(pick=st.integers(0, 99), which=st.integers(0, 99))
    def branch(self, pick: int, which: int) -> None:
        parent = self._branch(pick)
        sure = [n for n in self._numbers(parent) if self._sure(parent, n)]
        if not sure:
            return
        number, name = sure[which % len(sure)], self._name("b")
        made = self._open(parent).branch(name, at=number)
        owner = self._owner(parent, number)
        before = self._held(parent, number)
        seen = [
            (
                {u for u in (*before.rows, *before.gone) if u in self.written[k]},
                {u: t for u, t in before.lessons.items() if u in self.written[k]},
            )
            for k in range(2)
        ]
        self.lines[name] = Line(owner, number, {}, seen)
        assert made.branch_name == name
        with pytest.raises(errors.AlreadyExists):
            self._open(parent).branch(name)

    @rule(pick=st.integers(0, 99), which=st.integers(0, 99))
    def tag(self, pick: int, which: int) -> None:
        branch = self._branch(pick)
        sure = [n for n in self._numbers(branch) if self._sure(branch, n)]
        if not sure:
            return
        number, name = sure[which % len(sure)], self._name("t")
        assert self._open(branch).tag(name, number) == number
        self.tags[name] = self._owner(branch, number), number

    @precondition(lambda self: len(self.lines) > 1)
    @rule(pick=st.integers(0, 99))
    def add_column(self, pick: int) -> None:
        branch = sorted(self.lines.keys() - {MAIN})[pick % (len(self.lines) - 1)]
        buffer, name, scale = self._open(branch), self._name("c"), float(self.uid + 1)
        newest = self._held(branch, self._numbers(branch)[-1])
        number = buffer.add_column(
            name, lambda rows: rows["uid"].astype("float64") * scale, field=rc.Tensor("float64"), fields=["uid"]
        )
        columns = {**newest.columns, name: {u: u * scale for u in newest.rows}}
        self.lines[branch].own[number] = Held(newest.rows, newest.lessons, columns, datetime.now(UTC), newest.gone)

    @precondition(lambda self: len(self.lines) > 1)
    @rule(pick=st.integers(0, 99))
    def delete_branch(self, pick: int) -> None:
        name = sorted(self.lines.keys() - {MAIN})[pick % (len(self.lines) - 1)]
        buffer = self._open(MAIN)
        if any(line.parent == name for line in self.lines.values()):
            with pytest.raises(errors.ConflictError, match="began on it"):
                buffer.delete_branch(name, with_tags=True)
            return
        mine = sorted(tag for tag, (owner, _) in self.tags.items() if owner == name)
        if mine:
            with pytest.raises(errors.ConflictError, match="tag"):
                buffer.delete_branch(name)
        assert buffer.delete_branch(name, with_tags=True) == mine
        del self.lines[name]
        for tag in mine:
            del self.tags[tag]

    @rule(pick=st.integers(0, 99), low=st.integers(0, 99), count=st.integers(1, 6), tried=st.booleans())
    def delete(self, pick: int, low: int, count: int, tried: bool) -> None:
        """Steps go from every line that holds them; episodes that lose all, with what is known of them."""
        first = low % max(1, self.uid)
        going = set(range(first, first + count))
        newest = {b: self._held(b, numbers[-1]) for b in self.lines if (numbers := self._numbers(b))}
        losing = {b: held for b, held in newest.items() if going & set(held.rows)}
        buffer, where = self._open(self._branch(pick)), f"uid >= {first} and uid < {first + count}"
        if tried:
            assert buffer.delete(where=where, reason="d", dry_run=True).versions == {}
        done = buffer.delete(where=where, reason="d")
        assert done.versions.keys() == losing.keys()
        assert done.rows == len(going & {u for held in losing.values() for u in held.rows})
        for branch, held in losing.items():
            rows = tuple(u for u in held.rows if u not in going)
            self.lines[branch].own[done.versions[branch]] = Held(
                rows, held.lessons, held.columns, datetime.now(UTC), held.gone | (going & set(held.rows)), True
            )

    @rule(pick=st.integers(0, 99))
    def compact(self, pick: int) -> None:
        self._open(self._branch(pick)).compact()

    @rule(pick=st.integers(0, 99))
    def cleanup(self, pick: int) -> None:
        branch = self._branch(pick)
        self._open(branch).cleanup(timedelta(0))
        line = self.lines[branch]
        kept = {n for owner, n in self.tags.values() if owner == branch}
        kept |= {other.began for other in self.lines.values() if other.parent == branch}
        kept |= {n for n in line.own if n == max(line.own) and not line.own[n].deletion}
        line.loose |= line.own.keys() - kept

    @rule()
    def reopen(self) -> None:
        for k, ws in enumerate(self.spaces):
            ws.close()
            self.spaces[k] = rc.open_workspace(self.root / f"w{k}")

    @rule(pick=st.integers(0, 99))
    def look(self, pick: int) -> None:
        self._check(self._branch(pick))

    # -- model ---------------------------------------------------------------------------------------------

    def _branch(self, pick: int) -> str:
        return sorted(self.lines)[pick % len(self.lines)]

    def _name(self, kind: str) -> str:
        self.names += 1
        return f"{kind}{self.names}"

    def _numbers(self, branch: str) -> list[int]:
        """The versions of a branch that made something, its ancestors' included."""
        line = self.lines[branch]
        before = [n for n in self._numbers(line.parent) if n <= line.began] if line.parent else []
        return [*before, *sorted(line.own)]

    def _owner(self, branch: str, number: int) -> str:
        line = self.lines[branch]
        return self._owner(line.parent, number) if line.parent and number <= line.began else branch

    def _held(self, branch: str, number: int) -> Held:
        return self.lines[self._owner(branch, number)].own[number]

    def _sure(self, branch: str, number: int) -> bool:
        """Whether a version has to be there."""
        return number not in self.lines[self._owner(branch, number)].loose

    def _open(self, branch: str) -> rc.Buffer:
        return rc.open_buffer(self.at, branch=branch)

    def _write(self, space: int, count: int) -> None:
        with self.spaces[space].writer() as writer, writer.episode(task=f"t{self.uid % 2}") as episode:
            for k in range(count):
                episode.append(observation=[self.uid, k], reward=1.0, uid=self.uid, terminated=k == count - 1)
                if not k:
                    self.keys[self.uid] = episode.key
                self.written[space].append(self.uid)
                self.uid += 1

    def _promote(self, branch: str, space: int, tag: str | None) -> None:
        line = self.lines[branch]
        numbers = self._numbers(branch)
        before = self._held(branch, numbers[-1]) if numbers else Held((), {})
        rows, lessons = line.seen[space]
        new = [u for u in self.written[space] if u not in rows]
        done = self.spaces[space].snapshot(self.at, tag, branch=branch)
        assert done.rows_added == len(new)
        told = self.lessons[space]
        if new or lessons != told:
            assert done.version is not None and done.rows == len(before.rows) + len(new)
            order = self._order(space, new)
            line.own[done.version] = Held(
                (*before.rows, *order), {**before.lessons, **told}, before.columns, datetime.now(UTC), before.gone
            )
            line.seen[space] = {*rows, *new}, dict(told)
        if tag is not None and done.version is not None:
            owner = self._owner(branch, done.version)
            if done.version in self.lines[owner].own:
                self.tags[tag] = owner, done.version

    def _order(self, space: int, uids: list[int]) -> list[int]:
        """The order in which a snapshot appends rows: by writer, then as written."""
        view, wanted = self.spaces[space].view(), set(uids)
        held = view.rows.gather(np.arange(len(view.rows)), ("writer", "seq", "uid"))
        found = sorted(zip(held["writer"].tolist(), held["seq"].tolist(), held["uid"].tolist(), strict=True))
        return [u for _, _, u in found if u in wanted]

    # -- checks --------------------------------------------------------------------------------------------

    def _check(self, branch: str) -> None:
        buffer = self._open(branch)
        assert sorted(b.name for b in buffer.branches()) == sorted(self.lines.keys() - {MAIN})
        numbers = self._numbers(branch)
        tags = {t: n for t, (owner, n) in self.tags.items() if n in numbers and self._owner(branch, n) == owner}
        assert {t: n for t, n in buffer.tags().items() if t in self.tags} == tags
        told = buffer.versions()
        assert [v.version for v in told] == numbers
        assert [v.branch for v in told] == [self._owner(branch, n) for n in numbers]
        for version in told:
            held = self._held(branch, version.version)
            assert version.rows == len(held.rows)
            if self._sure(branch, version.version):
                assert version.kept
                self._same(buffer.at(version.version), held)
            else:
                try:
                    self._same(buffer.at(version.version), held)
                except errors.NotFound:
                    assert not version.kept
        for tag, number in tags.items():
            self._same(buffer.at(tag), self._held(branch, number))
        last = self._held(branch, numbers[-1])
        self._same(buffer.at(), last)
        if self._sure(branch, numbers[-1]):
            self._same(buffer.at(last.made), last)
        report = buffer.verify()
        assert report.ok, report.findings

    def _same(self, view: rc.View, held: Held) -> None:
        slots = np.arange(len(view.rows))
        assert tuple(view.rows.gather(slots, ("uid",))["uid"].tolist()) == held.rows
        for uid, key in self.keys.items():
            if uid in held.rows:
                assert view.facts.episodes[key].get("lesson") == held.lessons.get(uid)
        for name in view.schema.roots:
            if name in SCHEMA.roots:
                continue
            valid, values = view.rows.valid(slots, name), view.rows.gather(slots, (name,))[name]
            found = {u: v for u, v, known in zip(held.rows, values.tolist(), valid.tolist(), strict=True) if known}
            assert found == {u: v for u, v in held.columns.get(name, {}).items() if u in held.rows}
        assert held.columns.keys() <= set(view.schema.roots)

    def teardown(self) -> None:
        if hasattr(self, "spaces"):
            for branch in self.lines:
                self._check(branch)
            for ws in self.spaces:
                ws.close()
            shutil.rmtree(self.root, ignore_errors=True)


@pytest.mark.parametrize(
    ("examples", "steps"),
    [
        pytest.param(8, 12, marks=pytest.mark.timeout(600)),
        pytest.param(400, 50, marks=[pytest.mark.torture, pytest.mark.timeout(7200)]),
    ],
)
def test_versions_agree_with_their_model(examples: int, steps: int) -> None:
    run_state_machine_as_test(
        VersionsMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=examples == 8,
            print_blob=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
