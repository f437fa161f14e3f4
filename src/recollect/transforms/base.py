"""What every transform is: addresses are planned first, one gather follows, then the data is changed. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple, Protocol, TypeAlias

from numpy.typing import NDArray

from recollect.schema import Schema
from recollect.view import Bool, Slots, View

Columns: TypeAlias = dict[str, NDArray[Any]]
"""Name → array whose first axis is the batch."""


class Reads(NamedTuple):
    """Every address of a batch, before a byte moves.

    Attributes:
        anchors: `[B]` slots.
        window: `[B, W]` slots of the anchor and the steps after it in its episode, -1 outside; W is 1 unless a
            transform reaches further.
        following: `[B]` slots of the rows that hold the next observation, -1 for none.
        masks: `[B, W]` bools that a transform planned, by its own names.
        pairs: `[B, 2]` anchors and following side by side, as long as no transform changed either.
    """

    anchors: Slots
    window: Slots
    following: Slots
    masks: Mapping[str, Bool] = MappingProxyType({})
    pairs: Slots | None = None


class Transform(Protocol):
    """From batch to batch, in listed order."""

    @property
    def reach(self) -> int:
        """Steps after the anchor that must be in the window."""

    def needs(self, schema: Schema) -> frozenset[str]:
        """Fields whose values over the whole window `[B, W, …]` `apply` wants to see."""

    def plan(self, reads: Reads, view: View) -> Reads: ...
    def apply(self, data: Columns, windows: Columns, reads: Reads, schema: Schema) -> Columns: ...
    def to_dict(self) -> dict[str, Any]: ...
