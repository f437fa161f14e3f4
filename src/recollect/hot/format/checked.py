"""`Checked`: which rows and facts of a segment are whole. Everything that is read goes through it once per process."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from recollect.errors import CorruptionError
from recollect.records.layout import column
from recollect.view.reach import Ranges

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
        self._gone_facts: NDArray[np.bool_] | None = None
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

    def forgive(self, rows: Ranges, facts: Ranges) -> None:
        """Passes over what is damaged and gone (`holes`): sorted ranges of numbers in the log, of rows whole frames."""
        first, count = self._header.first_row, len(self._rows)
        for start, stop in rows:
            if start < first + count and stop > first:
                self._rows[max(0, start - first) : stop - first] = 1
        first, count = self._header.first_fact, self._header.shape.facts
        for start, stop in facts:
            if start < first + count and stop > first:
                if self._gone_facts is None:
                    self._gone_facts = np.zeros(count, np.bool_)
                self._gone_facts[max(0, start - first) : stop - first] = True

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
        gone = self._gone_facts
        if gone is None:
            return self._whole_facts(start, stop)
        stop = min(stop, len(gone))
        while start < stop:
            if gone[start]:
                start += 1
                continue
            left = np.flatnonzero(gone[start:stop])
            end = start + int(left[0]) if len(left) else stop
            start = self._whole_facts(start, end)
            if start < end:
                break
        return start

    def _whole_facts(self, start: int, stop: int) -> int:
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
            remedy="`recollect verify NAME` says what else is damaged; with --repair the rest can be read again",
        )
