"""Windows, lengths of runs and cut stacks: the ways of views that stand still, that grow, and of any other agree."""

from __future__ import annotations

from copy import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from recollect.records.along import around, window, without_beheaded
from tests.transforms.worlds import PLACES, world


class _Plain:
    """Episodes that can do no more than the protocol asks."""

    def __init__(self, inner: Any) -> None:
        self.offset, self.next_observation = inner.offset, inner.next_observation


@pytest.mark.parametrize("place", [p for p in PLACES if p != "rotating"])
def test_every_way_says_the_same(place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with world(place, 12, tmp_path, monkeypatch) as there:
        view = there.view
        first = int(getattr(view.rows, "first", 0))
        slots = np.concatenate([np.arange(first, first + len(view.rows)), [-1]])
        plain: Any = _Plain(view.episodes)
        for before, after in ((0, 0), (2, 0), (0, 3), (5, 20)):
            want = np.stack([view.episodes.offset(slots, k) for k in range(-before, after + 1)], axis=1)
            assert np.array_equal(window(view.episodes, slots, before, after), want)
            assert np.array_equal(window(plain, slots, before, after), want)
        for mine, other in zip(around(view.episodes, slots), around(plain, slots), strict=True):
            assert np.array_equal(mine, other)
        behind, ahead = around(view.episodes, slots)
        assert (view.episodes.offset(slots, ahead)[:-1] >= 0).sum() == (view.episodes.offset(slots, 0)[:-1] >= 0).sum()
        assert (view.episodes.offset(slots, ahead + 1) < 0).all()
        assert (view.episodes.offset(slots, -behind - 1) < 0).all()
        slow = copy(view)
        slow.__dict__["episodes"] = plain
        slow.__dict__["anchors"] = there.view.where("uid >= 0").anchors
        for depth in (1, 2, 4, 30):
            left, same = without_beheaded(view, depth).anchors, without_beheaded(slow, depth).anchors
            drawn = left.select(np.arange(len(left)))
            assert np.array_equal(drawn, same.select(np.arange(len(same))))
            assert left.undrawable_beheaded - view.anchors.undrawable_beheaded == len(view) - len(drawn)
            uids = view.rows.gather(drawn, ("uid",))["uid"].tolist()
            want_uids = {u for u in there.present if there.is_drawable(u)}
            assert set(uids) == {u for u in want_uids if there.stacked("action", u, depth, "zero") is not None}
