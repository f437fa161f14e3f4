"""`Retainer`: when a workspace evicts, and what it says of it.

Eviction runs when a workspace is opened, when a snapshot has moved what counts as promoted, and behind a writer that
went on in a new segment: there in a thread of its own, so that no append waits for it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from recollect.errors import RecollectError
from recollect.hot import home
from recollect.hot.format.background import Background
from recollect.hot.format.files import os_errors
from recollect.hot.format.targets import read_cursors, read_home
from recollect.hot.keep import Keep
from recollect.hot.read.log import WriterLog
from recollect.hot.read.store import HotStore
from recollect.hot.retention.evict import LOCK, Eviction, evict, weigh
from recollect.hot.write.writer import Writer
from recollect.view.reach import Mark


@dataclass(frozen=True)
class TargetStats:
    """A buffer that the workspace was promoted to, as a snapshot last saw it.

    Attributes:
        uri, version: the buffer and its newest version then.
        rows: rows of this workspace that it lacks.
        home: whether eviction goes by it.
    """

    uri: str
    version: int
    rows: int
    home: bool


@dataclass(frozen=True)
class Retention:
    """What a workspace keeps, and what it let go.

    Attributes:
        keep: the limits; `home` the buffer whose rows may go, None before the first snapshot.
        over_limit: whether rows or facts beyond the limits wait for their promotion; `waiting_rows` and
            `waiting_bytes` how much.
        evicted_rows, evicted_facts: what went, ever.
        dropped_rows, dropped_facts: of these, what the home buffer did not hold when they went.
        unlinked_bytes: disk space of evicted segments that this process still maps.
        targets: every buffer that was promoted to.
        skipped: evictions that this handle left to another one at work, since it last carried one out.
        problem: why the last eviction of this handle failed, why nothing counts as promoted, or that rows which may go
            stay because evictions were skipped; "" where none is so.
    """

    keep: Keep
    home: str | None
    over_limit: bool
    waiting_rows: int
    waiting_bytes: int
    evicted_rows: int
    evicted_facts: int
    dropped_rows: int
    dropped_facts: int
    unlinked_bytes: int
    targets: tuple[TargetStats, ...]
    skipped: int
    problem: str


def _lacking(mark: Mark, log: WriterLog) -> int:
    """Rows that a buffer lacks and that are not gone for another reason than eviction."""
    kept = log.kept(log.first.row, log.rows)
    return mark.lacking(0, log.first.row) + sum(mark.lacking(a, b) for a, b in kept)


class Retainer:
    """Evicts from one workspace on behalf of one handle of one process: a forked child makes its own.

    Args:
        path: the workspace's folder; `id` the workspace, since another one may come to have that folder.
        hot: its store, where it has a schema.
        writers: this handle's own writers, which hold maps of their segments.
    """

    def __init__(self, path: Path, id: str, hot: Callable[[], HotStore], writers: Callable[[], list[Writer]]) -> None:
        self._path, self._id, self._hot, self._writers = path, id, hot, writers
        self._thread = Background(self._evict_behind)
        self._failed = ""
        self._skipped = 0

    @property
    def keep(self) -> Keep:
        """The limits, as they are now."""
        return home.describe(self._path).keep

    def run(self) -> Eviction:
        """Evicts what may go. An eviction that another one is at work on is left to it: `skipped`.

        Raises:
            NotFound: the workspace was deleted.
            StoreError: the folder cannot be written.
            CorruptionError: a note or segment is damaged.
        """
        keep = self.keep
        done: Eviction | None = Eviction()
        if keep.limited:
            with home.held(self._path, self._id):
                done = evict(self._hot(), keep, time.time_ns())
        logs = self._hot().logs
        for writer in self._writers():
            log = logs.get(writer.id)
            if log is not None:
                writer.let_go(log.first.segment)
        if done is None:
            self._skipped += 1
            return Eviction(skipped=True)
        self._failed, self._skipped = "", 0
        return done

    def try_run(self) -> Eviction:
        """Likewise, but a failure of any kind is only noted, in `stats`: whoever calls it has done what it was asked
        for."""
        try:
            return self.run()
        except Exception as e:
            self._failed = e.text if isinstance(e, RecollectError) else f"an eviction failed: {e!r}"
            return Eviction(reason=self._failed)

    def after_roll(self) -> None:
        """Evicts in a thread of its own. Called with the writer's lock held, so it waits for nothing."""
        try:
            self._thread.ask()
        except RuntimeError as e:  # the next roll tries again
            self._failed = f"there was no thread to evict in: {e}"

    def _evict_behind(self) -> None:
        self.try_run()

    def close(self) -> None:
        """Waits for an eviction that is at work."""
        self._thread.wait()

    def stats(self) -> Retention:
        """What is kept, what waits, what went. Raises StoreError, CorruptionError."""
        keep, store = self.keep, self._hot()
        with os_errors("reading", self._path):
            choice, _, reason = weigh(store, keep, time.time_ns())
        logs = [log for log in list(store.logs.values()) if not log.gone]
        first = [log.first for log in logs]
        gone, at_home = store.evicted, read_home(self._path)
        targets = tuple(
            TargetStats(
                c.uri,
                c.version,
                sum(_lacking(c.marks.get(log.writer, Mark()), log) for log in logs),
                c.uri == at_home,
            )
            for c in read_cursors(self._path)
        )
        return Retention(
            keep=keep,
            home=at_home,
            over_limit=bool(choice.waiting_bytes),
            waiting_rows=choice.waiting_rows,
            waiting_bytes=choice.waiting_bytes,
            evicted_rows=gone.rows + sum(f.row for f in first),
            evicted_facts=gone.facts + sum(f.evicted_facts for f in first),
            dropped_rows=gone.dropped_rows + sum(f.dropped_rows for f in first),
            dropped_facts=gone.dropped_facts + sum(f.dropped_facts for f in first),
            unlinked_bytes=store.unlinked_bytes,
            targets=targets,
            skipped=self._skipped,
            problem=self._failed or self._why_not(keep, reason, any(choice.segments.values())),
        )

    def _why_not(self, keep: Keep, reason: str, more: bool) -> str:
        """Why rows stay that the limits want gone.

        Args:
            reason: why nothing counts as promoted.
            more: whether some may go all the same.
        """
        if keep.limited and keep.unpromoted == "refuse" and reason:
            return reason
        if more and self._skipped:
            return (
                f"something else held {str(self._path / LOCK)!r} the last {self._skipped} times that rows were to go; "
                "if that does not end, end its process"
            )
        return ""
