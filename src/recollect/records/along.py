"""Along an episode: windows of steps, how far runs go, and rows whose stacks would reach into what is missing."""

from __future__ import annotations

from copy import copy
from dataclasses import replace

import numpy as np

from recollect.records import layout as lay
from recollect.records.grown import GrownAnchors, GrownEpisodes
from recollect.view import I64, AnchorList, Bool, Episodes, Runs, Slots, View

CHUNK_ROWS = 1 << 18


def window(episodes: Episodes, slots: Slots, before: int, after: int) -> Slots:
    """`[n, before + 1 + after]`: the rows around each slot in its run, -1 where there is none.

    Costs a look at each row where runs lie side by side or are linked, and `offset` for each column elsewhere.
    """
    away = np.arange(-before, after + 1)
    if isinstance(episodes, Runs):
        known = np.maximum(slots, 0)
        run = episodes.run[known]
        rank = (known if episodes.rank is None else episodes.rank[known])[:, None] + away
        safe = np.maximum(run, 0)
        inside = ((slots >= 0) & (run >= 0))[:, None]
        inside = inside & (rank >= episodes.run_start[safe][:, None]) & (rank < episodes.run_stop[safe][:, None])
        rank = np.where(inside, rank, 0)
        return np.where(inside, rank if episodes.slot is None else episodes.slot[rank], -1)
    if isinstance(episodes, GrownEpisodes):
        from recollect.records.walks import walk_window

        m = episodes.moment
        flat = np.ascontiguousarray(slots, np.int64)
        out = np.empty((len(flat), len(away)), np.int64)
        walk_window(flat, before, m.base, m.first, m.stop, m.before, m.after, m.final, m.group, m.flags, lay.FINAL, out)
        return out
    return np.stack([episodes.offset(slots, int(k)) for k in away], axis=1)


def around(episodes: Episodes, slots: Slots) -> tuple[I64, I64]:
    """`[n]` each: how many rows of the same run come before a row and after it, the final row included."""
    if isinstance(episodes, Runs):
        known = np.maximum(slots, 0)
        run = episodes.run[known]
        rank = (known if episodes.rank is None else episodes.rank[known]).astype(np.int64)
        safe, inside = np.maximum(run, 0), (slots >= 0) & (run >= 0)
        behind, ahead = rank - episodes.run_start[safe], episodes.run_stop[safe] - 1 - rank
        return np.where(inside, behind, 0), np.where(inside, ahead, 0)
    if isinstance(episodes, GrownEpisodes):
        from recollect.records.walks import walk_around

        m = episodes.moment
        flat = np.ascontiguousarray(slots, np.int64)
        out = np.empty((2, len(flat)), np.int64)
        walk_around(flat, m.base, m.first, m.stop, m.before, m.after, m.final, m.group, m.flags, lay.FINAL, out)
        return out[0], out[1]
    return _farthest(episodes, slots, -1), _farthest(episodes, slots, 1)


def _farthest(episodes: Episodes, slots: Slots, sign: int) -> I64:
    """`[n]`: how far `offset` goes in one direction: by doubling, then by halving."""
    far = np.zeros(len(slots), np.int64)
    stride = 1
    while (episodes.offset(slots, sign * (far + stride)) >= 0).any():
        far = np.where(episodes.offset(slots, sign * (far + stride)) >= 0, far + stride, far)
        stride *= 2
    while stride:
        far = np.where(episodes.offset(slots, sign * (far + stride)) >= 0, far + stride, far)
        stride //= 2
    return far


def without_beheaded(view: View, depth: int) -> View:
    """The view, without the rows whose stack of `depth` steps reaches back to steps of their episode that are not there
    (see `heads.beheaded`). Everything can still be read.

    Costs a look at every drawable row; of a view that grows, at the link of each.
    """
    if depth < 2:
        return view
    a = view.anchors
    out = copy(view)
    if isinstance(a, GrownAnchors):
        m = a.moment
        places = np.arange(a.low, a.high)
        rows = a.steps[a.low : a.high]
        lonely = np.flatnonzero(m.before[rows] < m.first - m.base)
        heads = rows[lonely].astype(np.int64) + m.base
        step = view.rows.gather(heads, ("step",))["step"]
        reached = window(view.episodes, heads[step > 0], 0, depth - 2).reshape(-1)
        cut = places[np.isin(rows, reached[reached >= 0] - m.base)] if (step > 0).any() else places[:0]
        left = np.union1d(a.left, cut)
        count = a.undrawable_beheaded + len(left) - len(a.left)
        out.__dict__["anchors"] = replace(a, left=left, undrawable_beheaded=count)
        return out
    kept, lost = [np.empty(0, np.int64)], 0
    for start in range(0, len(a), CHUNK_ROWS):
        slots = a.select(np.arange(start, min(start + CHUNK_ROWS, len(a))))
        whole = _has_head(view, slots, depth)
        kept.append(slots[whole])
        lost += len(slots) - len(kept[-1])
    if not lost:
        return view
    counts = a.undrawable_truncated, a.undrawable_open, a.undrawable_beheaded + lost
    whole_anchors = a.whole if isinstance(a, AnchorList) and a.whole is not None else a
    out.__dict__["anchors"] = AnchorList(np.concatenate(kept), len(view.rows), *counts, whole=whole_anchors)
    return out


def _has_head(view: View, slots: Slots, depth: int) -> Bool:
    step = view.rows.gather(slots, ("step",))["step"].astype(np.int64)
    out: Bool = view.episodes.offset(slots, -np.minimum(step, depth - 1)) >= 0
    return out
