"""One promotion of a workspace: to which buffer and branch, how far that got then, and what may go from here."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

from recollect.cold.branches import find
from recollect.cold.location import Location
from recollect.hot import home
from recollect.hot.format.targets import digest
from recollect.hot.read.store import HotStore
from recollect.hot.retention.evict import Eviction
from recollect.promote.lineage import commit_of
from recollect.promote.result import Snapshot, nothing_to_promote
from recollect.promote.retention import move
from recollect.promote.snapshot import snapshot
from recollect.promote.stage import Progress
from recollect.promote.tags import check_tag


def promote(
    path: Path,
    workspace: str,
    store: Callable[[], HotStore | None],
    evict: Callable[[], Eviction],
    to: str | os.PathLike[str],
    tag: str | None,
    progress: Progress | None,
    *,
    storage_options: Mapping[str, str] | None,
    finished_only: bool,
    where: str | None,
    branch: str | None,
    commit: str | None,
    dry_run: bool,
) -> Snapshot:
    """`Workspace.snapshot`, which says what the other arguments mean and what is raised.

    Args:
        path: the workspace's folder; `workspace` its id.
        store: opens it; None where nobody has fixed its schema yet.
        evict: lets go of what may go once the buffer holds it.
    """
    check_tag(tag)
    home.require(path, workspace)
    location = find(Location(to, storage_options), branch)
    code = commit_of(commit)
    opened = store()
    if opened is None:
        return nothing_to_promote(location, dry_run=dry_run)
    target = f"{location.uri}#{location.branch}" if location.branch else location.uri
    lock = path / "targets" / f"{digest(target)}.lock"
    done = snapshot(
        opened, workspace, lock, location, tag, progress,
        finished_only=finished_only, where=where, dry_run=dry_run, commit=code,
    )  # fmt: skip
    if dry_run or location.branch:
        return done
    note = "" if done.version is None else move(path, workspace, location, lock)
    return replace(done, evicted_rows=evict().rows, note=note or done.note)
