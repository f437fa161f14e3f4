"""Encodings: each type of field has its own, and a buffer keeps those that it was made with."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lance
import numpy as np
import pyarrow as pa
import pytest

import recollect as rc
import recollect.cold.dataset as cold_dataset
from recollect import errors
from recollect.cold.arrow import decode
from recollect.records.layout import Layout
from recollect.schema import encodings
from recollect.schema.arrow import SYSTEM, arrow_schema
from tests.support import assert_holds, order_of, random_trajectories, write_appends

SCHEMA = rc.Schema(
    {
        "observation": {
            "camera": rc.Frames((8, 9), stack=2),
            "depth": rc.Frames((3, 2), dtype="float16"),
            "joints": rc.Tensor("float32", (3,)),
        },
        "mask": rc.Tensor("bool", (5,), optional=True),
        "flag": rc.Tensor("bool"),
        "grid": rc.Frames((4,), dtype="bool", optional=True),
        "seen": rc.Embedding(6, optional=True),
        "felt": rc.Embedding(4),
        "tokens": rc.Ragged("int32", optional=True),
        "chosen": rc.Ragged("bool"),
        "note": rc.Text(optional=True),
        "uid": rc.Tensor("int64"),
    }
)


def _size(uri: Path) -> int:
    return sum(p.stat().st_size for p in (uri / "steps.lance" / "data").iterdir())


def _field(schema: Any, path: str) -> Any:
    first, *rest = path.split(".")
    field = schema.field(first)
    for name in rest:
        field = field.type.field(name)
    return field


def test_a_dataset_says_the_encoding_of_each_field(tmp_path: Path) -> None:
    made = random_trajectories(SCHEMA, np.random.default_rng(0), count=4)
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer:
        write_appends(writer, made, order_of(made, np.random.default_rng(0)))
        ws.snapshot(tmp_path / "b")
    form = lance.dataset(tmp_path / "b" / "steps.lance").schema
    want = {
        "observation.camera": encodings.FRAMES,
        "observation.depth": encodings.FRAMES,
        "flag": encodings.PACKED,
        "note": encodings.TEXT,
        "uid": encodings.PACKED,
        "time": encodings.PACKED,
        "priority_at_append": encodings.FLOATS,
    }
    for path, encoding in want.items():
        held = {k.decode(): v.decode() for k, v in (_field(form, path).metadata or {}).items()}
        assert encoding.items() <= held.items(), path
    inner = _field(form, "tokens").type.value_field.metadata
    assert {k.decode(): v.decode() for k, v in inner.items()} == encodings.PACKED


@pytest.mark.parametrize("seed", [0, 1])
def test_every_type_comes_back_from_a_buffer_with_other_encodings(
    seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Types and encodings are the buffer's: one that was made with lists and bytes throughout is gone on with."""

    def older(schema: rc.Schema, *, observations_only: bool = False) -> Any:
        plain = [pa.field(name, kind) for name, kind in SYSTEM]
        own = list(arrow_schema(schema, observations_only=observations_only))[len(plain) :]
        return pa.schema(plain + [_older(field, field.name) for field in own])

    def _older(field: Any, path: str) -> Any:
        if pa.types.is_struct(field.type):
            return pa.field(field.name, pa.struct([_older(f, f"{path}.{f.name}") for f in field.type]))
        held = SCHEMA.by_path[path].field
        if isinstance(held, rc.Frames | rc.Embedding | rc.Tensor) and held.shape:
            kind = pa.uint8() if held.dtype == "bool" else pa.from_numpy_dtype(np.dtype(held.dtype))
            return pa.field(field.name, pa.list_(kind, math.prod(held.shape)))
        if isinstance(held, rc.Ragged) and held.dtype == "bool":
            return pa.field(field.name, pa.list_(pa.uint8()))
        return pa.field(field.name, field.type)

    rng = np.random.default_rng(seed)
    made = random_trajectories(SCHEMA, rng, count=12)
    half = made[:6]
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer:
        write_appends(writer, half, order_of(half, rng))
        with monkeypatch.context() as patch:
            patch.setattr(cold_dataset, "arrow_schema", older)
            ws.snapshot(tmp_path / "b", tag="one")
        write_appends(writer, made[6:], order_of(made[6:], rng))
        ws.snapshot(tmp_path / "b", tag="two")
        ws.snapshot(tmp_path / "new", tag="two")
    with rc.open_buffer(tmp_path / "b") as buffer:
        assert pa.types.is_fixed_size_list(
            _field(lance.dataset(tmp_path / "b" / "steps.lance").schema, "observation.camera").type
        )
        assert_holds(buffer.at("one"), SCHEMA, half)
        assert_holds(buffer.at("two"), SCHEMA, made)
    with rc.open_buffer(tmp_path / "new") as buffer:
        assert_holds(buffer.at("two"), SCHEMA, made)


def _frame(view: rc.View, slot: int) -> Any:
    return view.rows.gather(np.array([slot]), ["observation"])["observation"][0]


def test_frames_that_follow_one_another_share_their_bytes(tmp_path: Path) -> None:
    schema = rc.Schema({"observation": rc.Frames((84, 84)), "seen": rc.Embedding(256, optional=True)})
    scene = np.random.default_rng(0).integers(0, 255, (84, 84), np.uint8)
    with rc.create_workspace("w", schema) as ws, ws.writer() as writer:
        for part in range(2):
            with writer.episode() as episode:
                for k in range(150):
                    scene[k // 84, k % 84] += 1
                    episode.append(observation=scene, seen=None, terminated=k == 149)
            ws.snapshot(tmp_path / "b", tag=f"part-{part}")
        raw = 150 * scene.nbytes
        # A scene alone takes 7 KB that nothing makes smaller; an embedding that no step has would take 150 KB.
        assert _size(tmp_path / "b") < 2 * raw / 20
        with rc.open_buffer(tmp_path / "b") as buffer:
            assert buffer.compact().fragments_after <= 2
            assert np.array_equal(_frame(buffer.at("part-1"), 299), scene)


def test_a_file_with_planes_of_another_size_is_refused() -> None:
    schema = rc.Schema({"observation": rc.Frames((2, 2))})
    form = arrow_schema(schema)
    empty = {"final": [False], "has_next": [False], "terminated": [False], "truncated": [False]}
    ids: dict[str, list[Any]] = {n: [1] for n in ("writer", "seq", "episode_writer", "episode", "step", "time")}
    held = {**empty, **ids, "priority_at_append": [None], "observation": [b"abc"]}
    table = pa.table([pa.array(held[f.name], f.type) for f in form], schema=form)
    with pytest.raises(errors.CorruptionError, match="observation"):
        decode(Layout.of(schema), table.to_batches())
