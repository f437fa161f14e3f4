"""Verify: whether everything that a buffer's versions name is there, readable, and what they say it is. Reads only."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recollect.cold.dataset import Datasets
from recollect.cold.faults import store_errors
from recollect.cold.history import History
from recollect.cold.watermark import watermark
from recollect.errors import CorruptionError, NotFound, RecollectError, StoreError
from recollect.view import Cut

BATCH_BYTES = 16 << 20
_RESTORE = "Restore the buffer from a backup, or promote the workspace to a new one"


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong.

    Attributes:
        where: the version, tag or file.
        what: what is wrong; `remedy` what can be done.
    """

    where: str
    what: str
    remedy: str


@dataclass
class BufferReport:
    """What was looked at, and what was wrong with it.

    Attributes:
        uri: the buffer; `newest` its newest version.
        versions: versions that were checked: the newest, and every one with a tag or a pin.
        tags, promotions, fragments, rows, facts: what of them was checked.
        findings: what is wrong; `repaired` what was done about a torn newest version.
    """

    uri: str
    newest: int = 0
    versions: int = 0
    tags: int = 0
    promotions: int = 0
    fragments: int = 0
    rows: int = 0
    facts: int = 0
    findings: list[Finding] = field(default_factory=list)
    repaired: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not self.findings

    def add(self, where: str, what: str, remedy: str = _RESTORE) -> None:
        self.findings.append(Finding(where, what, remedy))


def verify(data: Datasets, row_bytes: int, progress: Callable[[int, int], None] | None = None) -> BufferReport:
    """Checks the newest version, and every one that a tag or a pin names: its history, ids, order, every row of every
    file, facts and tails.

    Args:
        row_bytes: about how large a row is.
        progress: called with rows checked and rows to check.

    Raises:
        StoreError: the store cannot be reached.
    """
    return _Check(data, row_bytes, progress).run()


class _Check:
    def __init__(self, data: Datasets, row_bytes: int, progress: Callable[[int, int], None] | None) -> None:
        self.data, self.progress = data, progress
        self.batch_rows = max(1, min(1 << 16, BATCH_BYTES // max(row_bytes, 1)))
        self.report = BufferReport(data.location.uri)
        self.ids: dict[str, NDArray[np.int64]] = {}
        """Data files → writer and seq of their rows: versions share most of them."""
        self.bad: set[str] = set()
        self.done = self.total = 0

    def run(self) -> BufferReport:
        self.data.refresh()
        self.report.newest = int(self.data.steps.version)
        named = {self.report.newest: [f"version {self.report.newest}"]}
        tags = self.data.marks()
        for tag, version in sorted(tags.items()):
            named.setdefault(version, []).append(f"tag {tag}")
        self.report.tags = len(tags)
        opened = {}
        for version, names in sorted(named.items(), reverse=True):
            try:
                opened[version] = self.data.at_version(version)
            except (NotFound, StoreError) as e:
                self.report.add(", ".join(names), e.message, "Delete the tag; restore the version if it is needed")
        files = {_name(f): f.metadata.physical_rows for steps in opened.values() for f in steps.get_fragments()}
        self.total = sum(files.values())
        facts = self._stages("facts")
        tails = self._stages("tails")
        for version, steps in opened.items():
            self._version(", ".join(named[version]), steps, facts, tails)
        self.report.versions = len(opened)
        self.report.fragments = len(self.ids)
        return self.report

    # -- one version ---------------------------------------------------------------------------------------

    def _version(self, name: str, steps: Any, facts: dict[str, int], tails: dict[str, int]) -> None:
        try:
            history = self.data.history(steps)
            log = history.log()
            cut = history.cut
        except RecollectError as e:
            self.report.add(name, e.message, e.remedy or _RESTORE)
            return
        self.report.promotions = max(self.report.promotions, len(log))
        self._history(name, history, cut)
        for p in log:
            for kind, there in (("facts", facts), ("tails", tails)):
                if kind in p.record["staged"] and not there.get(p.stage):
                    self.report.add(name, f"{kind} of promotion {p.id} are missing")
        parts = [self._fragment(name, steps, f) for f in steps.get_fragments()]
        if all(part is not None for part in parts):
            self._order(name, [p for p in parts if p is not None], cut)

    def _history(self, name: str, history: History, cut: Cut) -> None:
        """Watermark and totals: no row is named twice, every one before them is accounted for, and the sums agree."""
        ranges = sorted(cut.extents)
        for before, after in pairwise(ranges):
            if before.writer == after.writer and after.start < before.stop:
                self.report.add(name, f"rows {after.start} to {before.stop} of writer {after.writer} are named twice")
        if history.head is not None and history.head.total_rows != cut.rows:
            self.report.add(name, f"its promotions name {cut.rows} rows, the newest counts {history.head.total_rows}")
        try:
            watermark(history.chain)
        except CorruptionError as e:
            self.report.add(name, e.message)

    def _order(self, name: str, parts: list[NDArray[np.int64]], cut: Cut) -> None:
        """The rows are those of the cut, in its order; so no id is there twice."""
        held = np.concatenate([np.empty((2, 0), np.int64), *parts], axis=1)
        self.report.rows = max(self.report.rows, held.shape[1])
        if held.shape[1] != cut.rows:
            self.report.add(name, f"it holds {held.shape[1]} rows, its promotions name {cut.rows}")
            return
        at = 0
        for e in cut.extents:
            stop = at + e.stop - e.start
            wrong = (held[0, at:stop] != e.writer) | (held[1, at:stop] != np.arange(e.start, e.stop))
            if wrong.any():
                slot = at + int(np.argmax(wrong))
                found = f"{held[0, slot]}:{held[1, slot]}"
                self.report.add(name, f"row {slot} is {found}, which its cut does not place there")
                return
            at = stop

    # -- files ---------------------------------------------------------------------------------------------

    def _fragment(self, name: str, steps: Any, fragment: Any) -> NDArray[np.int64] | None:
        """Reads every value of a fragment once; its ids `[2, rows]`, None where it cannot be read."""
        key = _name(fragment)
        if key in self.ids:
            return self.ids[key]
        if key in self.bad:
            return None
        parts = [np.empty((2, 0), np.int64)]
        try:
            with store_errors("reading", self.data.location):
                for batch in fragment.to_batches(batch_size=self.batch_rows):
                    parts.append(np.stack([batch.column(c).to_numpy() for c in ("writer", "seq")]))
                    _validate(batch)
                    self.done += batch.num_rows
                    if self.progress is not None:
                        self.progress(self.done, max(self.done, self.total))
        except RecollectError as e:
            self.bad.add(key)
            self.report.add(f"{name}, {fragment.metadata.files[0].path}", e.message)
            return None
        held = np.concatenate(parts, axis=1)
        expected = fragment.metadata.num_rows
        if held.shape[1] != expected:
            self.report.add(f"{name}, {fragment.metadata.files[0].path}", f"{held.shape[1]} rows, not {expected}")
        self.ids[key] = held
        return held

    def _stages(self, kind: str) -> dict[str, int]:
        """Rows of every stage of facts or tails, all columns read."""
        out: dict[str, int] = {}
        for batch in self._batches(kind):
            for stage in batch.column("stage").to_pylist():
                out[stage] = out.get(stage, 0) + 1
        if kind == "facts":
            self.report.facts = sum(out.values())
        return out

    def _batches(self, kind: str) -> Iterator[Any]:
        try:
            with store_errors("reading", self.data.location):
                yield from self.data.dataset(kind).to_batches()
        except RecollectError as e:
            self.report.add(kind, e.message)


def _name(fragment: Any) -> str:
    meta = fragment.metadata
    return f"{[f.path for f in meta.files]} {meta.deletion_file}"


def _validate(batch: Any) -> None:
    """Raises CorruptionError where decoded values are not what Arrow takes for valid."""
    try:
        batch.validate(full=True)
    except ValueError as e:
        raise CorruptionError(f"values that cannot be: {e}") from e
