"""After a snapshot: what its buffer now holds, read back, is what eviction may take for promoted (design/0010)."""

from __future__ import annotations

import time
from pathlib import Path

from recollect.cold.dataset import Datasets
from recollect.cold.location import Location
from recollect.cold.watermark import watermark
from recollect.errors import NotFound, RecollectError
from recollect.hot import home
from recollect.hot.format.files import locked, writers_folders
from recollect.hot.format.targets import Cursor, fix_home, read_cursor, read_home, write_cursor
from recollect.promote.snapshot import PROMOTER_WAIT_S


def move(root: Path, workspace: str, location: Location, lock: Path) -> str:
    """Notes how far the buffer got. The workspace's first target becomes its home.

    Args:
        root: the workspace's folder; `workspace` its id.
        lock: what serialises its promoters to this target, so that the newest reading is the one that stays.

    Returns:
        Why eviction may not go on by it, "" where it may. A buffer that cannot be read back leaves all as it was, and
        so does a workspace that was deleted meanwhile, whether or not another one has its name by now.
    """
    try:
        try:
            with locked(lock, PROMOTER_WAIT_S):
                return _move(root, workspace, location)
        except OSError:
            home.require(root, workspace)
            raise
    except NotFound as e:
        return f"what the buffer holds was promoted, but {e.message} meanwhile"


def _move(root: Path, workspace: str, location: Location) -> str:
    """
    Raises:
        NotFound: the workspace was deleted.
    """
    before = read_cursor(root, location.uri)
    try:
        data = Datasets.open_(location)
        data.make_durable()
        history = data.history()
        chain = history.chain
        gone = before is not None and history.find(before.promotion, before.version - 1) is None
        version = int(data.steps.version)
    except RecollectError as e:
        return f"the buffer could not be read back, so nothing is evicted for now: {e.text}"
    mine = {int(w) for p in chain if p.workspace == workspace for w, _, _ in (*p.record["extents"], *p.record["facts"])}
    if not mine:
        return ""
    problem = ""
    if gone:
        problem = (
            f"buffer {location.uri!r} no longer holds what was promoted to it: it was replaced, or went back to "
            "an older version"
        )
    if before is not None and before.problem:
        problem = before.problem
    # Reading the buffer may take long; whoever deletes the workspace waits for this only.
    with home.held(root, workspace):
        here = {int(f.name, 16) for f in writers_folders(root / "log")}
        marks = {w: mark for w, mark in watermark(chain).items() if w in here}
        fix_home(root, location.uri)
        write_cursor(root, Cursor(location.uri, version, chain[-1].id, time.time_ns(), marks, problem))
        if problem and read_home(root) == location.uri:
            return f"{problem}. Nothing is evicted until ws.set_home(uri) says which buffer to trust"
    return ""
