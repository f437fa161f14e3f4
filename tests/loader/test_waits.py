"""Waiting for rows: `min_rows` and rate limits, against a model, with the writer on this thread and on others."""

from __future__ import annotations

import json
import threading
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

import recollect as rc
from recollect import errors
from recollect.loader.rate import RateLimit
from tests.support import batch_bits

PLAIN = rc.Schema({"observation": rc.Tensor("float32", (2,)), "uid": rc.Tensor("int64")})


class _Actor:
    """Appends drawable steps on a thread of its own, so many at a time as it is asked for."""

    def __init__(self, ws: rc.Workspace) -> None:
        self._ws, self.uid = ws, 0
        self._asked, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._counts: list[int] = []
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        with self._ws.writer(durability="process") as writer, writer.episode() as episode:
            while True:
                self._asked.acquire()
                count = self._counts.pop(0)
                if count < 0:
                    return
                for _ in range(count):
                    episode.append(observation=[self.uid, 0], uid=self.uid, next_observation=[self.uid + 1, 0])
                    self.uid += 1
                self._done.release()

    def start(self, count: int) -> None:
        self._counts.append(count)
        self._asked.release()

    def act(self, count: int) -> None:
        self.start(count)
        assert self._done.acquire(timeout=60)

    def close(self) -> None:
        self.start(-1)
        self._thread.join(60)


@pytest.fixture
def world() -> Any:
    with rc.create_workspace("w", PLAIN) as ws:
        actor = _Actor(ws)
        yield ws, actor
        actor.close()


def _loader(ws: rc.Workspace, last: int | None = None, **options: Any) -> rc.Loader:
    return rc.Loader(ws.live(last=last), **{"batch_size": 4, "seed": 0, "lag": 0, "output": "numpy", **options})


def test_a_loader_waits_for_its_first_rows(world: Any) -> None:
    ws, actor = world
    loader = _loader(ws, min_rows=10, timeout_s=60)
    with pytest.raises(errors.ArgumentError, match="next"):
        loader.state_dict()
    actor.act(9)
    with pytest.raises(errors.WaitTimeout, match="1 more rows"):
        next(_loader(ws, min_rows=10, timeout_s=0))
    actor.start(1)
    batch = next(loader)
    assert batch.step == 0 and len(loader.view) == 10
    assert loader.state_dict()["step"] == 1


def test_a_wait_that_ended_in_vain_delivered_nothing_and_can_go_on(world: Any) -> None:
    ws, actor = world
    actor.act(3)
    loader = _loader(ws, min_rows=5, timeout_s=0)
    for _ in range(2):
        with pytest.raises(errors.WaitTimeout):
            next(loader)
    actor.act(2)
    assert [next(loader).step for _ in range(3)] == [0, 1, 2]


def test_a_view_has_its_rows_now_or_never(world: Any) -> None:
    ws, actor = world
    actor.act(5)
    with pytest.raises(errors.ArgumentError, match="min_rows=6"):
        rc.Loader(ws.view(), batch_size=2, seed=0, min_rows=6)
    assert len(next(rc.Loader(ws.view(), batch_size=2, seed=0, min_rows=5, output="numpy"))) == 2
    with pytest.raises(errors.ArgumentError, match="rate"):
        rc.Loader(ws.view(), batch_size=2, seed=0, rate=RateLimit(1.0))


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"samples_per_insert": 0}, "samples_per_insert"),
        ({"samples_per_insert": float("inf")}, "samples_per_insert"),
        ({"samples_per_insert": 1.0, "min_rows": 0}, "min_rows"),
        ({"samples_per_insert": 8.0, "tolerance": 7.9}, "tolerance"),
        ({"samples_per_insert": 0.5, "tolerance": 0.9}, "tolerance"),
        ({"samples_per_insert": 1.0, "timeout_s": -1}, "timeout_s"),
    ],
)
def test_a_limit_that_cannot_work_is_refused(wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(errors.ArgumentError, match=text):
        RateLimit(**wrong)


@example(0.95, 1, None, 0, 38, 1)
@given(
    st.floats(0.1, 20),
    st.integers(1, 50),
    st.one_of(st.none(), st.floats(20, 500)),
    st.integers(0, 300),
    st.integers(0, 300),
    st.integers(1, 64),
)
@settings(max_examples=200, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_what_is_missing_is_the_fewest_rows_that_allow_the_draw(
    per_insert: float, min_rows: int, tolerance: float | None, inserted: int, drawn: int, rows: int
) -> None:
    """Against the inequality as Reverb states it."""
    limit = RateLimit(per_insert, min_rows, tolerance)
    room = max(rows, per_insert) if tolerance is None else tolerance

    def allowed(came: int) -> bool:
        return came >= min_rows and per_insert * came - drawn - rows >= per_insert * min_rows - room - 1e-7

    missing = limit.missing(inserted, drawn, rows)
    assert allowed(inserted + missing)
    if missing:
        assert not limit.missing(inserted + missing, drawn, rows)
        assert limit.missing(inserted + missing - 1, drawn, rows), "fewer would do"


@given(
    actions=st.lists(st.one_of(st.integers(1, 9), st.just("next")), min_size=5, max_size=40),
    per_insert=st.sampled_from([0.5, 1.0, 3.0, 8.0]),
    min_rows=st.integers(1, 12),
    tolerance=st.sampled_from([None, 8.0, 20.0]),
    last=st.sampled_from([None, 10]),
    lag=st.sampled_from([0, 2]),
)
@settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
def test_draws_keep_to_the_limit_whatever_is_appended_when(
    actions: list[Any], per_insert: float, min_rows: int, tolerance: float | None, last: int | None, lag: int
) -> None:
    """A model that counts rows says for every `next` whether it delivers, and never more was drawn than allowed."""
    limit = RateLimit(per_insert, min_rows, tolerance, timeout_s=0)
    ws = rc.create_workspace(None, PLAIN)
    actor = _Actor(ws)
    try:
        actor.act(1)
        loader = _loader(ws, last, rate=limit, lag=lag)
        delivered = drawn = 0
        came = 1
        for action in actions:
            if action != "next":
                actor.act(action)
                came += action
                continue
            while drawn <= delivered + lag and not limit.missing(came, 4 * drawn, 4):
                drawn += 1
            if drawn > delivered:
                assert next(loader).step == delivered
                delivered += 1
                again = _loader(ws, last, rate=limit, lag=lag)
                again.load_state_dict(json.loads(json.dumps(loader.state_dict())))
                loader = again
            else:
                with pytest.raises(errors.WaitTimeout, match="more rows"):
                    next(loader)
            told = loader.stats()
            assert told["inserted_rows"] == came
            assert told["samples_per_insert"] == pytest.approx(4 * drawn / came)
            room = max(4, per_insert) if tolerance is None else tolerance
            assert 4 * drawn <= max(0.0, per_insert * (came - min_rows)) + room + 1e-9
    finally:
        actor.close()
        ws.close()


def test_a_blocked_draw_ahead_waits_while_a_batch_is_there(world: Any) -> None:
    ws, actor = world
    actor.act(8)
    loader = _loader(ws, rate=RateLimit(1.0, tolerance=8, timeout_s=0), lag=1)
    assert next(loader).step == 0, "draws batches 0 and 1"
    assert next(loader).step == 1, "draws batch 2: 7 rows past the first and 8 more allow 15"
    assert next(loader).step == 2, "batch 3 would make 16, and is not waited for"
    with pytest.raises(errors.WaitTimeout):
        next(loader)
    actor.act(4)
    assert next(loader).step == 3


def test_waiting_for_the_rows_of_this_thread_is_refused() -> None:
    with rc.create_workspace("w", PLAIN) as ws, ws.writer() as writer, writer.episode() as episode:
        for uid in range(4):
            episode.append(observation=[0, 0], uid=uid, next_observation=[0, 0])
        loader = _loader(ws, rate=RateLimit(1.0, timeout_s=600))
        next(loader)
        with pytest.raises(errors.ArgumentError, match="thread that would wait"):
            next(loader)
        with pytest.raises(errors.ArgumentError, match="thread that would wait"):
            next(_loader(ws, min_rows=5, timeout_s=600))
        for uid in range(4):
            episode.append(observation=[0, 0], uid=uid, next_observation=[0, 0])
        assert next(loader).step == 1


def test_a_writer_of_another_thread_is_waited_for(world: Any) -> None:
    ws, actor = world
    actor.act(4)
    with ws.writer() as mine, mine.episode() as episode:
        episode.append(observation=[0, 0], uid=-1, next_observation=[0, 0])
        loader = _loader(ws, rate=RateLimit(1.0, tolerance=4, timeout_s=60))
        next(loader)
        timer = threading.Timer(0.05, actor.start, [9])
        timer.start()
        assert next(loader).step == 1
        timer.join()


def test_a_loader_that_waited_goes_on_bit_for_bit_after_a_resume(world: Any) -> None:
    ws, actor = world
    actor.act(6)
    options: dict[str, Any] = {"rate": RateLimit(2.0, tolerance=8, timeout_s=0), "lag": 2}
    loader = _loader(ws, **options)
    delivered: dict[int, Any] = {}
    resumed_gave: list[tuple[int, Any]] = []
    for _ in range(30):
        try:
            batch = next(loader)
            delivered[batch.step] = batch_bits(batch)
        except errors.WaitTimeout:
            actor.act(3)
        state = json.loads(json.dumps(loader.state_dict()))
        resumed = _loader(ws, **options)
        resumed.load_state_dict(state)
        assert json.loads(json.dumps(resumed.state_dict())) == state
        for _ in state["undelivered"]:
            batch = next(resumed)
            resumed_gave.append((batch.step, batch_bits(batch)))
    compared = [(step, bits) for step, bits in resumed_gave if step in delivered]
    assert len(delivered) > 8 and len(compared) > 8
    assert all(delivered[step] == bits for step, bits in compared)
