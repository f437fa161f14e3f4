"""Whether a workspace holds what a ledger says: every acknowledged step once, equal in value, in order."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from itertools import starmap
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recollect.opening import create_workspace
from recollect.records.grown import GrownRows
from recollect.records.heads import deepest_stack
from recollect.records.layout import FINAL
from recollect.records.rows import PackedRows
from recollect.schema import Leaf, Tensor, Text
from recollect.schema.fields import is_heap
from recollect.testing import corpus
from recollect.testing.actor import Actor
from recollect.testing.corpus import Moment
from recollect.testing.expected import Expectation, Found, Wrong, expect, require
from recollect.testing.late import check_marks, check_rewards
from recollect.testing.ledger import UIDS_PER_WRITER, Append, Close, Op, Open
from recollect.view import Slots, StepId, View
from recollect.workspace import Workspace


def check_workspace(workspace: Workspace, expect: Expectation) -> Found:
    """Reads everything through a view, facts, `recent` and `episode`. Nobody may be writing.

    Raises:
        Wrong: something is missing, doubled, torn, out of order or not what was written.
    """
    view = workspace.view()
    found = check_view(view, expect)
    _check_recall(workspace, Reader(view), expect, found)
    return found


def check_view(view: View, expect: Expectation) -> Found:
    """Reads every row and fact of a view, of a workspace that may be growing.

    A view that grew may hold steps that are evicted since, and lack those that were evicted before it looked; which
    ones, a plain view has to tell first (`Expectation.gone`).

    Raises:
        Wrong: as `check_workspace`.
    """
    rows = Reader(view)
    known = set(expect.writers) | expect.annotators
    strange = {e.writer for e in view.cut.extents} | {w for w, _ in view.cut.facts}
    strange -= known
    require(len(strange) <= expect.nameless, f"logs of unknown writers {sorted(strange)}")
    require(len(rows.ids) == len({tuple(i) for i in rows.ids.tolist()}), "an id is there twice")

    keys: dict[int, tuple[int, ...]] = {}
    for writer in strange:
        require(not (rows.ids["writer"] == writer).any(), f"rows of unknown writer {writer}")
    logs = {n: _check_order(rows, writer, expect, n, keys) for writer, n in expect.writers.items()}
    require(len(set(keys.values())) == len(keys), "two episodes have one key")
    gone = dict(expect.gone)
    if not rows.grew:
        gone = {n: len(log.missing) for n, log in logs.items()}
        more = any(count > expect.gone_of(n) for n, count in gone.items())
        require(not more or len(rows.ids) >= expect.least_rows, f"{len(rows.ids)} rows left, not {expect.least_rows}")
    moments = [m for log in logs.values() for m in log.moments]
    missing = [m for log in logs.values() for m in log.missing]
    left = [m for m in moments if m.uid % UIDS_PER_WRITER >= gone.get(m.uid // UIDS_PER_WRITER, 0)]
    rewards = check_rewards(view, expect, {m.uid for m in moments} - {m.uid for m in left}, {m.uid for m in missing})
    # One that went on, and at some time had no row left, may have lost the facts written by then (design/0010, limits).
    unsure = expect.ledger.resumed & {
        m.episode for n, count in gone.items() for m in expect.ledger.logs[n].moments[:count]
    }
    marks = check_marks(view, expect, {m.episode for m in left} - unsure)
    _check_whole(moments + missing)
    slots = np.concatenate([*(log.slots for log in logs.values()), np.empty(0, np.int64)])
    _check_values(rows, moments, slots, _overlay(expect, rewards), {m.uid for m in left}, expect)
    must = {m.uid for n in logs for m in expect.ledger.logs[n].moments[: expect.bounds[n].following]}
    alone = _check_following(rows, moments, slots, must, {(m.episode, m.step) for m in missing})
    ids = dict(zip((m.uid for m in moments), starmap(StepId, rows.ids[slots].tolist()), strict=True))
    steps = {n: log.total for n, log in logs.items()}
    return Found(steps, marks, rewards, ids, alone, gone, {m.uid: m for m in moments})


def _overlay(expect: Expectation, rewards: int) -> dict[int, np.float32]:
    """Uid → its newest late reward."""
    return {uid: np.float32(reward) for uid, reward in expect.ledger.rewards[:rewards]}


class Reader:
    """A view's columns, read once."""

    def __init__(self, view: View) -> None:
        assert isinstance(view.rows, PackedRows)
        self.view, self.rows = view, view.rows
        self.grew = isinstance(view.rows, GrownRows)
        every = np.arange(len(view.rows))
        got = view.rows.gather(every, ("writer", "seq", "flags", "uid", "step", "episode_writer", "episode"))
        self.ids = view.rows.ids(every)
        self.flags, self.uid, self.step = got["flags"], got["uid"], got["step"]
        self.episode = np.stack([got["episode_writer"], got["episode"]], 1)
        self.is_step = (self.flags & FINAL) == 0


class _Log(NamedTuple):
    """What a view holds of one writer's log.

    Attributes:
        slots: its steps, which are `moments`; `missing` those that were evicted, `total` both.
    """

    slots: Slots
    moments: list[Moment]
    missing: list[Moment]
    total: int


def _check_order(rows: Reader, writer: int, expect: Expectation, number: int, keys: dict[int, tuple[int, ...]]) -> _Log:
    """One writer's steps: a prefix of what it wrote, whole operations of it, under the ids that it returned; without
    what may have been evicted from its front."""
    log, bounds = expect.ledger.logs[number], expect.bounds[number]
    name = f"writer {number} ({writer:016x})"
    mine = np.flatnonzero((rows.ids["writer"] == writer) & rows.is_step)
    seqs = rows.ids["seq"][mine]
    require((np.diff(seqs) > 0).all(), f"{name}: rows out of order")
    at = (rows.uid[mine] - number * UIDS_PER_WRITER).tolist()
    require((np.diff(at) > 0).all() and (not at or at[0] >= 0), f"{name}: steps {at} are out of order")
    count = _count(rows, expect, number, at)
    require(count >= bounds.steps, f"{name}: {bounds.steps} steps must be there, {count} are")
    require(count <= bounds.most_steps, f"{name}: {count} steps, at most {bounds.most_steps} were written")
    require(
        count in log.bounds, f"{name}: {count} steps, which is half of an operation; whole are {sorted(log.bounds)}"
    )
    moments, missing = [log.moments[k] for k in at], [log.moments[k] for k in sorted(set(range(count)) - set(at))]
    gone = expect.gone_of(number)
    if rows.grew:
        require(all(map(expect.is_gone, missing)), f"{name}: steps {at} of {count}, {gone} are evicted")
    else:
        front = at == list(range(len(missing), count))
        require(front and len(missing) >= gone, f"{name}: steps {at} of {count} must be there, less {gone} evicted")
        kept = [m.uid for m in missing[gone:] if not expect.drops and m.uid not in expect.promoted]
        require(not kept, f"{name}: uids {kept} must be there: they were never promoted")
    for k, moment in enumerate(moments):
        id = expect.ids.get(moment.uid)
        require(id is None or id == (writer, int(seqs[k])), f"{name}: uid {moment.uid} was {id}, is {seqs[k]}")
    steps = [m.step for m in moments]
    held = rows.step[mine].tolist()
    require(held == steps, f"{name}: step indices are {held}, not {steps}, those written")
    _check_episodes(rows, moments, mine, name, keys)
    return _Log(mine, moments, missing, count)


def _count(rows: Reader, expect: Expectation, number: int, at: list[int]) -> int:
    """How many steps a log has had, of which those numbered `at` are there. Of a log that holds none, as many as it
    must have had may be evicted; where that may not be, none were."""
    gone, least = expect.gone_of(number), expect.bounds[number].steps
    if rows.grew:
        return max(at[-1] + 1 if at else 0, gone)
    if at:
        return int(at[-1]) + 1
    uids = range(number * UIDS_PER_WRITER + gone, number * UIDS_PER_WRITER + least)
    return max(gone, least) if expect.drops or expect.promoted.issuperset(uids) else gone


def _check_episodes(
    rows: Reader, moments: list[Moment], slots: Slots, name: str, keys: dict[int, tuple[int, ...]]
) -> None:
    """An episode has one key in all logs; `keys` those seen so far."""
    for slot, moment in zip(slots.tolist(), moments, strict=True):
        key = tuple(rows.episode[slot].tolist())
        require(keys.setdefault(moment.episode, key) == key, f"{name}: uid {moment.uid} is in another episode")


def _check_whole(moments: list[Moment]) -> None:
    """Steps of an episode that another writer went on with are there only with those before them."""
    held: dict[int, set[int]] = {}
    for m in moments:
        held.setdefault(m.episode, set()).add(m.step)
    for episode, steps in held.items():
        require(len(steps) == max(steps) + 1, f"episode {episode}: steps {sorted(steps)} without those before them")


def _check_values(
    rows: Reader,
    moments: list[Moment],
    slots: Slots,
    overlay: Mapping[int, np.float32],
    left: set[int],
    expect: Expectation,
) -> None:
    """Flags and values. Late rewards of steps that are evicted, not `left`, may have come too late for a view."""
    if not moments:
        return
    ends = rows.rows.gather(slots, ("terminated", "truncated"))
    require(ends["terminated"].tolist() == [m.terminated for m in moments], "terminated flags differ")
    require(ends["truncated"].tolist() == [m.truncated for m in moments], "truncated flags differ")
    versions = [expect.ledger.log_of(m).version for m in moments]
    for leaf in rows.view.schema.leaves:
        check_leaf(rows, leaf, moments, slots, versions, overlay, left)


def check_leaf(
    rows: Reader,
    leaf: Leaf,
    moments: list[Moment],
    slots: Slots,
    versions: list[int],
    overlay: Mapping[int, np.float32],
    left: set[int],
) -> None:
    """One field of steps that were written under these versions of the schema."""
    if leaf.path == "reward" and overlay:
        sure = [k for k, m in enumerate(moments) if m.uid in left or m.uid not in overlay]
        moments, slots, versions = [moments[k] for k in sure], slots[sure], [versions[k] for k in sure]
    older = np.array([corpus.is_older(leaf, v) for v in versions], np.bool_)
    null = np.array([corpus.is_null(leaf, m) for m in moments], np.bool_)
    null[older] = leaf.field.optional
    if leaf.path == "reward":
        null &= np.array([m.uid not in overlay for m in moments], np.bool_)
    valid = rows.rows.valid(slots, leaf.path)
    if not np.array_equal(valid, ~null):
        at = int(np.flatnonzero(valid == null)[0])
        raise Wrong(f"uid {moments[at].uid}: {leaf.path} is {'there' if valid[at] else 'null'}")
    numbers, uids = [corpus.number_of(leaf, m) for m in moments], [m.uid for m in moments]
    _same(rows, leaf, slots, numbers, null, uids, overlay if leaf.path == "reward" else {}, older=older)


def _same(
    rows: Reader,
    leaf: Leaf,
    slots: Slots,
    numbers: list[int],
    null: NDArray[np.bool_],
    uids: list[int],
    overlay: Mapping[int, np.float32],
    what: str = "",
    older: NDArray[np.bool_] | None = None,
) -> None:
    """Fails unless the slots hold, bit for bit, the values that follow from the numbers; the default where a row is
    older than its field."""
    if not len(slots):
        return
    if is_heap(leaf.field):
        for k, raw in enumerate(rows.rows.heap_values(slots, leaf.path)):
            expected = None if null[k] else corpus.heap_bytes(leaf, numbers[k])
            if older is not None and older[k] and isinstance(leaf.field, Text) and leaf.field.default is not None:
                expected = leaf.field.default.encode()
            require(raw == expected, f"uid {uids[k]}: {what}{leaf.path} is {raw!r}, not {expected!r}")
        return
    wanted = corpus.fixed_values(leaf, numbers)
    if older is not None and isinstance(leaf.field, Tensor) and leaf.field.default is not None:
        wanted[older] = leaf.field.default
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


def _check_following(
    rows: Reader, moments: list[Moment], slots: Slots, must: set[int], evicted: set[tuple[int, int]]
) -> frozenset[int]:
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
        lost |= (m.episode, m.step + 1) in evicted
        require(lost, f"uid {m.uid}: its next observation is gone")
    for k in np.flatnonzero((held >= 0) & (wanted < 0)).tolist():
        raise Wrong(f"uid {moments[k].uid}: has a next observation that was never given")
    at = np.flatnonzero(held >= 0)
    uids = [moments[k].uid for k in at.tolist()]
    for leaf in rows.view.schema.observations:
        _same(rows, leaf, held[at], wanted[at].tolist(), np.zeros(len(at), np.bool_), uids, {}, "next ")
    ends = np.array([m.terminated for m in moments])
    drawable = rows.view.anchors.mask(slots)
    reach = deepest_stack(rows.view.schema)
    whole = np.array([all((m.episode, m.step - k) in place for k in range(1, min(reach, m.step + 1))) for m in moments])
    wanted_ones = (ends | (held >= 0)) & whole
    if not np.array_equal(drawable, wanted_ones):
        m = moments[int(np.flatnonzero(drawable != wanted_ones)[0])]
        raise Wrong(f"uid {m.uid}, step {m.step} of episode {m.episode}, can be drawn and may not be, or the other way")
    return frozenset(alone)


def _check_recall(workspace: Workspace, rows: Reader, expect: Expectation, found: Found) -> None:
    """`recent` and `episode` agree with the ledger."""
    moments = found.moments
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
