"""Every writer's log of one workspace, read together."""

from __future__ import annotations

import os
import threading
import time
import weakref
from pathlib import Path

import numpy as np

from recollect.errors import NotFound
from recollect.hot.layouts import Layouts
from recollect.hot.log import WriterLog
from recollect.records.block import Block, join_rows
from recollect.records.build import Changed, build_view, unchanged
from recollect.records.layout import Layout
from recollect.records.overlay import overlay
from recollect.view import Cut, Extent, Fact, FactIndex, Ids, View

SETTLED_NS = 1_000_000_000
"""How old a folder's time of change must be before it is believed: file systems count in ticks of some milliseconds."""
_live: weakref.WeakSet[HotStore] = weakref.WeakSet()


class HotStore:
    """The logs under one folder. Thread-safe; a forked child starts over with it.

    Logs that were written under older versions of the schema are read in the newest one's layout.
    """

    def __init__(self, folder: Path, layouts: Layouts, name: str = "") -> None:
        self.folder, self.layouts, self.name = folder, layouts, name
        self.start_over()
        _live.add(self)

    def start_over(self) -> None:
        """Forgets what was read. Another thread may have been reading when the process forked."""
        self.logs: dict[int, WriterLog] = {}
        self._lock = threading.RLock()
        self._latest = FactIndex()
        self._indexed: dict[int, int] = {}
        self._growing: list[WriterLog] = []
        self._scanned_ns = -1

    @property
    def layout(self) -> Layout:
        """What views made now have. Take it once, after the cut, for whatever must agree: a refresh may replace it."""
        return self.layouts.newest

    def refresh(self) -> None:
        """Looks for new writers, at every live writer's counter, and for a newer schema: two looks at the folder and
        one load per writer while nothing is new."""
        with self._lock:
            self._discover()
            ended = False
            for log in self._growing:
                log.refresh()
                ended = ended or log.sealed
            if ended:
                self._growing = [log for log in self._growing if not log.sealed]
            # Last: what was published under a newer schema, rows or facts, was published after that schema was made.
            self.layouts.refresh()

    def _discover(self) -> None:
        """Opens the logs of new writers. The folder's time of change says whether there can be any, unless it is so
        young that a change might not have moved it."""
        try:
            changed_ns = self.folder.stat().st_mtime_ns
        except FileNotFoundError:
            return
        if changed_ns == self._scanned_ns:
            return
        now_ns = time.time_ns()
        unborn = False
        for path in self.folder.iterdir():
            writer = -1 if path.name.startswith(".") else int(path.name, 16)
            if writer < 0 or writer in self.logs:
                continue
            if (path / "00000000.seg").exists():
                log = self.logs[writer] = WriterLog(path, self.layouts)
                self._growing.append(log)
            else:
                unborn = unborn or not (path / "sealed.json").exists()
        self._scanned_ns = -1 if unborn or now_ns - changed_ns < SETTLED_NS else changed_ns

    def cut(self) -> Cut:
        """What is published now, writers in the order of their ids."""
        self.refresh()
        logs = [self.logs[w] for w in sorted(self.logs)]
        stops = self.with_predecessors({log.writer: log.rows for log in logs})
        return Cut(
            tuple(Extent(w, 0, stop) for w, stop in stops.items() if stop),
            tuple((log.writer, log.facts) for log in logs if log.facts),
        )

    def with_predecessors(self, stops: dict[int, int]) -> dict[int, int]:
        """Counters that were read one after the other, raised until every resumed episode has the rows before it.

        Those were published before it went on, so looking again finds them. Where they are lost, because a log was
        copied while it grew, the rows that came after them are left out.
        """
        again = True
        while again:
            again = False
            for writer, stop in stops.items():
                for resumption in self.logs[writer].resumed.values():
                    for other, rows in resumption.after if resumption.row < stop else ():
                        if stops.get(other, 0) >= rows:
                            continue
                        again = True
                        if other in self.logs:
                            self.logs[other].refresh()
                            self.layouts.refresh()
                            stops[other] = self.logs[other].rows
                        if stops.get(other, 0) < rows:
                            stops[writer] = stop = min(stop, resumption.row)
        return stops

    def log(self, writer: int) -> WriterLog:
        if writer not in self.logs:
            self.refresh()
        if writer not in self.logs:
            raise NotFound(f"no writer {writer} in workspace {self.name!r}")
        return self.logs[writer]

    def facts(self, stops: tuple[tuple[int, int], ...]) -> list[Fact]:
        """Every fact of a cut, writer by writer."""
        out: list[Fact] = []
        for writer, stop in stops:
            out += self.log(writer).read_facts(stop)
        return out

    def index(self, stops: tuple[tuple[int, int], ...]) -> FactIndex:
        """The facts of a cut, and no others."""
        return FactIndex.of(self.facts(stops))

    def latest_facts(self, stops: tuple[tuple[int, int], ...]) -> FactIndex:
        """One index that grows: the facts of a cut, and whatever was asked for since. For recall, not for views."""
        with self._lock:
            for writer, stop in stops:
                for fact in self.log(writer).read_facts(stop)[self._indexed.get(writer, 0) :]:
                    self._latest.add(fact)
                self._indexed[writer] = max(stop, self._indexed.get(writer, 0))
            return self._latest

    def _changed(self, stops: tuple[tuple[int, int], ...]) -> Changed:
        """What lays the cut's step facts over its rows; nothing where it has none."""
        if any(self.log(writer).has_step_facts(stop) for writer, stop in stops):
            return overlay
        return unchanged

    def tails_by_writer(self, ids: Ids, layout: Layout | None = None) -> list[tuple[Ids, Block]]:
        """Waiting observations of the given steps, in `layout`, the newest when None: for each writer that has some,
        their ids and a block of them."""
        layout = layout or self.layout
        out = []
        for writer in np.unique(ids["writer"]).tolist():
            found, block = self.log(writer).tails_in(layout, ids[ids["writer"] == writer])
            if block is not None:
                out.append((found, block))
        return out

    def tails(self, ids: Ids, layout: Layout | None = None) -> tuple[Ids, Block | None]:
        """Waiting observations of the given steps, as one block in `layout`, the newest when None."""
        layout = layout or self.layout
        parts = self.tails_by_writer(ids, layout)
        if not parts:
            return ids[:0], None
        return np.concatenate([found for found, _ in parts]), join_rows(layout, [block for _, block in parts])

    def pieces(self, extents: tuple[Extent, ...], layout: Layout | None = None) -> list[tuple[Block, int, int]]:
        """The blocks of a list of extents, in order, in `layout`, the newest when None."""
        layout = layout or self.layout
        return [piece for e in extents for piece in self.log(e.writer).pieces_in(layout, e.start, e.stop)]

    def view(self, cut: Cut | None = None) -> View:
        """An immutable view of a cut, of all that is published when None."""
        cut = self.cut() if cut is None else cut
        self.layouts.refresh()
        layout = self.layout
        return build_view(
            layout,
            cut,
            self.pieces(cut.extents, layout),
            lambda ids: self.tails(ids, layout),
            lambda: self.index(cut.facts),
            self._changed(cut.facts),
            self.name,
        )


def _after_fork() -> None:
    for store in list(_live):
        store.start_over()


os.register_at_fork(after_in_child=_after_fork)
