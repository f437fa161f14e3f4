"""`verify --repair`: what cannot be read is given up, by id, so that everything else can be read again.

What is damaged becomes a hole of its log (`holes`): rows and facts that fail their checksum, segments that are missing
or unreadable. No byte of a record is changed. Each note is replaced as a whole, so a repair that is killed leaves a
state that the next one goes on from; a repair of a workspace that is whole changes nothing (design/0018).
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from recollect.errors import CorruptionError, RecollectError, StoreError
from recollect.hot.format.evicted import NAME as EVICTED
from recollect.hot.format.evicted import Evicted, read_evicted, write_evicted
from recollect.hot.format.files import lock_when_free, locked, os_errors, replace_file, writers_folders
from recollect.hot.format.first import NAME as FIRST
from recollect.hot.format.first import First, read_first, write_first
from recollect.hot.format.holes import DAMAGED, Hole, Holes, Lost, is_whole, ranges_of, read_holes, write_holes
from recollect.hot.format.layouts import Layouts
from recollect.hot.format.seal import read_seal, seal
from recollect.hot.format.segment import ROWS_MASK, Segment
from recollect.hot.format.tails import TailFile
from recollect.hot.recovery.check import LogCheck
from recollect.hot.recovery.findings import Findings
from recollect.hot.recovery.recover import WAIT_S, recover_log
from recollect.records.layout import FINAL, HAS_NEXT, Layout
from recollect.view import Extent, StepId
from recollect.view.reach import Ranges, union, within, without

ROUNDS = 4
"""Looks at one log: what is given up may show that more is, such as an observation that waited for a lost row."""


@dataclass
class Repair:
    """What a repair gave up.

    Attributes:
        rows: ids of rows that are gone from now on.
        facts: ids of facts likewise.
        cut_off: id from which on a log lost whole segments and its seal, so that nobody can name the rows.
        undrawable: ids of steps whose waiting observation is gone; they can be read, not drawn.
        notes: files that were written anew, as seen from the workspace's folder.
        failed: logs that could not be repaired, and why.
    """

    rows: list[Extent] = field(default_factory=list)
    facts: list[Extent] = field(default_factory=list)
    cut_off: list[StepId] = field(default_factory=list)
    undrawable: list[Extent] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)

    @property
    def changed(self) -> bool:
        """Whether there was anything to do."""
        return bool(self.rows or self.facts or self.cut_off or self.undrawable or self.notes)


def repair_logs(path: Path, layouts: Layouts) -> Repair:
    """Gives up what is damaged in a workspace's logs. Live writers go on meanwhile.

    Raises:
        ConflictError: an eviction, or another repair, did not end.
        StoreError: the folder cannot be written.
    """
    out = Repair()
    folder = path / "log"
    if not folder.is_dir():
        return out
    known = False
    with os_errors("repairing", path), locked(path / "evict.lock", WAIT_S):
        evicted = _evicted(folder, out)
        for log in writers_folders(folder):
            if int(log.name, 16) in evicted.leaving:
                continue
            try:
                one = _Log(log, layouts, out)
                one.repair()
                known = known or bool(one.holes.holes)
            except FileNotFoundError:
                if log.is_dir():
                    raise
            except CorruptionError as e:
                out.failed.append(f"log/{log.name}: {e.message}")
        if known or out.changed:  # one that was killed may have noted what is gone without saying so
            tell(folder)
    return out


def tell(folder: Path) -> None:
    """Makes every reader look at what is gone, by a new generation. `evict.lock` is held by whoever calls."""
    evicted = read_evicted(folder)
    write_evicted(folder, replace(evicted, generation=evicted.generation + 1))


def _evicted(folder: Path, out: Repair) -> Evicted:
    try:
        return read_evicted(folder)
    except CorruptionError:
        # How much went with logs that are gone is not known any more, nor how far resumed episodes had got.
        anew = Evicted(generation=time.time_ns(), writers=1)
        write_evicted(folder, anew)
        out.notes.append(EVICTED)
        return anew


class _Log:
    """The repair of one log."""

    def __init__(self, folder: Path, layouts: Layouts, out: Repair) -> None:
        self.folder, self.layouts, self.out = folder, layouts, out
        self.writer = int(folder.name, 16)
        self.holes = read_holes(folder)

    def repair(self) -> None:
        lock = lock_when_free(self.folder / "lock")
        try:
            if not is_whole(self.folder):
                write_holes(self.folder, self.holes)
                self.out.notes.append(f"log/{self.folder.name}/holes.json")
            self._first()
            for _ in range(ROUNDS):
                before = self.holes
                self._look(live=lock is None)
                if lock is not None:
                    self._end()
                    self._tails()
                self._waiting()
                if self.holes is before:
                    break
        finally:
            if lock is not None:
                lock.close()

    def _give_up(self, rows: Ranges = (), facts: Ranges = (), segments: tuple[Lost, ...] = (), **more: Ranges) -> None:
        """Notes what is gone; what was noted before changes nothing."""
        hole = Hole(DAMAGED, time.time_ns(), True, rows, facts)
        self._write(self.holes.with_more(hole, segments=segments, **more))

    def _write(self, holes: Holes) -> None:
        old = self.holes
        if holes is old:
            return
        write_holes(self.folder, holes)
        self.holes = holes
        pairs = ((self.out.rows, "rows"), (self.out.facts, "facts"), (self.out.undrawable, "unfollowed"))
        for found, name in pairs:
            found += (Extent(self.writer, a, b) for a, b in without(getattr(holes, name), getattr(old, name)))

    # -- the log's beginning and end -----------------------------------------------------------------------

    def _first(self) -> None:
        """Makes the note of the log's beginning anew, where it is damaged, from the oldest segment there is."""
        try:
            read_first(self.folder)
            return
        except CorruptionError:
            pass
        headers = [s.header for s in self._segments().values()]
        if not headers:
            raise CorruptionError("neither its beginning nor any segment can be read")
        oldest = headers[0]
        # Its episodes may have lost rows and facts; none of them may pass for one that never had any.
        first = First(
            oldest.index, oldest.first_row, oldest.first_fact, oldest.agent,
            evicted_facts=oldest.first_fact, next_episode=1 << 62,
        )  # fmt: skip
        write_first(self.folder, first)
        self.out.notes.append(f"log/{self.folder.name}/{FIRST}")

    def _end(self) -> None:
        """Seals the log, if nobody did; its seal then says nothing any more of what was cut off, the note does."""
        try:
            known = read_seal(self.folder)
        except CorruptionError:
            known = None
        rolled = False
        if known is None:
            left = list(self._segments().values())
            rolled = bool(left) and left[-1].rolled  # so another one followed, of which nothing is left
            recover_log(self.folder, self.layouts)
            known = read_seal(self.folder)
            assert known is not None
            self.out.notes.append(f"log/{self.folder.name}/sealed.json")
            self._look(live=False)
        numbers = [int(p.stem) for p in self.folder.glob("*.seg") if int(p.stem) >= known.segments]
        beyond = tuple(Lost(n, known.rows, known.facts) for n in numbers)
        rows = () if known.lost is None else (known.lost,)
        facts = ((known.facts, known.facts + known.lost_facts),) if known.lost_facts else ()
        self._give_up(rows, facts, beyond)
        if known.lost_segments or rolled:
            self.out.cut_off.append(StepId(self.writer, known.rows))
        told = replace(known, lost=None, lost_facts=0, lost_segments=0)
        if told != known:
            seal(self.folder, told)

    # -- rows and facts ------------------------------------------------------------------------------------

    def _segments(self) -> dict[int, Segment]:
        """The readable segments that were not given up, by number."""
        out = {}
        for file in sorted(self.folder.glob("*.seg")):
            if not file.stem.isdecimal() or self.holes.is_lost(file):
                continue
            try:
                segment = Segment.open_(file, self.layouts)
            except StoreError:
                if file.exists():
                    raise
                continue
            except (RecollectError, ValueError, KeyError, TypeError):
                continue
            if (segment.header.writer, segment.header.index) == (self.writer, int(file.stem)):
                out[segment.header.index] = segment
        return out

    def _look(self, *, live: bool) -> None:
        """Finds what is not whole below the log's end, and gives it up."""
        first = read_first(self.folder)
        try:
            end = read_seal(self.folder)
        except CorruptionError:
            end = None
        known = self._segments()
        segments = [s for n, s in known.items() if n >= first.segment and (end is None or n < end.segments)]
        if end is None and not segments:
            return  # recovery says what is left of a dead log
        ends = [*((s.header.first_row, s.header.first_fact) for s in segments[1:])]
        if end is not None:
            ends.append((end.rows, end.facts))
        else:
            ends.append(self._published(segments[-1], live))
        stop = end.segments if end is not None else segments[-1].header.index + 1
        lost = []
        behind = ends[-1]
        for number in range(stop - 1, first.segment - 1, -1):
            segment = known.get(number)
            if segment is not None:
                behind = (segment.header.first_row, segment.header.first_fact)
            elif self.holes.behind(number) is None:
                lost.append(Lost(number, *behind))
        whole_rows: list[tuple[int, int]] = []
        whole_facts: list[tuple[int, int]] = []
        for segment, (row, fact) in zip(segments, ends, strict=bool(segments)):
            segment.checked.forgive(self.holes.damaged_rows, self.holes.facts)
            whole_rows += _whole_rows(segment, row)
            whole_facts += _whole_facts(segment, fact)
        top = ends[-1]
        found = without(without(((first.row, top[0]),), union(whole_rows)), self.holes.damaged_rows)
        self._give_up(found, without(((first.fact, top[1]),), union(whole_facts)), tuple(lost))
        if found and self.layouts.newest.schema.observations:
            self._doubtful(segments, ends, found)

    @staticmethod
    def _published(segment: Segment, live: bool) -> tuple[int, int]:
        """Up to where the newest segment of a log without a seal is looked at. A dead one is cut off by recovery at the
        first damage behind what a sync had covered."""
        word, shape = segment.word if live else segment.durable_word, segment.header.shape
        return (
            segment.header.first_row + min(word & ROWS_MASK, shape.rows),
            segment.header.first_fact + min(word >> 32, shape.facts),
        )

    def _doubtful(self, segments: list[Segment], ends: list[tuple[int, int]], found: Ranges) -> None:
        """Gives up the steps that may follow a damaged row as if it was not there.

        Where an environment jumped, a row of its own keeps what was seen before the jump, right before the next step,
        or right behind the resumption of its episode. Without it that step's observation would pass for what was seen.
        """
        doubtful = [b for _, b in found]
        for segment, (row, _) in zip(segments, ends, strict=True):
            begin, size = segment.header.first_row, min(row - segment.header.first_row, segment.header.shape.rows)
            records = segment.records[:size]
            for number in doubtful:
                k = number - begin
                if not 0 <= k < size or within(self.holes.rows, number, number + 1):
                    continue
                record = records[k]
                alone = record["frame"] == 1 and record["step"] > 0 and not record["flags"] & FINAL
                if alone and self._may_follow(segments, number, record):
                    self._doubt(number)
        for key, row in self._resumed(segments):
            if within(found, row, row + 1):
                for segment, (stop, _) in zip(segments, ends, strict=True):
                    begin = segment.header.first_row
                    records = segment.records[: max(0, min(stop - begin, segment.header.shape.rows))]
                    mine = np.flatnonzero((records["episode"] == key[1]) & (records["episode_writer"] == key[0]))
                    mine = mine[mine + begin > row]
                    if len(mine):
                        self._doubt(int(mine[0]) + begin)
                        break

    def _doubt(self, number: int) -> None:
        """Gives up a row that is whole."""
        hole = Hole(f"{DAMAGED}: the row before it", time.time_ns(), False, ((number, number + 1),))
        self._write(self.holes.with_more(hole))

    def _may_follow(self, segments: list[Segment], number: int, record: np.void) -> bool:
        """Whether the step before that of `record` is there, with a next observation of its own, or lies elsewhere."""
        for segment in reversed(segments):
            begin = segment.header.first_row
            records = segment.records[: max(0, min(number - begin, segment.header.shape.rows))]
            same = (records["episode"] == record["episode"]) & (records["episode_writer"] == record["episode_writer"])
            for k in np.flatnonzero(same)[::-1].tolist():
                if within(self.holes.rows, begin + k, begin + k + 1):
                    continue
                before = records[k]
                return bool(before["step"] == record["step"] - 1 and before["flags"] & HAS_NEXT) and not bool(
                    before["flags"] & FINAL
                )
        return bool(record["episode_writer"] != self.writer)

    def _resumed(self, segments: list[Segment]) -> list[tuple[tuple[int, int], int]]:
        """Episodes that go on in this log, and the row from which on."""
        from recollect.hot.format.parse import resumption
        from recollect.hot.format.segment import RESUMPTION

        out = []
        for segment in segments:
            facts = np.flatnonzero(segment.facts["kind"] == RESUMPTION)
            for k in facts.tolist():
                gone = within(self.holes.facts, segment.header.first_fact + k, segment.header.first_fact + k + 1)
                if not gone and segment.checked.whole_facts(k, k + 1) == k + 1:
                    said = resumption(segment, k)
                    out.append(((said.key.writer, said.key.counter), said.row))
        return out

    # -- waiting observations ------------------------------------------------------------------------------

    def _tails(self) -> None:
        """Makes the tails files whole: a slot that is damaged becomes an empty one."""
        known = read_seal(self.folder)
        assert known is not None
        if read_first(self.folder).segment >= max(1, known.segments):
            return  # they went with the segments
        layout = next((s.layout for s in self._segments().values()), self.layouts.newest)
        numbers = [int(p.stem) for p in self.folder.glob("*.tails") if p.stem.isdecimal()]
        for number in range(max([known.tails, *(n + 1 for n in numbers)])):
            self._tail_file(self.folder / f"{number:08d}.tails", layout)
        if known.lost_tails:
            seal(self.folder, replace(known, lost_tails=0))

    def _tail_file(self, path: Path, layout: Layout) -> None:
        try:
            file = TailFile.open_(path, layout)
        except (CorruptionError, StoreError):
            path.with_name(f".{path.name}.new").unlink(missing_ok=True)
            TailFile.create(path, layout).close()
            self.out.notes.append(f"log/{self.folder.name}/{path.name}")
            return
        bad = [k for k in range(len(file.records)) if not _is_whole_slot(file, k)]
        if bad:
            replace_file(path, blanked(file, np.array(bad)))
            self.out.notes.append(f"log/{self.folder.name}/{path.name}")

    def _waiting(self) -> None:
        """Gives up the observations that waited and are nowhere to be found."""
        check = LogCheck(self.folder, self.layouts, Findings())
        check.run(lambda _: None)
        if check.untailed:
            self._give_up(unfollowed=ranges_of(np.array(sorted(check.untailed), np.int64)))


def _is_whole_slot(file: TailFile, slot: int) -> bool:
    record = file.records[slot]
    return (record["writer"] == -1 and record["crc"] == 0) or file.checksum(slot) == int(record["crc"])


def blanked(file: TailFile, slots: NDArray[np.int64]) -> bytes:
    """The bytes of a tails file with some slots emptied."""
    raw = bytearray(file.map[:])
    at = file.layout.offset("writer")
    for slot in slots.tolist():
        begin = file.slot_at(slot)
        raw[begin : begin + file.slot_bytes] = bytes(file.slot_bytes)
        raw[begin + at : begin + at + 8] = b"\xff" * 8
    return bytes(raw)


def _whole_rows(segment: Segment, stop: int) -> Ranges:
    """The rows of a segment that lie in whole frames, up to row `stop` of the log."""
    records, first = segment.records, segment.header.first_row
    count = max(0, min(stop - first, segment.header.shape.rows))
    out: list[tuple[int, int]] = []
    at = 0
    while at < count:
        end = min(count, segment.checked.whole_rows(at, count))
        if end > at:
            out.append((first + at, first + end))
        if end >= count:
            break
        # Nothing tells how long a damaged frame was: the next whole one is looked for.
        starts = end + 1 + np.flatnonzero(records["frame"][end + 1 : count])
        at = next((s for s in starts.tolist() if segment.checked.whole_rows(s, s + 1) > s), count)
    return tuple(out)


def _whole_facts(segment: Segment, stop: int) -> Ranges:
    """The facts of a segment that are whole, up to fact `stop` of the log."""
    first = segment.header.first_fact
    count = max(0, min(stop - first, segment.header.shape.facts))
    bad = []
    at = 0
    while at < count:
        at = segment.checked.whole_facts(at, count)
        if at < count:
            bad.append((first + at, first + at + 1))
            at += 1
    return without(((first, first + count),), bad)
