"""The loader: the same ids however it gathers, the very next batch after a resume, batches that stay what they were."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors
from recollect.samplers.base import Cursor, Draw, Receipt, State
from recollect.samplers.streams import Stream
from tests.support import (
    SCHEMAS,
    batch_bits,
    bits,
    order_of,
    random_trajectories,
    take,
    write_appends,
)

PLAIN = rc.Schema(
    {"observation": rc.Tensor("float32", (2,)), "reward": rc.Tensor("float32"), "uid": rc.Tensor("int64")}
)


def _write(writer: rc.Writer, count: int, *, first: int = 0, end: bool = True) -> rc.Episode:
    episode = writer.episode()
    for i in range(first, first + count):
        last = i == first + count - 1
        episode.append(
            observation=[i, 0],
            reward=float(i),
            uid=i,
            terminated=end and last,
            next_observation=None if end else [i + 1, 0],
        )
    return episode


def _view(rows: int = 30) -> rc.View:
    ws = rc.create_workspace("w", PLAIN)
    _write(ws.writer(), rows)
    return ws.view()


@pytest.fixture
def versions(tmp_path: Path) -> list[rc.View]:
    """Three versions of a buffer. Each one's newest episode is still open, and goes on in the next."""
    with rc.create_workspace("w", PLAIN) as ws:
        writer = ws.writer()
        episode = writer.episode()
        uid = 0
        for tag in ("a", "b", "c"):
            _write(writer, 10, first=1000 + uid)
            for _ in range(20):
                episode.append(observation=[uid, 0], reward=float(uid), uid=uid, next_observation=[uid + 1, 0])
                uid += 1
            ws.snapshot(tmp_path / "buffer", tag=tag)
        buffer = rc.open_buffer(tmp_path / "buffer")
        return [buffer.at(tag) for tag in ("a", "b", "c")]


# -- draws -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"steps": 37}, {"epochs": 2}], ids=["steps", "epochs"])
def test_batches_are_the_same_however_many_are_gathered_at_a_time(options: dict[str, int]) -> None:
    view = _view(53)
    streams = [
        [batch_bits(b) for b in rc.Loader(view, batch_size=4, seed=3, ahead=ahead, output="numpy", **options)]  # type: ignore[arg-type]
        for ahead in (1, 4, None, 64)
    ]
    assert all(stream == streams[0] for stream in streams[1:])
    assert len(streams[0]) == (37 if "steps" in options else 2 * 14)


def test_draws_depend_on_the_seed_and_on_nothing_global() -> None:
    view = _view()
    np.random.seed(0)  # noqa: NPY002
    first = take(rc.Loader(view, batch_size=8, seed=1, output="numpy"), 4)
    np.random.seed(9)  # noqa: NPY002
    assert take(rc.Loader(view, batch_size=8, seed=1, output="numpy"), 4) == first
    assert take(rc.Loader(view, batch_size=8, seed=2, output="numpy"), 4) != first


def test_batches_hold_what_was_written() -> None:
    view = _view()
    for batch in rc.Loader(view, batch_size=8, seed=1, steps=5, output="numpy"):
        uid = batch["uid"]
        assert len(batch) == 8 == len(batch.ids)
        assert np.array_equal(batch["observation"][:, 0], uid)
        assert np.array_equal(batch["reward"], uid)
        assert np.array_equal(batch["step_index"], uid)
        assert np.array_equal(batch["is_first"], uid == 0)
        assert np.array_equal(batch["terminated"], uid == 29)
        assert np.array_equal(batch.valid["next_observation"], uid < 29)
        assert np.array_equal(batch["next_observation"][:, 0], np.where(uid < 29, uid + 1, 0))
        assert np.array_equal(batch.ids["seq"], uid)
        assert np.array_equal(batch.probability, np.full(8, 1 / 30, np.float32))
        assert np.array_equal(batch.weight, np.ones(8, np.float32))


def test_steps_stop_the_loader_and_epochs_end_short() -> None:
    view = _view(10)
    assert len(list(rc.Loader(view, batch_size=4, seed=0, steps=7, output="numpy"))) == 7
    sizes = [len(b) for b in rc.Loader(view, batch_size=4, seed=0, epochs=3, output="numpy")]
    assert sizes == [4, 4, 2] * 3
    assert [b.step for b in rc.Loader(view, batch_size=4, seed=0, epochs=2, output="numpy")] == list(range(6))


def test_an_epoch_visits_every_row_once_in_an_order_of_its_own() -> None:
    view = _view(23)
    batches = list(rc.Loader(view, batch_size=5, seed=0, epochs=3, output="numpy"))
    uids = [int(u) for b in batches for u in b["uid"]]
    epochs = [uids[k : k + 23] for k in range(0, 69, 23)]
    assert all(sorted(e) == list(range(23)) for e in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_hot_and_cold_views_of_one_cut_give_the_same_batches(tmp_path: Path) -> None:
    schema = SCHEMAS["nested-with-nulls"]()
    rng = np.random.default_rng(8)
    trajectories = random_trajectories(schema, rng, count=8)
    for trajectory in trajectories:
        for moment in trajectory.moments:
            # Statistics of infinities are not this test's subject.
            moment.values["reward"] = np.float32(rng.standard_normal())
    with rc.create_workspace("w", schema) as ws:
        write_appends(ws.writer(), trajectories, order_of(trajectories, rng))
        snap = ws.snapshot(tmp_path / "b", tag="t")
        views = [ws.view(cut=snap.cut), rc.open_buffer(tmp_path / "b").at("t")]
        for options in ({}, {"transforms": [rc.NStep(3, gamma=0.9)]}, {"fields": list(schema.by_path)}):
            streams = [take(rc.Loader(v, batch_size=6, seed=4, output="numpy", **options), 15) for v in views]
            assert streams[0] == streams[1]


# -- resuming --------------------------------------------------------------------------------------------------------


def _resumed(loader: rc.Loader, fresh: rc.Loader) -> rc.Loader:
    fresh.load_state_dict(json.loads(json.dumps(loader.state_dict())))
    return fresh


@pytest.mark.parametrize("ahead", [1, 4, None])
@pytest.mark.parametrize("options", [{"steps": 11}, {"epochs": 2}, {}], ids=["steps", "epochs", "endless"])
def test_a_resumed_loader_goes_on_at_any_position(options: dict[str, Any], ahead: int | None) -> None:
    view = _view(21)

    def make() -> rc.Loader:
        return rc.Loader(view, batch_size=4, seed=5, ahead=ahead, output="numpy", **options)

    whole = take(make(), 11)
    for position in range(11):
        loader = make()
        assert take(loader, position) == whole[:position]
        assert take(_resumed(loader, make()), 11 - position) == whole[position:]


@pytest.mark.parametrize("ahead", [1, 4, None])
@pytest.mark.parametrize("n", [1, 3])
@pytest.mark.parametrize("lag", [0, 1, 3])
def test_a_loader_resumed_around_an_advance_goes_on_bit_for_bit(
    lag: int, n: int, ahead: int | None, versions: list[rc.View]
) -> None:
    """Some batches still come from the older version; their windows end where that version ends."""

    def make(view: rc.View) -> rc.Loader:
        return rc.Loader(
            view, batch_size=16, seed=5, lag=lag, ahead=ahead, output="numpy", transforms=[rc.NStep(n, gamma=0.5)]
        )

    for at in (0, 1, 5):
        loader = make(versions[0])
        before = take(loader, at)
        loader.advance(versions[1])
        after = take(loader, 10)
        again = make(versions[0])
        assert take(again, at) == before
        again.advance(versions[1])
        for position in range(6):
            resumed = _resumed(again, make(versions[1]))
            assert take(resumed, 10 - position) == after[position:], (at, position)
            assert batch_bits(next(again)) == after[position]


def test_the_state_of_a_resumed_loader_is_as_good_as_the_first(versions: list[rc.View]) -> None:
    loader = rc.Loader(versions[0], batch_size=8, seed=5, lag=3, output="numpy")
    take(loader, 2)
    loader.advance(versions[1])
    state = loader.state_dict()
    want = take(loader, 8)
    for _ in range(2):
        fresh = rc.Loader(versions[1], batch_size=8, seed=5, lag=3, output="numpy")
        fresh.load_state_dict(json.loads(json.dumps(state)))
        state = fresh.state_dict()
        assert take(fresh, 8) == want


def test_an_advance_changes_the_rows_from_the_next_draw_on(versions: list[rc.View]) -> None:
    loader = rc.Loader(versions[0], batch_size=64, seed=0, lag=2, output="numpy")
    take(loader, 3)
    loader.advance(versions[1])
    newest = [int(next(loader)["uid"].max() % 1000) for _ in range(6)]
    assert max(newest[:2]) < 20, "batches drawn before the advance hold older rows"
    assert min(newest[2:]) >= 20, "batches drawn after the advance hold newer rows"


def test_a_second_advance_does_not_undo_the_first(versions: list[rc.View]) -> None:
    """Batch k+lag is drawn inside the next() that returns batch k, so each batch has the view of that moment."""
    loader = rc.Loader(versions[0], batch_size=256, seed=0, lag=2, output="numpy")
    take(loader, 3)
    loader.advance(versions[1])
    next(loader)  # returns batch 3, draws batch 5 from the second version
    loader.advance(versions[2])
    rows = [bool((next(loader)["uid"] % 1000 >= 20).any()) for _ in range(3)]
    assert rows == [False, True, True]


def test_an_advance_to_what_is_no_later_version_is_refused(versions: list[rc.View]) -> None:
    loader = rc.Loader(versions[1], batch_size=4, seed=0)
    with pytest.raises(errors.ArgumentError, match="no later version"):
        loader.advance(versions[0])
    with pytest.raises(errors.ArgumentError, match="epochs"):
        rc.Loader(versions[0], batch_size=4, seed=0, epochs=1).advance(versions[1])
    loader.advance(versions[1])
    loader.advance(versions[2])
    assert len(next(loader)) == 4


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("seed", {"seed": 1}),
        ("batch_size", {"batch_size": 5}),
        ("lag", {"lag": 7}),
        ("epochs", {"epochs": 1}),
        ("transforms", {"transforms": [rc.NStep(2, gamma=0.5)]}),
        ("rows", {}),
    ],
)
def test_a_state_of_another_loader_is_refused_by_name(
    name: str, options: dict[str, Any], versions: list[rc.View]
) -> None:
    common: dict[str, Any] = {"batch_size": 4, "seed": 0}
    state = rc.Loader(versions[0], **common).state_dict()
    view = versions[1] if name == "rows" else versions[0]
    with pytest.raises(errors.ArgumentError, match=name):
        rc.Loader(view, **{**common, **options}).load_state_dict(state)
    with pytest.raises(errors.ArgumentError, match="format"):
        rc.Loader(view, **common).load_state_dict({**state, "format": 99})


# -- feedback --------------------------------------------------------------------------------------------------------


@dataclass
class _Log:
    events: list[tuple[str, int]] = field(default_factory=list)


@dataclass(frozen=True)
class Fed:
    """A sampler with feedback that writes down when it draws, and draws as the updates so far tell it."""

    log: _Log = field(compare=False, hash=False)

    def bind(self, view: rc.View, seed: int, state: State | None = None) -> Cursor:
        return _FedCursor(view, seed, self.log, state)

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "fed"}


class _FedCursor:
    takes_feedback = is_stateful = True

    def __init__(self, view: rc.View, seed: int, log: _Log, state: Mapping[str, Any] | None) -> None:
        self._stream, self._log = Stream(seed, 77), log
        self._heard = int(state["heard"]) if state else 0
        self.grow(view)

    def draw(self, step: int, n: int, batches: int = 1) -> Draw:
        self._log.events.append(("draw", step))
        ranks = self._stream.integers(step + 1000 * self._heard, batches, n, self._count)
        return Draw(step, self._anchors.select(ranks), np.full((batches, n), 0.25), np.full((batches, n), 0.5))

    def update(self, slots: Any, signal: Any) -> Receipt:
        self._heard += 1
        return Receipt(int((slots >= 0).sum()), int((slots < 0).sum()), 0)

    def grow(self, view: rc.View) -> None:
        self._anchors, self._count = view.anchors, len(view)

    def state(self) -> State:
        return {"heard": self._heard}


@pytest.mark.parametrize("lag", [0, 1, 2, 5])
def test_batch_k_plus_lag_is_drawn_inside_the_next_that_returns_batch_k(lag: int) -> None:
    log = _Log()
    loader = rc.Loader(_view(), Fed(log), batch_size=4, seed=0, lag=lag, output="numpy")
    for k in range(8):
        log.events.append(("next", k))
        batch = next(loader)
        assert batch.step == k
        assert max(step for name, step in log.events if name == "draw") == k + lag
        log.events.append(("update", k))
        loader.update_priorities(batch.ids, np.ones(4))
    draws = [step for name, step in log.events if name == "draw"]
    assert draws == list(range(8 + lag))
    for k in range(lag + 1, 8):
        at = log.events.index(("draw", k))
        assert log.events.index(("update", k - lag - 1)) < at < log.events.index(("update", k - lag))


def test_nothing_is_drawn_past_the_last_step() -> None:
    log = _Log()
    loader = rc.Loader(_view(), Fed(log), batch_size=4, seed=0, lag=3, steps=5, output="numpy")
    assert len(list(loader)) == 5
    assert log.events == [("draw", k) for k in range(5)]


@pytest.mark.parametrize("lag", [0, 2])
def test_a_loader_with_feedback_resumes_bit_for_bit(lag: int) -> None:
    view = _view()

    def make() -> rc.Loader:
        return rc.Loader(view, Fed(_Log()), batch_size=4, seed=0, lag=lag, output="numpy")

    def run(loader: rc.Loader, count: int) -> list[Any]:
        out = []
        for _ in range(count):
            batch = next(loader)
            out.append(batch_bits(batch))
            loader.update_priorities(batch.ids, np.ones(4))
        return out

    whole = run(make(), 12)
    for position in range(12):
        loader = make()
        run(loader, position)
        fresh = make()
        state = json.loads(json.dumps(loader.state_dict()))
        fresh.load_state_dict(state)
        assert json.loads(json.dumps(fresh.state_dict())) == state
        assert run(fresh, 12 - position) == whole[position:]


def test_priorities_that_are_no_priorities_are_refused() -> None:
    view = _view()
    loader = rc.Loader(view, Fed(_Log()), batch_size=4, seed=0, output="numpy")
    ids = next(loader).ids
    for bad in (float("nan"), -1.0):
        with pytest.raises(errors.ArgumentError, match="priorities"):
            loader.update_priorities(ids, np.array([1.0, bad, 1.0, 1.0]))
    ids["seq"][0] = 10**6
    assert loader.update_priorities(ids, np.ones(4)) == Receipt(3, 1, 0)
    with pytest.raises(errors.ArgumentError, match="priorities"):
        rc.Loader(view, batch_size=4, seed=0).update_priorities(ids, np.ones(4))
    with pytest.raises(errors.ArgumentError, match="Uniform"):
        rc.Loader(view, Fed(_Log()), batch_size=4, seed=0, epochs=1)


# -- batches ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", ["numpy", "torch"])
def test_a_batch_stays_what_it_was_after_the_loader_moved_on(output: Any) -> None:
    view = _view()
    loader = rc.Loader(view, batch_size=4, seed=0, output=output, ahead=4)
    read = []
    kept = []
    for _ in range(9):
        batch = next(loader)
        kept.append(batch)
        read.append(batch_bits(next(iter([batch]))))
    take(loader, 20)
    loader.close()
    assert [batch_bits(b) for b in kept] == read
    with pytest.raises(errors.ArgumentError, match="closed"):
        next(loader)


@pytest.mark.parametrize("output", ["numpy", "torch"])
@pytest.mark.parametrize("lag", [0, 1, 2])
def test_a_batch_that_is_first_read_after_an_advance_is_whole(lag: int, output: Any, versions: list[rc.View]) -> None:
    """Arrays are made when they are asked for, and the chunk they come from is cut short by the advance."""

    def make() -> rc.Loader:
        return rc.Loader(versions[0], batch_size=4, seed=0, lag=lag, ahead=8, output=output)

    want = take(make(), 2)
    loader = make()
    kept = [next(loader), next(loader)]
    loader.advance(versions[1])
    assert [batch_bits(b) for b in kept] == want
    assert [len(b) for b in kept] == [4, 4]
    later = take(loader, 6)
    assert [batch_bits(b) for b in kept] == want
    assert len(later) == 6


# -- bad input -------------------------------------------------------------------------------------------------------

BAD: list[tuple[dict[str, Any], type[errors.RecollectError], str]] = [
    ({"batch_size": 0}, errors.ArgumentError, "batch_size"),
    ({"batch_size": -3}, errors.ArgumentError, "batch_size"),
    ({"batch_size": 2.5}, errors.ArgumentError, "batch_size"),
    ({"seed": -1}, errors.ArgumentError, "seed"),
    ({"seed": 1.5}, errors.ArgumentError, "seed"),
    ({"lag": -1}, errors.ArgumentError, "lag"),
    ({"steps": 0}, errors.ArgumentError, "steps"),
    ({"epochs": 0}, errors.ArgumentError, "epochs"),
    ({"ahead": 0}, errors.ArgumentError, "ahead"),
    ({"steps": 1.5}, errors.ArgumentError, "steps"),
    ({"steps": 1, "epochs": 1}, errors.ArgumentError, "exclude"),
    ({"output": "tf"}, errors.ArgumentError, "tf"),
    ({"output": "numpy", "device": "cuda"}, errors.ArgumentError, "CPU"),
    ({"device": "toaster"}, errors.ArgumentError, "device"),
    ({"fields": ["nothing"]}, errors.NotFound, "nothing"),
    ({"fields": ["uid.x"]}, errors.NotFound, "uid.x"),
    ({"fields": ["next_observation"]}, errors.NotFound, "next_observation"),
    ({"fields": "uid"}, errors.RecollectError, "fields"),
]


@pytest.mark.parametrize(("options", "kind", "text"), BAD, ids=lambda x: str(x) if isinstance(x, dict) else "")
def test_a_bad_option_is_refused_by_name(options: dict[str, Any], kind: type[errors.RecollectError], text: str) -> None:
    view = _view()
    with pytest.raises(kind, match=text):
        rc.Loader(view, **{"batch_size": 4, "seed": 0, **options})


def test_an_empty_view_says_why_nothing_can_be_drawn() -> None:
    ws = rc.create_workspace("w", PLAIN)
    for options in ({}, {"epochs": 1}):
        with pytest.raises(errors.ArgumentError, match="nothing can be drawn"):
            rc.Loader(ws.view(), batch_size=4, seed=0, **options)  # type: ignore[arg-type]


def test_repeated_bits_are_comparable() -> None:
    """The comparison that these tests stand on tells NaN payloads and dtypes apart."""
    nan = np.array([0x7FC00000, 0x7FC00001], np.uint32).view(np.float32)
    assert bits(nan[0]) != bits(nan[1]) and bits(np.float32(0)) != bits(np.float32(-0.0))
    assert bits(np.zeros(1, np.int32)) != bits(np.zeros(1, np.float32))
