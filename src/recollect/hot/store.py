"""Every writer's log of one workspace, read together."""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from recollect.errors import NotFound
from recollect.hot.evicted import NAME, Evicted, read_evicted, signature
from recollect.hot.log import WriterLog
from recollect.hot.targets import read_home
from recollect.records.block import Block, join_rows
from recollect.records.build import Changed, build_view, unchanged
from recollect.records.layout import Layout
from recollect.records.overlay import overlay
from recollect.view import Cut, Extent, Fact, FactIndex, Ids, View

_live: weakref.WeakSet[HotStore] = weakref.WeakSet()


class State(NamedTuple):
    """What a store held at one moment.

    Attributes:
        cut: what was published.
        facts: writer → what reads the facts of the cut, whatever is evicted meanwhile.
        firsts: writer → row that its log began with.
        gone_rows: rows of the logs that were gone.
    """

    cut: Cut
    facts: dict[int, Callable[[], list[Fact]]]
    firsts: dict[int, int]
    gone_rows: int


class HotStore:
    """The logs under one folder. Thread-safe; a forked child starts over with it."""

    def __init__(self, folder: Path, layout: Layout, name: str = "") -> None:
        self.folder, self.layout, self.name = folder, layout, name
        self._note = folder.parent / NAME
        self.start_over()
        _live.add(self)

    def start_over(self) -> None:
        """Forgets what was read. Another thread may have been reading when the process forked."""
        self.logs: dict[int, WriterLog] = {}
        self._lock = threading.RLock()
        self._latest = FactIndex()
        self._indexed: dict[int, int] = {}
        self.evicted = Evicted()
        self._seen: tuple[int, int] | None = None
        self._tick = 0
        self._pins: dict[object, int] = {}
        self._unlinked: list[weakref.ref[mmap.mmap]] = []

    def refresh(self) -> None:
        """Looks for new writers and at every live writer's counter."""
        with self._lock:
            self._notice()
            if self.folder.is_dir():
                for path in self.folder.iterdir():
                    writer = -1 if path.name.startswith(".") else int(path.name, 16)
                    if writer >= 0 and writer not in self.logs and self._begins(path, writer):
                        self.logs[writer] = WriterLog(path, self.layout)
            for log in self.logs.values():
                log.refresh()

    def _begins(self, path: Path, writer: int) -> bool:
        """Whether there is a log in a writer's folder, and it is not about to go."""
        there = (path / "00000000.seg").exists() or (path / "first.json").exists()
        return there and writer not in self.evicted.leaving

    def cut(self) -> Cut:
        """What is published now, writers in the order of their ids."""
        return self.state().cut

    def state(self) -> State:
        """What is published now, and what was evicted."""
        with self._lock:
            self.refresh()
            logs = [self.logs[w] for w in sorted(self.logs) if not self.logs[w].gone]
            stops = self._with_predecessors({log.writer: log.rows for log in logs})
            starts = {log.writer: log.first.row for log in logs}
            cut = Cut(
                tuple(Extent(w, starts[w], stop) for w, stop in stops.items() if stop > starts[w]),
                tuple((log.writer, log.facts) for log in logs if log.facts),
            )
            facts = {writer: self.logs[writer].later_facts(stop) for writer, stop in cut.facts}
            return State(cut, facts, starts, self.evicted.rows)

    def _with_predecessors(self, stops: dict[int, int]) -> dict[int, int]:
        """Counters that were read one after the other, raised until every resumed episode has the rows before it.

        Those were published before it went on, so looking again finds them. Where they are lost, because a log was
        copied while it grew, the rows that came after them are left out. Those whose log was evicted are not missed.
        """
        again = True
        while again:
            again = False
            for writer, stop in stops.items():
                for resumption in self.logs[writer].resumed.values():
                    for other, rows in resumption.after if resumption.row < stop else ():
                        if stops.get(other, 0) >= rows or (other not in self.logs and self.evicted.writers):
                            continue
                        again = True
                        if other in self.logs:
                            self.logs[other].refresh()
                            stops[other] = self.logs[other].rows
                        if stops.get(other, 0) < rows:
                            stops[writer] = stop = min(stop, resumption.row)
        return stops

    def log(self, writer: int) -> WriterLog:
        if writer not in self.logs:
            self.refresh()
        if writer not in self.logs:
            known = f"; {self.evicted.writers} others were evicted whole" if self.evicted.writers else ""
            raise NotFound(f"no writer {writer} in workspace {self.name!r}{known}", remedy=self.elsewhere())
        return self.logs[writer]

    # -- eviction ------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def pinned(self) -> Iterator[None]:
        """While it lasts, what a cut made within names can be read, whatever is evicted meanwhile."""
        token = object()
        with self._lock:
            self._pins[token] = self._tick
        try:
            yield
        finally:
            with self._lock:
                del self._pins[token]
                self._release()

    def look_again(self) -> None:
        """Reads every log's beginning anew."""
        with self._lock:
            self._seen = (-1, -1)
            self.refresh()

    @property
    def unlinked_bytes(self) -> int:
        """Disk space of evicted segments that maps of this process still hold, those of views included."""
        return sum(len(m) for ref in self._unlinked if (m := ref()) is not None)

    def _notice(self) -> None:
        """Looks whether anything was evicted: one `stat`, as long as nothing was."""
        seen = signature(self._note)
        if seen == self._seen:
            return
        self._seen, self._tick = seen, self._tick + 1
        self.evicted = read_evicted(self.folder)
        for log in self.logs.values():
            log.notice(self._tick, gone=log.writer in self.evicted.leaving)
            self._unlinked += log.unlinked
            log.unlinked.clear()
        self._unlinked = [ref for ref in self._unlinked if ref() is not None]
        self._latest, self._indexed = FactIndex(), {}
        self._release()

    def _release(self) -> None:
        tick = min(self._pins.values(), default=self._tick)
        for log in list(self.logs.values()):
            log.release(tick)
            if log.gone and not log.is_held:
                del self.logs[log.writer]

    def elsewhere(self) -> str | None:
        """Where evicted rows can be found; None as long as nothing was evicted."""
        if self._seen is None:
            return None
        home = read_home(self.folder.parent)
        return None if home is None else f"Rows that were promoted are in the home buffer {home!r}"

    # -- rows and facts ------------------------------------------------------------------------------------

    def facts(self, stops: tuple[tuple[int, int], ...]) -> list[Fact]:
        """Every fact of a cut, writer by writer."""
        return [fact for log, stop in self._fact_logs(stops) for fact in log.read_facts(stop)]

    def _fact_logs(self, stops: tuple[tuple[int, int], ...]) -> list[tuple[WriterLog, int]]:
        """The logs that hold a cut's facts. One that is gone held none about rows that are there."""
        if any(writer not in self.logs for writer, _ in stops):
            self.refresh()
        return [(self.logs[writer], stop) for writer, stop in stops if writer in self.logs]

    def index(self, stops: tuple[tuple[int, int], ...]) -> FactIndex:
        """The facts of a cut, and no others."""
        return FactIndex.of(self.facts(stops))

    def latest_facts(self, stops: tuple[tuple[int, int], ...]) -> FactIndex:
        """One index that grows: the facts of a cut, and whatever was asked for since. For recall, not for views."""
        with self._lock:
            for log, stop in self._fact_logs(stops):
                for fact in log.read_facts(stop, self._indexed.get(log.writer, 0)):
                    self._latest.add(fact)
                self._indexed[log.writer] = max(stop, self._indexed.get(log.writer, 0))
            return self._latest

    def _changed(self, stops: tuple[tuple[int, int], ...]) -> Changed:
        """What lays the cut's step facts over its rows; nothing where it has none."""
        if any(log.has_step_facts(stop) for log, stop in self._fact_logs(stops)):
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
        """The blocks of a list of extents, in order. Raises NotFound for rows that were evicted."""
        try:
            return [piece for e in extents for piece in self.log(e.writer).pieces(e.start, e.stop)]
        except NotFound as e:
            if e.remedy is None:
                raise NotFound(f"{e.message} from workspace {self.name!r}", remedy=self.elsewhere()) from None
            raise

    def view(self, cut: Cut | None = None) -> View:
        """An immutable view of a cut, of all that is published when None. Raises NotFound for evicted rows."""
        with self.pinned():
            if cut is None:
                cut, later, _, _ = self.state()
                facts = list(later.values())
            else:
                facts = [log.later_facts(stop) for log, stop in self._fact_logs(cut.facts)]
            return build_view(
                self.layout,
                cut,
                self.pieces(cut.extents),
                self.tails,
                lambda: FactIndex.of(fact for read in facts for fact in read()),
                self._changed(cut.facts),
                self.name,
            )


def _after_fork() -> None:
    for store in list(_live):
        store.start_over()


os.register_at_fork(after_in_child=_after_fork)
