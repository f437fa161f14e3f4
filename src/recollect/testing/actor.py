"""Carrying operations out on a workspace, noting each one after it returned, and making up random ones."""

from __future__ import annotations

import copy
import os
import random
import struct
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import numpy as np

from recollect.errors import EpisodeError
from recollect.hot.keep import Keep, Unpromoted
from recollect.hot.write.growing import Durability
from recollect.hot.write.lanes import Lanes as OpenLanes
from recollect.hot.write.writer import Episode, Writer
from recollect.schema import Schema
from recollect.testing import corpus
from recollect.testing.corpus import Moment
from recollect.testing.ledger import (
    UIDS_PER_WRITER,
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
from recollect.view import StepId
from recollect.workspace import Workspace

LANES = 4
ALL_OLD_S = 1e-6
_ENTRY = struct.Struct("<iqq")


class Journal:
    """Acknowledgements that outlive a killed child: one entry per operation, written after it returned.

    The file has no name and lies in memory; parent and child hold the same descriptor.
    """

    def __init__(self) -> None:
        self._fd = os.memfd_create("journal")

    def note(self, index: int, first: int = -1, second: int = -1) -> None:
        os.write(self._fd, _ENTRY.pack(index, first, second))

    def read(self) -> list[tuple[int, int, int]]:
        """The whole entries so far: (number of the operation, two numbers that it returned)."""
        raw = os.pread(self._fd, os.fstat(self._fd).st_size, 0)
        return [
            cast(tuple[int, int, int], _ENTRY.unpack_from(raw, at))
            for at in range(0, len(raw) - _ENTRY.size + 1, _ENTRY.size)
        ]

    def close(self) -> None:
        os.close(self._fd)


class Actor:
    """Carries operations out.

    Args:
        workspace: an open one, with one of the schemas of `corpus`.
        ledger: a model of its own, for the values; it must have followed whatever was done before.
        ids: uid → StepId of earlier steps that may get late rewards.
    """

    def __init__(
        self, workspace: Workspace, ledger: Ledger | None = None, ids: Mapping[int, StepId] | None = None
    ) -> None:
        self.workspace, self.ledger = workspace, ledger or Ledger(workspace.durability)
        self.writers: dict[int, Writer] = {}
        self._episodes: dict[tuple[int, int], Episode] = {}
        self._lanes: dict[int, OpenLanes] = {}
        self._ids: dict[int, StepId] = dict(ids or {})

    def run(self, ops: Iterable[Op], note: Callable[[int, int, int], None], first: int = 0) -> None:
        """All operations in order, each noted after it returned."""
        for k, op in enumerate(ops):
            note(first + k, *self.do(op))

    def do(self, op: Op) -> tuple[int, int]:
        """One operation; returns the numbers of the id that it returned, if it did."""
        moments = self.ledger.apply(op)
        match op:
            case Open():
                writer = self.workspace.writer(durability=cast(Durability, op.durability))
                self.writers[op.writer] = writer
                return writer.id, -1
            case Append():
                return self._append(op, moments[0])
            case Extend():
                self._extend(op, moments)
            case Lanes():
                self._play(op, moments)
            case Finish():
                self._episodes[op.writer, op.episode].finish(mark=self.ledger.logs[op.writer].marks[-1])
            case Leave():
                self._episodes.pop((op.writer, op.episode)).close()
            case Resume():
                resumed = self.writers[op.writer].resume_episode(self._ids[op.uid])
                self._episodes[op.writer, op.episode] = resumed
            case Annotate():
                uid, reward = self.ledger.rewards[-1]
                return self.workspace.annotate(self._ids[uid], reward=np.float32(reward))
            case Sync():
                self.writers[op.writer].sync()
            case Close():
                self.writers[op.writer].close()
            case Limit():
                unpromoted: Unpromoted = "drop" if op.drop else "refuse"
                age = None if op.rows else ALL_OLD_S
                self.workspace.set_keep(Keep(rows=op.rows or None, age=age, unpromoted=unpromoted))
            case Evict():
                self.workspace.evict()
            case Evolve():
                schema = self.workspace.schema
                assert schema is not None
                self.workspace.evolve(corpus.evolved(schema))
        return -1, -1

    def is_refused(self, op: Resume) -> bool:
        """Whether a resumption that may not be is refused."""
        try:
            self.writers[op.writer].resume_episode(self._ids[op.uid])
        except EpisodeError:
            return True
        return False

    def _append(self, op: Append, moment: Moment) -> StepId:
        if moment.step == 0:
            self._episodes[op.writer, op.episode] = self.writers[op.writer].episode()
        schema = self._schema(op.writer)
        id = self._episodes[op.writer, op.episode].append(
            **corpus.step_fields(schema, moment),
            next_observation=corpus.observation(schema, moment.following),
            terminated=moment.terminated,
            truncated=moment.truncated,
        )
        self._ids[moment.uid] = id
        return id

    def _schema(self, writer: int) -> Schema:
        return self.writers[writer].layout.schema

    def _columns(self, schema: Schema, moments: list[Moment]) -> dict[str, Any]:
        return corpus.nested(
            {
                leaf.path: corpus.column(
                    leaf,
                    [corpus.number_of(leaf, m) for m in moments],
                    [corpus.is_null(leaf, m) for m in moments],
                )
                for leaf in schema.leaves
            }
        )

    def _following(self, schema: Schema, moments: list[Moment]) -> Any:
        if moments[0].following < 0 or not schema.observations:
            return None
        looks = [m.following for m in moments]
        return corpus.nested({leaf.path: corpus.column(leaf, looks) for leaf in schema.observations})["observation"]

    def _extend(self, op: Extend, moments: list[Moment]) -> None:
        schema = self._schema(op.writer)
        block: dict[str, Any] = self._columns(schema, moments)
        block["episode"] = np.repeat([key for key, _, _ in op.parts], [count for _, count, _ in op.parts])
        block["step"] = np.array([m.step for m in moments])
        block["terminated"] = np.array([m.terminated for m in moments])
        block["truncated"] = np.array([m.truncated for m in moments])
        block["next_observation"] = self._following(schema, moments)
        block["valid"] = {
            leaf.path: np.array([not corpus.is_null(leaf, m) for m in moments])
            for leaf in schema.leaves
            if leaf.field.optional
        }
        written = self.writers[op.writer].extend(block)
        assert written == len(moments), f"extend took {len(moments)} steps and returned {written}"

    def _play(self, op: Lanes, moments: list[Moment]) -> None:
        if op.writer not in self._lanes:
            self._lanes[op.writer] = self.writers[op.writer].lanes(op.lanes)
        mine = {lane: moment for (lane, _), moment in zip(op.active, moments, strict=True)}
        filled = [mine.get(lane, moments[0]) for lane in range(op.lanes)]
        schema = self._schema(op.writer)
        self._lanes[op.writer].append(
            **self._columns(schema, filled),
            next_observation=self._following(schema, filled),
            active=np.isin(np.arange(op.lanes), list(mine)),
            terminated=np.array([m.terminated for m in filled]),
            truncated=np.array([m.truncated for m in filled]),
        )


def random_ops(
    chance: random.Random,
    count: int,
    *,
    writers: int = 1,
    first_writer: int = 0,
    durabilities: tuple[str, ...] = ("process", "interval", "step"),
    durability: str = "interval",
    lanes: int = LANES,
    annotate: bool = True,
    after: Ledger | None = None,
    known: Iterable[int] = (),
    close: bool = True,
) -> list[Op]:
    """A workload of about `count` operations, closed at its end unless `close` says otherwise.

    Args:
        writers: how many take turns; a closed one may be followed by another.
        first_writer: the model's number of the first.
        durabilities: of the writers; `durability` the workspace's own.
        lanes: lanes of each writer that plays some.
        annotate: whether steps get late rewards.
        after: the model of what was done before, by writers that are dead; `known` the uids of those steps of it whose
            ids the actor is given. Their episodes may go on.
        close: whether writers are closed.
    """
    ledger, ops = Ledger(durability) if after is None else copy.deepcopy(after), list[Op]()
    named = {ledger.moment(uid).episode: uid for uid in known}
    number, active = first_writer, list[int]()
    appended: dict[int, list[int]] = {}

    def do(op: Op) -> None:
        if isinstance(op, Append):
            appended[op.writer].append(len(ledger.logs[op.writer].moments))
        moments = ledger.apply(op)
        if isinstance(op, Append):
            named[moments[0].episode] = moments[0].uid
        ops.append(op)

    ends: tuple[End, ...] = ("", "", "", "", "terminated", "truncated")
    nexts: tuple[Next, ...] = ("none", "same", "same", "other")
    while len(ops) < count:
        if len(active) < writers:
            appended[number] = []
            do(Open(number, chance.choice(durabilities)))
            active.append(number)
            number += 1
            continue
        w, dice = chance.choice(active), chance.random()
        if dice < 0.55:
            do(Append(w, chance.randrange(3), chance.choice(ends), chance.choice(nexts)))
        elif dice < 0.65:
            keys = chance.sample(range(3), chance.randint(1, 3))
            big = 40 if chance.random() < 0.2 else 4
            parts = tuple((key, chance.randint(1, big), chance.choice(ends)) for key in keys)
            do(Extend(w, parts, chance.choice(nexts)))
        elif dice < 0.77:
            played = sorted(chance.sample(range(lanes), chance.randint(1, lanes)))
            do(Lanes(w, lanes, tuple((lane, chance.choice(ends)) for lane in played), chance.choice(nexts)))
        elif dice < 0.82:
            do(Sync(w))
        elif dice < 0.88:
            left = sorted(e for e in named if ledger.can_resume(e))
            free = [e for e in range(3) if not ledger.is_open(w, "a", e)]
            unsealed = [e for e in left if not ledger.logs[named[e] // UIDS_PER_WRITER].closed]
            if left and free:
                e = chance.choice(free)
                do(Resume(w, e, named[chance.choice(unsealed if unsealed and chance.random() < 0.8 else left)]))
                if chance.random() < 0.8:
                    do(Append(w, e, chance.choice(ends), chance.choice(nexts)))
        elif dice < 0.92:
            open_ones = [e for e in range(3) if ledger.is_open(w, "a", e)]
            if open_ones:
                do(chance.choice((Finish, Leave, Leave))(w, chance.choice(open_ones)))
        elif dice < 0.96:
            if annotate and appended[w]:
                do(Annotate(w, chance.choice(appended[w])))
        elif dice < 0.98 and len(ops) > count // 3 and close:
            do(Close(w))
            active.remove(w)
    for w in active if close else ():
        do(Close(w))
    return ops
