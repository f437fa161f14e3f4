"""Reading writers' logs: counters, segments, facts, tails. Takes no lock that an appending agent could wait for."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import numpy as np

from recollect.errors import CorruptionError
from recollect.hot.recover import fact_is_whole
from recollect.hot.seal import read_seal
from recollect.hot.segment import ROWS_MASK, Segment
from recollect.hot.tails import TailFile, read_tails
from recollect.records.block import Block, join_rows
from recollect.records.layout import FINAL, Layout
from recollect.view import EpisodeKey, Fact, Ids, StepId, make_ids


class WriterLog:
    """One writer's log, as far as it was published when `refresh` last looked.

    Attributes:
        writer: the writer's id.
        rows, facts: published counts.
        sealed: whether the log will never grow again.
    """

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder, self.layout = folder, layout
        self.writer = int(folder.name, 16)
        self.segments: list[Segment] = []
        self.rows = self.facts = 0
        self.sealed = False
        self._facts: list[Fact] = []
        self._lock = threading.RLock()

    def refresh(self) -> None:
        """Looks at the newest counters: one load per writer while no segment was added."""
        with self._lock:
            self._refresh()

    def _refresh(self) -> None:
        if self.sealed:
            return
        seal = read_seal(self.folder)
        if not self.segments:
            self._open_next()
        while self.segments:
            last, word = self.segments[-1], self.segments[-1].word
            self.rows = last.header.first_row + (word & ROWS_MASK)
            self.facts = last.header.first_fact + (word >> 32)
            # The mark that a segment was rolled over may have been lost with the power; a seal knows better.
            more = seal is not None and (self.rows < seal["rows"] or self.facts < seal["facts"])
            if not ((more or last.rolled) and self._open_next()):
                break
        if seal is not None:
            self.rows, self.facts = min(self.rows, seal["rows"]), min(self.facts, seal["facts"])
            self.sealed = True

    @property
    def agent(self) -> str:
        """The name its writer was given."""
        return self.segments[0].header.agent if self.segments else ""

    @property
    def durable_rows(self) -> int:
        """Rows that a completed sync covered. A sealed log was flushed whole before its seal."""
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
        self.segments.append(Segment.open_(path, self.layout))
        return True

    def pieces(self, start: int, stop: int) -> list[tuple[Block, int, int]]:
        """The blocks that hold rows `start` to `stop`, in order."""
        out = []
        for k, segment in enumerate(self.segments):
            first = segment.header.first_row
            end = self.segments[k + 1].header.first_row if k + 1 < len(self.segments) else self.rows
            low, high = max(start, first), min(stop, end)
            if low < high:
                out.append((segment.block, low - first, high - first))
        if sum(b - a for _, a, b in out) != max(0, stop - start):
            raise CorruptionError(
                f"writer {self.writer} has no rows {start} to {stop}",
                value=self.rows,
                remedy="The cut was made on another workspace, or the log was damaged",
            )
        return out

    def read_facts(self, stop: int) -> list[Fact]:
        """Facts below `stop`, parsed once per process."""
        with self._lock:
            return self._read_facts(stop)

    def _read_facts(self, stop: int) -> list[Fact]:
        for k, segment in enumerate(self.segments):
            if len(self._facts) >= stop:
                break
            first = segment.header.first_fact
            end = self.segments[k + 1].header.first_fact if k + 1 < len(self.segments) else self.facts
            if end <= len(self._facts):
                continue
            for row in range(len(self._facts) - first, min(stop, end) - first):
                self._facts.append(_parse(segment, row))
        return self._facts[:stop]

    def fact_pieces(self, start: int, stop: int) -> list[tuple[Segment, int, int]]:
        """The segments that hold facts `start` to `stop`, in order, with their rows there."""
        out = []
        for k, segment in enumerate(self.segments):
            first = segment.header.first_fact
            end = self.segments[k + 1].header.first_fact if k + 1 < len(self.segments) else self.facts
            low, high = max(start, first), min(stop, end)
            if low < high:
                out.append((segment, low - first, high - first))
        return out

    def fact(self, seq: int) -> Fact:
        """One fact.

        Raises:
            CorruptionError: it is damaged, or not there.
        """
        for segment, row, _ in self.fact_pieces(seq, seq + 1):
            if fact_is_whole(segment, row):
                return _parse(segment, row)
        raise CorruptionError(
            f"fact {seq} of writer {self.writer} is damaged or gone", remedy="See recollect verify NAME"
        )

    def holds_fact(self, seq: int) -> bool:
        """Whether a fact is still there: retention may have taken it."""
        return bool(self.fact_pieces(seq, seq + 1))

    def has_step_facts(self, stop: int) -> bool:
        """Whether any fact below `stop` is about a step rather than an episode."""
        for segment in self.segments:
            count = min(stop - segment.header.first_fact, len(segment.facts))
            if count > 0 and (segment.facts["step_seq"][:count] >= 0).any():
                return True
        return False

    def tails(self, ids: Ids) -> tuple[Ids, Block | None]:
        """Observations that follow the given steps of this writer: from the tail slots, or from the successors that
        overwrote them. Each record carries the id of the step that it follows."""
        with self._lock:
            files = [TailFile.open_(p, self.layout) for p in sorted(self.folder.glob("*.tails"))]
            found, block = read_tails(files, ids, self.layout)
            have = set(found.tolist())
            lost = [i for i in ids.tolist() if i not in have]
            if not lost:
                return found, block
            self._refresh()
            later = [(i, s) for i in lost if (s := self._successor(i[1])) is not None]
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
        for piece, start, stop in self.pieces(seq + 1, self.rows):
            records = piece.records[start:stop]
            hit = np.flatnonzero(
                (records["episode"] == mine["episode"]) & (records["episode_writer"] == mine["episode_writer"])
            )
            if len(hit):
                at = start + int(hit[0])
                return Block(piece.records[at : at + 1], piece.planes, piece.heap, piece.owner)
        return None


def _parse(segment: Segment, row: int) -> Fact:
    record = segment.facts[row]
    at, count = int(record["heap_at"]), int(record["heap_bytes"])
    body = segment.heap[at : at + count].tobytes()
    step = int(record["step_seq"])
    return Fact(
        int(record["writer"]),
        int(record["seq"]),
        int(record["time"]),
        EpisodeKey(int(record["episode_writer"]), int(record["episode"])),
        None if step < 0 else StepId(int(record["step_writer"]), step),
        json.loads(body),
    )
