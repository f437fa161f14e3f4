"""Reading writers' logs: counters, segments, facts, tails. Takes no lock that an appending agent could wait for."""

from __future__ import annotations

import bisect
import json
import mmap
import threading
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recollect.errors import CorruptionError, NotFound, StoreError
from recollect.hot.first import First, Resumption, read_first
from recollect.hot.seal import Seal, read_seal
from recollect.hot.segment import RESUMPTION, ROWS_MASK, Segment
from recollect.hot.tails import TailFile, damaged_slots, read_tails
from recollect.records.block import Block, join_rows
from recollect.records.layout import FINAL, Layout
from recollect.view import EpisodeKey, Fact, Ids, StepId, make_ids

UNNOTICED = 1 << 62
"""Tick of what a log found evicted by itself, before its store noticed."""


class WriterLog:
    """One writer's log, as far as it was published when `refresh` last looked.

    Attributes:
        writer: the writer's id.
        rows, facts: published counts.
        first: where the log begins now; what is before it was evicted.
        gone: whether all of it was evicted, the folder too.
        resumed: episodes that go on in this log.
    """

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder, self.layout = folder, layout
        self.writer = int(folder.name, 16)
        self.segments: list[Segment] = []
        self.rows = self.facts = 0
        self.first = First()
        self.gone = False
        self._seal: Seal | None = None
        self.resumed: dict[EpisodeKey, Resumption] = {}
        self._scanned = 0
        self._facts: list[Fact] = []
        self._parsed = 0
        """Facts below it are in `_facts`, or were evicted."""
        self._past: list[_Past] = []
        self.unlinked: list[weakref.ref[mmap.mmap]] = []
        """Maps of evicted segments; while one lives, so does its disk space."""
        self._lock = threading.RLock()

    def refresh(self) -> None:
        """Looks at the newest counters: one load per writer while no segment was added."""
        with self._lock:
            self._refresh()

    def _refresh(self) -> None:
        if not self.sealed:
            self._look()
            if self.facts > self._scanned:
                self._find_resumptions()

    def _look(self) -> None:
        seal = read_seal(self.folder)
        if not self.segments:
            self._begin_at(read_first(self.folder))
        if seal is not None:
            while self._next < seal.segments:
                if not self._open_next():
                    if not self.folder.is_dir():
                        return  # evicted whole; `notice` will say so
                    raise CorruptionError(
                        f"segment {self._next} of writer {self.writer} is missing in {str(self.folder)!r}",
                        remedy="Restore the workspace from a backup or a buffer",
                    )
            self.rows, self.facts, self._seal = seal.rows, seal.facts, seal
            return
        if not self.segments:
            self._open_next()
        while self.segments:
            last, word = self.segments[-1], self.segments[-1].word
            shape = last.header.shape
            self.rows = last.header.first_row + min(word & ROWS_MASK, shape.rows)
            self.facts = last.header.first_fact + min(word >> 32, shape.facts)
            if not (last.rolled and self._open_next()):
                break

    def _find_resumptions(self) -> None:
        for k, segment in enumerate(self.segments):
            first = segment.header.first_fact
            low, high = max(self._scanned, first) - first, self._facts_end(k) - first
            if low >= high:
                continue
            segment.checked.require_facts(high)
            for row in (low + np.flatnonzero(segment.facts["kind"][low:high] == RESUMPTION)).tolist():
                found = _resumption(segment, row)
                self.resumed[found.key] = found
        self._scanned = self.facts

    def _facts_end(self, k: int) -> int:
        """Where the facts of segment `k` end."""
        return self.segments[k + 1].header.first_fact if k + 1 < len(self.segments) else self.facts

    @property
    def sealed(self) -> bool:
        """Whether the log will never grow again."""
        return self._seal is not None or self.gone

    @property
    def _next(self) -> int:
        """Number of the segment after the newest one known."""
        return self.segments[-1].header.index + 1 if self.segments else self.first.segment

    @property
    def lost(self) -> tuple[int, int] | None:
        """Rows `[start, stop)` that recovery found damaged and cut off."""
        return None if self._seal is None else self._seal.lost

    @property
    def agent(self) -> str:
        """The name its writer was given."""
        return self.segments[0].header.agent if self.segments else self.first.agent

    @property
    def durable_rows(self) -> int:
        """Rows that a completed sync covered. A sealed log was flushed whole before its seal."""
        if self.sealed:
            return self.rows
        done = self.first.row
        for segment in self.segments:
            rows = segment.durable_word & ROWS_MASK
            done = max(done, segment.header.first_row + rows if rows else 0)
        return min(done, self.rows)

    @property
    def kept_facts(self) -> int:
        """Facts that are still readable: those of the segments, and those carried over from evicted ones."""
        return 0 if self.gone else self.facts - self.first.fact + len(self.first.facts)

    def _open_next(self) -> bool:
        while True:
            number = self._next
            try:
                segment = Segment.open_(self.folder / f"{number:08d}.seg", self.layout)
            except StoreError as e:
                if not isinstance(e.__cause__, FileNotFoundError):
                    raise
                # It is not there yet, or not any more: then the log begins later than we knew.
                first = read_first(self.folder)
                if first.segment <= number:
                    return False
                self._begin_at(first)
                continue
            self.segments.append(segment)
            return True

    # -- eviction ------------------------------------------------------------------------------------------

    def notice(self, tick: int, *, gone: bool) -> None:
        """Looks where the log begins now. What was evicted stays readable here until `release(tick)`."""
        with self._lock:
            self._past = [p._replace(tick=min(p.tick, tick)) for p in self._past]
            if gone or not self.folder.is_dir():
                end = First(1 << 62, self.rows, self.facts, self.first.agent)
                self._begin_at(end, tick)
                self.gone = True
                return
            self._begin_at(read_first(self.folder), tick)
            if not self.sealed:
                self._refresh()

    def release(self, tick: int) -> None:
        """Lets go of what was noticed as evicted at `tick` or before."""
        with self._lock:
            self._past = [p for p in self._past if p.tick > tick]

    @property
    def is_held(self) -> bool:
        """Whether evicted segments are still readable here."""
        return bool(self._past)

    def _begin_at(self, first: First, tick: int = UNNOTICED) -> None:
        if first == self.first:
            return
        ends = [s.header.first_row for s in self.segments[1:]] + [self.rows]
        for segment, stop in zip(self.segments, ends, strict=bool(self.segments)):
            if segment.header.index < first.segment:
                self._past.append(_Past(tick, segment, segment.header.first_row, stop))
                self.unlinked.append(weakref.ref(segment.map))
        self.segments = [s for s in self.segments if s.header.index >= first.segment]
        self._facts = [*first.facts, *(f for f in self._facts if f.seq >= first.fact)]
        self._parsed, self._scanned = max(self._parsed, first.fact), max(self._scanned, first.fact)
        self.resumed |= {r.key: r for r in first.resumed if r.key not in self.resumed}
        self.rows, self.facts = max(self.rows, first.row), max(self.facts, first.fact)
        self.first = first

    # -- rows ----------------------------------------------------------------------------------------------

    def pieces(self, start: int, stop: int) -> list[tuple[Block, int, int]]:
        """The blocks that hold rows `start` to `stop`, in order; each row's checksum was looked at.

        Raises:
            NotFound: rows that were evicted.
            CorruptionError: a row is damaged, or not there.
        """
        out = list(self._blocks(start, stop))
        if sum(b - a for _, a, b in out) != max(0, stop - start):
            if start < self.first.row:
                raise NotFound(f"rows {start} to {min(stop, self.first.row)} of writer {self.writer} were evicted")
            raise CorruptionError(
                f"writer {self.writer} has no rows {start} to {stop}",
                value=self.rows,
                remedy="The cut was made on another workspace, or the log was damaged",
            )
        return out

    def _blocks(self, start: int, stop: int) -> Iterator[tuple[Block, int, int]]:
        """What is readable here of rows `start` to `stop`."""
        with self._lock:  # so that no segment is met in both lists
            ends = [s.header.first_row for s in self.segments[1:]] + [self.rows]
            spans = [(p.segment, p.start, p.stop) for p in self._past]
            spans += [(s, s.header.first_row, end) for s, end in zip(self.segments, ends, strict=bool(self.segments))]
        for segment, first, end in spans:
            low, high = max(start, first), min(stop, end)
            if low < high:
                segment.checked.require_rows(low - first, high - first)
                yield segment.block, low - first, high - first

    # -- facts ---------------------------------------------------------------------------------------------

    def read_facts(self, stop: int, start: int = 0) -> list[Fact]:
        """Facts from `start` and below `stop` that are still there, parsed once per process."""
        with self._lock:
            self._facts += _parse_all(self._fact_spans(stop), self._parsed)
            self._parsed = max(self._parsed, min(stop, self.facts))
            low, high = (bisect.bisect_left(self._facts, n, key=lambda f: f.seq) for n in (start, stop))
            return self._facts[low:high]

    def later_facts(self, stop: int) -> Callable[[], list[Fact]]:
        """Reads the facts below `stop` that are there now, whenever it is called and whatever was evicted by then."""
        with self._lock:
            first, spans = self.first, self._fact_spans(stop)

        def read() -> list[Fact]:
            with self._lock:
                if self.first is first:
                    return self.read_facts(stop)
            return [*(f for f in first.facts if f.seq < stop), *_parse_all(spans, first.fact)]

        return read

    def _fact_spans(self, stop: int) -> list[tuple[Segment, int]]:
        """Segments, and up to which fact of the log each is to be read."""
        ends = [s.header.first_fact for s in self.segments[1:]] + [self.facts]
        return [(s, min(stop, end)) for s, end in zip(self.segments, ends, strict=bool(self.segments))]

    def has_step_facts(self, stop: int) -> bool:
        """Whether any fact below `stop` is about a step rather than an episode."""
        with self._lock:
            carried, spans = self.first.facts, self._fact_spans(stop)
        if any(f.step is not None and f.seq < stop for f in carried):
            return True
        for segment, end in spans:
            count = end - segment.header.first_fact
            if count > 0:
                segment.checked.require_facts(count)
                if (segment.facts["step_seq"][:count] >= 0).any():
                    return True
        return False

    def tails(self, ids: Ids) -> tuple[Ids, Block | None]:
        """Observations that follow the given steps of this writer: from the tail slots, or from the successors that
        overwrote them. Each record carries the id of the step that it follows."""
        with self._lock:
            try:
                paths = sorted(self.folder.glob("*.tails"))
                if self._seal is not None and len(paths) < self._seal.tails and self.segments:
                    raise CorruptionError(f"a tails file of writer {self.writer} is missing in {str(self.folder)!r}")
                found, block = read_tails([TailFile.open_(p, self.layout) for p in paths], ids, self.layout)
            except (CorruptionError, StoreError):
                if self.folder.is_dir():
                    raise
                paths, found, block = [], ids[:0], None  # the log was evicted as a whole
            have = set(found.tolist())
            lost = [i for i in ids.tolist() if i not in have]
            if not lost:
                return found, block
            self._refresh()
            later = [(i, s) for i in lost if (s := self._successor(i[1])) is not None]
            gone = self._seal is not None and len(later) < len(lost)
            if gone and damaged_slots(paths, self.layout) > self._seal.lost_tails:  # type: ignore[union-attr]
                raise CorruptionError(
                    f"the observation that waits after step {self.writer}:{lost[0][1]} is damaged",
                    remedy="`recollect verify` says what else is; restore the workspace from a backup or a buffer",
                )
        if not later:
            return found, block
        parts = [block] if block is not None else []
        joined = join_rows(self.layout, [*parts, *(s for _, s in later)])
        ids = np.concatenate([found, make_ids([i[0] for i, _ in later], [i[1] for i, _ in later])])
        joined.records["writer"], joined.records["seq"] = ids["writer"], ids["seq"]
        joined.records["flags"] = FINAL
        return ids, joined

    def _successor(self, seq: int) -> Block | None:
        """The row after step `seq` of the same episode, as a block of one, None when there is none in this log."""
        (block, row, _) = self.pieces(seq, seq + 1)[0]
        mine = block.records[row]
        for piece, start, stop in self._blocks(seq + 1, self.rows):
            records = piece.records[start:stop]
            hit = np.flatnonzero(
                (records["episode"] == mine["episode"]) & (records["episode_writer"] == mine["episode_writer"])
            )
            if len(hit):
                at = start + int(hit[0])
                return Block(piece.records[at : at + 1], piece.planes, piece.heap, piece.owner)
        return None


class _Past(NamedTuple):
    """An evicted segment that somebody here may still read: its rows, and when it was noticed."""

    tick: int
    segment: Segment
    start: int
    stop: int


def _parse_all(spans: Iterable[tuple[Segment, int]], start: int) -> list[Fact]:
    """The facts from `start` on, each segment up to its own stop."""
    out = []
    for segment, stop in spans:
        first = segment.header.first_fact
        if stop > max(start, first):
            segment.checked.require_facts(stop - first)
        out += [_parse(segment, seq - first) for seq in range(max(start, first), stop)]
    return out


def _body(segment: Segment, row: int) -> dict[str, Any]:
    record = segment.facts[row]
    at, count = int(record["heap_at"]), int(record["heap_bytes"])
    values: dict[str, Any] = json.loads(segment.heap[at : at + count].tobytes())
    return values


def _resumption(segment: Segment, row: int) -> Resumption:
    record, body = segment.facts[row], _body(segment, row)
    key = EpisodeKey(int(record["episode_writer"]), int(record["episode"]))
    return Resumption(key, body["row"], tuple((int(w), int(n)) for w, n in body["after"]), int(record["time"]))


def _parse(segment: Segment, row: int) -> Fact:
    record, body = segment.facts[row], _body(segment, row)
    step = int(record["step_seq"])
    return Fact(
        int(record["writer"]),
        int(record["seq"]),
        int(record["time"]),
        EpisodeKey(int(record["episode_writer"]), int(record["episode"])),
        None if step < 0 else StepId(int(record["step_writer"]), step),
        body["values"] if record["kind"] == RESUMPTION else body,
    )
