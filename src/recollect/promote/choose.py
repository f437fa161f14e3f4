"""Which episodes a snapshot takes: those that its filter names, whole or not at all.

A promotion takes every row that an episode has in the cut and that the buffer lacks, or none. A cut holds no row
without the episode's rows before it, so what a buffer holds of an episode is its beginning, whatever was held back in
between, and the rows of an episode come into it in the order of their steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from recollect.hot.read.store import HotStore
from recollect.promote.stage import pieces_of
from recollect.records import layout as lay
from recollect.records.build import group_by_episode
from recollect.records.layout import Layout
from recollect.records.rows import PackedRows
from recollect.view import Cut, EpisodeKey, Extent, FactIndex, hull
from recollect.where.filter import Filter


@dataclass(frozen=True)
class Selection:
    """What a snapshot was asked for: finished episodes only, and those a condition is true of."""

    finished_only: bool = False
    where: Filter | None = None


@dataclass(frozen=True)
class Survey:
    """The episodes among the rows that a buffer lacks.

    Attributes:
        waiting: those rows; `left_out` the ranges of them that are not taken, both by writer and number.
        episodes: how many episodes are taken; `open_episodes` those of them that are not finished.
        held_episodes: how many are left out.
    """

    waiting: tuple[Extent, ...]
    left_out: tuple[Extent, ...]
    episodes: int
    open_episodes: int
    held_episodes: int


def survey(
    store: HotStore,
    layout: Layout,
    cut: Cut,
    waiting: tuple[Extent, ...],
    facts: Callable[[], FactIndex],
    selection: Selection,
) -> Survey:
    """Looks at every row of `waiting` once: what it takes in memory is about 20 bytes a row, for the time of the call.

    An episode is *finished* when the cut holds its end (a step with `terminated` or `truncated`), or when, in the cut,
    nobody has it open: the log of the writer that had it last is sealed, or says that it was closed there. A finished
    episode without an end may be resumed; its later rows are then promoted by later snapshots. Rows that follow an
    end which the buffer has already (final observations) are always taken, and so are holes, which are in no episode.

    Args:
        waiting: rows of `cut` that the buffer lacks.
        facts: the facts of the cut; asked for where the selection has a condition.
    """
    rows = PackedRows(layout, pieces_of(store, waiting, layout), waiting)
    group, _, flags, keys, _, _ = group_by_episode(rows)
    count = len(keys)
    steps = (group >= 0) & ((flags & lay.FINAL) == 0)
    ended = np.bincount(group[steps & ((flags & (lay.TERMINATED | lay.TRUNCATED)) != 0)], minlength=count) > 0
    follows = np.bincount(group[steps], minlength=count) == 0
    finished = ended | follows
    named = [EpisodeKey(*key) for key in keys.tolist()]
    unsure = np.flatnonzero(~finished)
    is_left = left_alone(store, cut)
    finished[unsure] = np.fromiter((is_left(named[k]) for k in unsure.tolist()), np.bool_, len(unsure))
    taken = np.ones(count, np.bool_)
    if selection.finished_only:
        taken &= finished
    if selection.where is not None and count:
        taken &= selection.where.mask_episodes(named, facts())
    taken |= follows
    out: tuple[Extent, ...] = ()
    if not taken.all():
        out = _ranges(waiting, (group >= 0) & ~taken[group])
    return Survey(waiting, out, int(taken.sum()), int((taken & ~finished).sum()), int((~taken).sum()))


def left_alone(store: HotStore, cut: Cut) -> Callable[[EpisodeKey], bool]:
    """Tells whether nobody had an episode open when `cut` was made, as far as the cut can say."""
    logs = dict(store.logs)
    stops, facts = {w: e.stop for w, e in hull(cut.extents).items()}, dict(cut.facts)
    over = {w for w, log in logs.items() if log.sealed and log.end <= stops.get(w, log.first.row)}
    turns: dict[EpisodeKey, tuple[int, int]] = {}
    for writer, log in logs.items():
        for key, found in list(log.resumed.items()):
            for r in found:
                turns[key] = max(turns.get(key, (0, 0)), (r.turn, writer))

    def is_left(key: EpisodeKey) -> bool:
        _, owner = turns.get(key, (0, key.writer))
        log = logs.get(owner)
        if log is None or owner in over:
            return True
        return log.closed.get(key, facts.get(owner, 0)) < facts.get(owner, 0)

    return is_left


def _ranges(extents: tuple[Extent, ...], mask: NDArray[np.bool_]) -> tuple[Extent, ...]:
    """The runs of rows where `mask` is true; it goes over the rows of `extents` in their order."""
    bounds = np.cumsum([0] + [e.stop - e.start for e in extents])
    points = np.unique(np.concatenate([bounds, np.flatnonzero(np.diff(mask)) + 1]))
    begins = points[:-1][mask[points[:-1]]]
    ends = points[1:][mask[points[:-1]]]
    place = np.searchsorted(bounds, begins, side="right") - 1
    return tuple(
        Extent(extents[k].writer, extents[k].start + a, extents[k].start + b)
        for k, a, b in zip(
            place.tolist(), (begins - bounds[place]).tolist(), (ends - bounds[place]).tolist(), strict=True
        )
    )
