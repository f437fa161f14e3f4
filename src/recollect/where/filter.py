"""`Filter`: a checked condition, and the ways to ask it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recollect.errors import ArgumentError
from recollect.schema import Schema
from recollect.where import lance, tree
from recollect.where.bind import residuals
from recollect.where.episodes import EpisodeTable, Facts
from recollect.where.evaluate import masks
from recollect.where.table import Table
from recollect.where.text import show
from recollect.where.tree import Condition


class Filter:
    """A condition on steps and the facts of their episodes. Made by `parse`; immutable, equal when its texts are.

    Attributes:
        schema: what it was checked against.
        condition: its parsed form.
    """

    def __init__(self, schema: Schema, condition: Condition) -> None:
        self.schema, self.condition = schema, condition

    def __str__(self) -> str:
        """The canonical text, which parses back into an equal filter: for lineage and ledgers."""
        return self._text

    @cached_property
    def _text(self) -> str:
        return show(self.condition)

    def __repr__(self) -> str:
        return f"Filter({self._text!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Filter) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __and__(self, other: Filter) -> Filter:
        """Both conditions. They must be of one schema."""
        self.schema.require_equal(other.schema, what=f"the condition {str(other)!r}")
        parts = [
            p
            for f in (self, other)
            for p in (f.condition.parts if isinstance(f.condition, tree.And) else (f.condition,))
        ]
        return Filter(self.schema, tree.And(tuple(parts)))

    @cached_property
    def episode_only(self) -> bool:
        """Whether it asks for nothing of single steps, so that it is true of whole episodes."""
        return all(c.scope == "episode" for c in tree.columns(self.condition))

    @cached_property
    def uses_facts(self) -> bool:
        """Whether it asks for facts."""
        return any(c.scope == "episode" for c in tree.columns(self.condition))

    def require_episode_only(self, what: str) -> None:
        """Raises ArgumentError, naming the fields of steps, unless the filter is about episodes alone."""
        paths = list(dict.fromkeys(c.path for c in tree.columns(self.condition) if c.scope == "step"))
        if paths:
            raise ArgumentError(
                f"{what} chooses whole episodes, and {paths[0]!r} is a field of steps",
                value=str(self),
                remedy="Use facts of the episode, such as episode.task = 'hopper'",
            )

    def mask(self, table: Table) -> NDArray[np.bool_]:
        """`[n]`: the rows of a table where the condition is true."""
        return masks(self.condition, table)[0]

    def mask_episodes(self, keys: Sequence[Any], facts: Facts) -> NDArray[np.bool_]:
        """`[n]`: the episodes of which the condition is true.

        Args:
            keys: EpisodeKeys `[n]`.
            facts: their facts. An episode without any has an id, and nothing else that is known.

        Raises:
            ArgumentError: the condition asks for fields of steps.
        """
        self.require_episode_only("the condition")
        return self.mask(EpisodeTable(keys, facts))

    def to_lance(self, keys: Sequence[Any] = (), facts: Facts | None = None) -> str:
        """A filter for the dataset of a buffer's steps. Final rows are no steps and never match.

        Facts are no columns there: they are looked up here, and the filter names the episodes. Each different value of
        a fact that is compared with a field of steps makes the text longer.

        Args:
            keys, facts: as for `mask_episodes`, for a condition that uses facts. Steps of other episodes do not match.

        Raises:
            ArgumentError: the condition uses facts, and none were given.
        """
        if not self.uses_facts:
            return lance.all_of(["`final` = false", lance.write(self.condition)])
        if facts is None:
            raise ArgumentError("the condition uses facts of episodes", value=str(self), remedy="Pass keys and facts")
        by_text: dict[str, list[Any]] = {}
        for condition, members in residuals(self.condition, EpisodeTable(keys, facts)):
            by_text.setdefault(lance.write(condition), []).extend(keys[k] for k in members)
        chosen = [lance.all_of([_one_of(episodes), text]) for text, episodes in by_text.items() if text != "false"]
        return lance.all_of(["`final` = false", lance.any_of(chosen)])


def _one_of(keys: Sequence[Any]) -> str:
    """Steps of these episodes."""
    counters: dict[int, list[int]] = {}
    for writer, counter in keys:
        counters.setdefault(int(writer), []).append(int(counter))
    parts = []
    for writer, mine in sorted(counters.items()):
        runs = []
        for _, run in itertools.groupby(enumerate(sorted(mine)), lambda x: x[1] - x[0]):
            held = [counter for _, counter in run]
            runs.append((held[0], held[-1]))
        single = [str(low) for low, high in runs if low == high]
        spans = [f"(`episode` >= {low} AND `episode` <= {high})" for low, high in runs if low != high]
        spans += [f"`episode` IN ({', '.join(single)})"] if single else []
        parts.append(lance.all_of([f"`episode_writer` = {writer}", lance.any_of(spans)]))
    return lance.any_of(parts)
