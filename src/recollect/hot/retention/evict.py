"""One eviction: what may go is chosen, noted durably, and only then unlinked.

Order of work, killed anywhere (design/0010): `evicted.json`, how far resumed episodes had got → `first.json` of each
log that loses segments → `evicted.json`, at which readers look → unlinking. What a killed eviction left behind is
removed by the next one. Evictions of one workspace take turns by a lock that nobody waits for.
"""

from __future__ import annotations

import contextlib
import shutil
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recollect.hot.format.evicted import write_evicted
from recollect.hot.format.files import os_errors, try_lock
from recollect.hot.format.first import First, Resumption, write_first
from recollect.hot.format.room import disk_bytes
from recollect.hot.format.segment import Segment
from recollect.hot.format.targets import read_home, trusted
from recollect.hot.keep import Choice, Keep, Parcel, choose
from recollect.hot.read.log import WriterLog
from recollect.hot.read.store import HotStore
from recollect.hot.retention.reached import highest, still_needed
from recollect.records.layout import TERMINATED, TRUNCATED
from recollect.view import EpisodeKey, Fact
from recollect.view.reach import Mark

LEAVING = ".evicted"
LOCK = "evict.lock"
"""Held while something is evicted, in the workspace's folder."""
_hashes: weakref.WeakKeyDictionary[Segment, NDArray[np.uint64]] = weakref.WeakKeyDictionary()


@dataclass(frozen=True)
class Eviction:
    """What went.

    Attributes:
        rows, facts, segments: how much; `bytes` what the segments took.
        dropped_rows, dropped_facts: of these, what the home buffer did not hold.
        waiting_rows: rows beyond the limits that wait for their promotion; `waiting_bytes` likewise.
        reason: why nothing counts as promoted, "" where that is not so.
        skipped: whether it was left to another eviction that was at work.
    """

    rows: int = 0
    facts: int = 0
    segments: int = 0
    bytes: int = 0
    dropped_rows: int = 0
    dropped_facts: int = 0
    waiting_rows: int = 0
    waiting_bytes: int = 0
    reason: str = ""
    skipped: bool = False


def weigh(store: HotStore, keep: Keep, now_ns: int) -> tuple[Choice, Mapping[int, Mark], str]:
    """What would go now, what the home buffer holds, and why that is nothing."""
    root = store.folder.parent
    marks, reason = trusted(root, read_home(root))
    logs = [log for log in list(store.logs.values()) if not log.gone]
    parcels = {log.writer: _parcels(log, marks.get(log.writer, Mark())) for log in logs}
    size = sum(disk_bytes(s.path) for log in logs for s in log.segments)
    if keep.bytes is not None:
        size += sum(disk_bytes(p) for log in logs for p in log.folder.glob("*.tails"))
    rows = sum(log.rows - log.first.row for log in logs)
    done = frozenset(log.writer for log in logs if log.sealed)
    return choose(keep, parcels, rows, size, now_ns, done), marks, reason


def evict(store: HotStore, keep: Keep, now_ns: int) -> Eviction | None:
    """Evicts what may go. None when another eviction is at work.

    Raises:
        StoreError: the folder cannot be written.
        CorruptionError: a note or segment is damaged.
    """
    with os_errors("evicting from", store.folder):
        lock = try_lock(store.folder.parent / LOCK)
        if lock is None:
            return None
        with lock:
            store.refresh()
            choice, _, reason = weigh(store, keep, now_ns)
            if any(choice.segments.values()) or any(
                log.sealed and not log.segments for log in list(store.logs.values())
            ):
                # One that was killed may have moved beginnings without saying so to those who had looked before.
                store.look_again()
                _sweep(store)
                return _Pass(store, keep, now_ns).run()
            _sweep(store)
            return Eviction(waiting_rows=choice.waiting_rows, waiting_bytes=choice.waiting_bytes, reason=reason)


def _sweep(store: HotStore) -> None:
    """Removes what evictions that were killed left behind."""
    for writer in store.evicted.leaving:
        _remove(store.folder, writer)
    for folder in store.folder.glob(f".*{LEAVING}"):
        shutil.rmtree(folder, ignore_errors=True)
    found = False
    for log in list(store.logs.values()):
        number = log.first.segment - 1
        while not log.gone and number >= 0 and (path := log.folder / f"{number:08d}.seg").exists():
            path.unlink(missing_ok=True)
            number, found = number - 1, True
    if found:
        write_evicted(store.folder, replace(store.evicted, generation=store.evicted.generation + 1))


def _remove(log: Path, writer: int) -> None:
    folder = log / f"{writer:016x}"
    with contextlib.suppress(FileNotFoundError):
        folder.rename(log / f".{folder.name}{LEAVING}")
        shutil.rmtree(log / f".{folder.name}{LEAVING}", ignore_errors=True)


def _parcels(log: WriterLog, mark: Mark) -> list[Parcel]:
    """The segments of a log that are not written any more."""
    segments = tuple(log.segments)
    out = []
    for k, segment in enumerate(segments if log.sealed else segments[:-1]):
        first, fact = segment.header.first_row, segment.header.first_fact
        last = k + 1 == len(segments)
        stop = log.rows if last else segments[k + 1].header.first_row
        fact_stop = log.facts if last else segments[k + 1].header.first_fact
        newest = segment.header.created_ns
        shape, kept = segment.header.shape, log.kept(first, stop)  # it may end before a segment that was given up
        if kept:
            newest = max(newest, int(segment.records["time"][min(kept[-1][1] - first, shape.rows) - 1]))
        if fact_stop > fact and not log.holes.facts:
            newest = max(newest, int(segment.facts["time"][fact_stop - fact - 1]))
        end = kept[-1][1] if kept else first
        promoted = not _lacking(log, mark, first, stop) and end <= mark.rows and fact_stop <= mark.facts
        out.append(Parcel(stop - first, fact_stop - fact, disk_bytes(segment.path), newest, promoted))
    return out


def _lacking(log: WriterLog, mark: Mark, start: int, stop: int) -> int:
    """How many of a log's rows are there and not promoted."""
    return sum(mark.lacking(a, b) for a, b in log.kept(start, stop))


class _Pass:
    """One eviction, with the lock in hand."""

    def __init__(self, store: HotStore, keep: Keep, now_ns: int) -> None:
        self.store = store
        self.choice, self.marks, self.reason = weigh(store, keep, now_ns)
        self.logs = {w: log for w, log in dict(store.logs).items() if not log.gone}
        self.stops: dict[int, tuple[int, int]] = {}
        """Writer → row and fact that its log begins with afterwards."""
        for writer, log in self.logs.items():
            count = self.choice.segments.get(writer, 0)
            if count < len(log.segments):
                header = log.segments[count].header
                self.stops[writer] = (header.first_row, header.first_fact)
            else:
                self.stops[writer] = (log.rows, log.facts)
        self.ended: set[EpisodeKey] = set()
        self.over: dict[int, set[EpisodeKey]] = {}
        """Writer → episodes whose end goes from its log: no row of theirs is left there."""
        self.reached = dict(store.evicted.reached)
        self.alive: set[EpisodeKey] = set()
        self.seen: dict[int, set[int]] = {}
        self.notes: dict[int, First] = {}

    def run(self) -> Eviction:
        choice = self.choice
        out = Eviction(waiting_rows=choice.waiting_rows, waiting_bytes=choice.waiting_bytes, reason=self.reason)
        going = {w: n for w, n in choice.segments.items() if n}
        for writer, count in going.items():
            self._scan(self.logs[writer], count)
        facts = {w: self._facts_at_stake(log, w in going) for w, log in self.logs.items()}
        keys = {f.episode for found in facts.values() for f in found}
        keys |= {key for w in going for key in self.logs[w].resumed} | self.reached.keys()
        keys |= {EpisodeKey(w, c) for w in going for c in self.seen[w] | set(self.logs[w].first.open)}
        self.alive = _alive(keys, self._hashes_left())
        self.notes = {w: self._beginning(self.logs[w], n, facts[w]) for w, n in going.items()}
        leaving: dict[int, First] = {}
        changed: dict[int, First] = {}
        for writer, log in self.logs.items():
            note, count = self.notes.get(writer, log.first), going.get(writer, 0)
            kept = tuple(f for f in facts[writer] if self._needed(f))
            row, fact = self.stops[writer]
            mark = self.marks.get(writer, Mark())
            lost = len(facts[writer]) - len(kept)
            missed = sum(f.seq >= mark.facts for f in facts[writer]) - sum(f.seq >= mark.facts for f in kept)
            after = replace(
                note,
                facts=kept,
                resumed=self._still_resumed(log) if count else log.first.resumed,
                closed=self._still_closed(log) if count else log.first.closed,
                evicted_facts=fact - len(kept),
                dropped_rows=note.dropped_rows + _lacking(log, mark, log.first.row, row),
                dropped_facts=note.dropped_facts + missed,
            )
            if log.sealed and count == len(log.segments) and not kept:
                leaving[writer] = after
            elif count or len(kept) < lost:
                changed[writer] = after
            else:
                continue
            out = replace(
                out,
                rows=out.rows + row - log.first.row,
                facts=out.facts + lost,
                segments=out.segments + count,
                bytes=out.bytes + sum(disk_bytes(s.path) for s in log.segments[:count]),
                dropped_rows=out.dropped_rows + after.dropped_rows - log.first.dropped_rows,
                dropped_facts=out.dropped_facts + missed,
            )
        if changed or leaving:
            self._carry_out(changed, leaving)
        return out

    def _still_resumed(self, log: WriterLog) -> tuple[Resumption, ...]:
        """The resumptions noted in what goes, of episodes that keep a row or may still get one here. Those of an
        episode whose end went from here explain no row any more."""
        over = self.over[log.writer]
        facts = log.read_facts(self.stops[log.writer][1])
        gone = {f.episode for f in facts if f.seq >= log.first.fact} | {r.key for r in log.first.resumed}
        return tuple(
            r
            for key, found in sorted(log.resumed.items())
            if key in gone and key not in over
            if key in self.alive or not (log.sealed or key in self.ended or key in log.closed)
            for r in found
        )

    def _still_closed(self, log: WriterLog) -> tuple[tuple[EpisodeKey, int], ...]:
        """The closings noted in what goes, of episodes that keep a row: without one, nobody goes on with them."""
        stop = self.stops[log.writer][1]
        return tuple((key, seq) for key, seq in sorted(log.closed.items()) if seq < stop and key in self.alive)

    def _facts_at_stake(self, log: WriterLog, going: bool) -> list[Fact]:
        return log.read_facts(self.stops[log.writer][1]) if going else list(log.first.facts)

    # -- which facts are still needed ----------------------------------------------------------------------

    def _scan(self, log: WriterLog, count: int) -> None:
        """Notes the episodes whose rows go, which of them end there, and how far those had got that were resumed."""
        mine, over_here = self.seen.setdefault(log.writer, set()), self.over.setdefault(log.writer, set())
        for block, start, stop in log.pieces(log.first.row, self.stops[log.writer][0]):
            records = block.records[start:stop]
            mine |= set(np.unique(records["episode"][records["episode_writer"] == log.writer]).tolist())
            over = records[(records["flags"] & (TERMINATED | TRUNCATED)) != 0]
            over_here |= {
                EpisodeKey(w, c) for w, c in zip(over["episode_writer"].tolist(), over["episode"].tolist(), strict=True)
            }
            for key, steps in highest(records, log.writer, log.resumed):
                self.reached[key] = max(self.reached.get(key, 0), steps)
        self.ended |= over_here

    def _hashes_left(self) -> NDArray[np.uint64]:
        """Hashes of the episodes that keep a row."""
        parts = [np.zeros(0, np.uint64)]
        for log in self.logs.values():
            row = self.stops[log.writer][0]
            for k, segment in enumerate(log.segments):
                if segment.header.first_row < row:
                    continue
                known = _hashes.get(segment)
                if known is None:
                    last = k + 1 == len(log.segments)
                    stop = log.rows if last else log.segments[k + 1].header.first_row
                    records = segment.records[: stop - segment.header.first_row]
                    known = np.unique(_hash(records["episode_writer"], records["episode"]))
                    if log.sealed or not last:
                        _hashes[segment] = known
                parts.append(known)
        return np.unique(np.concatenate(parts))

    def _beginning(self, log: WriterLog, count: int, facts: list[Fact]) -> First:
        """The log's new beginning, with the episodes that have no row left and may still get some."""
        row, fact = self.stops[log.writer]
        own = [f for f in facts if f.episode.writer == log.writer and f.step is None]
        judged = {f.episode.counter for f in own if f.values.get("status") is not None}
        seen = self.seen[log.writer] | {f.episode.counter for f in own}
        left = (EpisodeKey(log.writer, c) for c in (seen | set(log.first.open)) - judged)
        waiting = sorted(k.counter for k in left if k not in self.ended and k not in self.alive)
        return replace(
            log.first,
            segment=log.segments[count - 1].header.index + 1,
            row=row,
            fact=fact,
            agent=log.agent,
            next_episode=max(log.first.next_episode, *(c + 1 for c in seen), 0),
            open=() if log.sealed else tuple(waiting),
        )

    def _needed(self, fact: Fact) -> bool:
        """Whether a row that a fact is about is still there, or may still come."""
        if fact.step is not None:
            return fact.step.writer in self.logs and fact.step.seq >= self.stops[fact.step.writer][0]
        if fact.episode in self.alive:
            return True
        writer, counter = fact.episode
        log = self.logs.get(writer)
        if log is None or log.sealed or fact.episode in self.ended:
            return False
        note = self.notes.get(writer, log.first)
        return counter in note.open or counter >= note.next_episode

    # -- carrying it out -----------------------------------------------------------------------------------

    def _carry_out(self, changed: Mapping[int, First], leaving: Mapping[int, First]) -> None:
        folder, before = self.store.folder, self.store.evicted
        kept = still_needed(self.reached, self.alive, self._beginnings_after(leaving))
        early = {**before.reached, **kept}
        if early != before.reached:
            # Before any row goes; whoever resumes an episode looks here after it looked at the rows.
            write_evicted(folder, replace(before, reached=early))
        for writer, first in changed.items():
            write_first(self.logs[writer].folder, first)
        notes = leaving.values()
        write_evicted(
            folder,
            replace(
                before,
                generation=before.generation + 1,
                writers=before.writers + len(leaving),
                rows=before.rows + sum(f.row for f in notes),
                facts=before.facts + sum(f.evicted_facts for f in notes),
                dropped_rows=before.dropped_rows + sum(f.dropped_rows for f in notes),
                dropped_facts=before.dropped_facts + sum(f.dropped_facts for f in notes),
                leaving=frozenset(leaving),
                reached=kept,
            ),
        )
        for writer in leaving:
            _remove(folder, writer)
        for writer, first in changed.items():
            log = self.logs[writer]
            for path in log.folder.glob("*.seg"):  # those that were given up are in no list
                if path.name < f"{first.segment:08d}":
                    path.unlink(missing_ok=True)
            if log.sealed and log.segments and log.segments[-1].header.index < first.segment:
                for path in log.folder.glob("*.tails"):
                    path.unlink(missing_ok=True)
        self.store.refresh()

    def _beginnings_after(self, leaving: Mapping[int, First]) -> dict[int, First]:
        """Where the logs begin that will be left."""
        return {w: self.notes.get(w, log.first) for w, log in self.logs.items() if w not in leaving}


def _hash(writer: NDArray[Any], counter: NDArray[Any]) -> NDArray[np.uint64]:
    with np.errstate(over="ignore"):
        out: NDArray[np.uint64] = writer.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        out += counter.astype(np.uint64) * np.uint64(0xC2B2AE3D27D4EB4F)
    return out


def _alive(keys: set[EpisodeKey], left: NDArray[np.uint64]) -> set[EpisodeKey]:
    """Those of `keys` whose hash is in `left`. A collision keeps a fact too many, and none too few."""
    ordered = list(keys)
    pairs = np.array(ordered, np.int64).reshape(-1, 2)
    here = np.isin(_hash(pairs[:, 0], pairs[:, 1]), left).tolist()
    return {key for key, hit in zip(ordered, here, strict=True) if hit}
