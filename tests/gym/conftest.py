"""Workspaces of a test's own, and the writers into them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import recollect as rc

Open = Callable[[Any], tuple[rc.Workspace, rc.Writer]]


@pytest.fixture
def opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """A function: an environment or a schema → a workspace of that schema, and a writer into it."""
    monkeypatch.setenv("RECOLLECT_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RECOLLECT_CACHE", str(tmp_path / "cache"))
    made: list[rc.Workspace] = []

    def open_(source: Any) -> tuple[rc.Workspace, rc.Writer]:
        schema = source if isinstance(source, rc.Schema) else rc.Schema.from_env(source)
        ws = rc.create_workspace(f"ws{len(made)}", schema, durability="process")
        made.append(ws)
        return ws, ws.writer("recorder")

    yield open_
    for ws in made:
        ws.close()
