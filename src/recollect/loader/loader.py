"""`Loader`: batches of a view, in an order that depends on the cut, the sampler and the seed alone."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import numpy as np

from recollect.errors import ArgumentError
from recollect.loader import state as states
from recollect.loader.batch import Batch
from recollect.loader.drawing import Drawing, Drawn
from recollect.loader.gather import Gatherer, packed_rows
from recollect.loader.options import Exchange, Options
from recollect.loader.outputs import Kind, choose
from recollect.loader.plan import deepest, resident_reach
from recollect.loader.rate import RateLimit
from recollect.loader.waiting import Clock
from recollect.samplers import Choose, Receipt, Sampler, Uniform, as_sampler, feedback_of
from recollect.transforms import Transform
from recollect.view import GrowingSource, Ids, Source, UnboundSource, View, make_ids


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

    Ranks of a distributed run each make a loader with the same arguments but `rank`. All make the same draws, of
    `batch_size` rows, and rank r takes the rows `r::world_size` of each: together they hold what one loader would, and
    a state that any of them gave goes on under any `world_size`. With priorities every rank must see every update, so
    that `update_priorities` is called by all at once and uses `exchange`.

    A `next` that raises, whatever the reason, delivered nothing: the following one delivers the batch that was due.

    Args:
        source: the view to draw from, or a source of growing ones, which belongs to this loader from now on; or a
            rotation (`buffer.rotate()`), which any number of loaders may draw from, each with blocks of its own.
        sampler: how rows are chosen; `Uniform()` when None. Any object with `bind` and `to_dict`, or a function of
            (view, rng, n) that returns slots and their chances; a draw of either is checked.
        batch_size: rows per batch.
        seed: with the cut and the sampler it decides every draw.
        transforms: applied in order.
        fields: names to read, dotted for nested ones; None is every field of fixed shape that the view has.
        next_fields: observations of which the next one is read too, as `next_<name>`; None is all that are read.
        device: torch device, or jax platform; the CPU when None.
        lag: batches that are drawn ahead of the one returned.
        steps: stop after so many batches; endless when neither `steps` nor `epochs` is given.
        epochs: visit every drawable row so many times, an epoch's last batch short. Only with `Uniform`. One pass over
            the loader makes all of them; make a new loader, or `epochs=3`, for more. Of a rotation, the last batch of
            each turn is short: a turn visits the rows of its blocks once.
        min_rows: wait until so many rows can be drawn. A growing source may begin with none then.
        timeout_s: how long to wait for them before `next` raises WaitTimeout.
        rate: how often a row may be drawn for each row that came; `next` waits for rows. Only with `ws.live()`.
        rank: which slice of each batch this loader takes, of `world_size`.
        exchange: `exchange(ids, signals)` gives the pairs of all ranks in their order, such as
            `torch.distributed.all_gather_object` does. A sampler that takes priorities needs it from two ranks on.
        output: `"torch"`, `"numpy"`, `"jax"` (the same memory through DLPack), or `"tensordict"`: batches are
            TensorDicts, see `Batch.to_tensordict`. Torch when it is installed, else numpy.
        ahead: most batches gathered at a time; chosen by their size when None. 1 gathers one at a time.
        threads: gather so many draws in the background. Draws are made by the calling thread all the same, so that
            nothing but the time depends on it; 0 gathers inside `next`.

    Raises:
        ArgumentError: a size out of range, options that exclude each other, or nothing to draw.
        NotFound: a field that the schema lacks.
        MissingDependency: the package of an output is not installed.
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
        next_fields: Sequence[str] | None = None,
        device: str | None = None,
        lag: int = 2,
        steps: int | None = None,
        epochs: int | None = None,
        min_rows: int | None = None,
        timeout_s: float = 60.0,
        rate: RateLimit | None = None,
        rank: int = 0,
        world_size: int = 1,
        exchange: Exchange | None = None,
        output: Kind | None = None,
        ahead: int | None = None,
        threads: int = 0,
    ) -> None:
        options = Options(
            batch_size=batch_size,
            seed=seed,
            transforms=transforms,
            fields=None if fields is None else tuple(fields) if not isinstance(fields, str) else fields,
            next_fields=next_fields,
            lag=lag,
            steps=steps,
            epochs=epochs,
            min_rows=min_rows,
            timeout_s=timeout_s,
            rate=rate,
            rank=rank,
            world_size=world_size,
            exchange=exchange,
            ahead=ahead,
            threads=threads,
        )
        self._options = options
        self.sampler: Sampler = Uniform() if sampler is None else as_sampler(sampler)
        self.batch_size, self.seed, self.lag, self.epochs = batch_size, seed, lag, epochs
        growing, lives = _growing(source, options)
        view = source if isinstance(source, View) else growing.at(0)  # type: ignore[union-attr]
        self._drawing = Drawing(growing, view, self.sampler, options, lives=lives)
        cursor = self._drawing.cursor
        if world_size > 1 and exchange is None and cursor is not None and cursor.takes_feedback:
            raise ArgumentError(
                f"{self.sampler} takes priorities, which every rank must see",
                value=world_size,
                remedy="Pass exchange=, which gives every rank the ids and signals of all",
            )
        self.steps = steps if epochs is None or growing is not None else int(cursor.steps)  # type: ignore[union-attr]
        rotates = growing is not None and not lives
        self._gather = Gatherer(choose(output, device), seed, rank, world_size, settles=rotates)
        self._as_tensordict = output == "tensordict"
        self._delivered = 0
        self._clock = Clock()
        self._pool: ThreadPoolExecutor | None = None
        if threads:
            self._drawing.submit = self._submit
        self._closed = False

    @property
    def view(self) -> View:
        """The view that the newest draw came from."""
        return self._drawing.view

    # -- batches -------------------------------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        entered = time.perf_counter()
        step = self._delivered
        if self._closed:
            raise ArgumentError("the loader is closed")
        if self.steps is not None and step >= self.steps:
            raise StopIteration
        drawing = self._drawing
        queue = drawing.queue
        while queue and queue[0].stop <= step:
            queue.popleft()
        if not queue or not drawing.is_ahead or self._pool is not None:
            drawing.fill(step, self.steps)
        if not drawing.queue:
            raise StopIteration
        drawn = drawing.queue[0]
        chunk = drawn.chunk
        if chunk is None:
            chunk = drawn.chunk = self._take_from(drawn)
        batch: Any = Batch(chunk, step - chunk.step)
        if self._as_tensordict:
            batch = batch.to_tensordict()
        self._clock.count(entered)
        try:
            self._delivered = step + 1
            return batch
        except BaseException:  # Ctrl-C between the two
            self._delivered = step
            raise

    def take(self, n: int) -> Iterator[Any]:
        """The next `n` batches, fewer where the loader ends. What is not taken of them comes later."""
        if not isinstance(n, int) or n < 0:
            raise ArgumentError("n is a whole number of at least 0", value=n)
        for _ in range(n):
            try:
                batch = next(self)
            except StopIteration:
                return
            yield batch

    def _submit(self, drawn: Drawn) -> None:
        """Gathers in the background."""
        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._options.threads, "recollect-gather")
        drawn.job = self._pool.submit(self._gather, drawn.draw, drawn.view, drawn.plan)

    def _take_from(self, drawn: Drawn) -> Any:
        job, drawn.job = drawn.job, None  # one that failed is made again here
        return self._gather(drawn.draw, drawn.view, drawn.plan) if job is None else job.result()

    # -- feedback ------------------------------------------------------------------------------------------

    def update_priorities(self, ids: Ids, signal: Any) -> Receipt:
        """Tells the sampler how surprising rows were.

        Args:
            ids: `[B]` StepIds, as `batch.ids`; or `[B, 2]` int64, as `"ids"` of a TensorDict.
            signal: `[B]` (`[B, T]` of sequences) non-negative numbers, an array or a tensor; of equal ids the last
                one counts. With several ranks, those of this rank: all must call this, and the signals of all are
                applied in the order of the ranks.

        Returns:
            How many reached a row that may be drawn, and how many were of rows that this loader does not hold, or no
            longer. The next draw sees them; batches that are already drawn stay what they are.

        Raises:
            ArgumentError: the sampler takes no feedback, or a signal is negative, infinite or NaN.
        """
        cursor = self._drawing.known
        if not cursor.takes_feedback:
            raise ArgumentError(f"{self.sampler} takes no priorities", remedy="Use a sampler that does")
        values = np.asarray(signal.detach().cpu() if hasattr(signal, "detach") else signal, np.float64)
        given = [(as_ids(ids), values)]
        if self._options.world_size > 1:
            assert self._options.exchange is not None
            given = [(as_ids(i), np.asarray(v, np.float64)) for i, v in self._options.exchange(*given[0])]
        for _, each in given:
            if not (each >= 0).all():
                wrong = float(each.min())
                raise ArgumentError("priorities are numbers of at least 0", value=wrong, remedy="Pass .abs()")
        rows, fed = packed_rows(self.view), feedback_of(cursor)
        receipts = [fed.update(rows.find(i), v) for i, v in given]
        return receipts[0] if len(receipts) == 1 else sum(receipts[1:], receipts[0])

    # -- going on ------------------------------------------------------------------------------------------

    def advance(self, view: View) -> None:
        """Draws from a later version from the next draw on: `lag` batches still come from the one before. Priorities
        stay with their StepIds.

        Raises:
            ArgumentError: `view` does not hold the present rows in their order, is restricted to another condition, or
                the loader counts epochs.
        """
        if self.epochs is not None:
            raise ArgumentError("a loader that counts epochs stays with its view")
        drawing = self._drawing
        if drawing.source is not None:
            raise ArgumentError("a growing source brings its own views", remedy="Make a new loader for another source")
        newest = drawing.segments[-1][1]
        if not isinstance(view, View):
            raise ArgumentError("advance takes a view", value=view, remedy="Pass buffer.at(...) or ws.view()")
        if view.schema != newest.schema or not view.cut.extends(newest.cut):
            raise ArgumentError(
                f"{view!r} is no later version of {newest!r}", remedy="Open a new loader for another buffer"
            )
        if view.restriction != newest.restriction:
            raise ArgumentError(
                f"{view!r} is restricted to another condition than {newest!r}", remedy="Pass view.where() the same one"
            )
        drawing.advance(view, self._delivered + (self.lag if self._delivered else 0))

    def state_dict(self, *, priorities: Literal["inline"] | str | Path = "inline") -> dict[str, Any]:
        """Everything that the very next batch depends on, as plain values: JSON and `torch.load` read it. Equal on all
        ranks.

        Args:
            priorities: `"inline"`, or a folder: what the sampler knows of each row, such as priorities (9 bytes a row
                before compression), is written there as `<sha256>.json`, durably, and the state names that file. A
                file is never changed; remove those whose states are gone.

        Raises:
            ArgumentError: nothing was drawn yet because `min_rows` are waited for.
            StoreError: the file cannot be written.
        """
        folder = None if priorities == "inline" else Path(priorities)
        return states.state_of(self._drawing, self._options, self._delivered, folder)

    def load_state_dict(self, state: Mapping[str, Any], *, priorities: str | Path | None = None) -> None:
        """Goes on where `state_dict` was taken: the very next batch is the same, bit for bit, under any `world_size`
        together. What was drawn before a schema evolved is delivered under the schema that it was drawn with, also by
        a loader that was made later.

        Args:
            priorities: the folder where the state's file is now, when it was moved.

        Raises:
            ArgumentError: the state was taken from another cut, sampler, transform, seed or batch size; named.
            NotFound: a growing source has let go of rows that were drawn and not delivered, or they were evicted; or
                the state's file is gone.
            CorruptionError: the state's file is damaged.
        """
        folder = None if priorities is None else Path(priorities)
        self._delivered = states.restore(self._drawing, self._options, state, folder)

    def stats(self) -> dict[str, Any]:
        """What the rows are drawn from, how far from uniform that was, and where the time went.

        Returns:
            `batches` delivered; `total_rows` and `resident_rows`, of which the newest batch was drawn;
            `waiting_s` inside `next`, `training_s` between one `next` and the following one, `waiting_share` of their
            sum, `waiting_us` per batch, all from the second batch on, and `first_s` of the first. Arrays are made when
            they are asked for (about 1 µs each), which counts as training. With a rate limit: `inserted_rows`,
            `samples_per_insert` so far. A rotation says beside that:

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
            **self._clock.stats(),
        }
        if self._options.rate is not None:
            inserted = self._drawing.came[1]
            out["inserted_rows"] = inserted
            drawn = max(self._delivered, max((d.stop for d in self._drawing.queue), default=0))
            out["samples_per_insert"] = drawn * self.batch_size / max(1, inserted)
        if (told := getattr(self._drawing.source, "stats", None)) is not None:
            return {**out, **told(self._delivered)}
        return {**out, "hit_rate": 1.0, "rotations": 0, "distance_from_uniform": 0.0}

    def close(self) -> None:
        """Gives up the gathered batches. Those handed out stay valid."""
        self._closed = True
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        if (close := getattr(self._drawing.source, "close", None)) is not None:
            close()
        self._drawing.queue.clear()

    def __enter__(self) -> Loader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def as_ids(ids: Any) -> Ids:
    """StepIds, also of `[B, 2]` numbers. Raises ArgumentError for anything else."""
    if hasattr(ids, "detach"):
        ids = ids.detach().cpu().numpy()
    out: Ids = ids
    if isinstance(ids, np.ndarray) and ids.dtype.names is None and ids.shape[1:] == (2,):
        out = make_ids(ids[:, 0], ids[:, 1])
    if not isinstance(out, np.ndarray) or out.dtype.names is None or not {"writer", "seq"} <= set(out.dtype.names):
        raise ArgumentError("update_priorities takes StepIds", value=ids, remedy="Pass batch.ids")
    return out


def _no_source(value: Any) -> ArgumentError:
    return ArgumentError(
        "a loader draws from a view or a source of them",
        value=value,
        remedy="Pass ws.view(), ws.live(), buffer.at(tag) or buffer.rotate(tag)",
    )


def _growing(source: Any, options: Options) -> tuple[GrowingSource | None, bool]:
    """What brings new views, None for one view; and whether these depend on the time.

    Raises:
        ArgumentError: it is no source, or cannot do what the options ask for.
    """
    if isinstance(source, View):
        lives = False
    elif hasattr(source, "at"):
        lives = True
    elif hasattr(source, "bind"):
        lives = False
        o, reach = options, resident_reach(options.transforms)
        source = source.bind(
            seed=o.seed,
            batch_size=o.batch_size,
            reach=reach.after,
            depth=reach.before + 1,
            stack=deepest(o.transforms),
            epochs=o.epochs,
        )
    else:
        raise _no_source(source)
    if options.rate is not None and not lives:
        raise ArgumentError("rate= counts rows that come, and none do here", remedy="Draw from ws.live()")
    if isinstance(source, View):
        return None, lives
    if not (hasattr(source, "mark") and hasattr(source, "restore")):
        raise _no_source(source)
    if options.epochs is not None and not hasattr(source, "is_over"):
        raise ArgumentError("a growing source has no end that epochs= could count to", remedy="Use steps=")
    if lives and options.world_size > 1:
        raise ArgumentError(
            "ranks draw the same rows only where all see the same, and a growing source depends on the time",
            value=options.world_size,
            remedy="Give every rank ws.view(cut) or a version of a buffer",
        )
    return source, lives
