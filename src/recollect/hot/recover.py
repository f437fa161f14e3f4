"""Recovery: what a dead writer's log holds, and its seal.

A log whose writer is gone is never appended to again. If it died on this boot of this machine, every store it made is
in the page cache and the counter is trusted; otherwise every frame past the last durable point is verified and the
log is cut at the first bad one (design/0003).
"""

from __future__ import annotations

import os
import zlib
from dataclasses import dataclass
from pathlib import Path

from recollect.errors import CorruptionError
from recollect.hot.files import boot_id, os_errors, try_lock
from recollect.hot.layouts import Layouts
from recollect.hot.seal import seal
from recollect.hot.segment import ROWS_MASK, Segment
from recollect.records.layout import column, frame_rows


@dataclass(frozen=True)
class Recovery:
    """What was done for one dead writer.

    Attributes:
        writer: its id.
        rows, facts: what its log holds.
        lost_rows: rows that were published but failed verification, the last of the log.
        verified: whether frames had to be checked.
    """

    writer: int
    rows: int
    facts: int
    lost_rows: int
    verified: bool


def recover(folder: Path, layouts: Layouts) -> list[Recovery]:
    """Seals the logs of writers that died. Live writers hold their lock and are left alone.

    Args:
        layouts: of every schema version, since each segment is checked as it was written.
    """
    out: list[Recovery] = []
    if not folder.is_dir():
        return out
    for path in sorted(folder.iterdir()):
        if not (path / "lock").exists() or (path / "sealed.json").exists():
            continue
        lock = try_lock(path / "lock")
        if lock is None:
            continue
        try:
            if not (path / "sealed.json").exists():
                out.append(_recover_one(path, layouts))
        finally:
            os.close(lock)
    return out


def _recover_one(folder: Path, layouts: Layouts) -> Recovery:
    for leftover in folder.glob(".*.new"):
        leftover.unlink(missing_ok=True)
    rows = facts = lost = 0
    verified, whole = False, True
    for path in sorted(folder.glob("*.seg")):
        try:
            segment = Segment.open_(path, layouts)
        except CorruptionError:
            whole = False
            continue
        header = segment.header
        published = (segment.word & ROWS_MASK, segment.word >> 32)
        if not whole or (header.first_row, header.first_fact) != (rows, facts):
            whole = False
            lost += published[0]
            continue
        stat = path.stat()
        trusted = header.boot == boot_id() != "unknown" and (header.device, header.inode) == (stat.st_dev, stat.st_ino)
        good = published
        if not trusted:
            verified = True
            durable = segment.durable_word
            good = verify_segment(segment, durable & ROWS_MASK, durable >> 32)
        rows += good[0]
        facts += good[1]
        lost += max(0, published[0] - good[0])
        whole = good == published
    for item in [*folder.glob("*.seg"), *folder.glob("*.tails")]:
        with os_errors("syncing", item):
            fd = os.open(item, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
    seal(folder, rows, facts, clean=False, lost_rows=lost)
    return Recovery(int(folder.name, 16), rows, facts, lost, verified)


def verify_segment(segment: Segment, rows_from: int = 0, facts_from: int = 0) -> tuple[int, int]:
    """How many leading rows and facts of a segment are whole; those below the given counts are not checked."""
    shape = segment.header.shape
    published_rows = min(segment.word & ROWS_MASK, shape.rows)
    published_facts = min(segment.word >> 32, shape.facts)
    rows = min(rows_from, published_rows)
    while rows < published_rows:
        count = frame_rows(segment.records, rows)
        if count < 1 or rows + count > published_rows or not frame_is_whole(segment, rows, count):
            break
        rows += count
    facts = min(facts_from, published_facts)
    while facts < published_facts and fact_is_whole(segment, facts):
        facts += 1
    return rows, facts


def frame_is_whole(segment: Segment, row: int, count: int) -> bool:
    """Whether a frame of `count` records from `row`, with its planes and heap bytes, has the checksum it carries."""
    layout, records = segment.layout, segment.records[row : row + count]
    header = segment.header
    if int(records["writer"][0]) != header.writer or int(records["seq"][0]) != header.first_row + row:
        return False
    crc = 0
    for leaf in layout.wide:
        held = records[column(leaf.path)]
        held = held[held >= 0]
        if len(held):
            low, high = int(held.min()), int(held.max()) + 1
            if high > header.shape.planes:
                return False
            crc = zlib.crc32(segment.planes[leaf.path][low:high].reshape(-1).view("u1").data, crc)
    if layout.heap:
        at, size = int(records["heap_at"][0]), int(records["heap_bytes"][0])
        if at < 0 or size < 0 or at + size > header.shape.heap_bytes:
            return False
        if size:
            crc = zlib.crc32(segment.heap[at : at + size].data, crc)
    body = segment.map[
        segment.records_at + row * layout.itemsize + 4 : segment.records_at + (row + count) * layout.itemsize
    ]
    return zlib.crc32(body, crc) == int(records["crc"][0])


def fact_is_whole(segment: Segment, row: int) -> bool:
    """Whether a fact and its values have the checksum they carry."""
    record = segment.facts[row]
    at, size = int(record["heap_at"]), int(record["heap_bytes"])
    if at < 0 or size < 0 or at + size > segment.header.shape.heap_bytes:
        return False
    return zlib.crc32(record.tobytes()[4:], zlib.crc32(segment.heap[at : at + size].data)) == int(record["crc"])
