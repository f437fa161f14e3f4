"""Writing to a dataset: data files first, flushed, then one commit, flushed."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
from lance.fragment import write_fragments

from recollect.cold.durable import sync_commit, sync_files, sync_tree
from recollect.cold.faults import store_errors
from recollect.cold.location import Location
from recollect.cold.probe import require_conditional_put
from recollect.cold.torn import open_whole

FILE_FORMAT = "2.2"
MAX_FILE_ROWS = 1 << 20


def stage(
    location: Location, name: str, batches: Iterable[Any], schema: Any, *, max_rows: int = MAX_FILE_ROWS
) -> list[Any]:
    """Writes rows as data files of a dataset that no version names yet; returns their fragments."""
    require_conditional_put(location)
    with store_errors("writing to", location):
        reader = pa.RecordBatchReader.from_batches(schema, iter(batches))
        fragments: list[Any] = write_fragments(
            reader,
            location.dataset(name),
            schema=schema,
            mode="append",
            max_rows_per_file=max_rows,
            data_storage_version=FILE_FORMAT,
            storage_options=location.options,
        )
        if location.is_local:
            data = Path(location.dataset(name)) / "data"
            sync_files(data / f.path for fragment in fragments for f in fragment.files)
    return fragments


def commit(location: Location, name: str, operation: Any, read_version: int, *, max_retries: int = 0) -> Any:
    """One commit; returns the dataset as of it.

    Raises:
        ConflictError: another commit that this one excludes came first; nothing of ours landed.
        StoreError: the outcome is unknown.
    """
    require_conditional_put(location)
    transaction = lance.Transaction(read_version, operation, str(uuid.uuid4()))
    with store_errors("committing to", location):
        landed = lance.LanceDataset.commit(
            location.dataset(name),
            transaction,
            read_version=read_version,
            max_retries=max_retries,
            storage_options=location.options,
        )
        if location.is_local:
            named = f"{read_version}-{transaction.uuid}.txn"
            sync_commit(Path(location.dataset(name)), landed.version, named)
    return landed


def append(location: Location, name: str, table: Any) -> None:
    """Adds rows to a dataset. Appends never conflict with each other."""
    with store_errors("opening buffer", location):
        read_version = open_whole(location, name).version
    fragments = stage(location, name, table.to_batches(), table.schema)
    commit(location, name, lance.LanceOperation.Append(fragments), read_version, max_retries=20)


def delete(location: Location, name: str, predicate: str) -> None:
    """Marks rows of a dataset as deleted. Its files are flushed before the commit that names them.

    Raises:
        ConflictError: what else was committed meanwhile concerns the same fragments.
    """
    with store_errors("opening buffer", location):
        dataset = open_whole(location, name)
    updated, gone = [], []
    with store_errors("writing to", location):
        for fragment in dataset.get_fragments():
            before = fragment.metadata
            left = fragment.delete(predicate)
            if left is None:
                gone.append(fragment.fragment_id)
            elif left.num_rows != before.num_rows:
                updated.append(left)
        if location.is_local:
            folder = Path(location.dataset(name))
            sync_tree(folder / "_deletions")
            sync_files([folder / "_deletions"])
    if updated or gone:
        commit(location, name, lance.LanceOperation.Delete(updated, gone, predicate), dataset.version)
