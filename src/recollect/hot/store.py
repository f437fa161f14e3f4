"""Every writer's log of one workspace, read together."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from recollect.errors import NotFound
from recollect.hot import catalog
from recollect.hot.catalog import Catalog
from recollect.hot.log import WriterLog
from recollect.records.block import Block, join_rows
from recollect.records.build import Changed, build_view, unchanged
from recollect.records.layout import Layout
from recollect.records.overlay import overlay
from recollect.view import Cut, Extent, Fact, FactIndex, Ids, View


class HotStore:
    """The logs under one folder. Thread-safe; opened anew in every process."""

    def __init__(self, folder: Path, layout: Layout, name: str = "") -> None:
        self.folder, self.layout, self.name = folder, layout, name
        self.logs: dict[int, WriterLog] = {}
        self.catalog = Catalog(folder.parent / catalog.NAME, self)
        self._lock = threading.RLock()

    def refresh(self) -> None:
        """Looks for new writers and at every live writer's counter."""
        with self._lock:
            if self.folder.is_dir():
                for path in self.folder.iterdir():
                    writer = -1 if path.name.startswith(".") else int(path.name, 16)
                    if writer >= 0 and writer not in self.logs and (path / "00000000.seg").exists():
                        self.logs[writer] = WriterLog(path, self.layout)
            for log in self.logs.values():
                log.refresh()

    def cut(self) -> Cut:
        """What is published now, writers in the order of their ids."""
        self.refresh()
        logs = [self.logs[w] for w in sorted(self.logs)]
        return Cut(
            tuple(Extent(log.writer, 0, log.rows) for log in logs if log.rows),
            tuple((log.writer, log.facts) for log in logs if log.facts),
        )

    def log(self, writer: int) -> WriterLog:
        if writer not in self.logs:
            self.refresh()
        if writer not in self.logs:
            raise NotFound(f"no writer {writer} in workspace {self.name!r}")
        return self.logs[writer]

    def close(self) -> None:
        """Gives up the index's file; it is opened again when it is next asked."""
        self.catalog.file.close()

    def are_sealed(self, writers: Iterable[int]) -> bool:
        """Whether all these writers are gone for good."""
        return all(w in self.logs and self.logs[w].sealed for w in writers)

    def facts(self, stops: tuple[tuple[int, int], ...]) -> list[Fact]:
        """Every fact of a cut, writer by writer."""
        out: list[Fact] = []
        for writer, stop in stops:
            out += self.log(writer).read_facts(stop)
        return out

    def index(self, stops: tuple[tuple[int, int], ...]) -> FactIndex:
        """The facts of a cut, and no others."""
        return FactIndex.of(self.facts(stops))

    def _changed(self, stops: tuple[tuple[int, int], ...]) -> Changed:
        """What lays the cut's step facts over its rows; nothing where it has none."""
        if any(self.log(writer).has_step_facts(stop) for writer, stop in stops):
            return overlay
        return unchanged

    def tails(self, ids: Ids) -> tuple[Ids, Block | None]:
        """Waiting observations of the given steps."""
        parts, found = [], []
        for writer in np.unique(ids["writer"]).tolist():
            mine, block = self.log(writer).tails(ids[ids["writer"] == writer])
            if block is not None:
                parts.append(block)
                found.append(mine)
        if not parts:
            return ids[:0], None
        return np.concatenate(found), join_rows(self.layout, parts)

    def pieces(self, extents: tuple[Extent, ...]) -> list[tuple[Block, int, int]]:
        """The blocks of a list of extents, in order."""
        return [piece for e in extents for piece in self.log(e.writer).pieces(e.start, e.stop)]

    def view(self, cut: Cut | None = None) -> View:
        """An immutable view of a cut, of all that is published when None."""
        cut = self.cut() if cut is None else cut
        return build_view(
            self.layout,
            cut,
            self.pieces(cut.extents),
            self.tails,
            lambda: self.index(cut.facts),
            self._changed(cut.facts),
            self.name,
        )
