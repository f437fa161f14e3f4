"""Reading steps as they are written: every step once, each writer's in its own order.

Rows are addressed by what was read before, writer by writer: a poll compares the logs' counters with that and reads
only the rows between.
"""

from __future__ import annotations

import contextlib
import heapq
import signal
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from recollect.errors import NotFound
from recollect.recall.results import Step, step_at
from recollect.view import Cut, Extent, View, hull
from recollect.view.matching import matching
from recollect.where import parse

if TYPE_CHECKING:
    from recollect.workspace import Workspace

CHUNK_ROWS = 2048
POLL_INTERVAL_S = 0.1


class Follower:
    """The steps of a workspace from one moment on.

    Args:
        ws: the workspace; it need not have a schema yet.
        where: only steps that this condition is true of. It is read anew for each schema.

    Attributes:
        cut: what was published when the follower was made.
    """

    def __init__(self, ws: Workspace, where: str | None = None) -> None:
        self._ws, self._where = ws, where
        self._folder = _identity(ws)
        self.cut = ws.cut()
        self._seen = {w: e.stop for w, e in hull(self.cut.extents).items()}

    def newest(self, k: int) -> list[Step]:
        """The newest `k` steps of `cut`, oldest first. Reads only the ends of the logs, and more of them where a
        condition leaves too few."""
        whole = hull(self.cut.extents)
        begin = {w: e.start for w, e in whole.items()}
        span = max(64, 2 * k)
        while k and self.cut.extents:
            window = tuple(Extent(w, max(e.start, e.stop - span), e.stop) for w, e in whole.items())
            view, rows = self._rows(Cut(window, self.cut.facts))
            short = {e.writer for e in window if e.start > begin[e.writer] and len(rows.get(e.writer, ())) < k}
            if not short:
                merged = list(heapq.merge(*rows.values()))[-k:]
                return [step_at(view, slot, view.facts) for _, _, _, slot in merged]
            span *= 4
        return []

    def poll(self) -> Iterator[Step]:
        """The steps that were published since `cut` or the last poll.

        Raises:
            NotFound: the workspace was deleted meanwhile.
        """
        if _identity(self._ws) != self._folder:
            raise NotFound(f"workspace {self._ws.name!r} was deleted while it was followed")
        cut = self._ws.cut()
        stops = {w: e.stop for w, e in hull(cut.extents).items()}
        while True:
            new = {w: start for w, start in self._starts(cut).items() if stops[w] > start}
            if not new:
                return
            part = tuple(Extent(w, start, min(stops[w], start + CHUNK_ROWS)) for w, start in sorted(new.items()))
            try:
                view, rows = self._rows(Cut(part, cut.facts))
            except NotFound:
                return  # evicted before we came to them; the next poll begins where the logs do
            self._seen.update((e.writer, e.stop) for e in part)
            for _, _, _, slot in heapq.merge(*rows.values()):
                yield step_at(view, slot, view.facts)

    def _starts(self, cut: Cut) -> dict[int, int]:
        """Where to go on: behind what was seen, and not before what is still there."""
        return {w: max(self._seen.get(w, 0), e.start) for w, e in hull(cut.extents).items()}

    def until(self, stop: threading.Event) -> Iterator[Step | None]:
        """Every step from now on; None after each poll, when the reader should show what it has."""
        while not stop.is_set():
            yield from self.poll()
            yield None
            stop.wait(POLL_INTERVAL_S)

    def _rows(self, cut: Cut) -> tuple[View, dict[int, list[tuple[int, int, int, int]]]]:
        """A view that holds the rows of `cut`, and its steps per writer as (time, writer, seq, slot) in log order.

        The view reaches further back where frame stacks need the planes before. Times never step back within a
        writer here, so that merging keeps its order.
        """
        view = self._ws.view_with_predecessors(cut)
        slots = np.flatnonzero(~view.episodes.is_final & (view.episodes.group >= 0))
        if self._where is not None:
            chosen, group = parse(self._where, view.schema), view.episodes.group[slots]
            slots = slots[matching(chosen, view.rows, slots, group, view.episodes.keys, lambda: view.facts)]
        got = view.rows.gather(slots, ("writer", "seq", "time"))
        starts = {e.writer: e.start for e in cut.extents}
        out: dict[int, list[tuple[int, int, int, int]]] = {}
        columns: list[Any] = [got["time"].tolist(), got["writer"].tolist(), got["seq"].tolist(), slots.tolist()]
        for at, writer, seq, slot in zip(*columns, strict=True):
            if seq >= starts[writer]:
                mine = out.setdefault(writer, [])
                mine.append((max(at, mine[-1][0]) if mine else at, writer, seq, slot))
        return view, out


@contextlib.contextmanager
def interruption() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C sets; a second one interrupts as ever.

    A KeyboardInterrupt that is raised inside a finalizer or a library's callback is printed and lost; a flag is not.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def note(*_: Any) -> None:
        event.set()
        signal.signal(signal.SIGINT, before)

    before = signal.signal(signal.SIGINT, note)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)


def _identity(ws: Workspace) -> tuple[int, int] | None:
    try:
        found = ws.path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino
