"""Tail slots: the observation after an open episode's newest step.

A step appended with its `next_observation` must be drawable before its successor exists. The observation waits in a
slot of the writer's tails file, as a record of the ordinary layout that carries the id of the step it follows. Each
open episode owns two slots and alternates between them, so that the slot of the newest published step is never the
one being overwritten. A reader that finds its step's slot overwritten finds the successor in the log instead.
"""

from __future__ import annotations

import mmap
import os
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recollect.hot.fields import FieldWriters, OpenEpisode
from recollect.hot.files import os_errors, sync_folder
from recollect.hot.segment import PAGE
from recollect.hot.spare import fault_in
from recollect.masking import keep
from recollect.records.block import Block
from recollect.records.layout import Layout, column
from recollect.schema.fields import Frames
from recollect.view import ID_DTYPE, Ids

LANES_PER_FILE = 64
FILE_BYTES = 4 << 20


def lanes_per_file(layout: Layout) -> int:
    """Pairs of slots in one file: fewer where an observation is large, so that one episode does not cost a hundred."""
    return max(1, min(LANES_PER_FILE, FILE_BYTES // (2 * slot_bytes(layout))))


class TailLanes:
    """A writer's pairs of tail slots, and which of them are free."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self._folder, self._layout = folder, layout
        self.per_file = lanes_per_file(layout)
        self.files: list[TailFile] = []
        self._free: list[int] = []

    def ensure(self, count: int) -> None:
        """Makes sure that so many pairs are free. Raises DiskFull."""
        while len(self._free) < count:
            self._grow()

    def _grow(self) -> None:
        count = len(self.files)
        self.files.append(TailFile.create(self._folder / f"{count:08d}.tails", self._layout))
        self._free += range(self.per_file * (count + 1) - 1, self.per_file * count - 1, -1)

    def take(self, episode: OpenEpisode) -> None:
        """Gives an episode its pair, when it has none yet. Raises DiskFull."""
        if episode.lane is None:
            self.ensure(1)
            episode.lane = self._free.pop()
            episode.turn = 0

    def give_back(self, episode: OpenEpisode) -> None:
        if episode.lane is not None:
            self._free.append(episode.lane)
            episode.lane = None

    def turn(self, episode: OpenEpisode) -> None:
        """Goes on to the slot that the episode's next tail is written to."""
        episode.turn ^= 1

    def slot(self, episode: OpenEpisode) -> tuple[TailFile, int]:
        """The file and slot of an episode's newest tail."""
        assert episode.lane is not None
        file, lane = divmod(episode.lane, self.per_file)
        return self.files[file], 2 * lane + episode.turn

    def slots(self, episodes: Sequence[OpenEpisode]) -> Iterator[tuple[TailFile, NDArray[np.int64], NDArray[np.int64]]]:
        """The newest tails of many episodes, file by file: the file, the slots `[k]`, and whose they are `[k]`, as
        places in `episodes`."""
        files, lanes = np.divmod(np.array([e.lane for e in episodes], np.int64), self.per_file)
        slots = 2 * lanes + np.array([e.turn for e in episodes], np.int64)
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
        count = 2 * lanes_per_file(layout)
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
        size = PAGE + 2 * lanes_per_file(layout) * slot_bytes(layout)
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
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                map_ = mmap.mmap(fd, 0, prot=mmap.PROT_READ)
            finally:
                os.close(fd)
        return cls(path, layout, map_, -1)

    def slot_at(self, slot: int) -> int:
        """Byte offset of a slot in the map."""
        return PAGE + slot * self.slot_bytes

    def checksum(self, slot: int) -> int:
        at = self.slot_at(slot)
        return zlib.crc32(self.map[at + 4 : at + self.slot_bytes])

    def sync(self) -> None:
        os.fdatasync(self.fd)

    def close(self) -> None:
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def slot_bytes(layout: Layout) -> int:
    wide = sum((layout.plane_bytes[leaf.path] + 7) // 8 * 8 for leaf in layout.wide if leaf.is_observation)
    return layout.itemsize + wide


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
    joined = np.concatenate(records)
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
