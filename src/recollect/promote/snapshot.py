"""Snapshot: what a workspace holds and a buffer does not becomes one version of the buffer, exactly once.

The order of work and the argument for every crash point are in design/0004. In short: rows, facts and tails are
staged where no reader looks; one commit on exactly the version that was read makes them and the promotion's name
visible together; a commit by anyone else in between refuses ours, and we look again.
"""

from __future__ import annotations

import contextlib
import os
import random
import time
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any

from recollect.cold.dataset import Datasets
from recollect.cold.faults import Backoff, persist
from recollect.cold.fold import Promotion
from recollect.cold.history import History
from recollect.cold.location import Location
from recollect.errors import AlreadyExists, ConflictError, NotFound, StoreError, StoreUnavailable
from recollect.hot import home
from recollect.hot.format.files import locked, make_folder, os_errors
from recollect.hot.read.store import HotStore, State
from recollect.promote.choose import Selection, Survey, survey
from recollect.promote.plan import Mark, Plan, missing, pending, plan, watermark
from recollect.promote.result import Snapshot, nothing_to_promote
from recollect.promote.stage import Progress, Staged, facts_of, pieces_of, stage
from recollect.promote.statistics import Statistics
from recollect.promote.tags import check_tag
from recollect.promote.upkeep import row_bytes, tend
from recollect.records.layout import Layout
from recollect.view import Cut, FactIndex, hull
from recollect.where.parse import parse

ATTEMPTS = 50
STAGE_LIFETIME_S = 24 * 3600
PROMOTER_WAIT_S = 600.0
"""How long a promotion waits for another one of the same workspace to the same buffer."""


def snapshot(
    store: HotStore,
    workspace: str,
    lock: Path,
    location: Location,
    tag: str | None,
    progress: Progress | None,
    *,
    finished_only: bool = False,
    where: str | None = None,
    dry_run: bool = False,
    commit: str | None = None,
) -> Snapshot:
    """Promotes what `store` holds beyond the buffer at `location`, or beyond the branch of it.

    Args:
        workspace: the workspace's id; `lock` a file of it that serialises its promoters on this machine.
        tag: name of the version; None for none.
        progress: called with rows written and rows to write.
        finished_only: leaves out episodes that somebody has open (`promote.choose.survey`).
        where: takes only episodes that this condition on their facts is true of.
        dry_run: plans and counts, writes nothing and takes no lock.
        commit: what the lineage says of the code that wrote the rows.

    Raises:
        ArgumentError: a condition that cannot be read, or that asks for fields of steps.
        AlreadyExists: the tag names another version.
        SchemaMismatch: the buffer has another schema.
        ConflictError: others committed first, 50 times over; or another promotion from here did not end.
        StoreError: the store cannot be reached or written.
    """
    check_tag(tag)
    started = time.perf_counter()
    condition = None
    if where is not None:
        store.layouts.refresh()
        condition = parse(where, store.layout.schema)
        condition.require_episode_only("snapshot(where=)")
    promotion = _Promotion(store, workspace, location, tag, progress, Selection(finished_only, condition), started)
    promotion.code = commit
    if dry_run:
        with store.pinned():
            return promotion.rehearse()
    with home.held(lock.parent.parent, workspace), os_errors("creating", lock.parent):
        make_folder(lock.parent)
    with locked(lock, PROMOTER_WAIT_S), store.pinned():
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
        selection: Selection,
        started: float,
    ) -> None:
        self.store, self.workspace, self.location, self.tag = store, workspace, location, tag
        self.selection = selection
        self.data: Datasets
        self.layout: Layout  # the newest when the cut was taken: the schema may evolve meanwhile
        self.state: State
        self.progress, self.started = progress, started
        self.code: str | None = None
        self.created = False
        self.staged: Staged | None = None
        self.staged_at = 0.0
        self.attempts: dict[str, tuple[int, Plan, Survey]] = {}
        """Promotion id → base version and what it holds, of every commit tried: a refusal may echo our own success."""
        self.survey: Survey | None = None
        self.index: FactIndex | None = None
        self.gap_rows = self.gap_facts = 0

    def run(self) -> Snapshot:
        cut = self._begin()
        data = self._open()
        if data is None:
            todo, found = self._plan(cut, {})
            if todo.is_empty or (not todo.rows and todo.held_rows):
                return self._nothing_yet(todo, found)
            data = persist(lambda: Datasets.create(self.location, self.layout.schema))
            self.created = True
            self._require_schema(data)
        self.data = data
        backoff = Backoff()
        while True:
            try:
                return self._promote(data, cut)
            except StoreUnavailable as e:
                backoff.wait(e)  # what came of it is unknown: the next round looks first

    def rehearse(self) -> Snapshot:
        """What `run` would do now. Reads only."""
        cut = self._begin()
        data = self._open()
        chain: list[Promotion] = []
        version = None
        if data is not None:
            data.refresh()
            chain, version = data.history().chain, int(data.steps.version)
            intent = self._intent(data, chain)
            if intent is not None and intent.tag == self.tag:
                return replace(self._finished_earlier(data.version_of(intent), intent), dry_run=True)
        todo, found = self._plan(cut, watermark(chain))
        if data is None and (todo.is_empty or (not todo.rows and todo.held_rows)):
            return replace(self._nothing_yet(todo, found), dry_run=True)
        self.gap_rows = self._new_gap(chain)
        if data is not None:
            tagged = self._tagged_version(data, todo)
            if todo.is_empty:
                return replace(self._nothing_new(data, chain, cut, tagged, todo, found), dry_run=True)
        self.created = data is None
        self.gap_facts = facts_of(todo, self.state.facts)[1]
        total = (chain[-1].total_rows if chain else 0) + todo.rows
        what = f"would create {self.location}, " if self.created else f"would add to {self.location}, "
        done = self._result(0, todo, found, total)
        return replace(
            done,
            version=version if chain else None,
            dry_run=True,
            message=f"{what}{todo.rows:,} rows of {found.episodes:,} episodes, {total:,} rows in all"
            f"{self._left(todo, found)}{self._gap()}; nothing was written",
        )

    def _begin(self) -> Cut:
        self.state = self.store.state()
        self.layout = self.store.layout
        return self.state.cut

    def _plan(self, cut: Cut, marks: dict[int, Mark]) -> tuple[Plan, Survey]:
        """What to add beyond `marks`, and the episodes concerned; looked at anew when others promoted some."""
        waiting, _ = pending(cut, marks)
        if self.survey is None or self.survey.waiting != waiting:
            self.survey = survey(self.store, self.layout, cut, waiting, self._facts, self.selection)
        return plan(cut, marks, self.survey.left_out), self.survey

    def _facts(self) -> FactIndex:
        if self.index is None:
            self.index = FactIndex.of(f for read in self.state.facts.values() for f in read())
        return self.index

    def _promote(self, data: Datasets, cut: Cut) -> Snapshot:
        for attempt in range(ATTEMPTS):
            data.refresh()
            base = data.steps
            history = data.history(base)
            chain = history.chain
            finished = self._finish_intent(data, chain)
            if finished is not None and finished.tag == self.tag:
                return self._finished_earlier(data.version_of(finished), finished)
            todo, found = self._plan(cut, watermark(chain))
            self.gap_rows = self._new_gap(chain)
            landed = self._landed(history)
            if landed is not None:
                at = data.version_of(landed)
                self._tag(data, at)
                return self._result(at, *self.attempts[landed.id][1:], landed.total_rows)
            tagged = self._tagged_version(data, todo)
            if todo.is_empty:
                if chain and tagged is None:
                    self._tag(data, int(data.steps.version))
                return self._nothing_new(data, chain, cut, tagged, todo, found)
            if self.staged is not None and time.monotonic() - self.staged_at > STAGE_LIFETIME_S:
                self.staged = None  # whoever cleans up may have taken the files for abandoned
            if self.staged is None or self.staged.todo != todo:
                self.staged_at = time.monotonic()
                facts, self.gap_facts = facts_of(todo, self.state.facts)
                self.staged = stage(data, self.store, self.layout, todo, facts, self.progress)
            version = self._commit(data, base, history, self.staged, found)
            if version is not None:
                self._tag(data, version)
                total = (chain[-1].total_rows if chain else 0) + todo.rows
                return self._result(version, todo, found, total)
            time.sleep(random.SystemRandom().uniform(0.005, 0.02) * min(attempt + 1, 20))
        raise ConflictError(
            f"snapshot to {self.location.uri!r}: others committed first {ATTEMPTS} times",
            remedy="Run it again; nothing was lost and nothing was added twice",
        )

    def _landed(self, history: History) -> Promotion | None:
        """The one of our attempts that the buffer holds, None for none."""
        for name, (base, _, _) in self.attempts.items():
            if (found := history.find(name, base)) is not None:
                return found
        return None

    def _mine(self, chain: list[Promotion]) -> list[Promotion]:
        return [p for p in chain if p.workspace == self.workspace]

    def _missing(self, chain: list[Promotion]) -> int:
        return missing(self.state.firsts, self.state.gone_rows, chain, self.workspace, self.state.holes)

    def _new_gap(self, chain: list[Promotion]) -> int:
        """Rows that are gone, beyond those that a promotion of ours has told."""
        told = max((p.record.get("missing_rows", 0) for p in self._mine(chain)), default=0)
        return self._missing(chain) - int(told)

    def _open(self) -> Datasets | None:
        """The buffer, None where there is none."""
        try:
            data = persist(lambda: Datasets.open_(self.location))
        except NotFound:
            if self.location.branch:
                raise
            return None
        self._require_schema(data)
        return data

    def _require_schema(self, data: Datasets) -> None:
        what = f"buffer {self.location.uri!r}"
        promoted = data.promoted_schema
        if promoted.evolves_to(self.layout.schema):
            self.layout.schema.require_equal(
                promoted, what=what, remedy="The workspace's schema has evolved since: snapshot to a new buffer"
            )
        self.layout.schema.require_equal(promoted, what=what)

    # -- tags ----------------------------------------------------------------------------------------------

    def _intent(self, data: Datasets, chain: list[Promotion]) -> Promotion | None:
        """A promotion of ours that was killed before it made its tag, None for none."""
        mine = [p for p in self._mine(chain) if p.tag and p.id not in self.attempts]
        return mine[-1] if mine and not data.has_tag(mine[-1].tag) else None

    def _finish_intent(self, data: Datasets, chain: list[Promotion]) -> Promotion | None:
        """Makes the tag that a promotion of ours was killed before making; that promotion, None for none."""
        intent = self._intent(data, chain)
        if intent is not None:
            with contextlib.suppress(NotFound):  # cleaned up since, without its tag
                data.create_tag(intent.tag, data.version_of(intent))
                return intent
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
        raise AlreadyExists(f"tag {self.tag!r} names version {at} of {self.location}", remedy="Choose another tag")

    def _tag(self, data: Datasets, version: int) -> None:
        if self.tag is not None and not data.create_tag(self.tag, version):
            at = data.tagged(self.tag)
            if at != version:
                raise AlreadyExists(
                    f"tag {self.tag!r} was given to version {at} meanwhile; the rows are in version {version}",
                    remedy="Run the snapshot again with another tag",
                )

    # -- committing ----------------------------------------------------------------------------------------

    def _commit(self, data: Datasets, base: Any, history: History, staged: Staged, found: Survey) -> int | None:
        """One attempt. The new version, or None when another commit took its place."""
        todo = staged.todo
        parent, chain = history.head, history.chain
        total = Statistics(self.layout, parent.record["statistics"] if parent else None)
        for path, sums in staged.statistics.fields.items():
            total.fields[path].merge_dict(sums.to_dict())
        if todo.rows:
            total.add_returns(pieces_of(self.store, todo.extents, self.layout))
        ends = {w: e.stop for w, e in hull(self.state.cut.extents).items()}
        finished = {w for w, log in self.store.logs.items() if log.sealed and log.end <= ends.get(w, log.first.row)}
        finished -= {e.writer for e in todo.held}
        finished |= {int(w) for p in self._mine(chain) for w, _, _ in p.record["extents"]} - self.store.logs.keys()
        total.close_writers(finished)
        name = uuid.uuid4().hex
        self.attempts[name] = (int(base.version), todo, found)
        record = {
            "extents": [[str(e.writer), e.start, e.stop] for e in todo.extents],
            "facts": [[str(w), a, b] for w, a, b in todo.facts],
            "gaps": [[str(e.writer), e.start, e.stop] for e in todo.gaps],
            "missing_rows": self._missing(chain),
            "missing_facts": self.gap_facts,
            "held": [[str(e.writer), e.start, e.stop] for e in todo.held],
            "counts": {
                "open_episodes": found.open_episodes,
                "held_episodes": found.held_episodes,
                "held_rows": todo.held_rows,
            },
            "staged": staged.brought,
            "statistics": total.to_dict(),
            "schema": self.layout.schema.fingerprint,
            "lineage": {
                "pid": os.getpid(),
                "workspace_name": self.store.name,
                "finished_only": self.selection.finished_only,
                "where": None if self.selection.where is None else str(self.selection.where),
                "commit": self.code,
            },
        }
        before = parent.total_rows if parent else 0
        link = Promotion(
            name, parent.id if parent else "", staged.stage, int(base.version), time.time_ns(), self.workspace,
            self.tag or "", todo.rows, before + todo.rows, record,
        )  # fmt: skip
        data.record(link, history)
        try:
            return data.commit_steps(base, staged.fragments, name)
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

    def _left(self, todo: Plan, found: Survey) -> str:
        """What was left out, for the message."""
        if not todo.held_rows:
            return ""
        return f"; {todo.held_rows:,} rows of {found.held_episodes:,} episodes are held back"

    def _gap(self) -> str:
        return f"; {self.gap_rows:,} rows before them were evicted or deleted and are not here" if self.gap_rows else ""

    def _nothing_yet(self, todo: Plan, found: Survey) -> Snapshot:
        """Nothing to put into a buffer that is not there."""
        none = nothing_to_promote(self.location)
        if not todo.held_rows:
            return none
        message = f"nothing to promote{self._left(todo, found)}; {self.location} is not made"
        return replace(none, message=message, held_rows=todo.held_rows, held_episodes=found.held_episodes)

    def _nothing_new(
        self, data: Datasets, chain: list[Promotion], cut: Cut, tagged: int | None, todo: Plan, found: Survey
    ) -> Snapshot:
        version = int(data.steps.version) if tagged is None else tagged
        gap = f"; {self.gap_rows:,} rows were evicted before they came here" if self.gap_rows else ""
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
            f"nothing new to promote; {self.location} stays at version {version}"
            f"{f' ({self.tag})' if self.tag else ''} with {rows:,} rows{self._left(todo, found)}{gap}",
            gap_rows=self.gap_rows,
            held_rows=todo.held_rows,
            held_episodes=found.held_episodes,
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

    def _result(self, version: int, todo: Plan, found: Survey, total: int) -> Snapshot:
        seconds = time.perf_counter() - self.started
        facts = sum(stop - start for _, start, stop in todo.facts) - self.gap_facts
        named = f" ({self.tag})" if self.tag else ""
        made = "created " if self.created else ""
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
            f"{made}{self.location} version {version}{named}: {todo.rows:,} rows added, {total:,} in all, "
            f"{todo.rows / max(seconds, 1e-9):,.0f} rows/s{self._left(todo, found)}{self._gap()}",
            gap_rows=self.gap_rows,
            gap_facts=self.gap_facts,
            episodes=found.episodes,
            open_episodes=found.open_episodes,
            held_rows=todo.held_rows,
            held_episodes=found.held_episodes,
        )
