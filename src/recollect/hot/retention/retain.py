"""`Retainer`: when a workspace evicts, and what it says of it.

Eviction runs when a workspace is opened, when a snapshot has moved what counts as promoted, and behind a writer that
went on in a new segment: there in a thread of its own, so that no append waits for it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from recollect.errors import RecollectError
from recollect.hot import home
from recollect.hot.format.targets import read_cursors, read_home
from recollect.hot.keep import Keep
from recollect.hot.read.log import WriterLog
from recollect.hot.read.store import HotStore
from recollect.hot.retention.evict import Eviction, evict, weigh
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
        problem: why nothing counts as promoted, or why an eviction failed; "" where neither is so.
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
    problem: str


def _lacking(mark: Mark, log: WriterLog) -> int:
    """Rows that a buffer lacks and that are not gone for another reason than eviction."""
    kept = log.kept(log.first.row, log.rows)
    return mark.lacking(0, log.first.row) + sum(mark.lacking(a, b) for a, b in kept)


class Retainer:
    """Evicts from one workspace on behalf of one handle.

    Args:
        path: the workspace's folder.
        hot: its store, where it has a schema.
        writers: this handle's own writers, which hold maps of their segments.
    """

    def __init__(self, path: Path, hot: Callable[[], HotStore], writers: Callable[[], list[Writer]]) -> None:
        self._path, self._hot, self._writers = path, hot, writers
        self._gate = threading.Lock()
        self._wanted = self._running = False
        self._thread: threading.Thread | None = None
        self._pid = os.getpid()
        self._failed = ""

    @property
    def keep(self) -> Keep:
        """The limits, as they are now."""
        return home.describe(self._path).keep

    def run(self) -> Eviction:
        """Evicts what may go. An eviction that another process is at work on is left to it.

        Raises:
            StoreError: the folder cannot be written.
            CorruptionError: a note or segment is damaged.
        """
        keep = self.keep
        done = evict(self._hot(), keep, time.time_ns()) if keep.limited else None
        logs = self._hot().logs
        for writer in self._writers():
            log = logs.get(writer.id)
            if log is not None:
                writer.let_go(log.first.segment)
        return Eviction() if done is None else done

    def try_run(self) -> Eviction:
        """Likewise, but a failure is only noted: whoever calls it has done what it was asked for."""
        try:
            done = self.run()
        except RecollectError as e:
            self._failed = e.text
            return Eviction(reason=self._failed)
        self._failed = ""
        return done

    def after_roll(self) -> None:
        """Evicts in a thread of its own. Called with the writer's lock held, so it waits for nothing."""
        if os.getpid() != self._pid:
            return
        with self._gate:
            self._wanted = True
            if self._running:
                return
            self._running = True
        thread = threading.Thread(target=self._serve, name="recollect-evict", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # no thread to be had, or the interpreter is shutting down: the next roll tries again
            self._running = False
            return
        self._thread = thread

    def _serve(self) -> None:
        while True:
            with self._gate:
                if not self._wanted:
                    self._running = False
                    return
                self._wanted = False
            self.try_run()

    def close(self) -> None:
        """Waits for an eviction that is at work."""
        thread = self._thread
        if thread is not None and os.getpid() == self._pid:
            thread.join()

    def stats(self) -> Retention:
        """What is kept, what waits, what went."""
        keep, store = self.keep, self._hot()
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
            problem=self._failed or (reason if keep.limited and keep.unpromoted == "refuse" else ""),
        )
