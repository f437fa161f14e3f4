"""The four Lance datasets of a buffer, and the only calls into lance.

    <buffer>/steps.lance        rows; its newest commit is the only commit point
    <buffer>/facts.lance        facts, one row each
    <buffer>/tails.lance        observations that waited in open episodes, by the id of the step before them
    <buffer>/promotions.lance   one row per attempted promotion: what it holds, and the promotion before it

A reader takes a version of `steps`, reads the promotion's id from its schema metadata, and follows the chain of parents
through `promotions`. Rows of the other three that no promotion of the chain names are leftovers of attempts that did
not land, and are ignored (design/0004).
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
from lance.fragment import write_fragments
from lance.schema import LanceSchema

from recollect.cold.faults import store_errors
from recollect.cold.location import Location
from recollect.cold.probe import require_conditional_put
from recollect.errors import ConflictError, CorruptionError, NotFound, SchemaMismatch
from recollect.schema import Schema
from recollect.schema.arrow import arrow_schema

FORMAT = "1"
FILE_FORMAT = "2.2"
MAX_FILE_ROWS = 1 << 20
PROMOTION_KEY = "recollect.promotion"
SCHEMA_KEY = "recollect.schema"
FORMAT_KEY = "recollect.format"
FACTS = pa.schema(
    [
        ("stage", pa.string()),
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
PROMOTIONS = pa.schema(
    [
        ("id", pa.string()),
        ("parent", pa.string()),
        ("stage", pa.string()),
        ("base_version", pa.int64()),
        ("time", pa.timestamp("ns", tz="UTC")),
        ("workspace", pa.string()),
        ("tag", pa.string()),
        ("rows", pa.int64()),
        ("total_rows", pa.int64()),
        ("record", pa.string()),
    ]
)
_SMALL = ("facts", "tails", "promotions")


@dataclass(frozen=True)
class Promotion:
    """One link of a buffer's history.

    Attributes:
        id, parent: its name and that of the promotion before it ("" for the first).
        stage: the name that its facts and tails carry.
        base_version: the version of `steps` it was committed on; it is the next one.
        time_ns: when it was staged.
        workspace: the workspace's id; `tag` what its version should be called, or "".
        rows, total_rows: rows added, and rows in the version.
        record: cut, watermark, statistics and lineage, JSON.
    """

    id: str
    parent: str
    stage: str
    base_version: int
    time_ns: int
    workspace: str
    tag: str
    rows: int
    total_rows: int
    record: Mapping[str, Any]


class Datasets:
    """The datasets of one buffer. Use `open_` or `create`."""

    def __init__(self, location: Location, steps: Any, schema: Schema) -> None:
        self.location, self.steps, self.schema = location, steps, schema
        self._promotions: dict[str, Promotion] | None = None

    # -- opening -------------------------------------------------------------------------------------------

    @classmethod
    def open_(cls, location: Location) -> Datasets:
        """Raises NotFound where there is no buffer, StoreError where the store cannot be reached."""
        with store_errors("opening buffer", location):
            if location.is_local and not Path(location.child("steps.lance")).is_dir():
                raise NotFound(
                    f"no buffer at {location.uri!r}",
                    remedy="A snapshot creates it: recollect snapshot NAME --to URI",
                )
            try:
                steps = lance.dataset(location.child("steps.lance"), storage_options=location.options)
            except ValueError as e:
                if "was not found" in str(e):
                    raise NotFound(
                        f"no buffer at {location.uri!r}",
                        remedy="A snapshot creates it: recollect snapshot NAME --to URI",
                    ) from e
                raise
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
        tails = tails.insert(0, pa.field("stage", pa.string()))
        require_conditional_put(location)
        with store_errors("creating buffer", location):
            if location.is_local:
                Path(location.uri).mkdir(parents=True, exist_ok=True)
            for name, form in (
                ("facts", FACTS),
                ("tails", tails),
                ("promotions", PROMOTIONS),
                ("steps", steps_schema),
            ):
                _create_empty(location, name, form)
            if location.is_local:
                for name in (*_SMALL, "steps"):
                    sync_tree(Path(location.child(f"{name}.lance")))
        out = cls.open_(location)
        schema.require_equal(out.schema, what=f"buffer {location.uri!r}")
        return out

    def dataset(self, name: str) -> Any:
        with store_errors("opening buffer", self.location):
            return lance.dataset(self.location.child(f"{name}.lance"), storage_options=self.location.options)

    # -- versions ------------------------------------------------------------------------------------------

    def refresh(self) -> None:
        """Goes to the newest version."""
        with store_errors("reading buffer", self.location):
            self.steps.checkout_latest()

    def at_version(self, version: int) -> Any:
        """The steps dataset at a version. Raises NotFound."""
        with store_errors("reading buffer", self.location):
            try:
                return self.steps.checkout_version(version)
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

    def promotions(self, need: str = "") -> dict[str, Promotion]:
        """Every staged promotion by id, read anew when `need` is not among those read before."""
        if self._promotions is None or (need and need not in self._promotions):
            with store_errors("reading buffer", self.location):
                table = self.dataset("promotions").to_table()
            rows = table.drop_columns(["time"]).to_pylist()
            times = table.column("time").cast(pa.int64()).to_pylist()
            self._promotions = {
                r["id"]: Promotion(
                    r["id"],
                    r["parent"],
                    r["stage"],
                    r["base_version"],
                    t,
                    r["workspace"],
                    r["tag"],
                    r["rows"],
                    r["total_rows"],
                    json.loads(r["record"]),
                )
                for r, t in zip(rows, times, strict=True)
            }
        return self._promotions

    def chain(self, promotion: str) -> list[Promotion]:
        """The promotions that a version is made of, oldest first.

        Raises:
            CorruptionError: a link is missing.
        """
        out: list[Promotion] = []
        known = self.promotions(promotion)
        while promotion:
            if promotion not in known:
                raise CorruptionError(
                    f"buffer {self.location.uri!r} names promotion {promotion}, which it does not hold",
                    remedy="Restore promotions.lance from a backup",
                )
            out.append(known[promotion])
            promotion = known[promotion].parent
        return out[::-1]

    def version_of(self, promotion: Promotion) -> int:
        """The version that a promotion of the current chain was committed as."""
        guess = promotion.base_version + 1
        with contextlib.suppress(NotFound):
            if self.promotion_id(self.at_version(guess)) == promotion.id:
                return guess
        for item in self.steps.versions():
            if self.promotion_id(self.at_version(item["version"])) == promotion.id:
                return int(item["version"])
        raise NotFound(f"no version of buffer {self.location.uri!r} ends with promotion {promotion.id}")

    # -- tags ----------------------------------------------------------------------------------------------

    def tags(self) -> dict[str, int]:
        """Tag → version."""
        with store_errors("reading tags of", self.location):
            return {name: int(info["version"]) for name, info in self.steps.tags.list().items()}

    def create_tag(self, tag: str, version: int) -> bool:
        """Names a version; False when the tag was there already, on any version."""
        require_conditional_put(self.location)
        with store_errors("tagging", self.location):
            try:
                self.steps.tags.create(tag, version)
            except ValueError as e:
                if "already exists" in str(e):
                    return False
                raise
            if self.location.is_local:
                sync_tree(Path(self.location.child("steps.lance")) / "_refs")
        return True

    def make_durable(self) -> None:
        """Flushes the newest version of a local buffer: whoever committed it may have died before it did."""
        if self.location.is_local:
            steps = Path(self.location.child("steps.lance"))
            with store_errors("syncing", self.location):
                sync_tree(steps / "_versions", newest=2)
                sync_tree(steps / "_transactions", newest=2)

    # -- writing -------------------------------------------------------------------------------------------

    def append(self, name: str, table: Any) -> None:
        """Adds rows to one of the small datasets. Appends never conflict; rows nobody names are ignored."""
        started = time.time()
        require_conditional_put(self.location)
        with store_errors("writing to", self.location):
            lance.write_dataset(
                table,
                self.location.child(f"{name}.lance"),
                mode="append",
                storage_options=self.location.options,
                data_storage_version=FILE_FORMAT,
            )
            if self.location.is_local:
                sync_tree(Path(self.location.child(f"{name}.lance")), newer_than=started - 1)

    def stage_steps(self, batches: Iterable[Any], schema: Any, *, max_rows: int = MAX_FILE_ROWS) -> list[Any]:
        """Writes rows as data files that no version names yet; returns their fragments."""
        started = time.time()
        require_conditional_put(self.location)
        with store_errors("writing to", self.location):
            reader = pa.RecordBatchReader.from_batches(schema, iter(batches))
            fragments: list[Any] = write_fragments(
                reader,
                self.location.child("steps.lance"),
                schema=schema,
                mode="append",
                max_rows_per_file=min(max_rows, MAX_FILE_ROWS),
                data_storage_version=FILE_FORMAT,
                storage_options=self.location.options,
            )
            if self.location.is_local:
                sync_tree(Path(self.location.child("steps.lance")) / "data", newer_than=started - 1)
        return fragments

    def commit_steps(self, steps: Any, fragments: list[Any], promotion: str) -> int:
        """Adds staged fragments and names the promotion, in one commit on exactly the version of `steps`.

        Returns the new version.

        Raises:
            ConflictError: another commit took the place; nothing of ours landed.
            StoreError: the outcome is unknown; `chain` tells.
        """
        existing = [f.metadata for f in steps.get_fragments()]
        top = max((f.id for f in existing), default=-1)
        for k, fragment in enumerate(fragments):
            fragment.id = top + 1 + k
        metadata = dict(steps.schema.metadata or {})
        metadata[PROMOTION_KEY.encode()] = promotion.encode()
        form = LanceSchema.from_pyarrow(steps.schema.with_metadata(metadata))
        if _field_ids(form) != _field_ids(steps.lance_schema):
            raise SchemaMismatch(
                f"buffer {self.location.uri!r} numbers its fields in a way that this release cannot commit to",
                remedy="Write to a new buffer",
            )
        with store_errors("committing to", self.location):
            landed = lance.LanceDataset.commit(
                self.location.child("steps.lance"),
                lance.LanceOperation.Merge(existing + fragments, form),
                read_version=steps.version,
                max_retries=0,
                storage_options=self.location.options,
            )
            if self.location.is_local:
                sync_tree(Path(self.location.child("steps.lance")) / "_versions", newest=2)
                sync_tree(Path(self.location.child("steps.lance")) / "_transactions", newest=2)
        if landed.version != steps.version + 1:
            raise ConflictError(f"the commit landed as version {landed.version}, not {steps.version + 1}")
        self.steps = landed
        return int(landed.version)


def _field_ids(schema: Any) -> list[tuple[str, int]]:
    out: list[tuple[str, int]] = []

    def walk(field: Any, prefix: str) -> None:
        path = f"{prefix}{field.name()}"
        out.append((path, field.id()))
        for child in field.children():
            walk(child, path + ".")

    for field in schema.fields():
        walk(field, "")
    return out


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
            lance.dataset(uri, storage_options=options)
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


def sync_tree(folder: Path, *, newer_than: float = 0.0, newest: int | None = None) -> None:
    """Flushes a folder's files and the folder itself, since lance does not."""
    if not folder.is_dir():
        return
    for at, _, names in os.walk(folder):
        paths = [Path(at) / n for n in names]
        if newest is not None:
            paths = sorted(paths, key=lambda p: p.stat().st_mtime_ns)[-newest:]
        for path in paths:
            with contextlib.suppress(FileNotFoundError):
                if newer_than and path.stat().st_mtime < newer_than:
                    continue
                _sync_path(path, os.O_RDONLY)
        _sync_path(Path(at), os.O_RDONLY | os.O_DIRECTORY)


def _sync_path(path: Path, flags: int) -> None:
    fd = os.open(path, flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
