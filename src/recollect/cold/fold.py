"""Promotions, and what a row of them holds once it is folded. Pure functions.

A buffer's history is a chain of promotions, each naming the one before it. What is old in it is *folded*: the rows in
their order, and one summary per workspace that stands for all of its promotions (design/0016).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from recollect.view import Cut, Extent, merged
from recollect.view.reach import Ranges, pack, union, unpack, within, without

FOLDED_KEYS = {
    "extents", "facts", "gaps", "held", "counts", "missing_rows", "missing_facts", "statistics", "schema", "lineage",
    "staged", "deleted", "unfollowed", "forgotten",
}  # fmt: skip
"""What a promotion's record may hold: whatever is added there has to be folded here as well."""
PACKED_KEYS = ("extents", "gaps", "held", "deleted", "unfollowed")
"""Those of them that are ranges of rows, and are written packed."""


@dataclass(frozen=True)
class Promotion:
    """One link of a buffer's history, or a summary of one workspace's links.

    Attributes:
        id, parent: its name and that of the promotion before it ("" for the first).
        stage: the name that its facts and tails carry.
        base_version: the version of `steps` it was committed on; it is the next one.
        time_ns: when it was staged.
        workspace: the workspace's id; `tag` what its version should be called, or "".
        rows, total_rows: rows added, and rows in the version.
        record: cut, lineage, and (of the newest link, and of links read in full) statistics.
    """

    id: str
    parent: str
    stage: str
    base_version: int
    time_ns: int
    workspace: str
    tag: str
    rows: int
    total_rows: int
    record: Mapping[str, Any]

    def slim(self) -> Promotion:
        """Without statistics, which later promotions need of the newest alone."""
        return replace(self, record={k: v for k, v in self.record.items() if k != "statistics"})

    def to_dict(self) -> dict[str, Any]:
        """What is written down: JSON types, ranges of rows packed."""
        packed = {k: pack(self.record[k]) for k in PACKED_KEYS if k in self.record}
        return {**vars(self), "record": {**self.record, **packed}}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Promotion:
        record = data["record"]
        ranges = {k: unpack(record[k]) for k in PACKED_KEYS if k in record}
        return cls(**{**data, "record": {**record, **ranges}})


@dataclass(frozen=True)
class Fold:
    """What the older part of a chain holds.

    Attributes:
        name: what later promotions call it; `earlier` the folds before it, oldest first. Each holds its own links.
        last: the newest link that it covers; `count` how many it covers with those of the earlier folds.
        extents: the rows, in view order.
        summaries: one per workspace: its rows and facts by writer, and the last version that it wanted a tag for.
        stages: of the links that brought facts or tails.
    """

    name: str
    earlier: tuple[str, ...]
    last: str
    count: int
    extents: tuple[Extent, ...]
    summaries: tuple[Promotion, ...]
    stages: tuple[str, ...]


def fold(name: str, before: Fold | None, links: Sequence[Promotion]) -> Fold:
    """`before` and the `links` that follow it, oldest first, as one."""
    return Fold(
        name,
        (*before.earlier, before.name) if before else (),
        links[-1].id,
        (before.count if before else 0) + len(links),
        cut_of(links, before).extents,
        summaries([*(before.summaries if before else ()), *links]),
        (*(before.stages if before else ()), *stages_of(links)),
    )


def stages_of(links: Iterable[Promotion]) -> list[str]:
    """Names under which these links staged facts or tails."""
    return [p.stage for p in links if p.record["staged"]]


def cut_of(links: Iterable[Promotion], before: Fold | None = None) -> Cut:
    """The cut of the version that a chain ends with: each promotion's extents behind its parent's."""
    links = list(links)
    old = before.extents if before else ()
    extents = merged([*old, *(Extent(int(w), a, b) for p in links for w, a, b in p.record["extents"])])
    deleted = gone_of(links).deleted
    if deleted:
        extents = tuple(Extent(e.writer, a, b) for e in extents for a, b in _left(e, deleted.get(e.writer, ())))
    facts: dict[int, int] = {}
    for p in (*(before.summaries if before else ()), *links):
        for w, _, stop in p.record["facts"]:
            facts[int(w)] = max(facts.get(int(w), 0), stop)
    return Cut(extents, tuple(sorted(facts.items())))


def _left(extent: Extent, gone: Ranges) -> Ranges:
    return without([(extent.start, extent.stop)], within(gone, extent.start, extent.stop))


@dataclass(frozen=True)
class Gone:
    """What deletions took from a version.

    Attributes:
        deleted: writer → ranges of rows; `unfollowed` those of steps whose waiting observation went with its step.
        forgotten: writer and counter of the episodes that lost every row, and with them the facts about them.
    """

    deleted: Mapping[int, Ranges]
    unfollowed: Mapping[int, Ranges]
    forgotten: frozenset[tuple[int, int]]

    def hides_fact(self, episode: tuple[int, int], step: tuple[int, int] | None) -> bool:
        """Whether a fact went with what it is about."""
        return episode in self.forgotten or (step is not None and _lies_in(self.deleted, step))

    def hides_tail(self, step: tuple[int, int]) -> bool:
        """Whether the observation that waits behind a step is one that was deleted."""
        return _lies_in(self.unfollowed, step) or _lies_in(self.deleted, step)


def _lies_in(ranges: Mapping[int, Ranges], row: tuple[int, int]) -> bool:
    return bool(within(ranges.get(row[0], ()), row[1], row[1] + 1))


def gone_of(links: Iterable[Promotion]) -> Gone:
    """What the deletions among some links took."""
    ranges: dict[str, dict[int, list[tuple[int, int]]]] = {"deleted": {}, "unfollowed": {}}
    forgotten: set[tuple[int, int]] = set()
    for p in links:
        for key, out in ranges.items():
            for writer, start, stop in p.record.get(key, ()):
                out.setdefault(int(writer), []).append((start, stop))
        forgotten.update((int(writer), counter) for writer, counter in p.record.get("forgotten", ()))
    deleted, unfollowed = ({w: union(found) for w, found in out.items()} for out in ranges.values())
    return Gone(deleted, unfollowed, frozenset(forgotten))


def summaries(links: Iterable[Promotion]) -> tuple[Promotion, ...]:
    """One promotion per workspace that holds what all of its own do; links may be summaries themselves.

    What a promoter asks of its workspace's promotions has the same answer from the summary: which rows and facts the
    buffer holds, which rows were gone before they came, and which tag was wanted last.
    """
    by_workspace: dict[str, list[Promotion]] = {}
    for p in links:
        by_workspace.setdefault(p.workspace, []).append(p)
    return tuple(_summary(own) for own in by_workspace.values())


def _summary(links: Sequence[Promotion]) -> Promotion:
    last = next((p for p in reversed(links) if p.tag), links[-1])
    staged = any(p.record["staged"] for p in links)
    record = {
        "extents": _union(e for p in links for e in p.record["extents"]),
        "facts": _union(e for p in links for e in p.record["facts"]),
        "gaps": _union(e for p in links for e in p.record["gaps"]),
        "held": _union(e for p in links for e in p.record["held"]),
        "counts": links[-1].record["counts"],
        "missing_rows": max(p.record["missing_rows"] for p in links),
        "missing_facts": sum(p.record["missing_facts"] for p in links),
        "schema": links[-1].record["schema"],
        "lineage": links[-1].record["lineage"],
        "staged": ["facts"] if staged else [],
    }
    for key in ("deleted", "unfollowed"):
        if found := _union(e for p in links for e in p.record.get(key, ())):
            record[key] = found
    if forgotten := {(w, c) for p in links for w, c in p.record.get("forgotten", ())}:
        record["forgotten"] = [list(e) for e in sorted(forgotten)]
    return replace(last, parent="", stage="", record=record)


def _union(ranges: Iterable[Sequence[Any]]) -> list[list[Any]]:
    """`[writer, start, stop]` ranges by writer and start, adjacent ones joined."""
    out: list[list[Any]] = []
    for writer, start, stop in sorted((str(w), a, b) for w, a, b in ranges):
        if out and out[-1][0] == writer and out[-1][2] >= start:
            out[-1][2] = max(out[-1][2], stop)
        elif stop > start:
            out.append([writer, start, stop])
    return out


def weight(links: Iterable[Promotion]) -> int:
    """Characters that links take when they are carried along."""
    return sum(len(json.dumps(p.slim().to_dict())) for p in links)
