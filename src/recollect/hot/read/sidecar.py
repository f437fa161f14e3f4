"""`Sidecar`: an SQLite file beside the logs that holds nothing but what can be made from them again.

Whatever is wrong with the file, no reader hears of it: `read` and `write` then return None, the caller looks into the
logs themselves, and a file that is damaged, of another format, copied, or written before this boot is thrown away
(design/0009).
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, TypeVar

from recollect.errors import RecollectError
from recollect.hot.format.files import FileLock, boot_id, try_lock

T = TypeVar("T")

BUSY_S = 0.1
"""How long a reader waits for another process's commit, or another thread, before it does without."""
PAUSE_S = 1.0
"""How long it then does without before it tries again."""
_ABSENT = frozenset(
    (
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_IOERR,
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_AUTH,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_INTERRUPT,
    )
)
"""Primary result codes that say nothing against the file's content."""
_left_by_fork: list[sqlite3.Connection] = []


class Damaged(Exception):
    """What an index says is not so."""


_BAD = (sqlite3.Error, Damaged, ValueError, TypeError, OverflowError)
"""What reading a bad file ends in: SQLite's own errors, or values of another kind than were written."""


class Later(Exception):
    """What was to be written is not of now: rows went meanwhile. Nothing is, and whoever asks next tries again."""


class Stale(Damaged):
    """An index that may be whole, but was not made by this release on this boot for this file."""


class Sidecar:
    """One rebuildable SQLite file. Thread-safe; a forked child opens it anew.

    Attributes:
        path: where it lies; `<path>.lock` is held by whoever writes it or throws it away.
        thrown_away: what was wrong with the file that this object last threw away by itself.
    """

    def __init__(self, path: Path, tables: str, format: int) -> None:
        self.path, self._tables, self._format = path, tables, format
        self.thrown_away: Exception | None = None
        self._process = os.getpid()
        self._mutex = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._paused_until = {"read": 0.0, "write": 0.0}

    def read(self, query: Callable[[sqlite3.Connection], T]) -> T | None:
        """What `query` answers within one read transaction; None where there is no file to ask."""
        with self._alone() as mine:
            if not mine or time.monotonic() < self._paused_until["read"]:
                return None
            try:
                connection = self._connect()
                return None if connection is None else _within(connection, "BEGIN", query)
            except RecollectError:
                raise
            except _BAD as error:
                self._after(error, "read")
                return None

    def write(self, change: Callable[[sqlite3.Connection], T]) -> T | None:
        """What `change` answers within one write transaction, in a new file where there is none.

        None where another process is writing, where the disk does not take it, or where the file was thrown away.
        """
        with self._alone() as mine:
            lock = self._lock() if mine and time.monotonic() >= self._paused_until["write"] else None
            if lock is None:
                return None
            try:
                connection = self._connect(create=True)
                return None if connection is None else _within(connection, "BEGIN IMMEDIATE", change)
            except RecollectError:
                raise
            except Later:
                return None
            except _BAD as error:
                self._after(error, "write")
                return None
            finally:
                lock.close()

    @property
    def is_paused(self) -> bool:
        """Whether the disk or another process refused the last write, a moment ago."""
        return time.monotonic() < self._paused_until["write"]

    def discard(self) -> bool:
        """Throws the file away; False where another process is writing it."""
        with self._alone() as mine:
            lock = self._lock() if mine else None
            if lock is None:
                return False
            with lock:
                self._remove()
                return True

    def close(self) -> None:
        """Gives the file up until it is next asked."""
        with self._alone() as mine:
            if mine:
                self._disconnect()

    # -- inside --------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _alone(self) -> Iterator[bool]:
        """Keeps other threads out, or yields False. A forked child drops what it got from its parent."""
        if self._process != os.getpid():
            self._mutex = threading.RLock()
            if self._connection is not None:
                _left_by_fork.append(self._connection)  # closing it here would be use across a fork too
            self._connection, self._file, self._process = None, None, os.getpid()
        mutex = self._mutex
        mine = mutex.acquire(timeout=BUSY_S)
        try:
            yield mine
        finally:
            if mine:
                mutex.release()

    def _lock(self) -> FileLock | None:
        try:
            return try_lock(self.path.with_name(self.path.name + ".lock"))
        except OSError:
            return None

    def _connect(self, *, create: bool = False) -> sqlite3.Connection | None:
        """A connection to the file that has the name now, checked once; None where there is none."""
        try:
            stat = self.path.stat()
            file: tuple[int, int] | None = (stat.st_dev, stat.st_ino)
        except OSError:
            file = None
        if self._connection is not None and file == self._file:
            return self._connection
        self._disconnect()
        if file is None:
            if not create:
                return None
            with contextlib.suppress(FileNotFoundError):
                self.journal.unlink()
        self._connection = sqlite3.connect(self.path, timeout=BUSY_S, isolation_level=None, check_same_thread=False)
        self._connection.execute("PRAGMA cell_size_check = ON")
        # What a power cut leaves is thrown away by its boot id, so nothing here waits for the disk.
        self._connection.execute("PRAGMA synchronous = OFF")
        stat = self.path.stat()
        self._file = (stat.st_dev, stat.st_ino)
        mine = [str(self._format), boot_id(), str(self._file)]
        if file is None:
            self._connection.execute("PRAGMA journal_mode = TRUNCATE")
            _within(self._connection, "BEGIN IMMEDIATE", lambda c: self._make(c, mine))
        else:
            found = self._connection.execute("SELECT value FROM identity ORDER BY place").fetchall()
            if [value for (value,) in found] != mine or mine[1] == "unknown":
                raise Stale("the file is another format's, another boot's or a copy")
        return self._connection

    def _make(self, connection: sqlite3.Connection, identity: list[str]) -> None:
        connection.execute("CREATE TABLE identity (place INTEGER PRIMARY KEY, value TEXT NOT NULL)")
        connection.executemany("INSERT INTO identity VALUES (?, ?)", enumerate(identity))
        for statement in self._tables.split(";"):
            connection.execute(statement)

    @property
    def journal(self) -> Path:
        return self.path.with_name(self.path.name + "-journal")

    def _after(self, error: Exception, doing: Literal["read", "write"]) -> None:
        """Throws a bad file away; leaves one alone that only cannot be used now."""
        code = getattr(error, "sqlite_errorcode", None)
        if not isinstance(error, sqlite3.Error) or (code is not None and code & 0xFF not in _ABSENT):
            self.thrown_away = error
            if doing == "write":
                self._remove()
            else:
                self.discard()
        else:
            self._disconnect()
            self._paused_until[doing] = time.monotonic() + PAUSE_S

    def _remove(self) -> None:
        self._disconnect()
        for path in (self.journal, self.path):
            with contextlib.suppress(OSError):
                path.unlink()

    def _disconnect(self) -> None:
        connection, self._connection, self._file = self._connection, None, None
        if connection is not None:
            with contextlib.suppress(sqlite3.Error):
                connection.close()


def _within(connection: sqlite3.Connection, begin: str, work: Callable[[sqlite3.Connection], T]) -> T:
    connection.execute(begin)
    try:
        out = work(connection)
        connection.execute("COMMIT")
        return out
    except BaseException:
        with contextlib.suppress(sqlite3.Error):
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        raise


def drop_index(path: Path, wait_s: float = 10.0) -> bool:
    """Removes an index that says what is no more. False where another process was writing it all the time."""
    end = time.monotonic() + wait_s
    file = Sidecar(path, "", 0)
    while path.exists() or file.journal.exists():
        if not file.discard():
            if time.monotonic() > end:
                return False
            time.sleep(0.005)
    return True
