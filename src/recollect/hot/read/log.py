"""Reading writers' logs: counters, segments, facts, tails. Takes no lock that an appending agent could wait for."""

from __future__ import annotations

import bisect
import mmap
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from recollect.errors import CorruptionError, NotFound, StoreError
from recollect.hot.format.first import First, Resumption, read_first
from recollect.hot.format.layouts import Layouts
from recollect.hot.format.parse import parse, parse_all
from recollect.hot.format.seal import Seal, read_seal
from recollect.hot.format.segment import ROWS_MASK, Segment
from recollect.hot.format.tails import TailFile, damaged_slots, read_tails
from recollect.hot.format.translate import Translation, Translations
from recollect.hot.read.turns import Turns
from recollect.records.block import Block, join_rows
from recollect.records.layout import FINAL, Layout
from recollect.view import EpisodeKey, Fact, Ids, make_ids

UNNOTICED = 1 << 62
"""Tick of what a log found evicted by itself, before its store noticed."""


class WriterLog:
    """One writer's log, as far as it was published when `refresh` last looked.

    Attributes:
        writer: the writer's id.
        layout: what it was written in; the same for all its segments, since a writer keeps the schema it began with.
        rows, facts: published counts.
        first: where the log begins now; what is before it was evicted.
        gone: whether all of it was evicted, the folder too.
    """

    def __init__(self, folder: Path, layouts: Layouts) -> None:
        self.folder, self.layouts = folder, layouts
        self.layout = layouts.newest
        self.writer = int(folder.name, 16)
        self.segments: list[Segment] = []
        self.rows = self.facts = 0
        self.first = First()
        self.gone = False
        self._seal: Seal | None = None
        self._turns = Turns()
        self._facts: list[Fact] = []
        self._parsed = 0
        """Facts below it are in `_facts`, or were evicted."""
        self._past: list[_Past] = []
        self.unlinked: list[weakref.ref[mmap.mmap]] = []
        """Maps of evicted segments; while one lives, so does its disk space."""
        self._translations = Translations()
        self._tail_files: list[TailFile] = []
        self._newest: Segment | None = None
        self._watched: memoryview | None = None
        self._word = -1
        self._lock = threading.RLock()

    def refresh(self) -> None:
        """Looks at the newest counters: one load per writer while no segment was added."""
        watched = self._watched
        if watched is not None and not (watched[2] or watched[1]) and watched[0] == self._word:
            return
        with self._lock:
            watched = self._watched
            if watched is None or self._newest is None or watched[2] or watched[1]:
                self._refresh()
                self._watch()
            else:
                self._count(self._newest, watched[0])

    def _count(self, last: Segment, word: int) -> None:
        header = last.header
        self.facts = header.first_fact + min(word >> 32, header.shape.facts)
        self.rows = header.first_row + min(word & ROWS_MASK, header.shape.rows)
        self._word = word

    def _watch(self) -> None:
        """Chooses what tells that nothing is new: the newest segment's control words. Whoever seals a log marks its
        segments first, so that no reader needs to look for the seal itself."""
        last = self.segments[-1] if self.segments and not self.sealed else None
        if last is not self._newest:
            self._newest, self._watched = last, None if last is None else last.control_words()
        self._word = -1

    def _refresh(self) -> None:
        if not self.sealed:
            self._look()

    def _look(self) -> None:
        seal = read_seal(self.folder)
        if not self.segments:
            self._begin_at(read_first(self.folder))
        if seal is not None:
            while self._next < seal.segments:
                if not self._open_next():
                    if not self.folder.is_dir():
                        return  # evicted whole; `notice` will say so
                    raise self._missing()
            if not seal.resumed:
                self._turns.scanned = max(self._turns.scanned, seal.facts)
            self.rows, self.facts, self._seal = seal.rows, seal.facts, seal
            return
        if not self.segments and not self._open_next() and next(self.folder.glob("*.seg"), None) is not None:
            raise self._missing()
        while self.segments:
            last, word = self.segments[-1], self.segments[-1].word
            shape = last.header.shape
            self.rows = last.header.first_row + min(word & ROWS_MASK, shape.rows)
            self.facts = last.header.first_fact + min(word >> 32, shape.facts)
            if not (last.rolled and self._open_next()):
                break

    def _missing(self) -> CorruptionError:
        return CorruptionError(
            f"segment {self._next} of writer {self.writer} is missing in {str(self.folder)!r}",
            remedy="Restore the workspace from a backup or a buffer",
        )

    @property
    def resumed(self) -> dict[EpisodeKey, list[Resumption]]:
        """Episodes that go on in this log, each with its resumptions here, oldest first.

        Raises:
            CorruptionError: a fact is damaged.
        """
        return self._scanned().resumed

    @property
    def closed(self) -> dict[EpisodeKey, int]:
        """Of a log that may still grow: episodes that were closed in it and not resumed in it since → number of the
        fact that says so. Of one that was sealed nobody asks: all its episodes may be gone on with.

        Raises:
            CorruptionError: a fact is damaged.
        """
        return self._scanned().closed

    def _scanned(self) -> Turns:
        """What the facts published until now say, so that no row is seen before the resumption that explains it."""
        if self._turns.scanned < self.facts:
            with self._lock:
                self._turns.scan(self._fact_spans(self.facts), self.facts)
        return self._turns

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
        with self._lock:
            self._refresh()
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
            path = self.folder / f"{number:08d}.seg"
            try:
                segment = Segment.open_(path, self.layouts)
            except StoreError as e:
                if not isinstance(e.__cause__, FileNotFoundError):
                    raise
                # It is not there yet, or not any more: then the log begins later than we knew.
                first = read_first(self.folder)
                if first.segment <= number:
                    return False
                self._begin_at(first)
                continue
            if self.segments and segment.layout is not self.layout:
                raise CorruptionError(f"segment {str(path)!r} has another schema than those before it")
            self.layout = segment.layout
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
                self._watch()
                return
            self._begin_at(read_first(self.folder), tick)
            if not self.sealed:
                self._refresh()
            self._watch()

    def release(self, tick: int) -> None:
        """Lets go of what was noticed as evicted at `tick` or before."""
        with self._lock:
            if self._past:
                self._past = [p for p in self._past if p.tick > tick]
                self._translations.keep(self._held_blocks())

    @property
    def is_held(self) -> bool:
        """Whether evicted segments are still readable here."""
        return bool(self._past)

    def _begin_at(self, first: First, tick: int = UNNOTICED) -> None:
        if first == self.first:
            return
        for segment, stop, fact_stop in self._spans():
            if segment.header.index < first.segment:
                self._past.append(_Past(tick, segment, stop, fact_stop))
                self.unlinked.append(weakref.ref(segment.map))
        self.segments = [s for s in self.segments if s.header.index >= first.segment]
        self._facts = [*first.facts, *(f for f in self._facts if f.seq >= first.fact)]
        self._turns.begin_at(first)
        self._parsed = max(self._parsed, first.fact)
        self.rows, self.facts = max(self.rows, first.row), max(self.facts, first.fact)
        self.first = first

    def _spans(self) -> list[tuple[Segment, int, int]]:
        """The segments, with the rows and facts of the log that each ends with. Under the lock."""
        ends = [(s.header.first_row, s.header.first_fact) for s in self.segments[1:]] + [(self.rows, self.facts)]
        return [(s, *end) for s, end in zip(self.segments, ends, strict=bool(self.segments))]

    # -- rows ----------------------------------------------------------------------------------------------

    def pieces(self, start: int, stop: int) -> list[tuple[Block, int, int]]:
        """The blocks that hold rows `start` to `stop`, in order, as they were written, each row checked once.

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
            spans = [(p.segment, p.stop) for p in self._past] + [(s, end) for s, end, _ in self._spans()]
        for segment, end in spans:
            first = segment.header.first_row
            low, high = max(start, first), min(stop, end)
            if low < high:
                segment.checked.require_rows(low - first, high - first)
                yield segment.block, low - first, high - first

    def pieces_in(self, layout: Layout, start: int, stop: int) -> list[tuple[Block, int, int]]:
        """The same rows in the layout of the schema's newest version: those of an older one through a translation.

        Raises:
            SchemaMismatch: the log was written under a newer schema than `layout` has.
            NotFound, CorruptionError: as `pieces`.
        """
        written = self.pieces(start, stop)
        if self.layout is layout:
            return written
        with self._lock:
            of = self._translations.of
            out = [(of(block, self.layout, layout).read(low, high), low, high) for block, low, high in written]
            if len(self._translations) > len(self.segments) + len(self._past):
                self._translations.keep(self._held_blocks())
            return out

    def _held_blocks(self) -> list[Block]:
        """Those of the segments that are still read."""
        return [*(s.block for s in self.segments), *(p.segment.block for p in self._past)]

    # -- facts ---------------------------------------------------------------------------------------------

    def read_facts(self, stop: int) -> list[Fact]:
        """Facts below `stop` that are still there, parsed once per process."""
        with self._lock:
            self._facts += parse_all(self._fact_spans(stop), self._parsed)
            self._parsed = max(self._parsed, min(stop, self.facts))
            return self._facts[: bisect.bisect_left(self._facts, stop, key=lambda f: f.seq)]

    def later_facts(self, stop: int) -> Callable[[], list[Fact]]:
        """Reads the facts below `stop` that are there now, whenever it is called and whatever was evicted by then."""
        with self._lock:
            first, spans = self.first, self._fact_spans(stop)

        def read() -> list[Fact]:
            with self._lock:
                if self.first is first:
                    return self.read_facts(stop)
            return [*(f for f in first.facts if f.seq < stop), *parse_all(spans, first.fact)]

        return read

    def _fact_spans(self, stop: int) -> list[tuple[Segment, int]]:
        """Segments, and up to which fact of the log each is to be read. Under the lock."""
        return [(segment, min(stop, end)) for segment, _, end in self._spans()]

    def fact_pieces(self, start: int, stop: int) -> tuple[list[Fact], list[tuple[Segment, int, int]]]:
        """Facts `start` to `stop` as far as they are readable here: those that were carried over from segments that are
        not, and the segments that hold the others, in order, with their rows there. Those come unchecked."""
        with self._lock:
            carried = self.first.facts
            past = [(p.segment, p.fact_stop) for p in self._past]
            spans = past + self._fact_spans(stop)
        pieces = []
        for segment, end in spans:
            first = segment.header.first_fact
            low, high = max(start, first), min(stop, end)
            if low < high:
                pieces.append((segment, low - first, high - first))
        low, high = (bisect.bisect_left(carried, n, key=lambda f: f.seq) for n in (start, stop))
        held = [(segment.header.first_fact, end) for segment, end in past]
        return [f for f in carried[low:high] if not any(a <= f.seq < b for a, b in held)], pieces

    def each_fact(self, start: int, stop: int) -> Iterator[Fact]:
        """Facts `start` to `stop` as far as they are readable here, in order, parsed anew.

        Raises:
            CorruptionError: one is damaged.
        """
        carried, pieces = self.fact_pieces(start, stop)
        yield from carried
        for segment, low, high in pieces:
            segment.checked.require_facts(high)
            for row in range(low, high):
                yield parse(segment, row)

    def fact(self, seq: int) -> Fact:
        """One fact.

        Raises:
            CorruptionError: it is damaged, or not there.
        """
        carried, pieces = self.fact_pieces(seq, seq + 1)
        for segment, row, _ in pieces:
            if segment.checked.whole_facts(row, row + 1) == row + 1:
                return parse(segment, row)
        if carried:
            return carried[0]
        raise CorruptionError(
            f"fact {seq} of writer {self.writer} is damaged or gone", remedy="See recollect verify NAME"
        )

    def holds_fact(self, seq: int) -> bool:
        """Whether a fact is still there: retention may have taken it."""
        return any(self.fact_pieces(seq, seq + 1))

    def has_step_facts(self, stop: int) -> bool:
        """Whether any fact below `stop` is about a step rather than an episode."""
        carried, pieces = self.fact_pieces(0, stop)
        if any(f.step is not None for f in carried):
            return True
        for segment, low, high in pieces:
            segment.checked.require_facts(high)
            if (segment.facts["step_seq"][low:high] >= 0).any():
                return True
        return False

    def tails_in(self, layout: Layout, ids: Ids) -> tuple[Ids, Block | None]:
        """As `tails`, in the layout of the schema's newest version."""
        found, block = self.tails(ids)
        if block is None or self.layout is layout:
            return found, block
        return found, Translation(block, self.layout, layout).read(0, len(block.records))

    def step_facts(self, start: int, stop: int) -> list[Fact]:
        """The facts from `start` to `stop` that are about steps and still there."""
        carried, pieces = self.fact_pieces(start, stop)
        out = [f for f in carried if f.step is not None]
        for segment, low, high in pieces:
            segment.checked.require_facts(high)
            about = segment.facts["step_seq"][low:high]
            out += [parse(segment, low + int(row)) for row in np.flatnonzero(about >= 0)]
        return out

    def tails(self, ids: Ids) -> tuple[Ids, Block | None]:
        """Observations that follow the given steps of this writer, as they were written: from the tail slots, or from
        the successors that overwrote them. Each record carries the id of the step that it follows."""
        with self._lock:
            files = self._open_tails(known=True)
            found, block = read_tails(files, ids, self.layout)
            if len(found) < len(ids):
                files = self._open_tails(known=False)
                if self._seal is not None and len(files) < self._seal.tails and not self._is_evicted():
                    raise CorruptionError(f"a tails file of writer {self.writer} is missing in {str(self.folder)!r}")
                found, block = read_tails(files, ids, self.layout)
            if len(found) == len(ids):
                return found, block
            have = set(found.tolist())
            lost = [i for i in ids.tolist() if i not in have]
            self._refresh()
            later = [(i, s) for i in lost if (s := self._successor(i[1])) is not None]
            seal = self._seal if len(later) < len(lost) else None
            if seal is not None and self._damaged_tails(files) > seal.lost_tails:
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

    def _open_tails(self, *, known: bool) -> list[TailFile]:
        """The maps of the tails files, or of those that are mapped already. They are numbered in the order of their
        creation, and none goes away before the log's last segment does. A log that cannot grow is seldom asked, and
        gives its maps up."""
        files = self._tail_files
        if not known:
            while (path := self.folder / f"{len(files):08d}.tails").exists():
                try:
                    files.append(TailFile.open_(path, self.layout))
                except StoreError:
                    if not self._is_evicted():
                        raise
        if self._seal is not None:
            self._tail_files = []
        return files

    def _damaged_tails(self, files: list[TailFile]) -> int:
        try:
            return damaged_slots([file.path for file in files], self.layout)
        except StoreError:
            if self._is_evicted():
                return 0
            raise

    def _is_evicted(self) -> bool:
        """Whether all segments of a log that cannot grow were evicted, noticed or not: its tails went with them."""
        if self.gone or not self.folder.is_dir():
            return True
        return self._seal is not None and read_first(self.folder).segment >= self._seal.segments

    def _successor(self, seq: int) -> Block | None:
        """The row after step `seq` of the same episode, as a block of one, None when there is none in this log."""
        found = list(self._blocks(seq, seq + 1))
        if not found:
            return None
        block, row, _ = found[0]
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
    """An evicted segment that somebody here may still read: when it was noticed, and the rows and facts of the log that
    it ends with."""

    tick: int
    segment: Segment
    stop: int
    fact_stop: int
