"""Reading writers' logs: counters, segments, facts, tails. Takes no lock that an appending agent could wait for."""

from __future__ import annotations

import bisect
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from recollect.errors import CorruptionError, NotFound, StoreError
from recollect.hot.format import holes as gone
from recollect.hot.format.first import First, Resumption, read_first
from recollect.hot.format.holes import Holes, read_holes
from recollect.hot.format.layouts import Layouts
from recollect.hot.format.parse import parse_all
from recollect.hot.format.seal import Seal, read_seal
from recollect.hot.format.segment import ROWS_MASK, Segment
from recollect.hot.format.tails import TailFile, read_tails
from recollect.hot.format.translate import Translation, Translations
from recollect.hot.read.facts import Facts, FactSpans, carried
from recollect.hot.read.held import UNNOTICED, Held, Past, renewed
from recollect.hot.read.turns import Turns
from recollect.hot.read.waiting import Tails, damaged, joined, successor
from recollect.records.block import Block
from recollect.records.gone import Gone, blanks
from recollect.records.layout import Layout
from recollect.view import EpisodeKey, Fact, Ids
from recollect.view.reach import Ranges, within, without


class WriterLog:
    """One writer's log, as far as it was published when `refresh` last looked.

    Attributes:
        writer: the writer's id.
        layout: what it was written in; the same for all its segments, since a writer keeps the schema it began with.
        rows, facts: published counts.
        first: where the log begins now; what is before it was evicted.
        holes: rows and facts behind that which were damaged or deleted.
        held: what is gone and still readable here.
        gone: whether all of it was evicted, the folder too.

    Args:
        pins: `tick` is when the thread that asks pinned the store, where it did.
    """

    def __init__(self, folder: Path, layouts: Layouts, pins: threading.local | None = None) -> None:
        self.folder, self.layouts = folder, layouts
        self.layout = layouts.newest
        self.writer = int(folder.name, 16)
        self.segments: list[Segment] = []
        self.rows = self.facts = 0
        self.first = First()
        self.holes = gone.NONE
        self._kept: tuple[tuple[Holes, int, int] | None, Ranges] = (None, ())
        self.gone = False
        self._seal: Seal | None = None
        self.held = Held(pins)
        self._facts = Facts()
        self._tails = Tails(folder)
        self._translations = Translations()
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
            self._see(read_holes(self.folder))
        if seal is not None:
            while self._next < seal.segments:
                if not self._open_next():
                    if not self.folder.is_dir():
                        return  # evicted whole; `notice` will say so
                    raise self._missing()
            if not seal.resumed:
                self._facts.turns.scanned = max(self._facts.turns.scanned, seal.facts)
            self.rows, self.facts, self._seal = seal.rows, seal.facts, seal
            return
        if not self.segments and not self._open_next() and self._has_files():
            raise self._missing()
        while self.segments:
            last, word = self.segments[-1], self.segments[-1].word
            shape = last.header.shape
            self.rows = last.header.first_row + min(word & ROWS_MASK, shape.rows)
            self.facts = last.header.first_fact + min(word >> 32, shape.facts)
            if not (last.rolled and self._open_next()):
                break

    def _has_files(self) -> bool:
        """Whether there are segment files that were not given up."""
        return any(not self.holes.is_lost(path) for path in self.folder.glob("*.seg"))

    def _missing(self) -> CorruptionError:
        return CorruptionError(
            f"segment {self._next} of writer {self.writer} is missing in {str(self.folder)!r}",
            remedy="Give it up: recollect verify NAME --repair; or restore the workspace from a backup or a buffer",
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
        if self._facts.turns.scanned < self.facts:
            with self._lock:
                self._facts.turns.scan(self._fact_spans(self.facts), self.facts)
        return self._facts.turns

    @property
    def sealed(self) -> bool:
        """Whether the log will never grow again."""
        return self._seal is not None or self.gone

    @property
    def _next(self) -> int:
        """Number of the segment after the newest one known."""
        return self.holes.skip(self.segments[-1].header.index + 1 if self.segments else self.first.segment)

    @property
    def lost(self) -> tuple[int, int] | None:
        """Rows `[start, stop)` that recovery found damaged and cut off."""
        if self._seal is not None and self._seal.lost is None:
            beyond = within(self.holes.rows, self._seal.rows, 1 << 62)
            return beyond[0] if beyond else None
        return None if self._seal is None else self._seal.lost

    @property
    def end(self) -> int:
        """Where the last row that is not gone ends."""
        kept = self.kept(self.first.row, self.rows)
        return kept[-1][1] if kept else self.first.row

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
        if self.gone:
            return 0
        lost = gone.count(within(self.holes.facts, self.first.fact, self.facts))
        return self.facts - self.first.fact - lost + len(carried(self.first, self.holes.facts))

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
            segment.checked.forgive(self.holes.damaged_rows, self.holes.facts)
            self.segments.append(segment)
            return True

    # -- holes ---------------------------------------------------------------------------------------------

    def kept(self, start: int, stop: int) -> Ranges:
        """The rows from `start` to `stop` that are not gone."""
        if not self.holes.rows:
            return ((start, stop),) if start < stop else ()
        asked = (self.holes, start, stop)
        known, kept = self._kept
        if known != asked:  # otherwise there is nothing new, and there may be many holes
            kept = without(((start, stop),), within(self.holes.rows, start, stop))
            self._kept = (asked, kept)
        return kept

    def _see(self, holes: Holes, tick: int | None = None) -> None:
        """Takes note of what is gone. With a `tick` its rows stay readable here until `release(tick)`."""
        if holes == self.holes:
            return
        if tick is not None:
            self.held.hold_rows(tick, self.holes)
        self.holes = holes
        for segment in self.segments:
            segment.checked.forgive(holes.damaged_rows, holes.facts)
        self._facts.lose(self.first, holes.facts)

    def _blank(self, start: int, stop: int) -> Iterator[tuple[Block, int, int]]:
        """Rows that are gone, from `start` to `stop`."""
        lost = self.held.blanked(self.holes).rows
        begin = lost[bisect.bisect_right(lost, start, key=lambda r: r[1])][0]
        at = begin - 1
        times = [
            s.records["time"][at - s.header.first_row] for s, end, _ in self._spans() if s.header.first_row <= at < end
        ]
        block = blanks(self.layout, Gone(self.writer, start, stop, int(times[0]) if times else 0))
        yield block, 0, stop - start

    # -- eviction ------------------------------------------------------------------------------------------

    def notice(self, tick: int, *, gone: bool) -> None:
        """Looks where the log begins now. What was evicted stays readable here until `release(tick)`."""
        with self._lock:
            self.held.notice(tick)
            if gone or not self.folder.is_dir():
                end = First(1 << 62, self.rows, self.facts, self.first.agent)
                self._begin_at(end, tick)
                self.gone = True
                self._watch()
                return
            self._begin_at(read_first(self.folder), tick)
            self._see(read_holes(self.folder), tick)
            if not self.sealed:
                self._refresh()
            self._watch()

    def release(self, tick: int) -> None:
        """Lets go of what was noticed as evicted at `tick` or before."""
        with self._lock:
            if self.held.release_rows(tick):  # nobody reads what may have been purged
                self.segments = [renewed(s, self.layouts, self.holes) for s in self.segments]
            if self.held.release_segments(tick):
                self._translations.keep(self._held_blocks())

    def _begin_at(self, first: First, tick: int = UNNOTICED) -> None:
        if first == self.first:
            return
        for segment, stop, fact_stop in self._spans():
            if segment.header.index < first.segment:
                self.held.hold(Past(tick, segment, stop, fact_stop))
        self.segments = [s for s in self.segments if s.header.index >= first.segment]
        self.first = first
        self._facts.begin_at(first, self.holes.facts)
        self.rows, self.facts = max(self.rows, first.row), max(self.facts, first.fact)

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
        """What is readable here of rows `start` to `stop`; blank rows where they are gone."""
        with self._lock:  # so that no segment is met in both lists
            spans = [(p.segment, p.stop) for p in self.held.past] + [(s, end) for s, end, _ in self._spans()]
            lost = within(self.held.blanked(self.holes).rows, max(start, self.first.row), stop)
        for a, b in without(((start, stop),), lost) if lost else ((start, stop),):
            yield from self._blank_between(lost, start, a)
            for segment, end in spans:
                first = segment.header.first_row
                low, high = max(a, first), min(b, end)
                if low < high:
                    segment.checked.require_rows(low - first, high - first)
                    yield segment.block, low - first, high - first
            start = b
        if lost:
            yield from self._blank_between(lost, start, stop)

    def _blank_between(self, lost: Ranges, start: int, stop: int) -> Iterator[tuple[Block, int, int]]:
        for low, high in within(lost, start, stop):
            yield from self._blank(low, high)

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
            out = [
                (
                    blanks(layout, block.owner)
                    if isinstance(block.owner, Gone)
                    else of(block, self.layout, layout).read(low, high),
                    low,
                    high,
                )
                for block, low, high in written
            ]
            if len(self._translations) > len(self.segments) + len(self.held.past):
                self._translations.keep(self._held_blocks())
            return out

    def _held_blocks(self) -> list[Block]:
        """Those of the segments that are still read."""
        return [*(s.block for s in self.segments), *(p.segment.block for p in self.held.past)]

    # -- facts ---------------------------------------------------------------------------------------------

    def read_facts(self, stop: int) -> list[Fact]:
        """Facts below `stop` that are still there, parsed once per process."""
        with self._lock:
            return self._facts.read(self._fact_spans(stop), self.holes.facts, min(stop, self.facts))

    def later_facts(self, stop: int) -> Callable[[], list[Fact]]:
        """Reads the facts below `stop` that are there now, whenever it is called and whatever was evicted by then."""
        with self._lock:
            first, spans = self.first, self._fact_spans(stop)

        def read() -> list[Fact]:
            with self._lock:
                if self.first is first:
                    return self.read_facts(stop)
                lost = self.holes.facts
            early = (f for f in carried(first, lost) if f.seq < stop)
            return [*early, *parse_all(spans, first.fact, lost)]

        return read

    def _fact_spans(self, stop: int) -> list[tuple[Segment, int]]:
        """Segments, and up to which fact of the log each is to be read. Under the lock."""
        return [(segment, min(stop, end)) for segment, _, end in self._spans()]

    def fact_pieces(self, start: int, stop: int) -> FactSpans:
        """Facts `start` to `stop`, as far as they are readable here."""
        with self._lock:
            early, lost = carried(self.first, self.holes.facts), self.holes.facts
            past = [(p.segment, p.fact_stop) for p in self.held.past]
            spans = self._fact_spans(stop)
        return FactSpans.between(start, stop, early, past, spans, lost)

    def fact(self, seq: int) -> Fact:
        """One fact.

        Raises:
            CorruptionError: it is damaged, or not there.
        """
        found = self.fact_pieces(seq, seq + 1).first_whole()
        if found is not None:
            return found
        raise CorruptionError(
            f"fact {seq} of writer {self.writer} is damaged or gone", remedy="See recollect verify NAME"
        )

    def holds_fact(self, seq: int) -> bool:
        """Whether a fact is still there: retention may have taken it."""
        return any(self.fact_pieces(seq, seq + 1))

    # -- waiting observations ------------------------------------------------------------------------------

    def tails_in(self, layout: Layout, ids: Ids) -> tuple[Ids, Block | None]:
        """As `tails`, in the layout of the schema's newest version."""
        found, block = self.tails(ids)
        if block is None or self.layout is layout:
            return found, block
        return found, Translation(block, self.layout, layout).read(0, len(block.records))

    def tails(self, ids: Ids) -> tuple[Ids, Block | None]:
        """Observations that follow the given steps of this writer, as they were written: from the tail slots, or from
        the successors that overwrote them. Each record carries the id of the step that it follows."""
        with self._lock:
            ids = ids[~gone.among(self.holes.unfollowed, ids["seq"])]
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
            later = [(i, s) for i in lost if (s := successor(self._blocks, i[1], self.rows)) is not None]
            seal = self._seal if len(later) < len(lost) else None
            if seal is not None and damaged(files, self.layout, self._is_evicted) > seal.lost_tails:
                raise CorruptionError(
                    f"the observation that waits after step {self.writer}:{lost[0][1]} is damaged",
                    remedy="`recollect verify` says what else is; restore the workspace from a backup or a buffer",
                )
        return joined(self.layout, found, block, later)

    def _open_tails(self, *, known: bool) -> list[TailFile]:
        return self._tails.open_(self.layout, self._is_evicted, known=known, keep=self._seal is None)

    def _is_evicted(self) -> bool:
        """Whether all segments of a log that cannot grow were evicted, noticed or not: its tails went with them."""
        if self.gone or not self.folder.is_dir():
            return True
        return self._seal is not None and read_first(self.folder).segment >= self._seal.segments
