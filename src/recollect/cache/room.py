"""The room that blocks take: what is there, what has to go, what dead processes left behind.

Names in the folder: `<digest>` a block, `.<digest>.lock` held by whoever decodes it, `.<digest>.part` what was decoded
so far, `.gone-…` a block that was removed while somebody mapped it: its space comes back when they let go of it, and
is counted until then.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recollect.cache.blockfile import DATA, LOCK, USED, read_state
from recollect.cache.budget import VARIABLE, budget_bytes
from recollect.errors import ConflictError, CorruptionError, DiskFull
from recollect.hot.format.files import FileLock, locked, try_lock

NEEDED = "needed"
"""In a `.part`: the bytes that the block is expected to take, counted from the beginning."""
STALLED_S = 120.0
"""A decoder that got no row further for so long is not waited for any more."""
LOOK_S = 1.0
"""How long a count of the bytes in use is believed, while they are below half of the budget."""
LET_GO_S = 0.5
"""How long blocks that are in use are waited for, when there is no room without them."""


@dataclass(frozen=True)
class Held:
    """Something that takes room.

    Attributes:
        path: its folder; `bytes` on disk, or what it will take.
        used_ns: when it was last used.
    """

    path: Path
    bytes: int
    used_ns: int


@dataclass(frozen=True)
class Cached:
    """A block, for people.

    Attributes:
        buffer: the address of the buffer that it was first decoded from; `file` the data file.
        rows, bytes: its size; `hits` how often it was found here.
        used_ns: when it was last used, nanoseconds since 1970.
        in_use: whether a process has it mapped.
    """

    name: str
    buffer: str
    file: str
    rows: int
    bytes: int
    hits: int
    used_ns: int
    in_use: bool


@dataclass(frozen=True)
class Cleared:
    """What was removed.

    Attributes:
        blocks, bytes: removed, and the room they took.
        held_bytes: the part of these that comes back when those who use them let go.
    """

    blocks: int
    bytes: int
    held_bytes: int


class Room:
    """The folder of blocks and its budget.

    Args:
        folder: of the blocks; made when the first one is.
        budget: bytes; None is what `budget_bytes` says.
    """

    def __init__(self, folder: Path, budget: int | None = None) -> None:
        self.folder, self._given = folder, budget
        self._mutex = threading.Lock()
        self._seen = (float("-inf"), 0, 1)

    def budget(self, used: int | None = None) -> int:
        """Bytes that blocks may take."""
        if self._given is not None:
            return self._given
        return budget_bytes(self.folder, sum(h.bytes for h in self.held()) if used is None else used)

    def held(self) -> list[Held]:
        """Blocks, parts that are being decoded, and blocks that went while somebody used them."""
        return [*self._blocks(), *self._parts(), *self._gone()]

    def _names(self, keep: Callable[[str], bool]) -> list[Path]:
        try:
            with os.scandir(self.folder) as entries:
                return sorted(Path(e.path) for e in entries if keep(e.name))
        except FileNotFoundError:
            return []

    def _blocks(self) -> list[Held]:
        return [h for p in self._names(lambda n: not n.startswith(".")) if (h := _size_of(p)) is not None]

    def _gone(self) -> list[Held]:
        return [h for p in self._names(lambda n: n.startswith(".gone-")) if (h := _stated(p)) is not None]

    def _parts(self) -> list[Held]:
        out = []
        for path in self._names(lambda n: n.endswith(".part")):
            needed = 0
            with contextlib.suppress(OSError, ValueError):
                needed = int((path / NEEDED).read_text())
            have = _size_of(path)
            out.append(Held(path, max(needed, have.bytes if have else 0), 0))
        return out

    # -- making room ---------------------------------------------------------------------------------------

    def reserve(self, part: Path, needed: int) -> None:
        """Makes the folder of a block that is to be decoded, once there is room for it.

        What nobody can reach any more may still be mapped until a garbage collection, and what others use may be let go
        of in a moment: both are waited for, a little.

        Raises:
            DiskFull: what is in use leaves none.
        """
        until = time.monotonic() + LET_GO_S
        while True:
            try:
                self._reserve(part, needed)
                return
            except DiskFull:
                if time.monotonic() > until:
                    raise
            gc.collect()
            time.sleep(LET_GO_S / 20)

    def _reserve(self, part: Path, needed: int) -> None:
        with self._mutex:
            clock, used, budget = self._seen
            if time.monotonic() - clock < LOOK_S and 2 * (used + needed) < budget:
                _make(part, needed)
                self._seen = (clock, used + needed, budget)
                return
            with locked(self.folder / ".room", 60):
                self.sweep(but=part)
                used = self.make_room(needed, but=part)
                _make(part, needed)
                self._seen = (time.monotonic(), used + needed, self.budget(used))

    def make_room(self, needed: int, *, but: Path | None = None) -> int:
        """Removes what was used least recently and is not in use, until `needed` bytes are free. Returns bytes in use.

        Raises:
            DiskFull: what is left is in use.
        """
        held = [h for h in self.held() if h.path != but]
        used = sum(h.bytes for h in held)
        budget = self.budget(used)
        if used + needed > budget:
            for block in sorted(self._blocks(), key=lambda h: (h.used_ns, h.path)):
                if used + needed <= budget:
                    break
                if remove(block.path, although_used=False):
                    used -= block.bytes
        if used + needed > budget:
            raise DiskFull(
                f"the cache {str(self.folder.parent)!r} may take {budget:,} bytes, of which {used:,} are in use, and "
                f"{needed:,} are needed for a block",
                remedy=f"Raise {VARIABLE}, close views that are not needed, or draw from a buffer's rotate()",
            )
        return used

    def trim(self) -> None:
        """Brings the blocks back under the budget as far as what is in use allows it."""
        with contextlib.suppress(DiskFull), locked(self.folder / ".room", 60):
            self.make_room(0)

    def sweep(self, *, but: Path | None = None) -> None:
        """Removes what processes that died, or let go of a removed block, left behind."""
        for part in self._names(lambda n: n.endswith(".part")):
            if part != but and (held := _take(part.with_suffix(".lock"))) is not None:
                shutil.rmtree(part, ignore_errors=True)
                _let_go(part.with_suffix(".lock"), held)
        for path in self._names(lambda n: n.startswith(".gone-")):
            if not in_use(path):
                shutil.rmtree(path, ignore_errors=True)

    # -- for people ----------------------------------------------------------------------------------------

    def show(self) -> list[Cached]:
        """Every block, the one used last first."""
        out = []
        for block in sorted(self._blocks(), key=lambda h: (-h.used_ns, h.path)):
            state: Mapping[str, Any] = {}
            hits = 0
            with contextlib.suppress(OSError, CorruptionError):
                state = read_state(block.path)
                hits = (block.path / USED).stat().st_size
            source = state.get("source", {})
            out.append(
                Cached(
                    block.path.name,
                    str(source.get("buffer", "")),
                    str(source.get("file", "")),
                    int(state.get("rows", 0)),
                    block.bytes,
                    hits,
                    block.used_ns,
                    in_use(block.path),
                )
            )
        return out

    def clear(self, wanted: Callable[[Cached], bool] = lambda block: True) -> Cleared:
        """Removes blocks, those that are in use too: whoever has one mapped keeps it, and nobody finds it any more."""
        blocks = total = held = 0
        if not self.folder.is_dir():
            return Cleared(0, 0, 0)
        with locked(self.folder / ".room", 60):
            self.sweep()
            for block in self.show():
                if wanted(block):
                    freed = remove(self.folder / block.name, although_used=True)
                    if freed is not None:
                        blocks, total = blocks + 1, total + block.bytes
                        held += 0 if freed else block.bytes
            self._seen = (float("-inf"), 0, 1)
        return Cleared(blocks, total, held)


@contextlib.contextmanager
def decoding(path: Path) -> Iterator[int]:
    """Holds the lock of a block that is to be decoded, waiting for whoever holds it; gives its descriptor.

    Whoever holds it touches the file with every batch. The kernel frees the lock of a process that dies.

    Raises:
        ConflictError: whoever holds it got no row further for two minutes.
    """
    lock = lock_of(path)
    pause = 0.001
    while (held := _take(lock)) is None:
        with contextlib.suppress(FileNotFoundError):
            if time.time() - lock.stat().st_mtime > STALLED_S:
                raise ConflictError(
                    f"another process has decoded block {path.name} without getting further for {STALLED_S:.0f} s",
                    remedy="End it if it is stopped, and try again",
                )
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
    try:
        os.utime(held.fd)
        yield held.fd
    finally:
        _let_go(lock, held)


def _make(part: Path, needed: int) -> None:
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    (part / NEEDED).write_text(str(needed))


def lock_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.lock")


def part_of(path: Path) -> Path:
    return path.with_name(f".{path.name}.part")


def remove(path: Path, *, although_used: bool) -> bool | None:
    """Takes a block out of the cache.

    Returns:
        True when its space is free again, False when that waits for those who use it, None when nothing was removed:
        it is in use and `although_used` is not set, or it went meanwhile.
    """
    gone = path.with_name(f".gone-{path.name}-{os.urandom(4).hex()}")
    with _alone(path) as alone:
        if not (alone or although_used):
            return None
        try:
            os.rename(path, gone)
        except FileNotFoundError:
            return None
        if alone:  # whoever opened the folder before waits for the lock, and then finds no files
            shutil.rmtree(gone, ignore_errors=True)
            return True
        for name in (DATA, USED):
            (gone / name).unlink(missing_ok=True)
        return False


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[bool]:
    """Holds a block's lock exclusively, or gives False: somebody uses it."""
    try:
        lock = FileLock(path / LOCK, os.O_RDONLY)
    except FileNotFoundError:
        yield True
        return
    with lock:
        yield lock.take()


def in_use(path: Path) -> bool:
    """Whether anybody has a block mapped."""
    with _alone(path) as alone:
        return not alone


def _take(lock: Path) -> FileLock | None:
    """The lock, or None while another holds it or just removed it."""
    held = try_lock(lock)
    if held is None:
        return None
    try:
        if os.path.samestat(os.fstat(held.fd), lock.stat()):
            return held
    except FileNotFoundError:
        pass
    held.close()
    return None


def _let_go(lock: Path, held: FileLock) -> None:
    """Removes a lock's file while it is held: those who wait for it see that it is another's."""
    lock.unlink(missing_ok=True)
    held.close()


def _size_of(path: Path) -> Held | None:
    """What a block takes on disk, None where it went meanwhile."""
    total, used = 0, 0
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                stat = entry.stat()
                total += stat.st_blocks * 512
                if entry.name == USED:
                    used = stat.st_mtime_ns
    except (FileNotFoundError, NotADirectoryError):
        return None
    return Held(path, total, used)


def _stated(path: Path) -> Held | None:
    """What a removed block still takes."""
    try:
        return Held(path, int(read_state(path).get("bytes", 0)), 0)
    except (OSError, ValueError):
        return None
