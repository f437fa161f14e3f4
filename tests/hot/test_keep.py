"""What `Keep` takes, and which segments it lets go: pure functions, told in tables."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import recollect as rc
from recollect import errors
from recollect.hot.keep import Parcel, choose


@pytest.mark.parametrize(
    "given",
    [
        {"rows": 0},
        {"rows": -1},
        {"rows": 1.5},
        {"rows": True},
        {"bytes": 0},
        {"bytes": "1GB"},
        {"age": 0},
        {"age": -1.0},
        {"age": float("nan")},
        {"age": float("inf")},
        {"age": timedelta(0)},
        {"age": "1h"},
        {"unpromoted": "maybe"},
    ],
)
def test_a_limit_that_is_no_positive_number_is_refused(given: dict[str, Any]) -> None:
    with pytest.raises(errors.ArgumentError):
        rc.Keep(**given)


@pytest.mark.parametrize(
    "keep",
    [
        rc.Keep(),
        rc.Keep(rows=5),
        rc.Keep(rows=5, bytes=6, age=timedelta(hours=1), unpromoted="drop"),
        rc.Keep(age=0.5),
    ],
)
def test_what_is_kept_goes_through_json(keep: rc.Keep) -> None:
    assert rc.Keep.from_dict(json.loads(json.dumps(keep.to_dict()))) == keep
    assert str(keep)


def test_a_timedelta_is_seconds() -> None:
    assert rc.Keep(age=timedelta(minutes=2)) == rc.Keep(age=120.0)


def _parcel(rows: int, newest: int, *, promoted: bool = True, size: int = 10, facts: int = 0) -> Parcel:
    return Parcel(rows, facts, size, newest, promoted)


LOGS: dict[int, list[Parcel]] = {
    1: [_parcel(10, 1), _parcel(10, 3, promoted=False), _parcel(10, 5)],
    2: [_parcel(10, 2), _parcel(0, 4, facts=3), _parcel(10, 6)],
}
"""Fifty rows in sixty bytes that are not written any more; ten rows and forty bytes more are."""


@pytest.mark.parametrize(
    ("keep", "go", "waiting_rows"),
    [
        (rc.Keep(), {}, 0),
        (rc.Keep(rows=60), {}, 0),
        (rc.Keep(rows=51), {}, 0),
        (rc.Keep(rows=50), {1: 1}, 0),
        (rc.Keep(rows=40), {1: 1, 2: 1}, 0),
        (rc.Keep(rows=39), {1: 1, 2: 1}, 0),
        # The third oldest waits, and is counted as if it had gone; so may the fourth go, which holds no rows.
        (rc.Keep(rows=30), {1: 1, 2: 2}, 10),
        (rc.Keep(rows=20), {1: 1, 2: 2}, 20),
        (rc.Keep(rows=1), {1: 1, 2: 3}, 20),
        (rc.Keep(rows=30, unpromoted="drop"), {1: 2, 2: 2}, 0),
        (rc.Keep(rows=1, unpromoted="drop"), {1: 3, 2: 3}, 0),
        (rc.Keep(bytes=100), {}, 0),
        (rc.Keep(bytes=99), {1: 1}, 0),
        (rc.Keep(bytes=60, unpromoted="drop"), {1: 2, 2: 2}, 0),
        (rc.Keep(bytes=1, unpromoted="drop"), {1: 3, 2: 3}, 0),
        (rc.Keep(age=7e-9), {1: 1, 2: 1}, 0),
        (rc.Keep(rows=1_000, age=7e-9), {1: 1, 2: 1}, 0),
        (rc.Keep(rows=60, bytes=99), {1: 1}, 0),
    ],
)
def test_the_oldest_go_first_and_only_from_the_front(keep: rc.Keep, go: dict[int, int], waiting_rows: int) -> None:
    choice = choose(keep, LOGS, 60, 100, 10, frozenset())
    assert ({w: n for w, n in choice.segments.items() if n}, choice.waiting_rows) == (go, waiting_rows)
    assert bool(choice.waiting_bytes) == bool(waiting_rows)


def test_a_finished_log_that_holds_nothing_goes_whatever_the_limits_are() -> None:
    logs = {1: [_parcel(0, 1)], 2: [_parcel(5, 2)]}
    assert choose(rc.Keep(rows=100), logs, 5, 20, 9, frozenset([1, 2])).segments == {1: 1}
    assert choose(rc.Keep(rows=100), logs, 5, 20, 9, frozenset()).segments == {}
    assert choose(rc.Keep(), logs, 5, 20, 9, frozenset([1, 2])).segments == {}


@given(
    st.lists(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 50), st.booleans()), max_size=6), max_size=4),
    st.integers(1, 200),
    st.booleans(),
)
def test_the_newest_rows_stay_and_nothing_unpromoted_goes(
    told: list[list[tuple[int, int, bool]]], rows: int, drop: bool
) -> None:
    logs = {w: [_parcel(r, t, promoted=p) for r, t, p in sorted(log, key=lambda x: x[1])] for w, log in enumerate(told)}
    total = sum(p.rows for log in logs.values() for p in log)
    keep = rc.Keep(rows=rows, unpromoted="drop" if drop else "refuse")
    choice = choose(keep, logs, total, 0, 0, frozenset())
    gone = [p for w, n in choice.segments.items() for p in logs[w][:n]]
    left = [p for w, log in logs.items() for p in log[choice.segments.get(w, 0) :]]
    assert not gone or sum(p.rows for p in left) >= rows
    assert drop or all(p.promoted for p in gone)
    if drop and gone and left:
        assert (
            max(p.newest_ns for p in gone) <= min(p.newest_ns for p in left if p.rows)
            if any(p.rows for p in left)
            else True
        )
    assert sum(p.rows for p in left) - choice.waiting_rows < max(rows, 1) + max((p.rows for p in left), default=0)


LIMITS = [rc.Keep(bytes=16_000_000, unpromoted="drop"), rc.Keep(rows=100_000, unpromoted="drop")]


@pytest.mark.parametrize("keep", LIMITS)
def test_segments_are_no_larger_than_what_a_limit_lets_go(keep: rc.Keep) -> None:
    schema = rc.Schema({"observation": rc.Tensor("float32", (12,))})
    with rc.create_workspace("w", schema, keep=keep) as ws, ws.writer(durability="process") as writer:
        n = 5_000
        for k in range(150):
            block = {"observation": np.zeros((n, 12), np.float32), "terminated": np.arange(n) == n - 1}
            writer.extend({"episode": np.full(n, k), "step": np.arange(n), **block})
        ws.retainer.close()
        ws.evict()
        held = len(ws.view().rows)
        assert held >= 90_000
        assert held < 160_000
