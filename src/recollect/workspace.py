"""`Workspace`: the hot end. Composes log, recall and promotion; no logic of its own."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from recollect.errors import ArgumentError, NotFound, SchemaError
from recollect.hot import home
from recollect.hot.format.targets import change_home, read_home
from recollect.hot.home import Description
from recollect.hot.keep import Keep
from recollect.hot.private import PrivateFolder
from recollect.hot.read.store import HotStore
from recollect.hot.recovery.recover import Recovery, recover
from recollect.hot.retention.delete import Deletion, delete
from recollect.hot.retention.evict import Eviction
from recollect.hot.retention.retain import Retainer
from recollect.hot.retention.selection import Episodes, Ids
from recollect.hot.write.annotator import Annotator
from recollect.hot.write.facts import check_facts, check_step_facts
from recollect.hot.write.growing import Durability
from recollect.hot.write.resume import ResumePoint, resume_point
from recollect.hot.write.writer import Writer, only_here
from recollect.masking import Masker
from recollect.masking import keep as unmasked
from recollect.recall import recent as recalled
from recollect.recall.results import EpisodeRecord, Hits
from recollect.recall.stats import WorkspaceStats, collect, nothing_written
from recollect.recall.text import TextIndex
from recollect.recall.verify import Report, verify
from recollect.recall.window import with_predecessors
from recollect.records.layout import Layout
from recollect.schema import Change, Schema
from recollect.schema.values import check_text
from recollect.view import Cut, EpisodeKey, StepId, View

if TYPE_CHECKING:
    from recollect.hot.read.live import LiveSource
    from recollect.promote.result import Snapshot


_live: weakref.WeakSet[Workspace] = weakref.WeakSet()


class Workspace:
    """The append-only log that live agents write to and recall from. Thread-safe. A forked child may go on reading with
    its parent's handle; its writers are its own.

    Get one from `create_workspace` or `open_workspace`.

    Attributes:
        name, path, id, durability: what it was created with.
        recovered: logs of writers that had died, sealed when this handle was opened.
    """

    def __init__(self, description: Description, mask: Masker = unmasked, folder: PrivateFolder | None = None) -> None:
        self.name, self.path, self.id = description.name, description.path, description.id
        self.durability: Durability = description.durability
        self._mask = mask
        self._store: HotStore | None = None
        self._text: TextIndex | None = None
        self._private = folder
        self._start_over()
        _live.add(self)
        self.recovered: list[Recovery] = []
        if self.schema is not None:
            self.recovered = recover(self.path / "log", self._hot().layouts)
            self.retainer.try_run()

    def _start_over(self) -> None:
        """In a forked child: the parent's writers are not this handle's, nobody holds its lock, nobody evicts."""
        self._lock = threading.Lock()
        self._annotator = Annotator(self._annotating_writer)
        self._writers: list[Writer] = []
        self.retainer = Retainer(self.path, self.id, self._hot, self._own_writers)

    # -- schema --------------------------------------------------------------------------------------------

    @property
    def schema(self) -> Schema | None:
        """The newest version of the schema, None while nobody has fixed it."""
        if self._store is not None:
            self._store.layouts.refresh()
            return self._store.layout.schema
        return home.read_schema(self.path)

    def evolve(self, schema: Schema) -> list[Change]:
        """Makes `schema` the next version of the workspace's own. Everything written before stays readable.

        Fields may be added that are optional or have a default, dtypes widened, required fields made optional or given
        a default, episode facts added (`Schema.evolution`). From now on views have the new schema, in every process:
        older rows read as null or the default where they lack a field. Writers that are open go on under the old
        schema, new ones begin under the new. Durable when it returns.

        Returns:
            The changes, none where the workspace has that schema already.

        Raises:
            SchemaMismatch: a change that would lose values or change their meaning; each field is named.
            SchemaError: the workspace has no schema yet.
        """
        if not isinstance(schema, Schema):
            raise SchemaError("evolve() takes a Schema", value=schema, remedy="Wrap the fields: rc.Schema({...})")
        return home.evolve_schema(self.path, schema)

    def _hot(self) -> HotStore:
        with self._lock:
            if self._store is None:
                try:
                    layouts = home.layouts(self.path)
                except NotFound:
                    home.require(self.path, self.id)
                    raise SchemaError(
                        f"workspace {self.name!r} has no schema yet",
                        remedy="Pass schema= to create_workspace() or to the first writer()",
                    ) from None
                self._store = HotStore(self.path / "log", layouts, self.name)
            return self._store

    # -- retention -----------------------------------------------------------------------------------------

    @property
    def keep(self) -> Keep:
        """What the workspace keeps."""
        return self.retainer.keep

    def set_keep(self, keep: Keep) -> None:
        """Changes what the workspace keeps, for every process that has it open. Evicts at the next occasion; waits for
        an eviction under the older limits that this handle has begun."""
        if not isinstance(keep, Keep):
            raise ArgumentError("set_keep() takes a Keep", value=keep, remedy="Write rc.Keep(rows=1_000_000)")
        self.retainer.close()
        home.change_keep(self.path, keep)

    @property
    def home(self) -> str | None:
        """The buffer whose rows may go once it holds them: the first target of a snapshot, or the one named."""
        return read_home(self.path)

    def set_home(self, uri: str | os.PathLike[str]) -> None:
        """Names another home buffer, or the same one anew after it was replaced. Its next snapshot reads what it holds;
        until then nothing counts as promoted."""
        from recollect.cold.location import Location

        change_home(self.path, Location(uri).uri)

    def evict(self) -> Eviction:
        """Evicts what may go, now. It happens by itself too: when the workspace is opened, after a snapshot, and when a
        writer goes on in a new segment.

        Raises:
            StoreError: the folder cannot be written.
            CorruptionError: a note or segment is damaged.
        """
        if self.schema is None:
            return Eviction()
        self.retainer.close()
        return self.retainer.run()

    def _own_writers(self) -> list[Writer]:
        return [*self._writers, *self._annotator.writers]

    # -- writing -------------------------------------------------------------------------------------------

    def writer(self, agent: str = "", *, schema: Schema | None = None, durability: Durability | None = None) -> Writer:
        """A writer of its own log, for one thread.

        Args:
            agent: a name for people.
            schema: fixes the schema of a workspace that has none; otherwise it must equal its newest version.
            durability: the workspace's own when None.

        Raises:
            SchemaError: no schema yet, and none given.
            SchemaMismatch: another schema; each field that differs is named.
            NotFound: the workspace was deleted.
            DiskFull, StoreError: the log cannot be created.
        """
        if not isinstance(agent, str):
            raise ArgumentError("a writer's agent is a name, text", value=agent)
        chosen = durability or self.durability
        if chosen not in home.DURABILITIES:
            raise ArgumentError("unknown durability", value=chosen, remedy=f"One of {', '.join(home.DURABILITIES)}")
        with home.held(self.path, self.id):
            if schema is not None:
                home.fix_schema(self.path, schema)
            layouts = self._hot().layouts
            layouts.refresh()
            writer = Writer(
                self.path / "log",
                layouts.newest,
                agent=check_text(self._mask(agent), "agent"),
                durability=chosen,
                mask=self._mask,
                on_roll=self.retainer.after_roll,
                largest=self.keep.segment_bytes(layouts.newest.row_bytes),
                find=self._resume_point,
            )
        with self._lock:
            self._writers = [w for w in self._writers if w.is_open] + [writer]
        return writer

    def _resume_point(self, target: str | EpisodeKey | StepId, layout: Layout) -> ResumePoint:
        store = self._hot()
        with store.pinned():
            key = recalled.resolve(store, store.cut(), target)
            recalled.require_episode(store, key, target)
            return resume_point(store, key, layout)

    def annotate(self, target: str | EpisodeKey | StepId, **facts: Any) -> StepId:
        """Adds late facts about an episode (by id or key) or a step (by StepId). The newest wins, all are kept.

        Episode facts are `status`, `reward`, `lesson` and the schema's; step facts are new values of the step's own
        fields, by dotted path (`**{"info.x": 1}` for nested ones). Visible at once.

        Raises:
            NotFound: no such episode or step.
            FieldError: a fact that the schema lacks or that does not fit.
            StoreError: the disk refused to flush facts noted earlier. This one was not noted; the next call begins
                a log of its own.
        """
        store = self._hot()
        if not facts:
            raise ArgumentError("annotate() takes facts")
        if not isinstance(target, str | EpisodeKey | StepId):
            raise ArgumentError("annotate() takes an episode's id or key, or a StepId", value=target)
        key = recalled.resolve(store, store.cut(), target)
        step = target if isinstance(target, StepId) else None
        if step is None:
            recalled.require_episode(store, key, target)
            values = check_facts(store.layout.schema, facts, self._mask)
        else:
            values = check_step_facts(store.layout.schema, facts, self._mask)
        return self._annotator.annotate(key, step, values)

    def _annotating_writer(self) -> Writer:
        with home.held(self.path, self.id):
            layout = self._hot().layout
            return Writer(
                self.path / "log",
                layout,
                agent="annotate",
                durability=self.durability,
                mask=self._mask,
                on_roll=self.retainer.after_roll,
                largest=self.keep.segment_bytes(layout.row_bytes),
                only_facts=True,
            )

    # -- reading -------------------------------------------------------------------------------------------

    def recent(self, k: int = 32, *, where: str | None = None) -> Hits:
        """The newest `k` steps over all writers, newest first.

        Args:
            where: only steps that this condition is true of, such as `"reward > 0"`; `recollect.where` has the
                language. It is looked for as far back as it takes.

        Raises:
            ArgumentError: `k` below 1, or a condition that cannot be read.
            NotFound: a field or fact that the schema lacks.
        """
        return Hits(()) if self.schema is None else recalled.recent(self._hot(), k, where)

    def similar(self, query: str, k: int = 8) -> Hits:
        """The `k` steps that a text is most about, best first, with `scores`.

        Searched are text fields, the strings in JSON fields, and the text of facts; a fact about an episode leads to
        the episode's last step. What is not relevant is no hit: there may be fewer than `k`, or none.

        Raises:
            ArgumentError: a query that is no text, or `k` below 1.
        """
        return Hits(()) if self.schema is None else self._text_index().similar(query, k)

    def _text_index(self) -> TextIndex:
        store = self._hot()
        with self._lock:
            if self._text is None:
                self._text = TextIndex(store)
            return self._text

    def episode(self, episode: str | EpisodeKey | StepId) -> EpisodeRecord:
        """A whole episode by its id (the newest attempt), key, or one of its steps. Raises NotFound."""
        return recalled.episode(self._hot(), episode)

    def cut(self) -> Cut:
        """What is published now."""
        return Cut((), ()) if self.schema is None else self._hot().cut()

    def view(self, cut: Cut | None = None) -> View:
        """An immutable view of everything published now, or of an earlier cut."""
        return self._hot().view(cut)

    def live(self, last: int | None = None) -> LiveSource:
        """A source of views that grow: pass it to a `Loader`, and each batch is drawn from what is published by then.

        A row's slot never changes. A refresh costs what the new rows cost, and one look at each live writer's counter
        when there are none. The source belongs to one loader or thread. It goes on when the schema evolves: the next
        view has the newest schema, and the rows that it holds are read in it, once.

        Args:
            last: only the newest so many rows, in the order in which they arrived here, may be read and drawn; what
                was there before is ordered by time. A step whose frame stack reaches back to older rows is not
                drawn. All rows when None.

        Raises:
            ArgumentError: `last` is no whole number of at least 1.
            SchemaError: the workspace has no schema yet.
        """
        if last is not None and (not isinstance(last, int) or isinstance(last, bool) or last < 1):
            raise ArgumentError("last is a whole number of at least 1", value=last)
        from recollect.hot.read.live import LiveSource

        return LiveSource(self._hot(), last, lambda: only_here(home.live_writers(self.path)))

    def view_with_predecessors(self, cut: Cut) -> View:
        """A view that holds the rows of `cut`, and those before them that their frame stacks reach back to."""
        store = self._hot()
        with store.pinned():
            return store.view(with_predecessors(store, cut))

    def stats(self) -> WorkspaceStats:
        """Counts over the whole workspace, and per writer what is visible and what is durable."""
        if self.schema is None:
            return nothing_written(self.path)
        return collect(self._hot(), self.path, self.retainer.stats)

    def verify(self, progress: Callable[[int, int], None] | None = None, *, repair: bool = False) -> Report:
        """Checks every checksum and counter, and the indexes against the logs; agents may go on meanwhile.

        Logs are only read. An index that is wrong is made again, and the report says so.

        Args:
            progress: called with rows checked and rows to check.
            repair: first gives up rows, facts and segments that are damaged or missing, for good: they are *holes* from
                then on, which every reader passes over, and everything else can be read. `Report.repaired` names their
                ids. Again it changes nothing.

        Raises:
            ConflictError: an eviction or another repair did not end.
            StoreError: the folder cannot be written.
        """
        return verify(self.path, progress, repair=repair)

    def delete(
        self,
        ids: Ids | None = None,
        *,
        episodes: Episodes | None = None,
        where: str | None = None,
        reason: str,
        purge: bool = False,
        dry_run: bool = False,
    ) -> Deletion:
        """Deletes poisoned or private experience: gone from every read at the next look, in every process.

        A step takes along the row that only holds its next observation, and such a row the step before it, which would
        get another's otherwise. The step before a deleted one cannot be drawn any more. Facts about deleted steps go
        too, and those about episodes that lose every row or are named. Ids are never used again, and the next snapshot
        counts what it lacks as `gap_rows`; copies that were promoted before stay in their buffers. Views made before
        stay as they are; a growing view keeps the slots, blank.

        Args:
            ids: steps, by `StepId`, its text, or `Extent`. What is not there is passed over.
            episodes: by id (every attempt at it) or `EpisodeKey`.
            where: such as `"episode.task = 'hopper' and reward > 100"`; `recollect.where` has the language.
            reason: kept with the time, masked as all text is; the values are not.
            purge: also overwrites the bytes, of earlier deletions too, and removes the indexes, so that no file of the
                workspace holds the values any more. Without any of the three it purges what was deleted before. The
                log of a live writer cannot be purged.
            dry_run: only says what would go.

        Raises:
            ArgumentError: none or several of `ids`, `episodes`, `where`, or one that cannot be read; no reason.
            NotFound: an episode, field or fact that is not there.
            WriterError: `purge` of what a live writer has; nothing was deleted.
            CorruptionError: the workspace is damaged: `verify(repair=True)` first.
            ConflictError, StoreError: it cannot be done now; run it again.
        """
        return delete(self._hot(), self._mask, ids, episodes, where, reason, purge=purge, dry_run=dry_run)

    # -- promoting -----------------------------------------------------------------------------------------

    def snapshot(
        self,
        to: str | os.PathLike[str],
        tag: str | None = None,
        *,
        storage_options: Mapping[str, str] | None = None,
        finished_only: bool = False,
        where: str | None = None,
        branch: str | None = None,
        commit: str | None = None,
        dry_run: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Snapshot:
        """Promotes everything that the buffer does not hold yet, exactly once, as one version.

        `finished_only` and `where` take whole episodes or none. What they leave out is *held back*: it stays in the
        workspace, whatever `Keep` says short of `unpromoted="drop"`, and is promoted by a later snapshot that takes it.

        Args:
            to: the buffer: a path, `file://` or `s3://…`. It is created when there is none. The first one becomes the
                workspace's home, unless `home=` named another.
            tag: name of the version.
            storage_options: endpoint, credentials and region of an object store.
            finished_only: only episodes that nobody has open: those that terminated or were truncated, that were
                closed, or whose writer is gone.
            where: only episodes that this condition on their facts is true of, such as `"episode.task = 'hopper'"`;
                `recollect.where` has the language. Facts count as they are now.
            branch: a branch that `Buffer.branch` made. It has a count of its own of what it holds; rows are not evicted
                on account of it, and it is never the workspace's home.
            commit: the commit of the code that wrote the rows, for the version's lineage; the variable
                `RECOLLECT_COMMIT` when None.
            dry_run: only says what would be promoted: writes nothing, creates nothing.
            progress: called with rows written and rows to write.

        Raises:
            ArgumentError: a condition that cannot be read, or that asks for fields of steps.
            AlreadyExists: the tag names another version.
            SchemaMismatch: the buffer has another schema.
            ConflictError: others kept committing first. Nothing is lost; run it again.
            NotFound: the workspace was deleted, or there is no such branch.
            StoreError, DiskFull: the store cannot be reached or written. Nothing is half-written; run it again.
        """
        from recollect.promote.promote import promote

        return promote(
            self.path, self.id, lambda: None if self.schema is None else self._hot(), self.retainer.try_run,
            to, tag, progress, storage_options=storage_options, finished_only=finished_only, where=where,
            branch=branch, commit=commit, dry_run=dry_run,
        )  # fmt: skip

    # -- closing -------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Closes the writers that this handle made, and its indexes. A private workspace is removed.

        Raises the first error there was, once everything else is closed.
        """
        closing = [*(w.close for w in self._own_writers()), self.retainer.close]
        if self._store is not None:
            closing.append(self._store.close)
        if self._text is not None:
            closing.append(self._text.file.close)
        if self._private is not None:
            closing.append(self._private.remove)
        failed: BaseException | None = None
        for close in closing:
            try:
                close()
            except BaseException as e:
                failed = failed or e
        with self._lock:
            self._writers = [w for w in self._writers if w.is_open]
        self._annotator.drop_closed()
        if failed is not None:
            raise failed

    def __enter__(self) -> Workspace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Workspace({self.name!r}, path={str(self.path)!r})"


def _after_fork() -> None:
    for workspace in list(_live):
        workspace._start_over()


os.register_at_fork(after_in_child=_after_fork)
