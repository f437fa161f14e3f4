"""The Lance datasets of a buffer, and its history.

    <buffer>/steps.lance   rows; its newest commit is the only commit point
    <buffer>/facts.lance   facts, one row each
    <buffer>/tails.lance   observations that waited in open episodes, by the id of the step before them
    <buffer>/history       one file per attempted promotion: what it holds, and the promotions before it

A branch has a line of `steps` of its own, which begins with a version of another one, and shares the rest
(cold/branches.py).

A reader takes a version of `steps`, reads the promotion's id from its schema metadata, and that promotion's file names
what came before it. Rows and files that no promotion of the chain names are leftovers of attempts that did not land,
and are ignored (design/0004).
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
from lance.file import LanceFileSession
from lance.schema import LanceSchema

from recollect.cold import torn
from recollect.cold.commit import MAX_FILE_ROWS, append, commit, stage
from recollect.cold.durable import manifest_path, sync_files, sync_tree, version_number
from recollect.cold.faults import store_errors
from recollect.cold.fold import Promotion
from recollect.cold.history import FOLDER, History, Records
from recollect.cold.location import Location
from recollect.cold.probe import require_conditional_put
from recollect.cold.refs import listed
from recollect.errors import AlreadyExists, ConflictError, CorruptionError, NotFound, SchemaMismatch, StoreError
from recollect.schema import Schema
from recollect.schema.arrow import arrow_schema

FORMAT = "1"
PIN_PREFIX = "recollect.pin."
"""Tags that begin so are pins (cold/pins.py), which no listing of tags shows."""
PROMOTION_KEY = "recollect.promotion"
SCHEMA_KEY = "recollect.schema"
ADDED_KEY = "recollect.added"
"""Names of the fields that were added to a branch: no promotion brings them."""
FORMAT_KEY = "recollect.format"
FACTS = pa.schema(
    [
        ("stage", pa.string()),
        ("staged", pa.timestamp("ns", tz="UTC")),
        ("writer", pa.int64()),
        ("seq", pa.int64()),
        ("time", pa.timestamp("ns", tz="UTC")),
        ("episode_writer", pa.int64()),
        ("episode", pa.int64()),
        ("step_writer", pa.int64()),
        ("step_seq", pa.int64()),
        ("values", pa.string()),
    ]
)


class Datasets:
    """The datasets of one buffer. Use `open_` or `create`."""

    def __init__(self, location: Location, steps: Any, schema: Schema) -> None:
        self.location, self.steps, self.schema = location, steps, schema
        self.records = Records(location)
        self._line: list[tuple[str, int]] | None = None

    # -- opening -------------------------------------------------------------------------------------------

    @classmethod
    def open_(cls, location: Location, *, moved: bool = False) -> Datasets:
        """Opens a buffer at its newest version.

        Args:
            moved: also a branch of a buffer that was moved, whose older rows cannot be read.

        Raises:
            NotFound: there is no buffer, or no branch.
            StoreError: the store cannot be reached, or the branch was moved.
        """
        with store_errors("opening buffer", location):
            if location.is_local and not Path(location.dataset("steps")).is_dir():
                raise _nothing_there(location)
            try:
                steps = torn.open_whole(location, "steps")
            except ValueError as e:
                if "was not found" in str(e):
                    raise _nothing_there(location) from e
                raise
        if not moved:
            _require_in_place(steps, location)
        return cls(location, steps, _read_schema(steps, location))

    @classmethod
    def create(cls, location: Location, schema: Schema) -> Datasets:
        """Creates an empty buffer, or opens the one that another process just created there.

        Raises:
            SchemaMismatch: a buffer of another schema is there.
            StoreError: the location cannot be reached or written.
        """
        steps_schema = arrow_schema(schema).with_metadata(
            {SCHEMA_KEY: json.dumps(schema.to_dict()), FORMAT_KEY: FORMAT, PROMOTION_KEY: ""}
        )
        tails = arrow_schema(schema, observations_only=True)
        tails = tails.insert(0, FACTS.field("stage")).insert(1, FACTS.field("staged"))
        require_conditional_put(location)
        with store_errors("creating buffer", location):
            if location.is_local:
                Path(location.child(FOLDER)).mkdir(parents=True, exist_ok=True)
                sync_files([Path(location.child(FOLDER)), Path(location.uri)])
            for name, form in (("facts", FACTS), ("tails", tails), ("steps", steps_schema)):
                _create_empty(location, name, form)
                if location.is_local:
                    # Folders are named by their parents, which are flushed here and never again.
                    for folder in ("data", "_deletions", "_transactions", "_versions", "_refs/tags"):
                        (Path(location.child(f"{name}.lance")) / folder).mkdir(parents=True, exist_ok=True)
                    sync_tree(Path(location.child(f"{name}.lance")))
                    sync_files([Path(location.child(f"{name}.lance"))])
        out = cls.open_(location)
        schema.require_equal(out.schema, what=f"buffer {location.uri!r}")
        return out

    def dataset(self, name: str) -> Any:
        with store_errors("opening buffer", self.location):
            return torn.open_whole(self.location, name)

    @property
    def promoted_schema(self) -> Schema:
        """What promotions bring: the schema without the fields that were added to the branch."""
        added = json.loads((self.steps.schema.metadata or {}).get(ADDED_KEY.encode(), b"[]"))
        if not added:
            return self.schema
        plain = self.schema.to_dict()
        return Schema.from_dict({**plain, "step": {k: v for k, v in plain["step"].items() if k not in added}})

    def schema_of(self, steps: Any) -> Schema:
        """The schema of a version."""
        return _read_schema(steps, self.location)

    # -- versions ------------------------------------------------------------------------------------------

    def forks(self) -> dict[str, Any]:
        """Every branch by lance's name of it: `parent_branch` (None for main), `parent_version`, `create_at`."""
        with store_errors("reading branches of", self.location), self._torn_tags():
            return dict(listed(self.steps.branches.list))

    def place(self, version: int) -> tuple[str, int]:
        """The branch that a version is one of, "" for main, and its number there.

        The versions of a branch are its own, those of its parent up to the one it began with, and so on.
        """
        if self._line is None:
            line, at, found = [], self.location.branch, self.forks() if self.location.branch else {}
            while at:
                if at not in found:
                    raise _nothing_there(self.location)
                line.append((at, int(found[at]["parent_version"])))
                at = found[at]["parent_branch"] or ""
            self._line = [*line, ("", 0)]
        return next(((branch, version) for branch, above in self._line if version > above), ("", version))

    def refresh(self) -> None:
        """Goes to the newest version. Raises NotFound where the branch was deleted."""
        with store_errors("reading buffer", self.location):
            try:
                self.steps.checkout_latest()
            except ValueError as e:
                if self.location.branch and "not found" in str(e).lower():
                    raise _nothing_there(self.location) from e
                raise
            if PROMOTION_KEY.encode() not in (self.steps.schema.metadata or {}):
                _read_schema(self.steps, self.location)  # says what it is instead

    def at_version(self, version: int) -> Any:
        """The steps dataset at a version. Raises NotFound."""
        branch, number = self.place(version)
        with store_errors("reading buffer", self.location):
            try:
                return self.steps.checkout_version((branch or None, number))
            except (ValueError, OSError) as e:
                if "not found" not in str(e).lower():
                    raise
                raise NotFound(
                    f"buffer {self.location.uri!r} has no version {version}", remedy="See buf.versions()"
                ) from e

    @staticmethod
    def promotion_id(steps: Any) -> str:
        """The promotion that a version ends with; "" for an empty buffer."""
        return str((steps.schema.metadata or {}).get(PROMOTION_KEY.encode(), b"").decode())

    def version_numbers(self) -> set[int]:
        """The versions that are there: those that were cleaned up are not. One listing for each branch in the line."""
        self.place(0)
        assert self._line is not None
        found: set[int] = set()
        for branch, above in self._line:
            found |= {v for v in self.manifests(branch) if v > above and self.place(v)[0] == branch}
        return found

    def manifests(self, branch: str) -> set[int]:
        """Numbers of the manifests in the folder of a branch, its copy of the version it began with included."""
        with store_errors("reading buffer", self.location):
            at = self.location.on(branch).dataset("steps")
            session = LanceFileSession(at, storage_options=self.location.options)
            return {v for path in session.list("_versions") if (v := version_number(Path(path).name)) is not None}

    def history(self, steps: Any = None) -> History:
        """What a version, by default the one that this handle is at, is made of.

        Raises:
            CorruptionError: a part of it is missing.
        """
        return self.records.history(self.promotion_id(self.steps if steps is None else steps))

    def version_of(self, promotion: Promotion) -> int:
        """The version that a promotion of the current history was committed as."""
        for number in range(promotion.base_version + 1, int(self.steps.version) + 1):
            with contextlib.suppress(NotFound):
                if self.promotion_id(self.at_version(number)) == promotion.id:
                    return number
        raise NotFound(f"no version of buffer {self.location.uri!r} ends with promotion {promotion.id}")

    # -- tags ----------------------------------------------------------------------------------------------

    def marks(self) -> dict[str, int]:
        """Tag or pin → version, of the versions of this branch and of those before it."""
        with store_errors("reading tags of", self.location), self._torn_tags():
            found = listed(self.steps.tags.list).items()
        return {
            name: int(info["version"])
            for name, info in found
            if self.place(int(info["version"]))[0] == (info["branch"] or "")
        }

    def tags(self) -> dict[str, int]:
        """Tag → version, as `marks`."""
        return {name: version for name, version in self.marks().items() if not name.startswith(PIN_PREFIX)}

    def has_tag(self, tag: str) -> bool:
        """Whether a tag is taken, on any branch."""
        with store_errors("reading tags of", self.location), self._torn_tags():
            try:
                self.steps.tags.get_version(tag)
            except ValueError as e:
                if "does not exist" not in str(e):
                    raise
                return False
        return True

    def tagged(self, tag: str) -> int | None:
        """The version that a tag names, None where there is no such tag.

        Raises:
            AlreadyExists: it names a version of another branch.
        """
        if not self.has_tag(tag):
            return None
        found = self.tags().get(tag)
        if found is None and self.has_tag(tag):
            raise AlreadyExists(
                f"tag {tag!r} names a version of another branch of {self.location.uri!r}", remedy="Choose another tag"
            )
        return found

    @contextlib.contextmanager
    def _torn_tags(self) -> Iterator[None]:
        try:
            yield
        except OSError:
            torn.refuse(self.location)
            raise

    def create_tag(self, tag: str, version: int) -> bool:
        """Names a version; False when the tag was there already, on any version."""
        require_conditional_put(self.location)
        with store_errors("tagging", self.location):
            try:
                branch, number = self.place(version)
                self.steps.tags.create(tag, (branch or None, number))
            except ValueError as e:
                if "already exists" in str(e):
                    return False
                raise
            if self.location.is_local:
                refs = Path(self.location.child("steps.lance")) / "_refs"
                sync_files([refs / "tags" / f"{tag}.json", refs / "tags", refs])
        return True

    def make_durable(self) -> None:
        """Flushes the newest version of a local buffer: whoever committed it may have died before it did."""
        if self.location.is_local:
            with store_errors("syncing", self.location):
                sync_files([manifest_path(Path(self.location.dataset("steps")), int(self.steps.version))])

    # -- writing -------------------------------------------------------------------------------------------

    def append(self, name: str, table: Any) -> None:
        """Adds rows to one of the small datasets. Rows that no promotion names are ignored."""
        append(self.location, name, table)

    def stage_steps(self, batches: Iterable[Any], schema: Any, *, max_rows: int = MAX_FILE_ROWS) -> list[Any]:
        """Writes rows as data files that no version names yet; returns their fragments."""
        return stage(self.location, "steps", batches, schema, max_rows=max_rows)

    def record(self, promotion: Promotion, parent: History) -> None:
        """Writes down what a promotion holds, before the commit that names it."""
        self.records.write(promotion, parent)

    def commit_steps(
        self, steps: Any, fragments: list[Any], promotion: str, deletions: Mapping[int, Any] | None = None
    ) -> int:
        """Adds staged fragments and names the promotion, in one commit on exactly the version of `steps`.

        Args:
            deletions: fragment's number → the file that names its deleted rows (cold/deletions.py).

        Returns the new version.

        Raises:
            ConflictError: another commit took the place; nothing of ours landed.
            StoreError: the outcome is unknown; `history` tells.
        """
        existing = [f.metadata for f in steps.get_fragments()]
        top = max((f.id for f in existing), default=-1)
        for fragment in existing:
            fragment.deletion_file = (deletions or {}).get(fragment.id, fragment.deletion_file)
        for k, fragment in enumerate(fragments):
            fragment.id = top + 1 + k
        metadata = dict(steps.schema.metadata or {})
        metadata[PROMOTION_KEY.encode()] = promotion.encode()
        form = LanceSchema.from_pyarrow(steps.schema.with_metadata(metadata))
        if field_ids(form) != field_ids(steps.lance_schema):
            raise SchemaMismatch(
                f"buffer {self.location.uri!r} numbers its fields in a way that this release cannot commit to",
                remedy="Write to a new buffer",
            )
        merge = lance.LanceOperation.Merge(existing + fragments, form)
        try:
            landed = commit(self.location, "steps", merge, steps.version)
        except NotFound as e:
            raise ConflictError(f"version {steps.version} was cleaned up before the commit") from e
        if landed.version != steps.version + 1:
            raise ConflictError(f"the commit landed as version {landed.version}, not {steps.version + 1}")
        self.steps = landed
        return int(landed.version)


def field_ids(schema: Any) -> list[tuple[str, int]]:
    """Every field of a lance schema by its path, with its number, children behind their parents."""
    out: list[tuple[str, int]] = []

    def walk(field: Any, prefix: str) -> None:
        path = f"{prefix}{field.name()}"
        out.append((path, field.id()))
        for child in field.children():
            walk(child, path + ".")

    for field in schema.fields():
        walk(field, "")
    return out


def _nothing_there(location: Location) -> NotFound:
    if location.branch:
        return NotFound(
            f"the branch {location.branch_name!r} of buffer {location.uri!r} was deleted",
            remedy="See open_buffer(uri).branches()",
        )
    return NotFound(f"no buffer at {location.uri!r}", remedy="A snapshot creates it: recollect snapshot NAME --to URI")


def _require_in_place(steps: Any, location: Location) -> None:
    """Raises StoreError for a branch of a buffer that was moved: lance names its parent's files by their address."""
    for base in steps.base_paths().values() if location.branch else ():
        root = location.child("steps.lance")
        at, _, _ = base.path.partition("/tree/")
        if at != root and not (location.is_local and Path(at).exists() and Path(at).samefile(root)):
            raise StoreError(
                f"the branch {location.branch_name!r} was made at {at!r}, and the buffer is at {root!r} now",
                remedy="Move the buffer back, or make the branch anew; main can be read where it is",
            )


def _create_empty(location: Location, name: str, schema: Any) -> None:
    """Makes version 1 of a dataset, or leaves the one that is there as it is.

    Not by `write_dataset(mode="create")`: when two run at once, the slower one is rebased on the faster one as an
    overwrite, and drops what was committed between the two.
    """
    uri, options = location.child(f"{name}.lance"), location.options
    try:
        lance.LanceDataset.commit(
            uri, lance.LanceOperation.Overwrite(schema, []), read_version=0, max_retries=0, storage_options=options
        )
    except OSError as e:
        try:
            torn.open_whole(location, name)
        except ValueError:
            raise e from None


def _read_schema(steps: Any, location: Location) -> Schema:
    metadata = steps.schema.metadata or {}
    text = metadata.get(SCHEMA_KEY.encode())
    if text is None:
        raise CorruptionError(f"{location.uri!r} is a Lance dataset, but not a recollect buffer")
    if metadata.get(FORMAT_KEY.encode()) != FORMAT.encode():
        raise CorruptionError(
            f"buffer {location.uri!r} has a format that this release does not read",
            value=metadata.get(FORMAT_KEY.encode()),
        )
    return Schema.from_dict(json.loads(text))
