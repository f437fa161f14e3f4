"""What a snapshot has to add: pure functions from what was promoted and what is there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from recollect.cold.fold import Promotion
from recollect.cold.watermark import watermark
from recollect.view import Cut, Extent
from recollect.view.reach import Mark, Ranges, by_writer, union, within, without

_NO_HOLES: Mapping[int, Ranges] = {}


@dataclass(frozen=True)
class Plan:
    """The rows and facts that a promotion adds.

    Attributes:
        extents: rows, by writer and number.
        facts: (writer, start, stop).
        gaps: rows that were evicted before this buffer got them.
        held: one range per writer that has rows left out: what lies in it and is in no promotion's extents or gaps is
            held back. `held_rows` how many rows of the cut are.
    """

    extents: tuple[Extent, ...]
    facts: tuple[tuple[int, int, int], ...]
    gaps: tuple[Extent, ...] = ()
    held: tuple[Extent, ...] = ()
    held_rows: int = 0

    @property
    def rows(self) -> int:
        return sum(e.stop - e.start for e in self.extents)

    @property
    def is_empty(self) -> bool:
        return not self.extents and not self.facts


def pending(cut: Cut, marks: Mapping[int, Mark]) -> tuple[tuple[Extent, ...], tuple[Extent, ...]]:
    """The rows of `cut` that are not promoted, and those before and between its extents that are neither promoted nor
    there any more, because they were evicted, damaged or deleted; both by writer and number."""
    rows: list[Extent] = []
    gaps: list[Extent] = []
    for writer, there in by_writer(cut.extents).items():
        mark, there = marks.get(writer, Mark()), sorted(there)
        end = there[-1][1]
        lacking = union([*within(mark.held, 0, end), *([(mark.rows, end)] if end > mark.rows else [])])
        lost = without(lacking, there)
        gaps += (Extent(writer, a, b) for a, b in lost)
        rows += (Extent(writer, a, b) for a, b in without(lacking, lost))
    return tuple(sorted(rows)), tuple(sorted(gaps))


def plan(cut: Cut, marks: Mapping[int, Mark], left_out: Iterable[Extent] = ()) -> Plan:
    """What `cut` holds beyond `marks`, but for the rows of `left_out`, whose ranges are sorted."""
    waiting, gaps = pending(cut, marks)
    left = by_writer(left_out)
    extents: list[Extent] = []
    held: list[Extent] = []
    held_rows = 0
    for writer, ranges in by_writer(waiting).items():
        taken = without(ranges, left.get(writer, ()))
        kept_back = without(ranges, taken)
        extents += (Extent(writer, a, b) for a, b in taken)
        if kept_back:
            held.append(Extent(writer, kept_back[0][0], kept_back[-1][1]))
            held_rows += sum(b - a for a, b in kept_back)
    facts = []
    for writer, stop in cut.facts:
        start = marks.get(writer, Mark()).facts
        if stop > start:
            facts.append((writer, start, stop))
    return Plan(tuple(extents), tuple(sorted(facts)), gaps, tuple(held), held_rows)


def missing(
    firsts: Mapping[int, int],
    gone_rows: int,
    chain: Iterable[Promotion],
    workspace: str,
    holes: Mapping[int, Ranges] = _NO_HOLES,
) -> int:
    """Rows of a workspace that are evicted, damaged or deleted and that the buffer at the end of `chain` does not hold.

    Args:
        firsts: writer → where its log begins, of the logs that are there.
        gone_rows: rows of the logs that are gone.
        workspace: its id.
        holes: writer → ranges of rows behind its log's beginning that are gone.
    """
    held = dict.fromkeys(firsts, 0)
    gone = 0
    lost = sum(b - a for ranges in holes.values() for a, b in ranges)
    for promotion in chain:
        for text, start, stop in promotion.record["extents"] if promotion.workspace == workspace else ():
            writer = int(text)
            if writer in firsts:
                held[writer] += max(0, min(stop, firsts[writer]) - start)
                lost -= sum(b - a for a, b in within(holes.get(writer, ()), start, stop))
            else:
                gone += stop - start
    return sum(firsts[w] - held[w] for w in firsts) + lost + max(0, gone_rows - gone)


__all__ = ["Mark", "Plan", "missing", "pending", "plan", "watermark"]
