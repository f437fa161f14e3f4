"""Files and folders: atomic creation, locks, syncs, and operating-system errors in our own words."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import mmap
import os
import re
import resource
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType

from recollect.errors import ConflictError, DiskFull, StoreError

NETWORK_FILE_SYSTEMS = frozenset(
    [
        "nfs",
        "nfs4",
        "cifs",
        "smb3",
        "smbfs",
        "ceph",
        "glusterfs",
        "lustre",
        "9p",
        "afs",
        "beegfs",
        "gpfs",
        "wekafs",
        "virtiofs",
        "pvfs2",
        "orangefs",
        "panfs",
        "ocfs2",
        "gfs2",
    ]
)
LOCAL_FUSE = frozenset(["fuse.fuse-overlayfs", "fuse.ext4", "fuse.ext2", "fuse.ntfs-3g", "fuse.exfat", "fuse.zfs"])
"""File systems in user space that live on a disk of this machine. The others are mostly stores behind a network."""
WRITER = re.compile(r"[0-9a-f]{16}\Z")
ABSENT = (FileNotFoundError, NotADirectoryError)


def writers_folders(log: Path) -> list[Path]:
    """The folders of writers, in the order of their ids; nothing else that lies there. Raises StoreError."""
    try:
        with os_errors("reading", log, but=ABSENT), os.scandir(log) as entries:
            names = [entry.name for entry in entries if WRITER.match(entry.name) and entry.is_dir()]
    except ABSENT:
        return []
    return [log / name for name in sorted(names)]


def in_our_words(doing: str, path: str | Path, error: OSError) -> StoreError:
    """An error of the operating system as StoreError or DiskFull, naming what was being done and where."""
    text = f"{doing} {str(path)!r} failed: {error.strerror or error}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DiskFull(text, remedy="Free some space, or set RECOLLECT_HOME to a larger disk")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return StoreError(text, remedy="Raise the limit of open files (ulimit -n), or close what is not used")
    if error.errno == errno.EIO:
        return StoreError(text, remedy="The disk fails: copy the workspace to another one, and verify the copy")
    return StoreError(text, remedy="Check that the path exists and may be read and written")


@contextlib.contextmanager
def os_errors(doing: str, path: str | Path, *, but: tuple[type[OSError], ...] = ()) -> Iterator[None]:
    """Raises every OSError within as `in_our_words` says it; those of the kinds `but` pass as they are."""
    try:
        yield
    except OSError as e:
        if isinstance(e, (StoreError, *but)):
            raise
        raise in_our_words(doing, path, e) from e


def sync_folder(path: Path) -> None:
    """Makes renames and creations in a folder survive a power cut."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


_PART = 1 << 20


def sync_file(path: Path) -> None:
    """Flushes a file that any process wrote. Raises StoreError."""
    with os_errors("syncing", path):
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def write_again(path: Path) -> None:
    """Writes a file's bytes once more, so that its next flush writes them to the disk, whatever became of one before.

    After a failed flush the kernel may count pages as clean that never reached the disk; a flush would then pass them
    over. Pages of zeros are left alone: they are what the file was made of. Nobody may write to it meanwhile.

    Raises:
        DiskFull, StoreError: the file cannot be read or written.
    """
    with os_errors("writing again", path):
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            at = 0
            while part := os.pread(fd, _PART, at):
                if part.strip(b"\0"):
                    os.pwrite(fd, part, at)
                at += len(part)
        finally:
            os.close(fd)


def map_for_reading(path: Path, *, lock: bool = False) -> tuple[mmap.mmap | None, int]:
    """A file's bytes and its size; None for an empty file. With `lock`, the map holds the file's shared flock as long
    as it lives: it keeps the descriptor that the lock was taken on.

    A map holds a descriptor, and a workspace of many writers needs many: where the process may not open more, its soft
    limit is raised as far as the hard one. Raises OSError.
    """
    for attempt in range(2):
        try:
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if lock:
                    fcntl.flock(fd, fcntl.LOCK_SH)
                size = os.fstat(fd).st_size
                return (mmap.mmap(fd, size, prot=mmap.PROT_READ) if size else None), size
            finally:
                os.close(fd)
        except OSError as e:
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            if e.errno != errno.EMFILE or attempt or soft == hard:
                raise
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    raise AssertionError("unreachable")


def make_folder(path: Path) -> None:
    """Creates a folder and its missing parents, each durable."""
    missing = []
    at = path
    while not at.exists():
        missing.append(at)
        at = at.parent
    for folder in reversed(missing):
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
        sync_folder(folder.parent)


def create_exclusive(path: Path, data: bytes) -> bool:
    """Creates a file whole or not at all; False when it exists already. Durable when it returns."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        _write(temporary, data)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)
    return True


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file whole, over an older one. Durable when it returns."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.{os.urandom(4).hex()}")
    try:
        _write(temporary, data)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _write(path: Path, data: bytes) -> None:
    with open(path, "xb") as f:
        f.write(data)
        f.flush()
        os.fsync(f.fileno())


_opening = threading.RLock()
"""Held while a lock's file is opened or closed. A fork waits for it, so that no child gets a descriptor that is not in
`_held`."""
_held: set[FileLock] = set()


class FileLock:
    """A file's flock, from when it is taken until `close`.

    A flock belongs to what `open` made, of which a forked child gets a share: it would keep the lock for as long as it
    lives, whatever became of its parent. So a child closes its share before anything else runs there, and `fd` is then
    -1. That must hold from the opening on, since a lock that is taken later is the child's too.

    Attributes:
        fd: the descriptor, -1 once it was closed.

    Raises:
        OSError: the file cannot be opened.
    """

    def __init__(self, path: Path, flags: int = os.O_RDWR | os.O_CREAT) -> None:
        with _opening:
            self.fd = os.open(path, flags | os.O_CLOEXEC, 0o644)
            _held.add(self)

    def take(self, *, shared: bool = False) -> bool:
        """Takes the lock where nobody else has it. Returns whether it did."""
        try:
            fcntl.flock(self.fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def close(self) -> None:
        """Gives it up; closing twice is fine. In a forked child of its holder, nothing happens."""
        with _opening:
            if self.fd >= 0:
                # Closing alone would leave it to a child that was forked just now and has not begun to run.
                with contextlib.suppress(OSError):
                    fcntl.flock(self.fd, fcntl.LOCK_UN)
            self.forget()

    def forget(self) -> None:
        """Closes this process's descriptor: what is left of the lock is whoever shares it."""
        with _opening:
            _held.discard(self)
            fd, self.fd = self.fd, -1
            if fd >= 0:
                os.close(fd)

    def __enter__(self) -> FileLock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _after_fork() -> None:
    for lock in list(_held):
        with contextlib.suppress(OSError):
            lock.forget()
    _opening.release()


os.register_at_fork(before=_opening.acquire, after_in_parent=_opening.release, after_in_child=_after_fork)


def try_lock(path: Path) -> FileLock | None:
    """The file's exclusive flock, or None when another holds it. Raises OSError."""
    lock = FileLock(path)
    try:
        if lock.take():
            return lock
    except BaseException:
        lock.close()
        raise
    lock.close()
    return None


def is_locked(path: Path) -> bool:
    """Whether a process holds the file's exclusive flock. Two that ask at once do not take each other for it.

    Raises:
        StoreError: the file is there and cannot be opened.
    """
    try:
        with os_errors("looking at lock", path, but=ABSENT), FileLock(path, os.O_RDONLY) as lock:
            return not lock.take(shared=True)
    except ABSENT:
        return False


def lock_when_free(path: Path) -> FileLock | None:
    """As `try_lock`, but passing over those that only ask whether it is held. Raises OSError."""
    for _ in range(50):
        lock = try_lock(path)
        if lock is not None or is_locked(path):
            return lock
        time.sleep(0.002)
    return None


@contextlib.contextmanager
def locked(path: Path, wait_s: float, *, shared: bool = False) -> Iterator[FileLock]:
    """Holds the file's flock, exclusive unless `shared`.

    Raises:
        ConflictError: another process held it all the time.
        FileNotFoundError: its folder is gone.
        StoreError: the file cannot be opened.
    """
    with os_errors("locking", path, but=ABSENT):
        lock = FileLock(path)
    with lock:
        end = time.monotonic() + wait_s
        pause = 0.001
        while not lock.take(shared=shared):
            if time.monotonic() > end:
                raise ConflictError(
                    f"another process has held {str(path)!r} for {wait_s:.0f} s",
                    remedy="Wait for it to end, or end it if it is stopped, and try again",
                )
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        yield lock


@functools.cache
def boot_id() -> str:
    """Changes at every boot of this machine: stores made before a kill are in memory only while it stays the same."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"


def file_system_type(path: Path) -> str:
    """The type of the file system that holds `path`, as the kernel names it."""
    target = os.path.realpath(path)
    best, kind = "", "unknown"
    try:
        lines = Path("/proc/self/mounts").read_text().splitlines()
    except OSError:
        return kind
    for line in lines:
        _, point, fs, *_ = line.split(" ")
        point = point.encode().decode("unicode_escape")
        inside = target == point or target.startswith(point.rstrip("/") + "/")
        if inside and len(point) >= len(best):
            best, kind = point, fs
    return kind


def refuse_network_file_system(path: Path) -> None:
    """Raises StoreError on a network file system: shared memory maps and locks do not hold across machines."""
    kind = file_system_type(path)
    if kind in NETWORK_FILE_SYSTEMS or (kind.split(".")[0] == "fuse" and kind not in LOCAL_FUSE):
        raise StoreError(
            f"a workspace cannot live on {kind} ({str(path)!r})",
            remedy="Set RECOLLECT_HOME to a local disk and snapshot to the network",
        )
