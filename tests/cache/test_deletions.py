"""Rows that a version deleted are left out of its views, and nothing is decoded for it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import lance
import numpy as np
import pytest

import recollect as rc
from recollect import errors
from recollect.cache.spans import place_rows
from tests.cache.buffers import make_buffer
from tests.support import rows_of


def _uids(view: rc.View) -> list[int]:
    uids: list[int] = view.rows.gather(np.arange(len(view.rows)), ("uid",))["uid"].tolist()
    return uids


@pytest.mark.parametrize(
    "gone",
    [
        lambda uid: uid % 3 == 1,
        lambda uid: 5 <= uid < 33,
        lambda uid: uid < 21,
        lambda uid: uid in (0, 19, 20, 59),
        lambda uid: uid != 41,
    ],
    ids=["scattered", "across files", "a whole file and more", "edges", "all but one"],
)
def test_deleted_rows_are_left_out(gone: Callable[[int], bool], tmp_path: Path) -> None:
    buffer = make_buffer(tmp_path, files=3)
    handle = rc.open_buffer(buffer)
    before = handle.at()
    whole = rows_of(before)
    steps = lance.dataset(str(buffer / "steps.lance"))
    steps.delete(f"uid IN ({', '.join(str(u) for u in range(60) if gone(u))})")
    again = rc.open_buffer(buffer)
    view = again.at()
    left = [u for u in range(60) if not gone(u)]
    assert _uids(view) == left and again.decoded_rows == 0
    assert rows_of(view) == {u: row for u, row in whole.items() if u in left}
    assert view.cut.rows == len(left)
    assert view.rows.find(before.rows.ids(np.array(left))).tolist() == list(range(len(left)))
    assert rows_of(handle.at("t2")) == whole, "the tagged version holds them still"


def test_rows_deleted_before_they_were_ever_decoded_are_part_of_the_block(tmp_path: Path) -> None:
    """So that the next deletion decodes nothing either."""
    buffer = make_buffer(tmp_path)
    lance.dataset(str(buffer / "steps.lance")).delete("uid < 7")
    handle = rc.open_buffer(buffer)
    assert _uids(handle.at()) == list(range(7, 20)) and handle.decoded_rows == 20
    lance.dataset(str(buffer / "steps.lance")).delete("uid = 9")
    again = rc.open_buffer(buffer)
    assert _uids(again.at()) == [7, 8, *range(10, 20)] and again.decoded_rows == 0
    assert _uids(again.at("t0")) == list(range(20)) and again.decoded_rows == 0


def test_what_is_left_must_be_a_part_of_the_cut_in_its_order(tmp_path: Path) -> None:
    view = rc.open_buffer(make_buffer(tmp_path)).at()
    ((block, _, _),) = view.rows.pieces(0, 20)  # type: ignore[attr-defined]
    (extent,) = view.cut.extents
    here = [(block, 0, 2), (block, 5, 8)]
    left = place_rows(here, view.cut, "b", deleted=True)
    assert [(e.start, e.stop) for e in left.extents] == [(0, 2), (5, 8)]
    assert place_rows(here, left, "b", deleted=True) == left == place_rows(here, left, "b", deleted=False)
    with pytest.raises(errors.CorruptionError, match="holds 5 rows, its cut names 20"):
        place_rows(here, view.cut, "b", deleted=False)
    for pieces in (here[::-1], [(block, 0, 6), (block, 5, 8)]):
        with pytest.raises(errors.CorruptionError, match="are not where its cut is"):
            place_rows(pieces, view.cut, "b", deleted=True)
    late = view.cut._replace(extents=(extent._replace(start=1, stop=6),))
    with pytest.raises(errors.CorruptionError, match="does not place there"):
        place_rows(here, late, "b", deleted=True)
