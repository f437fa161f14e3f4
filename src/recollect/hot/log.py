"""Reading writers' logs: counters, segments, facts, tails. Takes no lock that an appending agent could wait for."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recollect.errors import CorruptionError
from recollect.hot.layouts import Layouts
from recollect.hot.seal import Seal, read_seal
from recollect.hot.segment import RESUMPTION, ROWS_MASK, Segment
from recollect.hot.tails import TailFile, damaged_slots, read_tails
from recollect.hot.translate import Translation
from recollect.records.block import Block, join_rows
from recollect.records.layout import FINAL, Layout
from recollect.view import EpisodeKey, Fact, Ids, StepId, make_ids


class Resumption(NamedTuple):
    """An episode goes on in this log.

    Attributes:
        key: the episode.
        row: rows of this log from here on may be its own.
        after: (writer, rows): they come after the rows below these counts.
        time_ns: when.
    """

    key: EpisodeKey
    row: int
    after: tuple[tuple[int, int], ...]
    time_ns: int


class WriterLog:
    """One writer's log, as far as it was published when `refresh` last looked.

    Attributes:
        writer: the writer's id.
        layout: what it was written in; the same for all its segments, since a writer keeps the schema it began with.
        rows, facts: published counts.
        resumed: episodes that go on in this log.
    """

    def __init__(self, folder: Path, layouts: Layouts) -> None:
        self.folder, self.layouts = folder, layouts
        self.layout = layouts.newest
        self.writer = int(folder.name, 16)
        self.segments: list[Segment] = []
        self.rows = self.facts = 0
        self._seal: Seal | None = None
        self.resumed: dict[EpisodeKey, Resumption] = {}
        self._scanned = 0
        self._facts: list[Fact] = []
        self._translations: dict[int, Translation] = {}
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
                if self.facts > self._scanned:
                    self._find_resumptions()

    def _count(self, last: Segment, word: int) -> None:
        header = last.header
        self.rows = header.first_row + min(word & ROWS_MASK, header.shape.rows)
        self.facts = header.first_fact + min(word >> 32, header.shape.facts)
        self._word = word

    def _watch(self) -> None:
        """Chooses what tells that nothing is new: the newest segment's control words. Whoever seals a log marks its
        segments first, so that no reader needs to look for the seal itself."""
        last = self.segments[-1] if self.segments else None
        if last is not self._newest:
            self._newest, self._watched = last, None if last is None else last.control_words()
        self._word = -1

    def _refresh(self) -> None:
        if not self.sealed:
            self._look()
            if self.facts > self._scanned:
                self._find_resumptions()

    def _look(self) -> None:
        seal = read_seal(self.folder)
        if seal is not None:
            while len(self.segments) < seal.segments:
                if not self._open_next():
                    raise CorruptionError(
                        f"segment {len(self.segments)} of writer {self.writer} is missing in {str(self.folder)!r}",
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
        return self._seal is not None

    @property
    def lost(self) -> tuple[int, int] | None:
        """Rows `[start, stop)` that recovery found damaged and cut off."""
        return None if self._seal is None else self._seal.lost

    @property
    def agent(self) -> str:
        """The name its writer was given."""
        return self.segments[0].header.agent if self.segments else ""

    @property
    def durable_rows(self) -> int:
        """Rows that a completed sync covered. A sealed log was flushed whole before its seal."""
        with self._lock:
            self._refresh()
        if self.sealed:
            return self.rows
        done = 0
        for segment in self.segments:
            rows = segment.durable_word & ROWS_MASK
            done = max(done, segment.header.first_row + rows if rows else 0)
        return min(done, self.rows)

    def _open_next(self) -> bool:
        path = self.folder / f"{len(self.segments):08d}.seg"
        if not path.exists():
            return False
        segment = Segment.open_(path, self.layouts)
        if self.segments and segment.layout is not self.layout:
            raise CorruptionError(f"segment {str(path)!r} has another schema than those before it")
        self.layout = segment.layout
        self.segments.append(segment)
        return True

    def pieces(self, start: int, stop: int) -> list[tuple[Block, int, int]]:
        """The blocks that hold rows `start` to `stop`, in order, as they were written, each row checked once.

        Raises:
            CorruptionError: a row is damaged, or not there.
        """
        out = []
        for k, segment in enumerate(self.segments):
            first = segment.header.first_row
            end = self.segments[k + 1].header.first_row if k + 1 < len(self.segments) else self.rows
            low, high = max(start, first), min(stop, end)
            if low < high:
                segment.checked.require_rows(low - first, high - first)
                out.append((segment.block, low - first, high - first))
        if sum(b - a for _, a, b in out) != max(0, stop - start):
            raise CorruptionError(
                f"writer {self.writer} has no rows {start} to {stop}",
                value=self.rows,
                remedy="The cut was made on another workspace, or the log was damaged",
            )
        return out

    def pieces_in(self, layout: Layout, start: int, stop: int) -> list[tuple[Block, int, int]]:
        """The same rows in the layout of the schema's newest version: those of an older one through a translation.

        Raises:
            SchemaMismatch: the log was written under a newer schema than `layout` has.
        """
        written = self.pieces(start, stop)
        if self.layout is layout:
            return written
        with self._lock:
            return [(self._translation(block, layout).read(low, high), low, high) for block, low, high in written]

    def _translation(self, block: Block, layout: Layout) -> Translation:
        """The one translation of a segment's block, kept for as long as the segment and the newest layout are."""
        known = self._translations.get(id(block))
        if known is None or known.source is not block or known.layout is not layout:
            known = self._translations[id(block)] = Translation(block, self.layout, layout)
            if len(self._translations) > len(self.segments):
                held = {id(s.block) for s in self.segments}
                self._translations = {k: t for k, t in self._translations.items() if k in held}
        return known

    def read_facts(self, stop: int) -> list[Fact]:
        """Facts below `stop`, parsed once per process."""
        with self._lock:
            return self._read_facts(stop)

    def _read_facts(self, stop: int) -> list[Fact]:
        for k, segment in enumerate(self.segments):
            if len(self._facts) >= stop:
                break
            first = segment.header.first_fact
            end = self._facts_end(k)
            if end <= len(self._facts):
                continue
            segment.checked.require_facts(min(stop, end) - first)
            for row in range(len(self._facts) - first, min(stop, end) - first):
                self._facts.append(_parse(segment, row))
        return self._facts[:stop]

    def has_step_facts(self, stop: int) -> bool:
        """Whether any fact below `stop` is about a step rather than an episode."""
        for k, segment in enumerate(self.segments):
            count = min(stop, self._facts_end(k)) - segment.header.first_fact
            if count > 0:
                segment.checked.require_facts(count)
                if (segment.facts["step_seq"][:count] >= 0).any():
                    return True
        return False

    def tails_in(self, layout: Layout, ids: Ids) -> tuple[Ids, Block | None]:
        """As `tails`, in the layout of the schema's newest version."""
        found, block = self.tails(ids)
        if block is None or self.layout is layout:
            return found, block
        return found, Translation(block, self.layout, layout).read(0, len(block.records))

    def step_facts(self, start: int, stop: int) -> list[Fact]:
        """The facts from `start` to `stop` that are about steps."""
        out = []
        for k, segment in enumerate(self.segments):
            first = segment.header.first_fact
            low, high = max(start, first) - first, min(stop, self._facts_end(k)) - first
            if low < high:
                segment.checked.require_facts(high)
                about = segment.facts["step_seq"][low:high]
                out += [_parse(segment, low + int(row)) for row in np.flatnonzero(about >= 0)]
        return out

    def tails(self, ids: Ids) -> tuple[Ids, Block | None]:
        """Observations that follow the given steps of this writer, as they were written: from the tail slots, or from
        the successors that overwrote them. Each record carries the id of the step that it follows."""
        with self._lock:
            files = self._open_tails(known=True)
            found, block = read_tails(files, ids, self.layout)
            if len(found) < len(ids):
                files = self._open_tails(known=False)
                if self._seal is not None and len(files) < self._seal.tails:
                    raise CorruptionError(f"a tails file of writer {self.writer} is missing in {str(self.folder)!r}")
                found, block = read_tails(files, ids, self.layout)
            have = set(found.tolist())
            lost = [i for i in ids.tolist() if i not in have]
            if not lost:
                return found, block
            self._refresh()
            later = [(i, s) for i in lost if (s := self._successor(i[1])) is not None]
            gone = self._seal is not None and len(later) < len(lost)
            paths = [file.path for file in files] if gone else []
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

    def _open_tails(self, *, known: bool) -> list[TailFile]:
        """The maps of the tails files, or of those that are mapped already. They are numbered in the order of their
        creation, and none goes away. A log that cannot grow is seldom asked, and gives its maps up."""
        files = self._tail_files
        if not known:
            while (path := self.folder / f"{len(files):08d}.tails").exists():
                files.append(TailFile.open_(path, self.layout))
        if self._seal is not None:
            self._tail_files = []
        return files

    def _successor(self, seq: int) -> Block | None:
        """The row after step `seq` of the same episode, as a block of one, None when there is none in this log."""
        (block, row, _) = self.pieces(seq, seq + 1)[0]
        mine = block.records[row]
        for piece, start, stop in self.pieces(seq + 1, self.rows):
            records = piece.records[start:stop]
            hit = np.flatnonzero(
                (records["episode"] == mine["episode"]) & (records["episode_writer"] == mine["episode_writer"])
            )
            if len(hit):
                at = start + int(hit[0])
                return Block(piece.records[at : at + 1], piece.planes, piece.heap, piece.owner)
        return None


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
