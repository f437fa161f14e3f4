"""The disk that a log takes stays within a factor of what it stores, whatever it is a mix of (design/0003)."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect.hot.format.room import disk_bytes, give_back_zeros
from recollect.hot.format.segment import FACT
from recollect.hot.write import growing
from recollect.hot.write.growing import SEGMENT_BYTES
from recollect.records.layout import Layout
from tests.support import run_python

VECTOR = rc.Schema(
    {"observation": rc.Tensor("float32", (17,)), "action": rc.Tensor("float32", (6,)), "note": rc.Text(optional=True)},
    episode={"task": rc.Text()},
)
FRAMES = rc.Schema({"observation": rc.Frames((84, 84), stack=4, pad="zero"), "reward": rc.Tensor("float32")})
STEP: dict[str, Any] = {"observation": np.zeros(17, "f4"), "action": np.zeros(6, "f4")}
PLANE = np.zeros((84, 84), "u1")
LIVE, CLOSED = 20, 1.25
"""What design/0003 promises while a log is written, beside its first segment, and once it is closed, beside
`EACH` bytes of a log."""
EACH = 32 << 10


def _log_bytes(ws: rc.Workspace) -> int:
    return sum(disk_bytes(path) for path in (ws.path / "log").rglob("*"))


def _rows(writer: rc.Writer) -> int:
    with writer.episode() as episode:
        for _ in range(20_000):
            episode.append(**STEP)
    return 20_000 * Layout.of(VECTOR).itemsize


def _short_episodes(writer: rc.Writer) -> int:
    for k in range(1500):
        with writer.episode(id=f"episode-{k}", task="hopper") as episode:
            for t in range(10):
                episode.append(**STEP, terminated=t == 9)
            episode.finish(status="success", reward=1.0)
    return 15_000 * Layout.of(VECTOR).itemsize + 1500 * 2 * (FACT.itemsize + 30)


def _text(writer: rc.Writer) -> int:
    with writer.episode() as episode:
        for k in range(1000):
            episode.append(**STEP, note=f"{k:05d}" * 1000)
    return 1000 * (5000 + Layout.of(VECTOR).itemsize)


def _phases(writer: rc.Writer) -> int:
    stored = 0
    with writer.episode(task="hopper") as episode:
        for phase in range(12):
            for _ in range(1000):
                if phase % 3 == 0:
                    episode.append(**STEP)
                    stored += Layout.of(VECTOR).itemsize
                elif phase % 3 == 1:
                    episode.finish(reward=1.0)
                    stored += FACT.itemsize + len('{"reward":1.0}')
                else:
                    episode.append(**STEP, note="x" * 500)
                    stored += Layout.of(VECTOR).itemsize + 500
    return stored


def _frames(writer: rc.Writer) -> int:
    with writer.episode() as episode:
        for _ in range(400):
            episode.append(observation=PLANE, reward=0.0)
    return 400 * Layout.of(FRAMES).row_bytes


@pytest.mark.parametrize(
    ("schema", "write"),
    [(VECTOR, _rows), (VECTOR, _short_episodes), (VECTOR, _text), (VECTOR, _phases), (FRAMES, _frames)],
)
def test_the_disk_is_within_a_factor_of_what_is_stored(schema: rc.Schema, write: Callable[[rc.Writer], int]) -> None:
    with rc.create_workspace("w", schema, durability="process") as ws:
        with ws.writer() as writer:
            stored = write(writer)
            assert _log_bytes(ws) <= LIVE * stored + 2 * SEGMENT_BYTES[0]
        assert _log_bytes(ws) <= CLOSED * stored + EACH
        assert ws.verify().ok


@pytest.mark.parametrize("schema", [VECTOR, FRAMES])
def test_an_annotation_costs_what_it_says(schema: rc.Schema) -> None:
    values: dict[str, Any] = {"observation": PLANE, "reward": 0.0} if schema is FRAMES else STEP
    with rc.create_workspace("w", schema, durability="process") as ws:
        with ws.writer() as writer, writer.episode() as episode:
            key, step = episode.key, episode.append(**values)
        before = _log_bytes(ws)
        for _ in range(600):
            ws.annotate(key, reward=1.0)
        stored = 600 * (FACT.itemsize + len('{"reward":1.0}'))
        (annotator,) = ws._annotator.writers
        assert _log_bytes(ws) - before <= LIVE * stored + SEGMENT_BYTES[0] // 8
        annotator.close()
        assert _log_bytes(ws) - before <= 2 * stored + EACH
        assert ws.episode(key).facts["reward"] == 1.0
        assert ws.recent(1).ids[0] == step


def test_a_writer_that_wrote_nothing_leaves_next_to_nothing() -> None:
    with rc.create_workspace("w", VECTOR) as ws:
        for _ in range(3):
            ws.writer().close()
        assert _log_bytes(ws) <= 3 * EACH


def test_what_a_killed_writer_did_not_use_goes_back() -> None:
    with rc.create_workspace("w", VECTOR) as ws:
        run_python(
            "import os, numpy as np, recollect as rc\n"
            "writer = rc.open_workspace('w').writer()\n"
            "with writer.episode() as episode:\n"
            "    episode.append(observation=np.ones(17, 'f4'), action=np.zeros(6, 'f4'), note='kept')\n"
            "os._exit(0)"
        )
        assert _log_bytes(ws) > SEGMENT_BYTES[0] // 2
        with rc.open_workspace("w") as again:
            assert len(again.recovered) == 1
            assert _log_bytes(again) <= EACH
            assert again.recent(1)[0].fields["note"] == "kept"
            assert again.verify().ok


def test_a_limit_in_bytes_goes_by_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Closed logs of a few rows each: by the size of their files they would be beyond the limit many times over."""
    keep = rc.Keep(bytes=1 << 20, unpromoted="drop")
    with rc.create_workspace("w", VECTOR, keep=keep) as ws:
        for _ in range(8):
            with ws.writer() as writer, writer.episode() as episode:
                episode.append(**STEP)
        assert ws.evict().rows == 0
        assert len(ws.recent(100)) == 8


def test_holes_are_punched_where_pages_are_zero_and_nothing_changes(tmp_path: Path) -> None:
    path = tmp_path / "file"
    data = bytearray(os.urandom(16 * 4096) + bytes(64 * 4096) + os.urandom(100) + bytes(3 << 20) + b"x")
    path.write_bytes(data)
    os.sync()
    give_back_zeros(path)
    assert path.read_bytes() == data
    assert disk_bytes(path) <= 22 * 4096


def test_the_next_segment_has_the_proportions_of_this_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Facts alone fill the table that was made for a few; the next one holds many times as many."""
    monkeypatch.setattr(growing, "SEGMENT_BYTES", (1 << 18,))
    with rc.create_workspace("w", VECTOR, durability="process") as ws, ws.writer() as writer:
        first = writer._log.segment.header.shape
        with writer.episode() as episode:
            for _ in range(first.facts + 1):
                episode.finish(reward=1.0)
        second = writer._log.segment.header.shape
        assert second.facts > 10 * first.facts
        assert second.rows < first.rows
        writer.sync()
        segments = sorted((ws.path / "log").glob("*/*.seg"))
        assert disk_bytes(segments[0]) < 1 << 16
