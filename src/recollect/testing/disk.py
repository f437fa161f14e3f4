"""A disk that keeps only what was flushed: what of a folder could be left after the power went.

`Device.install` replaces the calls that make things durable in the process that runs a workload, and notes what each
made durable. When the process is dead, `Disk.compose` makes up a folder that a power cut could have left of it:

- a file's page that changed since its last flush is as it was flushed, as it was last, as it was some time between, or
  torn between two of these at 512-byte sectors; zeros only where nothing was ever flushed;
- a name that was made, replaced or removed since its folder was last flushed is there or not, old or new;
- pages and names are chosen one by one, in any order.

Flushes are seen at `os.fsync` and `fdatasync`, changed names at `os.rename`, `replace`, `link`, `unlink` and `mkdir`.
A flush by `mmap.flush` is not seen, and what it flushed counts as lost. The folder must lie in memory (tmpfs), where an
inode's number is never used twice.
"""

from __future__ import annotations

import json
import os
import random
import stat
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PAGE = 4096
SECTOR = 512
_NAME_CALLS = ("rename", "replace", "link", "unlink", "mkdir")


@dataclass
class Versions:
    """What a file or folder held: at its last flush, None when there was none, and at moments since then."""

    flushed: Any = None
    since: list[Any] = field(default_factory=list)


class Device:
    """The writing side, in the process whose power will go.

    Args:
        root: the folder; nothing outside of it is noted.
        descriptor: a file in memory, shared with the parent.
    """

    def __init__(self, root: Path, descriptor: int) -> None:
        self.root, self._fd = os.path.realpath(root), descriptor
        # A file in memory does not keep the writes of two threads apart; and no look may be noted after a later one.
        self._lock = threading.RLock()

    def install(self) -> None:
        """Counts everything that is there as flushed, and takes over this process's flushes. There is no way back."""
        for folder, _, files in os.walk(self.root):
            self._note_folder(folder, True)
            for name in files:
                self.note_file(os.path.join(folder, name), True)  # noqa: PTH118
        for name in ("fsync", "fdatasync"):
            setattr(os, name, self._flush)
        for name in _NAME_CALLS:
            setattr(os, name, self._naming(getattr(os, name)))

    def _flush(self, file: Any) -> None:
        fd = file if isinstance(file, int) else file.fileno()
        path = str(Path(f"/proc/self/fd/{fd}").readlink())
        if path.removesuffix(" (deleted)") != self.root and not path.startswith(self.root + os.sep):
            return
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            self._note_folder(path, True)
        else:
            # Opened again, since it may have been opened for writing alone.
            self.note_file(f"/proc/self/fd/{fd}", True)

    def _naming(self, call: Callable[..., None]) -> Callable[..., None]:
        def noted(*names: Any, **options: Any) -> None:
            call(*names, **options)
            for folder in {os.path.dirname(os.path.realpath(n)) for n in names if isinstance(n, str | os.PathLike)}:  # noqa: PTH120
                if (folder + os.sep).startswith(self.root + os.sep):
                    self._note_folder(folder, False)

        return noted

    def note_folder(self, path: str | Path) -> None:
        """A folder and the files right in it, flushed: by another process, whose flushes are not seen here."""
        self._note_folder(str(path), True)
        for entry in Path(path).iterdir():
            if entry.is_file():
                self.note_file(entry, True)

    def note_any_file(self, chance: random.Random) -> None:
        """One file as it is now: the kernel may write a page back whenever it likes."""
        paths = [p for p in Path(self.root).rglob("*") if p.suffix in (".seg", ".tails")]
        if paths:
            self.note_file(chance.choice(sorted(paths)), False)

    def note_file(self, path: str | Path, flushed: bool) -> None:
        fd = os.open(path, os.O_RDONLY)
        try:
            with self._lock:
                self._note(flushed, os.fstat(fd).st_ino, _read(fd))
        finally:
            os.close(fd)

    def _note_folder(self, path: str, flushed: bool) -> None:
        with self._lock, os.scandir(path) as entries:
            self._note(flushed, Path(path).stat().st_ino, {e.name: e.inode() for e in entries})

    def _note(self, flushed: bool, inode: int, content: Any) -> None:
        names, raw = (content, b"") if isinstance(content, dict) else (None, content)
        head = json.dumps([flushed, inode, names]).encode()
        body = len(head).to_bytes(4, "little") + head + raw
        os.write(self._fd, len(body).to_bytes(8, "little") + body)


class Disk:
    """The reading side: what the device noted and what is in the folder now that its process is dead."""

    def __init__(self, root: Path, descriptor: int) -> None:
        self.root = root
        self._versions: dict[int, Versions] = {}
        self._folders: set[int] = set()
        raw = _read(descriptor)
        at = 0
        while at + 8 <= len(raw):
            size = int.from_bytes(raw[at : at + 8], "little")
            if at + 8 + size > len(raw):
                break
            begin = at + 12 + int.from_bytes(raw[at + 8 : at + 12], "little")
            flushed, inode, names = json.loads(raw[at + 12 : begin])
            self._take(flushed, inode, raw[begin : at + 8 + size] if names is None else names)
            at += 8 + size
        for folder, _, files in os.walk(root):
            with os.scandir(folder) as entries:
                self._take(False, Path(folder).stat().st_ino, {e.name: e.inode() for e in entries})
            for name in files:
                path = Path(folder) / name
                self._take(False, path.stat().st_ino, path.read_bytes())

    def _take(self, flushed: bool, inode: int, content: Any) -> None:
        if isinstance(content, dict):
            self._folders.add(inode)
        versions = self._versions.setdefault(inode, Versions())
        if flushed:
            versions.flushed = content
            versions.since.clear()
        else:
            versions.since.append(content)

    def compose(self, target: Path, chance: random.Random) -> None:
        """Makes `target` a folder that could have been left."""
        self._folder(self.root.stat().st_ino, target, chance)

    def _folder(self, inode: int, target: Path, chance: random.Random) -> None:
        target.mkdir()
        versions = self._versions[inode]
        states: list[dict[str, int]] = [versions.flushed or {}, *versions.since]
        newest = chance.random() < 0.4
        for name in sorted({name for state in states for name in state}):
            held = states[-1].get(name) if newest else chance.choice(states).get(name)
            if held is None:
                continue
            if held in self._folders:
                self._folder(held, target / name, chance)
            elif held in self._versions:
                (target / name).write_bytes(compose_file(self._versions[held], chance))
            else:
                # Made and removed between two looks: a file of which nothing was ever flushed.
                (target / name).write_bytes(b"")


def compose_file(versions: Versions, chance: random.Random) -> bytes:
    """A file's content after a power cut."""
    states: list[bytes] = [b"" if versions.flushed is None else versions.flushed, *versions.since]
    if all(state == states[0] for state in states):
        return states[0]
    how = chance.choice(("old", "new", "pages", "pages", "torn"))
    if how == "old":
        return states[0]
    if how == "new":
        return states[-1]
    size = len(chance.choice(states)) if versions.flushed is None else len(states[-1])
    out = bytearray(size)
    for at in range(0, size, PAGE):
        kinds = list(dict.fromkeys(state[at : at + PAGE].ljust(PAGE, b"\0") for state in states))
        page = bytearray(chance.choice(kinds))
        if how == "torn" and len(kinds) > 1 and chance.random() < 0.5:
            for sector in range(0, PAGE, SECTOR):
                page[sector : sector + SECTOR] = chance.choice(kinds)[sector : sector + SECTOR]
        out[at : at + PAGE] = page
    return bytes(out[:size])


def _read(fd: int) -> bytes:
    """A file's content, stores into shared maps included, wherever the descriptor stands."""
    size, parts, at = os.fstat(fd).st_size, [], 0
    while at < size:
        part = os.pread(fd, size - at, at)
        if not part:
            break
        parts.append(part)
        at += len(part)
    return b"".join(parts)
