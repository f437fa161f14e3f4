"""`Loader`: batches of a view, in an order that depends on the cut, the sampler and the seed alone."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any

import numpy as np

from recollect.errors import ArgumentError
from recollect.loader.batch import Batch, Chunk
from recollect.loader.chance import chance_of
from recollect.loader.outputs import Kind, choose
from recollect.loader.plan import BatchPlan, resident_reach
from recollect.loader.undelivered import draw_from, draw_state
from recollect.records.along import without_beheaded
from recollect.records.join import earlier_view
from recollect.records.rows import PackedRows
from recollect.samplers import Choose, Cursor, Draw, Receipt, Sampler, Uniform, as_sampler, bound, feedback_of, steps_of
from recollect.transforms import Transform, checked
from recollect.view import Cut, GrowingSource, Ids, Slots, Source, UnboundSource, View

STATE_FORMAT = 2
CHUNK_BYTES = 1 << 20
MAX_CHUNK = 64


class Loader:
    """Streams batches from a view, or from a source of growing ones. Belongs to one thread; iterate it, or call `next`.

    Batch k + `lag` is drawn inside the `next()` that returns batch k, with every priority update received by then, so
    that a sampler with feedback sees the same updates however fast the machine is. A sampler without feedback draws
    and gathers several small batches at a time: the ids are the same.

    A growing source (`ws.live()`) is asked for its newest view inside each `next()`, which then draws one batch, batch
    k + `lag`, from it: no batch is drawn or gathered further ahead, so that none is older than `lag` batches. Which
    rows a batch holds then depends on when they arrived; the state holds what was drawn and is not yet delivered.

    Where the schema of a growing source evolves, the loader goes on: each batch has the schema of the view that it was
    drawn from, so that the `lag` batches drawn before have the older one still. The rows drawn are those that would be
    drawn without it, save that a new frame stack, deeper than all others, leaves out the steps of a window that it
    cannot show whole. What a batch then holds:

    - Without `fields`, every field of fixed shape, new ones included. With `fields`, those named, and what is new under
      a name that stands for nested ones.
    - In rows of an older version, a new field is its default, or null: NaN or 0, and False in `batch.valid`.
    - A field whose dtype was widened has the wider one from then on, in rows of every version. It is never cast back,
      because the older dtype may not hold what comes.
    - A field that became optional is in `batch.valid` from then on.
    - A new field with the role discount counts in `NStep` from then on. Give it the default 1: a null is NaN there.

    Args:
        source: the view to draw from, or a source of growing ones, which belongs to this loader from now on; or a
            rotation (`buffer.rotate()`), which any number of loaders may draw from.
        sampler: how rows are chosen; `Uniform()` when None. Any object with `bind` and `to_dict`, or a function of
            (view, rng, n) that returns slots and their chances; a draw of either is checked.
        batch_size: rows per batch.
        seed: with the cut and the sampler it decides every draw.
        transforms: applied in order.
        fields: names to read, dotted for nested ones; None is every field of fixed shape that the view has.
        device: torch device; the CPU when None.
        lag: batches that are drawn ahead of the one returned.
        steps: stop after so many batches; endless when neither `steps` nor `epochs` is given.
        epochs: visit every drawable row so many times, an epoch's last batch short. Only with `Uniform`. One pass over
            the loader makes all of them; make a new loader, or `epochs=3`, for more.
        output: `"torch"` or `"numpy"`; torch when it is installed.
        ahead: most batches gathered at a time; chosen by their size when None. 1 gathers one at a time.

    Raises:
        ArgumentError: a size out of range, options that exclude each other, or nothing to draw.
        NotFound: a field that the schema lacks.
        MissingDependency: torch was asked for and is not installed.
    """

    def __init__(
        self,
        source: Source | UnboundSource,
        sampler: Sampler | Choose | None = None,
        *,
        batch_size: int,
        seed: int,
        transforms: Sequence[Transform] = (),
        fields: Sequence[str] | None = None,
        device: str | None = None,
        lag: int = 2,
        steps: int | None = None,
        epochs: int | None = None,
        output: Kind | None = None,
        ahead: int | None = None,
    ) -> None:
        for name, value, least in (("batch_size", batch_size, 1), ("lag", lag, 0), ("seed", seed, 0)):
            if not isinstance(value, int) or value < least:
                raise ArgumentError(f"{name} is a whole number of at least {least}", value=value)
        for name, limit in (("steps", steps), ("epochs", epochs), ("ahead", ahead)):
            if limit is not None and (not isinstance(limit, int) or limit < 1):
                raise ArgumentError(f"{name} is a whole number of at least 1", value=limit)
        if isinstance(fields, str):
            raise ArgumentError("fields is a list of names", value=fields, remedy=f"Pass fields=[{fields!r}]")
        if steps is not None and epochs is not None:
            raise ArgumentError("steps and epochs exclude each other")
        transforms = checked(transforms)
        if not hasattr(source, "at"):
            if not hasattr(source, "bind"):
                raise _no_source(source)
            reach = resident_reach(transforms)
            source = source.bind(seed=seed, batch_size=batch_size, reach=reach.after, depth=reach.before + 1)
        self._source = None if isinstance(source, View) else _growing(source, epochs)
        view = source.at(0)
        self._segments: list[tuple[int, View]] = [(0, view)]
        self._segment = 0
        self.sampler: Sampler = Uniform() if sampler is None else as_sampler(sampler)
        self.batch_size, self.seed, self.lag, self.epochs = batch_size, seed, lag, epochs
        self._fields = None if fields is None else tuple(fields)
        self._plan = BatchPlan.of(_packed(view).layout, self._fields, transforms)
        self._output = choose(output, device)
        self._cursor = self._bind(view, None)
        if epochs is not None:
            steps = int(self._cursor.steps)  # type: ignore[attr-defined]
        self.steps = steps
        span = getattr(self.sampler, "span", None)
        bytes_ = max(1, self._plan.row_bytes * batch_size * (1 if span is None else span.length))
        most = 4 if self._plan.heap else MAX_CHUNK  # variable sizes are not known before they are read
        self._ahead = 1 if self._cursor.is_stateful else ahead or max(1, min(most, CHUNK_BYTES // bytes_))
        self._delivered = 0
        self._queue: deque[tuple[Draw, View]] = deque()
        self._chunk: Chunk | None = None
        self._closed = False

    @property
    def view(self) -> View:
        """The view that the newest draw came from."""
        return self._segments[self._segment][1]

    def _bind(self, view: View, state: Mapping[str, Any] | None) -> Cursor:
        view = without_beheaded(view, self._plan.depth)
        if self.epochs is None:
            return bound(self.sampler, view, self.seed, state)
        if not isinstance(self.sampler, Uniform):
            raise ArgumentError("epochs= goes with Uniform only", value=self.sampler, remedy="Use steps=")
        return self.sampler.bind_epochs(view, self.seed, self.batch_size, self.epochs)

    def _turn_to(self, step: int) -> None:
        """Makes the cursor draw from the view that batch `step` belongs to."""
        while self._segment + 1 < len(self._segments) and self._segments[self._segment + 1][0] <= step:
            self._segment += 1
            self._cursor.grow(without_beheaded(self.view, self._plan.depth))

    # -- batches -------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Batch[Any]]:
        return self

    def __next__(self) -> Batch[Any]:
        step = self._delivered
        if self._closed:
            raise ArgumentError("the loader is closed")
        if self.steps is not None and step >= self.steps:
            raise StopIteration
        if self._cursor.is_stateful or self._source is not None:
            batch = self._next_drawn()
        else:
            chunk = self._chunk
            if chunk is None or step >= chunk.step + chunk.count:
                chunk = self._chunk = None  # so that its memory may serve the next one
                chunk = self._chunk = self._next_chunk(step)
            batch = Batch(chunk, step - chunk.step)
        self._delivered = step + 1
        return batch

    def _next_chunk(self, step: int) -> Chunk:
        """Several batches from `step` on, not past a change of view nor the last step."""
        self._turn_to(step)
        count = self._ahead
        if self.steps is not None:
            count = min(count, self.steps - step)
        if self._segment + 1 < len(self._segments):
            count = min(count, self._segments[self._segment + 1][0] - step)
        return self._gather(self._cursor.draw(step, self.batch_size, count), self.view)

    def _next_drawn(self) -> Batch[Any]:
        """The next batch of the queue, once the batch `lag` after it is drawn from what is there now."""
        while len(self._queue) <= self.lag:
            step = self._delivered + len(self._queue)
            if self.steps is not None and step >= self.steps:
                break
            if self._source is None:
                self._turn_to(step)
            else:
                self._look(self._source, step)
            self._queue.append((self._cursor.draw(step, self.batch_size), self.view))
        return Batch(self._gather(*self._queue.popleft()), 0)

    def _look(self, source: Source, step: int) -> None:
        """Makes the cursor draw from the source's newest view. Views that no draw needs any more are let go of."""
        view = source.at(step)
        if view is not self.view:
            self._cursor.grow(without_beheaded(view, self._plan.depth))
            self._segments, self._segment = [(step, view)], 0

    def _gather(self, draw: Draw, view: View) -> Chunk:
        batches, n = draw.keys.shape
        keys = draw.keys.reshape(-1) if draw.sizes is None else draw.keys[draw.keys >= 0]
        sizes = [n] * batches if draw.sizes is None else list(draw.sizes)
        rows, output = _packed(view), self._output
        plan = self._plan = self._plan.in_layout(rows.layout, self._fields)
        padding, length, owners = None, 1, keys
        if draw.span is not None:
            if plan.heap:
                raise ArgumentError("sequences hold fields of fixed shape", remedy="Leave text and ragged fields out")
            # Rows are read where there is no step too, and blanked: everything below works on steps that are there.
            slots, length = steps_of(view, keys, draw.span).slots, draw.span.length
            padding = slots.reshape(-1) < 0
            owners = np.repeat(keys, length)
            keys = np.where(slots < 0, keys[:, None], slots).reshape(-1)
            sizes = [size * length for size in sizes]
        chances = [chance_of(self.seed, k, draw, length) for k in range(len(plan.transforms))]
        reads = plan.reads(view, keys, owners, length, chances)
        arena = output.arena(plan.gather.sized(len(keys))[2])
        rows.gather_into(plan.gather, plan.matrix(view, reads), output.host(arena))
        made: dict[str, Any] = {}
        if plan.transforms:
            host = plan.gather.arrays(output.host(arena), len(keys))
            data = plan.data(view, rows, reads, host)
            for transform in plan.transforms:
                data = transform.apply(data, reads, plan.schema)
            made = {name: a for name, a in data.rows.items() if host.get(name) is not a}
        if padding is not None:
            for array in (*plan.gather.arrays(output.host(arena), len(keys)).values(), *made.values()):
                array[padding] = 0
            blank = np.where(padding, -1, reads.anchors), np.where(padding, -1, reads.following)
            reads = reads._replace(anchors=blank[0], following=blank[1])
        each, lists = self._variable(rows, keys, reads.following, sizes) if plan.heap else ({}, {})
        return Chunk(draw, reads, sizes, plan.gather, output, rows, output.finish(arena), made, each, lists, length)

    def _variable(
        self, rows: PackedRows, keys: Slots, following: Slots, sizes: list[int]
    ) -> tuple[dict[str, list[Any]], dict[str, list[list[Any]]]]:
        """Ragged fields, padded per batch, with their lengths; text and JSON as lists."""
        each: dict[str, list[Any]] = {}
        lists: dict[str, list[list[Any]]] = {}
        at = 0
        for size in sizes:
            texts, padded, lengths = self._plan.variable(rows, keys[at : at + size], following[at : at + size])
            at += size
            for name, value in texts.items():
                lists.setdefault(name, []).append(value)
            for name, array in padded.items():
                each.setdefault(name, []).append(array)
                each.setdefault(f"/lengths/{name}", []).append(lengths[name])
        return each, lists

    # -- feedback ------------------------------------------------------------------------------------------

    def update_priorities(self, ids: Ids, signal: Any) -> Receipt:
        """Tells the sampler how surprising rows were.

        Args:
            ids: `[B]` StepIds, as `batch.ids`.
            signal: `[B]` (`[B, T]` of sequences) non-negative numbers, an array or a tensor; of equal ids the last
                one counts.

        Returns:
            How many reached a row that may be drawn, and how many were of rows that this loader does not hold, or no
            longer. The next draw sees them; batches that are already drawn stay what they are.

        Raises:
            ArgumentError: the sampler takes no feedback, or a signal is negative, infinite or NaN.
        """
        if not self._cursor.takes_feedback:
            raise ArgumentError(f"{self.sampler} takes no priorities", remedy="Use a sampler that does")
        values = np.asarray(signal.detach().cpu() if hasattr(signal, "detach") else signal, np.float64)
        if not (values >= 0).all():
            raise ArgumentError("priorities are numbers of at least 0", value=float(values.min()), remedy="Pass .abs()")
        return feedback_of(self._cursor).update(_packed(self.view).find(ids), values)

    # -- going on ------------------------------------------------------------------------------------------

    def advance(self, view: View) -> None:
        """Draws from a later version from the next draw on: `lag` batches still come from the one before.

        Raises:
            ArgumentError: `view` does not hold the present rows in their order, is restricted to another condition, or
                the loader counts epochs.
        """
        if self.epochs is not None:
            raise ArgumentError("a loader that counts epochs stays with its view")
        if self._source is not None:
            raise ArgumentError("a growing source brings its own views", remedy="Make a new loader for another source")
        newest = self._segments[-1][1]
        if view.schema != newest.schema or not view.cut.extends(newest.cut):
            raise ArgumentError(
                f"{view!r} is no later version of {newest!r}", remedy="Open a new loader for another buffer"
            )
        if view.restriction != newest.restriction:
            raise ArgumentError(
                f"{view!r} is restricted to another condition than {newest!r}", remedy="Pass view.where() the same one"
            )
        at = self._delivered + (self.lag if self._delivered else 0)
        if self._segments[-1][0] == at and self._segment < len(self._segments) - 1:
            del self._segments[-1]
        self._segments.append((at, view))
        if self._chunk is not None:
            self._chunk.count = max(0, min(self._chunk.count, at - self._chunk.step))

    def state_dict(self) -> dict[str, Any]:
        """Everything that the very next batch depends on, as plain values: JSON and `torch.load` read it."""
        views, source = self._needed_views(), self._source
        place = {id(view): k for k, (_, view) in enumerate(views)}
        return {
            "format": STATE_FORMAT,
            "step": self._delivered,
            "seed": self.seed,
            "batch_size": self.batch_size,
            "lag": self.lag,
            "epochs": self.epochs,
            "growing": source is not None,
            "where": self.view.restriction,
            "sampler": self.sampler.to_dict(),
            "transforms": [t.to_dict() for t in self._plan.transforms],
            "views": [
                {"from": start, **({"cut": view.cut.to_dict()} if source is None else source.mark(view))}
                for start, view in views
            ],
            "cursor": dict(self._cursor.state()),
            "cursor_view": place.get(id(self.view), 0),
            "undelivered": [draw_state(d, place[id(v)]) for d, v in self._queue],
        }

    def _needed_views(self) -> list[tuple[int, View]]:
        """The views that batches still to come are drawn from, or were, and the first batch of each."""
        if self._source is None:
            first = max(k for k, (start, _) in enumerate(self._segments) if start <= self._delivered or k == 0)
            return self._segments[min(first, self._segment) :]  # the cursor's own, which it may yet grow from
        drawn = {id(view): (draw.step, view) for draw, view in reversed(self._queue)}
        order = dict.fromkeys(id(view) for _, view in self._queue)
        older = [drawn[i] for i in order if i != id(self.view)]
        return [*older, self._segments[-1]]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Goes on where `state_dict` was taken: the very next batch is the same, bit for bit. What was drawn before a
        schema evolved is delivered under the schema that it was drawn with, also by a loader that was made later.

        Raises:
            ArgumentError: the state was taken from another cut, sampler, transform, seed or batch size; named.
            NotFound: a growing source has let go of rows that were drawn and not delivered, or they were evicted.
        """
        if not isinstance(state, Mapping) or state.get("format") != STATE_FORMAT:
            raise ArgumentError("no loader state of this format", value=state)
        mine = self.state_dict()
        for name in ("seed", "batch_size", "lag", "epochs", "growing", "where", "sampler", "transforms"):
            if state[name] != mine[name]:
                raise ArgumentError(
                    f"the state was taken with another {name}: {state[name]!r}, this loader has {mine[name]!r}",
                    remedy=f"Make the loader with {name}={state[name]!r}",
                )
        views = self._views_of(state["views"])
        self._segments = [(v["from"], view) for v, view in zip(state["views"], views, strict=True)]
        self._segment = int(state["cursor_view"])
        self._delivered = int(state["step"])
        self._chunk = None
        self._queue = deque((draw_from(d), self._segments[d["view"]][1]) for d in state["undelivered"])
        self._cursor = self._bind(self.view, state["cursor"])

    def _views_of(self, marks: Sequence[Mapping[str, Any]]) -> list[View]:
        """The views that a state names."""
        if self._source is not None:
            return self._source.restore(marks)
        newest = self._segments[-1][1]
        if marks[-1]["cut"] != newest.cut.to_dict():
            raise ArgumentError(
                "the state was taken on other rows than this loader's view holds",
                remedy="Open the loader on the version it was taken on, then advance()",
            )
        return [*(earlier_view(newest, Cut.from_dict(m["cut"])) for m in marks[:-1]), newest]

    def stats(self) -> dict[str, Any]:
        """What the rows are drawn from, and how far from uniform that was.

        Returns:
            `batches` delivered; `total_rows` and `resident_rows`, of which the newest batch was drawn. A rotation says
            beside that:

            - `blocks`, `resident_blocks`, `rotations` (blocks that were replaced), `loads`, `hit_rate` (of these, how
              many were in the cache), `waited_s` for blocks that were not there in time;
            - `distance_from_uniform`: the total variation distance, 0 to 1, between the chance that the batches so far
              gave each row, on average, and the same chance for every row; `visited_share` of the rows had any;
            - `horizon_batches`: batches for which the rows that are resident stay so, which draws are correlated
              over; `pass_batches`: after so many every row was resident equally long.
        """
        out: dict[str, Any] = {
            "batches": self._delivered,
            "total_rows": len(self.view.rows),
            "resident_rows": len(self.view.rows),
        }
        if (told := getattr(self._source, "stats", None)) is not None:
            return {**out, **told(self._delivered)}
        return {**out, "hit_rate": 1.0, "rotations": 0, "distance_from_uniform": 0.0}

    def close(self) -> None:
        """Gives up the gathered batches. Those handed out stay valid."""
        self._closed = True
        if (close := getattr(self._source, "close", None)) is not None:
            close()
        self._chunk = None
        self._queue.clear()

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _no_source(value: Any) -> ArgumentError:
    return ArgumentError(
        "a loader draws from a view or a source of them",
        value=value,
        remedy="Pass ws.view(), ws.live(), buffer.at(tag) or buffer.rotate(tag)",
    )


def _growing(source: Any, epochs: int | None) -> GrowingSource:
    """Raises ArgumentError unless it is a source of growing views."""
    if not (hasattr(source, "mark") and hasattr(source, "restore")):
        raise _no_source(source)
    if epochs is not None:
        raise ArgumentError("a growing source has no end that epochs= could count to", remedy="Use steps=")
    out: GrowingSource = source
    return out


def _packed(view: View) -> PackedRows:
    assert isinstance(view.rows, PackedRows)
    return view.rows
