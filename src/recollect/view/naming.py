"""What callers name rows by, as extents."""

from __future__ import annotations

from collections.abc import Iterable

from recollect.errors import ArgumentError
from recollect.view.ids import Extent, StepId


def listed(given: Iterable[object], name: str) -> list[object]:
    """The items of an argument that takes a list. Raises ArgumentError for one text, or for what has no items."""
    if isinstance(given, str | bytes) or not isinstance(given, Iterable):
        raise ArgumentError(f"{name}= takes a list", value=given, remedy=f"Write {name}=[…]")
    return list(given)


def extent_of(item: object) -> Extent:
    """The rows of an extent, of a StepId or its text, or of a pair of writer and number.

    Raises:
        ArgumentError: it is none of these.
    """
    if isinstance(item, Extent):
        return item
    if isinstance(item, str):
        item = StepId.parse(item)
    try:
        writer, seq = (int(part) for part in item)  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise ArgumentError(
            "not the id of a step", value=item, remedy="Ids come from append(), recent() and views"
        ) from None
    return Extent(writer, seq, seq + 1)
