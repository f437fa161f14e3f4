"""`Workspace`: the hot end. Composes log, recall and promotion; no logic of its own."""

from __future__ import annotations

import hashlib
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from recollect.errors import ArgumentError, NotFound, SchemaError, StoreError
from recollect.hot import home
from recollect.hot.facts import check_facts, check_step_facts
from recollect.hot.growing import Durability
from recollect.hot.home import Description
from recollect.hot.live import LiveSource
from recollect.hot.recover import Recovery, recover
from recollect.hot.resume import ResumePoint, resume_point
from recollect.hot.store import HotStore
from recollect.hot.writer import Writer
from recollect.masking import Masker, keep
from recollect.recall import recent as recalled
from recollect.recall.results import EpisodeRecord, Hits, nan_rewards
from recollect.recall.window import with_predecessors
from recollect.records.layout import Layout
from recollect.schema import Change, Schema
from recollect.view import Cut, EpisodeKey, StepId, View

if TYPE_CHECKING:
    from recollect.promote.snapshot import Snapshot


@dataclass(frozen=True)
class WriterStats:
    """One writer's log.

    Attributes:
        writer: its id; `agent` the name it was given.
        appended: rows ever appended.
        visible: rows that can be read here.
        durable: rows known to survive power loss, counted from the first one appended.
        facts: facts that can be read here.
        lost: rows that recovery found damaged after their writer's death, and cut off.
        live: whether it can still grow.
    """

    writer: int
    agent: str
    appended: int
    visible: int
    durable: int
    facts: int
    lost: int
    live: bool


@dataclass(frozen=True)
class WorkspaceStats:
    """Counts of a workspace, with `writers` one by one."""

    rows: int
    steps: int
    drawable: int
    undrawable_truncated: int
    undrawable_open: int
    episodes: int
    facts: int
    nan_rewards: int
    disk_bytes: int
    writers: tuple[WriterStats, ...]


_live: weakref.WeakSet[Workspace] = weakref.WeakSet()


class Workspace:
    """The append-only log that live agents write to and recall from. Thread-safe. A forked child may go on reading with
    its parent's handle; its writers are its own.

    Get one from `create_workspace` or `open_workspace`.

    Attributes:
        name, path, id, durability: what it was created with.
        recovered: logs of writers that had died, sealed when this handle was opened.
    """

    def __init__(self, description: Description, mask: Masker = keep) -> None:
        self.name, self.path, self.id = description.name, description.path, description.id
        self.durability: Durability = description.durability
        self._mask = mask
        self._store: HotStore | None = None
        self.start_over()
        _live.add(self)
        self.recovered: list[Recovery] = []
        if self.schema is not None:
            self.recovered = recover(self.path / "log", self._hot().layouts)

    def start_over(self) -> None:
        """In a forked child: the parent's writers are not this handle's, and nobody holds its lock."""
        self._lock = threading.Lock()
        self._annotator: Writer | None = None
        self._writers: list[Writer] = []

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
                    raise SchemaError(
                        f"workspace {self.name!r} has no schema yet",
                        remedy="Pass schema= to create_workspace() or to the first writer()",
                    ) from None
                self._store = HotStore(self.path / "log", layouts, self.name)
            return self._store

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
            DiskFull, StoreError: the log cannot be created.
        """
        if schema is not None:
            home.fix_schema(self.path, schema)
        chosen = durability or self.durability
        if chosen not in home.DURABILITIES:
            raise ArgumentError("unknown durability", value=chosen, remedy=f"One of {', '.join(home.DURABILITIES)}")
        layouts = self._hot().layouts
        layouts.refresh()
        writer = Writer(
            self.path / "log",
            layouts.newest,
            agent=self._mask(agent),
            durability=chosen,
            mask=self._mask,
            find=self._resume_point,
        )
        self._writers = [w for w in self._writers if w.is_open] + [writer]
        return writer

    def _resume_point(self, target: str | EpisodeKey | StepId, layout: Layout) -> ResumePoint:
        store = self._hot()
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
        with self._lock:
            if self._annotator is None or not self._annotator.usable:
                self._annotator = Writer(
                    self.path / "log",
                    store.layout,
                    agent="annotate",
                    durability=self.durability,
                    mask=self._mask,
                )
            return self._annotator.annotate(key, step, values)

    # -- reading -------------------------------------------------------------------------------------------

    def recent(self, k: int = 32) -> Hits:
        """The newest `k` steps over all writers, newest first."""
        return Hits(()) if self.schema is None else recalled.recent(self._hot(), k)

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
        when there are none. The source belongs to one loader or thread.

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
        return LiveSource(self._hot(), last)

    def view_with_predecessors(self, cut: Cut) -> View:
        """A view that holds the rows of `cut`, and those before them that their frame stacks reach back to."""
        return self._hot().view(with_predecessors(self._hot(), cut))

    def stats(self) -> WorkspaceStats:
        """Counts over the whole workspace, and per writer what is visible and what is durable."""
        if self.schema is None:
            return WorkspaceStats(0, 0, 0, 0, 0, 0, 0, 0, _disk_bytes(self.path), ())
        store = self._hot()
        alive = set(home.live_writers(self.path))  # before the logs: a log that is sealed since is not live
        view = store.view()
        stops = {e.writer: e.stop for e in view.cut.extents}
        logs = [store.logs[w] for w in sorted(store.logs)]
        return WorkspaceStats(
            rows=len(view.rows),
            steps=int((~view.episodes.is_final).sum()),
            drawable=len(view),
            undrawable_truncated=view.anchors.undrawable_truncated,
            undrawable_open=view.anchors.undrawable_open,
            episodes=len(view.episodes.keys),
            facts=sum(log.facts for log in logs),
            nan_rewards=nan_rewards(view),
            disk_bytes=_disk_bytes(self.path),
            writers=tuple(
                WriterStats(
                    writer=log.writer,
                    agent=log.agent,
                    appended=log.rows,
                    visible=stops.get(log.writer, 0),
                    durable=log.durable_rows,
                    facts=log.facts,
                    lost=0 if log.lost is None else log.lost[1] - log.lost[0],
                    live=log.writer in alive and not log.sealed,
                )
                for log in logs
            ),
        )

    # -- promoting -----------------------------------------------------------------------------------------

    def snapshot(
        self,
        to: str | os.PathLike[str],
        tag: str | None = None,
        *,
        storage_options: Mapping[str, str] | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Snapshot:
        """Promotes everything that the buffer does not hold yet, exactly once, as one version.

        Args:
            to: the buffer: a path, `file://` or `s3://…`. It is created when there is none.
            tag: name of the version.
            storage_options: endpoint, credentials and region of an object store.
            progress: called with rows written and rows to write.

        Raises:
            AlreadyExists: the tag names another version.
            SchemaMismatch: the buffer has another schema.
            ConflictError: others kept committing first. Nothing is lost; run it again.
            StoreError, DiskFull: the store cannot be reached or written. Nothing is half-written; run it again.
        """
        from recollect.cold.location import Location
        from recollect.promote.snapshot import check_tag, nothing_to_promote, snapshot

        check_tag(tag)
        location = Location(to, storage_options)
        if self.schema is None:
            return nothing_to_promote(location)
        digest = hashlib.sha256(location.uri.encode()).hexdigest()[:16]
        return snapshot(self._hot(), self.id, self.path / "targets" / f"{digest}.lock", location, tag, progress)

    # -- closing -------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Closes the writers that this handle made."""
        for writer in self._writers:
            writer.close()
        self._writers.clear()
        if self._annotator is not None:
            self._annotator.close()
            self._annotator = None

    def __enter__(self) -> Workspace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Workspace({self.name!r}, path={str(self.path)!r})"


def create_workspace(
    name: str | os.PathLike[str],
    schema: Schema | None = None,
    *,
    durability: Durability = "interval",
    mask: Masker = keep,
) -> Workspace:
    """Creates a workspace.

    Args:
        name: a name under RECOLLECT_HOME, or a location (text with a slash).
        schema: what a step is; None leaves it to the first writer.
        durability: what survives power loss, and when: `"process"` what `sync` and `close` cover, `"interval"` what
            is older than 0.25 s, `"step"` every append before it returns.
        mask: text → text, applied to everything textual before it is written. It belongs to the handle, not to the
            workspace: whoever opens it to write passes its own.

    Raises:
        AlreadyExists: the name is taken.
        StoreError: the folder cannot be made, or lies on a network file system.
    """
    if schema is not None and not isinstance(schema, Schema):
        raise SchemaError("schema= takes a Schema", value=schema, remedy="Wrap the fields: rc.Schema({...})")
    path = home.workspace_path(name)
    description = home.create(path, path.name, durability)
    if schema is not None:
        home.fix_schema(path, schema)
    return Workspace(description, mask)


def open_workspace(name: str | os.PathLike[str], *, mask: Masker = keep) -> Workspace:
    """Opens a workspace, and seals the logs of writers that have died. Raises NotFound."""
    path = home.workspace_path(name)
    try:
        return Workspace(home.describe(path), mask)
    except (FileNotFoundError, StoreError):
        home.describe(path)  # it may have been deleted meanwhile
        raise


def list_workspaces() -> list[str]:
    """Names of the workspaces under RECOLLECT_HOME."""
    return [path.name for path in home.list_workspaces()]


def delete_workspace(name: str | os.PathLike[str]) -> None:
    """Removes a workspace; buffers that it was promoted to stay.

    Raises:
        NotFound: no such workspace.
        WriterError: a live agent is writing to it.
    """
    home.delete(home.workspace_path(name))


def _disk_bytes(path: Path) -> int:
    return sum(p.stat().st_blocks * 512 for p in path.rglob("*") if p.is_file())


def _after_fork() -> None:
    for workspace in list(_live):
        workspace.start_over()


os.register_at_fork(after_in_child=_after_fork)
