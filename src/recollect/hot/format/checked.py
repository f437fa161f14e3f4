"""`Checked`: which rows and facts of a segment are whole. Everything that is read goes through it once per process."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from recollect.errors import CorruptionError
from recollect.records.layout import column

if TYPE_CHECKING:
    from recollect.hot.format.segment import Segment

RETRIES_S = (0.0001, 0.001, 0.01)
"""A frame of a live writer may be seen before all of its bytes on machines that reorder stores: look again so often."""


class Checked:
    """What this process knows of one segment's checksums."""

    def __init__(self, segment: Segment) -> None:
        # Not the segment itself: a cycle would keep its map until the collector comes by.
        self._path, self._header, self._size = segment.path, segment.header, segment.layout.itemsize
        self._records, self._facts, self._heap = segment.records, segment.facts, segment.heap
        self._rows = np.zeros(segment.header.shape.rows, np.uint8)
        self._rows_to = self._facts_to = 0
        layout, shape = segment.layout, segment.header.shape
        paths = [leaf.path for leaf in layout.wide]
        self._of_rows: tuple[Any, ...] = (
            segment.header.writer,
            segment.header.first_row,
            np.array([layout.offset(column(p)) for p in paths], np.int64),
            np.array([segment.planes[p].ctypes.data for p in paths], np.int64),
            np.array([layout.plane_bytes[p] for p in paths], np.int64),
            shape.planes,
            layout.offset("heap_at") if layout.heap else -1,
            segment.heap.ctypes.data,
            shape.heap_bytes,
            self._rows,
        )

    def whole_rows(self, start: int, stop: int) -> int:
        """The end of the run of whole frames that begins with the frame at row `start`. It may lie past `stop`, by the
        rest of a frame."""
        from recollect.records import checksums  # numba is loaded when something is read, not when a workspace opens

        capacity = self._header.shape.rows
        stop = min(stop, capacity)
        records = self._records.ctypes.data
        return int(checksums.whole_rows(records, self._size, start, stop, capacity, *self._of_rows))

    def whole_facts(self, start: int, stop: int) -> int:
        """The end of the run of whole facts that begins at `start`."""
        from recollect.records import checksums

        facts, heap, header = self._facts, self._heap, self._header
        assert facts.dtype.fields is not None
        at = int(facts.dtype.fields["heap_at"][1])
        return int(
            checksums.whole_facts(
                facts.ctypes.data,
                facts.dtype.itemsize,
                start,
                min(stop, header.shape.facts),
                header.writer,
                header.first_fact,
                at,
                heap.ctypes.data,
                header.shape.heap_bytes,
            )
        )

    def require_rows(self, low: int, high: int) -> None:
        """Raises CorruptionError unless rows `low` to `high` lie in whole frames."""
        low = max(low, self._rows_to)
        if low >= high or (high <= len(self._rows) and self._rows[low:high].all()):
            return
        begin = low
        frames = self._records["frame"]
        while begin > 0 and not self._rows[begin] and frames[min(begin, len(frames) - 1)] == 0:
            begin -= 1
        end = self.whole_rows(begin, high)
        for pause in RETRIES_S if end < high else ():
            time.sleep(pause)
            end = self.whole_rows(begin, high)
            if end >= high:
                break
        if end < high:
            self._raise("row", self._header.first_row + end)
        if begin <= self._rows_to:
            self._rows_to = end

    def require_facts(self, stop: int) -> None:
        """Raises CorruptionError unless the facts below `stop` are whole."""
        if stop <= self._facts_to:
            return
        end = self.whole_facts(self._facts_to, stop)
        for pause in RETRIES_S if end < stop else ():
            time.sleep(pause)
            end = self.whole_facts(self._facts_to, stop)
            if end >= stop:
                break
        self._facts_to = end
        if end < stop:
            self._raise("fact", self._header.first_fact + end)

    def _raise(self, kind: str, seq: int) -> None:
        raise CorruptionError(
            f"{kind} {self._header.writer}:{seq} in {str(self._path)!r} does not have the checksum it carries",
            remedy="`recollect verify` says what else is damaged; restore the workspace from a backup or a buffer",
        )
