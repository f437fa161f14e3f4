"""Buffers of several small data files, and what is found of them in the cache."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np

import recollect as rc

SCHEMA = rc.Schema(
    {
        "uid": rc.Tensor("int64"),
        "note": rc.Text(optional=True),
        "tokens": rc.Ragged("int32", optional=True),
        "picture": rc.Frames((2, 2)),
        "vector": rc.Embedding(4, optional=True),
    }
)


def append_rows(ws: rc.Workspace, first: int, count: int) -> None:
    """An episode of `count` steps; some values are null, some empty."""
    with ws.writer() as writer, writer.episode() as episode:
        for i in range(first, first + count):
            values: dict[str, Any] = {"uid": i, "picture": [[i % 251, 0], [0, i % 251]]}
            if i % 3:
                values["note"] = f"n{i}" * (i % 4)
            if i % 4:
                values["tokens"] = list(range(i % 5))
            if i % 2 == 0:
                values["vector"] = np.full(4, i, np.float32)
            episode.append(**values)


def make_buffer(folder: Path, files: int = 1, rows: int = 20, *, name: str = "w") -> Path:
    """`folder/b`, one data file a snapshot, tagged `t0`, `t1`, …"""
    with rc.create_workspace(name, SCHEMA) as ws:
        for k in range(files):
            append_rows(ws, k * rows, rows)
            ws.snapshot(folder / "b", tag=f"t{k}")
    return folder / "b"


def blocks_folder() -> Path:
    return Path(os.environ["RECOLLECT_CACHE"]) / "blocks"


def blocks() -> list[Path]:
    """The blocks that are there."""
    return sorted(p for p in blocks_folder().iterdir() if not p.name.startswith("."))


def strays() -> list[str]:
    """What lies beside the blocks, but for the lock of the folder's room."""
    return sorted(p.name for p in blocks_folder().iterdir() if p.name.startswith(".") and p.name != ".room")
