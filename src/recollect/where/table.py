"""What a filter reads: columns of rows that stand side by side."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from recollect.where.tree import Column


class Held(NamedTuple):
    """A column's values.

    Attributes:
        values: `[n]`, anything where not known: the column's dtype, or an object array of str for text. For a column
            of kind `other` nobody looks at them.
        known: `[n]` bool, false for nulls.
    """

    values: NDArray[Any]
    known: NDArray[np.bool_]


class Table(Protocol):
    """Rows that a filter is evaluated on."""

    def __len__(self) -> int: ...
    def column(self, column: Column) -> Held:
        """A column; one element of each value where `column.element` says which."""
        ...

    def length(self, column: Column) -> Held:
        """`[n]` int64: characters of a text, numbers of a ragged field."""
        ...
