"""`GrowingLog`: the segments of one writer while it lives.

What to write is others' business; where it goes, and when it counts, is decided here.
"""

from __future__ import annotations

import _thread
import contextlib
import json
import os
import threading
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from recollect.errors import DiskFull, NotFound, StoreError, WriterError
from recollect.hot.format.fields import OpenEpisode
from recollect.hot.format.files import FileLock, locked, os_errors, sync_folder, try_lock
from recollect.hot.format.room import give_back
from recollect.hot.format.seal import Seal, seal
from recollect.hot.format.segment import (
    FACT,
    FAILED,
    FLUSH,
    PAGE,
    RESUMPTION,
    ROWS_PER_APPEND,
    UNDER_WAY,
    VALUES,
    Header,
    Segment,
    Shape,
    new_header,
    segment_bytes,
)
from recollect.hot.format.spare import Spare
from recollect.hot.format.tails import TailLanes
from recollect.hot.write.growth import WORTH, Behind
from recollect.records.block import Values
from recollect.records.layout import Layout
from recollect.view import EpisodeKey, StepId

Durability: TypeAlias = Literal["process", "interval", "step"]
SEGMENT_BYTES = (1 << 20, 4 << 20, 16 << 20, 64 << 20)
"""Target sizes of a writer's segments, one after the other while they fill up; the last one is used from then on."""
GATE, GATE_WAIT_S = ".gate", 30.0
"""A file that starting writers lock shared and a deletion locks alone, and how long either waits for the other."""


class GrowingLog:
    """The log of one writer.

    It has fewer than 30 attributes: beyond that CPython gives up its quick way to them, which an append feels.

    Attributes:
        id: the writer: 63 random bits from the operating system, never used again.
        lock: held while anything is written.
        segment: where rows go now; `records`, `map` and `records_at` are its own, kept close at hand.
        rows, facts, heap_used, planes: what of the segment is written. Readers see it once `publish` ran.
        max_rows: an append may begin while `rows` is below it; `turn_page` comes first otherwise.
        waiting: the episodes of the newest block whose observations wait in tail slots, and these observations `[k]` by
            path: what the next block compares its own with, without reading the slots back. Blocks alone write the
            tails of their episodes.
        unusable: why nothing may be written any more, None while it may.
        behind: the segments behind the newest one.
    """

    def __init__(
        self, folder: Path, layout: Layout, agent: str, durability: Durability, *, only_facts: bool = False
    ) -> None:
        self.id = int.from_bytes(os.urandom(8), "little") & ((1 << 63) - 1)
        self.agent, self.layout, self.durability = agent, layout, durability
        self.folder = folder / f"{self.id:016x}"
        self.lock = threading.RLock()
        self.unusable: str | None = None
        self.waiting: tuple[list[OpenEpisode], dict[str, Values]] | None = None
        self.first_row = self.first_fact = self.rows = self.facts = self.heap_used = 0
        self.planes: dict[str, int] = {}
        self.last_time = 0
        self.behind = Behind(only_facts=only_facts)
        self._count = 0
        self._syncing = threading.Lock()
        self._spare = Spare()
        self._held = _make_locked(self.folder)
        self.tails = TailLanes(self.folder, layout)
        self.segment: Segment
        try:
            self._start(Shape.fitting(layout, self._sizes()[0], only_facts=only_facts), 0, 0)
        except BaseException:
            self._held.close()
            raise

    # -- segments ------------------------------------------------------------------------------------------

    def _header(self, shape: Shape, first_row: int, first_fact: int) -> Header:
        return new_header(self.id, self._count, first_row, first_fact, self.layout, shape, self.agent, time.time_ns())

    def _path(self) -> Path:
        return self.folder / f"{self._count:08d}.seg"

    def _start(self, shape: Shape, first_row: int, first_fact: int) -> None:
        """Goes on in a new segment. Before its file has its name, a failure leaves everything as it was."""
        header = self._header(shape, first_row, first_fact)
        blank = self._spare.take(segment_bytes(self.layout, header))
        # The first segment says what the log is. A later one that was never flushed is cut off at recovery.
        segment = Segment.create(self._path(), self.layout, header, blank, flush=not self._count)
        control_at = segment.records_at - 2 * PAGE
        word = memoryview(segment.map)[control_at : control_at + 8].cast("Q")
        planes = dict.fromkeys(segment.planes, 0)
        # A writer that has filled the small segments goes on in a hurry: the next one is begun early. One that
        # never writes much costs no file that it does not need.
        part = 2 if self._count + 1 < len(SEGMENT_BYTES) else 8
        mark = Shape(*(max(1, count // part) for count in (shape.rows, shape.facts, shape.planes, shape.heap_bytes)))
        if self._count:
            self.segment.control[1] = 1
            self.behind.stored += self._stored()
            self._leave(len(self.segment.map) // WORTH)
        self.segment = segment  # before it is in the list: see sync
        self._count += 1
        self.behind.named = True
        self.behind.unsynced.append(segment)
        self.map, self.records, self.records_at = segment.map, segment.records, segment.records_at
        self._word, self.planes = word, planes
        self.first_row, self.first_fact = first_row, first_fact
        self.rows = self.facts = self.heap_used = 0
        self._mark: Shape | None = mark
        self.behind.ahead = None
        self.max_rows = min(self._full, mark.rows)

    @property
    def _full(self) -> int:
        """Rows at which an append needs another segment."""
        return self.segment.header.shape.rows - ROWS_PER_APPEND + 1

    def _shape(self, target: int, rows: int = 0, planes: int = 0, facts: int = 0, heap_bytes: int = 0) -> Shape:
        """The shape of a segment of about `target` bytes, with room for the given needs."""
        return Shape.fitting(
            self.layout,
            target,
            rows + ROWS_PER_APPEND,
            planes + ROWS_PER_APPEND,
            facts + 1,
            heap_bytes,
            like=self._used(),
            only_facts=self.behind.only_facts,
        )

    def _used(self) -> Shape:
        """What the newest segment holds."""
        return Shape(self.rows, self.facts, max(self.planes.values(), default=0), self.heap_used)

    def _stored(self) -> int:
        """Bytes that the newest segment holds."""
        planes = sum(count * self.layout.plane_bytes[path] for path, count in self.planes.items())
        return self.rows * self.layout.itemsize + self.facts * FACT.itemsize + planes + self.heap_used

    def _leave(self, at_least: int) -> None:
        """Takes note of the newest segment's unused room, where it comes to so many bytes: it goes back."""
        unused = self.segment.unused(self.rows, self.facts, self.planes, self.heap_used)
        if sum(stop - start for start, stop in unused) >= at_least:
            self.behind.unused[self.segment.path] = unused

    def _sizes(self) -> list[int]:
        """Target sizes of the segments, in ascending order."""
        return self.behind.sizes(SEGMENT_BYTES)

    def _next_target(self) -> int:
        """Bytes that the next segment is to have."""
        return self.behind.next_size(self._sizes(), self._stored(), self.segment.header.shape.full(self._used()))

    def turn_page(self) -> None:
        """Makes room for one append's rows: looks ahead when a part of the segment is full, and goes on in a new
        one when all of it is."""
        if self.rows >= self._full:
            self.roll()
        else:
            self._look_ahead()

    def _look_ahead(self) -> None:
        """Has the next segment prepared, once in every segment."""
        if self._mark is not None:
            self.max_rows = self._full
            self._mark = None
            self.behind.ahead = shape = self._shape(self._next_target())
            size = segment_bytes(self.layout, self._header(shape, 0, 0))
            self._spare.prepare(self.folder / f".next-{self._count:08d}.new", size)

    def roll(self, rows: int = 0, planes: int = 0, facts: int = 0, heap_bytes: int = 0) -> None:
        """Goes on in a new segment with room for the given needs: a smaller one where the disk has no room for it.

        Raises DiskFull and StoreError, leaving everything as it was. What interrupts it once the new file has its name,
        Ctrl-C for one, ends the writer: it could be in either segment.
        """
        target = self._next_target()
        sizes = (target, *(s for s in self._sizes()[::-1] if s < target))
        shapes = [self._shape(size, rows, planes, facts, heap_bytes) for size in sizes]
        ahead, needed = self.behind.ahead, self._shape(0, rows, planes, facts, heap_bytes)
        if ahead is not None and ahead.holds(needed):
            shapes[0] = ahead
        path = self._path()
        try:
            for shape in shapes:
                try:
                    self._start(shape, self.first_row + self.rows, self.first_fact + self.facts)
                    break
                except DiskFull:
                    if shape is shapes[-1] or path.exists():
                        raise
            self._let_go()
            if (newest := self.behind.unsynced[-2:-1]) and (unused := self.behind.unused.get(newest[0].path)):
                with contextlib.suppress(RuntimeError):  # no more threads: the next sync does it
                    _thread.start_new_thread(give_back, (newest[0].path, unused))
        except BaseException:
            if path.exists():
                self.unusable = self.unusable or "a roll was interrupted halfway"
            raise
        if self.behind.on_roll is not None:
            self.behind.on_roll()

    def _let_go(self) -> None:
        """Gives up evicted segments that no sync has reached yet. A sync that is at work gives them up itself, once it
        has flushed them; it is not waited for."""
        behind = self.behind
        if behind.unsynced[0].header.index < behind.evicted_below and self._syncing.acquire(blocking=False):
            try:
                for segment in [s for s in behind.unsynced if s.header.index < behind.evicted_below]:
                    behind.unsynced.remove(segment)
                    segment.close()
            finally:
                self._syncing.release()

    def reserve(self, rows: int = 0, planes: int = 0, facts: int = 0, heap_bytes: int = 0) -> None:
        """Makes sure that the segment has room, rolling over where it has not."""
        shape = self.segment.header.shape
        widest = max(self.planes.values()) if self.planes else 0
        if (
            self.rows + rows > shape.rows
            or self.facts + facts > shape.facts
            or self.heap_used + heap_bytes > shape.heap_bytes
            or (self.planes and widest + planes > shape.planes)
        ):
            self.roll(rows, planes, facts, heap_bytes)
        elif (mark := self._mark) is not None and (
            self.rows >= mark.rows
            or self.facts >= mark.facts
            or self.heap_used >= mark.heap_bytes
            or (self.planes and widest >= mark.planes)
        ):
            self._look_ahead()

    def now(self) -> int:
        """Nanoseconds since 1970, never going back within a writer."""
        self.last_time = max(self.last_time, time.time_ns())
        return self.last_time

    # -- publishing ----------------------------------------------------------------------------------------

    def publish(self) -> None:
        """Shows readers everything written so far, with one aligned store."""
        self._word[0] = (self.facts << 32) | self.rows
        if self.durability == "step":
            self.sync()

    def check(self) -> None:
        """Raises WriterError when the log may not be written."""
        if self.unusable is not None:
            self.behind.untold = None
            raise WriterError(
                f"writer {self.id} may not write: {self.unusable}", remedy="Open a new one with ws.writer()"
            )

    def append_fact(
        self, key: EpisodeKey, step: StepId | None, values: Mapping[str, Any], *, kind: int = VALUES
    ) -> StepId:
        """Writes and publishes checked facts; returns the fact's own id."""
        body = encode_fact(values)
        self.reserve(facts=1, heap_bytes=len(body))
        at, row = self.heap_used, self.facts
        self.segment.heap[at : at + len(body)] = np.frombuffer(body, np.uint8)
        fact = np.zeros(1, FACT)
        fact["kind"] = kind
        self.behind.resumed = self.behind.resumed or kind == RESUMPTION
        fact["writer"], fact["seq"], fact["time"] = self.id, self.first_fact + row, self.now()
        fact["episode_writer"], fact["episode"] = key
        fact["step_writer"], fact["step_seq"] = step if step is not None else (-1, -1)
        fact["heap_at"], fact["heap_bytes"] = at, len(body)
        fact["crc"] = zlib.crc32(fact.tobytes()[4:], zlib.crc32(body))
        self.segment.facts[row] = fact[0]
        self.heap_used += len(body)
        self.facts += 1
        self.publish()
        return StepId(self.id, self.first_fact + row)

    # -- durability ----------------------------------------------------------------------------------------

    def sync(self) -> None:
        """Returns when everything published is on stable storage. Any failure makes the log unusable: after a failed
        flush the kernel may count pages as clean that never reached the disk, so no later flush could be believed.

        Takes no lock that an append takes. What an append changes meanwhile is read in an order that makes up for it:
        the list of segments first, whose last one alone may still be written; then what of that one counts, with the
        tails; then the tails' files.
        """
        with self._syncing:
            self.check()
            *rolled, last = list(self.behind.unsynced)
            last.control[FLUSH] = UNDER_WAY
            word = self.tails.sync_begins(last.control_words())
            tails = list(self.tails.files)
            try:
                with os_errors("syncing", self.folder):
                    if self.behind.named:
                        self.behind.named = False
                        sync_folder(self.folder)
                    for tail in tails:
                        tail.sync()
                    for segment in rolled:
                        segment.sync(segment.word)
                    last.sync(word)
            except BaseException:
                last.control[FLUSH] = FAILED
                self.unusable = "a sync failed, so its unsynced steps may not survive a power cut"
                raise
            last.control[FLUSH] = 0
            self.tails.sync_completed()
            for segment in rolled:
                self.behind.unsynced.remove(segment)
                segment.close()
            self.behind.give_back()

    @property
    def position(self) -> tuple[int, int]:
        """Changes whenever something is published."""
        return self._count, self.segment.word

    # -- the end -------------------------------------------------------------------------------------------

    @property
    def is_open(self) -> bool:
        return self._held.fd >= 0

    def close(self, *, whole: bool = True) -> None:
        """Makes everything durable, seals the log, gives up lock and files.

        Args:
            whole: False leaves the seal to recovery, which looks at every tail slot: observations may wait there.

        Raises:
            StoreError: the disk refused, now or in the background. The log is closed all the same, and is left to
                recovery.
        """
        try:
            if self.unusable is None:
                self.sync()
            if self.unusable is None and whole:
                self.unusable = "closed"
                rows, facts = self.first_row + self.rows, self.first_fact + self.facts
                self._leave(0)
                self.behind.give_back()
                self.segment.mark_sealed()
                seal(self.folder, Seal(rows, facts, self._count, clean=True, resumed=self.behind.resumed))
        finally:
            self.unusable = self.unusable or "closed"
            self._held.close()
            for segment in self.behind.unsynced:
                segment.close()
            for tail in self.tails.files:
                tail.close()
            with contextlib.suppress(OSError):
                self._spare.discard()
                for left in self.folder.glob(".*.new"):  # a roll that was interrupted
                    left.unlink(missing_ok=True)
        untold, self.behind.untold = self.behind.untold, None
        if untold is not None:
            raise StoreError(
                f"writer {self.id} could not flush in the background: {untold}",
                remedy="What was not durable by then may not survive a power cut until the workspace is opened again, "
                "which writes it once more",
            ) from untold

    def abandon_after_fork(self) -> None:
        """In a forked child: the parent goes on under this id, so the child may not."""
        self.lock, self._syncing = threading.RLock(), threading.Lock()
        self._spare.forget_after_fork()
        self.behind.untold = None
        self.unusable = "it was opened before a fork"


def encode_fact(values: Mapping[str, Any]) -> bytes:
    """A fact's values as they lie in the heap."""
    return json.dumps(values, ensure_ascii=False, separators=(",", ":")).encode("utf-8")


def _make_locked(folder: Path) -> FileLock:
    """Creates a writer's folder with its lock held.

    The folder gets its name last: whoever finds one whose lock is free may take the writer for dead. The gate is shared
    meanwhile, so that the workspace cannot be deleted between the look for live writers and this one's lock.

    Raises:
        NotFound: the workspace was deleted.
        DiskFull, StoreError: the folder cannot be made.
    """
    log = folder.parent
    temporary = log / f".{folder.name}.new"
    try:
        with os_errors("creating a writer in", log), locked(log / GATE, GATE_WAIT_S, shared=True):
            temporary.mkdir()
            lock = try_lock(temporary / "lock")
            assert lock is not None, "nobody else knows this name"
            try:
                sync_folder(temporary)
                temporary.rename(folder)
                sync_folder(log)
            except BaseException:
                lock.close()
                raise
    except StoreError as e:
        if isinstance(e.__cause__, FileNotFoundError):
            raise NotFound(f"no workspace at {str(log.parent)!r}", remedy="It was deleted; create it again") from e
        raise
    return lock
