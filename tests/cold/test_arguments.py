"""Arguments of a buffer and of a loader on it that cannot work are refused, and named."""

from __future__ import annotations

from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors
from tests.cache.buffers import make_buffer


@pytest.mark.parametrize(
    "call",
    [
        lambda buffer: buffer.at(True),
        lambda buffer: buffer.at(2.0),
        lambda buffer: buffer.at(date(2026, 1, 1)),
        lambda buffer: buffer.pin(None, hold=5),
        lambda buffer: buffer.cleanup(7),
    ],
)
def test_a_version_or_an_age_of_another_kind_is_refused(call: Callable[[Any], Any], tmp_path: Path) -> None:
    with pytest.raises(errors.ArgumentError, match=r"datetime|timedelta"):
        call(rc.open_buffer(make_buffer(tmp_path, files=1)))


def test_a_loader_names_what_it_cannot_use(tmp_path: Path) -> None:
    view = rc.open_buffer(make_buffer(tmp_path, files=1)).at()
    loader = rc.Loader(view, rc.Prioritized(), batch_size=4, seed=0, output="numpy")
    next(loader)
    with pytest.raises(errors.ArgumentError, match="StepIds"):
        loader.update_priorities(np.arange(3), np.ones(3))  # type: ignore[arg-type]
    with pytest.raises(errors.ArgumentError, match="takes a view"):
        loader.advance(None)  # type: ignore[arg-type]
