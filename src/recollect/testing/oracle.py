"""Whether a workspace holds what a ledger says: every acknowledged step once, equal in value, in order."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import starmap
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recollect.records.layout import FINAL
from recollect.records.rows import PackedRows
from recollect.schema import Leaf
from recollect.schema.fields import is_heap
from recollect.testing import corpus
from recollect.testing.actor import Actor
from recollect.testing.corpus import Moment
from recollect.testing.ledger import UIDS_PER_WRITER, Annotate, Append, Close, Ledger, LogModel, Op, Open
from recollect.view import Slots, StepId, View
from recollect.workspace import Workspace, create_workspace


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
    """

    ledger: Ledger
    writers: dict[int, int]
    bounds: dict[int, Bounds]
    ids: dict[int, StepId]
    rewards: int
    most_rewards: int
    nameless: int = 0
    annotators: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class Found:
    """What was found.

    Attributes:
        steps, marks: the model's number of a writer → its steps, its facts; `rewards` the late rewards.
        ids: uid → StepId, of every step.
        alone: uids of steps whose given next observation was not synced and is gone.
    """

    steps: Mapping[int, int]
    marks: Mapping[int, int]
    rewards: int
    ids: Mapping[int, StepId]
    alone: frozenset[int]


def check_workspace(workspace: Workspace, expect: Expectation) -> Found:
    """Reads everything through a view, facts, `recent` and `episode`. Nobody may be writing.

    Raises:
        Wrong: something is missing, doubled, torn, out of order or not what was written.
    """
    view = workspace.view()
    found = check_view(view, expect)
    _check_recall(workspace, _Reader(view), expect, found)
    return found


def check_view(view: View, expect: Expectation) -> Found:
    """Reads every row and fact of a view, of a workspace that may be growing.

    Raises:
        Wrong: as `check_workspace`.
    """
    rows = _Reader(view)
    known = set(expect.writers) | expect.annotators
    strange = {e.writer for e in view.cut.extents} | {w for w, _ in view.cut.facts}
    strange -= known
    require(len(strange) <= expect.nameless, f"logs of unknown writers {sorted(strange)}")
    require(len(rows.ids) == len({tuple(i) for i in rows.ids.tolist()}), "an id is there twice")

    steps: dict[int, int] = {}
    slots_of: dict[int, Slots] = {}
    keys: dict[int, tuple[int, ...]] = {}
    for writer in strange:
        require(not (rows.ids["writer"] == writer).any(), f"rows of unknown writer {writer}")
    for writer, number in expect.writers.items():
        slots_of[number], steps[number] = _check_order(rows, writer, expect, number, keys)
    rewards = _check_rewards(view, expect)
    marks = _check_marks(view, expect)
    overlay = _overlay(expect, rewards)
    moments = [m for n in slots_of for m in expect.ledger.logs[n].moments[: steps[n]]]
    require(len(set(keys.values())) == len(keys), "two episodes have one key")
    _check_whole(moments)
    slots = np.concatenate([*slots_of.values(), np.empty(0, np.int64)])
    _check_values(rows, moments, slots, overlay)
    must = {m.uid for n in slots_of for m in expect.ledger.logs[n].moments[: expect.bounds[n].following]}
    alone = _check_following(rows, moments, slots, must)
    ids = dict(zip((m.uid for m in moments), starmap(StepId, rows.ids[slots].tolist()), strict=True))
    return Found(steps, marks, rewards, ids, alone)


def adopt(expect: Expectation, found: Found) -> None:
    """Makes what was found after the death of every writer the model: it is sealed, and stays."""
    ledger = expect.ledger
    for number, log in ledger.logs.items():
        del log.moments[found.steps[number] :], log.marks[found.marks[number] :]
        log.moments[:] = [m._replace(following=-1) if m.uid in found.alone else m for m in log.moments]
        steps, marks = len(log.moments), len(log.marks)
        log.durable_moments, log.durable_marks = steps, marks
        expect.bounds[number] = Bounds(steps, steps, marks, marks, steps)
    expect.ids = dict(found.ids)
    del ledger.rewards[found.rewards :]
    ledger.durable_rewards = expect.rewards = expect.most_rewards = found.rewards
    ledger.all_died()


def _overlay(expect: Expectation, rewards: int) -> dict[int, np.float32]:
    """Uid → its newest late reward."""
    return {uid: np.float32(reward) for uid, reward in expect.ledger.rewards[:rewards]}


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
        out.bounds[number] = Bounds(steps, len(log.moments), marks, len(log.marks), steps)
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


class _Reader:
    """A view's columns, read once."""

    def __init__(self, view: View) -> None:
        assert isinstance(view.rows, PackedRows)
        self.view, self.rows = view, view.rows
        every = np.arange(len(view.rows))
        got = view.rows.gather(every, ("writer", "seq", "flags", "uid", "step", "episode_writer", "episode"))
        self.ids = view.rows.ids(every)
        self.flags, self.uid, self.step = got["flags"], got["uid"], got["step"]
        self.episode = np.stack([got["episode_writer"], got["episode"]], 1)
        self.is_step = (self.flags & FINAL) == 0


def _check_order(
    rows: _Reader, writer: int, expect: Expectation, number: int, keys: dict[int, tuple[int, ...]]
) -> tuple[Slots, int]:
    """One writer's steps: a prefix of what it wrote, whole operations of it, under the ids that it returned."""
    log, bounds = expect.ledger.logs[number], expect.bounds[number]
    name = f"writer {number} ({writer:016x})"
    mine = np.flatnonzero((rows.ids["writer"] == writer) & rows.is_step)
    seqs = rows.ids["seq"][mine]
    require((np.diff(seqs) > 0).all(), f"{name}: rows out of order")
    count = len(mine)
    first = number * UIDS_PER_WRITER
    wanted = np.arange(first, first + count)
    if not np.array_equal(rows.uid[mine], wanted):
        at = int(np.flatnonzero(rows.uid[mine] != wanted)[0])
        raise Wrong(f"{name}: step {at} of {count} has uid {rows.uid[mine][at]}, not {wanted[at]}")
    require(count >= bounds.steps, f"{name}: {bounds.steps} steps must be there, {count} are")
    require(count <= bounds.most_steps, f"{name}: {count} steps, at most {bounds.most_steps} were written")
    require(
        count in log.bounds, f"{name}: {count} steps, which is half of an operation; whole are {sorted(log.bounds)}"
    )
    for k, moment in enumerate(log.moments[:count]):
        id = expect.ids.get(moment.uid)
        require(id is None or id == (writer, int(seqs[k])), f"{name}: uid {moment.uid} was {id}, is {seqs[k]}")
    steps = [m.step for m in log.moments[:count]]
    held = rows.step[mine].tolist()
    require(held == steps, f"{name}: step indices are {held}, not {steps}, those written")
    _check_episodes(rows, log, mine, name, keys)
    return mine, count


def _check_episodes(rows: _Reader, log: LogModel, slots: Slots, name: str, keys: dict[int, tuple[int, ...]]) -> None:
    """An episode has one key in all logs; `keys` those seen so far."""
    for slot, moment in zip(slots.tolist(), log.moments, strict=False):
        key = tuple(rows.episode[slot].tolist())
        require(keys.setdefault(moment.episode, key) == key, f"{name}: uid {moment.uid} is in another episode")


def _check_whole(moments: list[Moment]) -> None:
    """Steps of an episode that another writer went on with are there only with those before them."""
    held: dict[int, set[int]] = {}
    for m in moments:
        held.setdefault(m.episode, set()).add(m.step)
    for episode, steps in held.items():
        require(len(steps) == max(steps) + 1, f"episode {episode}: steps {sorted(steps)} without those before them")


def _check_values(rows: _Reader, moments: list[Moment], slots: Slots, overlay: Mapping[int, np.float32]) -> None:
    if not moments:
        return
    ends = rows.rows.gather(slots, ("terminated", "truncated"))
    require(ends["terminated"].tolist() == [m.terminated for m in moments], "terminated flags differ")
    require(ends["truncated"].tolist() == [m.truncated for m in moments], "truncated flags differ")
    for leaf in rows.view.schema.leaves:
        null = np.array([corpus.is_null(leaf, m) for m in moments])
        if leaf.path == "reward":
            null &= np.array([m.uid not in overlay for m in moments])
        valid = rows.rows.valid(slots, leaf.path)
        if not np.array_equal(valid, ~null):
            at = int(np.flatnonzero(valid == null)[0])
            raise Wrong(f"uid {moments[at].uid}: {leaf.path} is {'there' if valid[at] else 'null'}")
        numbers = [corpus.number_of(leaf, m) for m in moments]
        _same(rows, leaf, slots, numbers, null, [m.uid for m in moments], overlay if leaf.path == "reward" else {})


def _same(
    rows: _Reader,
    leaf: Leaf,
    slots: Slots,
    numbers: list[int],
    null: NDArray[np.bool_],
    uids: list[int],
    overlay: Mapping[int, np.float32],
    what: str = "",
) -> None:
    """Fails unless the slots hold, bit for bit, the values that follow from the numbers."""
    if not len(slots):
        return
    if is_heap(leaf.field):
        for k, raw in enumerate(rows.rows.heap_values(slots, leaf.path)):
            expected = None if null[k] else corpus.heap_bytes(leaf, numbers[k])
            require(raw == expected, f"uid {uids[k]}: {what}{leaf.path} is {raw!r}, not {expected!r}")
        return
    wanted = corpus.fixed_values(leaf, numbers)
    for k, uid in enumerate(uids) if overlay else ():
        if uid in overlay:
            wanted[k] = overlay[uid]
    held = rows.rows.gather(slots, (leaf.path,))[leaf.path]
    equal = (_raw(held) == _raw(wanted)).all(axis=1) | null
    if not equal.all():
        k = int(np.flatnonzero(~equal)[0])
        raise Wrong(f"uid {uids[k]}: {what}{leaf.path} is {held[k].tolist()!r}, not {wanted[k].tolist()!r}")


def warm_up() -> None:
    """Compiles what reading needs, so that forked children find it done."""
    ops: list[Op] = [Open(0, "process"), Append(0, 0), Append(0, 0, "", "same"), Close(0)]
    with (
        tempfile.TemporaryDirectory() as folder,
        create_workspace(Path(folder) / "w", corpus.SCHEMAS["plain"](), durability="process") as workspace,
    ):
        actor = Actor(workspace)
        entries = [(k, *actor.do(op)) for k, op in enumerate(ops)]
        check_workspace(workspace, expect(ops, entries, durability="process", power=False))


def _raw(values: NDArray[Any]) -> NDArray[np.uint8]:
    return np.ascontiguousarray(values).reshape(len(values), -1).view(np.uint8)


def _check_following(rows: _Reader, moments: list[Moment], slots: Slots, must: set[int]) -> frozenset[int]:
    """Next observations: the one given, else the following step's, else none. Returns the uids that lost theirs."""
    if not moments or not rows.view.schema.observations:
        return frozenset()
    place = {(m.episode, m.step): m.look for m in moments}
    held = rows.view.episodes.next_observation(slots)
    wanted = np.full(len(moments), -1, np.int64)
    for k, m in enumerate(moments):
        wanted[k] = m.following if m.following >= 0 else place.get((m.episode, m.step + 1), -1)
    alone = set()
    for k in np.flatnonzero((held < 0) & (wanted >= 0)).tolist():
        m = moments[k]
        alone.add(m.uid)
        lost = m.following >= 0 and m.uid not in must and (m.episode, m.step + 1) not in place
        require(lost, f"uid {m.uid}: its next observation is gone")
    for k in np.flatnonzero((held >= 0) & (wanted < 0)).tolist():
        raise Wrong(f"uid {moments[k].uid}: has a next observation that was never given")
    at = np.flatnonzero(held >= 0)
    uids = [moments[k].uid for k in at.tolist()]
    for leaf in rows.view.schema.observations:
        _same(rows, leaf, held[at], wanted[at].tolist(), np.zeros(len(at), np.bool_), uids, {}, "next ")
    ends = np.array([m.terminated for m in moments])
    drawable = rows.view.anchors.mask(slots)
    require(np.array_equal(drawable, ends | (held >= 0)), "a step can be drawn that may not be, or the other way")
    return frozenset(alone)


def _check_marks(view: View, expect: Expectation) -> dict[int, int]:
    """Episode facts: a prefix of those written."""
    found: dict[int, list[tuple[int, int]]] = {}
    for history in view.facts.history.values():
        for fact in history:
            if "mark" in fact.values:
                found.setdefault(fact.writer, []).append((fact.seq, fact.values["mark"]))
    out = {}
    for writer, number in expect.writers.items():
        held = [mark for _, mark in sorted(found.pop(writer, []))]
        marks, bounds = expect.ledger.logs[number].marks, expect.bounds[number]
        require(held == marks[: len(held)], f"writer {number}: facts {held} are not a prefix of {marks}")
        require(len(held) >= bounds.marks, f"writer {number}: {bounds.marks} facts must be there, {len(held)} are")
        require(len(held) <= bounds.most_marks, f"writer {number}: {len(held)} facts, at most {bounds.most_marks}")
        out[number] = len(held)
    require(not found, f"facts of unknown writers {sorted(found)}")
    return out


def _check_rewards(view: View, expect: Expectation) -> int:
    """Late rewards: a prefix of those written, in their order."""
    held: list[tuple[tuple[int, int, int], float]] = []
    for history in view.facts.history.values():
        held += [(fact.order, float(fact.values["reward"])) for fact in history if fact.step is not None]
    values = [reward for _, reward in sorted(held)]
    wanted = [reward for _, reward in expect.ledger.rewards]
    require(values == wanted[: len(values)], f"late rewards {values} are not a prefix of {wanted}")
    require(len(values) >= expect.rewards, f"{expect.rewards} late rewards must be there, {len(values)} are")
    require(len(values) <= expect.most_rewards, f"{len(values)} late rewards, at most {expect.most_rewards}")
    return len(values)


def _check_recall(workspace: Workspace, rows: _Reader, expect: Expectation, found: Found) -> None:
    """`recent` and `episode` agree with the ledger."""
    logs = expect.ledger.logs
    moments = {m.uid: m for n, count in found.steps.items() for m in logs[n].moments[:count]}
    newest = workspace.recent(3)
    require(len(newest) == min(3, len(moments)), f"recent(3) returned {len(newest)} of {len(moments)} steps")
    for step in newest:
        moment = moments.get(int(step["uid"]))
        require(moment is not None and step.step == moment.step, f"recent() returned {step.id}, step {step.step}")
    if not moments:
        return
    uids = sorted(moments)
    chosen = moments[uids[len(uids) // 2]]
    slot = int(np.flatnonzero(rows.is_step & (rows.uid == chosen.uid))[0])
    record = workspace.episode(StepId(*rows.ids[slot].tolist()))
    wanted = sorted((m for m in moments.values() if m.episode == chosen.episode), key=lambda m: m.step)
    require(record["uid"].tolist() == [m.uid for m in wanted], f"episode of uid {chosen.uid}: {record['uid'].tolist()}")
    overlay = _overlay(expect, found.rewards)
    for m, reward in zip(wanted, record["reward"].tolist(), strict=True):
        require(m.uid not in overlay or overlay[m.uid] == np.float32(reward), f"uid {m.uid}: reward {reward}")
