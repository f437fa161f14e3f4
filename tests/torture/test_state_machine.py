"""A workspace against a model of it, under every order of operations that Hypothesis thinks of.

The writers live in a process of their own, so that they can be killed, between operations or at any instruction of one,
and so that their power can be cut. This process reads through handles of its own.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

import recollect as rc
from recollect.hot.format.files import try_lock
from recollect.hot.keep import Keep
from recollect.hot.write.growing import Durability
from recollect.testing import corpus
from recollect.testing.actor import ALL_OLD_S, LANES
from recollect.testing.cases import scratch_folder
from recollect.testing.corpus import SCHEMAS
from recollect.testing.disk import Disk
from recollect.testing.expected import Bounds, Expectation, adopt
from recollect.testing.follow import Followers
from recollect.testing.ledger import (
    Annotate,
    Append,
    Close,
    End,
    Evict,
    Evolve,
    Extend,
    Finish,
    Lanes,
    Leave,
    Ledger,
    Limit,
    Next,
    Op,
    Open,
    Resume,
    Sync,
)
from recollect.testing.oracle import Reader, check_leaf, check_view, check_workspace
from recollect.testing.power import rebooted
from recollect.view import StepId
from tests.torture.puppet import Theatre

ENDS: st.SearchStrategy[End] = st.sampled_from(("", "", "", "terminated", "truncated"))
NEXTS: st.SearchStrategy[Next] = st.sampled_from(("none", "same", "same", "other"))
INSTANTS = st.integers(0, 3000)
WINDOW = 12
DURABILITIES: st.SearchStrategy[Durability] = st.sampled_from(("process", "step"))
LIMITS = st.builds(Limit, st.sampled_from((0, 5, 30)), st.booleans())
DEATHS = st.sampled_from(("kill", "kill within", "cut", "cut within"))


def _keep(limit: Limit | None) -> Keep:
    if limit is None:
        return Keep()
    age = None if limit.rows else ALL_OLD_S
    return Keep(rows=limit.rows or None, age=age, unpromoted="drop" if limit.drop else "refuse")


class WorkspaceMachine(RuleBasedStateMachine):
    """Rules are what people do to a workspace; every rule leaves model and workspace equal."""

    theatre: ClassVar[Theatre]

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="recollect-", dir=scratch_folder()))
        self.home = self.root / "0"
        self.cuts = self.number = 0
        self.live: list[int] = []
        self.limits: set[Limit | None] = {None}
        self.version = 1
        self.alone: set[int] = set()
        self.held: dict[Path, set[int]] = {}
        self.home_buffer: Path | None = None

    @initialize(schema=st.sampled_from(sorted(SCHEMAS)), durability=DURABILITIES, limit=st.none() | LIMITS)
    def create(self, schema: str, durability: Durability, limit: Limit | None) -> None:
        self.home.mkdir()
        rc.create_workspace(self.path, SCHEMAS[schema](), durability=durability, keep=_keep(limit)).close()
        self.model = Expectation(Ledger(durability), {}, {}, {}, 0, 0)
        self._limit(limit)
        self._begin()

    @property
    def path(self) -> Path:
        return self.home / "w"

    def _begin(self) -> None:
        """A new process for the writers, and a new handle to read with."""
        self.theatre.begin(self.path, self.model.ledger, self.model.ids)
        self._open_reader()
        self._look()

    def _open_reader(self) -> None:
        with self._nothing_goes():
            self.reader = rc.open_workspace(self.path)
        self.growing = Followers(self.reader, WINDOW)

    @contextlib.contextmanager
    def _nothing_goes(self) -> Iterator[None]:
        """While this process works on a workspace, it evicts nothing: the power cuts see what the puppet flushes."""
        lock = try_lock(self.path / "evict.lock")
        assert lock is not None
        with lock:
            yield

    # -- what writers do -----------------------------------------------------------------------------------

    def _do(self, op: Op) -> None:
        first, second = self.theatre.do(op)
        self._follow(op)
        if isinstance(op, Limit):
            self._limit(op)
        self.version = self.model.ledger.version
        if isinstance(op, Open):
            self.model.writers[first] = op.writer
        elif isinstance(op, Append):
            self.model.ids[self.model.ledger.logs[op.writer].moments[-1].uid] = StepId(first, second)
        elif isinstance(op, Annotate):
            self.model.annotators.add(first)
        self._look()

    def _limit(self, limit: Limit | None) -> None:
        self.limits = {limit}
        self.model.drops = limit is not None and limit.drop
        self.model.least_rows = 0 if limit is None else limit.rows

    def _look(self) -> None:
        """Notes what was evicted; the rest is as it was."""
        if self.limits != {None}:
            self.model.gone = dict(check_view(self.reader.view(), self.model).gone)

    def _follow(self, op: Op) -> None:
        """The model does what the process did; everything that returned must be there."""
        ledger = self.model.ledger
        ledger.apply(op)
        self.model.rewards = self.model.most_rewards = len(ledger.rewards)
        if not isinstance(op, Annotate | Limit | Evict | Evolve):
            log = ledger.logs[op.writer]
            steps, marks = len(log.moments), len(log.marks)
            self.model.bounds[op.writer] = Bounds(steps, steps, marks, marks, steps)

    def _ops(self, data: st.DataObject) -> Op:
        """Any operation that can be carried out now."""
        kinds = ["open"] * (1 if self.live else 6) if len(self.live) < 3 else []
        if self.live:
            kinds += ["append"] * 4 + ["extend", "lanes", "sync", "close", "finish", "annotate", "resume"]
        kind = data.draw(st.sampled_from([*kinds, "limit", "evict", "evolve"]))
        if kind == "limit":
            return data.draw(LIMITS)
        if kind == "evolve" and self.model.ledger.version < corpus.VERSIONS:
            return Evolve()
        if kind in ("evict", "evolve"):
            return Evict()
        if kind == "open":
            return Open(self.number, data.draw(DURABILITIES))
        writer = data.draw(st.sampled_from(self.live))
        match kind:
            case "extend":
                keys = data.draw(st.lists(st.integers(0, 2), min_size=1, max_size=3, unique=True))
                parts = tuple((key, data.draw(st.integers(1, 30)), data.draw(ENDS)) for key in keys)
                return Extend(writer, parts, data.draw(NEXTS))
            case "lanes":
                lanes = data.draw(st.lists(st.integers(0, LANES - 1), min_size=1, unique=True))
                return Lanes(writer, LANES, tuple((k, data.draw(ENDS)) for k in sorted(lanes)), data.draw(NEXTS))
            case "sync":
                return Sync(writer)
            case "close":
                return Close(writer)
            case "finish":
                open_ones = [e for e in range(3) if self.model.ledger.is_open(writer, "a", e)]
                if open_ones:
                    episode = data.draw(st.sampled_from(open_ones))
                    return Finish(writer, episode) if data.draw(st.booleans()) else Leave(writer, episode)
            case "resume":
                return self._resumption(data, writer) or Sync(writer)
            case "annotate":
                which, moments = data.draw(st.integers(0, 1 << 16)), self.model.ledger.logs[writer].moments
                named = [k for k, m in enumerate(moments) if m.uid in self.model.ids and not self.model.is_gone(m)]
                return Annotate(writer, named[which % len(named)]) if named else Sync(writer)
        return Append(writer, data.draw(st.integers(0, 2)), data.draw(ENDS), data.draw(NEXTS))

    def _resumption(self, data: st.DataObject, writer: int) -> Resume | None:
        """Any episode that may go on, under a number that the writer does not use now. What is drawn does not depend on
        which there are: that depends on where a death hit, which is not quite the same each time."""
        which, number = data.draw(st.integers(0, 1 << 16)), data.draw(st.integers(0, 2))
        ledger = self.model.ledger
        left = {e: uid for uid in sorted(self.model.ids) if self._can_resume(writer, e := ledger.moment(uid).episode)}
        left = {e: uid for e, uid in left.items() if not self.model.is_gone(ledger.moment(uid))}
        free = [e for e in range(3) if not ledger.is_open(writer, "a", e)]
        if not left or not free:
            return None
        return Resume(writer, free[number % len(free)], left[sorted(left)[which % len(left)]])

    def _can_resume(self, writer: int, episode: int) -> bool:
        """Nobody has it open, the writer knows its fields, and the step that the next one comes after is there."""
        ledger = self.model.ledger
        if not ledger.can_resume(episode) or ledger.version_of(episode) > ledger.logs[writer].version:
            return False
        return not self._lost_its_newest(episode)

    def _lost_its_newest(self, episode: int) -> bool:
        steps = [m for log in self.model.ledger.logs.values() for m in log.moments if m.episode == episode]
        return self.model.is_gone(max(steps, key=lambda m: m.step))

    def _refusals(self, writer: int) -> None:
        """What is left of an episode whose newest step went does not say where it goes on: nobody may."""
        ledger = self.model.ledger
        named = [(uid, ledger.moment(uid)) for uid in self.model.ids]
        here = {m.episode: uid for uid, m in named if not self.model.is_gone(m)}
        for episode, uid in sorted(here.items()):
            if ledger.can_resume(episode) and self._lost_its_newest(episode):
                assert self.theatre.is_refused(Resume(writer, 0, uid)), f"episode {episode}: uid {uid}"

    @rule(data=st.data(), count=st.integers(1, 8))
    def write(self, data: st.DataObject, count: int) -> None:
        for _ in range(count):
            op = self._ops(data)
            self._do(op)
            if isinstance(op, Open):
                self.live.append(op.writer)
                self.number += 1
            elif isinstance(op, Close):
                self.live.remove(op.writer)

    @precondition(lambda self: self.live)
    @rule(count=st.integers(2, 8), episode=st.integers(0, 2), data=st.data())
    def play(self, count: int, episode: int, data: st.DataObject) -> None:
        """A stretch of one episode."""
        writer = data.draw(st.sampled_from(self.live))
        following = data.draw(NEXTS)
        for _ in range(count):
            self._do(Append(writer, episode, "", following))

    @precondition(lambda self: self.live)
    @rule(data=st.data(), count=st.integers(0, 3))
    def go_on(self, data: st.DataObject, count: int) -> None:
        """An episode that nobody has open any more, and some steps of it."""
        writer = data.draw(st.sampled_from(self.live))
        self._refusals(writer)
        op = self._resumption(data, writer)
        following = data.draw(NEXTS)
        if op is None:
            return
        self._do(op)
        for _ in range(count):
            self._do(Append(op.writer, op.episode, "", following))

    @precondition(lambda self: self.live)
    @rule(data=st.data(), rows=st.integers(20, 60))
    def fill(self, data: st.DataObject, rows: int) -> None:
        """So much that a writer goes on in a new segment before long."""
        self._do(Extend(data.draw(st.sampled_from(self.live)), ((0, rows, data.draw(ENDS)),), data.draw(NEXTS)))

    # -- what befalls them ---------------------------------------------------------------------------------

    @rule(how=DEATHS, data=st.data(), instant=INSTANTS, seed=st.integers(0, 2**32), dice=st.integers(0, 2))
    def die(self, how: str, data: st.DataObject, instant: int, seed: int, dice: int) -> None:
        """The process is killed, or the power goes: between two operations, or at any instruction of one."""
        if dice:
            return
        noted = self.theatre.noted()
        if "within" in how:
            op = self._ops(data)
            self.theatre.do_and_die(op, instant)
            self._in_flight(op)
        else:
            self.theatre.kill()
        if "cut" in how:
            self._compose(noted, seed)
        else:
            os.close(noted)
        self._after_death(power="cut" in how)

    def _in_flight(self, op: Op) -> None:
        """The operation may have been carried out or not."""
        if isinstance(op, Open):
            self.model.nameless += 1
            self.number += 1
            return
        ledger = self.model.ledger
        durable = {n: (log.durable_moments, log.durable_following, log.durable_marks) for n, log in ledger.logs.items()}
        known = ledger.durable_rewards
        ledger.apply(op)
        if isinstance(op, Limit):
            self.limits.add(op)
            self.model.drops |= op.drop
            self.model.least_rows = 0
        if isinstance(op, Limit | Evict | Evolve):
            return
        ledger.durable_rewards = known
        self.model.most_rewards = len(ledger.rewards)
        if isinstance(op, Annotate):
            self.model.nameless += not self.model.annotators
            return
        for n, log in ledger.logs.items():
            log.durable_moments, log.durable_following, log.durable_marks = durable[n]
        log, bounds = ledger.logs[op.writer], self.model.bounds[op.writer]
        bounds.most_steps, bounds.most_marks = len(log.moments), len(log.marks)

    def _compose(self, noted: int, seed: int) -> None:
        self.cuts += 1
        left = self.root / str(self.cuts)
        Disk(self.home, noted).compose(left, random.Random(seed))
        os.close(noted)
        self.reader.close()
        shutil.rmtree(self.home)
        self.home = left

    def _after_death(self, *, power: bool) -> None:
        """Opens what is left, checks it, and goes on from what was found."""
        if power:
            for number, bounds in self.model.bounds.items():
                log = self.model.ledger.logs[number]
                bounds.steps = min(bounds.steps, log.durable_moments)
                bounds.marks = min(bounds.marks, log.durable_marks)
                bounds.following = min(bounds.following, log.durable_following)
            self.model.rewards = min(self.model.rewards, self.model.ledger.durable_rewards)
            self.model.least_rows = 0
        with rebooted() if power else contextlib.nullcontext(), rc.open_workspace(self.path) as ws:
            found = check_workspace(ws, self.model)
            self._adopt_settings(ws)
        adopt(self.model, found)
        self.alone |= found.alone
        with rc.open_workspace(self.path) as ws:
            assert not ws.recovered
            self.model.gone = dict(check_workspace(ws, self.model).gone)
        if not power:
            self.growing.check(self.model)
        self.live.clear()
        self._begin()

    def _adopt_settings(self, workspace: rc.Workspace) -> None:
        """Limits and schema are those acknowledged last, or those in flight."""
        keeps = {_keep(limit): limit for limit in self.limits}
        assert workspace.keep in keeps, (workspace.keep, self.limits)
        self._limit(keeps[workspace.keep])
        assert workspace.schema is not None
        version = corpus.version_of(workspace.schema)
        assert self.version <= version <= self.model.ledger.version
        self.version = self.model.ledger.version = version

    # -- what readers do -----------------------------------------------------------------------------------

    @rule()
    def read(self) -> None:
        """A handle that was open all along sees everything."""
        check_workspace(self.reader, self.model)

    @rule()
    def reopen(self) -> None:
        self.reader.close()
        self._open_reader()
        assert not self.reader.recovered, "a live writer was sealed"
        check_workspace(self.reader, self.model)

    @rule()
    def grow(self) -> None:
        """Views that grow have every row, each where it was; those of the newest rows alone have these."""
        self.growing.check(self.model)

    @rule()
    def verify(self) -> None:
        """Agents that live or died are no damage. An observation that waited, and that no sync covered, may be lost
        with the power; it is missed for as long as its step is there."""
        report = self.reader.verify()
        no_loss = {"harmless"} if self.alone else set()
        wrong = [p for p in report.problems if not (p.where.endswith(".tails") and p.level in no_loss)]
        assert not wrong, wrong

    @rule(dice=st.integers(0, 5))
    def snapshot(self, dice: int) -> None:
        """Everything is in the buffer once, as it is here. What was promoted before it was lost or evicted stays."""
        if dice > 2:
            return
        # A buffer does not evolve; eviction goes by the home buffer, and by no other.
        buffer = self.root / f"{'other' if dice == 2 else 'home'}{self.version}"
        with self._nothing_goes():
            if self.home_buffer is None:
                self.home_buffer = buffer
            elif dice < 2 and self.home_buffer != buffer:
                self.reader.set_home(buffer)
                self.home_buffer = buffer
            self.reader.snapshot(buffer)
        for folder in (self.path, self.path / "targets"):
            self.theatre.flushed(folder)
        ledger = self.model.ledger
        here = {m.uid: m for log in ledger.logs.values() for m in log.moments if not self.model.is_gone(m)}
        if not here and buffer not in self.held:
            return
        view = rc.open_buffer(buffer).at()
        slots = np.flatnonzero(~view.episodes.is_final)
        held = view.rows.gather(slots, ("uid", "writer", "seq"))
        names = list(zip(*(held[k].tolist() for k in ("writer", "seq")), strict=True))
        assert len(set(names)) == len(names)
        uids: list[int] = held["uid"].tolist()
        promoted = self.held.setdefault(buffer, set())
        assert set(uids) >= here.keys() and set(uids) - here.keys() <= promoted
        kept = [k for k, uid in enumerate(uids) if uid in here]
        moments = [here[uids[k]] for k in kept]
        versions = [ledger.log_of(m).version for m in moments]
        for leaf in view.schema.leaves:
            if leaf.path != "reward":
                check_leaf(Reader(view), leaf, moments, slots[kept], versions, {}, set())
        promoted |= set(uids)
        if buffer == self.home_buffer:
            self.model.promoted |= promoted

    def teardown(self) -> None:
        if hasattr(self, "reader"):
            check_workspace(self.reader, self.model)
            self.reader.close()
        self.theatre.kill()
        shutil.rmtree(self.root, ignore_errors=True)


@pytest.fixture
def theatre() -> Iterator[Theatre]:
    WorkspaceMachine.theatre = Theatre()
    yield WorkspaceMachine.theatre
    WorkspaceMachine.theatre.close()


@pytest.mark.parametrize(
    ("examples", "steps"), [(40, 30), pytest.param(3000, 60, marks=[pytest.mark.torture, pytest.mark.timeout(7200)])]
)
def test_a_workspace_agrees_with_its_model(examples: int, steps: int, theatre: Theatre) -> None:
    run_state_machine_as_test(
        WorkspaceMachine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=examples == 40,  # the same examples every time; the long form explores
            print_blob=True,
            suppress_health_check=list(HealthCheck),
        ),
    )
