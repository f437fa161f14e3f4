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
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recollect.errors import CorruptionError
from recollect.hot.fields import FieldWriters, OpenEpisode
from recollect.hot.files import map_for_reading, os_errors, sync_folder
from recollect.hot.segment import PAGE, POPULATE_WRITE, _touch
from recollect.masking import keep
from recollect.records.block import Block
from recollect.records.layout import Layout, column
from recollect.schema.fields import Frames
from recollect.view import ID_DTYPE, Ids

LANES_PER_FILE = 64
FILE_BYTES = 4 << 20
SLOTS = 4
_NONE = SLOTS


def lanes_per_file(layout: Layout) -> int:
    """Lanes in one file: fewer where an observation is large, so that one episode does not cost a hundred."""
    return max(1, min(LANES_PER_FILE, FILE_BYTES // (SLOTS * slot_bytes(layout))))


def _pack(newest: int, durable: int, syncing: int) -> int:
    """A lane's state in one byte: the slot of the newest tail, the newest that a completed sync covered, and the newest
    that a sync under way covers; `_NONE` for none."""
    return newest + SLOTS * (durable + (SLOTS + 1) * syncing)


def _transitions() -> tuple[bytes, bytes, bytes]:
    """State → state, as tables for `bytes.translate`: a tail is written; a sync begins; it has completed."""
    written, begun, done = bytearray(256), bytearray(256), bytearray(256)
    for syncing in range(SLOTS + 1):
        for durable in range(SLOTS + 1):
            for newest in range(SLOTS):
                state = _pack(newest, durable, syncing)
                free = min(set(range(SLOTS)) - {newest, durable, syncing})
                written[state] = _pack(free, durable, syncing)
                begun[state] = _pack(newest, durable, newest)
                done[state] = _pack(newest, syncing, _NONE)
    return bytes(written), bytes(begun), bytes(done)


_WRITTEN, _BEGUN, _DONE = _transitions()


class TailLanes:
    """A writer's lanes of tail slots, and which of them are free. The log's lock is held by whoever calls."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self._folder, self._layout = folder, layout
        self.per_file = lanes_per_file(layout)
        self.files: list[TailFile] = []
        self._free: list[int] = []
        self._state = bytearray()

    def ensure(self, count: int) -> None:
        """Makes sure that so many lanes are free. Raises DiskFull."""
        while len(self._free) < count:
            self._grow()

    def _grow(self) -> None:
        count = len(self.files)
        self.files.append(TailFile.create(self._folder / f"{count:08d}.tails", self._layout))
        self._free += range(self.per_file * (count + 1) - 1, self.per_file * count - 1, -1)
        self._state += bytes([_pack(0, _NONE, _NONE)]) * self.per_file

    def take(self, episode: OpenEpisode) -> None:
        """Gives an episode its lane, when it has none yet. Raises DiskFull."""
        if episode.lane is None:
            self.ensure(1)
            episode.lane = self._free.pop()

    def give_back(self, episode: OpenEpisode) -> None:
        if episode.lane is not None:
            self._free.append(episode.lane)
            episode.lane = None

    def slot(self, episode: OpenEpisode) -> tuple[TailFile, int]:
        """The file and slot of an episode's newest tail."""
        assert episode.lane is not None
        file, lane = divmod(episode.lane, self.per_file)
        return self.files[file], SLOTS * lane + self._state[episode.lane] % SLOTS

    def next_slot(self, episode: OpenEpisode) -> tuple[TailFile, int]:
        """The file and slot for an episode's next tail, which becomes its newest."""
        assert episode.lane is not None
        self._state[episode.lane] = _WRITTEN[self._state[episode.lane]]
        return self.slot(episode)

    def sync_begins(self) -> None:
        """From now on the newest tails are kept: the sync covers them."""
        self._state = self._state.translate(_BEGUN)

    def sync_completed(self) -> None:
        """The tails kept by the sync before this one may be overwritten."""
        self._state = self._state.translate(_DONE)


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
                try:
                    map_.madvise(POPULATE_WRITE)
                except OSError:
                    _touch(map_)
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
    wanted = {(w, s) for w, s in ids.tolist()}
    records: list[NDArray[np.void]] = []
    planes: dict[str, list[NDArray[Any]]] = {leaf.path: [] for leaf in layout.wide}
    observed = [leaf.path for leaf in layout.wide if leaf.is_observation]
    for file in files:
        owners = list(zip(file.records["writer"].tolist(), file.records["seq"].tolist(), strict=True))
        for slot, owner in enumerate(owners):
            if owner not in wanted:
                continue
            raw = file.map[file.slot_at(slot) : file.slot_at(slot) + file.slot_bytes]
            record = np.frombuffer(raw, layout.dtype, 1).copy()
            if int(record["crc"][0]) != zlib.crc32(raw[4:]) or (record["writer"][0], record["seq"][0]) != owner:
                continue
            wanted.discard(owner)
            at = layout.itemsize
            for path in observed:
                size = layout.plane_bytes[path]
                region = file.planes[path]
                if record[column(path)][0] >= 0:
                    record[column(path)] = len(planes[path])
                    planes[path].append(np.frombuffer(raw[at : at + size], region.dtype).reshape(region.shape[1:]))
                at += (size + 7) // 8 * 8
            records.append(record)
    if not records:
        return ids[:0], None
    # Not np.concatenate, whose result has no padding: rows are addressed by the layout's offsets.
    joined = np.frombuffer(bytearray(b"".join(record.tobytes() for record in records)), layout.dtype)
    out = np.empty(len(joined), ID_DTYPE)
    out["writer"], out["seq"] = joined["writer"], joined["seq"]
    stacked = {}
    for leaf in layout.wide:
        parts = planes[leaf.path]
        f = leaf.field
        shape = f.shape if isinstance(f, Frames) else (f.size,)  # type: ignore[union-attr]
        stacked[leaf.path] = (
            np.stack(parts) if parts else np.zeros((0, *shape), f.dtype)  # type: ignore[union-attr]
        )
    return out, Block(joined, stacked, np.zeros(0, np.uint8))
