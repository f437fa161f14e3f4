"""`Writer`: one appending thread, and `Episode`: what it is appending to."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import MethodType, TracebackType
from typing import Any

import numpy as np

from recollect.errors import ArgumentError, EpisodeError, StoreError, WriterError
from recollect.hot.format.background import Background
from recollect.hot.format.fields import FieldWriters, OpenEpisode
from recollect.hot.format.files import locked
from recollect.hot.format.segment import CLOSED, RESUMPTION
from recollect.hot.write.append import StepAppender
from recollect.hot.write.extend import BlockAppender
from recollect.hot.write.facts import check_facts, check_id
from recollect.hot.write.growing import Durability, GrowingLog
from recollect.hot.write.lanes import Lanes
from recollect.hot.write.resume import INTERRUPTED, ResumePoint
from recollect.masking import Masker, keep
from recollect.records.layout import Layout
from recollect.view import EpisodeKey, StepId

FLUSH_INTERVAL_S = 0.25
RESUME_WAIT_S = 30.0
_live: weakref.WeakSet[Writer] = weakref.WeakSet()


class Writer:
    """Appends steps, episodes and facts to a log of its own. Belongs to one thread at a time.

    Get one from `Workspace.writer()`. What `append` returned survives `kill -9` of every process; what `sync` returned
    survives power loss. With `durability="interval"` a background flush runs every 0.25 s, with `"step"` every append
    syncs, with `"process"` only `sync` and `close` do.
    """

    def __init__(
        self,
        folder: Path,
        layout: Layout,
        *,
        agent: str = "",
        durability: Durability = "interval",
        mask: Masker = keep,
        on_roll: Callable[[], None] | None = None,
        largest: int | None = None,
        find: Callable[[str | EpisodeKey | StepId, Layout], ResumePoint] | None = None,
        only_facts: bool = False,
    ) -> None:
        self.layout, self.agent, self.durability = layout, agent, durability
        self._mask, self._find, self._folder = mask, find, folder
        self._log = GrowingLog(folder, layout, agent, durability, only_facts=only_facts)
        self._on_roll = on_roll  # the log, which outlives a writer that is dropped, must not keep it
        self._log.behind.on_roll, self._log.behind.largest = _weakly(on_roll), largest
        self.id = self._log.id
        fields = FieldWriters(layout, mask)
        self._single = StepAppender(self._log, fields)
        self._append = self._single.append
        self._blocks = BlockAppender(self._log, fields)
        self._open: dict[EpisodeKey, OpenEpisode] = {}
        self._named: dict[int | str, OpenEpisode] = {}
        self._most_open = 256  # entries before ended episodes are looked for
        self._episodes = 0
        self.thread: int | None = None
        """The thread that last began an episode, None before the first."""
        self._flusher = _Flusher(self._log) if durability == "interval" else None
        weakref.finalize(self, _leave, self._log, self._flusher).atexit = False
        _live.add(self)

    # -- episodes ------------------------------------------------------------------------------------------

    def episode(self, id: str | None = None, attempt: int | None = None, **facts: Any) -> Episode:
        """Opens an episode.

        Args:
            id: the caller's name for it; `e<writer>.<counter>` when None. Several attempts may share one.
            attempt: which try at the same id this is.
            facts: values of the schema's episode facts.

        Raises:
            FieldError: a fact that the schema lacks or that does not fit.
            WriterError: the writer is closed, forked or poisoned.
        """
        return Episode(self, self.open_episode(id, attempt, facts))

    def resume_episode(self, episode: str | EpisodeKey | StepId) -> Episode:
        """Goes on with an episode that another writer left without an end, under its own key.

        Args:
            episode: its id (the newest attempt), its key, or one of its steps.

        Raises:
            NotFound: no such episode.
            EpisodeError: it has ended, or a live writer still has it open.
            SchemaMismatch: the schema evolved since this writer was opened, and the episode has rows of the newer one.
            WriterError: the writer is closed, forked or poisoned.
        """
        assert self._find is not None, "a workspace's writers can look episodes up"
        with locked(self._folder / ".resume", RESUME_WAIT_S):
            point = self._find(episode, self.layout)
            with self._log.lock:
                self._log.check()
                opened = self._open[point.key] = OpenEpisode(point.key)
                self.thread = threading.get_ident()
                opened.id, opened.step, opened.history = point.id, point.step, point.history
                opened.judged = point.status not in (None, INTERRUPTED)
                resumption = {
                    "values": {"status": None} if point.status == INTERRUPTED else {},
                    "row": self._log.first_row + self._log.rows,
                    "after": point.after,
                    "turn": point.turn,
                }
                begun = self._log.position
                try:
                    self._log.append_fact(point.key, None, resumption, kind=RESUMPTION)
                    if point.waiting is not None:
                        self._single.put_observation(opened, point.waiting.records[:1], point.waiting.planes)
                    self._log.sync()  # a power cut that kept resumed rows without it would leave them to nobody
                    return Episode(self, opened)
                except BaseException:
                    if self._log.position != begun:  # nobody gets the handle that could close it
                        self.close_episode(opened)
                    raise

    def open_episode(self, id: str | None, attempt: int | None, facts: Mapping[str, Any]) -> OpenEpisode:
        """The state of a new episode, for appenders."""
        values: dict[str, Any] = {}
        if id is not None:
            values["id"] = check_id(id, self._mask)
        if attempt is not None:
            if isinstance(attempt, bool) or not isinstance(attempt, int) or not 0 <= attempt < 1 << 63:
                raise ArgumentError("an attempt is a whole number of at least 0 that fits 64 bits", value=attempt)
            values["attempt"] = attempt
        values.update(check_facts(self.layout.schema, facts, self._mask))
        with self._log.lock:
            self._log.check()
            key = EpisodeKey(self.id, self._episodes)
            self.thread = threading.get_ident()
            if values:
                self._log.append_fact(key, None, values)
            self._episodes += 1
            if len(self._open) > self._most_open:
                self._open = {k: e for k, e in self._open.items() if not e.ended}
                self._most_open = max(256, 2 * len(self._open))
            opened = self._open[key] = OpenEpisode(key)
            opened.id = values.get("id")
            opened.judged = facts.get("status") is not None
        return opened

    def _number(self, count: int) -> EpisodeKey:
        """Takes the keys of so many new episodes, one after the other; the first of them."""
        first = EpisodeKey(self.id, self._episodes)
        self.thread = threading.get_ident()
        self._episodes += count
        return first

    def close_episode(self, episode: OpenEpisode) -> None:
        """Ends an episode that may still grow; one that neither ended nor was judged was interrupted."""
        with self._log.lock:
            if self._open.get(episode.key) is episode:  # otherwise it was resumed here since
                del self._open[episode.key]
            if episode.ended or self._log.unusable is not None:
                return
            self._single.close_episode(episode)
            if episode.step or episode.judged or episode.id is not None:
                values = {"status": INTERRUPTED} if episode.step and not episode.judged else {}
                self._log.append_fact(episode.key, None, values, kind=CLOSED)

    def annotate(self, episode: EpisodeKey, step: StepId | None, values: Mapping[str, Any]) -> StepId:
        """Writes checked facts about an episode or a step; returns the fact's own id."""
        with self._log.lock:
            self._log.check()
            return self._log.append_fact(episode, step, values)

    # -- many steps ----------------------------------------------------------------------------------------

    def lanes(self, num_envs: int) -> Lanes:
        """One open episode per environment of a vector environment, appended to together.

        Args:
            num_envs: lanes, at least 1.
        """
        if isinstance(num_envs, bool) or not isinstance(num_envs, int | np.integer) or num_envs < 1:
            raise ArgumentError("a writer's lanes are a whole number of at least 1", value=num_envs)
        self._log.check()
        return Lanes(self._blocks, int(num_envs), self.open_episode, self.close_episode)

    def extend(self, columns: Mapping[str, Any]) -> int:
        """Appends a block of steps.

        Args:
            columns: name → `[n, ...]`: every required field; `episode` `[n]`, a key of the caller's choice, int or
                text, that stays open across calls until an end flag; `step` `[n]`, increasing by 1 within each
                episode; optionally `terminated`, `truncated`, `next_observation`, `priority`,
                `valid={field: [n] bool}` and `facts={key: {...}}`.

        Returns:
            Steps appended. They become visible together, and are written together or not at all.

        Raises:
            FieldError: a column that is missing, unknown, or of another length, shape or dtype. Nothing was written.
            EpisodeError: steps out of order, or after an episode's end. Nothing was written.
        """
        return self._blocks.extend(columns, self._named, self.open_episode, self._number)

    # -- durability ----------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Returns when everything appended so far is on stable storage.

        Raises:
            StoreError: the disk refused. The writer is then poisoned: what was not yet durable may be lost at a
                power cut, and no later sync could tell.
        """
        self._log.sync()

    def let_go(self, segment: int) -> None:
        """Says that segments below the given number were evicted, so that the next roll gives up their maps."""
        self._log.behind.evicted_below = segment

    @property
    def usable(self) -> bool:
        """Whether it may still write."""
        return self._log.unusable is None

    @property
    def is_open(self) -> bool:
        """Whether it still holds its log."""
        return self._log.is_open

    def close(self) -> None:
        """Marks open episodes interrupted, makes everything durable, seals the log. Closing twice is fine.

        Raises:
            DiskFull, StoreError: an episode's end found no room, or the disk refused, be it in the background since
                the last call. The writer is closed all the same, and what could be synced is; recovery seals its log
                when the workspace is next opened.
        """
        if self._flusher is not None:
            self._flusher.stop()
        with self._log.lock:
            if not self._log.is_open:
                return
            ended = False
            try:
                for episode in list(self._open.values()):
                    self.close_episode(episode)
                ended = True
            finally:
                self._log.close(whole=ended)
                _live.discard(self)

    def __enter__(self) -> Writer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _leave(log: GrowingLog, flusher: _Flusher | None) -> None:
    """Of a writer that was dropped without close(): flushes its log and gives up its lock; recovery seals it.

    The collector may run this anywhere, in the flusher's thread too, in the middle of a sync: that thread does it
    itself.
    """
    if flusher is None:
        _leave_unsealed(log)
    else:
        flusher.orphan(log)


def _leave_unsealed(log: GrowingLog) -> None:
    if log.is_open:
        with contextlib.suppress(StoreError, WriterError):  # nobody is there to be told; recovery looks at it anew
            log.close(whole=False)


def _weakly(call: Callable[[], None] | None) -> Callable[[], None] | None:
    """A method that does nothing once its object is gone; other callables as they are."""
    if not isinstance(call, MethodType):
        return call
    method = weakref.WeakMethod(call)

    def run() -> None:
        if (found := method()) is not None:
            found()

    return run


class _Flusher:
    """Syncs a log every `FLUSH_INTERVAL_S` from a thread of its own; appends do not wait for it."""

    def __init__(self, log: GrowingLog) -> None:
        self._log = weakref.ref(log)
        self._orphan: GrowingLog | None = None
        self._stopped = threading.Event()
        self._thread = Background(self._run)
        self._thread.ask()

    def _run(self) -> None:
        before: tuple[int, int] | None = None
        while not self._stopped.wait(FLUSH_INTERVAL_S):
            log = self._log()
            if log is None or log.unusable is not None:
                break
            now = log.position
            if now != before:
                try:
                    log.sync()
                except StoreError as e:
                    log.behind.untold = e  # whoever writes next is told why, or whoever closes
                    break
                except WriterError:
                    break
                before = now
            del log
        if self._orphan is not None:
            _leave_unsealed(self._orphan)

    def orphan(self, log: GrowingLog) -> None:
        """Has the thread leave the log to recovery. Waits for nothing."""
        self._orphan = log
        self._stopped.set()
        if not self._thread.is_busy:  # a flush had failed
            _leave_unsealed(log)

    def stop(self) -> None:
        self._stopped.set()
        self._thread.wait()


class Episode:
    """An open episode. Leave the block without an end and without a status, and it is marked interrupted."""

    def __init__(self, writer: Writer, state: OpenEpisode) -> None:
        self._writer, self._state, self._append = writer, state, writer._append
        self.key = state.key

    def append(
        self,
        *,
        terminated: bool = False,
        truncated: bool = False,
        next_observation: Any = None,
        priority: float | None = None,
        **fields: Any,
    ) -> StepId:
        """Appends one step.

        Args:
            terminated, truncated: whether the episode ends with this step. A truncated step can only be drawn
                when `next_observation` is given.
            next_observation: what was seen after the action. The step can be drawn at once, not only when the
                next one arrives.
            priority: initial priority for prioritized replay; None enters at the running maximum.
            fields: the schema's fields. Nested ones are mappings or tuples.

        Returns:
            The step's id. Every process of this machine sees the step on its next read, and it survives the
            death of all of them.

        Raises:
            FieldError: missing, unknown, wrong shape or dtype. Nothing was written.
            EpisodeError: the episode has ended.
            DiskFull: no room for another segment. Nothing was written.
            WriterError: the writer is closed, forked or poisoned.
        """
        return self._append(self._state, fields, terminated, truncated, next_observation, priority)

    def finish(self, **facts: Any) -> None:
        """Facts about the episode: `status`, `reward`, `lesson` and the schema's own. Before or after its end.

        Raises:
            FieldError: a fact that the schema lacks or that does not fit.
        """
        if not facts:
            raise EpisodeError("finish() takes facts", remedy="Pass status=, reward=, lesson= or your own")
        values = check_facts(self._writer.layout.schema, facts, self._writer._mask)
        self._writer.annotate(self.key, None, values)
        if values.get("status") is not None:
            self._state.judged = True

    @property
    def id(self) -> str:
        """The caller's id, or the default one."""
        return self._state.id or self.key.default_id

    def close(self) -> None:
        """Ends the episode: an observation that waited becomes its final row; steps without an end or a status make it
        interrupted. Closing twice is fine."""
        self._writer.close_episode(self._state)

    def __enter__(self) -> Episode:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def only_here(writers: Collection[int]) -> bool:
    """Whether the calling thread, and no other, began the newest episodes of all these writers. Whoever waits for rows
    of theirs then waits for ever. A writer that began none may yet be used by any thread."""
    mine = {writer.id for writer in list(_live) if writer.thread == threading.get_ident()}
    return bool(writers) and mine.issuperset(writers)


def _after_fork() -> None:
    for writer in list(_live):
        writer._flusher = None
        writer._log.abandon_after_fork()


os.register_at_fork(after_in_child=_after_fork)
