"""How a log grows: what lies behind its newest segment, and how large the next one is.

The failure feared: a disk that fills with room that nothing uses. A segment is as large as the log gives reason to,
and shaped as the one before it was filled (`Shape.fitting`); what is left of it goes back when the log goes on
(design/0003).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from recollect.errors import StoreError
from recollect.hot.format.room import give_back
from recollect.hot.format.segment import Segment, Shape

STORED = 10
"""A segment is made at most so many times as large as what the log stores by then, the first one aside."""
WORTH = 8
"""Unused room is given back when the log goes on where it is a segment's eighth or more: a hole costs some time too."""
FACTS_ALONE = 16
"""Segments of a log that is to hold facts alone are smaller by so much."""


@dataclass
class Behind:
    """What concerns the segments behind the newest one, and what is done when there is another.

    Attributes:
        unsynced: segments, the newest included, that no completed sync covers; named: whether one of them got its name
            since the folder was last flushed.
        evicted_below: segments below it were evicted; set by whoever evicts.
        largest: bytes that a segment may have unless one append needs more; None for no bound.
        resumed: whether an episode of another writer, or a closed one, went on in the log.
        on_roll: called after the log went on in a new segment, with the log's lock held.
        untold: why a sync in the background failed, until a caller was told.
        ahead: what the next segment is to hold, once that is decided.
        only_facts: whether the log is to hold facts alone.
        stored: bytes that the segments behind the newest one hold.
        unused: their room that is to be given back: path → byte ranges.
    """

    unsynced: list[Segment] = field(default_factory=list)
    named: bool = False
    largest: int | None = None
    evicted_below: int = 0
    on_roll: Callable[[], None] | None = None
    resumed: bool = False
    untold: StoreError | None = None
    ahead: Shape | None = None
    only_facts: bool = False
    stored: int = 0
    unused: dict[Path, list[tuple[int, int]]] = field(default_factory=dict)

    def give_back(self) -> None:
        """Gives back the unused room of segments that are not written any more, once they are flushed: the file system
        may write dirty pages around a hole, and those in it with them."""
        for path, unused in list(self.unused.items()):
            give_back(path, unused)
            self.unused.pop(path, None)

    def sizes(self, usual: Sequence[int]) -> list[int]:
        """Target sizes of the segments, in ascending order."""
        return [size // (FACTS_ALONE if self.only_facts else 1) for size in usual]

    def next_size(self, sizes: Sequence[int], stored: int, full: float) -> int:
        """Target size of the next segment.

        Args:
            sizes: those to choose from.
            stored: bytes that the newest segment holds; `full` how full its fullest region is, 0 to 1. As this one
                fills, it is taken to fill to its end, and the next one likewise.
        """
        most = min(STORED * (self.stored + stored), 8 * stored / max(full, 0.01))
        size = max((s for s in sizes if s <= most), default=sizes[0])
        return size if self.largest is None else max(sizes[0], min(size, self.largest))
