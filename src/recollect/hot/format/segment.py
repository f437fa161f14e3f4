"""One segment file of a writer's log: header, control page, durable page, records, facts, planes, heap.

The file is allocated and faulted in before it gets its name, so that no store into its map can fail for want of
space. Rows and facts are published together by one aligned 8-byte store (design/0003).
"""

from __future__ import annotations

import json
import mmap
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recollect.errors import CorruptionError, SchemaMismatch, StoreError
from recollect.hot.format.checked import Checked
from recollect.hot.format.files import map_for_reading, os_errors, sync_folder
from recollect.hot.format.layouts import Layouts
from recollect.hot.format.spare import Blank
from recollect.records.block import Block
from recollect.records.layout import Layout
from recollect.schema.fields import Frames

MAGIC = b"RCLSEG\x00\x01"
PAGE = 4096
FORMAT = 1
FACT = np.dtype(
    [
        ("crc", "<u4"),
        ("kind", "<u4"),
        ("writer", "<i8"),
        ("seq", "<i8"),
        ("time", "<i8"),
        ("episode_writer", "<i8"),
        ("episode", "<i8"),
        ("step_writer", "<i8"),
        ("step_seq", "<i8"),
        ("heap_at", "<i8"),
        ("heap_bytes", "<i8"),
    ]
)
"""A fact's record; its values are JSON in the heap. step_seq is -1 for facts about the episode."""
VALUES, RESUMPTION, CLOSED = 0, 1, 2
"""Kinds of fact: values of an episode or a step; an episode goes on in this log, after rows of others; an episode gets
no more rows in this log, unless it is resumed there."""
ROWS_PER_APPEND = 3
"""Most rows that one append writes: a contradicted tail, the step, its final row."""
ROWS_MASK = (1 << 32) - 1
OWNER = 5
"""The word of the control page that holds the writer: a page without it is not the one that was written there."""
FLUSH, UNDER_WAY, FAILED = 6, 1, 2
"""The word of the control page that says how the newest flush stands, 0 once it succeeded. After a failed one the
kernel may call pages clean that never reached the disk. The word tells for as long as these pages are there: it need
not survive a power cut."""
CONTROL = ("published", "rolled", "sealed", "first_row")
"""The first words of the control page: the publish word, the mark that the writer went on to the next segment, the mark
that the log is being sealed, and the row that the segment begins with."""
_DURABLE = np.dtype([("generation", "<u8"), ("word", "<u8"), ("crc", "<u4"), ("pad", "<u4")])


@dataclass(frozen=True)
class Shape:
    """How much a segment can hold."""

    rows: int
    facts: int
    planes: int
    heap_bytes: int

    @classmethod
    def fitting(
        cls,
        layout: Layout,
        target_bytes: int,
        rows: int = 0,
        planes: int = 0,
        facts: int = 0,
        heap_bytes: int = 0,
        *,
        like: Shape | None = None,
        only_facts: bool = False,
    ) -> Shape:
        """About `target_bytes`, but never less than what must fit: rows, planes, facts, heap bytes.

        Args:
            like: what a segment came to hold, so that this one has the same proportions, and a little of everything.
            only_facts: no room for rows.
        """
        widest = sum(layout.plane_bytes.values())
        units = (layout.itemsize, FACT.itemsize, widest, 1)
        heap_share = 4 if layout.heap else 1
        n = int(target_bytes * (1 - 0.125 * heap_share)) // layout.row_bytes
        room = [n, n // 64, n, int(target_bytes * 0.1 * heap_share)]
        if only_facts:
            room[1:] = [target_bytes // 2 // FACT.itemsize, 0, target_bytes // 2]
        held = [0, 0, 0, 0] if like is None else [like.rows, like.facts, like.planes, like.heap_bytes]
        total = sum(count * unit for count, unit in zip(held, units, strict=True))
        if total:
            least = target_bytes // 32
            scale = (target_bytes - 4 * least) / total
            room = [int(count * scale) + least // max(1, unit) for count, unit in zip(held, units, strict=True)]
        heap = max(1 << 14, 2 * heap_bytes, room[3])
        if only_facts:
            return cls(1, max(64, facts, room[1]), 0, heap)
        few = min(64, max(8, (1 << 20) // layout.row_bytes))
        return cls(
            max(few, rows, room[0]), max(64, facts, room[1]), max(few, planes, room[2]) if layout.wide else 0, heap
        )

    def holds(self, other: Shape) -> bool:
        """Whether there is room for everything that has room in another one."""
        pairs = zip(self.__dict__.values(), other.__dict__.values(), strict=True)
        return all(mine >= theirs for mine, theirs in pairs)

    def full(self, used: Shape) -> float:
        """How full the fullest region of a segment is of which so much is used, 0 to 1."""
        pairs = zip(self.__dict__.values(), used.__dict__.values(), strict=True)
        return max((float(part / whole) for whole, part in pairs if whole), default=1.0)


@dataclass(frozen=True)
class Header:
    """What a segment says of itself."""

    writer: int
    index: int
    first_row: int
    first_fact: int
    schema: str
    shape: Shape
    device: int
    inode: int
    agent: str
    pid: int
    created_ns: int

    def pack(self, regions: dict[str, int]) -> bytes:
        body = json.dumps(
            {
                "format": FORMAT,
                **{k: v for k, v in self.__dict__.items() if k != "shape"},
                "shape": self.shape.__dict__,
                "regions": regions,
            }
        ).encode()
        head = MAGIC + len(body).to_bytes(4, "little") + zlib.crc32(body).to_bytes(4, "little") + body
        return head.ljust(max(regions["control"], (len(head) + PAGE - 1) // PAGE * PAGE), b"\0")


_CUT = "Copy the workspace again, whole, or restore it from a backup; a snapshot's buffer may hold these rows"


class Segment:
    """A mapped segment. Use `create` or `open_`."""

    def __init__(
        self, path: Path, layout: Layout, header: Header, regions: dict[str, int], map_: mmap.mmap, fd: int
    ) -> None:
        self.path, self.layout, self.header, self.map, self.fd = path, layout, header, map_, fd
        self.inode = header.inode
        shape = header.shape
        self._regions = regions
        self.control: NDArray[np.uint64] = np.frombuffer(map_, "<u8", 8, regions["control"])
        self._durable = np.frombuffer(map_, _DURABLE, 2, regions["durable"])
        self.records: NDArray[np.void] = np.frombuffer(map_, layout.dtype, shape.rows, regions["records"])
        self.records_at = regions["records"]
        self.facts: NDArray[np.void] = np.frombuffer(map_, FACT, shape.facts, regions["facts"])
        self.heap: NDArray[np.uint8] = np.frombuffer(map_, np.uint8, shape.heap_bytes, regions["heap"])
        self.heap_at = regions["heap"]
        self.planes: dict[str, NDArray[Any]] = {}
        for leaf in layout.wide:
            f = leaf.field
            plane = f.shape if isinstance(f, Frames) else (f.size,)  # type: ignore[union-attr]
            count = shape.planes * int(np.prod(plane))
            flat = np.frombuffer(map_, f.dtype, count, regions[f"planes/{leaf.path}"])  # type: ignore[union-attr]
            self.planes[leaf.path] = flat.reshape(shape.planes, *plane)
        self.block = Block(self.records, self.planes, self.heap, owner=map_)
        self.checked = Checked(self)

    @classmethod
    def create(
        cls, path: Path, layout: Layout, header: Header, blank: Blank | None = None, *, flush: bool = True
    ) -> Segment:
        """Allocates, faults in and names a new segment, or names a file that is ready.

        Args:
            blank: a file of `segment_bytes(layout, header)` bytes.
            flush: whether header and name are durable when it returns; otherwise the next sync makes them so.

        Raises:
            DiskFull: no room; nothing is left behind.
            StoreError: the folder cannot be written.
        """
        regions, size = _regions(layout, header)
        with os_errors(f"allocating {size / (1 << 20):.1f} MiB for segment", path):
            if blank is None:
                blank = Blank.create(path.with_name(f".{path.name}.new"), size)
            try:
                stat = os.fstat(blank.fd)
                header = Header(**{**header.__dict__, "device": stat.st_dev, "inode": stat.st_ino})
                blank.map[: regions["control"]] = header.pack(regions)
                first_row = regions["control"] + 8 * CONTROL.index("first_row")
                blank.map[first_row : first_row + 8] = header.first_row.to_bytes(8, "little")
                owner = regions["control"] + 8 * OWNER
                blank.map[owner : owner + 8] = header.writer.to_bytes(8, "little")
                if flush:
                    os.fsync(blank.fd)
                os.rename(blank.path, path)
                if flush:
                    sync_folder(path.parent)
            except BaseException:
                blank.discard()
                raise
        return cls(path, layout, header, regions, blank.map, blank.fd)

    @classmethod
    def open_(cls, path: Path, layouts: Layouts) -> Segment:
        """Maps an existing segment for reading, in the layout of the schema version that it was written under.

        Raises:
            CorruptionError: not a segment, a damaged header, or a file that is cut short.
            SchemaMismatch: a schema that the workspace never had.
            StoreError: another format.
        """
        with os_errors("opening segment", path):
            map_, size = map_for_reading(path)
        if map_ is None or size < 3 * PAGE:
            raise CorruptionError(f"segment {str(path)!r} is cut short", value=size, remedy=_CUT)
        header, regions = read_header(map_, path)
        layout = layouts.of(header.schema)
        if layout is None:
            raise SchemaMismatch(
                f"segment {str(path)!r} was written under another schema",
                value=header.schema,
                remedy="Restore the workspace's schema files; the segment itself is whole",
            )
        if size < _regions(layout, header)[1]:
            raise CorruptionError(f"segment {str(path)!r} is cut short", value=size, remedy=_CUT)
        return cls(path, layout, header, regions, map_, -1)

    @property
    def word(self) -> int:
        """The publish word: facts in the high half, rows in the low."""
        return int(self.control[0])

    @property
    def rolled(self) -> bool:
        """Whether the writer went on to the next segment; this one's word is then final."""
        return bool(self.control[1])

    @property
    def flush_state(self) -> int:
        """0, `UNDER_WAY` or `FAILED`."""
        return int(self.control[FLUSH])

    def control_words(self) -> memoryview:
        """The words named in `CONTROL`: what a reader looks at again and again."""
        at = self.records_at - 2 * PAGE
        return memoryview(self.map)[at : at + 8 * len(CONTROL)].cast("Q")

    def mark_sealed(self) -> None:
        """Tells readers to look for a seal from now on. Comes before the seal: who finds none yet looks again.

        Raises:
            StoreError: the file cannot be written.
        """
        self._set(CONTROL.index("sealed"), 1)

    def mark_flush(self) -> None:
        """Says that a flush of the log is under way, of a log that nobody writes to any more.

        Raises:
            StoreError: the file cannot be written.
        """
        self._set(FLUSH, UNDER_WAY)

    def _set(self, word: int, value: int) -> None:
        with os_errors("marking", self.path):
            fd = os.open(self.path, os.O_WRONLY | os.O_CLOEXEC)
            try:
                os.pwrite(fd, value.to_bytes(8, "little"), self.records_at - 2 * PAGE + 8 * word)
            finally:
                os.close(fd)

    def unused(self, rows: int, facts: int, planes: Mapping[str, int], heap_bytes: int) -> list[tuple[int, int]]:
        """The whole pages `[start, stop)` behind what is used of each region: rows, facts, planes of each wide field,
        and heap bytes."""
        used = _sizes(self.layout, rows, facts, planes, heap_bytes)
        shape = self.header.shape
        room = _sizes(self.layout, shape.rows, shape.facts, dict.fromkeys(planes, shape.planes), shape.heap_bytes)
        return [(self._regions[name] + used[name], self._regions[name] + room[name]) for name in used]

    @property
    def durable_word(self) -> int:
        """What the last completed sync covered, as a publish word; 0 when there was none or both slots are damaged."""
        best, word = -1, 0
        for slot in self._durable:
            if zlib.crc32(slot.tobytes()[:16]) == int(slot["crc"]) and int(slot["generation"]) > best:
                best, word = int(slot["generation"]), int(slot["word"])
        return word

    def sync(self, word: int) -> None:
        """Flushes the file to stable storage, then notes that what `word` counts is there. Raises OSError."""
        os.fdatasync(self.fd)
        generation = int(self._durable["generation"].max()) + 1
        slot = np.zeros(1, _DURABLE)
        slot["generation"], slot["word"] = generation, word
        slot["crc"] = zlib.crc32(slot.tobytes()[:16])
        self._durable[generation % 2] = slot[0]

    def close(self) -> None:
        """Gives up the descriptor; maps live as long as arrays refer to them."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def read_header(map_: mmap.mmap, path: Path) -> tuple[Header, dict[str, int]]:
    """Raises CorruptionError, or StoreError for another format."""
    if map_[:8] != MAGIC:
        raise CorruptionError(f"{str(path)!r} is not a recollect segment", value=map_[:8])
    size = int.from_bytes(map_[8:12], "little")
    body = map_[16 : 16 + size]
    if zlib.crc32(body) != int.from_bytes(map_[12:16], "little"):
        raise CorruptionError(f"segment {str(path)!r} has a damaged header")
    data = json.loads(body)
    regions = data.pop("regions")
    if data.pop("format") != FORMAT:
        raise StoreError(f"segment {str(path)!r} has a format that this release does not read")
    return Header(**{**data, "shape": Shape(**data["shape"])}), regions


def _sizes(layout: Layout, rows: int, facts: int, planes: Mapping[str, int], heap_bytes: int) -> dict[str, int]:
    """Bytes of each region that holds so much, in whole pages and in the order of the file."""
    sizes = {"records": rows * layout.itemsize, "facts": facts * FACT.itemsize}
    sizes |= {f"planes/{path}": planes[path] * count for path, count in layout.plane_bytes.items()}
    sizes["heap"] = heap_bytes
    return {name: (size + PAGE - 1) // PAGE * PAGE for name, size in sizes.items()}


def _regions(layout: Layout, header: Header) -> tuple[dict[str, int], int]:
    """Byte offset of each region, and the file's size."""
    shape = header.shape
    planes = dict.fromkeys(layout.plane_bytes, shape.planes)
    sizes = {"control": PAGE, "durable": PAGE, **_sizes(layout, shape.rows, shape.facts, planes, shape.heap_bytes)}
    # As long as it can get, so that the size is known before the roll decides where the segment begins.
    unknown = ("index", "first_row", "first_fact", "device", "inode", "pid", "created_ns")
    longest = Header(**{**header.__dict__, **dict.fromkeys(unknown, 1 << 63)})
    at = len(longest.pack({**dict.fromkeys(sizes, 1 << 60), "control": 0})) + PAGE
    regions = {}
    for name, size in sizes.items():
        regions[name] = at
        at += size
    return regions, at


def segment_bytes(layout: Layout, header: Header) -> int:
    """The size of a segment's file. Where the segment begins makes no difference."""
    return _regions(layout, header)[1]


def new_header(
    writer: int,
    index: int,
    first_row: int,
    first_fact: int,
    layout: Layout,
    shape: Shape,
    agent: str,
    now_ns: int,
) -> Header:
    return Header(
        writer,
        index,
        first_row,
        first_fact,
        layout.schema.fingerprint,
        shape,
        0,
        0,
        agent,
        os.getpid(),
        now_ns,
    )
