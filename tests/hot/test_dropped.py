"""A writer that is dropped without close(): what it wrote is flushed, and nobody takes it for alive."""

from __future__ import annotations

import gc
import time
from typing import Any

import pytest

import recollect as rc
from recollect.hot.format.files import is_locked
from recollect.hot.format.segment import Segment

SCHEMA = rc.Schema({"reward": rc.Tensor("float32")})


@pytest.mark.parametrize("durability", ["interval", "process"])
def test_a_dropped_writer_flushes_and_lets_go(durability: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recollect.hot.write.writer.FLUSH_INTERVAL_S", 3600.0)
    ws = rc.create_workspace("w", SCHEMA, durability=durability)
    layouts, path = ws._hot().layouts, ws.path
    writer = ws.writer()
    writer.episode().append(reward=1.0)
    folder = writer._log.folder
    assert is_locked(folder / "lock")
    del writer, ws
    gc.collect()
    end = time.monotonic() + 60
    while is_locked(folder / "lock") and time.monotonic() < end:
        time.sleep(0.01)
    assert not is_locked(folder / "lock")
    segment = Segment.open_(next(folder.glob("*.seg")), layouts)
    assert segment.durable_word == segment.word == 1
    with rc.open_workspace(path) as again:
        assert [r.rows for r in again.recovered] == [1]
    rc.delete_workspace(path)
