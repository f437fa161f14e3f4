"""The short form of the example: ten bits, where exploring at random all but never meets a goal."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

from tests.support import ROOT


@pytest.fixture
def example() -> Any:
    torch = pytest.importorskip("torch")
    spec = importlib.util.spec_from_file_location("bit_flipping", ROOT / "examples" / "bit_flipping.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield module
    torch.set_num_threads(threads)


def test_hindsight_learns_what_exploration_does_not_find(example: Any) -> None:
    assert max(example.train(10, 60, hindsight=True, enough=0.9)) >= 0.9
    assert max(example.train(10, 20, hindsight=False)) <= 0.2
