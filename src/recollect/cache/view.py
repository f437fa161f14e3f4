"""Views of a buffer's versions, over cached blocks. Only data files that were never decoded before are read."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pyarrow as pa

from recollect.cache.blocks import BlockCache
from recollect.cold.arrow import decode, fill_block, sizes
from recollect.cold.dataset import Datasets, Promotion
from recollect.cold.faults import store_errors
from recollect.errors import CorruptionError
from recollect.records.block import Block
from recollect.records.build import build_view, unchanged
from recollect.records.layout import Layout
from recollect.records.overlay import overlay
from recollect.view import Cut, EpisodeKey, Fact, FactIndex, Ids, StepId, View, make_ids

FEW_TAILS = 512
"""So many waiting observations are asked for by number; more are read with all the others."""


class BufferReader:
    """Reads versions of one buffer."""

    def __init__(self, data: Datasets, layout: Layout, cache: BlockCache) -> None:
        self.data, self.layout, self.cache = data, layout, cache
        self.decoded_files = 0
        """Data files decoded by this reader; the others were in the cache."""

    def view(self, steps: Any, chain: list[Promotion], cut: Cut, name: str) -> View:
        """A view of one version.

        Raises:
            CorruptionError: the rows of the version are not those of its cut.
        """
        with store_errors("reading buffer", self.data.location):
            blocks = [self._block(fragment) for fragment in steps.get_fragments()]
        pieces = [(b, 0, len(b.records)) for b in blocks]
        _check_order(pieces, cut, name)
        stages = frozenset(p.stage for p in chain)
        return build_view(
            self.layout,
            cut,
            pieces,
            lambda ids: self._tails(ids, stages),
            _Once(lambda: self._facts(stages)),
            overlay if self._has_step_facts(chain) else unchanged,
            name,
        )

    def _block(self, fragment: Any) -> Block:
        meta = fragment.metadata
        key = {
            "files": [[f.path, list(f.fields)] for f in meta.files],
            "deletions": repr(meta.deletion_file) if meta.deletion_file else None,
        }
        batches: list[Any] = []

        def load() -> tuple[int, dict[str, int], int]:
            batches.extend(fragment.to_batches(batch_size=65_536))
            self.decoded_files += 1
            return sizes(self.layout, batches)

        return self.cache.get(key, self.layout, load, lambda block: fill_block(self.layout, block, batches))

    def _tails(self, ids: Ids, stages: frozenset[str]) -> tuple[Ids, Block | None]:
        with store_errors("reading buffer", self.data.location):
            dataset = self.data.dataset("tails")
            if not dataset.count_rows():
                return ids[:0], None
            few = None
            if len(ids) <= FEW_TAILS:
                few = f"seq IN ({', '.join(map(str, np.unique(ids['seq']).tolist()))})"
            table = dataset.to_table(filter=few)
        wanted = set(ids.tolist())
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

    def _has_step_facts(self, chain: list[Promotion]) -> bool:
        if not any(p.record["facts"] for p in chain):
            return False
        with store_errors("reading buffer", self.data.location):
            return bool(self.data.dataset("facts").count_rows("step_seq IS NOT NULL"))

    def _facts(self, stages: frozenset[str]) -> FactIndex:
        with store_errors("reading buffer", self.data.location):
            table = self.data.dataset("facts").to_table()
        columns = {name: table.column(name).to_pylist() for name in table.column_names if name != "time"}
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
        return FactIndex.of(sorted(facts, key=lambda f: f[:2]))


class _Once:
    """A value that is computed when first asked for."""

    def __init__(self, make: Any) -> None:
        self._make, self._value = make, None

    def __call__(self) -> Any:
        if self._value is None:
            self._value = self._make()
        return self._value


def _check_order(pieces: list[tuple[Block, int, int]], cut: Cut, name: str) -> None:
    """Raises CorruptionError unless the blocks hold the cut's rows in its order (first and last row of each piece)."""
    ends = np.cumsum([0] + [e.stop - e.start for e in cut.extents])
    at = 0
    for block, start, stop in pieces:
        for row, slot in ((start, at), (stop - 1, at + stop - start - 1)):
            k = int(np.searchsorted(ends, slot, side="right")) - 1
            record = block.records[row]
            if k >= len(cut.extents) or (int(record["writer"]), int(record["seq"])) != (
                cut.extents[k].writer,
                cut.extents[k].start + slot - int(ends[k]),
            ):
                raise CorruptionError(
                    f"{name}: row {slot} is {record['writer']}:{record['seq']}, which its cut does not place there"
                )
        at += stop - start
    if at != int(ends[-1]):
        raise CorruptionError(f"{name} holds {at} rows, its cut names {int(ends[-1])}")
