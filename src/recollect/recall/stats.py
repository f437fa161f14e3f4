"""Counts of a workspace: what can be read, what is durable, what it keeps."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from recollect.hot import home
from recollect.hot.read.log import WriterLog
from recollect.hot.read.store import HotStore
from recollect.hot.retention.retain import Retention
from recollect.recall.results import interrupted, nan_rewards
from recollect.view.reach import by_writer


@dataclass(frozen=True)
class WriterStats:
    """One writer's log.

    Attributes:
        writer: its id; `agent` the name it was given.
        appended: rows ever appended.
        visible: rows that can be read here.
        durable: rows known to survive power loss, counted from the first one appended.
        facts: facts that can be read here.
        lost: rows that recovery found damaged after their writer's death, and cut off.
        live: whether it can still grow.
        first_row: number of the oldest row that is still there; those before it were evicted.
        behind_s: seconds since the oldest row was appended that is not known to survive power loss; 0 without one. With
            `durability="interval"` that is 0.25 s and two flushes at most.
    """

    writer: int
    agent: str
    appended: int
    visible: int
    durable: int
    facts: int
    lost: int
    live: bool
    first_row: int = 0
    behind_s: float = 0.0


@dataclass(frozen=True)
class WorkspaceStats:
    """Counts of a workspace, with `writers` one by one, and what it keeps under `retention` (None without a schema).

    `interrupted` counts the episodes with that status, those included whose writer died before it could say so.
    """

    rows: int
    steps: int
    drawable: int
    undrawable_truncated: int
    undrawable_open: int
    undrawable_beheaded: int
    episodes: int
    interrupted: int
    facts: int
    nan_rewards: int
    disk_bytes: int
    writers: tuple[WriterStats, ...]
    retention: Retention | None = None


def nothing_written(path: Path) -> WorkspaceStats:
    """Counts of a workspace that has no schema yet."""
    return WorkspaceStats(
        rows=0,
        steps=0,
        drawable=0,
        undrawable_truncated=0,
        undrawable_open=0,
        undrawable_beheaded=0,
        episodes=0,
        interrupted=0,
        facts=0,
        nan_rewards=0,
        disk_bytes=_disk_bytes(path),
        writers=(),
    )


def collect(store: HotStore, path: Path, retention: Callable[[], Retention]) -> WorkspaceStats:
    """Counts over all writers' logs.

    Args:
        path: the workspace's folder.
        retention: says what is kept.
    """
    alive = set(home.live_writers(path))  # before the logs: a log that is sealed since is not live
    with store.pinned():
        view = store.view()
        logs = [log for _, log in sorted(store.logs.items()) if not log.gone]
        visible = {w: sum(b - a for a, b in found) for w, found in by_writer(view.cut.extents).items()}
        return WorkspaceStats(
            rows=len(view.rows),
            steps=int((~view.episodes.is_final).sum()),
            drawable=len(view),
            undrawable_truncated=view.anchors.undrawable_truncated,
            undrawable_open=view.anchors.undrawable_open,
            undrawable_beheaded=view.anchors.undrawable_beheaded,
            episodes=len(view.episodes.keys),
            interrupted=interrupted(view, lambda w: store.are_sealed((w,)), store.growing_elsewhere()),
            facts=sum(log.kept_facts for log in logs),
            nan_rewards=nan_rewards(view),
            disk_bytes=_disk_bytes(path),
            writers=tuple(
                WriterStats(
                    writer=log.writer,
                    agent=log.agent,
                    appended=log.rows,
                    visible=visible.get(log.writer, 0),
                    durable=log.durable_rows,
                    facts=log.kept_facts,
                    lost=0 if log.lost is None else log.lost[1] - log.lost[0],
                    live=log.writer in alive and not log.sealed,
                    first_row=log.first.row,
                    behind_s=_behind_s(log),
                )
                for log in logs
            ),
            retention=retention(),
        )


def _behind_s(log: WriterLog) -> float:
    oldest = max(log.durable_rows, log.first.row)
    if oldest >= log.rows:
        return 0.0
    block, row, _ = log.pieces(oldest, oldest + 1)[0]
    return max(0.0, (time.time_ns() - int(block.records["time"][row])) / 1e9)


def _disk_bytes(path: Path) -> int:
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            with contextlib.suppress(FileNotFoundError):  # evicted meanwhile
                total += (Path(folder) / name).stat().st_blocks * 512
    return total
