"""Cached blocks are whole or absent."""

from __future__ import annotations

import json
import os
import threading
from pathlib import Path

import pytest

import recollect as rc
from recollect import errors
from recollect.cache.blocks import open_block
from recollect.records.layout import Layout
from tests.support import rows_of

SCHEMA = rc.Schema({"uid": rc.Tensor("int64"), "note": rc.Text(), "picture": rc.Frames((2, 2))})


def _buffer(tmp_path: Path) -> Path:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer:
        with writer.episode() as episode:
            for i in range(20):
                episode.append(uid=i, note=f"n{i}", picture=[[i, 0], [0, i]])
        ws.snapshot(tmp_path / "b", tag="t")
    return tmp_path / "b"


def test_blocks_lie_under_the_cache_folder(tmp_path: Path) -> None:
    buffer = _buffer(tmp_path)
    rc.open_buffer(buffer).at("t")
    (block,) = (Path(os.environ["RECOLLECT_CACHE"]) / "blocks").iterdir()
    assert not block.name.startswith(".")


def test_a_deleted_cache_is_decoded_again(tmp_path: Path) -> None:
    buffer = _buffer(tmp_path)
    view = rc.open_buffer(buffer).at("t")
    want = rows_of(view)
    for path in sorted((tmp_path / "cache").rglob("*"), reverse=True):
        path.rmdir() if path.is_dir() else path.unlink()
    again = rc.open_buffer(buffer)
    assert rows_of(again.at("t")) == want and again.decoded_files == 1
    assert rows_of(view) == want, "a view that is open keeps its maps"


@pytest.mark.parametrize("name", ["records", "heap", "planes-0", "size.json"])
def test_a_cut_block_is_decoded_again(name: str, tmp_path: Path) -> None:
    buffer = _buffer(tmp_path)
    want = rows_of(rc.open_buffer(buffer).at("t"))
    (block,) = (tmp_path / "cache" / "blocks").iterdir()
    with open(block / name, "r+b") as f:
        f.truncate(1)
    with pytest.raises(errors.CorruptionError, match="damaged"):
        open_block(block, Layout.of(rc.open_buffer(buffer).schema))
    again = rc.open_buffer(buffer)
    assert rows_of(again.at("t")) == want and again.decoded_files == 1


@pytest.mark.parametrize("damaged", [True, False])
def test_a_block_from_before_a_power_cut_is_checked_once(damaged: bool, tmp_path: Path) -> None:
    """Pages that never reached the disk read as zeros under a file of the right size."""
    buffer = _buffer(tmp_path)
    want = rows_of(rc.open_buffer(buffer).at("t"))
    (block,) = (tmp_path / "cache" / "blocks").iterdir()
    state = json.loads((block / "size.json").read_text())
    (block / "size.json").write_text(json.dumps({**state, "boot": "an earlier one"}))
    if damaged:
        with open(block / "records", "r+b") as f:
            f.seek(64)
            f.write(bytes(256))
    again = rc.open_buffer(buffer)
    assert rows_of(again.at("t")) == want and again.decoded_files == int(damaged)
    assert json.loads((block / "size.json").read_text()) == state


def test_threads_that_decode_at_once_agree(tmp_path: Path) -> None:
    buffer = _buffer(tmp_path)
    seen: list[int] = []

    def read() -> None:
        seen.append(len(rows_of(rc.open_buffer(buffer).at("t"))))

    threads = [threading.Thread(target=read) for _ in range(6)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert seen == [20] * 6
    assert len(list((tmp_path / "cache" / "blocks").iterdir())) == 1
