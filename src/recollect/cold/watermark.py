"""What a chain of promotions holds of each writer, with every row accounted for. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from recollect.cold.fold import Promotion
from recollect.errors import CorruptionError
from recollect.view.reach import Mark, union, without


def watermark(chain: Iterable[Promotion]) -> dict[int, Mark]:
    """Writer → what the promotions of a chain hold of it.

    Every row below the mark was promoted once, or is named by a promotion as a gap (it was evicted before it could be
    promoted), or lies where a promotion held rows back.

    Raises:
        CorruptionError: rows were promoted twice, or left out without a word; likewise facts.
    """
    promoted: dict[int, list[tuple[int, int, str]]] = {}
    gaps: dict[int, list[tuple[int, int]]] = {}
    held: dict[int, list[tuple[int, int]]] = {}
    facts: dict[int, int] = {}
    for promotion in chain:
        record = promotion.record
        for text, start, stop in record["extents"]:
            promoted.setdefault(int(text), []).append((start, stop, promotion.id))
        _add(gaps, record, "gaps")
        _add(held, record, "held")
        for text, start, stop in record["facts"]:
            writer = int(text)
            if start != facts.get(writer, 0) or stop < start:
                before = facts.get(writer, 0)
                raise CorruptionError(
                    f"promotion {promotion.id} holds facts {start} to {stop} of writer {writer}, after {before}"
                )
            facts[writer] = stop
    marks = {writer: Mark(0, stop) for writer, stop in facts.items()}
    for writer in promoted.keys() | held.keys():
        marks[writer] = _mark(
            writer, promoted.get(writer, ()), gaps.get(writer, ()), held.get(writer, ()), facts.get(writer, 0)
        )
    return marks


def _add(to: dict[int, list[tuple[int, int]]], record: Mapping[str, Any], key: str) -> None:
    for text, start, stop in record.get(key, ()):
        to.setdefault(int(text), []).append((start, stop))


def _mark(
    writer: int,
    promoted: Sequence[tuple[int, int, str]],
    gaps: Sequence[tuple[int, int]],
    held: Sequence[tuple[int, int]],
    facts: int,
) -> Mark:
    rows = sorted(promoted)
    for before, after in pairwise(rows):
        if after[0] < before[1]:
            raise CorruptionError(
                f"promotion {after[2]} holds rows {after[0]} to {after[1]} of writer {writer}, and promotion "
                f"{before[2]} rows {before[0]} to {before[1]}"
            )
    passed = union([*((a, b) for a, b, _ in rows), *gaps])
    known = union([*passed, *held])
    (_, top) = known[-1] if known else (0, 0)
    for start, stop in without([(0, top)], known):
        raise CorruptionError(
            f"rows {start} to {stop} of writer {writer} are in no promotion, though rows after them are, and none "
            "says that they were held back or gone"
        )
    return Mark(top, facts, without([(0, top)], passed))
