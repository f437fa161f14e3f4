"""`add_column`: a field that is computed from the rows of a branch, such as a new reward, an advantage or an embedding.

Raw rows are not touched: each fragment gets one more data file, and one commit on exactly the version that was read
makes them a part of the branch's schema, under an entry of the history of its own (design/0019).
"""

from __future__ import annotations

import dataclasses
import os
import random
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recollect.cache.blocks import BlockCache
from recollect.cache.view import BufferReader
from recollect.cold.arrow import dense_array
from recollect.cold.columns import commit_column, write_column
from recollect.cold.dataset import Datasets
from recollect.cold.faults import Backoff
from recollect.cold.fold import Promotion
from recollect.cold.history import History
from recollect.errors import AlreadyExists, ArgumentError, ConflictError, NotFound, StoreError, StoreUnavailable
from recollect.records.layout import Layout
from recollect.schema import Embedding, Schema, Tensor
from recollect.schema.arrow import arrow_type
from recollect.schema.fields import is_heap
from recollect.schema.values import cast_dtype
from recollect.view import View

Compute = Callable[[Mapping[str, Any]], Any]
Progress = Callable[[int, int], None]
BATCH_ROWS = 4096
ATTEMPTS = 20
STAGED_S = 24 * 3600
"""How long computed files are trusted to be there still: a cleanup takes what is a week old."""
BUILT_IN = ("terminated", "truncated", "step", "writer", "seq", "time", "episode_writer", "episode")


def add_column(
    data: Datasets,
    name: str,
    compute: Compute,
    field: Any,
    *,
    fields: Sequence[str] | None,
    by: str,
    code: str | None,
    cache: BlockCache,
    progress: Progress | None = None,
) -> int:
    """Adds a field to the newest version of a branch; see `Buffer.add_column`. Returns the new version."""
    column = _checked(data, name, field, fields, by)
    work = _Work(data, name, compute, column, fields, by == "episode", code, cache, progress)
    backoff = Backoff()
    while True:
        try:
            return work.run()
        except StoreUnavailable as e:
            backoff.wait(e)  # what came of it is unknown: the next round looks first


def _checked(data: Datasets, name: str, field: Any, fields: Sequence[str] | None, by: str) -> Any:
    """The field as it is stored."""
    if not data.location.branch:
        raise ArgumentError(
            "main holds what was written and nothing else: a column is added to a branch",
            value=name,
            remedy="Make one with buffer.branch(...), and add it there, or pass on=",
        )
    if by not in ("row", "episode"):
        raise ArgumentError("by is 'row' or 'episode'", value=by)
    if not isinstance(field, Tensor | Embedding):
        raise ArgumentError(
            "a column is a Tensor or an Embedding", value=field, remedy='Pass field=rc.Tensor("float32")'
        )
    if getattr(field, "default", None) is not None:
        raise ArgumentError("a column has no default: rows that come later lack it", value=field)
    if name == "observation" or field.role == "observation":
        raise ArgumentError("an observation cannot be added: what waits in open episodes would lack it", value=name)
    chosen = data.schema.select(list(fields) if fields is not None else None)
    for leaf in chosen:
        if leaf.field.type == "json":
            raise ArgumentError("JSON is not among the fields that are given to fn", value=leaf.path)
    return dataclasses.replace(field, optional=True)


class _Work:
    def __init__(
        self,
        data: Datasets,
        name: str,
        compute: Compute,
        field: Any,
        fields: Sequence[str] | None,
        whole: bool,
        code: str | None,
        cache: BlockCache,
        progress: Progress | None,
    ) -> None:
        self.data, self.name, self.compute, self.field, self.whole = data, name, compute, field, whole
        self.fields, self.code, self.cache, self.progress = fields, code, cache, progress
        self.tried: dict[str, int] = {}
        """Entry of the history → base version, of every commit tried: a refusal may echo our own success."""
        self.done: dict[str, tuple[str, int | None]] = {}
        """What a fragment's rows are made of → the file that was computed for it."""
        self.facts: frozenset[str] = frozenset()
        self.since = time.monotonic()

    def run(self) -> int:
        data = self.data
        for attempt in range(ATTEMPTS):
            data.refresh()
            steps = data.steps
            history = data.history(steps)
            for link, base in self.tried.items():
                landed = history.find(link, base)
                if landed is not None:
                    data.schema = data.schema_of(steps)
                    return data.version_of(landed)
            data.schema = data.schema_of(steps)
            schema = self._extended(data.schema)
            if history.head is None:
                raise NotFound(f"{data.location} is empty", remedy="Snapshot a workspace to it first")
            if self.facts != history.stages or time.monotonic() - self.since > STAGED_S:
                self.done, self.facts, self.since = {}, history.stages, time.monotonic()
            files = self._files(steps, history)
            version = self._commit(steps, history, schema, files)
            if version is not None:
                return version
            time.sleep(random.SystemRandom().uniform(0.005, 0.02) * min(attempt + 1, 20))
        raise ConflictError(
            f"adding {self.name!r} to {data.location}: others committed first {ATTEMPTS} times",
            remedy="Run it again; nothing was added",
        )

    def _extended(self, schema: Schema) -> Schema:
        if self.name in schema.roots:
            raise AlreadyExists(
                f"{self.data.location} has a field {self.name!r}", remedy="Choose another name, or make another branch"
            )
        plain = schema.to_dict()
        added = Schema({self.name: self.field}).to_dict()["step"]
        return Schema.from_dict({**plain, "step": {**plain["step"], **added}})

    # -- values --------------------------------------------------------------------------------------------

    def _files(self, steps: Any, history: History) -> list[tuple[str, int | None]]:
        """A file for every fragment; those that were computed for an attempt before and did not change are kept."""
        fragments = steps.get_fragments()
        keys = [f"{[f.path for f in x.metadata.files]} {x.metadata.deletion_file}" for x in fragments]
        missing = [k for k, key in enumerate(keys) if key not in self.done]
        if missing:
            values = self._by_episode(steps, history) if self.whole else self._by_row(steps, history, set(missing))
            for index, arrays in values:
                if index in missing:
                    self.done[keys[index]] = write_column(self.data, self.name, self.field, arrays)
        return [self.done[key] for key in keys]

    def _reader(self) -> BufferReader:
        return BufferReader(self.data, Layout.of(self.data.schema), self.cache)

    def _by_row(self, steps: Any, history: History, wanted: set[int]) -> Iterator[tuple[int, Iterator[Any]]]:
        """For each fragment its values in order, computed as they are asked for."""
        name = f"{self.data.location}@{steps.version}"
        total, done = history.cut.rows, [0]
        parts = self._reader().parts(steps, history, history.cut, name, wanted)
        ahead = next(parts, None)

        def values(index: int) -> Iterator[Any]:
            nonlocal ahead
            while ahead is not None and ahead.span.index == index:
                span, rows, view = ahead.span, ahead.rows, ahead.view
                size = min(BATCH_ROWS, max(1, (16 << 20) // max(1, self._bytes)))
                for start in range(span.start, span.stop, size):
                    low, high = start - span.start, min(start + size, span.stop) - span.start
                    out, known = self._empty(high - low)
                    first, last = np.searchsorted(rows, [low, high]).tolist()
                    slots = np.arange(first, last)
                    if view is not None and len(slots):
                        slots = slots[_steps(view, slots)]
                        if len(slots):
                            at = rows[slots] - low
                            out[at], known[at] = self._computed(view, slots), True
                    done[0] += last - first
                    if self.progress is not None:
                        self.progress(done[0], total)
                    yield self._array(out, known)
                ahead = next(parts, None)

        for index in sorted(wanted):
            yield index, values(index)

    def _by_episode(self, steps: Any, history: History) -> Iterator[tuple[int, Iterator[Any]]]:
        """The same from whole episodes: the version has to fit into the cache, its values go through a file."""
        name = f"{self.data.location}@{steps.version}"
        reader = self._reader()
        view = reader.view(steps, history, history.cut, name)
        rows = len(view.rows)
        with tempfile.TemporaryFile(dir=os.environ.get("TMPDIR")) as scratch:
            scratch.truncate(max(1, rows * (self._bytes + 1)))
            out = np.memmap(scratch, np.dtype(self.field.dtype), "r+", 0, (rows, *self.field.shape)) if rows else None
            known = np.zeros(rows, np.bool_)
            for slots in episodes_of(view):
                assert out is not None
                out[slots], known[slots] = self._computed(view, slots), True
                if self.progress is not None:
                    self.progress(int(known.sum()), rows)
            at = 0
            for index, (count, live) in enumerate(reader.places(steps)):
                yield index, self._slices(out, known, at, count, live)
                at += count if live is None else len(live)

    def _slices(
        self, values: Any, known: NDArray[np.bool_], first: int, count: int, live: NDArray[np.int64] | None
    ) -> Iterator[Any]:
        size = min(BATCH_ROWS, max(1, (16 << 20) // max(1, self._bytes)))
        for low in range(0, count, size):
            high = min(low + size, count)
            out, there = self._empty(high - low)
            rows = np.arange(low, high) if live is None else live[(live >= low) & (live < high)]
            slots = first + (rows if live is None else np.searchsorted(live, rows))
            if len(slots):
                out[rows - low], there[rows - low] = values[slots], known[slots]
            yield self._array(out, there)

    @property
    def _bytes(self) -> int:
        return int(np.dtype(self.field.dtype).itemsize * np.prod(self.field.shape, dtype=np.int64))

    def _empty(self, rows: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        return np.zeros((rows, *self.field.shape), self.field.dtype), np.zeros(rows, np.bool_)

    def _computed(self, view: View, slots: NDArray[np.int64]) -> NDArray[Any]:
        """What the caller's function makes of some rows. Raises ArgumentError and FieldError where it does not fit."""
        given = np.asarray(self.compute(rows_of(view, slots, self.fields)))
        want = np.dtype(self.field.dtype)
        shape = (len(slots), *self.field.shape)
        if given.shape != shape:
            raise ArgumentError(
                f"fn returned an array of shape {list(given.shape)}, not {list(shape)}", value=self.name
            )
        if not np.can_cast(given.dtype, want, "same_kind"):
            raise ArgumentError(
                f"fn returned {given.dtype}, and {self.name!r} is {want}", remedy=f"Cast it with .astype({want.name!r})"
            )
        return cast_dtype(given, want, self.name)

    def _array(self, values: NDArray[Any], known: NDArray[np.bool_]) -> Any:
        return dense_array(values, None if known.all() else ~known, arrow_type(self.field))

    # -- committing ----------------------------------------------------------------------------------------

    def _commit(self, steps: Any, history: History, schema: Schema, files: list[tuple[str, int | None]]) -> int | None:
        """One attempt. The new version, or None when another commit took its place."""
        data, head = self.data, history.head
        assert head is not None
        name = uuid.uuid4().hex
        self.tried[name] = int(steps.version)
        record = {
            **{key: [] for key in ("extents", "facts", "gaps", "held", "staged")},
            "missing_rows": 0,
            "missing_facts": 0,
            "counts": {"open_episodes": 0, "held_episodes": 0, "held_rows": 0},
            "statistics": data.records.promotion(head.id).record["statistics"],
            "schema": schema.fingerprint,
            "lineage": {
                "pid": os.getpid(),
                "workspace_name": "",
                "finished_only": False,
                "where": None,
                "commit": self.code,
                "column": self.name,
            },
        }
        link = Promotion(
            name, head.id, uuid.uuid4().hex, int(steps.version), time.time_ns(), "", "", 0, head.total_rows, record,
        )  # fmt: skip
        data.record(link, history)
        try:
            return commit_column(data, steps, self.name, self.field, schema, files, name)
        except ConflictError:
            return None
        except StoreError:
            data.refresh()
            landed = data.history().find(name, int(steps.version))
            if landed is None:
                raise
            data.schema = schema
            return data.version_of(landed)


def rows_of(view: View, slots: NDArray[np.int64], fields: Sequence[str] | None) -> dict[str, Any]:
    """What the function is given: `[n, *shape]` of each field, and with `valid.` before its name `[n]` bool of an
    optional one. Text is an array of str or None, ragged fields one of arrays or None. Built-in columns as well."""
    out: dict[str, Any] = {}
    for leaf in view.schema.select(list(fields) if fields is not None else None):
        if is_heap(leaf.field):
            held = np.empty(len(slots), object)
            for k, value in enumerate(view.rows.heap_values(slots, leaf.path)):
                if value is not None and leaf.field.type == "ragged":
                    held[k] = np.frombuffer(value, leaf.field.dtype)  # type: ignore[union-attr]
                else:
                    held[k] = None if value is None else value.decode()
            out[leaf.path] = held
            continue
        out[leaf.path] = np.array(view.rows.gather(slots, (leaf.path,))[leaf.path])
        if leaf.field.optional:
            out[f"valid.{leaf.path}"] = np.array(view.rows.valid(slots, leaf.path))
    return out | {name: np.array(v) for name, v in view.rows.gather(slots, BUILT_IN).items()}


def episodes_of(view: View) -> Iterator[NDArray[np.int64]]:
    """The slots of each episode's steps, in step order."""
    slots = np.flatnonzero(_steps(view, np.arange(len(view.rows))))
    group = view.episodes.group[slots]
    order = np.lexsort((view.rows.gather(slots, ("step",))["step"], group))
    slots, group = slots[order], group[order]
    for part in np.split(slots, np.flatnonzero(np.diff(group)) + 1):
        if len(part):
            yield part


def _steps(view: View, slots: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which rows are steps: not holes, nor observations behind the last step of an episode."""
    return np.asarray((view.episodes.group[slots] >= 0) & ~view.episodes.is_final[slots])
