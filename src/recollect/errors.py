"""Every error that recollect raises, in one tree.

Each class has a stable `kind`, an exit code for the command line, and carries the offending value and a
remedy. The text is one line: what is wrong, the value, what to do about it.

    RecollectError
    ├── SchemaError (ValueError)            a declaration that cannot work
    │   ├── FieldError                      a value that does not fit its field
    │   └── SchemaMismatch                  two schemas that had to be equal
    ├── EpisodeError (ValueError)           an append that the episode's state forbids
    ├── ArgumentError (ValueError)          an option out of range, or two that exclude each other
    ├── NotFound (LookupError)              no such workspace, buffer, tag, version, episode or field
    ├── AlreadyExists (ValueError)          a name that is taken
    ├── WriterError (RuntimeError)          a writer that may not write: closed, forked, poisoned
    ├── StoreError (OSError)                a location that cannot be reached, read or written
    │   ├── DiskFull                        no room for what was to be written
    │   └── StoreUnavailable                a store or network that failed for too long; run it again
    ├── CorruptionError (ValueError)        stored bytes that fail their checks
    ├── ConflictError (RuntimeError)        others committed first, more often than we were willing to retry
    ├── MissingDependency (ImportError)     an optional package that is not installed
    └── WaitTimeout (TimeoutError)          what was waited for did not come in time
"""

from __future__ import annotations

from typing import Any, ClassVar

__all__ = [
    "AlreadyExists",
    "ArgumentError",
    "ConflictError",
    "CorruptionError",
    "DiskFull",
    "EpisodeError",
    "FieldError",
    "MissingDependency",
    "NotFound",
    "RecollectError",
    "SchemaError",
    "SchemaMismatch",
    "StoreError",
    "StoreUnavailable",
    "WaitTimeout",
    "WriterError",
]


class RecollectError(Exception):
    """The root of the tree.

    Args:
        message: what is wrong, naming the field or file concerned.
        value: the offending value, appended to the text in short form.
        remedy: what the reader can do about it.
    """

    kind: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    def __init__(self, message: str, *, value: Any = None, remedy: str | None = None) -> None:
        self.message = message
        self.value = value
        self.remedy = remedy
        super().__init__(self.text)

    @property
    def text(self) -> str:
        """The one line that people read."""
        parts = [self.message]
        if self.value is not None:
            try:
                shown = " ".join(repr(self.value).split())
            except RecursionError:
                shown = f"a {type(self.value).__name__} nested too deep to show"
            parts.append(f"(got {shown if len(shown) <= 120 else shown[:117] + '...'})")
        line = " ".join(parts)
        return f"{line}. {self.remedy}" if self.remedy else line

    def __str__(self) -> str:
        return self.text


class SchemaError(RecollectError, ValueError):
    kind = "schema"
    exit_code = 3


class FieldError(SchemaError):
    kind = "field"
    exit_code = 3


class SchemaMismatch(SchemaError):
    kind = "schema_mismatch"
    exit_code = 3


class EpisodeError(RecollectError, ValueError):
    kind = "episode"
    exit_code = 3


class ArgumentError(RecollectError, ValueError):
    kind = "argument"
    exit_code = 2


class NotFound(RecollectError, LookupError):
    kind = "not_found"
    exit_code = 4


class AlreadyExists(RecollectError, ValueError):
    kind = "already_exists"
    exit_code = 5


class WriterError(RecollectError, RuntimeError):
    kind = "writer"
    exit_code = 6


class StoreError(RecollectError, OSError):
    kind = "store"
    exit_code = 7


class DiskFull(StoreError):
    kind = "disk_full"
    exit_code = 8


class StoreUnavailable(StoreError):
    kind = "store_unavailable"
    exit_code = 7


class CorruptionError(RecollectError, ValueError):
    kind = "corruption"
    exit_code = 9


class ConflictError(RecollectError, RuntimeError):
    kind = "conflict"
    exit_code = 10


class MissingDependency(RecollectError, ImportError):
    kind = "missing_dependency"
    exit_code = 11


class WaitTimeout(RecollectError, TimeoutError):
    kind = "timeout"
    exit_code = 12
