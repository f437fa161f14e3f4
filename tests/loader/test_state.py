"""States with their priorities in a file, and batches that are due after whatever interrupted a `next`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors
from tests.samplers.made import PLAIN, plain_view, write
from tests.support import batch_bits, take


def _turn(loader: rc.Loader) -> Any:
    batch = next(loader)
    loader.update_priorities(batch.ids, np.abs(np.sin(batch["uid"] * 1.7 + batch.step)) * 3)
    return batch_bits(batch)


def _make(view: rc.View) -> rc.Loader:
    return rc.Loader(view, rc.Prioritized(alpha=0.9), batch_size=16, seed=4, output="numpy")


def test_priorities_in_a_file_are_those_inline(tmp_path: Path) -> None:
    view = plain_view(2000)
    loader = _make(view)
    for _ in range(3):
        _turn(loader)
    loader.update_priorities(view.rows.ids(np.arange(2000)), np.random.default_rng(0).random(2000))
    inline, small = loader.state_dict(), loader.state_dict(priorities=tmp_path / "priorities")
    (file,) = (tmp_path / "priorities").iterdir()
    assert small["cursor"] == {"file": str(file), "bytes": file.stat().st_size}
    assert json.loads(file.read_text()) == inline["cursor"]
    assert len(json.dumps(small)) < len(json.dumps(inline)) / 2
    assert {**small, "cursor": inline["cursor"]} == inline
    want = [_turn(loader) for _ in range(4)]
    for state in (inline, small):
        resumed = _make(view)
        resumed.load_state_dict(json.loads(json.dumps(state)))
        assert [_turn(resumed) for _ in range(4)] == want


def test_a_later_checkpoint_leaves_the_files_of_earlier_ones(tmp_path: Path) -> None:
    view = plain_view(60)
    loader, states, want = _make(view), [], []
    for _ in range(5):
        states.append(loader.state_dict(priorities=tmp_path))
        want.append(_turn(loader))
    assert loader.state_dict(priorities=tmp_path) == loader.state_dict(priorities=str(tmp_path))
    for k, state in enumerate(states):
        resumed = _make(view)
        resumed.load_state_dict(state)
        assert [_turn(resumed) for _ in range(5 - k)] == want[k:]
    assert not list(tmp_path.glob("*.part"))


def test_a_file_that_was_moved_is_found_and_a_lost_or_damaged_one_is_named(tmp_path: Path) -> None:
    view = plain_view(60)
    loader = _make(view)
    _turn(loader)
    state = loader.state_dict(priorities=tmp_path / "a")
    want = _turn(loader)
    (tmp_path / "a").rename(tmp_path / "b")
    resumed = _make(view)
    with pytest.raises(errors.NotFound, match="moved"):
        resumed.load_state_dict(state)
    resumed.load_state_dict(state, priorities=tmp_path / "b")
    assert _turn(resumed) == want
    (file,) = (tmp_path / "b").iterdir()
    file.write_bytes(file.read_bytes().replace(b"1", b"2", 1))
    with pytest.raises(errors.CorruptionError, match="damaged"):
        _make(view).load_state_dict(state, priorities=tmp_path / "b")
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(errors.StoreError, match="written"):
        loader.state_dict(priorities=blocked / "folder")


# -- interruptions ---------------------------------------------------------------------------------------------------


class Interrupting:
    """Raises Ctrl-C at the n-th line that runs inside the loader's own modules."""

    def __init__(self, line: int) -> None:
        self.line, self.seen = line, 0

    def __enter__(self) -> Interrupting:
        self._before = sys.gettrace()
        sys.settrace(self._call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def _call(self, frame: FrameType, event: str, arg: object) -> Any:
        name = frame.f_code.co_filename
        return self._line if "/recollect/loader/" in name else None

    def _line(self, frame: FrameType, event: str, arg: object) -> Any:
        if event == "line":
            self.seen += 1
            if self.seen == self.line:
                raise KeyboardInterrupt
        return self._line


def _interrupted_everywhere(make: Any, turns: int) -> None:
    """Interrupts the second `next` at each of its lines in turn: what is delivered in all is what was due."""
    with make() as whole:
        want = take(whole, turns)
    line = 0
    while True:
        line += 1
        with make() as loader:
            got = [batch_bits(next(loader))]
            try:
                with Interrupting(line):
                    batch = next(loader)
            except KeyboardInterrupt:
                state = json.loads(json.dumps(loader.state_dict()))
                with make() as resumed:
                    resumed.load_state_dict(state)
                    assert take(resumed, turns - 1) == want[1:], line
                assert got + take(loader, turns - 1) == want, line
            else:
                assert [*got, batch_bits(batch), *take(loader, turns - 2)] == want
                break
    assert line > 12, "nothing was interrupted"


@pytest.mark.parametrize("threads", [0, 1])
@pytest.mark.parametrize("sampler", [rc.Uniform(), rc.Prioritized(), rc.Sequence(3)], ids=["uniform", "per", "seq"])
def test_ctrl_c_anywhere_in_next_delivers_nothing_twice_and_skips_nothing(sampler: Any, threads: int) -> None:
    view = plain_view(40)

    def make() -> rc.Loader:
        return rc.Loader(view, sampler, batch_size=4, seed=1, ahead=1, threads=threads, output="numpy")

    _interrupted_everywhere(make, 5)


def test_ctrl_c_under_a_growing_source_skips_nothing() -> None:
    with rc.create_workspace("w", PLAIN) as ws:
        write(ws, 30)
        _interrupted_everywhere(
            lambda: rc.Loader(ws.live(), rc.Prioritized(), batch_size=4, seed=1, lag=1, output="numpy"), 5
        )


@pytest.mark.parametrize("threads", [0, 2])
def test_a_gather_that_fails_is_made_again(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    from recollect.loader.gather import Gatherer

    view = plain_view(40)

    def make() -> rc.Loader:
        return rc.Loader(view, batch_size=4, seed=1, ahead=2, threads=threads, output="numpy")

    with make() as whole:
        want = take(whole, 12)
    gather, calls = Gatherer.__call__, [0]

    def failing(self: Gatherer, *args: Any) -> Any:
        calls[0] += 1
        if calls[0] % 3 == 2:
            raise MemoryError("no room")
        return gather(self, *args)

    monkeypatch.setattr(Gatherer, "__call__", failing)
    got: list[Any] = []
    failures = 0
    with make() as loader:
        while len(got) < 12:
            try:
                got.append(batch_bits(next(loader)))
            except MemoryError:
                failures += 1
    assert got == want and failures >= 2
