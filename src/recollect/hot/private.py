"""Folders of private workspaces: of one process, in memory where there is room, removed with it.

    /dev/shm/recollect-<uid>/<random>/owner    held (flock) while the process lives

Whoever creates one removes those of processes that died, first.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import tempfile
from pathlib import Path

from recollect.errors import StoreError
from recollect.hot.format.files import os_errors, try_lock

ROOM_BYTES = 256 << 20
"""So much must be free in shared memory for a workspace to go there."""
SHARED_MEMORY = Path("/dev/shm")
_owned: set[PrivateFolder] = set()


class PrivateFolder:
    """A folder that lives as long as this process, or until `remove`.

    Args:
        room_bytes: what is expected to be written; where shared memory has less, the folder goes to disk.
    """

    def __init__(self, room_bytes: int = 0) -> None:
        parent = _parent(max(ROOM_BYTES, room_bytes))
        with os_errors("creating a private workspace in", parent):
            parent.mkdir(mode=0o700, exist_ok=True)
            if parent.stat().st_uid != os.getuid():
                raise StoreError(f"{str(parent)!r} belongs to another user", remedy="Set TMPDIR to a folder of yours")
            sweep(parent)
            self.path = parent / os.urandom(8).hex()
            # Locked before it has its name: a free lock says that the owner has died.
            new = self.path.with_name(f".{self.path.name}.new")
            new.mkdir(mode=0o700)
            lock = try_lock(new / "owner")
            assert lock is not None, "nobody else knows this name"
            new.rename(self.path)
        self._lock = lock
        _owned.add(self)

    def remove(self) -> None:
        """Removes the folder. Maps of its files stay valid. A forked child leaves it to its parent."""
        _owned.discard(self)
        if self._lock.fd < 0:
            return
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.close()


def sweep(parent: Path) -> None:
    """Removes the folders whose owners have died."""
    for folder in parent.iterdir():
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            lock = None if folder.name.startswith(".") else try_lock(folder / "owner")
            if lock is not None:
                shutil.rmtree(folder, ignore_errors=True)
                lock.close()


def _parent(room_bytes: int) -> Path:
    name = f"recollect-{os.getuid()}"
    with contextlib.suppress(OSError):
        stat = os.statvfs(SHARED_MEMORY)
        if stat.f_bavail * stat.f_frsize >= room_bytes and os.access(SHARED_MEMORY, os.W_OK | os.X_OK):
            return SHARED_MEMORY / name
    return Path(tempfile.gettempdir()) / name


def _remove_all() -> None:
    for folder in list(_owned):
        folder.remove()


atexit.register(_remove_all)
