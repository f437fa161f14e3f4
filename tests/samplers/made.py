"""Views to draw from, and the test of draws against the chances that a sampler states."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

import recollect as rc

PLAIN = rc.Schema(
    {
        "observation": rc.Tensor("float32"),
        "uid": rc.Tensor("int64"),
        "kind": rc.Tensor("int64", optional=True),
        "prio": rc.Tensor("float32", role="priority", optional=True),
    },
    episode={"task": rc.Text()},
)


def write(ws: rc.Workspace, rows: int, *, first: int = 0, lost: bool = True, **columns: Any) -> None:
    """Steps in episodes of one; every seventh is truncated and not drawable when `lost`."""
    keys = np.arange(first, first + rows)
    gone = (keys % 7 == 3) & lost
    with ws.writer(durability="process") as writer:
        writer.extend(
            {
                "episode": keys,
                "step": np.zeros_like(keys),
                "observation": keys.astype(float),
                "uid": keys,
                "terminated": ~gone,
                "truncated": gone,
                **columns,
            }
        )


def plain_view(rows: int, *, lost: bool = True, **columns: Any) -> rc.View:
    ws = rc.create_workspace(f"w{rows}", PLAIN)
    write(ws, rows, lost=lost, **columns)
    return ws.view()


def chi_square(counts: NDArray[np.int64], chances: NDArray[np.float64]) -> float:
    """Standardised: about normal with mean 0 and deviation 1 when the chances are true. 4 and more is a rejection."""
    want = chances * counts.sum()
    assert want.min() > 5, "too few draws for the test"
    freedom = len(counts) - 1
    statistic = float(((counts - want) ** 2 / want).sum())
    return float((statistic - freedom) / np.sqrt(2 * freedom))


def drawn(cursor: Any, view: rc.View, *, batches: int, size: int, first: int = 0) -> tuple[Any, Any]:
    """How often each slot came, and the chance that was stated for it (NaN where it never came)."""
    counts = np.zeros(len(view.rows), np.int64)
    stated = np.full(len(view.rows), np.nan)
    for k in range(batches):
        draw = cursor.draw(first + k, size)
        keys = draw.keys[0]
        assert keys.shape == (size,) and view.anchors.mask(keys).all()
        np.add.at(counts, keys, 1)
        stated[keys] = np.broadcast_to(draw.probability, draw.keys.shape)[0]
    return counts, stated


def assert_true_to(counts: Any, chances: Any) -> None:
    """The draws agree with the chances, and the same test rejects chances that are a tenth off for a third of the
    rows."""
    there = np.flatnonzero(chances)
    assert not counts[chances == 0].any()
    assert abs(chi_square(counts[there], chances[there])) < 4
    biased = chances[there].copy()
    biased[::3] *= 1.1
    biased /= biased.sum()
    rng = np.random.default_rng(0)
    assert chi_square(rng.multinomial(counts.sum(), biased), chances[there]) > 4
