"""Views of a buffer's versions, over cached blocks. Only data files that were never decoded before are read."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from recollect.cache.blocks import BlockCache, size_of
from recollect.cache.budget import VARIABLE
from recollect.cache.rotation import Rotation, Version
from recollect.cache.spans import Span, live_pieces, place_rows, spans_of
from recollect.cold.arrow import decode
from recollect.cold.dataset import Datasets
from recollect.cold.faults import store_errors
from recollect.cold.fold import Gone
from recollect.cold.fragments import columns_of, live_rows, read_rows
from recollect.cold.history import History
from recollect.errors import DiskFull
from recollect.records.block import Block
from recollect.records.build import build_view, unchanged
from recollect.records.layout import Layout
from recollect.records.overlay import overlay
from recollect.view import Cut, EpisodeKey, Fact, FactIndex, Ids, StepId, View, make_ids

FEW_TAILS = 512
"""So many waiting observations are asked for by number; more are read with all the others."""
DECODERS = 4
"""Blocks that are decoded at the same time: some wait for the store while the rows of another are packed."""


@dataclass(frozen=True)
class Part:
    """The rows of one block of a version.

    Attributes:
        span: where they lie; `rows` their places in it, sorted, which are the slots of the view.
        view: of these rows alone, with the facts of the version; None where all of them were deleted.
    """

    span: Span
    rows: NDArray[np.int64]
    view: View | None


class BufferReader:
    """Reads versions of one buffer."""

    def __init__(self, data: Datasets, layout: Layout, cache: BlockCache) -> None:
        self.data, self.layout, self.cache = data, layout, cache
        self.decoded_rows = 0
        """Rows decoded by this reader; the others were in the cache."""
        self._files: set[str] = set()

    @property
    def decoded_files(self) -> int:
        """Data files of which this reader decoded rows."""
        return len(self._files)

    def view(self, steps: Any, history: History, cut: Cut, name: str, *, deleted: bool = False) -> View:
        """A view of one version.

        Args:
            cut: the version's rows in order. Where its fragments list deleted rows, or with `deleted`, it may name
                rows that are not there any more: the view's cut is without them.

        Raises:
            CorruptionError: the rows of the version are not those of its cut.
            DiskFull: they do not fit into the cache's budget.
        """
        version = self._version(steps, history, cut, name, deleted)
        blocks = self.blocks(version.spans)
        pieces = live_pieces(version.spans, blocks, version.live)
        return version.build(place_rows(pieces, cut, name, deleted=version.deleted), pieces)

    def parts(
        self, steps: Any, history: History, cut: Cut, name: str, fragments: Collection[int] | None = None
    ) -> Iterator[Part]:
        """A version block by block, in order: none but the block at hand has to fit into the cache.

        Args:
            fragments: only those of these fragments, by their place in the version.

        Raises:
            CorruptionError: its rows are not those of its cut.
        """
        version = self._version(steps, history, cut, name, True)
        for span in version.spans:
            if fragments is not None and span.index not in fragments:
                continue
            block, _ = self.block(span)
            pieces = live_pieces([span], [block], version.live)
            live = version.live[span.index]
            if live is not None:
                live = live[(live >= span.start) & (live < span.stop)] - span.start
            if not any(stop > start for _, start, stop in pieces):
                yield Part(span, np.empty(0, np.int64), None)
                continue
            held = place_rows(pieces, cut, name, deleted=True)
            yield Part(span, np.arange(span.stop - span.start) if live is None else live, version.build(held, pieces))

    def places(self, steps: Any) -> list[tuple[int, NDArray[np.int64] | None]]:
        """By fragment: the rows that were written, and the places of those that were not deleted, None for all."""
        with store_errors("reading buffer", self.data.location):
            return [(int(f.physical_rows), live_rows(f)) for f in steps.get_fragments()]

    def rotate(
        self,
        steps: Any,
        history: History,
        cut: Cut,
        name: str,
        *,
        resident_bytes: int | None,
        reuse: float,
        deleted: bool = False,
    ) -> Rotation:
        """A version whose blocks take turns in the cache; `resident_bytes` is the budget when None. See `view`."""
        version = self._version(steps, history, cut, name, deleted)
        return Rotation(version, self.cache.room.budget() if resident_bytes is None else resident_bytes, reuse)

    def _version(self, steps: Any, history: History, cut: Cut, name: str, deleted: bool) -> Version:
        with store_errors("reading buffer", self.data.location):
            fragments = steps.get_fragments()
            spans = spans_of(fragments, columns_of(steps, self.layout), self.layout)
            live = [live_rows(f) for f in fragments]
        stages, gone = history.stages, history.gone
        facts = _Once(lambda: self._facts(stages, gone))
        changed = overlay if self._has_step_facts(history) else unchanged

        def build(cut: Cut, pieces: list[tuple[Block, int, int]]) -> View:
            return build_view(
                self.layout, cut, pieces, lambda ids: self._tails(ids, stages, gone), facts, changed, name
            )

        missing = deleted or any(rows is not None for rows in live)
        return Version(name, cut, self.layout, spans, live, self.block, build, missing)

    def blocks(self, spans: Sequence[Span]) -> list[Block]:
        """The block of each span; those that are not in the cache are decoded, several at a time.

        Raises:
            DiskFull: together they are larger than the budget, or the disk is full.
        """
        out = [self.cache.find(span.key, self.layout) for span in spans]
        missing = [k for k, block in enumerate(out) if block is None]
        needed = sum(span.bytes if b is None else size_of(b) for span, b in zip(spans, out, strict=True))
        if missing and needed > (budget := self.cache.room.budget()):
            raise DiskFull(
                f"{self.data.location.uri!r} takes about {needed:,} bytes once it is decoded, and the cache "
                f"{str(self.cache.folder.parent)!r} may take {budget:,}",
                remedy=f"Raise {VARIABLE}, or draw from rotate(), which keeps a part of the rows at a time",
            )
        if len(missing) < 2:
            for k in missing:
                out[k], _ = self.block(spans[k])
        else:
            with ThreadPoolExecutor(DECODERS, "recollect-decode") as pool:
                running = [(k, pool.submit(self.block, spans[k])) for k in missing]
                try:
                    for k, one in running:
                        out[k], _ = one.result()
                finally:
                    pool.shutdown(wait=True, cancel_futures=True)
        return [b for b in out if b is not None]

    def block(self, span: Span) -> tuple[Block, bool]:
        """One block, and whether it had to be decoded."""
        with store_errors("reading buffer", self.data.location):
            block, fresh = self.cache.get(
                span.key,
                self.layout,
                span.stop - span.start,
                span.bytes,
                lambda: (
                    decode(self.layout, [batch])
                    for batch in read_rows(span.fragment, span.columns, self.layout, span.start, span.stop)
                ),
                {"buffer": self.data.location.uri, "file": span.file, "start": span.start, "stop": span.stop},
            )
        if fresh:
            self.decoded_rows += span.stop - span.start
            self._files.add(span.file)
        return block, fresh

    def _tails(self, ids: Ids, stages: frozenset[str], gone: Gone) -> tuple[Ids, Block | None]:
        with store_errors("reading buffer", self.data.location):
            dataset = self.data.dataset("tails")
            if not dataset.count_rows():
                return ids[:0], None
            few = None
            if len(ids) <= FEW_TAILS:
                few = f"seq IN ({', '.join(map(str, np.unique(ids['seq']).tolist()))})"
            table = dataset.to_table(filter=few)
        wanted = {step for step in ids.tolist() if not gone.hides_tail(step)}
        rows = list(
            zip(
                table.column("stage").to_pylist(),
                table.column("writer").to_pylist(),
                table.column("seq").to_pylist(),
                strict=True,
            )
        )
        keep = [k for k, (stage, w, s) in enumerate(rows) if stage in stages and (w, s) in wanted]
        if not keep:
            return ids[:0], None
        batches = table.take(pa.array(keep)).combine_chunks().to_batches()
        return make_ids([rows[k][1] for k in keep], [rows[k][2] for k in keep]), decode(self.layout, batches)

    def _has_step_facts(self, history: History) -> bool:
        if not history.has_facts:
            return False
        with store_errors("reading buffer", self.data.location):
            return bool(self.data.dataset("facts").count_rows("step_seq IS NOT NULL"))

    def facts(self, history: History) -> FactIndex:
        """What a version knows of episodes and steps."""
        return self._facts(history.stages, history.gone)

    def _facts(self, stages: frozenset[str], gone: Gone) -> FactIndex:
        with store_errors("reading buffer", self.data.location):
            table = self.data.dataset("facts").to_table()
        columns = {
            name: table.column(name).to_pylist() for name in table.column_names if name not in ("time", "staged")
        }
        times = table.column("time").cast(pa.int64()).to_pylist()
        facts = [
            Fact(
                columns["writer"][k],
                columns["seq"][k],
                times[k],
                EpisodeKey(columns["episode_writer"][k], columns["episode"][k]),
                None if columns["step_seq"][k] is None else StepId(columns["step_writer"][k], columns["step_seq"][k]),
                json.loads(columns["values"][k]),
            )
            for k in range(len(times))
            if columns["stage"][k] in stages
        ]
        shown = (f for f in facts if not gone.hides_fact(f.episode, f.step))
        return FactIndex.of(sorted(shown, key=lambda f: f[:2]))


class _Once:
    """A value that is computed when first asked for."""

    def __init__(self, make: Any) -> None:
        self._make, self._value = make, None

    def __call__(self) -> Any:
        if self._value is None:
            self._value = self._make()
        return self._value
