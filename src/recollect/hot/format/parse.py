"""Facts out of a segment: records, with JSON in the heap."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from recollect.hot.format.first import Resumption
from recollect.hot.format.segment import RESUMPTION, Segment
from recollect.view import EpisodeKey, Fact, StepId
from recollect.view.reach import Ranges, without


def parse_all(spans: Iterable[tuple[Segment, int]], start: int, gone: Ranges = ()) -> list[Fact]:
    """The facts from `start` on that are not `gone`, each segment up to its own stop. Raises CorruptionError."""
    out = []
    for segment, stop in spans:
        first = segment.header.first_fact
        if stop > max(start, first):
            segment.checked.require_facts(stop - first)
            for low, high in without(((max(start, first), stop),), gone):
                out += [parse(segment, seq - first) for seq in range(low, high)]
    return out


def _body(segment: Segment, row: int) -> dict[str, Any]:
    record = segment.facts[row]
    at, count = int(record["heap_at"]), int(record["heap_bytes"])
    values: dict[str, Any] = json.loads(segment.heap[at : at + count].tobytes())
    return values


def resumption(segment: Segment, row: int) -> Resumption:
    """What a fact of that kind says."""
    record, body = segment.facts[row], _body(segment, row)
    key = EpisodeKey(int(record["episode_writer"]), int(record["episode"]))
    return Resumption(key, body["row"], tuple((int(w), int(n)) for w, n in body["after"]), body["turn"])


def parse(segment: Segment, row: int) -> Fact:
    """One fact of a segment, which was checked before."""
    record, body = segment.facts[row], _body(segment, row)
    step = int(record["step_seq"])
    return Fact(
        int(record["writer"]),
        int(record["seq"]),
        int(record["time"]),
        EpisodeKey(int(record["episode_writer"]), int(record["episode"])),
        None if step < 0 else StepId(int(record["step_writer"]), step),
        body["values"] if record["kind"] == RESUMPTION else body,
    )
