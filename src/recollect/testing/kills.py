"""The kill harness: writers and recoverers in child processes, killed at random; all they acknowledged is looked up.

    python -m recollect.testing kills --count 5000

Half of the children die at a chosen instruction of a chosen operation, creating a writer, rolling over, closing and
sealing included; half at a moment of the clock, in the middle of whatever the kernel does for them.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from recollect.hot.write import growing
from recollect.opening import create_workspace, open_workspace
from recollect.testing.actor import Actor, Journal, random_ops
from recollect.testing.cases import Report, run_cases
from recollect.testing.corpus import SCHEMAS
from recollect.testing.expected import Expectation, adopt, expect, require
from recollect.testing.instants import at_instant, die
from recollect.testing.ledger import Ledger, Op, Resume
from recollect.testing.oracle import check_workspace, warm_up
from recollect.view import StepId

EPISODES_PER_CHILD = 100_000


def run(count: int = 50, *, seed: int, first: int = 0, jobs: int = 1, folder: Path | None = None) -> Report:
    """`count` workspaces, each with one to three writers or recoverers killed.

    Args: as `cases.run_cases`.
    """
    warm_up()
    return run_cases("kills", kill_case, count, seed=seed, first=first, jobs=jobs, folder=folder)


def kill_case(folder: Path, chance: random.Random, counts: Counter[str]) -> None:
    """One workspace: writers killed side by side, then those who find them dead, then everything is read."""
    durability = chance.choice(("process", "interval", "step"))
    small_segments()
    with contextlib.closing(
        create_workspace(folder / "w", SCHEMAS[chance.choice(sorted(SCHEMAS))](), durability=durability)  # type: ignore[arg-type]
    ):
        pass
    every = Expectation(Ledger(durability), {}, {}, {}, 0, 0)
    children = [_Child(folder / "w", chance, every, k) for k in range(chance.choice((1, 1, 2)))]
    if len(children) == 2 and chance.random() < 0.5:
        # The first to die is found while the other one writes.
        children[0].wait(counts)
        survey(folder / "w", chance, counts)
        children[1].wait(counts)
    else:
        for child in children:
            child.wait(counts)
    survey(folder / "w", chance, counts)
    for child in children:
        add(every, child.expectation())
        child.close()
    _check_dead(folder / "w", every)
    if chance.random() < 0.5:
        every.ledger.first_episode = len(children) * EPISODES_PER_CHILD
        last = _Child(folder / "w", chance, every, len(children), after=every)
        last.wait(counts)
        survey(folder / "w", chance, counts)
        every = last.expectation()
        last.close()
        counts["resumptions"] += sum(isinstance(op, Resume) for op in last.done)
        _check_dead(folder / "w", every)


def _check_dead(path: Path, every: Expectation) -> None:
    """Checks a workspace whose writers are all dead, and makes what is there the model."""
    with open_workspace(path) as workspace:
        found = check_workspace(workspace, every)
    check_settled(path, every)
    adopt(every, found)


def small_segments() -> None:
    """Lets this process's writers roll over every few dozen rows."""
    growing.SEGMENT_BYTES = (1 << 14,) * 4


def add(every: Expectation, one: Expectation) -> None:
    """Lays one child's expectation beside those of others. Only one of them may write late rewards."""
    every.ledger.logs.update(one.ledger.logs)
    every.ledger.facts = max(every.ledger.facts, one.ledger.facts)
    every.writers.update(one.writers)
    every.bounds.update(one.bounds)
    every.ids.update(one.ids)
    every.annotators |= one.annotators
    every.nameless += one.nameless
    if one.most_rewards:
        every.ledger.rewards = one.ledger.rewards
        every.rewards, every.most_rewards = one.rewards, one.most_rewards


class _Child:
    """A process that carries out a workload and is killed on the way.

    Args:
        after: what was there before; its episodes may go on. Those who work side by side know nothing of each other.
    """

    def __init__(
        self, path: Path, chance: random.Random, every: Expectation, number: int, after: Expectation | None = None
    ) -> None:
        self.durability, self.first_episode = every.ledger.durability, number * EPISODES_PER_CHILD
        self._after = after
        known = {} if after is None else after.ids
        self.ops = random_ops(
            chance,
            chance.choice((3, 12, 40, 90)),
            writers=chance.choice((1, 1, 2)),
            first_writer=50 * number,
            durability=self.durability,
            annotate=number == 0 or after is not None,
            after=None if after is None else after.ledger,
            known=known,
        )
        self.journal = Journal()
        fatal = chance.randrange(len(self.ops)) if chance.random() < 0.7 else -1
        self._delay_s = 0.0 if fatal >= 0 else chance.uniform(0.0, 0.03)
        instant = int(10 ** chance.uniform(0, 4))
        ledger = Ledger(self.durability, first_episode=self.first_episode) if after is None else after.ledger
        self._pid = forked(lambda: work(path, self.ops, self.journal, fatal, instant, ledger, known))

    def wait(self, counts: Counter[str]) -> None:
        """Kills the process if it does not do so itself."""
        if self._delay_s:
            time.sleep(self._delay_s)
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
        counts[ended(self._pid)] += 1

    def expectation(self) -> Expectation:
        entries = self.journal.read()
        self.done = self.ops[: len(entries)]
        return expect(
            self.ops,
            entries,
            durability=self.durability,
            power=False,
            first_episode=self.first_episode,
            after=self._after,
        )

    def close(self) -> None:
        self.journal.close()


def work(
    path: Path,
    ops: Sequence[Op],
    journal: Journal,
    fatal: int,
    instant: int,
    ledger: Ledger,
    known: Mapping[int, StepId],
) -> None:
    """Carries the operations out; dies at an instruction of operation `fatal`, -1 for none."""
    actor = Actor(open_workspace(path), ledger, known)
    for k, op in enumerate(ops):
        if k == fatal:
            with at_instant(instant, die):
                actor.do(op)
            die()
        journal.note(k, *actor.do(op))


def forked(act: Callable[[], None]) -> int:
    """Runs a function in a child process and returns its id. The child ends with 0, or with 1 and a traceback."""
    pid = os.fork()
    if pid:
        return pid
    try:
        act()
        os._exit(0)
    except BaseException:
        import traceback

        traceback.print_exc()
    os._exit(1)


def ended(pid: int) -> str:
    """Waits for a child: `kills` where SIGKILL ended it, `finished` where it was done. Anything else is a find."""
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    require(status in (0, -signal.SIGKILL), f"a child ended with {status}")
    return "kills" if status else "finished"


def survey(path: Path, chance: random.Random, counts: Counter[str]) -> None:
    """Opens a workspace in processes that may die while they recover it."""
    while chance.random() < 0.4:
        instant = int(10 ** chance.uniform(0, 4.3))

        def act(instant: int = instant) -> None:
            with at_instant(instant, die):
                open_workspace(path).close()

        counts["recoverers " + ended(forked(act))] += 1


def check_settled(path: Path, every: Expectation) -> None:
    """Opened again, nothing is left to recover and everything is the same; a new writer takes no old id."""
    with open_workspace(path) as again:
        require(not again.recovered, f"a second opening recovered {again.recovered}")
        before = check_workspace(again, every)
        require(not any(w.live for w in again.stats().writers), "a dead writer counts as live")
        ids = set(every.writers) | every.annotators
        with again.writer(durability="process") as writer:
            require(writer.id not in ids, f"writer id {writer.id} was used again")
    with open_workspace(path) as third:
        every.nameless += 1
        require(check_workspace(third, every) == before, "reading again found something else")
