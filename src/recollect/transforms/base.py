"""What every transform is: addresses are planned first, one gather follows, then the data is changed. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from recollect.schema import Schema
from recollect.view import F64, Bool, Slots, View

Columns: TypeAlias = dict[str, NDArray[Any]]
"""Name → array whose first axis is the batch."""
Chance: TypeAlias = Callable[[int], F64]
"""Purpose → `[B]` numbers in [0, 1): a function of the loader's seed, the transform's place in the list, the purpose,
the batch's number and the row's place in it. Every row of a sequence has the same."""
WHOLE = 1 << 31
"""More steps than any episode has: as far as it goes."""


class Reach(NamedTuple):
    """Rows of an episode around an anchor.

    Attributes:
        before, after: how many; `WHOLE` after it for all there are.
        window: whether their values are wanted, or only that they are there to be looked up.
    """

    before: int = 0
    after: int = 0
    window: bool = True


class Lookup(NamedTuple):
    """Values that a transform wants of rows of its own choice: `[B]` slots, -1 for none, and names of fields."""

    slots: Slots
    fields: tuple[str, ...]


class Reads(NamedTuple):
    """Every address of a batch, before a byte moves.

    Attributes:
        anchors: `[B]` slots.
        window: `[B, W]` slots of the steps around the anchor in its episode, -1 outside. W is 1 unless a transform
            reaches further.
        following: `[B]` slots of the rows that hold the next observation, -1 for none.
        keys: `[B]` slots of what was drawn: the anchors, or the keys of the sequences they belong to.
        now: the anchor's column in the window.
        length: rows that belong to one key: T of sequences.
        last: `[B]` slots of the steps before the next observation; the anchors when None.
        masks: `[B, W]` bools that a transform planned, by its own names.
        lookups: what else is read, by names of transforms.
        pairs: `[B, 2]` anchors and following side by side, as long as no transform changed either.
    """

    anchors: Slots
    window: Slots
    following: Slots
    keys: Slots
    now: int = 0
    length: int = 1
    last: Slots | None = None
    masks: Mapping[str, Bool] = MappingProxyType({})
    lookups: Mapping[str, Lookup] = MappingProxyType({})
    pairs: Slots | None = None

    def ending(self, last: Slots, following: Slots) -> Reads:
        """The same with another next observation."""
        return self._replace(last=last, following=following, pairs=None)

    def masked(self, name: str, mask: Bool) -> Reads:
        """With one more mask."""
        return self._replace(masks={**self.masks, name: mask})

    def looking(self, name: str, lookup: Lookup) -> Reads:
        """With one more lookup."""
        return self._replace(lookups={**self.lookups, name: lookup})


class Data(NamedTuple):
    """What was read, as far as the transforms before have changed it.

    Attributes:
        rows: what becomes the batch, `[B, ...]`; validity under `/valid/` and the field's name.
        windows: fields that some transform needs, over the window, `[B, W, ...]`.
        found: what was looked up, `[B, ...]`, by the names of the lookups.
    """

    rows: Columns
    windows: Columns
    found: Mapping[str, Columns]

    def with_rows(self, **rows: NDArray[Any]) -> Data:
        """With arrays `[B, ...]` that were changed or added."""
        return self._replace(rows={**self.rows, **rows})

    def with_windows(self, now: int, windows: Columns) -> Data:
        """With arrays `[B, W, ...]`, of which the batch gets the anchors' column."""
        rows = {name: np.ascontiguousarray(array[:, now]) for name, array in windows.items()}
        return self._replace(rows={**self.rows, **rows}, windows={**self.windows, **windows})


class Transform(Protocol):
    """From batch to batch, in listed order.

    What changes a step's values changes them over the whole window, so that what comes after it sums, looks back at, or
    normalises the changed values.
    """

    @property
    def reach(self) -> Reach: ...

    def needs(self, schema: Schema) -> frozenset[str]:
        """What `apply` wants to see over the window: paths of fields of fixed shape, `next_` and the path of an
        observation, `terminated`, `truncated`, `/valid/` and the path of an optional field."""
        ...

    def plan(self, reads: Reads, view: View, chance: Chance) -> Reads: ...
    def apply(self, data: Data, reads: Reads, schema: Schema) -> Data: ...
    def to_dict(self) -> dict[str, Any]:
        """The configuration in plain values; a loader's state holds it and is refused where it differs."""
        ...


def steps_ahead(reads: Reads, view: View, count: int | None = None) -> Bool:
    """`[B, W']`: of the window from the anchor on, at most `count` columns, the steps before the first that could not
    be drawn itself, whatever condition the view has: where a next observation is lost, a window ends before it."""
    slots = reads.window[:, reads.now :][:, :count]
    complete = view.anchors.complete(slots.reshape(-1)).reshape(slots.shape)
    out: Bool = np.logical_and.accumulate(complete, axis=1)
    return out


def last_of(reads: Reads, counts: Bool) -> Slots:
    """`[B]`: the last step that counts, of windows as `steps_ahead` has them; the anchor where none does."""
    at = reads.now + np.maximum(counts.sum(axis=1) - 1, 0)
    out: Slots = np.take_along_axis(reads.window, at[:, None], 1)[:, 0]
    return out


def named(function: Callable[..., Any]) -> str:
    """A function in plain values: where it is defined."""
    where = function if hasattr(function, "__qualname__") else type(function)
    return f"{where.__module__}.{where.__qualname__}"
