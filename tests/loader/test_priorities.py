"""Prioritized loaders: what an update changes and when, resumes, later versions, growing sources."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors
from recollect.view import make_ids
from tests.samplers.made import PLAIN, plain_view, write
from tests.support import batch_bits

SAMPLERS: dict[str, Any] = {
    "proportional": rc.Prioritized(alpha=0.9, beta=rc.Linear(0.4, 1.0, steps=20)),
    "rank": rc.Prioritized(kind="rank", normalize="buffer"),
    "reservoir": rc.Reservoir(20),
    "strata": rc.Stratified(by="terminated", quotas={True: 1.0, False: 0.5}),
}


def _signal(batch: Any) -> Any:
    """What a learner might say of a batch: a function of it and of its number."""
    return np.abs(np.sin(batch["uid"] * 1.7 + batch.step)) * 3


def _turn(loader: rc.Loader) -> Any:
    batch = next(loader)
    if isinstance(loader.sampler, rc.Prioritized):
        assert loader.update_priorities(batch.ids, _signal(batch)).applied == len(batch)
    return batch_bits(batch)


@pytest.mark.parametrize("lag", [0, 2])
@pytest.mark.parametrize("name", SAMPLERS)
def test_a_resumed_loader_goes_on_bit_for_bit_at_every_batch(name: str, lag: int) -> None:
    view = plain_view(80)

    def make() -> rc.Loader:
        return rc.Loader(view, SAMPLERS[name], batch_size=16, seed=4, lag=lag, output="numpy")

    whole_loader = make()
    whole = [_turn(whole_loader) for _ in range(14)]
    loader = make()
    for position in range(10):
        resumed = make()
        resumed.load_state_dict(json.loads(json.dumps(loader.state_dict())))
        assert [_turn(resumed) for _ in range(4)] == whole[position : position + 4]
        assert _turn(loader) == whole[position]


def test_an_update_shows_in_the_first_batch_drawn_after_it() -> None:
    view = plain_view(40, lost=False)
    loader = rc.Loader(view, rc.Prioritized(alpha=1.0), batch_size=64, seed=0, lag=2, output="numpy")
    ids = view.rows.ids(np.array([7]))
    assert loader.update_priorities(ids, [1e9]) == (1, 0, 0)
    batch = next(loader)
    assert (batch["uid"] == 7).all(), "nothing was drawn before the first next()"
    loader.update_priorities(view.rows.ids(np.array([7, 8])), [0.0, 1e12])
    uids = [next(loader)["uid"] for _ in range(4)]
    assert all((u == 7).all() for u in uids[:2]) and all((u == 8).all() for u in uids[2:])


def test_an_update_of_rows_that_are_not_here_is_counted_and_changes_nothing() -> None:
    view = plain_view(40)
    loader = rc.Loader(view, rc.Prioritized(), batch_size=8, seed=0, output="numpy")
    state = loader.state_dict()
    assert loader.update_priorities(make_ids(np.array([5, 5]), np.array([0, 1])), np.ones(2)) == (0, 2, 0)
    assert loader.state_dict() == state
    with pytest.raises(errors.ArgumentError, match="takes no priorities"):
        rc.Loader(view, batch_size=8, seed=0).update_priorities(view.rows.ids(np.array([0])), [1.0])


def test_tensors_are_signals_and_a_state_is_plain(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    view = plain_view(40)
    loaders = [rc.Loader(view, rc.Prioritized(), batch_size=8, seed=0) for _ in range(2)]
    for step in range(5):
        batches = [next(loader) for loader in loaders]
        delta = torch.arange(8.0, requires_grad=True) + step
        loaders[0].update_priorities(batches[0].ids, delta)
        loaders[1].update_priorities(batches[1].ids, delta.detach().numpy())
        assert batch_bits(batches[0]) == batch_bits(batches[1])
    torch.save(loaders[0].state_dict(), tmp_path / "state.pt")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    assert state == loaders[1].state_dict()


def test_priorities_stay_with_their_rows_in_a_later_version(tmp_path: Path) -> None:
    with rc.create_workspace("w", PLAIN) as ws:
        views = []
        for k in range(2):
            write(ws, 30, first=30 * k, lost=False)
            ws.snapshot(tmp_path / "buffer", tag=f"v{k}")
            views.append(rc.open_buffer(tmp_path / "buffer").at(f"v{k}"))
    loader = rc.Loader(views[0], rc.Prioritized(alpha=1.0), batch_size=32, seed=0, lag=1, output="numpy")
    given = np.arange(1.0, 31.0)
    loader.update_priorities(views[0].rows.ids(np.arange(30)), given)
    next(loader)
    loader.advance(views[1])
    next(loader)
    total = given.sum() + 30 * 30 + 60e-6
    for _ in range(20):
        batch = next(loader)
        want = np.where(batch["uid"] < 30, given[np.minimum(batch["uid"], 29)], 30.0) + 1e-6
        if batch.step > 1:
            assert np.allclose(batch.probability, want / total, rtol=1e-6)
    assert loader.update_priorities(views[1].rows.ids(np.array([59])), [1.0]).applied == 1


@pytest.mark.parametrize("last", [None, 50])
@pytest.mark.parametrize("name", SAMPLERS)
def test_loaders_of_growing_sources_resume_bit_for_bit(name: str, last: int | None) -> None:
    with rc.create_workspace("w", PLAIN) as ws:
        write(ws, 30)

        def make() -> rc.Loader:
            return rc.Loader(ws.live(last=last), SAMPLERS[name], batch_size=8, seed=4, lag=1, output="numpy")

        loader = make()
        for turn in range(8):
            write(ws, 5 * (turn % 3), first=30 + 12 * turn)
            _turn_of_those_here(loader)
            resumed = make()
            resumed.load_state_dict(json.loads(json.dumps(loader.state_dict())))
            again = make()
            again.load_state_dict(json.loads(json.dumps(loader.state_dict())))
            assert [_turn_of_those_here(resumed) for _ in range(4)] == [_turn_of_those_here(again) for _ in range(4)]


def _turn_of_those_here(loader: rc.Loader) -> Any:
    """Rows of a batch may have left the window by the time they are trained on."""
    batch = next(loader)
    receipt = None
    if isinstance(loader.sampler, rc.Prioritized):
        receipt = loader.update_priorities(batch.ids, _signal(batch))
        assert receipt.applied + receipt.unknown == len(batch)
    return batch_bits(batch), receipt


@pytest.mark.parametrize("lag", [0, 1, 3])
@pytest.mark.parametrize("name", SAMPLERS)
def test_loaders_resume_around_an_advance_bit_for_bit(name: str, lag: int, tmp_path: Path) -> None:
    with rc.create_workspace("w", PLAIN) as ws:
        views = []
        for k in range(2):
            write(ws, 30, first=30 * k)
            ws.snapshot(tmp_path / "buffer", tag=f"v{k}")
            views.append(rc.open_buffer(tmp_path / "buffer").at(f"v{k}"))

    def make(view: rc.View) -> rc.Loader:
        return rc.Loader(view, SAMPLERS[name], batch_size=8, seed=4, lag=lag, output="numpy")

    def turns(loader: rc.Loader, count: int) -> list[Any]:
        return [_turn(loader) for _ in range(count)]

    whole = make(views[0])
    want = turns(whole, 2)
    whole.advance(views[1])
    want += turns(whole, 8)
    loader = make(views[0])
    assert turns(loader, 2) == want[:2]
    loader.advance(views[1])
    for position in range(2, 8):
        resumed = make(views[1])
        resumed.load_state_dict(json.loads(json.dumps(loader.state_dict())))
        assert turns(resumed, 2) == want[position : position + 2], position
        assert _turn(loader) == want[position]
