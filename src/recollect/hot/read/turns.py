"""Which episodes go on in a log, and which were closed there. Found when somebody first asks: most logs hold none."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from recollect.hot.format.first import First, Resumption
from recollect.hot.format.holes import among
from recollect.hot.format.parse import resumption
from recollect.hot.format.segment import RESUMPTION, VALUES, Segment
from recollect.view import EpisodeKey
from recollect.view.reach import Ranges


class Turns:
    """Resumptions and closings among the facts of one log.

    Attributes:
        resumed: episodes that go on in this log, each with its resumptions here, oldest first.
        closed: episodes that were closed here and not resumed here since → number of the fact that says so.
        scanned: facts below it were looked at, were evicted, or are known to be neither.

    Args:
        gone: ranges of facts that are not looked at.
    """

    def __init__(self, gone: Ranges = ()) -> None:
        self.gone = gone
        self.resumed: dict[EpisodeKey, list[Resumption]] = {}
        self.closed: dict[EpisodeKey, int] = {}
        self.scanned = 0

    def scan(self, spans: Iterable[tuple[Segment, int]], stop: int) -> None:
        """Looks at the facts below `stop` that were not looked at.

        Args:
            spans: segments, and up to which fact of the log each is to be read.

        Raises:
            CorruptionError: one is damaged; it is looked at again when somebody asks again.
        """
        for segment, end in spans:
            first = segment.header.first_fact
            low, high = max(self.scanned, first) - first, end - first
            if low >= high:
                continue
            segment.checked.require_facts(high)
            rows = low + np.flatnonzero(segment.facts["kind"][low:high] != VALUES)
            for row in rows[~among(self.gone, rows + first)].tolist():
                if segment.facts["kind"][row] == RESUMPTION:
                    found = resumption(segment, row)
                    self.closed.pop(found.key, None)
                    self.resumed[found.key] = [*self.resumed.get(found.key, ()), found]
                else:
                    record = segment.facts[row]
                    key = EpisodeKey(int(record["episode_writer"]), int(record["episode"]))
                    self.closed[key] = first + row
            self.scanned = end
        self.scanned = max(self.scanned, stop)

    def begin_at(self, first: First) -> None:
        """Takes what was carried over from evicted segments, and forgets what was not."""
        carried = set(first.resumed)
        left = {key: [r for r in found if r.row >= first.row or r in carried] for key, found in self.resumed.items()}
        self.resumed = {key: found for key, found in left.items() if found}
        for r in first.resumed:
            known = self.resumed.get(r.key, [])
            if r not in known:
                self.resumed[r.key] = sorted([*known, r], key=lambda x: x.turn)
        if self.scanned < first.fact:
            self.closed = dict(first.closed)
            self.scanned = first.fact
