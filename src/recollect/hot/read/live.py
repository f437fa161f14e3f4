"""`LiveSource`: views of a workspace that grow while agents append.

A row's slot is its place in the order in which this source saw rows arrive; it never changes. Views share what they
have in common, so that a refresh costs what the new rows cost, and one look at each live writer's counter when there
are none (design/0006).
"""

from __future__ import annotations

from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recollect.errors import ArgumentError, CorruptionError, NotFound
from recollect.hot.format.holes import among
from recollect.hot.format.translate import translated
from recollect.hot.read.log import WriterLog
from recollect.hot.read.step_facts import StepFacts
from recollect.hot.read.store import HotStore
from recollect.records.block import Block
from recollect.records.grow import Growing
from recollect.records.grown import GrownView
from recollect.records.layout import Layout
from recollect.records.renewed import renewed
from recollect.view import Bool, Cut, Extent, Ids, StepId, View, hull, make_ids, merged
from recollect.view.narrow import Narrows
from recollect.view.reach import Ranges, within, without

SLICES = 64
"""Into how many parts the first window is cut: rows that were there before are ordered by time, part by part."""


class LiveSource(Narrows):
    """Successive views of a workspace. Belongs to one loader or thread.

    Get one from `Workspace.live()`. Where the schema evolves, the next view and all after it have the newest one; rows
    keep their slots, and views made before keep their schema.

    Attributes:
        last: how many of the newest rows may be read and drawn; all when None.
        is_alone: whether nobody but the calling thread appends.
    """

    def __init__(self, store: HotStore, last: int | None = None, is_alone: Callable[[], bool] = lambda: False) -> None:
        self._store, self.last, self.is_alone = store, last, is_alone
        self._begin(Growing(store.layout, last))
        if last is not None:
            with store.pinned():
                self._skip_to_newest(last)

    def _begin(
        self,
        rows: Growing,
        view: GrownView | None = None,
        seen: Mapping[int, int] | None = None,
        facts: tuple[tuple[int, int], ...] = (),
        steps: StepFacts | None = None,
        unplaced: Sequence[StepId] = (),
    ) -> None:
        """
        `_seen` counts what `_rows` took in, `_shown` what of it the newest view holds. Rows are counted only once they
        are taken in, so a look that failed is made again.
        """
        self._is_torn = True  # until everything is of one moment; who is interrupted goes back to the view
        self._view, self._shown = view, dict(seen or {})
        self._rows = rows
        self._is_behind = self._facts_are_new = False
        self._opened = -1
        self._lost = -1
        self._logs: dict[int, WriterLog] = {}
        self._seen = dict(self._shown)
        self._facts_seen, self._facts = dict(facts), facts
        self._growing: list[WriterLog] = []
        self._steps = StepFacts() if steps is None else steps
        self._unplaced = list(unplaced)
        self._vain: dict[StepId, tuple[int, bool] | None] = {}
        """Steps whose next observation was looked for in vain, and what was published of their logs then."""
        self._is_torn = False

    @property
    def _layout(self) -> Layout:
        return self._rows.layout

    # -- the source ----------------------------------------------------------------------------------------

    def at(self, step: int) -> View:
        """What is published now."""
        return self.refresh()

    def refresh(self) -> View:
        """A view of what is published now; the one before when nothing is new.

        Every append that returned is in it, unless it was evicted before anybody looked here; what was seen stays. It
        is immutable: what arrives later shows in later views only. Facts that are evicted before they are first asked
        for are not among its facts.

        Raises:
            CorruptionError: new rows are damaged.
        """
        with self._store.pinned():
            if self._is_torn:
                self._go_back()
            work = self._news([])
            if self._lost != self._store.lost:
                work = self._renew(work)
            evolved = self._layout is not self._store.layout
            if self._view is not None and not (work or evolved or self._is_behind or self._facts_are_new):
                return self._view
            self._is_behind = True
            self._evolve()
            self._take(work)
            if self._facts_are_new:
                self._facts = tuple(sorted(self._facts_seen.items()))
                self._facts_are_new = False
            self._change()
            view = self._make_view(self._rows, self._facts)
            self._view, self._shown = view, dict(self._seen)
            self._is_behind = False
            return view

    def _go_back(self) -> None:
        """To the newest view, after Ctrl-C between two changes of what belongs together."""
        if self._view is not None:
            self.restore([self.mark(self._view)])
        else:
            self._begin(Growing(self._layout, self.last))
            if self.last is not None:
                self._skip_to_newest(self.last)

    def pinned(self, cut: Cut, first: int = 0, schema: str | None = None) -> View:
        """The view of an earlier cut of this source, or of another one with the same `last`, made anew.

        Args:
            first: slot of the cut's first row: `view.rows.first` of the view that had the cut.
            schema: fingerprint of the version of the schema that the view has; the newest when None.

        Raises:
            NotFound: rows of the cut are gone, or never were here; or the workspace has no such version.
        """
        with self._store.pinned():
            rows, steps = self._rebuilt(cut, first, schema)
            rows.change(steps.values(steps))
            return self._make_view(rows, cut.facts)

    def mark(self, view: View) -> dict[str, Any]:
        """Names one of this source's views in plain values, for `restore`."""
        if not isinstance(view, GrownView):
            raise ArgumentError("not a view of this source", value=view)
        return {
            "cut": view.cut.to_dict(),
            "first": view.moment.first,
            "schema": view.schema.fingerprint,
            "seen": [[str(writer), seq] for writer, seq in self._shown.items()],
        }

    def restore(self, marks: Sequence[Mapping[str, Any]]) -> list[View]:
        """The views that the marks name, each under the schema that it had. The source begins again with the last one:
        later views grow from it.

        Raises:
            NotFound: rows of a view are gone, or never were here; or the workspace has no such version of the schema.
        """
        with self._store.pinned():
            *older, newest = marks
            views = [self.pinned(Cut.from_dict(m["cut"]), m["first"], m["schema"]) for m in older]
            cut = Cut.from_dict(newest["cut"])
            rows, steps = self._rebuilt(cut, newest["first"], newest["schema"])
            seen = {int(writer): seq for writer, seq in newest["seen"]}
            unplaced = [i for i in rows.change(steps.values(steps)) if i.seq >= seen.get(i.writer, 0)]
            steps.prune(rows.find, unplaced)
            view = self._make_view(rows, cut.facts)
            self._begin(rows, view, seen, cut.facts, steps, unplaced)
            return [*views, view]

    # -- rows ----------------------------------------------------------------------------------------------

    def _news(self, work: list[Extent]) -> list[Extent]:
        """Rows published that are neither taken in nor in `work`, writer by writer. Facts are noted too."""
        store = self._store
        store.refresh()
        known: dict[int, int] = {}
        for e in work:
            known[e.writer] = max(e.stop, known.get(e.writer, 0))
        if self._opened != store.opened:
            self._open_logs(known)
        out = []
        ended = set()
        for log in self._growing:
            sealed = log.sealed  # first: what a sealed log has is then all there will be
            writer, rows, facts = log.writer, log.rows, log.facts
            seen = self._seen[writer]
            if rows > seen and not log.gone:
                start = max(seen, known.get(writer, 0), log.first.row)
                if there := log.kept(start, rows):
                    out += [Extent(writer, *part) for part in there]
                elif writer not in known:
                    self._seen[writer] = rows  # evicted, or gone otherwise
            elif sealed:
                ended.add(writer)
            if facts > self._facts_seen.get(writer, 0):
                self._note_facts(log, facts)
        if ended:
            self._growing = [log for log in self._growing if log.writer not in ended]
        return self._without_lost(out) if any(self._logs[e.writer].resumed for e in out) else out

    def _without_lost(self, work: list[Extent]) -> list[Extent]:
        """Leaves out what came after rows that are lost, as `HotStore.cut` does; it is looked for again."""
        logs = self._store.logs
        stops = self._store.with_predecessors({writer: log.rows for writer, log in list(logs.items())})
        cut = [Extent(e.writer, e.start, min(e.stop, stops.get(e.writer, e.stop))) for e in work]
        return [e for e in cut if e.start < e.stop]

    def _open_logs(self, at_work: Container[int]) -> None:
        """Takes note of new logs, and forgets those that are gone: a writer per episode would leave one each. Those
        that are `at_work` are still taken in, and are forgotten the next time."""
        store = self._store
        opened = store.opened
        self._logs = {writer: log for writer, log in sorted(store.logs.items()) if not log.gone}
        for counts in (self._seen, self._facts_seen):
            for writer in [w for w in counts if not (w in self._logs or w in at_work)]:
                del counts[writer]
        self._unplaced = self._may_be_placed(at_work)
        for writer in self._logs:  # in a forked child those that are known are opened anew
            self._seen.setdefault(writer, 0)
        self._growing = list(self._logs.values())
        self._opened = opened

    def _may_be_placed(self, at_work: Container[int]) -> list[StepId]:
        """Of the steps whose facts wait for them, those that are here or may still come."""
        gone = [i for i in self._unplaced if not (i.writer in self._logs or i.writer in at_work)]
        if not gone:
            return self._unplaced
        slots = self._rows.find(make_ids([i.writer for i in gone], [i.seq for i in gone]))
        lost = {gone[k] for k in np.flatnonzero(slots < 0).tolist()}
        return [i for i in self._unplaced if i not in lost]

    def _take(self, work: list[Extent]) -> None:
        """Takes rows in, each after its predecessor: a resumed episode goes on in another writer's log, which may have
        been looked at before the log it goes on from.

        A predecessor was published before its successor was. So a row whose predecessor does not come with a second
        look at all counters has none here: it was evicted, or lies before the window.
        """
        orphans: set[tuple[int, int]] = set()
        while work:
            rest: list[Extent] = []
            blocked: set[int] = set()
            for e in work:
                done = 0 if e.writer in blocked else self._add(e, strict=True)
                if done < e.stop - e.start:
                    blocked.add(e.writer)
                    rest.append(Extent(e.writer, e.start + done, e.stop))
            if merged(rest) == merged(work):
                # The first of each writer, whose rows keep their order.
                first = {e.writer: e for e in reversed(rest)}
                heads = [e for e in rest if e is first[e.writer]]
                alone = next((e for e in heads if (e.writer, e.start) in orphans), None)
                if alone is not None:
                    self._add(Extent(alone.writer, alone.start, alone.start + 1), strict=False)
                    k = rest.index(alone)
                    rest[k] = Extent(alone.writer, alone.start + 1, alone.stop)
                else:
                    orphans = {(e.writer, e.start) for e in heads}
                    rest += self._news(rest)
                    self._evolve()
            work = [e for e in rest if e.stop > e.start]

    def _add(self, extent: Extent, *, strict: bool) -> int:
        pieces = self._store.pieces((extent,), self._layout)
        self._is_torn = True
        done = self._rows.add(extent.writer, extent.start, pieces, strict)
        self._seen[extent.writer] = max(self._seen[extent.writer], extent.start + done)
        self._is_torn = False
        return done

    def _evolve(self) -> None:
        """Goes on in the newest schema's layout. It is looked for after the counters, so that rows and facts that were
        found by now are of no newer one."""
        layout, old = self._store.layout, self._layout
        if layout is not old:

            def translate(block: Block, rows: NDArray[np.int64]) -> Block:
                return translated(block, old, layout, rows)

            rows = self._rows.evolved(layout, translate)
            self._unplaced = list(self._steps)  # first: rows that have no changed copies yet must get them
            self._rows = rows

    def _skip_to_newest(self, last: int) -> None:
        """Begins with the newest rows of all writers by time, as many as the window holds."""
        size = max(1, last // SLICES)
        ends = {w: (e.start, e.stop) for w, e in hull(self._store.cut().extents).items()}
        self._evolve()
        times = {w: self._time(w, stop - 1) for w, (_, stop) in ends.items()}
        taken: list[Extent] = []
        need = last
        while need and times:
            writer = max(times, key=lambda w: (times[w], w))
            start, stop = ends[writer]
            begin = max(start, stop - min(size, need))
            taken.append(Extent(writer, begin, stop))
            need -= stop - begin
            ends[writer] = (start, begin)
            if begin > start:
                times[writer] = self._time(writer, begin - 1)
            else:
                del times[writer]
        for w, (_, stop) in ends.items():
            self._seen[w] = max((e.stop for e in taken if e.writer == w), default=stop)
        logs = self._store.logs
        self._take([Extent(e.writer, *part) for e in taken[::-1] for part in logs[e.writer].kept(e.start, e.stop)])

    def _renew(self, work: list[Extent]) -> list[Extent]:
        """Puts blank rows where rows that were taken in are gone since, each at its slot, and leaves those out that
        were to be taken in."""
        self._lost = self._store.lost
        logs = self._store.logs
        holes = {writer: log.holes for writer, log in list(logs.items()) if log.holes.holes}
        if any(w in self._seen and h.rows and h.rows[0][0] < self._seen[w] for w, h in holes.items()):
            self._is_torn = True

            def unfollowed(ids: Ids) -> Bool:
                out = np.zeros(len(ids), np.bool_)
                for w, h in holes.items():
                    out |= (ids["writer"] == w) & (among(h.unfollowed, ids["seq"]) | among(h.rows, ids["seq"]))
                return out

            def kept(e: Extent) -> Ranges:
                return without(((e.start, e.stop),), holes[e.writer].rows if e.writer in holes else ())

            self._steps.forget(lambda i: i.writer in holes and bool(within(holes[i.writer].rows, i.seq, i.seq + 1)))
            self._rows = renewed(self._rows, kept, unfollowed)
            self._unplaced, self._vain = list(self._steps), {}
            self._is_behind, self._is_torn = True, False
        return [Extent(e.writer, *part) for e in work for part in logs[e.writer].kept(e.start, e.stop)]

    def _time(self, writer: int, seq: int) -> int:
        ((block, row, _),) = self._store.log(writer).pieces(seq, seq + 1)
        return int(block.records["time"][row])

    # -- facts ---------------------------------------------------------------------------------------------

    def _note_facts(self, log: WriterLog, stop: int) -> None:
        """Those about steps are kept, to be laid over their rows. Noting some twice changes nothing."""
        found = log.fact_pieces(self._facts_seen.get(log.writer, 0), stop).about_steps()
        if found:
            self._store.layouts.refresh()  # another thread may just have read the counter and not yet looked for it
        for fact in found:
            assert fact.step is not None
            self._steps.add(fact)
            self._unplaced.append(fact.step)
        self._facts_are_new = True  # first
        self._facts_seen[log.writer] = stop

    def _change(self) -> None:
        """Lays new step facts over their rows. A fact may be seen before its step is; it then waits."""
        if self._unplaced:
            self._is_torn = True
            left = self._rows.change(self._steps.values(self._unplaced))
            self._is_torn = False
            self._unplaced = [i for i in left if i.seq >= self._seen.get(i.writer, 0)]
            self._steps.prune(self._rows.find, self._unplaced)

    # -- views ---------------------------------------------------------------------------------------------

    def _make_view(self, rows: Growing, facts: tuple[tuple[int, int], ...]) -> GrownView:
        store = self._store
        anchors = rows.anchors(lambda ids: self._tails(ids, rows.layout))
        return GrownView(anchors, facts, lambda: store.index(facts), store.name)

    def _tails(self, ids: Ids, layout: Layout) -> list[tuple[Ids, Block]]:
        """Observations that wait after the given steps. Those that were not found, because they are damaged, are looked
        for again only once more is published of their log."""
        vain: dict[StepId, tuple[int, bool] | None] = {}
        if self._vain:
            every = [StepId(*i) for i in ids.tolist()]
            vain = {i: seen for i in every if i in self._vain and (seen := self._vain[i]) == self._published(i.writer)}
            ids = ids[[i not in vain for i in every]]
        published = {w: self._published(w) for w in np.unique(ids["writer"]).tolist()}  # first
        out = self._store.tails_by_writer(ids, layout) if len(ids) else []
        if sum(len(found) for found, _ in out) < len(ids):
            have = {i for found, _ in out for i in found.tolist()}
            vain |= {StepId(*i): published[i[0]] for i in ids.tolist() if i not in have}
        self._vain = vain
        return out

    def _published(self, writer: int) -> tuple[int, bool] | None:
        """The rows of a log, and whether there can be no more; None for one that is gone."""
        log = self._store.logs.get(writer)
        return None if log is None else (log.rows, log.sealed)

    def _rebuilt(self, cut: Cut, first: int, schema: str | None) -> tuple[Growing, StepFacts]:
        """The rows of a cut, and its step facts."""
        self._store.refresh()
        layout = self._store.layout if schema is None else self._store.layouts.of(schema)
        if layout is None:
            raise NotFound(
                f"workspace {self._store.name!r} has no version {schema} of its schema",
                remedy="The state was taken on another workspace; begin with a new loader",
            )
        rows = Growing(layout, self.last, first)
        for e in cut.extents:
            try:
                pieces = self._store.pieces((e,), layout)
            except (CorruptionError, NotFound) as error:
                raise NotFound(
                    f"workspace {self._store.name!r} has no rows {e.start} to {e.stop} of writer {e.writer} any more",
                    value=str(error),
                    remedy="They were evicted since, or the cut is of another workspace; begin with a new loader",
                ) from error
            rows.add(e.writer, e.start, pieces, strict=False)
        steps = StepFacts()
        for writer, stop in cut.facts:
            log = self._store.logs.get(writer)  # one that is gone held none about rows that are there
            for fact in () if log is None else log.fact_pieces(0, stop).about_steps():
                steps.add(fact)
        return rows, steps
