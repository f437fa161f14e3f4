"""Ranks, gather threads and takes: the same rows however they are dealt out and gathered."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors
from recollect.view import make_ids
from tests.samplers.made import plain_view, write
from tests.support import SCHEMAS, batch_bits, order_of, random_trajectories, take, write_appends

SAMPLERS: dict[str, Any] = {
    "uniform": rc.Uniform(),
    "recent": rc.Recent(40),
    "reservoir": rc.Reservoir(20),
    "sequence": rc.Sequence(4, burn_in=2, stride=2),
    "prioritized": rc.Prioritized(alpha=0.9, normalize="buffer"),
    "sequence of prioritized": rc.Sequence(3, inner=rc.Prioritized()),
}


class Group:
    """Loaders of one run, rank by rank, and the exchange between them: each is told what all said."""

    def __init__(self, view: rc.View, sampler: Any, world_size: int, **options: Any) -> None:
        self._said: list[tuple[Any, Any]] = []
        self.loaders = [
            rc.Loader(view, sampler, rank=r, world_size=world_size, exchange=self._exchange, output="numpy", **options)
            for r in range(world_size)
        ]

    def _exchange(self, ids: Any, signals: Any) -> list[tuple[Any, Any]]:
        return self._said

    def turn(self) -> list[rc.Batch[Any]]:
        batches = [next(loader) for loader in self.loaders]
        if self.loaders[0]._drawing.known.takes_feedback:
            self._said = [(b.ids, _signal(b)) for b in batches]
            for loader, (ids, signals) in zip(self.loaders, self._said, strict=True):
                loader.update_priorities(ids, signals)
        return batches


def _signal(batch: Any) -> Any:
    value = np.abs(np.sin(batch["uid"] * 1.7)) * 3
    return value if batch.mask is None else np.where(batch.mask, value, 0.0)


def _whole(batches: list[rc.Batch[Any]]) -> list[Any]:
    """What the ranks hold together, in the order of one loader."""
    rows = sum(len(b) for b in batches)
    out = []
    for i in range(rows):
        batch, at = batches[i % len(batches)], i // len(batches)
        flat = {k: v for k, v in batch.items() if isinstance(v, np.ndarray)}
        out.append([batch.ids[at].tolist(), *(v[at].tobytes() for v in flat.values()), batch.weight[at].tobytes()])
    return out


@pytest.mark.parametrize("name", SAMPLERS)
def test_ranks_hold_together_what_one_loader_holds(name: str) -> None:
    view = plain_view(80)
    streams = []
    for world_size in (1, 2, 4):
        group = Group(view, SAMPLERS[name], world_size, batch_size=10, seed=3, lag=1)
        batches = [group.turn() for _ in range(12)]
        assert [len(b) for b in batches[0]] == [len(range(r, 10, world_size)) for r in range(world_size)]
        streams.append([_whole(b) for b in batches])
    assert streams[1] == streams[0] and streams[2] == streams[0]


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_run_goes_on_with_any_number_of_ranks(name: str) -> None:
    view = plain_view(80)
    options: dict[str, Any] = {"batch_size": 9, "seed": 3, "lag": 2}
    one = Group(view, SAMPLERS[name], 1, **options)
    want = [_whole(one.turn()) for _ in range(12)]
    group = Group(view, SAMPLERS[name], 2, **options)
    got = []
    for world_size in (2, 4, 1, 3):
        states = [json.dumps(loader.state_dict()) for loader in group.loaders]
        assert len(set(states)) == 1, "the state of every rank is the run's"
        group = Group(view, SAMPLERS[name], world_size, **options)
        for loader in group.loaders:
            loader.load_state_dict(json.loads(states[-1]))
        got += [_whole(group.turn()) for _ in range(3)]
    assert got == want


def test_epochs_of_ranks_visit_every_row_once_and_end_together() -> None:
    view = plain_view(53, lost=False)
    for world_size in (1, 2, 4):
        streams = [
            list(rc.Loader(view, batch_size=7, seed=0, epochs=2, rank=r, world_size=world_size, output="numpy"))
            for r in range(world_size)
        ]
        assert {len(s) for s in streams} == {2 * 8}
        uids = sorted(int(u) for s in streams for b in s for u in b["uid"])
        assert uids == sorted(2 * list(range(53)))
    assert [len(s[7]) for s in streams] == [1, 1, 1, 1] and 53 % 7 == 4


def test_a_short_batch_may_be_empty_for_a_rank() -> None:
    view = plain_view(9, lost=False)
    loader = rc.Loader(view, batch_size=4, seed=0, epochs=1, rank=3, world_size=4, output="numpy")
    sizes = [(len(b), b["observation"].shape, b.weight.shape, b.ids.shape) for b in loader]
    assert sizes[-1] == (0, (0, *sizes[0][1][1:]), (0,), (0,)) and [s[0] for s in sizes] == [1, 1, 0]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"rank": 2, "world_size": 2}, "rank"),
        ({"rank": -1}, "rank"),
        ({"world_size": 0}, "world_size"),
        ({"threads": -1}, "threads"),
        ({"sampler": rc.Prioritized(), "world_size": 2}, "exchange"),
    ],
)
def test_ranks_that_cannot_be_are_refused(options: dict[str, Any], text: str) -> None:
    with pytest.raises(errors.ArgumentError, match=text):
        rc.Loader(plain_view(10), **{"batch_size": 4, "seed": 0, **options})


def test_ranks_of_a_growing_source_are_refused() -> None:
    from tests.samplers.made import PLAIN

    with rc.create_workspace("w", PLAIN) as ws:
        write(ws, 20)
        with pytest.raises(errors.ArgumentError, match="time"):
            rc.Loader(ws.live(), batch_size=2, seed=0, world_size=2)


# -- threads ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def nested() -> Iterator[rc.View]:
    schema = SCHEMAS["nested-with-nulls"]()
    rng = np.random.default_rng(2)
    trajectories = random_trajectories(schema, rng, count=12)
    for trajectory in trajectories:
        for moment in trajectory.moments:
            moment.values["reward"] = np.float32(rng.standard_normal())  # sums of infinities warn
    with rc.create_workspace("w", schema) as ws:
        write_appends(ws.writer(), trajectories, order_of(trajectories, rng))
        yield ws.view()


@pytest.mark.parametrize("options", [{}, {"transforms": [rc.NStep(3, gamma=0.9)]}, {"epochs": 3}, {"fields": None}])
def test_any_number_of_threads_gathers_the_same_bytes(options: dict[str, Any], nested: rc.View) -> None:
    if "fields" in options:
        options = {"fields": list(nested.schema.by_path)}
    streams = []
    for threads in (0, 1, 2, 4):
        steps: dict[str, Any] = {} if "epochs" in options else {"steps": 40}
        with rc.Loader(
            nested, batch_size=5, seed=1, ahead=3, threads=threads, output="numpy", **steps, **options
        ) as loader:
            streams.append([batch_bits(b) for b in loader])
    assert len(streams[0]) > 10 and all(s == streams[0] for s in streams[1:])


@pytest.mark.parametrize("name", SAMPLERS)
def test_threads_gather_what_was_drawn_with_the_updates_of_then(name: str) -> None:
    view = plain_view(80)
    streams = []
    for threads in (0, 1, 2, 4):
        group = Group(view, SAMPLERS[name], 1, batch_size=8, seed=3, lag=2, threads=threads)
        streams.append([batch_bits(group.turn()[0]) for _ in range(15)])
        group.loaders[0].close()
    assert all(s == streams[0] for s in streams[1:])


@pytest.mark.parametrize("threads", [0, 1, 4])
def test_a_resumed_loader_with_threads_goes_on_at_any_position(threads: int) -> None:
    view = plain_view(50)

    def make() -> rc.Loader:
        return rc.Loader(view, batch_size=4, seed=5, ahead=3, threads=threads, steps=14, output="numpy")

    with make() as first:
        whole = take(first, 14)
    for position in range(14):
        with make() as loader, make() as resumed:
            assert take(loader, position) == whole[:position]
            resumed.load_state_dict(json.loads(json.dumps(loader.state_dict())))
            assert take(resumed, 14 - position) == whole[position:]


@pytest.mark.parametrize("threads", [0, 2])
@pytest.mark.parametrize("lag", [0, 3])
def test_threads_that_ran_ahead_of_an_advance_change_nothing(threads: int, lag: int, tmp_path: Path) -> None:
    """Batches that were gathered from the older version, and are due from the newer one, are made again; also after a
    resume between."""
    from tests.samplers.made import PLAIN

    views = []
    with rc.create_workspace("w", PLAIN) as ws:
        for k in range(2):
            write(ws, 30, first=30 * k)
            ws.snapshot(tmp_path / "buffer", tag=f"v{k}")
            views.append(rc.open_buffer(tmp_path / "buffer").at(f"v{k}"))

    def make(view: rc.View, threads: int, ahead: int) -> rc.Loader:
        return rc.Loader(view, batch_size=16, seed=5, lag=lag, ahead=ahead, threads=threads, output="numpy")

    with make(views[0], 0, 1) as plain:
        want = take(plain, 4)
        plain.advance(views[1])
        want += take(plain, 14)
    with make(views[0], threads, 3) as loader:
        assert take(loader, 4) == want[:4]
        loader.advance(views[1])
        for position in range(4, 12):
            with make(views[1], threads, 3) as resumed:
                resumed.load_state_dict(json.loads(json.dumps(loader.state_dict())))
                assert take(resumed, 18 - position) == want[position:], position
            assert batch_bits(next(loader)) == want[position]


# -- taking ----------------------------------------------------------------------------------------------------------


def test_takes_follow_one_another() -> None:
    view = plain_view(30)
    with rc.Loader(view, batch_size=4, seed=0, steps=7, output="numpy") as loader:
        assert [b.step for b in loader.take(3)] == [0, 1, 2]
        assert [b.step for b in loader.take(0)] == []
        for _ in loader.take(2):
            break
        assert [b.step for b in loader.take(9)] == [4, 5, 6]
        assert list(loader.take(1)) == []
        with pytest.raises(errors.ArgumentError, match="n is"):
            next(loader.take(-1))
    with pytest.raises(errors.ArgumentError, match="closed"):
        next(loader)


def test_next_fields_alone_are_read_of_the_next_step(nested: rc.View) -> None:
    def batch(**options: Any) -> rc.Batch[Any]:
        out: rc.Batch[Any] = next(rc.Loader(nested, batch_size=5, seed=0, output="numpy", **options))
        return out

    whole, some = batch(), batch(next_fields=["observation.pose"])
    assert list(some["next_observation"]) == ["pose"] and set(some["observation"]) == set(whole["observation"])
    assert np.array_equal(some["next_observation"]["pose"], whole["next_observation"]["pose"], equal_nan=True)
    none = batch(fields=["action"], next_fields=[])
    assert "next_observation" not in none and np.array_equal(none["action"], whole["action"])
    only_next = batch(fields=["action"], next_fields=["observation.camera"])
    assert "observation" not in only_next
    assert np.array_equal(only_next["next_observation"]["camera"], whole["next_observation"]["camera"])
    with pytest.raises(errors.ArgumentError, match="next_fields"):
        batch(next_fields=["action"])
    with pytest.raises(errors.ArgumentError, match="next_fields"):
        batch(next_fields="observation")
    with pytest.raises(errors.NotFound, match="nothing"):
        batch(next_fields=["nothing"])


def test_ids_may_be_two_columns_of_numbers() -> None:
    view = plain_view(40, lost=False)
    loader = rc.Loader(view, rc.Prioritized(), batch_size=8, seed=0, output="numpy")
    ids = next(loader).ids
    columns = np.stack([ids["writer"], ids["seq"]], axis=1)
    assert loader.update_priorities(columns, np.ones(8)).applied == 8
    assert np.array_equal(make_ids(columns[:, 0], columns[:, 1]), ids)
