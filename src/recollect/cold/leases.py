"""Leases of a buffer's upkeep: who is at work, until when. They save work; nothing that is stored depends on them.

A lease is a key in the config of the `facts` dataset, which no promotion conflicts with. Two updates of one key that
were made from one version exclude each other, so that one of two that try at once gets it. A holder that died loses it
when its time is over; one that was stopped for longer goes on beside the next, which costs work and no more.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import Any

import lance

from recollect.cold.commit import commit
from recollect.cold.faults import store_errors
from recollect.cold.location import Location
from recollect.cold.torn import open_whole
from recollect.errors import ConflictError

PREFIX = "recollect.lease."


class Leases:
    """The leases of one buffer."""

    def __init__(self, location: Location) -> None:
        self.location = location

    @contextlib.contextmanager
    def hold(self, name: str, seconds: float) -> Iterator[bool]:
        """Holds a lease for the block's time, `seconds` at most; yields False when another one has it."""
        mine = f"{os.urandom(8).hex()}:{int(time.time() + seconds)}"
        held = self._swap(name, mine, lambda value: until(value) <= time.time())
        try:
            yield held
        finally:
            if held:
                self._swap(name, "", lambda value: value == mine)

    def is_held(self, name: str) -> bool:
        return until(self._open().config().get(PREFIX + name, "")) > time.time()

    def _swap(self, name: str, value: str, allowed: Any) -> bool:
        """Sets the lease to `value` if what it was is `allowed`; whether it did."""
        dataset = self._open()
        if not allowed(dataset.config().get(PREFIX + name, "")):
            return False
        updates = lance.LanceOperation.UpdateMap(updates={PREFIX + name: value})
        with contextlib.suppress(ConflictError):
            commit(self.location, "facts", lance.LanceOperation.UpdateConfig(config_updates=updates), dataset.version)
            return True
        return False

    def _open(self) -> Any:
        with store_errors("opening buffer", self.location):
            return open_whole(self.location, "facts")


def until(value: str) -> float:
    """When a lease ends, in seconds since 1970; 0 for none."""
    end = value.rpartition(":")[2]
    return float(end) if end.isdecimal() else 0.0
