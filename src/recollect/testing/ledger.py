"""What a workload did, and what must therefore be found: operations, and a model of every writer's log.

Operations are data. An `Actor` carries them out on a workspace while a `Ledger` follows them in plain Python; both see
the same numbers, so whoever holds the list of operations knows every value that was written.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, NamedTuple, TypeAlias

from recollect.testing.corpus import Moment

End: TypeAlias = Literal["", "terminated", "truncated"]
Next: TypeAlias = Literal["none", "same", "other"]
"""Whether a step comes with its next observation, and whether that is the one the following step will have."""

UIDS_PER_WRITER = 1_000_000
LOOKS_PER_EPISODE = 1_000


class Open(NamedTuple):
    """A new writer; `writer` is the model's number of it."""

    writer: int
    durability: str


class Append(NamedTuple):
    """One step of an episode, which is opened by its first step."""

    writer: int
    episode: int
    end: End = ""
    next: Next = "none"


class Extend(NamedTuple):
    """A block: `(episode, steps, end)` each; the keys are open across blocks, and never those of `Append`."""

    writer: int
    parts: tuple[tuple[int, int, End], ...]
    next: Next = "none"


class Lanes(NamedTuple):
    """One step on each lane that is named, `(lane, end)`, of `lanes` in all."""

    writer: int
    lanes: int
    active: tuple[tuple[int, End], ...]
    next: Next = "none"


class Finish(NamedTuple):
    """An episode fact `mark`, on an episode that `Append` opened."""

    writer: int
    episode: int


class Leave(NamedTuple):
    """Closes an episode that `Append` opened, without an end."""

    writer: int
    episode: int


class Resume(NamedTuple):
    """Goes on, as the writer's `episode`, with the episode of step `uid`: it has no end, and nobody has it open."""

    writer: int
    episode: int
    uid: int


class Annotate(NamedTuple):
    """A late reward for a step: the `nth` of a writer."""

    writer: int
    nth: int


class Sync(NamedTuple):
    writer: int


class Close(NamedTuple):
    writer: int


class Limit(NamedTuple):
    """Another limit of what is kept: the newest `rows`, or, where that is 0, nothing but what is being written. With
    `drop`, what was not promoted goes too."""

    rows: int
    drop: bool


class Evict(NamedTuple):
    """What may go, goes."""


class Evolve(NamedTuple):
    """The next version of the schema. Writers that are open keep theirs."""


Op: TypeAlias = (
    Open | Append | Extend | Lanes | Finish | Leave | Resume | Annotate | Sync | Close | Limit | Evict | Evolve
)


@dataclass
class LogModel:
    """What one writer's log holds.

    Attributes:
        version: of the schema that the writer began with.
        moments: its steps, in order; `marks` its episode facts.
        bounds: numbers of steps at which an operation ended: a block is there whole or not at all.
        durable_moments, durable_marks: how many a completed sync covered.
        durable_following: of how many steps it covered the next observation that was given. Who goes on with an episode
            flushes the files of other writers, but these write over the slots of what only they know to be unsynced.
    """

    durability: str
    version: int = 1
    moments: list[Moment] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    marked: dict[int, int] = field(default_factory=dict)
    """Episode fact → its episode."""
    bounds: set[int] = field(default_factory=lambda: {0})
    durable_moments: int = 0
    durable_following: int = 0
    durable_marks: int = 0
    closed: bool = False
    lanes: dict[int, int] = field(default_factory=dict)
    """Lane → the model's episode that is open on it."""


@dataclass
class Ledger:
    """The model of a workspace. `apply` follows one operation and says which steps it writes.

    Attributes:
        logs: model number of a writer → its log.
        rewards: late rewards in the order they were written, `(uid, value)`.
        durable_rewards: how many of them a completed sync covered.
    """

    durability: str = "interval"
    logs: dict[int, LogModel] = field(default_factory=dict)
    rewards: list[tuple[int, float]] = field(default_factory=list)
    durable_rewards: int = 0
    steps: dict[int, int] = field(default_factory=dict)
    """Episode → steps so far; episodes are numbered over the whole workspace."""
    finished: set[int] = field(default_factory=set)
    """Episodes that ended with a flag: they never go on."""
    resumed: set[int] = field(default_factory=set)
    """Episodes that were ever gone on with."""
    held: dict[int, int] = field(default_factory=dict)
    """Open episode → the writer that has it open."""
    numbers: dict[tuple[int, str, int], int] = field(default_factory=dict)
    version: int = 1
    """Newest version of the schema."""
    first_episode: int = 0
    """The number of the first episode, for ledgers that are laid side by side."""
    _opened: int = 0
    facts: int = 0
    """How many facts were written: their values are numbered."""

    def apply(self, op: Op) -> list[Moment]:
        """Follows an operation that was carried out whole."""
        match op:
            case Open():
                self.logs[op.writer] = LogModel(op.durability, self.version)
                return []
            case Evolve():
                self.version += 1
                return []
            case Limit() | Evict():
                return []
            case Annotate():
                self.facts += 1
                self.rewards.append((self.logs[op.writer].moments[op.nth].uid, float(self.facts)))
                if self.durability == "step":
                    self.durable_rewards = len(self.rewards)
                return []
        log = self.logs[op.writer]
        before = len(log.moments)
        match op:
            case Append():
                self._step(op.writer, self.episode(op.writer, "a", op.episode), op.end, op.next, False)
            case Extend():
                for key, count, end in op.parts:
                    at = self.episode(op.writer, "x", key)
                    for k in range(count):
                        self._step(op.writer, at, end if k == count - 1 else "", op.next, False)
            case Lanes():
                for lane, end in op.active:
                    at = log.lanes.get(lane, -1)
                    if self.held.get(at) != op.writer:
                        at = log.lanes[lane] = self._new(op.writer)
                    self._step(op.writer, at, end, op.next, True)
            case Finish():
                self.facts += 1
                log.marks.append(self.facts)
                log.marked[self.facts] = self.episode(op.writer, "a", op.episode)
            case Leave():
                del self.held[self.episode(op.writer, "a", op.episode)]
            case Resume():
                self._resume(op)
            case Close():
                log.closed = True
                self.held = {e: w for e, w in self.held.items() if w != op.writer}
        log.bounds.add(len(log.moments))
        if log.durability == "step" or isinstance(op, Sync | Close):
            log.durable_moments = log.durable_following = len(log.moments)
            log.durable_marks = len(log.marks)
        return log.moments[before:]

    def episode(self, writer: int, way: str, key: int) -> int:
        """The model's episode under a caller's key, a new one after its end."""
        if not self.is_open(writer, way, key):
            self.numbers[writer, way, key] = self._new(writer)
        return self.numbers[writer, way, key]

    def is_open(self, writer: int, way: str, key: int) -> bool:
        return self.held.get(self.numbers.get((writer, way, key), -1)) == writer

    def moment(self, uid: int) -> Moment:
        """A step by its number."""
        return self.logs[uid // UIDS_PER_WRITER].moments[uid % UIDS_PER_WRITER]

    def log_of(self, moment: Moment) -> LogModel:
        return self.logs[moment.uid // UIDS_PER_WRITER]

    def can_resume(self, episode: int) -> bool:
        return self.steps[episode] > 0 and episode not in self.finished and episode not in self.held

    def version_of(self, episode: int) -> int:
        """The newest version of the schema that a step of the episode was written in."""
        return max(
            (log.version for log in self.logs.values() if any(m.episode == episode for m in log.moments)), default=1
        )

    def all_died(self) -> None:
        """What is left when every writer is dead: episodes as far as their steps are there, none of them open."""
        self.held.clear()
        self.numbers.clear()
        self.finished.clear()
        self.steps = dict.fromkeys(self.steps, 0)
        for log in self.logs.values():
            log.closed = True
            log.lanes.clear()
            for m in log.moments:
                self.steps[m.episode] = max(self.steps.get(m.episode, 0), m.step + 1)
                if m.terminated or m.truncated:
                    self.finished.add(m.episode)

    def _resume(self, op: Resume) -> None:
        """A resumption puts every step that the episode has on stable storage first."""
        episode = self.moment(op.uid).episode
        assert self.can_resume(episode), f"{op}: the episode has ended, or is open"
        self.held[episode] = op.writer
        self.resumed.add(episode)
        self.numbers = {key: e for key, e in self.numbers.items() if e != episode}
        self.numbers[op.writer, "a", op.episode] = episode
        for log in self.logs.values():
            log.lanes = {lane: e for lane, e in log.lanes.items() if e != episode}
            if any(m.episode == episode for m in log.moments):
                log.durable_moments = len(log.moments)

    def _new(self, writer: int) -> int:
        number = self.first_episode + self._opened
        self._opened += 1
        self.steps[number] = 0
        self.held[number] = writer
        return number

    def _step(self, writer: int, episode: int, end: End, following: Next, whole: bool) -> None:
        moments, step = self.logs[writer].moments, self.steps[episode]
        look = episode * LOOKS_PER_EPISODE + step
        after = {"none": -1, "same": look + 1, "other": look + LOOKS_PER_EPISODE // 2}[following]
        uid = writer * UIDS_PER_WRITER + len(moments)
        moments.append(Moment(uid, episode, step, look, after, end == "terminated", end == "truncated", whole))
        self.steps[episode] += 1
        if end:
            self.finished.add(episode)
            del self.held[episode]
