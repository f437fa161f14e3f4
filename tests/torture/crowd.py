"""Many processes at one workspace, forked from a small clean one. Run by `test_processes` in a process of its own."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import recollect as rc
from recollect.errors import AlreadyExists, NotFound, WriterError
from recollect.testing.actor import Actor, Journal, random_ops
from recollect.testing.corpus import SCHEMAS
from recollect.testing.expected import Expectation, expect, require
from recollect.testing.instants import at_instant, die
from recollect.testing.kills import EPISODES_PER_CHILD, add, ended, forked, small_segments
from recollect.testing.ledger import Append, Ledger, Open
from recollect.testing.oracle import check_view, check_workspace, warm_up


class Gate:
    """Holds processes back until all of them can start."""

    def __init__(self) -> None:
        self._out, self._in = os.pipe()

    def wait(self) -> None:
        os.close(self._in)
        os.read(self._out, 1)

    def open(self) -> None:
        os.close(self._in)
        os.close(self._out)


def together(acts: list[Callable[[], None]]) -> None:
    """Runs functions in processes of their own, which start at one moment; fails unless all end well."""
    gate = Gate()

    def act(one: Callable[[], None]) -> None:
        gate.wait()
        one()

    pids = [forked(lambda one=one: act(one)) for one in acts]  # type: ignore[misc]
    gate.open()
    left = set(pids)
    try:
        while left:
            pid, status = os.wait()
            left.discard(pid)
            require(status == 0, f"a process ended with {os.waitstatus_to_exitcode(status)}")
    finally:
        for pid in left:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


class _Team:
    """Writers with their workloads and journals."""

    def __init__(self, chance: random.Random, count: int, ops: int) -> None:
        self.durability = "interval"
        self.ops = [
            random_ops(chance, ops, first_writer=50 * k, durability=self.durability, annotate=k == 0)
            for k in range(count)
        ]
        self.journals = [Journal() for _ in range(count)]

    def write(self, path: Path, k: int) -> None:
        ledger = Ledger(self.durability, first_episode=k * EPISODES_PER_CHILD)
        with rc.open_workspace(path) as workspace:
            Actor(workspace, ledger).run(self.ops[k], self.journals[k].note)

    def entries(self) -> list[list[tuple[int, int, int]]]:
        return [journal.read() for journal in self.journals]

    def expectation(self, before: list[list[tuple[int, int, int]]]) -> Expectation:
        """At least what was acknowledged before a view was taken, at most what is being written after it."""
        every = Expectation(Ledger(self.durability), {}, {}, {}, 0, 0)
        for k, (ops, first, last) in enumerate(zip(self.ops, before, self.entries(), strict=True)):
            numbers = {"durability": self.durability, "power": False, "first_episode": k * EPISODES_PER_CHILD}
            least, most = expect(ops, first, **numbers), expect(ops, last, **numbers)  # type: ignore[arg-type]
            for number, bounds in most.bounds.items():
                known = least.bounds.get(number)
                bounds.steps, bounds.marks = (known.steps, known.marks) if known else (0, 0)
            most.rewards = least.rewards
            add(every, most)
        return every


def many(folder: str, writers: int, readers: int, ops: int, seed: int) -> None:
    """Writers and readers at one workspace; every view is a prefix of each log, and grows."""
    small_segments()
    warm_up()
    path, team = Path(folder) / "w", _Team(random.Random(seed), writers, ops)
    rc.create_workspace(path, SCHEMAS["mixed"](), durability="interval").close()

    def read() -> None:
        steps: Counter[int] = Counter()
        views = 0
        with rc.open_workspace(path) as workspace:
            done = False
            while not done or views < 3:
                before = team.entries()
                done = all(len(e) == len(o) for e, o in zip(before, team.ops, strict=True))
                view = workspace.view()
                found = check_view(view, team.expectation(before))
                for number, count in found.steps.items():
                    require(count >= steps[number], f"writer {number} shrank from {steps[number]} to {count} steps")
                    steps[number] = count
                views += 1

    writing = [lambda k=k: team.write(path, k) for k in range(writers)]
    together([*writing, *([read] * readers)])
    with rc.open_workspace(path) as workspace:
        require(not workspace.recovered, "a closed log was recovered")
        found = check_workspace(workspace, team.expectation(team.entries()))
    print(sum(found.steps.values()), "steps")


def creating(folder: str, rounds: int, processes: int) -> None:
    """Several create one workspace: one wins, the others are told so, and what it made can be used."""
    warm_up()
    for k in range(rounds):
        path = Path(folder) / f"w{k}"
        won = Journal()

        def create(path: Path = path, won: Journal = won) -> None:
            with contextlib.suppress(AlreadyExists):
                rc.create_workspace(path, SCHEMAS["plain"]()).close()
                won.note(1)

        def use(path: Path = path) -> None:
            stop = time.monotonic() + 20
            while time.monotonic() < stop:
                with contextlib.suppress(NotFound), rc.open_workspace(path) as workspace:
                    if workspace.schema is not None:
                        workspace.view()
                        return
            raise AssertionError("nobody made the workspace")

        together([create] * processes + [use])
        require(len(won.read()) == 1, f"{len(won.read())} processes created one workspace")


def contending(folder: str, rounds: int, processes: int, seed: int) -> None:
    """Several create, open, write to, verify and delete the same few names: each call does what it says, or says that
    the name is taken, gone or in use."""
    warm_up()
    schema = rc.Schema({"uid": rc.Tensor("int64")})

    def contend(seed: int) -> None:
        chance = random.Random(seed)

        def write(path: Path) -> None:
            with rc.open_workspace(path) as workspace, workspace.writer() as writer, writer.episode() as episode:
                episode.append(uid=1, terminated=True)

        def check(path: Path) -> None:
            with rc.open_workspace(path) as workspace:
                workspace.verify()

        acts: list[Callable[[Path], None]] = [
            lambda path: rc.create_workspace(path, schema).close(),
            lambda path: rc.open_workspace(path).close(),
            write,
            check,
            lambda path: rc.delete_workspace(path),
        ]
        for _ in range(rounds):
            path = Path(folder) / f"w{chance.randrange(3)}"
            act = chance.choice(acts)
            with contextlib.suppress(AlreadyExists, NotFound, WriterError):
                act(path)

    together([lambda k=k: contend(seed + k) for k in range(processes)])  # type: ignore[misc]


def _abandoned(path: Path, chance: random.Random) -> Expectation:
    """A workspace whose writers were all killed, and what it must hold."""
    small_segments()
    rc.create_workspace(path, SCHEMAS["mixed"](), durability="process").close()
    ops = random_ops(chance, 60, writers=4, durabilities=("process",), close=False)
    journal = Journal()

    def write() -> None:
        Actor(rc.open_workspace(path), Ledger("process")).run(ops, journal.note)
        die()

    require(ended(forked(write)) == "kills", "the writer lived on")
    wanted = expect(ops, journal.read(), durability="process", power=False)
    journal.close()
    return wanted


def recovering(folder: str, rounds: int, processes: int, seed: int) -> None:
    """Several open a workspace whose writers died: each sees the same prefix, and each log is sealed once."""
    warm_up()
    small_segments()
    for k in range(rounds):
        path, reports = Path(folder) / f"w{k}", Journal()
        wanted = _abandoned(path, random.Random(f"{seed}.{k}"))

        def open_(path: Path = path, reports: Journal = reports, wanted: Expectation = wanted) -> None:
            with rc.open_workspace(path) as workspace:
                for recovered in workspace.recovered:
                    reports.note(0, recovered.writer)
                check_workspace(workspace, wanted)
                require(not any(w.live for w in workspace.stats().writers), "a dead writer counts as live")

        together([open_] * processes)
        sealed = [writer for _, writer, _ in reports.read()]
        logs = set(wanted.writers) | wanted.annotators
        require(sorted(sealed) == sorted(logs), f"{len(sealed)} logs were sealed, of {len(logs)}")


def stopping(folder: str, rounds: int, seed: int) -> None:
    """A process that recovers is stopped at some instruction: others open, read and write; it goes on later."""
    warm_up()
    for k in range(rounds):
        chance = random.Random(f"{seed}.{k}")
        path = Path(folder) / f"w{k}"
        wanted, instant = _abandoned(path, chance), int(10 ** chance.uniform(1, 4))

        def stop() -> int:
            os.kill(os.getpid(), signal.SIGSTOP)
            return -1

        def recover(path: Path = path, instant: int = instant) -> None:
            with at_instant(instant, stop):
                rc.open_workspace(path).close()

        def pass_by(path: Path = path, wanted: Expectation = wanted) -> None:
            signal.alarm(60)
            with rc.open_workspace(path) as workspace:
                check_workspace(workspace, wanted)
                workspace.writer(durability="process").close()

        pid = forked(recover)
        os.waitid(os.P_PID, pid, os.WSTOPPED | os.WEXITED | os.WNOWAIT)
        together([pass_by])
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
        require(ended(pid) == "finished", "the stopped process was killed")
        with rc.open_workspace(path) as workspace:
            wanted.nameless += 1
            require(not workspace.recovered, "a log was left unsealed")
            check_workspace(workspace, wanted)


def deleting(folder: str, rounds: int) -> None:
    """A workspace is deleted while a writer starts: one of them is refused, or nothing was acknowledged."""
    lost = Counter[str]()
    for k in range(rounds):
        path, journal = Path(folder) / f"w{k}", Journal()
        rc.create_workspace(path, SCHEMAS["plain"](), durability="process").close()
        chance = random.Random(k)
        wait_s = chance.uniform(0, 0.002)

        def write(path: Path = path, journal: Journal = journal) -> None:
            with contextlib.suppress(rc.errors.RecollectError):
                workspace = rc.open_workspace(path)
                if workspace.schema is None:
                    return  # deleted after it was opened
                Actor(workspace, Ledger("process")).run([Open(0, "process"), *[Append(0, 0)] * 20], journal.note)
                time.sleep(0.02)

        def delete(path: Path = path, wait_s: float = wait_s, journal: Journal = journal) -> None:
            time.sleep(wait_s)
            with contextlib.suppress(WriterError):
                rc.delete_workspace(path)
                journal.note(-7)

        together([write, delete])
        entries = journal.read()
        deleted = [at for at, (index, _, _) in enumerate(entries) if index == -7]
        acknowledged = entries[deleted[0] + 1 :] if deleted else []
        lost["after the deletion" if acknowledged else "none"] += 1
    require(not lost["after the deletion"], f"appends were acknowledged in a deleted workspace: {dict(lost)}")
