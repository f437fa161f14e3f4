"""`count_bytes` counts as numpy does."""

from __future__ import annotations

import numpy as np
import pytest

from recollect.records.kernels import count_bytes


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5, 4097])
def test_it_counts_every_byte_once(count: int) -> None:
    values = np.random.default_rng(count).integers(0, 256, count, np.uint8)
    assert count_bytes(values).tolist() == np.bincount(values, minlength=256).tolist()
    same = np.full(count, 255, np.uint8)
    assert count_bytes(same)[255] == count and count_bytes(same).sum() == count
