"""The budget is kept: what was used least recently goes, what is in use stays, and is counted."""

from __future__ import annotations

import gc
import time
from pathlib import Path

import pytest

import recollect as rc
from recollect import errors
from recollect.cache.blocks import BlockCache
from tests.cache.buffers import append_rows, blocks, blocks_folder, make_buffer, strays
from tests.support import rows_of


def _bytes() -> int:
    return sum(h.bytes for h in BlockCache().room.held())


@pytest.fixture
def three(tmp_path: Path) -> list[Path]:
    """Three buffers of one block each, equal in size."""
    return [make_buffer(tmp_path / str(k), rows=200, name=f"w{k}") for k in range(3)]


def _budget(monkeypatch: pytest.MonkeyPatch, buffer: Path, blocks: float) -> None:
    """Room for so many blocks like those of `buffer`, which is then not in the cache."""
    view = rc.open_buffer(buffer).at()
    (span,) = [h for h in BlockCache().room.show() if h.in_use]
    del view
    gc.collect()
    BlockCache().room.clear()
    # A block is reserved by the estimate of its size, which is larger than what it takes.
    monkeypatch.setenv("RECOLLECT_CACHE_BYTES", str(int(blocks * span.bytes) + 60_000))


def test_the_block_used_longest_ago_goes_first(three: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    _budget(monkeypatch, three[0], 2)
    for buffer in (three[0], three[1], three[0]):
        rc.open_buffer(buffer).at()
        gc.collect()
        time.sleep(0.02)  # file systems count in ticks
    rc.open_buffer(three[2]).at()
    gc.collect()
    left = {Path(b.buffer).parent.name for b in BlockCache().room.show()}
    assert left == {"0", "2"} and not strays()
    again = rc.open_buffer(three[0])
    again.at()
    assert again.decoded_files == 0


def test_blocks_in_use_stay_and_are_counted(three: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    _budget(monkeypatch, three[0], 2)
    views = [rc.open_buffer(b).at() for b in three[:2]]
    want = [rows_of(v, batch_size=50) for v in views]
    with pytest.raises(errors.DiskFull, match=r"are in use.*RECOLLECT_CACHE_BYTES"):
        rc.open_buffer(three[2]).at()
    assert [rows_of(v, batch_size=50) for v in views] == want and not strays()
    del views
    gc.collect()
    assert len(rc.open_buffer(three[2]).at().rows) == 200
    assert len(blocks()) == 2


def test_a_buffer_larger_than_the_budget_is_refused_before_it_is_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = make_buffer(tmp_path, files=3, rows=200)
    monkeypatch.setenv("RECOLLECT_CACHE_BYTES", "150KB")
    handle = rc.open_buffer(buffer)
    with pytest.raises(errors.DiskFull, match=r"RECOLLECT_CACHE_BYTES, or draw from rotate\(\)"):
        handle.at()
    assert handle.decoded_files == 0 and not blocks_folder().exists()
    assert len(handle.at("t0").rows) == 200


def test_a_budget_smaller_than_one_block_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = make_buffer(tmp_path)
    monkeypatch.setenv("RECOLLECT_CACHE_BYTES", "100")
    with pytest.raises(errors.DiskFull, match="may take 100"):
        rc.open_buffer(buffer).at()


def test_a_block_that_turns_out_larger_than_expected_makes_others_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("recollect.cache.spans.HEAP_BYTES", 0)
    small = make_buffer(tmp_path / "small", rows=10, name="small")
    with rc.create_workspace("long", rc.Schema({"note": rc.Text()})) as ws:
        with ws.writer() as writer, writer.episode() as episode:
            for _ in range(10):
                episode.append(note="x" * 10_000)
        ws.snapshot(tmp_path / "long")
    monkeypatch.setenv("RECOLLECT_CACHE_BYTES", "120KB")
    rc.open_buffer(small).at()
    gc.collect()
    assert len(blocks()) == 1
    view = rc.open_buffer(tmp_path / "long").at()
    assert len(view.rows) == 10 and _bytes() <= 120_000
    assert [b.buffer for b in BlockCache().room.show()] == [str(tmp_path / "long")]


def test_clearing_leaves_open_views_and_counts_what_they_hold(tmp_path: Path) -> None:
    buffer = make_buffer(tmp_path, files=2, rows=200)
    view = rc.open_buffer(buffer).at()
    want, before = rows_of(view, batch_size=50), _bytes()
    gone = BlockCache().room.clear()
    assert (gone.blocks, gone.held_bytes) == (2, gone.bytes) and not blocks()
    assert rows_of(view, batch_size=50) == want
    assert 0.5 * before < _bytes() <= before, "until the view goes, the space is taken"
    again = rc.open_buffer(buffer)
    assert rows_of(again.at(), batch_size=50) == want and again.decoded_files == 2
    del view
    gc.collect()
    assert BlockCache().room.clear().held_bytes == 0
    assert _bytes() == 0 and not blocks() and not strays()


def test_clearing_one_buffers_blocks_leaves_the_others(three: list[Path]) -> None:
    for buffer in three:
        rc.open_buffer(buffer).at()
    gone = BlockCache().room.clear(lambda block: block.buffer == str(three[1]))
    assert gone.blocks == 1
    assert {b.buffer for b in BlockCache().room.show()} == {str(three[0]), str(three[2])}


def test_an_empty_cache_can_be_shown_and_cleared(tmp_path: Path) -> None:
    room = BlockCache(tmp_path / "none").room
    assert room.show() == [] and room.clear().blocks == 0 and room.budget() > 0
    assert not (tmp_path / "none").exists()


def test_uses_are_counted(tmp_path: Path) -> None:
    buffer = make_buffer(tmp_path)
    rc.open_buffer(buffer).at()
    (block,) = BlockCache().room.show()
    assert (block.hits, block.rows, block.buffer) == (0, 20, str(buffer))
    for _ in range(3):
        rc.open_buffer(buffer).at()
    (block,) = BlockCache().room.show()
    assert block.hits == 3


def test_a_new_version_that_does_not_fit_beside_an_open_one_keeps_its_shared_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The learner that opens version after version needs room for the new rows only."""
    buffer = make_buffer(tmp_path, rows=400)
    view = rc.open_buffer(buffer).at()
    with rc.open_workspace("w") as ws:
        append_rows(ws, 400, 20)
        ws.snapshot(buffer)
    monkeypatch.setenv("RECOLLECT_CACHE_BYTES", str(_bytes() + 200_000))
    later = rc.open_buffer(buffer)
    assert len(later.at().rows) == 420 and later.decoded_rows == 20
    assert len(view.rows) == 400


def test_an_unwritable_use_counter_does_not_keep_a_block_from_being_read(tmp_path: Path) -> None:
    buffer = make_buffer(tmp_path)
    rc.open_buffer(buffer).at()
    (block,) = blocks()
    (block / "used").unlink()
    (block / "used").mkdir()
    again = rc.open_buffer(buffer)
    assert len(again.at().rows) == 20 and again.decoded_files == 0
