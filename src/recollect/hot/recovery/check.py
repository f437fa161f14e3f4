"""The check of one writer's log: its segments, counters, rows, facts, waiting observations and notes. Reads only."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recollect.errors import CorruptionError, RecollectError, StoreError
from recollect.hot.format.files import is_locked
from recollect.hot.format.first import NAME as FIRST
from recollect.hot.format.first import First, read_first
from recollect.hot.format.holes import NAME as HOLES
from recollect.hot.format.holes import NONE, Holes, count, is_whole, read_holes
from recollect.hot.format.layouts import Layouts
from recollect.hot.format.seal import NAME as SEAL
from recollect.hot.format.seal import Seal, read_seal
from recollect.hot.format.segment import ROWS_MASK, ROWS_PER_APPEND, Segment
from recollect.hot.format.tails import TailFile, read_tails
from recollect.hot.recovery.findings import Findings
from recollect.records.layout import FINAL, HAS_NEXT, TERMINATED, TRUNCATED, frame_rows
from recollect.view import EpisodeKey, Extent
from recollect.view.reach import within, without

CHUNK_ROWS = 1 << 16
LEFT_OVER_S = 60.0
"""Age at which a file that should have got its name is taken for a leftover."""
_RESTORE = "Restore the workspace from a backup, or give up what is damaged: recollect verify NAME --repair"
_GONE = "What is there can be used; --repair takes note of what is not, a backup may have it"
_REPAIR = "Run recollect verify NAME --repair"
_OPEN = "Open the workspace: recovery goes by the rows that are whole"


def is_leftover(path: Path) -> bool:
    """Whether a file that should have got its name is too old to get it still."""
    try:
        return time.time() - path.stat().st_mtime > LEFT_OVER_S
    except OSError:
        return False


class LogCheck:
    """The check of one writer's log. What counts as published is read when it is made; the log may grow meanwhile."""

    def __init__(self, folder: Path, layouts: Layouts, found: Findings) -> None:
        self.folder, self.layouts, self.layout, self.found = folder, layouts, layouts.newest, found
        self.writer = int(folder.name, 16)
        self.live = _is_live(folder)
        self.waiting: dict[EpisodeKey, int] = {}
        self.first_is_damaged = False
        self.seal: Seal | None = None
        self._read_seal()
        self.holes = self._read_holes()
        self.untailed: set[int] = set()
        """Steps whose waiting observation is lost."""
        self.segments: list[_Part] = []
        first = self._read_first()
        self.beyond: list[Path] = []
        for file in sorted(folder.glob("*.seg")):
            if self.holes.is_lost(file):
                continue
            if self.seal is not None and file.name >= f"{self.seal.segments:08d}":
                self.beyond.append(file)
            elif file.name >= f"{first.segment:08d}":
                self._open(file)
        self.first = self._read_first()  # an eviction may have moved it before all was open
        kept = self.first.segment if folder.is_dir() else 1 << 62
        self.segments = [part for part in self.segments if part.segment.header.index >= kept]
        self.published = sum(part.rows for part in self.segments)

    def run(self, progress: Callable[[int], None]) -> None:
        found = self.found
        if not self.segments and not self.first.facts and (self._is_evicted() or self._is_nothing()):
            return
        found.facts += len(self.first.facts)
        found.writers += 1
        found.live += self.live
        found.unsealed += not self.live and self.seal is None and bool(self.segments)
        headless = not self.segments and self.seal is None and not self.live and not self.first.segment
        if headless and next(self.folder.glob("*.tails"), None) is not None:
            what = "every segment is missing or unreadable, though observations wait"
            found.add("lost", self._name(self.folder / "00000000.seg"), what, _RESTORE)
        self._continuity()
        for part in self.segments:
            found.segments += 1
            self._counters(part)
            self._rows(part, progress)
            self._facts(part)
        self._tails()
        if self.seal is not None:
            self._cut_off(self.seal)
        if self.seal is not None:  # an open removes what others left
            for item in self.folder.glob(".*"):
                if item.name.endswith(".new") or is_leftover(item):
                    found.add("harmless", self._name(item), "a file that never got its name", "Remove it by hand")

    def _cut_off(self, seal: Seal) -> None:
        """Tells what recovery could not keep, and what it left beyond the end."""
        name, parts = self._name(self.folder / SEAL), []
        gap: tuple[Extent, ...] = ()
        if seal.lost is not None:
            gap = (Extent(self.writer, *seal.lost),)
            parts.append(f"{seal.lost[1] - seal.lost[0]:,} rows")
        if seal.lost_facts:
            parts.append(f"{seal.lost_facts:,} facts from {self.writer}:{seal.facts} on")
        if seal.lost_segments:
            parts.append(f"{seal.lost_segments:,} segments that were missing or could not be read")
        if parts:
            self.found.add("lost", name, f"recovery cut it off: {', '.join(parts)}", _GONE, gap, cut_off=True)
        if seal.lost_tails:  # most follow no step: a writer died while it wrote one
            what = f"{seal.lost_tails:,} waiting observations were damaged when its writer had died"
            self.found.add("harmless", name, what, "Nothing: a step that lacks its own is reported")
        for file in self.beyond:
            what = f"it lies beyond the log's end: its seal counts {seal.segments:,} segments"
            self.found.add("lost", self._name(file), what, _GONE, cut_off=True)

    def _name(self, path: Path) -> str:
        return f"log/{self.folder.name}/{path.name}"

    def _read_seal(self) -> None:
        try:
            self.seal = read_seal(self.folder)
        except CorruptionError as e:
            self.found.add("repairable", self._name(self.folder / SEAL), e.message, _OPEN)

    def _read_holes(self) -> Holes:
        """What is known to be gone, which is passed over."""
        try:
            holes = read_holes(self.folder)
        except CorruptionError as e:
            self.found.add("lost", self._name(self.folder / HOLES), e.message, e.remedy or "")
            return NONE
        if not is_whole(self.folder):
            what = "the note of what is gone and its copy do not say the same"
            self.found.add("repairable", self._name(self.folder / HOLES), what, _REPAIR)
        return holes

    def _read_first(self) -> First:
        try:
            return read_first(self.folder)
        except CorruptionError as e:
            if not self.first_is_damaged:
                self.found.add("lost", self._name(self.folder / FIRST), e.message, e.remedy or "")
            self.first_is_damaged = True
            header = self.segments[0].segment.header if self.segments else None
            return First() if header is None else First(header.index, header.first_row, header.first_fact)

    def _is_evicted(self) -> bool:
        """Whether the log went whole since, its tails included."""
        if not self.folder.is_dir():
            return True
        return self.seal is not None and self._read_first().segment >= max(1, self.seal.segments)

    def _is_nothing(self) -> bool:
        """Whether the writer died before it had a log."""
        return (
            self.seal is not None and not self.beyond and self.seal == Seal(0, 0, 0, self.seal.clean, self.seal.resumed)
        )

    def _open(self, file: Path) -> None:
        try:
            segment = Segment.open_(file, self.layouts)
            self.layout = segment.layout
        except (RecollectError, ValueError, KeyError, TypeError) as e:
            if not (isinstance(e, StoreError) and not file.exists()):
                self.found.add("lost", self._name(file), f"the segment cannot be read: {e}", _RESTORE)
            return
        header = segment.header
        if header.writer != self.writer or f"{header.index:08d}.seg" != file.name:
            self.found.add("lost", self._name(file), "the segment belongs elsewhere", _RESTORE)
            return
        segment.checked.forgive(self.holes.damaged_rows, self.holes.facts)
        durable = segment.durable_word  # before the counter, which it must not pass
        word = segment.word
        self.segments.append(_Part(segment, self._name(file), durable, word))

    def _continuity(self) -> None:
        """Where each segment's rows and facts end, by its successor, the seal or its own counter."""
        rows, facts, number, holes = self.first.row, self.first.fact, self.first.segment, self.holes
        for k, part in enumerate(self.segments):
            header = part.segment.header
            rows, facts, number = holes.pass_over(rows, facts, number)
            if header.index != number:
                gap = (Extent(self.writer, rows, header.first_row),)
                self.found.add("lost", part.name, "a segment before it is missing", _RESTORE, gap)
            elif (header.first_row, header.first_fact) != (rows, facts):
                gap = (Extent(self.writer, min(rows, header.first_row), max(rows, header.first_row)),)
                said = "what the counter of the segment before it says"
                self.found.add("lost", part.name, f"it begins elsewhere than {said}", _RESTORE, gap)
            if self.seal is not None:
                after = self.segments[k + 1].segment.header if k + 1 < len(self.segments) else None
                if (behind := holes.behind(header.index + 1)) is not None:
                    part.end_at(*behind)
                elif after is None or after.index == header.index + 1:
                    ends = (self.seal.rows, self.seal.facts) if after is None else (after.first_row, after.first_fact)
                    part.end_at(*ends)
            rows, facts, number = header.first_row + part.rows, header.first_fact + part.facts, header.index + 1
        rows, facts, _ = holes.pass_over(rows, facts, number)
        if self.seal is not None and (rows < self.seal.rows or facts < self.seal.facts):
            gap = (Extent(self.writer, rows, self.seal.rows),)
            what = f"the seal counts {self.seal.rows:,} rows and {self.seal.facts:,} facts, the segments end before"
            self.found.add("lost", self._name(self.folder / SEAL), what, _RESTORE, gap)

    def _counters(self, part: _Part) -> None:
        segment, last = part.segment, part is self.segments[-1]
        shape = segment.header.shape
        counted = part.word & ROWS_MASK, part.word >> 32
        durable = part.durable & ROWS_MASK, part.durable >> 32
        here = (part.rows, part.facts)
        if counted != here:
            what = f"the counter says {counted[0]:,} rows and {counted[1]:,} facts, the log {here[0]:,} and {here[1]:,}"
            if self.seal is not None and not self.seal.clean and counted[0] <= here[0] and counted[1] <= here[1]:
                pass  # whole, and kept, though its writer died before it could count it
            elif self.seal is not None:
                self.found.add("harmless", part.name, what, "Nothing needs to be done: the seal counts")
            else:
                self.found.add("lost", part.name, f"{what} at most", _RESTORE)
        elif durable[0] > here[0] or durable[1] > here[1]:
            gone = f"{durable[0]:,} rows and {durable[1]:,} facts are noted as durable"
            gap = (Extent(self.writer, part.first + here[0], part.first + durable[0]),)
            self.found.add("lost", part.name, f"{gone}, {here[0]:,} and {here[1]:,} are there", _RESTORE, gap)
        if self.live or self.seal is not None:
            return
        if not last and not segment.rolled and self.segments[-1].word:
            self.found.add("repairable", part.name, "it does not say that another segment follows", _OPEN)
        # A writer may die between an append's frames and their counter, but not in the append after it.
        one = part.rows
        for _ in range(ROWS_PER_APPEND):
            one += frame_rows(segment.records, one) if one < shape.rows else 0
        end = _whole_rows(segment, part.rows, shape.rows) if last else 0
        if end > one:
            gap = (Extent(self.writer, part.first + part.rows, part.first + end),)
            self.found.add("repairable", part.name, "the counter is behind the rows that are there", _OPEN, gap)
        fact_end = segment.checked.whole_facts(part.facts, shape.facts) if last else 0
        if fact_end > part.facts + 1:  # each is counted before the next is written
            what = f"the counter is behind the facts that are there: {part.facts:,} of {fact_end:,}"
            self.found.add("repairable", part.name, what, _OPEN)

    def _rows(self, part: _Part, progress: Callable[[int], None]) -> None:
        bad: list[Extent] = []
        records, at = part.segment.records, 0
        while at < part.rows:
            end = _whole_rows(part.segment, at, part.rows)
            for low in range(at, end, CHUNK_ROWS):
                high = min(end, low + CHUNK_ROWS)
                for a, b in without(((part.first + low, part.first + high),), self.holes.rows):
                    self._follow(records[a - part.first : b - part.first], a)
                    self.found.rows += b - a
                progress(self.found.rows)
            if end < part.rows:
                # Nothing tells how long a damaged frame was: the next whole one is looked for.
                starts = end + 1 + np.flatnonzero(records["frame"][end + 1 : part.rows])
                next_ = next((s for s in starts.tolist() if _whole_rows(part.segment, s, part.rows) > s), part.rows)
                bad.append(Extent(self.writer, part.first + end, part.first + next_))
                end = next_
            at = end
        if bad:
            count = sum(e.stop - e.start for e in bad)
            self.found.add("lost", part.name, f"{count:,} rows fail their checksum", _RESTORE, bad)

    def _follow(self, records: NDArray[np.void], first: int) -> None:
        """Notes the steps whose next observation waits in a tail slot: the last of an episode that goes on."""
        writers, counters = records["episode_writer"], records["episode"]
        order = np.lexsort((np.arange(len(records)), counters, writers))
        last = np.ones(len(order), np.bool_)
        last[:-1] = np.diff(counters[order]) != 0
        last[:-1] |= np.diff(writers[order]) != 0
        for row in order[last].tolist():
            flags = int(records["flags"][row])
            key = EpisodeKey(int(writers[row]), int(counters[row]))
            if flags & HAS_NEXT and not flags & (FINAL | TERMINATED | TRUNCATED):
                self.waiting[key] = first + row
            else:
                self.waiting.pop(key, None)

    def _facts(self, part: _Part) -> None:
        bad = []
        first = part.segment.header.first_fact
        for row in range(part.facts):
            if part.segment.checked.whole_facts(row, row + 1) == row:
                bad.append(first + row)
        self.found.facts += part.facts - len(bad) - count(within(self.holes.facts, first, first + part.facts))
        if bad:
            shown = ", ".join(f"{self.writer}:{seq}" for seq in bad[:8]) + (" …" if len(bad) > 8 else "")
            self.found.add("lost", part.name, f"{len(bad):,} facts fail their checksum: {shown}", _RESTORE)

    def _tails(self) -> None:
        files = []
        for path in sorted(self.folder.glob("*.tails")):
            try:
                files.append(TailFile.open_(path, self.layout))
            except CorruptionError as e:
                self.found.add("lost", self._name(path), e.message, _RESTORE)
            except StoreError:
                if path.exists():
                    raise
        if self._is_evicted():
            return
        # What a live writer appended meanwhile takes the place of what waited; a sealed log ends at its seal.
        missing = set(self.waiting.values())
        if self.live and self._moved():
            return
        if missing:
            ids = np.array([(self.writer, seq) for seq in sorted(missing)], dtype=[("writer", "<i8"), ("seq", "<i8")])
            missing -= {seq for _, seq in read_tails(files, ids, self.layout)[0].tolist()}
        missing -= {seq for seq in missing if within(self.holes.unfollowed, seq, seq + 1)}
        if missing and not (self.live and self._moved()):
            rows = [Extent(self.writer, seq, seq + 1) for seq in sorted(missing)]
            what = f"the observations that waited after {len(missing):,} steps are gone, which cannot be drawn"
            name = self._name(self.folder / "00000000.tails")
            if min(missing) < self._durable_rows() or self._slots_were_damaged_since(files):
                self.untailed = missing
                self.found.add("lost", name, what, _RESTORE, rows)
            elif self.seal is None:
                self.found.add("repairable", name, f"{what}; no sync had reached them", _OPEN, rows)
            else:
                what = f"{what}; no sync had reached them when the writer died"
                self.found.add("harmless", name, what, "Nothing: all that a sync had reached is there", rows)

    def _durable_rows(self) -> int:
        """How many rows a sync had covered when the writer died, and with them what waited after them; all of a log
        that was closed, or may still grow."""
        if self.live or (self.seal is not None and self.seal.clean):
            return 1 << 62
        return max((part.first + (part.durable & ROWS_MASK) for part in self.segments), default=0)

    def _slots_were_damaged_since(self, files: Sequence[TailFile]) -> bool:
        """Whether more slots are damaged than recovery found; before it, nobody knows."""
        seal = self.seal
        if seal is None:
            return False
        return len(files) < seal.tails or sum(file.damaged() for file in files) > seal.lost_tails

    def _moved(self) -> bool:
        last = self.segments[-1] if self.segments else None
        return last is not None and (last.segment.word != last.word or last.segment.rolled)


class _Part:
    """One segment, with its counters as they were when it was opened, and what of it is to be checked."""

    def __init__(self, segment: Segment, name: str, durable: int, word: int) -> None:
        self.segment, self.name, self.durable, self.word = segment, name, durable, word
        self.first = segment.header.first_row
        self.rows = min(word & ROWS_MASK, segment.header.shape.rows)
        self.facts = min(word >> 32, segment.header.shape.facts)

    def end_at(self, row: int, fact: int) -> None:
        """Takes the word of a seal or a successor for where it ends: after a power cut a counter may be older.

        Where no whole rows are behind the counter, it ends there all the same.
        """
        header, counted = self.segment.header, self.rows
        self.rows = min(max(0, row - header.first_row), header.shape.rows)
        self.facts = min(max(0, fact - header.first_fact), header.shape.facts)
        if self.rows > counted:
            self.rows = _whole_rows(self.segment, counted, self.rows)


def _is_live(folder: Path) -> bool:
    return not (folder / SEAL).exists() and is_locked(folder / "lock")


def _whole_rows(segment: Segment, start: int, stop: int) -> int:
    """Where the first frame from `start` that is damaged begins; `stop` where there is none."""
    return min(stop, segment.checked.whole_rows(start, stop))
