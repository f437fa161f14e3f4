"""Cached blocks are whole or absent, decoded once, and named by what is immutable."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pytest

import recollect as rc
from recollect import errors
from recollect.cache.blockfile import map_block
from recollect.records.layout import Layout
from tests.cache.buffers import SCHEMA, append_rows, blocks, make_buffer, strays
from tests.support import rows_of


def test_blocks_lie_under_the_cache_folder(tmp_path: Path) -> None:
    rc.open_buffer(make_buffer(tmp_path)).at("t0")
    assert len(blocks()) == 1 and not strays()


def test_hot_and_cached_rows_are_equal(tmp_path: Path) -> None:
    buffer = make_buffer(tmp_path, files=3)
    with rc.open_workspace("w") as ws:
        assert rows_of(rc.open_buffer(buffer).at()) == rows_of(ws.view())


def test_a_block_is_decoded_once_for_all_versions_and_handles(tmp_path: Path) -> None:
    buffer = make_buffer(tmp_path, files=3)
    one = rc.open_buffer(buffer)
    for tag in ("t0", "t2", "t1"):
        one.at(tag)
    assert (one.decoded_files, one.decoded_rows) == (3, 60)
    other = rc.open_buffer(buffer)
    assert len(other.at().rows) == 60 and (other.decoded_files, other.decoded_rows) == (0, 0)


def test_a_snapshot_that_adds_a_little_decodes_a_little(tmp_path: Path) -> None:
    buffer = make_buffer(tmp_path, rows=2000)
    rc.open_buffer(buffer).at()
    with rc.open_workspace("w") as ws:
        append_rows(ws, 2000, 20)
        ws.snapshot(buffer)
    again = rc.open_buffer(buffer)
    assert len(again.at().rows) == 2020 and again.decoded_rows == 20


def test_large_blocks_are_decoded_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planes and values of later batches follow those of the earlier ones."""
    monkeypatch.setattr("recollect.cold.fragments.READ_BYTES", 1)
    buffer = make_buffer(tmp_path, rows=300)
    with rc.open_workspace("w") as ws:
        assert rows_of(rc.open_buffer(buffer).at()) == rows_of(ws.view())


def test_large_files_are_several_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recollect.cache.spans.BLOCK_BYTES", 1)
    buffer = make_buffer(tmp_path, rows=2500)
    view = rc.open_buffer(buffer).at()
    assert len(blocks()) == 3
    with rc.open_workspace("w") as ws:
        assert rows_of(view, batch_size=500) == rows_of(ws.view(), batch_size=500)


def test_columns_that_others_added_cost_nothing(tmp_path: Path) -> None:
    buffer = make_buffer(tmp_path)
    want = rows_of(rc.open_buffer(buffer).at("t0"))
    steps = lance.dataset(str(buffer / "steps.lance"))
    steps.add_columns({"theirs": "uid * 2"})
    again = rc.open_buffer(buffer)
    assert rows_of(again.at()) == want and again.decoded_files == 0


def test_a_deleted_cache_is_decoded_again(tmp_path: Path) -> None:
    buffer = make_buffer(tmp_path)
    view = rc.open_buffer(buffer).at("t0")
    want = rows_of(view)
    for path in sorted((tmp_path / "cache").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    again = rc.open_buffer(buffer)
    assert rows_of(again.at("t0")) == want and again.decoded_files == 1
    assert rows_of(view) == want, "a view that is open keeps its maps"


@pytest.mark.parametrize("name", ["data", "state.json"])
def test_a_cut_block_is_decoded_again(name: str, tmp_path: Path) -> None:
    buffer = make_buffer(tmp_path)
    want = rows_of(rc.open_buffer(buffer).at("t0"))
    (block,) = blocks()
    with open(block / name, "r+b") as f:
        f.truncate(1)
    with pytest.raises(errors.CorruptionError, match="damaged"):
        map_block(block, Layout.of(SCHEMA))
    again = rc.open_buffer(buffer)
    assert rows_of(again.at("t0")) == want and again.decoded_files == 1
    assert blocks() == [block] and not strays()


@pytest.mark.parametrize("name", ["data", "state.json", "lock"])
def test_a_block_that_lacks_a_file_is_decoded_again(name: str, tmp_path: Path) -> None:
    buffer = make_buffer(tmp_path)
    want = rows_of(rc.open_buffer(buffer).at("t0"))
    (block,) = blocks()
    (block / name).unlink()
    again = rc.open_buffer(buffer)
    assert rows_of(again.at("t0")) == want and again.decoded_files == 1


@pytest.mark.parametrize("state", ["[]", "{}", '{"bytes": 1', '{"rows": "x"}'])
def test_a_block_that_says_nonsense_is_decoded_again(state: str, tmp_path: Path) -> None:
    buffer = make_buffer(tmp_path)
    want = rows_of(rc.open_buffer(buffer).at("t0"))
    (block,) = blocks()
    (block / "state.json").write_text(state)
    again = rc.open_buffer(buffer)
    assert rows_of(again.at("t0")) == want and again.decoded_files == 1


@pytest.mark.parametrize("damaged", [True, False])
def test_a_block_from_before_a_power_cut_is_checked_once(damaged: bool, tmp_path: Path) -> None:
    """Pages that never reached the disk read as zeros under a file of the right size."""
    buffer = make_buffer(tmp_path)
    want = rows_of(rc.open_buffer(buffer).at("t0"))
    (block,) = blocks()
    state = json.loads((block / "state.json").read_text())
    (block / "state.json").write_text(json.dumps({**state, "boot": "an earlier one"}))
    if damaged:
        with open(block / "data", "r+b") as f:
            f.seek(64)
            f.write(bytes(256))
    again = rc.open_buffer(buffer)
    assert rows_of(again.at("t0")) == want and again.decoded_files == int(damaged)
    assert json.loads((block / "state.json").read_text()) == state


def test_threads_that_decode_at_once_decode_once(tmp_path: Path) -> None:
    buffer = make_buffer(tmp_path, files=2)
    seen: list[int] = []
    decoded: list[int] = []
    start = threading.Barrier(4)

    def read() -> None:
        handle = rc.open_buffer(buffer)
        start.wait()
        seen.append(len(rows_of(handle.at())))
        decoded.append(handle.decoded_files)

    threads = [threading.Thread(target=read) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert seen == [40] * 4 and sum(decoded) == 2
    assert len(blocks()) == 2 and not strays()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_is_said_with_a_remedy(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buffer = make_buffer(tmp_path)
    write = os.pwrite

    def full(fd: int, data: Any, at: int) -> int:
        if at > 0:
            raise OSError(code, os.strerror(code))
        return write(fd, data, at)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        with pytest.raises(errors.DiskFull, match="RECOLLECT_CACHE to a larger disk"):
            rc.open_buffer(buffer).at()
    assert not blocks() and not strays(), "nothing of it stays"
    assert len(rc.open_buffer(buffer).at().rows) == 20


def test_branches_that_use_a_fragments_number_again_share_nothing(tmp_path: Path) -> None:
    """Both hold a fragment 1, of other rows."""
    one, other = make_buffer(tmp_path / "1", files=2, name="one"), make_buffer(tmp_path / "2", files=2, name="other")
    first, second = rc.open_buffer(one), rc.open_buffer(other)
    ids = [set(map(tuple, v.rows.ids(np.arange(40)).tolist())) for v in (first.at(), second.at())]
    assert not ids[0] & ids[1] and len(blocks()) == 4
