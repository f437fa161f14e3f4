"""Episodes as the rows of a table: their facts, and their names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from recollect.where.table import Held
from recollect.where.tree import Column


class Facts(Protocol):
    """The facts of episodes, as `view.FactIndex` holds them."""

    @property
    def episodes(self) -> Mapping[Any, Mapping[str, Any]]: ...
    def id_of(self, key: Any, /) -> str: ...


class EpisodeTable:
    """One row for each of some episodes.

    Args:
        keys: EpisodeKeys.
        facts: what is known of them.
    """

    def __init__(self, keys: Sequence[Any], facts: Facts) -> None:
        self._keys, self._facts = keys, facts
        self._held: dict[Column, Held] = {}

    def __len__(self) -> int:
        return len(self._keys)

    def column(self, column: Column) -> Held:
        held = self._held.get(column)
        if held is None:
            held = self._held[column] = self._column(column)
        return held

    def _column(self, column: Column) -> Held:
        if column.path == "id":
            values: list[Any] = [self._facts.id_of(key) for key in self._keys]
        else:
            none: dict[str, Any] = {}
            values = [self._facts.episodes.get(key, none).get(column.path) for key in self._keys]
        known = np.fromiter((v is not None for v in values), np.bool_, len(values))
        if column.kind == "other":
            return Held(known, known)
        if column.element is not None:
            values = [None if v is None else np.ravel(v)[column.element].item() for v in values]
        if column.kind == "text":
            out = np.empty(len(values), object)
            out[:] = ["" if v is None else v for v in values]
            return Held(out, known)
        return Held(np.array([0 if v is None else v for v in values], column.dtype), known)

    def length(self, column: Column) -> Held:
        values, known = self.column(column)
        return Held(np.fromiter(map(len, values), np.int64, len(values)), known)
