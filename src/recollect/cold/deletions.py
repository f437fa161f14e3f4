"""Deletion files: which rows of a fragment are gone. Written whole, beside what they are added to, before the commit.

Lance's own `delete` commits before anyone can flush, and finds rows by a condition alone. The file is what its format
says (https://lance.org/format/table/, "Deletion files"): an Arrow file of one column, `row_id` uint32, places in the
fragment. A fragment that loses every row leaves the version with the commit.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from lance.file import LanceFileSession
from lance.fragment import DeletionFile
from numpy.typing import NDArray

from recollect.cold.dataset import Datasets
from recollect.cold.durable import sync_files
from recollect.cold.faults import store_errors
from recollect.cold.fragments import live_rows

_FORM = pa.schema([pa.field("row_id", pa.uint32(), nullable=False)])


def stage_deletions(data: Datasets, steps: Any, places: Mapping[int, NDArray[np.int64]]) -> dict[int, Any]:
    """Writes which rows are gone, those that were gone before included; fragment's number → what names the file.

    Args:
        places: index of a fragment in `steps` → places of its rows that go.

    Raises:
        StoreError, DiskFull: the store cannot be written.
    """
    root, out, paths = data.location.dataset("steps"), {}, []
    fragments = steps.get_fragments()
    with store_errors("writing to", data.location), tempfile.TemporaryDirectory() as folder:
        session = LanceFileSession(root, storage_options=data.location.options)
        for index, rows in places.items():
            fragment = fragments[index]
            gone = np.zeros(int(fragment.physical_rows), np.bool_)
            live = live_rows(fragment)
            if live is not None:
                gone[:] = True
                gone[live] = False
            gone[rows] = True
            table = pa.table([pa.array(np.flatnonzero(gone).astype(np.uint32))], schema=_FORM)
            number = random.SystemRandom().getrandbits(63)
            named = DeletionFile(int(steps.version), number, "array", len(table), None)
            path = Path(folder) / "rows"
            with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, _FORM) as writer:
                writer.write_table(table)
            at = named.path(fragment.fragment_id)
            session.upload_file(path, at)
            out[fragment.fragment_id] = named
            paths.append(Path(root) / at)
        if data.location.is_local:
            sync_files(paths)
    return out
