"""Whatever the strategies draw can be appended, and is read back."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import recollect as rc
from recollect.testing import strategies as rst
from tests.support import bits

CASES = rst.schemas().flatmap(lambda s: st.tuples(st.just(s), rst.episodes(s)))


@given(CASES)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_every_drawn_step_is_appended_and_read_back(case: tuple[rc.Schema, list[rst.DrawnStep]]) -> None:
    schema, steps = case
    with tempfile.TemporaryDirectory() as folder, rc.create_workspace(Path(folder) / "w", schema) as ws:
        with ws.writer(durability="process") as writer, writer.episode() as episode:
            for step in steps:
                episode.append(
                    **step.fields,
                    next_observation=step.next_observation,
                    terminated=step.terminated,
                    truncated=step.truncated,
                )
            key = episode.key
        record = ws.episode(key)
        assert record["uid"].tolist() == list(range(len(steps)))
        assert (record.terminated, record.truncated) == (steps[-1].terminated, steps[-1].truncated)
        for leaf in schema.leaves:
            if leaf.field.type == "frames":
                continue
            held = record[leaf.path]
            for k, step in enumerate(steps):
                given_, there = _at(step.fields, leaf.path)
                assert bool(record.valid(leaf.path)[k]) == there
                if there:
                    wanted = np.asarray(given_, leaf.field.dtype) if hasattr(leaf.field, "dtype") else given_
                    assert bits(np.asarray(held[k]) if hasattr(leaf.field, "dtype") else held[k]) == bits(wanted)
        if schema.observations:
            assert (record.final is not None) == (steps[-1].next_observation is not None)


def _at(fields: Any, path: str) -> tuple[Any, bool]:
    for part in path.split("."):
        if part not in fields:
            return None, False
        fields = fields[part]
    return fields, True


@given(rst.schemas(observed=True))
@settings(max_examples=20, deadline=None)
def test_a_drawn_schema_equals_its_description(schema: rc.Schema) -> None:
    assert schema.observations
    assert rc.Schema.from_dict(schema.to_dict()) == schema
