"""The writer of late facts that a handle has of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from recollect.hot.write.writer import Writer
from recollect.view import EpisodeKey, StepId


class Annotator:
    """Notes late facts in one log of facts alone, made at the first of them. Thread-safe.

    Args:
        create: makes the writer.
    """

    def __init__(self, create: Callable[[], Writer]) -> None:
        self._create = create
        self._lock = threading.Lock()
        self._writer: Writer | None = None

    @property
    def writers(self) -> list[Writer]:
        """The writer, where there is one."""
        writer = self._writer
        return [] if writer is None else [writer]

    def annotate(self, episode: EpisodeKey, step: StepId | None, values: Mapping[str, Any]) -> StepId:
        """Notes facts, in a new log where the disk refused to flush the one before.

        Raises:
            StoreError: the disk refused to flush facts noted earlier, or the log cannot be created.
        """
        with self._lock:
            if self._writer is not None and not self._writer.usable:
                unusable, self._writer = self._writer, None
                unusable.close()
            if self._writer is None:
                self._writer = self._create()
            return self._writer.annotate(episode, step, values)

    def drop_closed(self) -> None:
        """Forgets the writer once it is closed."""
        with self._lock:
            if self._writer is not None and not self._writer.is_open:
                self._writer = None
