"""`verify`: every checksum and every counter of a workspace's logs. Reads only; live writers may go on meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from recollect.errors import CorruptionError
from recollect.hot.format.evicted import NAME as EVICTED
from recollect.hot.format.evicted import read_evicted
from recollect.hot.format.files import WRITER, writers_folders
from recollect.hot.format.layouts import Layouts
from recollect.hot.format.targets import damaged_cursors, read_home
from recollect.hot.recovery.check import LogCheck, is_leftover
from recollect.hot.recovery.findings import Findings

Progress: TypeAlias = Callable[[int, int], None]


def verify_logs(path: Path, layouts: Layouts | None, progress: Progress | None = None) -> Findings:
    """Checks everything under a workspace's folder that is no index.

    Args:
        layouts: of every schema version; None where the workspace has no schema yet, or a damaged one.
        progress: called with rows checked and rows to check.
    """
    found = Findings()
    _leftovers(path, found)
    _notes(path, found)
    folder = path / "log"
    leaving = _leaving(folder, found)
    for item in sorted(folder.iterdir()) if folder.is_dir() else ():
        if item.name[:1] != "." and not WRITER.match(item.name):
            found.add("harmless", f"log/{item.name}", "it is no writer's log", "Nothing: nobody looks at it")
    checks = []
    for log in writers_folders(folder):
        if layouts is not None and int(log.name, 16) not in leaving:
            checks.append(LogCheck(log, layouts, found))
    total = sum(check.published for check in checks)
    for check in checks:
        check.run(lambda rows: None if progress is None else progress(rows, max(rows, total)))
    return found


def _leftovers(path: Path, found: Findings) -> None:
    for grave in path.parent.glob(f".{path.name}.deleted.*"):
        found.add("harmless", f"../{grave.name}", "what is left of a deleted workspace", "Remove it by hand")
    for item in path.glob(".*"):
        if is_leftover(item):
            found.add("harmless", item.name, "a file that never got its name", "Remove it by hand")


def _notes(path: Path, found: Findings) -> None:
    """Checks how far the buffers got, as the workspace noted it."""
    try:
        read_home(path)
    except CorruptionError as e:
        found.add("repairable", "home.json", e.message, e.remedy or "")
    for note in damaged_cursors(path):
        what = "what the buffer held cannot be read, so nothing is evicted"
        found.add(
            "repairable", f"targets/{note.name}", what, "Snapshot to that buffer again, which is then looked at anew"
        )


def _leaving(folder: Path, found: Findings) -> frozenset[int]:
    """Writers whose logs are evicted and may still be there."""
    try:
        return read_evicted(folder).leaving
    except CorruptionError as e:
        found.add("lost", EVICTED, e.message, e.remedy or "")
        return frozenset()
