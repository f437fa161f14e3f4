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
import time
from collections.abc import Iterator
from pathlib import Path

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
        "fuse.sshfs",
        "beegfs",
    ]
)
WRITER = re.compile(r"[0-9a-f]{16}\Z")


def writers_folders(log: Path) -> list[Path]:
    """The folders of writers, in the order of their ids; what else lies beside them is no writer's. Raises OSError."""
    try:
        with os.scandir(log) as entries:
            names = [entry.name for entry in entries if WRITER.match(entry.name) and entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [log / name for name in sorted(names)]


@contextlib.contextmanager
def os_errors(doing: str, path: str | Path) -> Iterator[None]:
    """Turns OSError into StoreError or DiskFull, naming what was being done and where."""
    try:
        yield
    except StoreError:
        raise
    except OSError as e:
        text = f"{doing} {str(path)!r} failed: {e.strerror or e}"
        if e.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(text, remedy="Free some space, or set RECOLLECT_HOME to a larger disk") from e
        if e.errno in (errno.EMFILE, errno.ENFILE):
            raise StoreError(text, remedy="Raise the limit of open files (ulimit -n), or close what is not used") from e
        raise StoreError(text, remedy="Check that the path exists and may be written") from e


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


def try_lock(path: Path) -> int | None:
    """A descriptor that holds the file's exclusive flock, or None when another holds it."""
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    return fd


def is_locked(path: Path) -> bool:
    """Whether a process holds the file's exclusive flock. Two that ask at once do not take each other for it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(fd)
    return False


def lock_when_free(path: Path) -> int | None:
    """As `try_lock`, but passing over those that only ask whether it is held."""
    for _ in range(50):
        fd = try_lock(path)
        if fd is not None or is_locked(path):
            return fd
        time.sleep(0.002)
    return None


@contextlib.contextmanager
def locked(path: Path, wait_s: float, *, shared: bool = False) -> Iterator[int]:
    """Holds the file's flock, exclusive unless `shared`; gives its descriptor.

    Raises:
        ConflictError: another process held it all the time.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        end = time.monotonic() + wait_s
        pause = 0.001
        while True:
            try:
                fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() > end:
                    raise ConflictError(
                        f"another process has held {str(path)!r} for {wait_s:.0f} s",
                        remedy="Wait for it to end, or end it if it is stopped, and try again",
                    ) from None
            time.sleep(pause)
            pause = min(2 * pause, 0.05)
        yield fd
    finally:
        os.close(fd)


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
    if kind in NETWORK_FILE_SYSTEMS:
        raise StoreError(
            f"a workspace cannot live on {kind} ({str(path)!r})",
            remedy="Set RECOLLECT_HOME to a local disk and snapshot to the network",
        )
