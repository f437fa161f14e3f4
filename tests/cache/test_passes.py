"""Epochs over blocks that take turns: every row once, as if all were resident; the very next batch after a resume."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import recollect as rc
from recollect import errors
from tests.cache.buffers import make_buffer
from tests.cache.test_rotation import _loader, _rotating, _rows, _write
from tests.support import batch_bits


@pytest.mark.parametrize("blocks", [1, 2, 3, 6])
@pytest.mark.parametrize("lag", [0, 2])
def test_every_row_is_visited_once_an_epoch(blocks: int, lag: int, tmp_path: Path) -> None:
    buffer = _write(tmp_path, "vector", files=6)
    steps = [rc.NStep(3, gamma=0.5)]
    want = _rows(_loader(rc.open_buffer(buffer).at(), epochs=1, transforms=steps), ())
    with _loader(_rotating(buffer, blocks), epochs=3, lag=lag, transforms=steps) as loader:
        batches = list(loader)
        with pytest.raises(StopIteration):
            next(loader)
        assert loader.stats()["epoch"] == 2
    assert [b.step for b in batches] == list(range(len(batches)))
    uids = [[int(u) for u in b["uid"]] for b in batches]
    flat = [u for batch in uids for u in batch]
    size = len(want)
    assert len(flat) == 3 * size
    epochs = [flat[k * size : (k + 1) * size] for k in range(3)]
    assert all(sorted(e) == sorted(want) for e in epochs) and epochs[0] != epochs[1] != epochs[2]
    assert _rows(batches, ()) == want


@pytest.mark.parametrize("lag", [0, 3])
@pytest.mark.parametrize("blocks", [1, 4, 9])
def test_epochs_of_a_rotation_resume_at_every_batch(lag: int, blocks: int, tmp_path: Path) -> None:
    buffer = make_buffer(tmp_path, files=5)

    def make() -> rc.Loader:
        return _loader(_rotating(buffer, blocks), epochs=2, lag=lag)

    with make() as loader:
        want = [batch_bits(b) for b in loader]
    with make() as loader:
        for position in range(len(want) + 1):
            with make() as resumed:
                resumed.load_state_dict(json.loads(json.dumps(loader.state_dict())))
                assert [batch_bits(b) for b in resumed] == want[position:], position
            if position < len(want):
                assert batch_bits(next(loader)) == want[position]


def test_epochs_of_a_rotation_with_other_room_do_not_resume(tmp_path: Path) -> None:
    buffer = make_buffer(tmp_path, files=5)
    with _loader(_rotating(buffer, 2), epochs=1) as loader, _loader(_rotating(buffer, 3), epochs=1) as other:
        next(loader)
        state = loader.state_dict()
        with _loader(_rotating(buffer, 9), epochs=1) as larger, pytest.raises(errors.ArgumentError, match="resident"):
            larger.load_state_dict(state)
        with pytest.raises(errors.ArgumentError, match="Uniform"):
            rc.Loader(_rotating(buffer, 2), rc.Recent(5), batch_size=4, seed=0, epochs=1)
        other.close()
