"""Pins: versions that someone is reading, kept from cleanup until a stated time.

A pin is a tag of the `steps` dataset whose name holds its end, so that it is made atomically, needs no lock, is seen by
every cleanup, lance's own included, and is nobody's burden once its holder died: the next cleanup takes it away.

Nothing falls between a pin and a cleanup: a cleanup takes its lease, then reads the tags; a pin is made, then the
lease is read. So either the cleanup sees the pin, or the pin sees the cleanup and waits for its end. A version that
still opens then stays.
"""

from __future__ import annotations

import os
import time
from types import TracebackType
from typing import Any

from recollect.cold.dataset import PIN_PREFIX, Datasets
from recollect.cold.faults import store_errors
from recollect.cold.leases import Leases
from recollect.errors import ConflictError, NotFound

CLEANUP = "cleanup"
WAIT_S = 120.0


class Pin:
    """Keeps one version of a buffer until `until`, or until `release`.

    Attributes:
        version: its number; `until` when the pin ends, in seconds since 1970.
    """

    def __init__(self, data: Datasets, version: int, seconds: float) -> None:
        self._data, self.version = data, version
        self.until = 0.0
        self._tag = ""
        self.renew(seconds)

    def renew(self, seconds: float) -> None:
        """Keeps the version for `seconds` from now.

        Raises:
            NotFound: there is no such version, or it was cleaned up.
            ConflictError: a cleanup was under way for two minutes.
        """
        end = int(time.time() + seconds)
        tag, old = f"{PIN_PREFIX}{end}.{os.urandom(6).hex()}", self._tag
        self._data.at_version(self.version)
        try:
            self._data.create_tag(tag, self.version)
        except NotFound:
            raise NotFound(f"version {self.version} of {self._data.location.uri!r} was cleaned up") from None
        self._tag, self.until = tag, float(end)
        self._outlast_cleanup()
        if old:
            self._remove(old)

    def _outlast_cleanup(self) -> None:
        started, leases = time.monotonic(), Leases(self._data.location)
        while leases.is_held(CLEANUP):
            if time.monotonic() - started > WAIT_S:
                self.release()
                raise ConflictError(f"a cleanup of {self._data.location.uri!r} does not end", remedy="Try again later")
            time.sleep(0.05)
        try:
            self._data.at_version(self.version)
        except NotFound:
            self.release()
            raise

    def release(self) -> None:
        """Lets cleanup have the version. A pin that is gone already is no error."""
        if self._tag:
            self._remove(self._tag)
            self._tag = ""

    def _remove(self, tag: str) -> None:
        with store_errors("tagging", self._data.location):
            remove_tag(self._data.steps, tag)

    def __enter__(self) -> Pin:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()

    def __repr__(self) -> str:
        return f"Pin(version={self.version}, until={self.until:.0f})"


def pins(data: Datasets) -> dict[str, tuple[int, float]]:
    """Every pin of a branch and of the versions before it: its tag → (version, end)."""
    return {name: (version, end_of(name)) for name, version in data.marks().items() if name.startswith(PIN_PREFIX)}


def end_of(pin: str) -> float:
    """When a pin ends, in seconds since 1970."""
    return float(pin[len(PIN_PREFIX) :].partition(".")[0])


def remove_tag(steps: Any, tag: str) -> None:
    """Takes a tag away; one that is gone already is fine."""
    try:
        steps.tags.delete(tag)
    except ValueError as e:
        if "does not exist" not in str(e):
            raise
