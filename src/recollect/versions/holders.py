"""Who holds rows that a buffer deleted: a buffer's rows were promoted from workspaces, which keep them."""

from __future__ import annotations

from collections.abc import Sequence

from recollect.errors import RecollectError
from recollect.hot import home
from recollect.hot.format.files import writers_folders
from recollect.hot.read.store import HotStore
from recollect.view import Extent
from recollect.view.reach import by_writer, union, within


def holders(ids: Sequence[Extent]) -> tuple[str, ...]:
    """Names of the workspaces under RECOLLECT_HOME that hold some of the rows still. One that cannot be read, and has a
    log of one of their writers, is taken for such. Changes nothing."""
    wanted = {w: union(ranges) for w, ranges in by_writer(ids).items()}
    found = []
    for path in home.list_workspaces() if wanted else ():
        if not wanted.keys() & {int(folder.name, 16) for folder in writers_folders(path / "log")}:
            continue
        try:
            cut = HotStore(path / "log", home.layouts(path), path.name).state().cut
        except (RecollectError, OSError):
            found.append(path.name)
            continue
        if any(within(wanted.get(e.writer, ()), e.start, e.stop) for e in cut.extents):
            found.append(path.name)
    return tuple(found)
