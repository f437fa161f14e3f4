"""`Buffer`: the cold end. Composes datasets, cache and views; no logic of its own."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import TracebackType
from typing import Any, Literal

from recollect.cache.blocks import BlockCache
from recollect.cache.rotation import Rotation
from recollect.cache.view import BufferReader
from recollect.cold import branches, torn
from recollect.cold.branches import Branch
from recollect.cold.cleanup import Cleanup, cleanup
from recollect.cold.compact import Compaction, compact
from recollect.cold.dataset import Datasets
from recollect.cold.fold import Promotion
from recollect.cold.history import History
from recollect.cold.location import MAIN, Location
from recollect.cold.pins import Pin
from recollect.cold.verify import BufferReport, verify
from recollect.errors import AlreadyExists, ArgumentError, NotFound
from recollect.promote.lineage import commit_of
from recollect.promote.tags import check_tag
from recollect.promote.upkeep import row_bytes
from recollect.records.layout import Layout
from recollect.records.part import part_of
from recollect.schema import Embedding, Schema, Tensor
from recollect.versions.chosen import Episodes, StepIds
from recollect.versions.columns import add_column
from recollect.versions.delete import BufferDeletion, delete_rows
from recollect.versions.diff import Diff, Side, diff
from recollect.versions.holders import holders
from recollect.versions.listing import Version, listing
from recollect.view import Cut, View


class Buffer:
    """A versioned replay buffer on local disk or an object store. Thread-safe; open it anew in every process.

    Get one from `open_buffer`.
    """

    def __init__(self, data: Datasets) -> None:
        self._data = data
        self.uri, self.branch_name = data.location.uri, data.location.branch_name
        self._layout = Layout.of(data.schema)
        self._reader = BufferReader(data, self._layout, BlockCache())

    @property
    def schema(self) -> Schema:
        return self._data.schema

    def versions(self) -> list[Version]:
        """Every version that a snapshot or `add_column` made, oldest first, those that were cleaned up included.

        Of a branch: its own, and before them those of its parent up to the one it began with.
        """
        return listing(self._data)

    def tags(self) -> dict[str, int]:
        """Tag → version number, of the versions of this branch and of those of its parent that it began behind."""
        return dict(sorted(self._data.tags().items()))

    def number(self, which: str | int | datetime | None = None) -> int:
        """The number of a version, as `at` finds it. Raises NotFound for a tag or a moment that names none."""
        self._data.refresh()
        return self._number(which)

    def tag(self, name: str, which: str | int | datetime | None = None) -> int:
        """Names a version, by default the newest; returns its number. A tag's name is taken on every branch at once.

        Raises:
            ArgumentError: a name that a tag cannot have.
            AlreadyExists: the tag names another version.
            NotFound: there is no such version.
        """
        check_tag(name)
        self._data.refresh()
        version = self._number(which)
        with self.pin(version, hold=timedelta(hours=1)):
            if not self._data.create_tag(name, version) and self._data.tagged(name) != version:
                raise AlreadyExists(
                    f"tag {name!r} names version {self._data.tagged(name)} of {self._data.location}",
                    remedy="Choose another tag",
                )
        return version

    # -- branches ------------------------------------------------------------------------------------------

    def branch(self, name: str, *, at: str | int | datetime | None = None) -> Buffer:
        """Makes a branch, and opens it. It begins with a version of this one, which it shares, and goes on by itself.

        Snapshots with `branch=name` land on it, each row once, whatever main holds; columns can be added to it.

        Args:
            at: the version that it begins with, as for `Buffer.at`; the newest when None.

        Raises:
            ArgumentError: a name that a branch cannot have.
            AlreadyExists: there is a branch of that name.
            NotFound: there is no such version.
        """
        self._data.refresh()
        return Buffer(Datasets.open_(branches.create(self._data, name, self._number(at))))

    def branches(self) -> list[Branch]:
        """Every branch but main, by name."""
        return branches.branches(self._data)

    def delete_branch(self, name: str, *, with_tags: bool = False) -> list[str]:
        """Deletes a branch and the versions that only it has, for good; returns the tags that went with it.

        Args:
            with_tags: also where tags name its versions.

        Raises:
            NotFound: no such branch.
            ConflictError: it has tags, somebody has a pin on it, or another branch began on it. Nothing is deleted.
        """
        return branches.delete(self._data, name, with_tags=with_tags)

    def add_column(
        self,
        name: str,
        fn: Callable[[Mapping[str, Any]], Any],
        *,
        field: Tensor | Embedding,
        fields: Sequence[str] | None = None,
        by: Literal["row", "episode"] = "row",
        on: str | None = None,
        commit: str | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> int:
        """Adds a field that `fn` computes to every step of a branch's newest version; returns the new version.

        Rows stay as they were written. It is there in one commit, whole or not at all; a run that was killed may be
        run again. The field is optional: rows that later snapshots bring have null, and older versions lack it.

        Args:
            fn: is called with up to 4,096 rows, a dict of arrays `[n, *shape]`, in the order of the buffer, and returns
                an array `[n, *field.shape]`. Of an optional field `x` there is `valid.x` too; text is an array of str
                or None, ragged fields one of arrays. `terminated`, `truncated`, `step`, `time`, `writer`, `seq`,
                `episode_writer` and `episode` are always there. Late facts about steps are in the values.
            field: what `fn` returns: a Tensor or an Embedding.
            fields: what `fn` is given; every field of fixed shape when None.
            by: "episode" calls `fn` once for each episode, with all of its steps in order. The branch then has to fit
                into the cache's budget.
            on: the branch; the one that this handle is at when None.
            commit: the commit of the code of `fn`, for the lineage; the variable `RECOLLECT_COMMIT` when None.
            progress: called with rows done and rows to do.

        Raises:
            ArgumentError: on main, a field of another type, or what `fn` returned does not fit it.
            AlreadyExists: the branch has such a field.
            NotFound: no such branch or field, or a branch without rows.
            ConflictError: others kept committing first. Nothing was added.
            StoreError, DiskFull: the store or the cache cannot be reached or written. Nothing was added.
        """
        if on is not None and on != self.branch_name:
            return self.on(on).add_column(name, fn, field=field, fields=fields, by=by, commit=commit, progress=progress)
        cache = self._reader.cache
        version = add_column(
            self._data, name, fn, field, fields=fields, by=by, code=commit_of(commit), cache=cache, progress=progress
        )
        self._layout = Layout.of(self._data.schema)
        self._reader = BufferReader(self._data, self._layout, cache)
        return version

    def on(self, branch: str) -> Buffer:
        """The same buffer at another branch, "main" included. Raises NotFound."""
        return Buffer(Datasets.open_(branches.find(self._data.location, branch)))

    # -- reading -------------------------------------------------------------------------------------------

    def at(
        self, which: str | int | datetime | None = None, *, branch: str | None = None, cut: Cut | None = None
    ) -> View:
        """A view of a version.

        Args:
            which: a tag, a version's number, or a moment: the newest version at that time. None is the newest of all.
            branch: the branch that it is one of; the one that this handle is at when None.
            cut: reads only these rows of it, such as `snapshot.cut`.

        Raises:
            NotFound: no such tag, version or branch, none that old, or a buffer without rows.
        """
        if branch is not None and branch != self.branch_name:
            return self.on(branch).at(which, cut=cut)
        view = self._reader.view(*self._read(which))
        return view if cut is None else part_of(view, cut)

    def diff(
        self,
        a: str | int | datetime | None,
        b: str | int | datetime | None = None,
        *,
        branch: str | None = None,
        by: Sequence[str] | None = None,
    ) -> Diff:
        """How version `b` differs from version `a`: rows, episodes, values of fields, returns by task, schema.

        Reads both once, a block at a time.

        Args:
            a, b: as for `at`; None is the newest.
            branch: the branch that `b` is on; the one that this handle is at when None.
            by: facts of episodes, or scalar fields, to group by; see `recollect.versions.diff.diff`.

        Raises:
            NotFound: no such version or branch, or `by` names what there is not.
        """
        other = self if branch is None else self.on(branch)
        return diff(self._side(a), other._side(b), by)

    def _side(self, which: str | int | datetime | None) -> Side:
        steps, history, cut, name = self._read(which)
        layout = Layout.of(self._data.schema_of(steps))
        return Side(BufferReader(self._data, layout, self._reader.cache), steps, history, cut, name)

    def rotate(
        self, which: str | int | datetime | None = None, *, resident_bytes: int | None = None, reuse: float = 1.0
    ) -> Rotation:
        """A version that is larger than the cache, for a loader: its blocks take turns in the cache.

        Batches are drawn from the rows that are resident, with the same windows and next observations as if all were;
        every row has its turn. The order depends on the rows, the sampler, the seed and these arguments alone.

        Args:
            which: as for `at`.
            resident_bytes: bytes that resident blocks may take; the cache's budget when None. Each loader keeps blocks
                of its own until it is dropped: give each its share where there are several at a time. Give it too
                where the order must not change with the budget.
            reuse: how often a row is drawn while it is resident, on average: less is closer to uniform, more decodes
                less.

        Raises:
            NotFound: as for `at`.
            ArgumentError: an argument out of range.
        """
        if not (isinstance(reuse, int | float) and 0 < reuse < float("inf")):
            raise ArgumentError("reuse is a number above 0", value=reuse)
        if resident_bytes is not None and resident_bytes < 1:
            raise ArgumentError("resident_bytes is a number of at least 1", value=resident_bytes)
        return self._reader.rotate(*self._read(which), resident_bytes=resident_bytes, reuse=float(reuse))

    def _read(self, which: str | int | datetime | None) -> tuple[Any, History, Cut, str]:
        """A version's dataset, its promotions, their cut, and its name. Raises NotFound."""
        self._data.refresh()
        steps = self._data.at_version(self._number(which))
        history = self._data.history(steps)
        on = "" if self.branch_name == MAIN else f"{self.branch_name}:"
        name = f"{self.uri}@{on}{which if which is not None else steps.version}"
        if history.head is None:
            raise NotFound(f"{name} is empty", remedy="Snapshot a workspace to it first")
        return steps, history, history.cut, name

    def _number(self, which: str | int | datetime | None) -> int:
        if which is None:
            return int(self._data.steps.version)
        if isinstance(which, bool) or not isinstance(which, int | str | datetime):
            raise ArgumentError("a version is named by a tag, a number or a datetime", value=which)
        if isinstance(which, int):
            if which < 1:
                raise NotFound(f"buffer {self._data.location} has no version {which}", remedy="Versions count from 1")
            return which
        if isinstance(which, datetime):
            moment = which.astimezone(UTC)
            older = [v for v in self.versions() if v.time <= moment]
            if not older:
                raise NotFound(f"buffer {self.uri!r} has no version as old as {moment.isoformat()}")
            return older[-1].version
        tags = self._data.tags()
        if which not in tags:
            raise NotFound(
                f"buffer {self.uri!r} has no tag {which!r}",
                remedy=f"Tags: {', '.join(sorted(tags)) or 'none'}"
                + ("; it names a version of another branch: see buf.branches()" if self._data.has_tag(which) else ""),
            )
        return tags[which]

    # -- deletion ------------------------------------------------------------------------------------------

    def delete(
        self,
        ids: StepIds | None = None,
        *,
        episodes: Episodes | None = None,
        where: str | None = None,
        reason: str,
        dry_run: bool = False,
    ) -> BufferDeletion:
        """Deletes poisoned or private experience: gone from new versions of main and of every branch that holds it.

        Each line that holds some of it gets one new version without it; no snapshot brings it back. A step takes
        along the row that only holds its next observation, and such a row the step before it. The step before a
        deleted one cannot be drawn any more. Facts about deleted steps go, and for good those about episodes that lose
        every row or are named. Versions made before keep it, tagged ones too, until they are cleaned up; the result
        names those tags, and the workspaces of this machine that hold it still. Files hold the values of the steps
        until `compact` on every line, and then `cleanup` of the older versions; facts and waiting observations stay in
        their files, and statistics of versions are those of the steps as they were promoted. Killed anywhere, the same
        again does the rest.

        Args:
            ids: steps, by `StepId`, its text, or `Extent`. What is not there is passed over.
            episodes: by id (every attempt at it) or `EpisodeKey`. What is promoted of one
                afterwards is new, and goes by the next deletion.
            where: such as `"episode.task = 'hopper' and reward > 100"`; `recollect.where` has the language. Looked up
                on every line: a row that it is true of on one goes from all.
            reason: kept with the time in the lineage of the new versions; the values are not.
            dry_run: only says what would go.

        Raises:
            ArgumentError: none or several of `ids`, `episodes`, `where`, or one that cannot be read; no reason.
            NotFound: an episode, field or fact that no line has.
            ConflictError: others kept committing first. Run it again.
            StoreError, DiskFull: the store cannot be reached or written. Run it again.
        """
        done = delete_rows(
            self._data, self._reader.cache, reason, ids=ids, episodes=episodes, where=where, dry_run=dry_run
        )
        return replace(done, workspaces=holders(done.ids))

    # -- upkeep --------------------------------------------------------------------------------------------

    def compact(self, *, progress: Callable[[int, int], None] | None = None) -> Compaction:
        """Merges small data files of the newest version with their neighbours; rows keep their order.

        A snapshot does so by itself once there are many. A row is written again only into a file at least four times
        as large, so that a large file stays, with what was decoded of it, unless rows of it were deleted: those are in
        no file of the new version. It holds the same rows; older
        versions are left as they are.

        Raises:
            StoreError, DiskFull: the store cannot be reached or written. Nothing is half-done.
        """
        return compact(self._data, row_bytes(self._layout), progress=progress)

    def cleanup(self, older_than: timedelta = timedelta(days=7), *, dry_run: bool = False) -> Cleanup:
        """Removes versions of that age of this branch, and the leftovers of snapshots that were killed. For good.

        Kept are the newest version, what a tag or a pin names, what another branch began with, and what was staged less
        than two days ago.

        Raises:
            ArgumentError: an age that is negative or no timedelta.
            ConflictError: another cleanup is under way.
            StoreError: the store cannot be reached or written.
        """
        if not isinstance(older_than, timedelta):
            raise ArgumentError("older_than is a timedelta", value=older_than, remedy="Write timedelta(days=7)")
        return cleanup(self._data, older_than.total_seconds(), dry_run=dry_run)

    def pin(self, which: str | int | datetime | None = None, *, hold: timedelta = timedelta(days=1)) -> Pin:
        """Keeps a version from cleanup for `hold`, or until the pin is released (it is a context manager).

        Raises:
            NotFound: there is no such version.
            ArgumentError: `hold` is no timedelta.
            ConflictError: a cleanup was under way for two minutes.
        """
        if not isinstance(hold, timedelta):
            raise ArgumentError("hold is a timedelta", value=hold, remedy="Write timedelta(days=1)")
        self._data.refresh()
        return Pin(self._data, self._number(which), hold.total_seconds())

    def verify(self, *, progress: Callable[[int, int], None] | None = None) -> BufferReport:
        """Reads all that the newest version and the tagged and pinned ones of this branch name, and checks it. Changes
        nothing.

        Raises:
            StoreError: the store cannot be reached.
        """
        return verify(self._data, row_bytes(self._layout), progress)

    @property
    def decoded_files(self) -> int:
        """Data files of which this handle decoded rows; the others were in the cache."""
        return self._reader.decoded_files

    @property
    def decoded_rows(self) -> int:
        """Rows that this handle decoded; the others were in the cache."""
        return self._reader.decoded_rows

    def close(self) -> None:
        """Nothing is held that outlives the handle; views stay valid."""

    def __enter__(self) -> Buffer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Buffer({self.uri!r})" if self.branch_name == MAIN else f"Buffer({self.uri!r}, {self.branch_name!r})"


def open_buffer(
    uri: str | os.PathLike[str], *, branch: str | None = None, storage_options: Mapping[str, str] | None = None
) -> Buffer:
    """Opens a replay buffer.

    Args:
        uri: a path, `file://`, `s3://…`.
        branch: the branch; main when None.
        storage_options: endpoint, credentials and region of an object store.

    Raises:
        NotFound: no buffer there, or no such branch.
        StoreError: the store cannot be reached, or it is a branch of a buffer that was moved.
    """
    return Buffer(Datasets.open_(branches.find(Location(uri, storage_options), branch)))


def repair_buffer(uri: str | os.PathLike[str]) -> list[str]:
    """Sets a newest version aside that a power cut left torn, so that a local buffer opens again; says what it did.

    What goes back was never acknowledged by a snapshot, so that its rows are still in their workspace.

    Raises:
        ArgumentError: an object store, where no version is ever torn.
        CorruptionError: no version can be read.
    """
    location = Location(uri)
    torn.require_local(location)
    done = torn.go_back(location)
    for name, held in branches.registered(location).items():
        done += [f"branch {name}: {line}" for line in torn.go_back(location.on(held))]
    return done


__all__ = ["Branch", "Buffer", "Promotion", "Version", "open_buffer", "repair_buffer"]
