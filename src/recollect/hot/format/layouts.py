"""The versions of a workspace's schema, each with its layout: a segment is read in the layout it was written in."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable

from recollect.errors import NotFound
from recollect.records.layout import Layout
from recollect.schema import Schema

_live: weakref.WeakSet[Layouts] = weakref.WeakSet()


class Layouts:
    """One layout for each version of a schema, oldest first. Thread-safe; it grows when another version is made. A
    forked child may go on with it, whatever its parent's threads did.

    Args:
        read: the schema of a version, counted from 1; None where there is no such version yet, as `{1: schema}.get`.

    Raises:
        NotFound: there is no version at all.
    """

    def __init__(self, read: Callable[[int], Schema | None]) -> None:
        self._read = read
        self._versions: list[Layout] = []
        self.start_over()
        _live.add(self)
        self.refresh()
        if not self._versions:
            raise NotFound("no schema yet")

    def start_over(self) -> None:
        """In a forked child: nobody holds its lock."""
        self._lock = threading.Lock()

    def refresh(self) -> None:
        """Looks for a newer version: one look for a file while there is none."""
        with self._lock:
            while (schema := self._read(len(self._versions) + 1)) is not None:
                self._versions.append(Layout.of(schema))

    @property
    def newest(self) -> Layout:
        """The layout that views have and new writers write."""
        return self._versions[-1]

    def of(self, fingerprint: str) -> Layout | None:
        """The layout of the version with that schema fingerprint; None where the workspace has none such."""
        found = self._find(fingerprint)
        if found is None:
            self.refresh()
            found = self._find(fingerprint)
        return found

    def _find(self, fingerprint: str) -> Layout | None:
        return next((v for v in self._versions if v.schema.fingerprint == fingerprint), None)


def _after_fork() -> None:
    for layouts in list(_live):
        layouts.start_over()


os.register_at_fork(after_in_child=_after_fork)
