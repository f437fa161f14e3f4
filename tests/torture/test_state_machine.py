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
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

import recollect as rc
from recollect.testing.actor import LANES
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
    Extend,
    Finish,
    Lanes,
    Leave,
    Ledger,
    Next,
    Op,
    Open,
    Resume,
    Sync,
)
from recollect.testing.oracle import check_workspace
from recollect.testing.power import rebooted
from recollect.view import StepId
from tests.torture.puppet import Theatre

ENDS: st.SearchStrategy[End] = st.sampled_from(("", "", "", "terminated", "truncated"))
NEXTS: st.SearchStrategy[Next] = st.sampled_from(("none", "same", "same", "other"))
INSTANTS = st.integers(0, 3000)
WINDOW = 12
DURABILITIES = st.sampled_from(("process", "step"))


class WorkspaceMachine(RuleBasedStateMachine):
    """Rules are what people do to a workspace; every rule leaves model and workspace equal."""

    theatre: ClassVar[Theatre]

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="recollect-", dir=scratch_folder()))
        self.home = self.root / "0"
        self.cuts = self.number = 0
        self.live: list[int] = []
        self.promoted: set[int] = set()

    @initialize(schema=st.sampled_from(sorted(SCHEMAS)), durability=DURABILITIES)
    def create(self, schema: str, durability: str) -> None:
        self.home.mkdir()
        rc.create_workspace(self.path, SCHEMAS[schema](), durability=durability).close()  # type: ignore[arg-type]
        self.model = Expectation(Ledger(durability), {}, {}, {}, 0, 0)
        self._begin()

    @property
    def path(self) -> Path:
        return self.home / "w"

    def _begin(self) -> None:
        """A new process for the writers, and a new handle to read with."""
        self.theatre.begin(self.path, self.model.ledger, self.model.ids)
        self._open_reader()

    def _open_reader(self) -> None:
        self.reader = rc.open_workspace(self.path)
        self.growing = Followers(self.reader, WINDOW)

    # -- what writers do -----------------------------------------------------------------------------------

    def _do(self, op: Op) -> None:
        first, second = self.theatre.do(op)
        self._follow(op)
        if isinstance(op, Open):
            self.model.writers[first] = op.writer
        elif isinstance(op, Append):
            self.model.ids[self.model.ledger.logs[op.writer].moments[-1].uid] = StepId(first, second)
        elif isinstance(op, Annotate):
            self.model.annotators.add(first)

    def _follow(self, op: Op) -> None:
        """The model does what the process did; everything that returned must be there."""
        ledger = self.model.ledger
        ledger.apply(op)
        self.model.rewards = self.model.most_rewards = len(ledger.rewards)
        if not isinstance(op, Annotate):
            log = ledger.logs[op.writer]
            steps, marks = len(log.moments), len(log.marks)
            self.model.bounds[op.writer] = Bounds(steps, steps, marks, marks, steps)

    def _ops(self, data: st.DataObject) -> Op:
        """Any operation that can be carried out now."""
        kinds = ["open"] if len(self.live) < 3 else []
        if self.live:
            kinds += ["append"] * 4 + ["extend", "lanes", "sync", "close", "finish", "annotate", "resume"]
        kind = data.draw(st.sampled_from(kinds))
        if kind == "open":
            return Open(self.number, data.draw(DURABILITIES))
        writer = data.draw(st.sampled_from(self.live))
        log = self.model.ledger.logs[writer]
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
                named = [k for k, m in enumerate(log.moments) if m.uid in self.model.ids]
                if named:
                    return Annotate(writer, data.draw(st.sampled_from(named)))
        return Append(writer, data.draw(st.integers(0, 2)), data.draw(ENDS), data.draw(NEXTS))

    def _resumption(self, data: st.DataObject, writer: int) -> Resume | None:
        """Any episode that may go on, under a number that the writer does not use now. What is drawn does not depend on
        which there are: that depends on where a death hit, which is not quite the same each time."""
        which, number = data.draw(st.integers(0, 1 << 16)), data.draw(st.integers(0, 2))
        ledger = self.model.ledger
        left = {e: uid for uid in sorted(self.model.ids) if ledger.can_resume(e := ledger.moment(uid).episode)}
        free = [e for e in range(3) if not ledger.is_open(writer, "a", e)]
        if not left or not free:
            return None
        return Resume(writer, free[number % len(free)], left[sorted(left)[which % len(left)]])

    @rule(data=st.data())
    def write(self, data: st.DataObject) -> None:
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
        op = self._resumption(data, data.draw(st.sampled_from(self.live)))
        following = data.draw(NEXTS)
        if op is None:
            return
        self._do(op)
        for _ in range(count):
            self._do(Append(op.writer, op.episode, "", following))

    @precondition(lambda self: self.live)
    @rule(data=st.data())
    def sync(self, data: st.DataObject) -> None:
        self._do(Sync(data.draw(st.sampled_from(self.live))))

    # -- what befalls them ---------------------------------------------------------------------------------

    @rule()
    def kill(self) -> None:
        self.theatre.kill()
        self._after_death(power=False)

    @rule(data=st.data(), instant=INSTANTS)
    def kill_within(self, data: st.DataObject, instant: int) -> None:
        op = self._ops(data)
        self.theatre.do_and_die(op, instant)
        self._in_flight(op)
        self._after_death(power=False)

    @rule(seed=st.integers(0, 2**32))
    def cut_power(self, seed: int) -> None:
        noted = self.theatre.noted()
        self.theatre.kill()
        self._compose(noted, seed)
        self._after_death(power=True)

    @rule(data=st.data(), instant=INSTANTS, seed=st.integers(0, 2**32))
    def cut_power_within(self, data: st.DataObject, instant: int, seed: int) -> None:
        op = self._ops(data)
        noted = self.theatre.noted()
        self.theatre.do_and_die(op, instant)
        self._in_flight(op)
        self._compose(noted, seed)
        self._after_death(power=True)

    def _in_flight(self, op: Op) -> None:
        """The operation may have been carried out or not."""
        if isinstance(op, Open):
            self.model.nameless += 1
            self.number += 1
            return
        ledger = self.model.ledger
        durable = {n: (log.durable_moments, log.durable_marks) for n, log in ledger.logs.items()}
        known = ledger.durable_rewards
        ledger.apply(op)
        ledger.durable_rewards = known
        self.model.most_rewards = len(ledger.rewards)
        if isinstance(op, Annotate):
            self.model.nameless += not self.model.annotators
            return
        for n, log in ledger.logs.items():
            log.durable_moments, log.durable_marks = durable[n]
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
                bounds.following = min(bounds.following, log.durable_moments)
            self.model.rewards = min(self.model.rewards, self.model.ledger.durable_rewards)
        with rebooted() if power else contextlib.nullcontext(), rc.open_workspace(self.path) as ws:
            found = check_workspace(ws, self.model)
        adopt(self.model, found)
        with rc.open_workspace(self.path) as ws:
            assert not ws.recovered
            check_workspace(ws, self.model)
        if not power:
            self.growing.check(self.model)
        self.live.clear()
        self._begin()

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
        """Agents that live or died are no damage."""
        report = self.reader.verify()
        assert report.ok, report.problems

    @rule(dice=st.integers(0, 3))
    def snapshot(self, dice: int) -> None:
        """Everything is in the buffer once. What was promoted before a power cut stays there."""
        if dice:
            return
        self.reader.snapshot(self.root / "buffer")
        if not any(log.moments for log in self.model.ledger.logs.values()):
            return
        view = rc.open_buffer(self.root / "buffer").at()
        held = view.rows.gather(np.flatnonzero(~view.episodes.is_final), ("uid", "writer", "seq"))
        names: list[Any] = list(zip(*(held[k].tolist() for k in ("uid", "writer", "seq")), strict=True))
        assert len({name[1:] for name in names}) == len(names)
        here = {m.uid for log in self.model.ledger.logs.values() for m in log.moments}
        uids = [name[0] for name in names]
        assert set(uids) >= here and set(uids) - here <= self.promoted
        self.promoted |= set(uids)

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
