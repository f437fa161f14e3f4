"""Every writer's log of one workspace, read together."""

from __future__ import annotations

import mmap
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from recollect.errors import CorruptionError, NotFound, StoreError
from recollect.hot.format import evicted, first, seal
from recollect.hot.format.evicted import Evicted, read_evicted, signature
from recollect.hot.format.files import in_our_words, writers_folders
from recollect.hot.format.layouts import Layouts
from recollect.hot.format.targets import read_home
from recollect.hot.read import catalog
from recollect.hot.read.catalog import Catalog
from recollect.hot.read.log import WriterLog
from recollect.hot.read.sidecar import Later
from recollect.records.block import Block, join_rows
from recollect.records.build import Changed, build_view, unchanged
from recollect.records.layout import Layout
from recollect.records.overlay import overlay
from recollect.view import Cut, EpisodeKey, Extent, Fact, FactIndex, Ids, View
from recollect.view.reach import Ranges, within

SETTLED_NS = 1_000_000_000
"""How old a folder's time of change must be before it is believed: file systems count in ticks of some milliseconds."""
_live: weakref.WeakSet[HotStore] = weakref.WeakSet()


class State(NamedTuple):
    """What a store held at one moment.

    Attributes:
        cut: what was published.
        facts: writer → what reads the facts of the cut, whatever is evicted meanwhile.
        firsts: writer → row that its log began with.
        gone_rows: rows of the logs that were gone.
        holes: writer → rows behind that which are gone, of the logs that have such.
    """

    cut: Cut
    facts: dict[int, Callable[[], list[Fact]]]
    firsts: dict[int, int]
    gone_rows: int
    holes: dict[int, Ranges]


class HotStore:
    """The logs under one folder. Thread-safe; a forked child starts over with it.

    Logs that were written under older versions of the schema are read in the newest one's layout.

    Attributes:
        logs: by writer; one that is gone is among them only while somebody has the store pinned.
        opened: logs opened so far; it never goes back, not even in a forked child.
        evicted: what is known of logs that are gone.
        lost: counts how often rows or facts were found to be gone of logs that are there.
    """

    def __init__(self, folder: Path, layouts: Layouts, name: str = "") -> None:
        self.folder, self.layouts, self.name = folder, layouts, name
        self.catalog = Catalog(folder.parent / catalog.NAME, self)
        self._note = str(folder.parent / evicted.NAME)
        self.opened = 0
        self.start_over()
        _live.add(self)

    def start_over(self) -> None:
        """Forgets what was read. Another thread may have been reading when the process forked."""
        self.logs: dict[int, WriterLog] = {}
        self._lock = threading.RLock()
        self._growing: list[WriterLog] = []
        self._scanned_ns = -1
        self.evicted = Evicted()
        self.lost = 0
        self._seen: tuple[int, int] | None = None
        self._tick = 0
        self._pins: dict[object, int] = {}
        self._mine = threading.local()
        """`tick` of the oldest pin of the thread that asks."""
        self._holds = False
        """Whether something evicted is kept readable for those who have the store pinned."""
        self._unlinked: list[weakref.ref[mmap.mmap]] = []
        self._ended: dict[int, tuple[int, int]] = {}

    @property
    def layout(self) -> Layout:
        """What views made now have. Take it once, after the cut, for whatever must agree: a refresh may replace it."""
        return self.layouts.newest

    def refresh(self) -> None:
        """Looks for evictions, for new writers, at every live writer's counter, and for a newer schema: three looks at
        the folder and one load per writer while nothing is new.

        Raises:
            CorruptionError: a note or a segment is damaged.
            StoreError: the folder cannot be read.
        """
        try:
            with self._lock:
                self._notice()
                self._discover()
                ended = False
                for log in self._growing:
                    log.refresh()
                    ended = ended or log.sealed
                if ended:
                    self._growing = [log for log in self._growing if not log.sealed]
                # Last: what was published under a newer schema, rows or facts, was published after that schema was
                # made.
                self.layouts.refresh()
        except OSError as e:
            if isinstance(e, StoreError):
                raise
            raise in_our_words("reading", self.folder, e) from e

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
        for path in writers_folders(self.folder):
            writer = int(path.name, 16)
            if writer in self.logs or writer in self.evicted.leaving:
                continue
            if any((path / name).exists() for name in ("00000000.seg", first.NAME)) or _was_log(path):
                log = self.logs[writer] = WriterLog(path, self.layouts, self._mine)
                self._growing.append(log)
                self.opened += 1
            else:
                unborn = unborn or not (path / seal.NAME).exists()
        self._scanned_ns = -1 if unborn or now_ns - changed_ns < SETTLED_NS else changed_ns

    def cut(self) -> Cut:
        """What is published now, writers in the order of their ids."""
        with self._lock:
            return self._published()[0]

    def state(self) -> State:
        """What is published now, and what was evicted."""
        with self._lock:
            cut, starts = self._published()
            facts = {writer: self.logs[writer].later_facts(stop) for writer, stop in cut.facts}
            holes = {w: within(log.holes.rows, starts[w], log.rows) for w, log in self.logs.items() if w in starts}
            return State(cut, facts, starts, self.evicted.rows, {w: rows for w, rows in holes.items() if rows})

    def _published(self) -> tuple[Cut, dict[int, int]]:
        """The cut, and the row that each log begins with."""
        self.refresh()
        logs = [self.logs[w] for w in sorted(self.logs) if not self.logs[w].gone]
        stops = self.with_predecessors({log.writer: log.rows for log in logs})
        starts = {w: self.logs[w].first.row for w in stops}
        cut = Cut(
            tuple(Extent(w, a, b) for w, stop in sorted(stops.items()) for a, b in self.logs[w].kept(starts[w], stop)),
            tuple((log.writer, log.facts) for log in logs if log.facts),
        )
        return cut, starts

    def with_predecessors(self, stops: dict[int, int]) -> dict[int, int]:
        """Counters that were read one after the other, raised until every resumed episode has the rows before it.

        Those were published before it went on, so looking again finds them. Where they are lost, because a log was
        copied while it grew, the rows that came after them are left out. Those that were evicted are not missed.
        """
        again = True
        while again:
            again = False
            for writer in list(stops):
                log, stop = self.logs.get(writer), stops[writer]
                found = [] if log is None else [r for turns in list(log.resumed.values()) for r in turns]
                for resumption in found:
                    for other, rows in resumption.after if resumption.row < stop else ():
                        if stops.get(other, 0) >= rows or self._is_gone(other):
                            continue
                        again = True
                        before = self.logs.get(other)
                        if before is not None:
                            before.refresh()
                            self.layouts.refresh()
                            stops[other] = before.rows
                        if stops.get(other, 0) < rows:
                            stops[writer] = stop = min(stop, resumption.row)
        return stops

    def _is_gone(self, writer: int) -> bool:
        """Whether a log was evicted whole, as far as is known: logs that are gone are counted, not listed."""
        log = self.logs.get(writer)
        return bool(self.evicted.writers) if log is None else log.gone

    def log(self, writer: int) -> WriterLog:
        if writer not in self.logs:
            self.refresh()
        if writer not in self.logs:
            known = f"; {self.evicted.writers} others were evicted whole" if self.evicted.writers else ""
            raise NotFound(f"no writer {writer} in workspace {self.name!r}{known}", remedy=self.elsewhere())
        return self.logs[writer]

    def last_time(self, extent: Extent) -> int:
        """When the last row of an extent was written, nanoseconds since 1970."""
        stop, time_ns = self._ended.get(extent.writer, (-1, 0))
        if stop != extent.stop:
            ((block, row, _),) = self.log(extent.writer).pieces(extent.stop - 1, extent.stop)
            time_ns = int(block.records["time"][row])
            self._ended[extent.writer] = (extent.stop, time_ns)
        return time_ns

    def close(self) -> None:
        """Gives up the index's file; it is opened again when it is next asked."""
        self.catalog.file.close()

    def are_sealed(self, writers: Iterable[int]) -> bool:
        """Whether all these writers are gone for good."""
        logs = self.logs
        return all(logs[w].sealed if w in logs else self._is_gone(w) for w in writers)

    def growing_elsewhere(self) -> set[EpisodeKey]:
        """Episodes that were resumed in logs which may still grow."""
        return {key for log in list(self.logs.values()) if not log.sealed for key in list(log.resumed)}

    # -- eviction ------------------------------------------------------------------------------------------

    def pinned(self) -> Pin:
        """While it lasts, what a cut made within names can be read, whatever is evicted meanwhile."""
        return Pin(self)

    def _pin(self, pin: object) -> int | None:
        """Returns the tick that the thread had pinned before, None for none."""
        with self._lock:
            try:
                self._notice()  # what went before somebody asks is gone for him
            except OSError as e:
                if isinstance(e, StoreError):
                    raise
                raise in_our_words("reading", self.folder, e) from e
            before: int | None = getattr(self._mine, "tick", None)
            self._pins[pin] = self._tick
            self._mine.tick = self._tick if before is None else before
            return before

    def _unpin(self, pin: object, before: int | None) -> None:
        with self._lock:
            self._pins.pop(pin, None)  # a forked child has begun anew
            self._mine.tick = before
            if self._holds:
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
        """Looks whether anything was evicted: one system call, as long as nothing was."""
        if self._seen is None and not os.access(self._note, os.F_OK):  # a `stat` would raise, which takes longer
            return
        seen = signature(self._note)
        if seen == self._seen:
            return
        self._seen, self._tick = seen, self._tick + 1
        self.evicted = read_evicted(self.folder)
        for log in self.logs.values():
            before = log.holes
            log.notice(self._tick, gone=log.writer in self.evicted.leaving)
            self.lost += log.holes is not before
            self._unlinked += log.held.unlinked
            log.held.unlinked.clear()
        self._unlinked = [ref for ref in self._unlinked if ref() is not None]
        self._release()

    def require_current(self) -> None:
        """Raises Later where rows or facts went since the last look: what was read then may hold what was purged."""
        try:
            now = signature(self._note)
        except OSError:
            now = None
        if now != self._seen:
            raise Later

    def _release(self) -> None:
        tick = min(self._pins.values(), default=self._tick)
        self._holds = False
        for log in list(self.logs.values()):
            log.release(tick)
            if log.held:
                self._holds = True
            elif log.gone:
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
        return [(log, stop) for writer, stop in stops if (log := self.logs.get(writer)) is not None]

    def index(self, stops: tuple[tuple[int, int], ...]) -> FactIndex:
        """The facts of a cut, and no others."""
        return FactIndex.of(self.facts(stops))

    def _changed(self, stops: tuple[tuple[int, int], ...]) -> Changed:
        """What lays the cut's step facts over its rows; nothing where it has none."""
        if any(log.fact_pieces(0, stop).has_any_about_steps() for log, stop in self._fact_logs(stops)):
            return overlay
        return unchanged

    def tails_by_writer(self, ids: Ids, layout: Layout | None = None) -> list[tuple[Ids, Block]]:
        """Waiting observations of the given steps, in `layout`, the newest when None: for each writer that has some,
        their ids and a block of them."""
        layout = layout or self.layout
        out = []
        for writer in np.unique(ids["writer"]).tolist():
            if writer not in self.logs and self._is_gone(writer):
                continue  # a view that grows may hold its steps for long
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
        """The blocks of a list of extents, in order, in `layout`, the newest when None. Raises NotFound for rows that
        were evicted."""
        layout = layout or self.layout
        try:
            return [piece for e in extents for piece in self.log(e.writer).pieces_in(layout, e.start, e.stop)]
        except NotFound as e:
            if e.remedy is None:
                raise NotFound(f"{e.message} from workspace {self.name!r}", remedy=self.elsewhere()) from None
            raise

    def view(self, cut: Cut | None = None) -> View:
        """An immutable view of a cut, of all that is published when None. Raises NotFound for evicted rows."""
        with self.pinned():
            if cut is None:
                state = self.state()
                cut, facts = state.cut, list(state.facts.values())
            else:
                facts = [log.later_facts(stop) for log, stop in self._fact_logs(cut.facts)]
            self.layouts.refresh()
            layout = self.layout
            return build_view(
                layout,
                cut,
                self.pieces(cut.extents, layout),
                lambda ids: self.tails(ids, layout),
                lambda: FactIndex.of(fact for read in facts for fact in read()),
                self._changed(cut.facts),
                self.name,
            )


class Pin:
    """What `HotStore.pinned` returns; a class of its own, because a refresh with nothing new takes one."""

    __slots__ = ("_before", "_store")

    def __init__(self, store: HotStore) -> None:
        self._store = store
        self._before: int | None = None

    def __enter__(self) -> None:
        self._before = self._store._pin(self)

    def __exit__(self, *error: object) -> None:
        self._store._unpin(self, self._before)


def _after_fork() -> None:
    for store in list(_live):
        store.start_over()


os.register_at_fork(after_in_child=_after_fork)


def _was_log(path: Path) -> bool:
    """Whether a log without its first segment had one, so that reading it says what is missing. A writer that died
    before it had a log leaves an empty seal; a damaged one is made anew by the next recovery."""
    try:
        sealed = seal.read_seal(path)
    except CorruptionError:
        return True
    if sealed is None:
        return next(path.glob("*.seg"), None) is not None
    return bool(sealed.segments or sealed.lost or sealed.lost_facts or sealed.lost_segments)
