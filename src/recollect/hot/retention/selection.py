"""Which rows a deletion is asked for: by their ids, by episode, or by a condition."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from recollect.errors import ArgumentError, NotFound
from recollect.hot.format.holes import ranges_of
from recollect.view import EpisodeKey, Extent, Slots, StepId, View
from recollect.view.matching import matching
from recollect.view.naming import extent_of, listed
from recollect.where import parse

Ids = Iterable[StepId | Extent | str | tuple[int, int]]
Episodes = Iterable[EpisodeKey | str]


def selected(
    view: View, ids: Ids | None, episodes: Episodes | None, where: str | None
) -> tuple[tuple[Extent, ...], frozenset[EpisodeKey]]:
    """The rows that are asked for, and the episodes that were named.

    Args:
        ids: steps by id (or its text), or ranges of them; those that are not there are passed over.
        episodes: by key, or by the caller's id: every attempt at it.
        where: a condition on steps and the facts of their episodes.

    Raises:
        ArgumentError: not exactly one of the three, or one that cannot be read.
        NotFound: an episode, field or fact that is not there.
    """
    if sum(given is not None for given in (ids, episodes, where)) != 1:
        raise ArgumentError(
            "a deletion takes one of ids=, episodes= and where=",
            remedy="Make one deletion after the other, or say all of it in where=",
        )
    if ids is not None:
        return tuple(extent_of(i) for i in listed(ids, "ids")), frozenset()
    if episodes is not None:
        keys = frozenset(key for name in listed(episodes, "episodes") for key in _keys(view, name))
        return _named(
            view, np.concatenate([np.empty(0, np.int64), *(_rows_of(view, key) for key in sorted(keys))])
        ), keys
    assert where is not None
    group = view.episodes.group
    slots = np.flatnonzero((group >= 0) & ~view.episodes.is_final)
    chosen = parse(where, view.schema)
    hits = matching(chosen, view.rows, slots, group[slots], view.episodes.keys, lambda: view.facts)
    return _named(view, slots[hits]), frozenset()


def _keys(view: View, name: object) -> list[EpisodeKey]:
    if isinstance(name, EpisodeKey):
        found = [name]
    elif isinstance(name, str):
        default = EpisodeKey.parse_default_id(name)
        found = view.facts.keys_of(name) or ([] if default is None else [default])
    else:
        raise ArgumentError("an episode is named by its id or key", value=name)
    there = [key for key in found if len(_rows_of(view, key)) or key in view.facts.episodes]
    if not there:
        raise NotFound(
            f"no episode {name!r} in {view.name!r}", remedy="Ids come from recent(), or from your own writes"
        )
    return there


def _rows_of(view: View, key: EpisodeKey) -> Slots:
    """Every row of an episode, those beside its order included."""
    keys = view.episodes.keys
    group = np.flatnonzero((keys[:, 0] == key.writer) & (keys[:, 1] == key.counter))
    return np.flatnonzero(view.episodes.group == group[0]) if len(group) else np.empty(0, np.int64)


def _named(view: View, slots: Slots) -> tuple[Extent, ...]:
    """The ids of some rows, as extents."""
    ids = view.rows.ids(slots)
    writers = np.unique(ids["writer"]).tolist()
    return tuple(Extent(w, a, b) for w in writers for a, b in ranges_of(ids["seq"][ids["writer"] == w]))
