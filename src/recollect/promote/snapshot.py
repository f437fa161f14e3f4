"""Snapshot: what a workspace holds and a buffer does not becomes one version of the buffer, exactly once.

The order of work and the argument for every crash point are in design/0004. In short: rows, facts and tails are
staged where no reader looks; one commit on exactly the version that was read makes them and the promotion's name
visible together; a commit by anyone else in between refuses ours, and we look again.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from recollect.cold.arrow import to_batches
from recollect.cold.compact import full_rows
from recollect.cold.dataset import FACTS, Datasets
from recollect.cold.faults import Backoff, persist
from recollect.cold.fold import Promotion
from recollect.cold.history import History
from recollect.cold.location import Location
from recollect.errors import AlreadyExists, ConflictError, NotFound, StoreError, StoreUnavailable
from recollect.hot.files import locked
from recollect.hot.store import HotStore
from recollect.promote.plan import Mark, Plan, missing, plan, watermark
from recollect.promote.statistics import Statistics
from recollect.promote.tags import check_tag
from recollect.promote.upkeep import row_bytes, tend
from recollect.records.block import Block
from recollect.records.build import build_view, unchanged
from recollect.records.layout import Layout
from recollect.schema.arrow import arrow_schema
from recollect.view import Cut, Fact, FactIndex

ATTEMPTS = 50
STAGE_LIFETIME_S = 24 * 3600
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class Snapshot:
    """The outcome of a snapshot.

    Attributes:
        uri: the buffer.
        version, tag: the version that holds the cut, and its name (None when none was asked for).
        rows_added, facts_added: what this call promoted; both 0 when there was nothing new.
        rows: rows of the version.
        created: whether the buffer was created.
        gap_rows: rows that were evicted before this buffer got them, and that no earlier snapshot to it had named;
            `gap_facts` facts that this one would have promoted and that were evicted with their episodes.
        evicted_rows: rows that the workspace let go afterwards, since its home buffer holds them now.
        note: why nothing could be let go, or the buffer not be compacted; "" where all went well.
        cut: what was promoted; what the workspace held where that was nothing new; None where it holds nothing.
        seconds: wall time.
        message: one line for people.
    """

    uri: str
    version: int | None
    tag: str | None
    rows_added: int
    facts_added: int
    rows: int
    created: bool
    cut: Cut | None
    seconds: float
    message: str
    gap_rows: int = 0
    gap_facts: int = 0
    evicted_rows: int = 0
    note: str = ""


PROMOTER_WAIT_S = 600.0
"""How long a promotion waits for another one of the same workspace to the same buffer."""


def snapshot(
    store: HotStore,
    workspace: str,
    lock: Path,
    location: Location,
    tag: str | None,
    progress: Progress | None,
) -> Snapshot:
    """Promotes what `store` holds beyond the buffer at `location`.

    Args:
        workspace: the workspace's id; `lock` a file of it that serialises its promoters on this machine.
        tag: name of the version; None for none.
        progress: called with rows written and rows to write.

    Raises:
        AlreadyExists: the tag names another version.
        SchemaMismatch: the buffer has another schema.
        ConflictError: others committed first, 50 times over; or another promotion from here did not end.
        StoreError: the store cannot be reached or written.
    """
    check_tag(tag)
    started = time.perf_counter()
    lock.parent.mkdir(parents=True, exist_ok=True)
    with locked(lock, PROMOTER_WAIT_S), store.pinned():
        promotion = _Promotion(store, workspace, location, tag, progress, started)
        done = promotion.run()
    if not done.rows_added:
        return done
    return replace(done, note=tend(promotion.data, row_bytes(promotion.layout)))


class _Promotion:
    def __init__(
        self,
        store: HotStore,
        workspace: str,
        location: Location,
        tag: str | None,
        progress: Progress | None,
        started: float,
    ) -> None:
        self.store, self.workspace, self.location, self.tag = store, workspace, location, tag
        self.data: Datasets
        self.layout: Layout  # the newest when the cut was taken: the schema may evolve meanwhile
        self.progress, self.started = progress, started
        self.created = False
        self.staged: tuple[Plan, list[Any], str, list[str], Statistics] | None = None
        self.staged_at = 0.0
        self.attempts: dict[str, tuple[int, Plan]] = {}
        """Promotion id → (base version, what it holds), of every commit tried: a refusal may echo our own success."""
        self.facts: dict[int, Callable[[], list[Fact]]] = {}
        self.firsts: dict[int, int] = {}
        self.gone_rows = self.gap_rows = self.gap_facts = 0

    def run(self) -> Snapshot:
        cut, self.facts, self.firsts, self.gone_rows = self.store.state()
        self.layout = self.store.layout
        data = self._open(create=bool(cut.extents or cut.facts))
        if data is None:
            return nothing_to_promote(self.location)
        self.data = data
        backoff = Backoff()
        while True:
            try:
                return self._promote(data, cut)
            except StoreUnavailable as e:
                backoff.wait(e)  # what came of it is unknown: the next round looks first

    def _promote(self, data: Datasets, cut: Cut) -> Snapshot:
        for attempt in range(ATTEMPTS):
            data.refresh()
            base = data.steps
            history = data.history(base)
            chain = history.chain
            finished = self._finish_intent(data, chain)
            if finished is not None and finished.tag == self.tag:
                return self._finished_earlier(data.version_of(finished), finished)
            todo = plan(cut, watermark(chain))
            self.gap_rows = self._missing(chain) - max(
                (p.record.get("missing_rows", 0) for p in self._mine(chain)), default=0
            )
            landed = self._landed(history)
            if landed is not None:
                found = data.version_of(landed)
                self._tag(data, found)
                return self._result(found, self.attempts[landed.id][1], landed.total_rows, cut)
            tagged = self._tagged_version(data, todo)
            if todo.is_empty:
                return self._nothing_new(data, chain, cut, tagged)
            if self.staged is not None and time.monotonic() - self.staged_at > STAGE_LIFETIME_S:
                self.staged = None  # whoever cleans up may have taken the files for abandoned
            if self.staged is None or self.staged[0] != todo:
                self.staged_at = time.monotonic()
                self.staged = (todo, *self._stage(data, todo))
            version = self._commit(data, base, history, self.staged)
            if version is not None:
                self._tag(data, version)
                total = (chain[-1].total_rows if chain else 0) + todo.rows
                return self._result(version, todo, total, cut)
            time.sleep(random.SystemRandom().uniform(0.005, 0.02) * min(attempt + 1, 20))
        raise ConflictError(
            f"snapshot to {self.location.uri!r}: others committed first {ATTEMPTS} times",
            remedy="Run it again; nothing was lost and nothing was added twice",
        )

    def _landed(self, history: History) -> Promotion | None:
        """The one of our attempts that the buffer holds, None for none."""
        for name, (base, _) in self.attempts.items():
            if (found := history.find(name, base)) is not None:
                return found
        return None

    def _mine(self, chain: list[Promotion]) -> list[Promotion]:
        return [p for p in chain if p.workspace == self.workspace]

    def _missing(self, chain: list[Promotion]) -> int:
        return missing(self.firsts, self.gone_rows, chain, self.workspace)

    def _open(self, *, create: bool) -> Datasets | None:
        """The buffer, created where there is none and something to put into it."""
        try:
            data = persist(lambda: Datasets.open_(self.location))
        except NotFound:
            if not create:
                return None
            data = persist(lambda: Datasets.create(self.location, self.layout.schema))
            self.created = True
        what = f"buffer {self.location.uri!r}"
        if data.schema.evolves_to(self.layout.schema):
            self.layout.schema.require_equal(
                data.schema, what=what, remedy="The workspace's schema has evolved since: snapshot to a new buffer"
            )
        self.layout.schema.require_equal(data.schema, what=what)
        return data

    # -- tags ----------------------------------------------------------------------------------------------

    def _finish_intent(self, data: Datasets, chain: list[Promotion]) -> Promotion | None:
        """Makes the tag that a promotion of ours was killed before making; that promotion, None for none."""
        mine = [p for p in chain if p.workspace == self.workspace and p.tag and p.id not in self.attempts]
        if mine and data.tagged(mine[-1].tag) is None:
            with contextlib.suppress(NotFound):  # cleaned up since, without its tag
                data.create_tag(mine[-1].tag, data.version_of(mine[-1]))
                return mine[-1]
        return None

    def _tagged_version(self, data: Datasets, todo: Plan) -> int | None:
        """The version that our tag names already, None when it is free.

        Raises:
            AlreadyExists: it names another version than the one this snapshot would.
        """
        at = data.tagged(self.tag) if self.tag is not None else None
        if at is None:
            return None
        head = data.history(data.at_version(at)).head
        ours = head is not None and (head.tag, head.workspace) == (self.tag, self.workspace)
        if todo.is_empty and (ours or at == data.steps.version):
            return at
        raise AlreadyExists(
            f"tag {self.tag!r} names version {at} of {self.location.uri!r}", remedy="Choose another tag"
        )

    def _tag(self, data: Datasets, version: int) -> None:
        if self.tag is not None and not data.create_tag(self.tag, version):
            at = data.tagged(self.tag)
            if at != version:
                raise AlreadyExists(
                    f"tag {self.tag!r} was given to version {at} meanwhile; the rows are in version {version}",
                    remedy="Run the snapshot again with another tag",
                )

    # -- staging -------------------------------------------------------------------------------------------

    def _stage(self, data: Datasets, todo: Plan) -> tuple[list[Any], str, list[str], Statistics]:
        """Writes rows, facts and tails where no reader looks yet."""
        stage, now = uuid.uuid4().hex, time.time_ns()
        brought: list[str] = []
        statistics = Statistics(self.layout, None)
        pieces = self.store.pieces(todo.extents, self.layout)
        fragments = []
        if todo.rows:
            form = arrow_schema(self.layout.schema)
            rows = self._batches(pieces, form, statistics, todo.rows)
            fragments = data.stage_steps(rows, form, max_rows=full_rows(row_bytes(self.layout)))
        if todo.facts:
            data.append("facts", self._facts_table(todo, stage, now))
            brought.append("facts")
        tails = self._tails(todo)
        if tails is not None:
            form = data.dataset("tails").schema
            inner = pa.schema(list(form)[2:])
            batches = list(to_batches(self.layout, [(tails, 0, len(tails.records))], inner, observations_only=True))
            table = pa.Table.from_batches(batches, schema=inner)
            named = [pa.array([value] * len(table), form.field(k).type) for k, value in enumerate((stage, now))]
            data.append("tails", pa.table([*named, *table.columns], schema=form))
            brought.append("tails")
        return fragments, stage, brought, statistics

    def _batches(
        self, pieces: list[tuple[Block, int, int]], form: Any, statistics: Statistics, total: int
    ) -> Iterator[Any]:
        done = 0
        for block, start, stop in pieces:
            at = start
            for batch in to_batches(self.layout, [(block, start, stop)], form):
                statistics.add_fields(block, at, at + batch.num_rows)
                at += batch.num_rows
                done += batch.num_rows
                yield batch
                if self.progress is not None:
                    self.progress(done, total)

    def _facts_table(self, todo: Plan, stage: str, now: int) -> Any:
        facts = [f for w, start, _ in todo.facts for f in self.facts[w]() if f.seq >= start]
        self.gap_facts = sum(stop - start for _, start, stop in todo.facts) - len(facts)
        return pa.table(
            {
                "stage": [stage] * len(facts),
                "staged": pa.array([now] * len(facts), FACTS.field("staged").type),
                "writer": [f.writer for f in facts],
                "seq": [f.seq for f in facts],
                "time": pa.array([f.time_ns for f in facts], pa.timestamp("ns", tz="UTC")),
                "episode_writer": [f.episode.writer for f in facts],
                "episode": [f.episode.counter for f in facts],
                "step_writer": [f.step.writer if f.step else None for f in facts],
                "step_seq": [f.step.seq if f.step else None for f in facts],
                "values": [json.dumps(f.values, ensure_ascii=False) for f in facts],
            },
            schema=FACTS,
        )

    def _tails(self, todo: Plan) -> Block | None:
        """Observations that follow new steps whose successor is not in the cut."""
        found: list[Block] = []

        def keep(ids: Any) -> tuple[Any, Block | None]:
            mine = np.zeros(len(ids), np.bool_)
            for e in todo.extents:
                mine |= (ids["writer"] == e.writer) & (ids["seq"] >= e.start) & (ids["seq"] < e.stop)
            got, block = self.store.tails(ids[mine], self.layout)
            if block is not None:
                found.append(block)
            return got, block

        if self.layout.schema.observations and todo.rows:
            newest = Cut(todo.extents, ())
            build_view(
                self.layout, newest, self.store.pieces(newest.extents, self.layout), keep, FactIndex, unchanged, ""
            )
        if not found:
            return None
        return found[0]

    # -- committing ----------------------------------------------------------------------------------------

    def _commit(
        self,
        data: Datasets,
        base: Any,
        history: History,
        staged: tuple[Plan, list[Any], str, list[str], Statistics],
    ) -> int | None:
        """One attempt. The new version, or None when another commit took its place."""
        todo, fragments, stage, brought, added = staged
        parent, chain = history.head, history.chain
        total = Statistics(self.layout, parent.record["statistics"] if parent else None)
        for path, sums in added.fields.items():
            total.fields[path].merge_dict(sums.to_dict())
        if todo.rows:
            total.add_returns(self.store.pieces(todo.extents, self.layout))
        marks = watermark(chain) | {e.writer: Mark(e.stop) for e in todo.extents}
        finished = {w for w, log in self.store.logs.items() if log.sealed and marks.get(w, Mark()).rows == log.rows}
        finished |= {int(w) for p in self._mine(chain) for w, _, _ in p.record["extents"]} - self.store.logs.keys()
        total.close_writers(finished)
        name = uuid.uuid4().hex
        self.attempts[name] = (int(base.version), todo)
        record = {
            "extents": [[str(e.writer), e.start, e.stop] for e in todo.extents],
            "facts": [[str(w), a, b] for w, a, b in todo.facts],
            "gaps": [[str(e.writer), e.start, e.stop] for e in todo.gaps],
            "missing_rows": self._missing(chain),
            "missing_facts": self.gap_facts,
            "staged": brought,
            "statistics": total.to_dict(),
            "schema": self.layout.schema.fingerprint,
            "lineage": {"pid": os.getpid(), "workspace_name": self.store.name},
        }
        before = parent.total_rows if parent else 0
        link = Promotion(
            name, parent.id if parent else "", stage, int(base.version), time.time_ns(), self.workspace, self.tag or "",
            todo.rows, before + todo.rows, record,
        )  # fmt: skip
        data.record(link, history)
        try:
            return data.commit_steps(base, fragments, name)
        except ConflictError:
            return None
        except StoreError:
            # The outcome is unknown: the reply may have been lost after the commit landed. The chain tells.
            data.refresh()
            landed = data.history().find(name, int(base.version))
            if landed is None:
                raise
            return data.version_of(landed)

    # -- results -------------------------------------------------------------------------------------------

    def _nothing_new(self, data: Datasets, chain: list[Promotion], cut: Cut, tagged: int | None) -> Snapshot:
        version = int(data.steps.version) if tagged is None else tagged
        gap = f"; {self.gap_rows:,} rows were evicted before they came here" if self.gap_rows else ""
        if chain and tagged is None:
            self._tag(data, version)
        head = data.history(data.at_version(version)).head
        rows = head.total_rows if head else 0
        return Snapshot(
            self.location.uri,
            version if chain else None,
            self.tag if chain else None,
            0,
            0,
            rows,
            self.created,
            cut if chain else None,
            time.perf_counter() - self.started,
            f"nothing new to promote; {self.location.uri} stays at version {version}"
            f"{f' ({self.tag})' if self.tag else ''} with {rows:,} rows{gap}",
            gap_rows=self.gap_rows,
        )

    def _finished_earlier(self, version: int, promotion: Promotion) -> Snapshot:
        return Snapshot(
            self.location.uri,
            version,
            self.tag,
            0,
            0,
            promotion.total_rows,
            False,
            None,
            time.perf_counter() - self.started,
            f"an earlier run promoted {promotion.rows:,} rows as version {version} and was stopped before it made the "
            f"tag {self.tag!r}; it is made now. Newer rows wait for the next snapshot",
        )

    def _result(self, version: int, todo: Plan, total: int, cut: Cut) -> Snapshot:
        seconds = time.perf_counter() - self.started
        facts = sum(stop - start for _, start, stop in todo.facts) - self.gap_facts
        named = f" ({self.tag})" if self.tag else ""
        made = "created " if self.created else ""
        gap = f"; {self.gap_rows:,} rows before them were evicted and are not here" if self.gap_rows else ""
        return Snapshot(
            self.location.uri,
            version,
            self.tag,
            todo.rows,
            facts,
            total,
            self.created,
            Cut(todo.extents, tuple((w, stop) for w, _, stop in todo.facts)),
            seconds,
            f"{made}{self.location.uri} version {version}{named}: {todo.rows:,} rows added, {total:,} in all, "
            f"{todo.rows / max(seconds, 1e-9):,.0f} rows/s{gap}",
            gap_rows=self.gap_rows,
            gap_facts=self.gap_facts,
        )


def nothing_to_promote(location: Location) -> Snapshot:
    """The outcome for a workspace that nobody has written to: nothing is created."""
    return Snapshot(location.uri, None, None, 0, 0, 0, False, None, 0.0, "nothing to promote: nobody has written yet")
