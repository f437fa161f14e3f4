"""Recovery: what a dead writer's log holds, and its seal.

A log whose writer is gone is never appended to again. Its rows are the longest run of whole frames, whatever the
counters say: a counter can be older than what reached the disk, or newer (design/0003). Only frames past the last
durable point are read again, unless the file is a copy, whose parts may stem from different moments.
"""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from recollect.errors import ConflictError, CorruptionError, StoreError
from recollect.hot.format.files import (
    ABSENT,
    lock_when_free,
    locked,
    os_errors,
    sync_file,
    sync_folder,
    write_again,
    writers_folders,
)
from recollect.hot.format.first import read_first
from recollect.hot.format.holes import read_holes
from recollect.hot.format.layouts import Layouts
from recollect.hot.format.room import give_back_zeros
from recollect.hot.format.seal import Seal, read_seal, seal
from recollect.hot.format.segment import OWNER, RESUMPTION, ROWS_MASK, Segment
from recollect.hot.format.tails import damaged_slots
from recollect.view import Extent

WAIT_S = 10.0
"""How long an opener waits for another one's recovery to end."""
ABANDONED_S = 3600.0
"""Age at which a folder that never became a log is removed."""


@dataclass(frozen=True)
class Recovery:
    """What was done for one dead writer.

    Attributes:
        writer: its id.
        rows, facts: what its log holds.
        lost: the rows, by id, that had been published or counted as durable and were not whole; None when there are
            none. They were the last of the log.
        lost_facts: facts likewise.
        lost_segments: files that are missing, another log's, or whose header or counters could not be read, so that how
            much they held cannot be told. After a power cut the newest file may be one that no sync had reached.
        lost_tails: slots of waiting observations that were damaged. The step before such an observation is there, but
            cannot be drawn.
        checked: rows whose frames were read again.
    """

    writer: int
    rows: int
    facts: int
    lost: Extent | None
    lost_facts: int
    lost_segments: int
    lost_tails: int
    checked: int

    @property
    def lost_rows(self) -> int:
        return 0 if self.lost is None else self.lost.stop - self.lost.start


def recover(folder: Path, layouts: Layouts) -> list[Recovery]:
    """Seals the logs of writers that died. Live writers hold their lock and are left alone.

    Args:
        layouts: of every schema version, since each segment is checked as it was written.

    Raises:
        SchemaMismatch, StoreError: a log of a schema or a format that is not known here; it is left unsealed.
    """
    open_logs = [path for path in writers_folders(folder) if not _is_sealed(path)]
    if not open_logs:
        return []
    out: list[Recovery] = []
    with contextlib.ExitStack() as stack:
        # Whoever opens the workspace meanwhile waits, so that it finds these logs sealed.
        with contextlib.suppress(ConflictError):
            stack.enter_context(locked(folder / ".recovery", WAIT_S))
        for path in open_logs:
            try:
                with os_errors("locking", path, but=ABSENT):
                    lock = lock_when_free(path / "lock")
            except ABSENT:
                continue  # it was sealed, and evicted meanwhile
            if lock is None:
                continue
            with lock:
                if not _is_sealed(path) and path.is_dir():
                    out.append(recover_log(path, layouts))
        _remove_abandoned(folder)
    return out


def _is_sealed(path: Path) -> bool:
    try:
        return read_seal(path) is not None
    except CorruptionError:
        return False


def recover_log(folder: Path, layouts: Layouts) -> Recovery:
    """Seals one log whose writer is dead; its lock is held by whoever calls. Passes over what is known to be gone."""
    for leftover in folder.glob(".*.new"):
        leftover.unlink(missing_ok=True)
    first, holes, writer = read_first(folder), read_holes(folder), int(folder.name, 16)
    tails = sorted(folder.glob("*.tails"))
    rows, facts, segments, checked, lost_segments = first.row, first.fact, first.segment, 0, 0
    unsynced, readable, flush_failed = [], [], False
    counted_rows, counted_facts = rows, facts
    resumed = False
    whole, layout, next_index = True, layouts.newest, first.segment
    for path in sorted(folder.glob("*.seg")):
        index = int(path.stem)
        if index < first.segment:
            continue
        while next_index <= index and (behind := holes.behind(next_index)) is not None:
            next_index += 1
            if whole:
                (rows, facts), segments = behind, next_index
        if index < next_index:
            continue
        lost_segments += index - next_index
        next_index = index + 1
        try:
            segment = Segment.open_(path, layouts)
            segment.mark_sealed()
            with os_errors("looking at", path):
                stat = path.stat()
        except StoreError:
            if read_first(folder) == first:
                raise
            return recover_log(folder, layouts)  # an eviction moved the beginning meanwhile
        except CorruptionError:
            whole = False
            lost_segments += 1
            continue
        readable.append(segment)
        flush_failed = flush_failed or segment.flush_state != 0
        segment.checked.forgive(holes.damaged_rows, holes.facts)
        header, shape, layout = segment.header, segment.header.shape, segment.layout
        if header.writer != writer:
            whole = False
            lost_segments += 1
            continue
        durable = segment.durable_word
        if int(segment.control[OWNER]) != header.writer:
            lost_segments += 1  # another page stands where its counters were
        for word in (segment.word, durable):
            if (word & ROWS_MASK) > shape.rows or (word >> 32) > shape.facts:
                lost_segments += 1  # how much it held cannot be told
                break
            counted_rows = max(counted_rows, header.first_row + (word & ROWS_MASK))
            counted_facts = max(counted_facts, header.first_fact + (word >> 32))
        whole = whole and (header.index, header.first_row, header.first_fact) == (index, rows, facts)
        if not whole:
            continue
        moved = (header.device, header.inode) != (stat.st_dev, stat.st_ino)
        from_row, from_fact = (0, 0) if moved else (durable & ROWS_MASK, durable >> 32)
        end = segment.checked.whole_rows(min(from_row, shape.rows), shape.rows)
        fact_end = segment.checked.whole_facts(min(from_fact, shape.facts), shape.facts)
        checked += end - from_row
        # Of those that were durable nothing was read, and an unread kind is not to be believed.
        resumed = resumed or from_fact > 0 or bool((segment.facts["kind"][from_fact:fact_end] == RESUMPTION).any())
        if moved or (end, fact_end) != (from_row, from_fact):
            unsynced.append(path)
        rows, facts, segments = header.first_row + end, header.first_fact + fact_end, segments + 1
    while (behind := holes.behind(next_index)) is not None:
        next_index += 1
        if whole:
            (rows, facts), segments = behind, next_index
    if next_index == first.segment and tails and not first.segment:
        lost_segments = 1  # tails are made after the first segment
    if lost_segments and read_first(folder) != first:
        return recover_log(folder, layouts)
    lost = (rows, counted_rows) if counted_rows > rows else None
    lost_facts = max(0, counted_facts - facts)
    lost_tails = damaged_slots(tails, layout)
    _flush(readable, [*unsynced, *tails], again=flush_failed)
    sync_folder(folder)
    if not (lost or lost_facts or lost_segments or lost_tails):  # what is damaged may still be of use to somebody
        for segment in readable[-1:]:  # the writer gave back the room of the others when it went on
            give_back_zeros(segment.path)
    what = Seal(rows, facts, segments, False, resumed, lost, lost_facts, lost_segments, len(tails), lost_tails)
    seal(folder, what)
    cut = Extent(writer, *lost) if lost else None
    return Recovery(writer, rows, facts, cut, lost_facts, lost_segments, lost_tails, checked)


def _flush(segments: Sequence[Segment], files: Iterable[Path], *, again: bool) -> None:
    """Makes files durable. Where the last flush did not succeed, they are written again first: another flush alone
    would pass over what the kernel calls clean since. Whoever comes after a flush that fails here does the same."""
    for segment in segments[-1:]:
        with _unless_evicted(segment.path):
            segment.mark_flush()
    for path in files:
        for act in (write_again, sync_file) if again else (sync_file,):
            with _unless_evicted(path):
                act(path)


@contextlib.contextmanager
def _unless_evicted(path: Path) -> Iterator[None]:
    try:
        yield
    except StoreError:
        if path.exists():
            raise


def _remove_abandoned(folder: Path) -> None:
    """Removes the folders of writers that died before they had a log."""
    for path in folder.glob(".*.new"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > ABANDONED_S:
                lock = lock_when_free(path / "lock")
                if lock is not None:
                    shutil.rmtree(path, ignore_errors=True)
                    lock.close()
