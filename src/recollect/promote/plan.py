"""What a snapshot has to add: pure functions from what was promoted and what is there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from recollect.cold.fold import Promotion
from recollect.errors import CorruptionError
from recollect.view import Cut, Extent


@dataclass(frozen=True)
class Mark:
    """How far one writer was promoted: rows and facts below these counts."""

    rows: int = 0
    facts: int = 0


@dataclass(frozen=True)
class Plan:
    """The rows and facts that a promotion adds.

    Attributes:
        extents: rows, writers in the order of their ids.
        facts: (writer, start, stop).
        gaps: rows before the extents that were evicted before this buffer got them.
    """

    extents: tuple[Extent, ...]
    facts: tuple[tuple[int, int, int], ...]
    gaps: tuple[Extent, ...] = ()

    @property
    def rows(self) -> int:
        return sum(e.stop - e.start for e in self.extents)

    @property
    def is_empty(self) -> bool:
        return not self.extents and not self.facts


def watermark(chain: Iterable[Promotion]) -> dict[int, Mark]:
    """Writer → what the promotions of a chain hold of it. Rows that were evicted before they could be promoted are
    named as gaps by the promotion that comes after them, and count as passed.

    Raises:
        CorruptionError: rows were promoted twice, or left out between two promotions.
    """
    marks: dict[int, Mark] = {}
    for promotion in chain:
        gaps = {(int(text), start): stop for text, start, stop in promotion.record.get("gaps", ())}
        for text, start, stop in promotion.record["extents"]:
            writer = int(text)
            mark = marks.get(writer, Mark())
            mark = Mark(gaps.get((writer, mark.rows), mark.rows), mark.facts)
            if start != mark.rows or stop < start:
                raise CorruptionError(
                    f"promotion {promotion.id} holds rows {start} to {stop} of writer {writer}, after {mark.rows}"
                )
            marks[writer] = Mark(stop, mark.facts)
        for text, start, stop in promotion.record["facts"]:
            writer = int(text)
            mark = marks.get(writer, Mark())
            if start != mark.facts or stop < start:
                raise CorruptionError(
                    f"promotion {promotion.id} holds facts {start} to {stop} of writer {writer}, after {mark.facts}"
                )
            marks[writer] = Mark(mark.rows, stop)
    return marks


def plan(cut: Cut, marks: Mapping[int, Mark]) -> Plan:
    """What `cut` holds beyond `marks`."""
    extents, gaps = [], []
    for e in cut.extents:
        start = marks.get(e.writer, Mark()).rows
        if start < e.start:
            gaps.append(Extent(e.writer, start, e.start))
            start = e.start
        if e.stop > start:
            extents.append(Extent(e.writer, start, e.stop))
    facts = []
    for writer, stop in cut.facts:
        start = marks.get(writer, Mark()).facts
        if stop > start:
            facts.append((writer, start, stop))
    return Plan(tuple(sorted(extents)), tuple(sorted(facts)), tuple(sorted(gaps)))


def missing(firsts: Mapping[int, int], gone_rows: int, chain: Iterable[Promotion], workspace: str) -> int:
    """Rows of a workspace that are evicted and that the buffer at the end of `chain` does not hold.

    Args:
        firsts: writer → where its log begins, of the logs that are there.
        gone_rows: rows of the logs that are gone.
        workspace: its id.
    """
    held = dict.fromkeys(firsts, 0)
    gone = 0
    for promotion in chain:
        for text, start, stop in promotion.record["extents"] if promotion.workspace == workspace else ():
            writer = int(text)
            if writer in firsts:
                held[writer] += max(0, min(stop, firsts[writer]) - start)
            else:
                gone += stop - start
    return sum(firsts[w] - held[w] for w in firsts) + max(0, gone_rows - gone)
