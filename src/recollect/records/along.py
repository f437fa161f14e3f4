"""Along an episode: windows of steps, how far runs go, and rows whose stacks would reach into what is missing."""

from __future__ import annotations

from copy import copy
from dataclasses import replace

import numpy as np

from recollect.records import layout as lay
from recollect.records.grown import GrownAnchors, GrownEpisodes
from recollect.view import I64, AnchorList, Episodes, Runs, Slots, View


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

    Costs a look at the first row of each run; of a view that grows, at the link of each row; of others, at every row.
    """
    if depth > 1 and view.parts:
        from recollect.records.parted import PartedAnchors

        parts = {name: without_beheaded(part, depth) for name, part in view.parts.items()}
        joined = copy(view)
        joined.__dict__.update(_parts=parts, anchors=PartedAnchors([part.anchors for part in parts.values()]))
        return joined
    a = view.anchors
    cut = _beheaded(view, depth) if depth > 1 else np.empty(0, np.int64)
    cut = cut[a.mask(cut)]
    if not len(cut):
        return view
    out = copy(view)
    count = a.undrawable_beheaded + len(cut)
    if isinstance(a, GrownAnchors):
        at = (cut - a.moment.base).astype(a.steps.dtype)
        left = np.union1d(a.left, np.searchsorted(a.steps[a.low : a.high], at) + a.low)
        out.__dict__["anchors"] = replace(a, left=left, undrawable_beheaded=count)
        return out
    slots = np.arange(len(a)) if a.slots is None else a.slots
    kept = np.delete(slots, np.searchsorted(slots, cut))
    whole = a.whole if isinstance(a, AnchorList) and a.whole is not None else a
    counts = a.undrawable_truncated, a.undrawable_open, count
    out.__dict__["anchors"] = AnchorList(kept, len(view.rows), *counts, whole=whole)
    return out


def _beheaded(view: View, depth: int) -> Slots:
    """Sorted slots of the rows whose stack reaches back to what is not there; some may not be drawn anyway."""
    episodes, a = view.episodes, view.anchors
    if isinstance(episodes, Runs):
        heads = episodes.run_start if episodes.slot is None else episodes.slot[episodes.run_start]
    elif isinstance(a, GrownAnchors):
        m = a.moment
        rows = a.steps[a.low : a.high]
        heads = rows[np.flatnonzero(m.before[rows] < m.first - m.base)].astype(np.int64) + m.base
    else:
        slots = a.select(np.arange(len(a)))
        step = view.rows.gather(slots, ("step",))["step"].astype(np.int64)
        return slots[episodes.offset(slots, -np.minimum(step, depth - 1)) < 0]
    heads = heads[view.rows.gather(heads, ("step",))["step"] > 0]
    reached = window(episodes, heads, 0, depth - 2)
    return np.unique(reached[reached >= 0])
