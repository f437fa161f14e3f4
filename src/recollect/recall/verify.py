"""The check of a whole workspace: its description, its logs, and the indexes beside them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from recollect.errors import CorruptionError, RecollectError
from recollect.hot import home
from recollect.hot.format.layouts import Layouts
from recollect.hot.read import catalog
from recollect.hot.read.catalog import Catalog
from recollect.hot.read.compare import Difference
from recollect.hot.read.sidecar import Damaged, drop_index
from recollect.hot.read.store import HotStore
from recollect.hot.recovery.findings import Findings, Problem
from recollect.hot.recovery.repair import Repair, repair_logs
from recollect.hot.recovery.verify import Progress, verify_logs
from recollect.recall import text
from recollect.recall.text import TextIndex
from recollect.view import Cut


@dataclass(frozen=True)
class Report:
    """What `verify` found.

    Attributes:
        name, path: the workspace.
        writers: logs; `live` of them may still grow, `unsealed` have lost their writer and wait for the next open.
        segments, rows, facts: what was checked.
        indexes: the indexes that were there and were held against the logs.
        problems: what is wrong; empty where nothing is.
        repaired: what a repair gave up before; None without one.
    """

    name: str
    path: Path
    writers: int
    live: int
    unsealed: int
    segments: int
    rows: int
    facts: int
    indexes: tuple[str, ...]
    problems: tuple[Problem, ...]
    repaired: Repair | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing is lost and nothing had to be repaired."""
        return all(p.level == "harmless" for p in self.problems)


def verify(path: Path, progress: Progress | None = None, *, repair: bool = False) -> Report:
    """Checks every checksum and counter of a workspace, and its indexes against its logs. Agents may go on meanwhile.

    Logs are only read. An index that is wrong is made again.

    Args:
        path: the workspace's folder.
        progress: called with rows checked and rows to check.
        repair: first gives up what is damaged, so that everything else can be read.

    Raises:
        NotFound: no workspace there, or it was deleted meanwhile.
        ConflictError, StoreError: what `repair` needs cannot be had or written.
    """
    problems: list[Problem] = []
    id: str | None = None
    try:
        id = home.describe(path).id
    except CorruptionError as e:
        problems.append(Problem("lost", "workspace.json", e.message, e.remedy or ""))
    layouts: Layouts | None = None
    try:
        layouts = None if home.read_schema(path) is None else home.layouts(path)
    except CorruptionError as e:
        remedy = "Copy the schema.json of a workspace with the same schema, or restore a backup"
        problems.append(Problem("lost", "schema.json", e.message, remedy))
    repaired = None
    try:
        if repair and layouts is not None:
            repaired = repair_logs(path, layouts)
            if repaired.changed:
                for name in (catalog.NAME, text.NAME):
                    drop_index(path / name)
        found = verify_logs(path, layouts, progress)
        indexes = () if layouts is None else _indexes(path, layouts, found)
    except (FileNotFoundError, RecollectError):
        if id is not None:
            home.require(path, id)
        raise
    if id is not None:
        home.require(path, id)
    return Report(
        path.name,
        path,
        found.writers,
        found.live,
        found.unsealed,
        found.segments,
        found.rows,
        found.facts,
        indexes,
        (*problems, *found.problems),
        repaired,
    )


def _compared(index: Catalog | TextIndex, cut: Cut) -> Difference | None:
    try:
        return index.compare(cut)
    except (Damaged, CorruptionError) as e:  # it says more than the logs do, which are whole
        return Difference(0, 0, str(e))


def _indexes(path: Path, layouts: Layouts, found: Findings) -> tuple[str, ...]:
    """Holds the indexes against the logs, which have to be whole for that."""
    store = HotStore(path / "log", layouts, path.name)
    indexes: tuple[Catalog | TextIndex, ...] = (store.catalog, TextIndex(store))
    present = [index for index in indexes if index.file.path.exists()]
    try:
        if not found.readable:
            raise CorruptionError("the logs are damaged")
        with store.pinned():
            cut = store.cut()
            differences = [_compared(index, cut) for index in present]
    except CorruptionError:
        for index in present:
            what = "it was not held against the logs, which are damaged"
            found.add("harmless", index.file.path.name, what, "Delete it if in doubt; it is made again when needed")
        return ()
    for index, difference in zip(present, differences, strict=True):
        if difference is not None:
            index.file.discard()
            made = index.catch_up(cut)
            remedy = "It was made again" if made else "Delete it: it is made again when it is next needed"
            found.add("repairable", index.file.path.name, f"the index differs from the logs: {difference}", remedy)
        index.file.close()
    store.close()
    return tuple(index.file.path.name for index in present)
