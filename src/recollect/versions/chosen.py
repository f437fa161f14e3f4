"""Which rows of a buffer a deletion is asked for: by id, by episode, or by a condition, over all of its lines."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from recollect.cache.blocks import BlockCache
from recollect.cache.view import BufferReader
from recollect.cold.dataset import Datasets
from recollect.errors import ArgumentError, NotFound
from recollect.hot.format.holes import ranges_of
from recollect.records.layout import Layout
from recollect.view import EpisodeKey, Extent, FactIndex, StepId, make_ids
from recollect.view.ids import Bool
from recollect.view.matching import matching
from recollect.view.naming import extent_of, listed
from recollect.view.reach import Ranges, by_writer, union
from recollect.where import parse

StepIds = Iterable[StepId | Extent | str | tuple[int, int]]
Episodes = Iterable[EpisodeKey | str]


@dataclass(frozen=True)
class Chosen:
    """What is to go, wherever it is.

    Attributes:
        rows: writer → ranges.
        episodes: those that were named; all of their rows, and what is known of them.
    """

    rows: dict[int, Ranges]
    episodes: frozenset[EpisodeKey]


def chosen(
    lines: Sequence[Datasets],
    cache: BlockCache,
    ids: StepIds | None,
    episodes: Episodes | None,
    where: str | None,
) -> Chosen:
    """What is asked for, looked up on every line. A row that one of them shows to be meant is meant on all.

    Args:
        lines: at the versions that are looked at; the first decides what a condition may name, a field that only
            others have included.

    Raises:
        ArgumentError: not exactly one of the three, or one that cannot be read.
        NotFound: an episode, field or fact that no line has.
    """
    if sum(given is not None for given in (ids, episodes, where)) != 1:
        raise ArgumentError(
            "a deletion takes one of ids=, episodes= and where=",
            remedy="Make one deletion after the other, or say all of it in where=",
        )
    if ids is not None:
        named = by_writer(extent_of(item) for item in listed(ids, "ids"))
        return Chosen({w: union(ranges) for w, ranges in named.items()}, frozenset())
    if episodes is not None:
        known = [facts_of(line, cache) for line in lines]
        keys = [_keys(known, name, lines[0]) for name in listed(episodes, "episodes")]
        return Chosen({}, frozenset(key for found in keys for key in found))
    assert where is not None
    return Chosen(_matching(lines, cache, where), frozenset())


def facts_of(line: Datasets, cache: BlockCache) -> FactIndex:
    """What the line's version knows of its episodes."""
    return BufferReader(line, Layout.of(line.schema_of(line.steps)), cache).facts(line.history())


def _matching(lines: Sequence[Datasets], cache: BlockCache, where: str) -> dict[int, Ranges]:
    """The rows of all lines that a condition is true of, a block at a time."""
    found: dict[int, list[tuple[int, int]]] = {}
    failed: list[ArgumentError | NotFound] = []
    for line in lines:
        schema = line.schema_of(line.steps)
        try:
            condition = parse(where, schema)
        except (ArgumentError, NotFound) as e:
            failed.append(e)  # a field that was added to another branch
            continue
        history = line.history()
        if history.head is None:
            continue
        reader = BufferReader(line, Layout.of(schema), cache)
        for part in reader.parts(line.steps, history, history.cut, str(line.location)):
            if part.view is None:
                continue
            view, group = part.view, part.view.episodes.group
            slots = np.flatnonzero((group >= 0) & ~view.episodes.is_final)
            hit = matching(
                condition, view.rows, slots, group[slots], view.episodes.keys, partial(getattr, view, "facts")
            )
            held = view.rows.ids(slots[hit])
            for writer in np.unique(held["writer"]).tolist():
                found.setdefault(writer, []).extend(ranges_of(held["seq"][held["writer"] == writer]))
    if len(failed) == len(lines):
        raise failed[0]
    return {w: union(ranges) for w, ranges in found.items()}


def _keys(known: Sequence[FactIndex], name: object, line: Datasets) -> set[EpisodeKey]:
    """The episodes that go by a name: every attempt at it. A key need not be known: what it lacks is passed over."""
    if isinstance(name, EpisodeKey):
        return {name}
    if not isinstance(name, str):
        raise ArgumentError("an episode is named by its id or key", value=name)
    found = {key for index in known for key in index.keys_of(name)}
    default = EpisodeKey.parse_default_id(name)
    if not found and default is not None:
        found = {default}
    if not found:
        raise NotFound(f"no episode {name!r} in {line.location.uri!r}", remedy="Ids come from your own writes")
    return found


def within_ranges(writer: Any, seq: Any, ranges: dict[int, Ranges]) -> Bool:
    """`[n]` bool: which rows lie in the ranges of their writer."""
    out = np.zeros(len(seq), np.bool_)
    for w in np.unique(writer).tolist():
        if w in ranges:
            bounds = np.array(ranges[w], np.int64)
            mine = np.flatnonzero(writer == w)
            at = np.searchsorted(bounds[:, 0], seq[mine], side="right") - 1
            out[mine] = (at >= 0) & (seq[mine] < bounds[np.maximum(at, 0), 1])
    return out


def of_episodes(writer: Any, episode: Any, keys: set[tuple[int, int]]) -> Bool:
    """`[n]` bool: which rows are of some episodes."""
    if not keys or not len(writer):
        return np.zeros(len(writer), np.bool_)
    held, inverse = np.unique(make_ids(writer, episode), return_inverse=True)
    named = np.fromiter((tuple(k) in keys for k in held.tolist()), np.bool_, len(held))
    out: Bool = named[inverse.reshape(-1)]
    return out
