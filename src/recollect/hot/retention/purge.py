"""Overwriting what is gone: the files of a sealed log without a byte of deleted rows and facts.

Each file is written whole beside itself and takes its name, so that whoever has the old one mapped is unharmed. What no
row and no fact that is left refers to becomes zero; checksums of frames are made anew. Done again it changes nothing.
"""

from __future__ import annotations

import os
import zlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recollect.hot.format.files import map_for_reading, replace_file, sync_folder
from recollect.hot.format.first import read_first, write_first
from recollect.hot.format.holes import Holes, among, read_holes
from recollect.hot.format.layouts import Layouts
from recollect.hot.format.seal import read_seal
from recollect.hot.format.segment import Header, Segment, read_header
from recollect.hot.format.tails import TailFile
from recollect.hot.recovery.repair import blanked
from recollect.records.gone import Gone, blanks
from recollect.records.layout import column, frame_rows
from recollect.view.reach import within


def purge_log(folder: Path, layouts: Layouts) -> None:
    """Overwrites what is gone of a sealed log. `evict.lock` is held by whoever calls.

    Raises:
        OSError, StoreError: a file cannot be written. The files before it are purged.
    """
    holes, first, seal = read_holes(folder), read_first(folder), read_seal(folder)
    assert seal is not None
    kept = tuple(f for f in first.facts if not within(holes.facts, f.seq, f.seq + 1))
    if len(kept) < len(first.facts):
        lost = len(first.facts) - len(kept)
        write_first(folder, replace(first, facts=kept, evicted_facts=first.evicted_facts + lost))
    files = sorted(p for p in folder.glob("*.seg") if p.stem.isdecimal() and int(p.stem) >= first.segment)
    for path in files:
        if holes.is_lost(path):
            path.unlink(missing_ok=True)
    files = [path for path in files if not holes.is_lost(path)]
    layout = layouts.newest
    ends = [Segment.open_(path, layouts).header for path in files[1:]]
    for k, path in enumerate(files):
        row, fact = (ends[k].first_row, ends[k].first_fact) if k < len(ends) else (seal.rows, seal.facts)
        layout = _segment(path, layouts, holes, row, fact)
    for path in sorted(folder.glob("*.tails")):
        _tails(TailFile.open_(path, layout), holes, first.row)


def _segment(path: Path, layouts: Layouts, holes: Holes, row: int, fact: int) -> Any:
    """Writes one segment anew, if anything of it is gone; returns its layout.

    Args:
        row, fact: where it ends.
    """
    map_, _ = map_for_reading(path)
    assert map_ is not None
    header, regions = read_header(map_, path)
    layout = layouts.of(header.schema)
    assert layout is not None
    first, first_fact = header.first_row, header.first_fact
    rows, facts = min(row - first, header.shape.rows), min(fact - first_fact, header.shape.facts)
    if not (within(holes.rows, first, first + rows) or within(holes.facts, first_fact, first_fact + facts)):
        return layout
    raw = bytearray(map_)
    segment = Segment(path, layout, header, regions, raw, -1)  # type: ignore[arg-type]
    records = segment.records
    gone = among(holes.rows, first + np.arange(rows))
    blank = blanks(layout, Gone(header.writer, first, first + rows, 0)).records
    for name in records.dtype.names or ():
        if name not in ("crc", "frame", "heap_at", "heap_bytes", "time"):
            records[name][:rows][gone] = blank[name][gone]
    _zero(records, rows)
    _zero(segment.facts, facts)
    lost = among(holes.facts, first_fact + np.arange(facts))
    for name in segment.facts.dtype.names or ():
        if name not in ("writer", "seq", "time"):
            segment.facts[name][:facts][lost] = 0
    _planes(segment, rows)
    _heap(segment, rows, facts)
    _checksums(segment, rows, facts, holes)
    if raw != map_[:]:
        _replace(path, header, regions, raw)
    return layout


def _zero(records: NDArray[np.void], start: int) -> None:
    """Empties records from `start` on: what was written and never counted."""
    records[start:].view(np.uint8)[...] = 0


def _planes(segment: Segment, rows: int) -> None:
    """Empties the planes that no row refers to."""
    for leaf in segment.layout.wide:
        used = segment.records[column(leaf.path)][:rows]
        keep = np.zeros(segment.header.shape.planes, np.bool_)
        keep[used[(used >= 0) & (used < len(keep))]] = True
        segment.planes[leaf.path][~keep] = 0


def _heap(segment: Segment, rows: int, facts: int) -> None:
    """Empties the bytes of the heap that no row and no fact refers to."""
    size = segment.header.shape.heap_bytes
    spans = [(segment.facts["heap_at"][:facts], segment.facts["heap_bytes"][:facts])]
    for leaf in segment.layout.heap:
        places = segment.records[column(leaf.path)][:rows]
        spans.append((places["at"], places["count"]))
    marks = np.zeros(size + 1, np.int64)
    for at, count in spans:
        good = (at >= 0) & (count > 0) & (at <= size) & (count <= size - at)
        np.add.at(marks, at[good], 1)
        np.add.at(marks, at[good] + count[good], -1)
    segment.heap[np.cumsum(marks[:size]) == 0] = 0


def _checksums(segment: Segment, rows: int, facts: int, holes: Holes) -> None:
    """Makes the checksums of frames and facts anew; of damaged rows nobody reads any."""
    records, size = segment.records, segment.layout.itemsize
    damaged = among(holes.damaged_rows, segment.header.first_row + np.arange(rows))
    at = 0
    while at < rows:
        count = frame_rows(records, at)
        if damaged[at] or count < 1 or at + count > rows:
            at += 1
            continue
        crc = 0
        for leaf in segment.layout.wide:
            used = records[column(leaf.path)][at : at + count]
            used = used[used >= 0]
            if len(used):
                planes = segment.planes[leaf.path][int(used.min()) : int(used.max()) + 1]
                crc = zlib.crc32(np.ascontiguousarray(planes).view(np.uint8).data, crc)
        if segment.layout.heap:
            begin, length = int(records["heap_at"][at]), int(records["heap_bytes"][at])
            crc = zlib.crc32(segment.heap[begin : begin + length].data, crc)
        place = segment.records_at + at * size
        records["crc"][at] = zlib.crc32(memoryview(segment.map)[place + 4 : place + count * size], crc)
        at += count
    lost = among(holes.facts, segment.header.first_fact + np.arange(facts))
    for k in np.flatnonzero(lost).tolist():
        segment.facts["crc"][k] = zlib.crc32(segment.facts[k : k + 1].tobytes()[4:])


def _replace(path: Path, header: Header, regions: dict[str, int], raw: bytearray) -> None:
    """Gives a segment's name to a new file with other bytes. Durable when it returns."""
    new = path.with_name(f".{path.name}.purged.new")
    new.unlink(missing_ok=True)
    fd = os.open(new, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
    try:
        stat = os.fstat(fd)
        header = Header(**{**header.__dict__, "device": stat.st_dev, "inode": stat.st_ino})
        raw[: regions["control"]] = header.pack(regions)
        with open(fd, "wb", closefd=False) as file:
            file.write(raw)
        os.fsync(fd)
        os.replace(new, path)
    finally:
        os.close(fd)
        new.unlink(missing_ok=True)
    sync_folder(path.parent)


def _tails(file: TailFile, holes: Holes, first_row: int) -> None:
    """Empties the slots of observations that followed steps which are gone, or that lead to what is."""
    seq = file.records["seq"].astype(np.int64)
    gone = among(holes.rows, seq) | among(holes.unfollowed, seq) | (seq < first_row)
    gone &= (file.records["writer"] != -1) | (file.records["crc"] != 0)
    if gone.any():
        replace_file(file.path, blanked(file, np.flatnonzero(gone)))
