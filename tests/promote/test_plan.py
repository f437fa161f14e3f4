"""Plans, watermarks and folds with rows held back: pure, against sets of rows."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import recollect as rc
from recollect import errors
from recollect.cold.fold import Fold, Promotion, cut_of, fold, summaries
from recollect.cold.watermark import watermark
from recollect.promote.plan import Plan, missing, pending, plan
from recollect.view.reach import Mark, pack, union, unpack, without

ranges = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 6)).map(lambda t: (t[0], t[0] + t[1])), max_size=8)


def _rows(of: Any) -> set[int]:
    return {row for start, stop in of for row in range(start, stop)}


@given(ranges, ranges)
def test_ranges_are_sets_of_rows(one: list[tuple[int, int]], two: list[tuple[int, int]]) -> None:
    a, b = union(one), union(two)
    assert _rows(a) == _rows(one)
    assert all(x[1] < y[0] for x, y in pairwise(a))
    assert _rows(without(a, b)) == _rows(one) - _rows(two)
    mark = Mark(50, 0, a)
    for start, stop in ((0, 60), (5, 20), (30, 31), (48, 70)):
        assert mark.lacking(start, stop) == len((_rows(a) | set(range(50, 99))) & set(range(start, stop)))


@given(st.lists(st.tuples(st.sampled_from(["7", "-3"]), st.integers(0, 30), st.integers(0, 5)), max_size=12))
def test_packed_ranges_come_back_in_their_order(found: list[tuple[str, int, int]]) -> None:
    extents = [[w, start, start + length] for w, start, length in found]
    assert unpack(json.loads(json.dumps(pack(extents)))) == extents


def test_interleaved_lanes_take_a_few_bytes_a_range() -> None:
    """64 lanes, 500 steps, every other lane held back: 16,000 ranges of one row, the worst there is."""
    name = str(2**62 + 12345)
    extents = [[name, row, row + 1] for row in range(0, 64 * 500, 2)]
    packed = json.dumps(pack(extents), separators=(",", ":"))
    assert len(packed) <= 4 * len(extents) + 40 < len(json.dumps(extents)) / 8


# -- snapshots over a growing workspace --------------------------------------------------------------------------------


class _Model:
    """Two writers whose logs grow, with episodes interleaved, and a buffer."""

    def __init__(self) -> None:
        self.logs: dict[int, list[tuple[int, int]]] = {1: [], 2: []}
        """Writer → (episode, step) of every row."""
        self.steps: dict[tuple[int, int], int] = {}
        self.first = {1: 0, 2: 0}
        self.facts = {1: 0, 2: 0}
        self.promoted: dict[tuple[int, int], int] = {}
        """(writer, row) → how often."""
        self.order: dict[tuple[int, int], list[int]] = {}
        """(writer, episode) → steps in the order in which they came into the buffer."""
        self.gone: set[tuple[int, int]] = set()
        self.links: list[Promotion] = []
        self.before: Fold | None = None

    def append(self, writer: int, episode: int) -> None:
        step = self.steps.get((writer, episode), 0)
        self.steps[writer, episode] = step + 1
        self.logs[writer].append((episode, step))
        self.facts[writer] += step == 0

    def cut(self) -> rc.Cut:
        extents = [rc.Extent(w, self.first[w], len(rows)) for w, rows in self.logs.items() if len(rows) > self.first[w]]
        return rc.Cut(tuple(extents), tuple((w, n) for w, n in self.facts.items() if n))

    @property
    def chain(self) -> list[Promotion]:
        return [*(self.before.summaries if self.before else ()), *self.links]

    def snapshot(self, left: set[tuple[int, int]]) -> Plan:
        """Leaves out the episodes of `left`."""
        cut, marks = self.cut(), watermark(self.chain)
        waiting, _ = pending(cut, marks)
        assert {(e.writer, row) for e in waiting for row in range(e.start, e.stop)} == {
            (e.writer, row)
            for e in cut.extents
            for row in range(e.start, e.stop)
            if (e.writer, row) not in self.promoted
        }
        out = [
            rc.Extent(e.writer, row, row + 1)
            for e in waiting
            for row in range(e.start, e.stop)
            if (e.writer, self.logs[e.writer][row][0]) in left
        ]
        todo = plan(cut, marks, out)
        assert todo.held_rows == len(out)
        assert list(todo.extents) == sorted(todo.extents)
        if todo.is_empty:
            return todo
        for e in todo.extents:
            for row in range(e.start, e.stop):
                episode, step = self.logs[e.writer][row]
                assert (e.writer, episode) not in left
                self.promoted[e.writer, row] = self.promoted.get((e.writer, row), 0) + 1
                self.order.setdefault((e.writer, episode), []).append(step)
        self.gone |= {(e.writer, row) for e in todo.gaps for row in range(e.start, e.stop)}
        record = {
            "extents": [[str(e.writer), e.start, e.stop] for e in todo.extents],
            "facts": [[str(w), a, b] for w, a, b in todo.facts],
            "gaps": [[str(e.writer), e.start, e.stop] for e in todo.gaps],
            "held": [[str(e.writer), e.start, e.stop] for e in todo.held],
            "counts": {}, "missing_rows": 0, "missing_facts": 0, "schema": "s", "lineage": {}, "staged": [],
        }  # fmt: skip
        link = Promotion(f"p{len(self.chain)}", "", "", len(self.chain) + 1, 0, "w", "", todo.rows, 0, record)
        self.links.append(Promotion.from_dict(json.loads(json.dumps(link.to_dict()))))
        assert self.links[-1] == link
        return todo

    def check(self) -> None:
        assert set(self.promoted.values()) <= {1}
        assert all(steps == sorted(steps) for steps in self.order.values())
        marks = watermark(self.chain)
        for writer, mark in marks.items():
            passed = {row for w, row in {*self.promoted, *self.gone} if w == writer}
            assert _rows(mark.held) == set(range(mark.rows)) - passed
            assert {row for w, row in self.promoted if w == writer} <= set(range(mark.rows))
        rows = [(e.writer, row) for e in cut_of(self.links, self.before).extents for row in range(e.start, e.stop)]
        assert rows == list(self.promoted), "a version holds its parent's rows, then the new ones, in order"
        lost = sum((w, row) not in self.promoted for w, first in self.first.items() for row in range(first))
        assert missing(self.first, 0, self.chain, "w") == lost


_appends = st.lists(st.tuples(st.sampled_from([1, 2]), st.integers(0, 4)), min_size=1, max_size=12)
_left = st.sets(st.tuples(st.sampled_from([1, 2]), st.integers(0, 4)), max_size=10)
_acts = st.one_of(
    _appends.map(lambda rows: ("append", rows)),
    _left.map(lambda left: ("snapshot", left)),
    st.integers(0, 2).map(lambda n: ("fold", n)),
)
_drops = st.tuples(st.sampled_from([1, 2]), st.integers(1, 9)).map(lambda drop: ("drop", drop))


def _run(acts: list[tuple[str, Any]]) -> _Model:
    model = _Model()
    for kind, what in acts:
        if kind == "append":
            for writer, episode in what:
                model.append(writer, episode)
        elif kind == "snapshot":
            model.snapshot(what)
        elif kind == "fold" and len(model.links) > what:
            stop = len(model.links) - what
            model.before = fold(f"f{stop}", model.before, model.links[:stop])
            model.links = model.links[stop:]
        elif kind == "drop":
            writer, rows = what
            model.first[writer] = min(len(model.logs[writer]), model.first[writer] + rows)
        model.check()
    return model


@settings(max_examples=200, deadline=None)
@given(st.lists(_acts, max_size=20))
def test_whatever_was_held_back_every_row_is_promoted_once_in_the_end(acts: list[tuple[str, Any]]) -> None:
    model = _run(acts)
    held = model.snapshot({(w, e) for w in (1, 2) for e in range(3)}).held_rows
    want = {(w, row): 1 for w, rows in model.logs.items() for row in range(len(rows))}
    assert held == len(want) - len(model.promoted)
    model.snapshot(set())
    model.check()
    assert model.promoted == want
    assert all(not mark.held for mark in watermark(model.chain).values())
    assert model.snapshot(set()).is_empty


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(_acts, _drops), max_size=20))
def test_rows_that_went_while_they_were_held_back_are_gaps_and_all_others_come_once(
    acts: list[tuple[str, Any]],
) -> None:
    model = _run(acts)
    model.append(1, 9)
    model.append(2, 9)
    model.snapshot(set())
    model.check()
    every = {(w, row) for w, rows in model.logs.items() for row in range(len(rows))}
    assert every == model.promoted.keys() | model.gone and not model.promoted.keys() & model.gone
    assert all(not mark.held for mark in watermark(model.chain).values())


def _link(name: str, extents: list[list[Any]], held: list[list[Any]]) -> Promotion:
    record: dict[str, Any] = {"extents": extents, "facts": [], "gaps": [], "held": held}
    record |= {"counts": {}, "missing_rows": 0, "missing_facts": 0, "schema": "s", "lineage": {}, "staged": []}
    return Promotion(name, "", "", 1, 0, "w", "", 0, 0, record)


def test_rows_left_out_without_a_word_are_corruption() -> None:
    silent = _link("a", [["1", 4, 9]], [])
    with pytest.raises(errors.CorruptionError, match="rows 0 to 4 of writer 1"):
        watermark([silent])
    said = _link("a", [["1", 4, 9]], [["1", 0, 12]])
    assert watermark([said])[1] == Mark(12, 0, ((0, 4), (9, 12)))
    assert watermark(summaries([said])) == watermark([said])
    with pytest.raises(errors.CorruptionError, match="promotion b"):
        watermark([said, _link("b", [["1", 8, 10]], [])])
    assert watermark([said, _link("b", [["1", 0, 2], ["1", 9, 12]], [])])[1] == Mark(12, 0, ((2, 4),))
