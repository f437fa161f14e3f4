"""A field that is added to every row of a branch: one more data file beside those of each fragment, and one commit."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
from lance.file import LanceFileWriter
from lance.fragment import DataFile
from lance.schema import LanceSchema

from recollect.cold.commit import FILE_FORMAT, commit
from recollect.cold.dataset import ADDED_KEY, PROMOTION_KEY, SCHEMA_KEY, Datasets, field_ids
from recollect.cold.durable import sync_files
from recollect.cold.faults import store_errors
from recollect.errors import ConflictError, NotFound, SchemaMismatch
from recollect.schema import Schema
from recollect.schema.arrow import arrow_field


def write_column(data: Datasets, name: str, field: Any, arrays: Iterable[Any]) -> tuple[str, int | None]:
    """Writes the values of one fragment as a data file that no version names yet; its name, and its size if known.

    Args:
        arrays: Arrow arrays of the field's type, in the order of the fragment's rows, deleted ones included.
    """
    path = f"{uuid.uuid4().hex}.lance"
    at = f"{data.location.dataset('steps')}/data/{path}"
    form = pa.schema([arrow_field(name, field)])
    with store_errors("writing to", data.location):
        with LanceFileWriter(at, form, version=FILE_FORMAT, storage_options=data.location.options) as writer:
            for array in arrays:
                writer.write_batch(pa.record_batch([array], schema=form))
        if not data.location.is_local:
            return path, None
        sync_files([Path(at)])
        return path, Path(at).stat().st_size


def commit_column(
    data: Datasets, steps: Any, name: str, field: Any, schema: Schema, files: list[tuple[str, int | None]], link: str
) -> int:
    """Puts the files beside those of the fragments of `steps`, in one commit on exactly its version; the new one.

    Args:
        schema: the schema with the field; `link` the entry of the history that says so.

    Raises:
        ConflictError: another commit took the place; nothing of ours landed.
        StoreError: the outcome is unknown; the history tells.
    """
    metadata = dict(steps.schema.metadata or {})
    added = [*json.loads(metadata.get(ADDED_KEY.encode(), b"[]")), name]
    metadata |= {
        PROMOTION_KEY.encode(): link.encode(),
        SCHEMA_KEY.encode(): json.dumps(schema.to_dict()).encode(),
        ADDED_KEY.encode(): json.dumps(added).encode(),
    }
    form = LanceSchema.from_pyarrow(steps.schema.append(arrow_field(name, field)).with_metadata(metadata))
    before, after = field_ids(steps.lance_schema), field_ids(form)
    if after[: len(before)] != before:
        raise SchemaMismatch(
            f"buffer {data.location} numbers its fields in a way that this release cannot add to",
            remedy="Write to a new buffer",
        )
    ids = [number for _, number in after[len(before) :]]
    major, minor = (int(n) for n in FILE_FORMAT.split("."))
    fragments = [f.metadata for f in steps.get_fragments()]
    for fragment, (path, size) in zip(fragments, files, strict=True):
        # One column holds the values; a list around them has a number and no column of its own.
        fragment.files.append(DataFile(path, ids, [-1] * (len(ids) - 1) + [0], major, minor, size))
    try:
        landed = commit(data.location, "steps", lance.LanceOperation.Merge(fragments, form), steps.version)
    except NotFound as e:
        raise ConflictError(f"version {steps.version} was cleaned up before the commit") from e
    if landed.version != steps.version + 1:
        raise ConflictError(f"the commit landed as version {landed.version}, not {steps.version + 1}")
    data.steps, data.schema = landed, schema
    return int(landed.version)
