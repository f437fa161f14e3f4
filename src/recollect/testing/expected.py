"""What must be found in a workspace after a workload that may have been cut short."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from recollect.testing.corpus import Moment
from recollect.testing.ledger import UIDS_PER_WRITER, Annotate, Append, Ledger, Op, Open
from recollect.view import StepId


class Wrong(AssertionError):
    """A workspace that does not hold what it must."""


def require(condition: object, what: str) -> None:
    """Raises Wrong unless the condition holds."""
    if not condition:
        raise Wrong(what)


@dataclass
class Bounds:
    """How much of a log must be there, and how much may be.

    Attributes:
        steps, most_steps: least and most steps; `marks`, `most_marks` the same of episode facts.
        following: steps whose given next observation must be there too.
    """

    steps: int
    most_steps: int
    marks: int
    most_marks: int
    following: int


@dataclass
class Expectation:
    """What must be found.

    Attributes:
        ledger: the operations that were carried out, the one in flight included.
        writers: a writer's id → the model's number of it.
        bounds: the model's number → how much of its log.
        ids: uid → the StepId that `append` returned.
        rewards, most_rewards: least and most late rewards.
        nameless: how many more logs may exist, without steps: of writers whose creation was in flight, or that wrote
            the reward in flight.
        annotators: ids of the writers that wrote late rewards.
        gone: the model's number of a writer → how many of its steps are known to be evicted, from its log's front.
        promoted: uids of the steps that the home buffer holds or held: these may be evicted.
        drops: whether others may be evicted too; `least_rows` of the workspace are left then in any case.
    """

    ledger: Ledger
    writers: dict[int, int]
    bounds: dict[int, Bounds]
    ids: dict[int, StepId]
    rewards: int
    most_rewards: int
    nameless: int = 0
    annotators: set[int] = field(default_factory=set)
    gone: dict[int, int] = field(default_factory=dict)
    promoted: set[int] = field(default_factory=set)
    drops: bool = False
    least_rows: int = 0

    def gone_of(self, number: int) -> int:
        return self.gone.get(number, 0)

    def is_gone(self, moment: Moment) -> bool:
        """Whether a step is known to be evicted."""
        return moment.uid % UIDS_PER_WRITER < self.gone_of(moment.uid // UIDS_PER_WRITER)


@dataclass(frozen=True)
class Found:
    """What was found.

    Attributes:
        steps, marks: the model's number of a writer → its steps, its facts; `rewards` the late rewards.
        ids: uid → StepId, of every step.
        alone: uids of steps whose given next observation was not synced and is gone.
        gone: the model's number of a writer → how many steps were evicted from its log's front.
        moments: the steps that are there, by uid.
    """

    steps: Mapping[int, int]
    marks: Mapping[int, int]
    rewards: int
    ids: Mapping[int, StepId]
    alone: frozenset[int]
    gone: Mapping[int, int]
    moments: Mapping[int, Moment]


def adopt(expect: Expectation, found: Found) -> None:
    """Makes what was found after the death of every writer the model: it is sealed, and stays."""
    ledger = expect.ledger
    for number, log in ledger.logs.items():
        del log.moments[found.steps[number] :], log.marks[found.marks[number] :]
        log.moments[:] = [m._replace(following=-1) if m.uid in found.alone else m for m in log.moments]
        steps, marks = len(log.moments), len(log.marks)
        log.durable_moments = log.durable_following = steps
        log.durable_marks = marks
        expect.bounds[number] = Bounds(steps, steps, marks, marks, steps)
    expect.ids, expect.gone = dict(found.ids), dict(found.gone)
    del ledger.rewards[found.rewards :]
    ledger.durable_rewards = expect.rewards = expect.most_rewards = found.rewards
    ledger.all_died()


def expect(
    ops: Sequence[Op],
    entries: Sequence[tuple[int, int, int]],
    *,
    durability: str,
    power: bool,
    first_episode: int = 0,
    after: Expectation | None = None,
) -> Expectation:
    """What a workload that was cut short must have left.

    Args:
        ops: the whole workload; `entries` the journal of what returned, in order.
        durability: the workspace's.
        power: whether the power went, so that only what was synced must be there; else all that returned must.
        first_episode: the number the ledger began at.
        after: what was there before, as `adopt` left it.
    """
    if after is None:
        out = Expectation(Ledger(durability, first_episode=first_episode), {}, {}, {}, 0, 0)
    else:
        out = copy.deepcopy(after)
    ledger = out.ledger
    for k, (index, first, second) in enumerate(entries):
        require(index == k, f"the journal names operation {index} at {k}")
        op = ops[k]
        moments = ledger.apply(op)
        if isinstance(op, Open):
            out.writers[first] = op.writer
        elif isinstance(op, Append):
            out.ids[moments[0].uid] = StepId(first, second)
        elif isinstance(op, Annotate):
            out.annotators.add(first)
    for number, log in ledger.logs.items():
        steps = log.durable_moments if power else len(log.moments)
        marks = log.durable_marks if power else len(log.marks)
        following = log.durable_following if power else len(log.moments)
        out.bounds[number] = Bounds(steps, len(log.moments), marks, len(log.marks), following)
    out.rewards = ledger.durable_rewards if power else len(ledger.rewards)
    out.most_rewards = len(ledger.rewards)
    if len(entries) < len(ops):
        op = ops[len(entries)]
        out.nameless += isinstance(op, Open) or (isinstance(op, Annotate) and not out.annotators)
        if not isinstance(op, Open):
            ledger.apply(op)
            for number, bounds in out.bounds.items():
                log = ledger.logs[number]
                bounds.most_steps, bounds.most_marks = len(log.moments), len(log.marks)
            out.most_rewards = len(ledger.rewards)
    return out
