"""How far an episode had got whose newest steps were evicted.

Eviction goes log by log, so an episode that was resumed may lose its newest steps and keep older ones, in the log of a
writer that had left it before. Then the rows that are left do not say which step comes next, and the indices that went
may be in a buffer. So the highest one that went is noted before it goes, for as long as anybody could go on with the
episode (design/0010).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from recollect.hot.format.first import First
from recollect.records.layout import FINAL
from recollect.view import EpisodeKey


def highest(
    records: NDArray[np.void], writer: int, resumed: Collection[EpisodeKey]
) -> Iterator[tuple[EpisodeKey, int]]:
    """Of the episodes that others may have steps of: each with one more than its highest step index.

    An episode that was never resumed loses its oldest steps first, as all its rows lie in one log.

    Args:
        records: rows of one log, in order; `writer` whose log that is.
        resumed: episodes that were resumed in that log.
    """
    shared = (records["episode_writer"] != writer) & (records["episode_writer"] >= 0)  # below are rows that are gone
    own = [key.counter for key in resumed if key.writer == writer]
    if own:
        shared |= np.isin(records["episode"], own)
    at = np.flatnonzero(shared & ((records["flags"] & FINAL) == 0))
    writers, counters, steps = (records[name][at] for name in ("episode_writer", "episode", "step"))
    order = np.lexsort((steps, counters, writers))
    writers, counters, steps = writers[order], counters[order], steps[order]
    last = np.ones(len(order), np.bool_)
    last[:-1] = (np.diff(writers) != 0) | (np.diff(counters) != 0)
    columns = (writers[last].tolist(), counters[last].tolist(), (steps[last] + 1).tolist())
    for w, c, count in zip(*columns, strict=True):
        yield EpisodeKey(w, c), count


def still_needed(
    reached: Mapping[EpisodeKey, int], alive: Collection[EpisodeKey], logs: Mapping[int, First]
) -> dict[EpisodeKey, int]:
    """Those of episodes that keep a row, and of those that would pass for one that never had any: its opener wrote
    none, and its log is there.

    Args:
        alive: episodes that keep a row; `logs` writer → where its log will begin, of the logs that will be left.
    """
    return {
        key: steps
        for key, steps in reached.items()
        if key in alive or (key.writer in logs and key.counter >= logs[key.writer].next_episode)
    }
