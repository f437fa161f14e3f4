"""Buffers that several create at once."""

from __future__ import annotations

import threading
from pathlib import Path

import pyarrow as pa
import pytest

import recollect as rc
from recollect.cold.commit import FILE_FORMAT
from recollect.cold.dataset import FACTS, Datasets
from recollect.cold.location import Location
from recollect.errors import SchemaMismatch

SCHEMA = rc.Schema({"observation": rc.Tensor("float32", (2,))})
OTHER = rc.Schema({"observation": rc.Tensor("float32", (2,)), "reward": rc.Tensor("float32", ())})


def _fact(k: int) -> pa.Table:
    rows = {name: [None] for name in FACTS.names} | {"writer": [k]}
    return pa.table(rows, schema=FACTS)


@pytest.mark.parametrize("trial", range(20))
def test_a_slower_creation_never_drops_what_was_committed_since(tmp_path: Path, trial: int) -> None:
    location = Location(tmp_path / "buffer")
    barrier = threading.Barrier(4)
    failures: list[BaseException] = []

    def create(k: int) -> None:
        try:
            barrier.wait()
            Datasets.create(location, SCHEMA).append("facts", _fact(k))
        except BaseException as e:
            failures.append(e)

    threads = [threading.Thread(target=create, args=(k,)) for k in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not failures
    made = Datasets.open_(location)
    assert sorted(made.dataset("facts").to_table()["writer"].to_pylist()) == [0, 1, 2, 3]
    assert made.steps.version == 1
    assert {made.dataset(n).data_storage_version for n in ("steps", "facts", "tails")} == {FILE_FORMAT}


def test_a_buffer_of_another_schema_is_refused(tmp_path: Path) -> None:
    location = Location(tmp_path / "buffer")
    Datasets.create(location, SCHEMA)
    with pytest.raises(SchemaMismatch, match="reward"):
        Datasets.create(location, OTHER)
