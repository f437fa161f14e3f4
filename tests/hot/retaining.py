"""What the tests of eviction share: a schema of small rows, small segments, and episodes to fill them with."""

from __future__ import annotations

from typing import Any

import pytest

import recollect as rc
from recollect.hot import growing

SCHEMA = rc.Schema(
    {"observation": rc.Tensor("float32", (2,)), "reward": rc.Tensor("float32"), "uid": rc.Tensor("int64")},
    episode={"task": rc.Text()},
)
RING = rc.Keep(rows=300, unpromoted="drop")
SMALL = (1 << 14,)


@pytest.fixture
def small_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growing, "SEGMENT_BYTES", SMALL)


def write_episodes(writer: rc.Writer, count: int, *, length: int = 30, first: int = 0, **facts: Any) -> None:
    for k in range(first, first + count):
        with writer.episode(task=f"t{k}", **facts) as episode:
            for i in range(length):
                uid = k * length + i
                episode.append(observation=[uid, i], reward=1.0, uid=uid, terminated=i == length - 1)


def files(ws: rc.Workspace) -> list[str]:
    return sorted(str(p.relative_to(ws.path / "log")) for p in (ws.path / "log").rglob("*") if p.is_file())


def retention(ws: rc.Workspace) -> Any:
    found = ws.stats().retention
    assert found is not None
    return found
