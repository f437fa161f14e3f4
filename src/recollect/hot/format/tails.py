"""Tail slots: the observation after an open episode's newest step.

A step appended with its `next_observation` must be drawable before its successor exists. The observation waits in a
slot of the writer's tails file, as a record of the ordinary layout that carries the id of the step it follows. Each
open episode owns a lane of four slots. An append never overwrites the slot of the newest published step, nor those
that a power cut could bring back: the newest at the last completed sync, and the newest when a sync that is under way
began. That leaves at least one. A reader that finds its step's slot overwritten finds the successor in the log instead.
"""

from __future__ import annotations

import mmap
import os
import struct
import zlib
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recollect.errors import CorruptionError
from recollect.hot.format.fields import FieldWriters, OpenEpisode
from recollect.hot.format.files import map_for_reading, os_errors, sync_folder
from recollect.hot.format.segment import CONTROL, PAGE, ROWS_MASK
from recollect.hot.format.spare import fault_in
from recollect.masking import keep
from recollect.records.block import Block
from recollect.records.layout import Layout, column
from recollect.schema.fields import Frames
from recollect.view import Ids, make_ids

LANES_PER_FILE = 64
FILE_BYTES = 4 << 20
SLOTS = 4
_NONE = SLOTS
_I64 = struct.Struct("<q")


def lanes_per_file(layout: Layout) -> int:
    """Lanes in one file: fewer where an observation is large, so that one episode does not cost a hundred."""
    return max(1, min(LANES_PER_FILE, FILE_BYTES // (SLOTS * slot_bytes(layout))))


def _pack(newest: int, durable: int, covered: int) -> int:
    """A lane's state in one byte: the slot of the newest tail, the newest that a completed sync covered, and the newest
    that the last sync to begin covers; `_NONE` for none."""
    return newest + SLOTS * (durable + (SLOTS + 1) * covered)


def _written() -> bytes:
    """State → state when a tail is written: to a slot that is none of the three."""
    table = bytearray(256)
    for covered in range(SLOTS + 1):
        for durable in range(SLOTS + 1):
            for newest in range(SLOTS):
                free = min(set(range(SLOTS)) - {newest, durable, covered})
                table[_pack(newest, durable, covered)] = _pack(free, durable, covered)
    return bytes(table)


_WRITTEN = _written()


class TailLanes:
    """A writer's lanes of tail slots, and which of them are free. The log's lock is held by whoever calls, save for
    `sync_begins` and `sync_completed`, which no append waits for.

    What a sync covers has to be one moment for all lanes, and an append must know it. So the control words of the
    newest segment are copied by one call that runs no Python code: the interpreter lets no append come between. Each
    lane takes note of it at its next tail, from the rows that its tails follow.
    """

    def __init__(self, folder: Path, layout: Layout) -> None:
        self._folder, self._layout = folder, layout
        self.per_file = lanes_per_file(layout)
        self.files: list[TailFile] = []
        self._free: list[int] = []
        self._state = bytearray()
        self._follows: list[int] = []
        """Slot → the row that its tail follows, -1 before there was one."""
        self._covered: deque[int] = deque([0] * len(CONTROL), maxlen=len(CONTROL))
        self._durable_rows = 0
        self._seen: list[tuple[int, ...]] = []

    def ensure(self, count: int) -> None:
        """Makes sure that so many lanes are free. Raises DiskFull."""
        while len(self._free) < count:
            self._grow()

    def _grow(self) -> None:
        count = len(self.files)
        self.files.append(TailFile.create(self._folder / f"{count:08d}.tails", self._layout))
        self._free += range(self.per_file * (count + 1) - 1, self.per_file * count - 1, -1)
        self._state += bytes([_pack(0, _NONE, _NONE)]) * self.per_file
        self._follows += [-1] * (SLOTS * self.per_file)
        self._seen += [()] * self.per_file

    def take(self, episode: OpenEpisode) -> None:
        """Gives an episode its lane, when it has none yet. Raises DiskFull."""
        if episode.lane is None:
            self.ensure(1)
            episode.lane = self._free.pop()

    def give_back(self, episode: OpenEpisode) -> None:
        if episode.lane is not None:
            self._free.append(episode.lane)
            episode.lane = None

    def turn(self, episode: OpenEpisode, row: int) -> None:
        """Goes on to the slot for an episode's next tail, which follows `row` and becomes its newest."""
        lane = episode.lane
        assert lane is not None
        covered = tuple(self._covered)
        if covered != self._seen[lane]:
            self._settle(lane, covered)
        state = self._state[lane] = _WRITTEN[self._state[lane]]
        self._follows[SLOTS * lane + state % SLOTS] = row

    def _settle(self, lane: int, covered: tuple[int, ...]) -> None:
        """Takes note of a sync that began since the lane's newest tail was written."""
        follows = self._follows[SLOTS * lane : SLOTS * (lane + 1)]

        def newest_below(rows: int) -> int:
            row, slot = max((row, slot) for slot, row in enumerate(follows) if row < rows)
            return _NONE if row < 0 else slot

        durable, begun = self._durable_rows, _rows(covered)
        newest = self._state[lane] % SLOTS
        self._state[lane] = _pack(
            newest,
            newest_below(durable) if min(follows) < durable else _NONE,
            newest_below(begun) if min(follows) < begun else _NONE,
        )
        self._seen[lane] = covered

    def slot(self, episode: OpenEpisode) -> tuple[TailFile, int]:
        """The file and slot of an episode's newest tail."""
        assert episode.lane is not None
        file, lane = divmod(episode.lane, self.per_file)
        return self.files[file], SLOTS * lane + self._state[episode.lane] % SLOTS

    def sync_begins(self, control: memoryview) -> int:
        """From now on the newest tails of the rows that `control` counts are kept: the sync covers them. Returns the
        publish word."""
        self._covered.extend(control)
        return self._covered[0]

    def sync_completed(self) -> None:
        """The tails kept by the sync before this one may be overwritten."""
        self._durable_rows = _rows(tuple(self._covered))

    def slots(self, episodes: Sequence[OpenEpisode]) -> Iterator[tuple[TailFile, NDArray[np.int64], NDArray[np.int64]]]:
        """The newest tails of many episodes, file by file: the file, the slots `[k]`, and whose they are `[k]`, as
        places in `episodes`."""
        files, lanes = np.divmod(np.array([e.lane for e in episodes], np.int64), self.per_file)
        state = self._state
        slots = SLOTS * lanes + np.array([state[e.lane] % SLOTS for e in episodes], np.int64)  # type: ignore[index]
        if len(self.files) == 1:
            yield self.files[0], slots, np.arange(len(slots))
            return
        for file in set(files.tolist()):
            members = np.flatnonzero(files == file)
            yield self.files[file], slots[members], members


class TailFile:
    """Slots for `lanes_per_file` open episodes."""

    def __init__(self, path: Path, layout: Layout, map_: mmap.mmap, fd: int) -> None:
        self.path, self.layout, self.map, self.fd = path, layout, map_, fd
        self.slot_bytes = slot_bytes(layout)
        count = SLOTS * lanes_per_file(layout)
        self.records: NDArray[np.void] = np.ndarray(
            (count,), layout.dtype, buffer=map_, offset=PAGE, strides=(self.slot_bytes,)
        )
        self.planes: dict[str, NDArray[Any]] = {}
        at = layout.itemsize
        for leaf in layout.wide:
            if not leaf.is_observation:
                continue
            f = leaf.field
            shape = f.shape if isinstance(f, Frames) else (f.size,)  # type: ignore[union-attr]
            dtype = np.dtype(f.dtype)  # type: ignore[union-attr]
            inner = np.empty(shape, dtype).strides
            self.planes[leaf.path] = np.ndarray(
                (count, *shape), dtype, buffer=map_, offset=PAGE + at, strides=(self.slot_bytes, *inner)
            )
            at += (layout.plane_bytes[leaf.path] + 7) // 8 * 8

    @classmethod
    def create(cls, path: Path, layout: Layout) -> TailFile:
        size = file_bytes(layout)
        temporary = path.with_name(f".{path.name}.new")
        with os_errors("creating", path):
            fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            try:
                os.posix_fallocate(fd, 0, size)
                map_ = mmap.mmap(fd, size)
                fault_in(map_)
                out = cls(path, layout, map_, fd)
                out.records[:] = FieldWriters(layout, keep).blank_void
                out.records["writer"] = -1
                os.fsync(fd)
                os.rename(temporary, path)
                sync_folder(path.parent)
            except BaseException:
                os.close(fd)
                temporary.unlink(missing_ok=True)
                raise
        return out

    @classmethod
    def open_(cls, path: Path, layout: Layout) -> TailFile:
        with os_errors("opening", path):
            map_, size = map_for_reading(path)
        if map_ is None or size < file_bytes(layout):
            raise CorruptionError(f"tails file {str(path)!r} is cut short", value=size)
        return cls(path, layout, map_, -1)

    def slot_at(self, slot: int) -> int:
        """Byte offset of a slot in the map."""
        return PAGE + slot * self.slot_bytes

    def checksum(self, slot: int) -> int:
        at = self.slot_at(slot)
        return zlib.crc32(self.map[at + 4 : at + self.slot_bytes])

    def damaged(self) -> int:
        """Slots that were written and do not have the checksum they carry."""
        unused = (self.records["writer"] == -1) & (self.records["crc"] == 0)
        return sum(self.checksum(slot) != int(self.records["crc"][slot]) for slot in np.flatnonzero(~unused).tolist())

    def sync(self) -> None:
        os.fdatasync(self.fd)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def _rows(control: tuple[int, ...]) -> int:
    word, _, _, first_row = control
    return first_row + (word & ROWS_MASK)


def slot_bytes(layout: Layout) -> int:
    wide = sum((layout.plane_bytes[leaf.path] + 7) // 8 * 8 for leaf in layout.wide if leaf.is_observation)
    return layout.itemsize + wide


def file_bytes(layout: Layout) -> int:
    return PAGE + SLOTS * lanes_per_file(layout) * slot_bytes(layout)


def damaged_slots(paths: list[Path], layout: Layout) -> int:
    """Slots of tails files that do not have the checksum they carry; every slot of a file that is cut short."""
    out = 0
    for path in paths:
        try:
            out += TailFile.open_(path, layout).damaged()
        except CorruptionError:
            out += SLOTS * lanes_per_file(layout)
    return out


def read_tails(files: list[TailFile], ids: Ids, layout: Layout) -> tuple[Ids, Block | None]:
    """The waiting observations of the given steps, copied out; slots that fail their checksum are passed over."""
    wanted = set(ids.tolist())
    seqs = np.sort(ids["seq"])
    observed = [(leaf.path, layout.offset(column(leaf.path))) for leaf in layout.wide if leaf.is_observation]
    writer_at, seq_at = layout.offset("writer"), layout.offset("seq")
    planes: dict[str, list[NDArray[Any]]] = {leaf.path: [] for leaf in layout.wide}
    joined = bytearray()
    for file in files if wanted else ():
        seq = file.records["seq"]
        at = np.minimum(np.searchsorted(seqs, seq), len(seqs) - 1)
        for slot in np.flatnonzero(seqs[at] == seq).tolist():
            # Copied before it is judged: its writer may be overwriting it.
            raw = bytearray(file.map[file.slot_at(slot) : file.slot_at(slot) + file.slot_bytes])
            owner = (_I64.unpack_from(raw, writer_at)[0], _I64.unpack_from(raw, seq_at)[0])
            if owner not in wanted or int.from_bytes(raw[:4], "little") != zlib.crc32(memoryview(raw)[4:]):
                continue
            wanted.discard(owner)
            begin = layout.itemsize
            for path, place in observed:
                size, region = layout.plane_bytes[path], file.planes[path]
                if _I64.unpack_from(raw, place)[0] >= 0:
                    _I64.pack_into(raw, place, len(planes[path]))
                    plane = np.frombuffer(raw, region.dtype, size // region.itemsize, begin)
                    planes[path].append(plane.reshape(region.shape[1:]))
                begin += (size + 7) // 8 * 8
            joined += memoryview(raw)[: layout.itemsize]
    if not joined:
        return ids[:0], None
    # Not np.concatenate, whose result has no padding: rows are addressed by the layout's offsets.
    records = np.frombuffer(joined, layout.dtype)
    stacked = {}
    for leaf in layout.wide:
        f = leaf.field
        shape = f.shape if isinstance(f, Frames) else (f.size,)  # type: ignore[union-attr]
        stacked[leaf.path] = (
            np.stack(planes[leaf.path]) if planes[leaf.path] else np.zeros((0, *shape), f.dtype)  # type: ignore[union-attr]
        )
    return make_ids(records["writer"], records["seq"]), Block(records, stacked, np.zeros(0, np.uint8))
