"""`Workspace`: the hot end. Composes log, recall and promotion; no logic of its own."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from recollect.errors import ArgumentError, SchemaError
from recollect.hot import home
from recollect.hot.facts import check_facts, check_step_facts
from recollect.hot.growing import Durability
from recollect.hot.home import Description
from recollect.hot.recover import Recovery, recover
from recollect.hot.store import HotStore
from recollect.hot.writer import Writer
from recollect.masking import Masker, keep
from recollect.recall import recent as recalled
from recollect.recall.results import EpisodeRecord, Hits, interrupted, nan_rewards
from recollect.recall.text import TextIndex
from recollect.recall.verify import Report, verify
from recollect.recall.window import with_predecessors
from recollect.records.layout import Layout
from recollect.schema import Schema
from recollect.view import Cut, EpisodeKey, StepId, View

if TYPE_CHECKING:
    from recollect.promote.snapshot import Snapshot


@dataclass(frozen=True)
class WriterStats:
    """One writer's log.

    Attributes:
        writer: its id; `agent` the name it was given.
        rows, facts: what readers see.
        durable_rows: rows that are known to survive power loss.
        live: whether it can still grow.
    """

    writer: int
    agent: str
    rows: int
    facts: int
    durable_rows: int
    live: bool


@dataclass(frozen=True)
class WorkspaceStats:
    """Counts of a workspace, with `writers` one by one.

    `interrupted` counts the episodes with that status, those included whose writer died before it could say so.
    """

    rows: int
    steps: int
    drawable: int
    undrawable_truncated: int
    undrawable_open: int
    episodes: int
    interrupted: int
    facts: int
    nan_rewards: int
    disk_bytes: int
    writers: tuple[WriterStats, ...]


class Workspace:
    """The append-only log that live agents write to and recall from. Thread-safe; open it anew in every process.

    Get one from `create_workspace` or `open_workspace`.

    Attributes:
        name, path, id, durability: what it was created with.
        recovered: logs of writers that had died, sealed when this handle was opened.
    """

    def __init__(self, description: Description, mask: Masker = keep) -> None:
        self.name, self.path, self.id = description.name, description.path, description.id
        self.durability: Durability = description.durability
        self._mask = mask
        self._lock = threading.Lock()
        self._store: HotStore | None = None
        self._text: TextIndex | None = None
        self._annotator: Writer | None = None
        self._writers: list[Writer] = []
        self.recovered: list[Recovery] = []
        if self.schema is not None:
            self.recovered = recover(self.path / "log", self._hot().layout)

    # -- schema --------------------------------------------------------------------------------------------

    @property
    def schema(self) -> Schema | None:
        """The schema, None while nobody has fixed it."""
        if self._store is not None:
            return self._store.layout.schema
        return home.read_schema(self.path)

    def _hot(self) -> HotStore:
        with self._lock:
            if self._store is None:
                schema = home.read_schema(self.path)
                if schema is None:
                    raise SchemaError(
                        f"workspace {self.name!r} has no schema yet",
                        remedy="Pass schema= to create_workspace() or to the first writer()",
                    )
                self._store = HotStore(self.path / "log", Layout.of(schema), self.name)
            return self._store

    # -- writing -------------------------------------------------------------------------------------------

    def writer(self, agent: str = "", *, schema: Schema | None = None, durability: Durability | None = None) -> Writer:
        """A writer of its own log, for one thread.

        Args:
            agent: a name for people.
            schema: fixes the schema of a workspace that has none; otherwise it must equal it.
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
        writer = Writer(
            self.path / "log", self._hot().layout, agent=self._mask(agent), durability=chosen, mask=self._mask
        )
        self._writers = [w for w in self._writers if w.is_open] + [writer]
        return writer

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

    def view_with_predecessors(self, cut: Cut) -> View:
        """A view that holds the rows of `cut`, and those before them that their frame stacks reach back to."""
        return self._hot().view(with_predecessors(self._hot(), cut))

    def stats(self) -> WorkspaceStats:
        """Counts over the whole workspace, and per writer what is visible and what is durable."""
        if self.schema is None:
            return WorkspaceStats(0, 0, 0, 0, 0, 0, 0, 0, 0, _disk_bytes(self.path), ())
        store = self._hot()
        view = store.view()
        logs = [store.logs[w] for w in sorted(store.logs)]
        alive = set(home.live_writers(self.path))
        return WorkspaceStats(
            rows=len(view.rows),
            steps=int((~view.episodes.is_final).sum()),
            drawable=len(view),
            undrawable_truncated=view.anchors.undrawable_truncated,
            undrawable_open=view.anchors.undrawable_open,
            episodes=len(view.episodes.keys),
            interrupted=interrupted(view, {log.writer for log in logs if log.sealed}),
            facts=sum(log.facts for log in logs),
            nan_rewards=nan_rewards(view),
            disk_bytes=_disk_bytes(self.path),
            writers=tuple(
                WriterStats(log.writer, log.agent, log.rows, log.facts, log.durable_rows, log.writer in alive)
                for log in logs
            ),
        )

    def verify(self, progress: Callable[[int, int], None] | None = None) -> Report:
        """Checks every checksum and counter, and the indexes against the logs; agents may go on meanwhile.

        Logs are only read. An index that is wrong is made again, and the report says so.

        Args:
            progress: called with rows checked and rows to check.
        """
        return verify(self.path, progress)

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
        """Closes the writers that this handle made, and its indexes."""
        for writer in self._writers:
            writer.close()
        self._writers.clear()
        if self._annotator is not None:
            self._annotator.close()
            self._annotator = None
        if self._store is not None:
            self._store.close()
        if self._text is not None:
            self._text.file.close()

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
    return Workspace(home.describe(home.workspace_path(name)), mask)


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
