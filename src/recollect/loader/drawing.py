"""What is drawn: views, one cursor on them, and the draws that wait for their turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from recollect.errors import ArgumentError
from recollect.loader.batch import Chunk
from recollect.loader.gather import packed_rows
from recollect.loader.options import Options
from recollect.loader.passes import PassCursor
from recollect.loader.plan import BatchPlan
from recollect.loader.waiting import wait_for_rows
from recollect.records.along import without_beheaded
from recollect.records.join import JoinedView
from recollect.samplers import Cursor, Draw, Sampler, State, Uniform, bound
from recollect.samplers.anchors import change, first_slots
from recollect.view import GrowingSource, Source, View

CHUNK_BYTES = 1 << 20
MAX_CHUNK = 64


@dataclass(eq=False, slots=True)
class Drawn:
    """A draw of one or several batches.

    Attributes:
        view: what it was drawn from; `plan` what is read of it.
        stop: the number after its last batch that may be handed out: fewer than were drawn once the view changes.
        chunk: its arrays, once they are gathered; `job` while a thread gathers them.
    """

    draw: Draw
    view: View
    plan: BatchPlan
    stop: int
    chunk: Chunk | None = None
    job: Future[Chunk] | None = None


class Drawing:
    """Draws batches in order. Runs on the consumer's thread alone.

    Whatever is interrupted, also by Ctrl-C, is made again or was done: a draw counts once it is in the queue, and a
    view once the cursor knows it.

    Attributes:
        source: what brings new views; None where only `advance` does. `lives` where views depend on the time.
        segments: (first batch, view) in order; `segment` is the place of the one that the cursor is on.
        cursor: None while `min_rows` are waited for.
        queue: draws from the batch to be delivered next on.
        came: the view up to which rows that came are counted, and how many those are.
        submit: gathers what was drawn in the background; None when nothing does.
    """

    def __init__(
        self, source: GrowingSource | None, view: View, sampler: Sampler, options: Options, *, lives: bool
    ) -> None:
        self.source, self.sampler, self.lives, self._options = source, sampler, lives, options
        self.segments: list[tuple[int, View]] = [(0, view)]
        self.segment = 0
        self.plan = BatchPlan.of(packed_rows(view).layout, options.fields, options.transforms, options.next_fields)
        self.queue: deque[Drawn] = deque()
        self.came: tuple[View | None, int] = (None, 0)
        self.submit: Callable[[Drawn], None] | None = None
        self.cursor: Cursor | None = None
        if not self._short_of(view):
            self.cursor = self.bind(view, None)
        elif not lives:
            raise ArgumentError(
                f"min_rows={options.min_rows} is more than the {len(view):,} rows that can be drawn from {view!r}",
                remedy="Draw from ws.live(), which grows, or ask for fewer",
            )
        self._size()
        self._lacking(view, 0)  # what is there now came before anything else

    @property
    def view(self) -> View:
        """The view that the newest draw came from."""
        return self.segments[self.segment][1]

    @property
    def known(self) -> Cursor:
        """The cursor. Raises ArgumentError while there is none."""
        if self.cursor is None:
            raise ArgumentError("nothing was drawn yet: min_rows are waited for", remedy="Call next() first")
        return self.cursor

    def bind(self, view: View, state: State | None) -> Cursor:
        """A cursor on a view."""
        o = self._options
        view = without_beheaded(view, self.plan.depth)
        if o.epochs is None:
            return bound(self.sampler, view, o.seed, state)
        if not isinstance(self.sampler, Uniform):
            raise ArgumentError("epochs= goes with Uniform only", value=self.sampler, remedy="Use steps=")
        if self.source is not None:
            return PassCursor(view, o.seed, self.source)
        return self.sampler.bind_epochs(view, o.seed, o.batch_size, o.epochs)

    def _size(self) -> None:
        """How many batches are drawn at a time, and whether so long before they are asked for."""
        o, plan = self._options, self.plan
        most = 4 if plan.is_ragged else MAX_CHUNK  # variable sizes are not known before they are read
        span = getattr(self.sampler, "span", None)
        rows = o.batch_size * (1 if span is None else span.length)
        bytes_ = max(1, plan.row_bytes * rows // o.world_size)
        self._ahead = o.ahead or max(1, min(most, CHUNK_BYTES // bytes_))
        self.is_ahead = self.source is None and not (self.cursor is not None and self.cursor.is_stateful)

    # -- draws ---------------------------------------------------------------------------------------------

    def fill(self, step: int, steps: int | None) -> None:
        """Draws what is to be drawn inside the `next()` that returns batch `step`.

        Batch `step` + `lag` and all before it; or, where that makes no difference, as many at a time as are gathered
        well together, and one more such draw for each thread.
        """
        o, queue = self._options, self.queue
        if self.cursor is None:
            self._start(step)
        most = o.threads if self.is_ahead else o.lag
        while len(queue) <= most:
            at = queue[-1].stop if queue else step
            if (steps is not None and at >= steps) or self.is_over(at):
                return
            if not self.is_ahead:
                if not self._look(at):
                    return
                stop = at + 1
            else:
                self._turn_to(at)
                stop = at + self._ahead if steps is None else min(at + self._ahead, steps)
                if self.segment + 1 < len(self.segments):
                    stop = min(stop, self.segments[self.segment + 1][0])
            self._add(self.known.draw(at, o.batch_size, stop - at), stop)

    def is_over(self, step: int) -> bool:
        """Whether a source that counts epochs has no batch of this number."""
        return self._options.epochs is not None and self.source is not None and bool(self.source.is_over(step))  # type: ignore[attr-defined]

    def _add(self, draw: Draw, stop: int) -> None:
        view, o = self.view, self._options
        plan = self.plan = self.plan.in_layout(packed_rows(view).layout, o.fields, o.next_fields)
        drawn = Drawn(draw, view, plan, stop)
        self.queue.append(drawn)
        if self.submit is not None:
            self.submit(drawn)

    def _turn_to(self, step: int) -> None:
        """Makes the cursor draw from the view that batch `step` belongs to."""
        while self.segment + 1 < len(self.segments) and self.segments[self.segment + 1][0] <= step:
            self.known.grow(without_beheaded(self.segments[self.segment + 1][1], self.plan.depth))
            self.segment += 1

    # -- growing sources -----------------------------------------------------------------------------------

    def _look(self, step: int) -> bool:
        """Makes the cursor draw batch `step` from the newest view. Views that no draw needs any more are let go of.

        False where that batch has to wait for rows while another one is there to be delivered.
        """
        if self.source is None:
            self._turn_to(step)
        elif self._see(self.source, step):
            if self.queue:
                return False
            self._wait(self.source, step)
        return True

    def _start(self, step: int) -> None:
        """Waits for `min_rows`, and binds the cursor."""
        assert self.source is not None
        self._wait(self.source, step)
        self.cursor = self.bind(self.view, None)
        self._size()

    def _see(self, source: Source, step: int) -> int:
        """Goes to the newest view, also where nothing may be drawn from it yet: a state names the newest one. Returns
        how many rows must come before batch `step` may be drawn."""
        view = source.at(step)
        lacking = self._lacking(view, step)
        if view is not self.view and (len(view) or not lacking):
            if self.cursor is not None:
                self.cursor.grow(without_beheaded(view, self.plan.depth))
            self.segments, self.segment = [(step, view)], 0
        return lacking

    def _wait(self, source: Source, step: int) -> None:
        o = self._options
        if o.rate is None or self._short_of(source.at(step)):
            what, timeout_s = f"min_rows={o.min_rows}", o.timeout_s
        else:
            what, timeout_s = str(o.rate), o.rate.timeout_s
        wait_for_rows(lambda: self._see(source, step), source, what=what, timeout_s=timeout_s)

    def _short_of(self, view: View) -> int:
        return 0 if self._options.min_rows is None else max(0, self._options.min_rows - len(view))

    def _lacking(self, view: View, step: int) -> int:
        o = self._options
        if o.rate is None:
            return self._short_of(view)
        before, inserted = self.came
        if view is not before:
            inserted += len(change(None if before is None else before.anchors, view.anchors).added)
            if before is not None:
                # Of rows that came and left the window between two looks it is not known any more which could be drawn.
                inserted += _passed(before, view)
            self.came = (view, inserted)
        return max(self._short_of(view), o.rate.missing(inserted, step * o.batch_size, o.batch_size))

    # -- going on ------------------------------------------------------------------------------------------

    def advance(self, view: View, at: int) -> None:
        """Draws batch `at` and those after it from a later view."""
        if self.segments[-1][0] == at and self.segment < len(self.segments) - 1:
            del self.segments[-1]
        self.segments.append((at, view))
        if self.is_ahead:
            while self.queue and self.queue[-1].draw.step >= at:
                self.queue.pop()
            if self.queue:
                self.queue[-1].stop = min(self.queue[-1].stop, at)

    def needed_views(self, step: int) -> list[tuple[int, View]]:
        """The views that batches from `step` on are drawn from, or were, and the first batch of each."""
        if self.source is None:
            first = max(k for k, (start, _) in enumerate(self.segments) if start <= step or k == 0)
            return self.segments[min(first, self.segment) :]  # the cursor's own, which it may yet grow from
        waiting = self.waiting(step)
        drawn = {id(d.view): (d.draw.step, d.view) for d in reversed(waiting)}
        order = dict.fromkeys(id(d.view) for d in waiting)
        older = [drawn[i] for i in order if i != id(self.view)]
        return [*older, self.segments[-1]]

    def waiting(self, step: int) -> list[Drawn]:
        """Draws of batches from `step` on that would not be made again as they were."""
        return [] if self.is_ahead else [d for d in self.queue if d.stop > step]

    def restart(
        self,
        segments: list[tuple[int, View]],
        place: int,
        waiting: list[tuple[Draw, View]],
        cursor: Cursor,
        came: int,
    ) -> None:
        """Goes on with other views and a cursor on the one at `place`, and with what was drawn and not delivered."""
        o, drawn = self._options, []
        for draw, view in waiting:
            plan = self.plan.in_layout(packed_rows(view).layout, o.fields, o.next_fields)
            drawn.append(Drawn(draw, view, plan, draw.step + len(draw.keys)))
        self.segments, self.segment, self.queue, self.cursor = segments, place, deque(drawn), cursor
        self.came = (segments[place][1], came)
        self._size()


def _passed(before: View, view: View) -> int:
    """How many rows came and left a window between two views, part by part."""
    if isinstance(view, JoinedView) and isinstance(before, JoinedView):
        return sum(_passed(before.given[name], part) for name, part in view.given.items())
    return max(0, first_slots(view)[0] - first_slots(before)[0] - len(before.rows))
