"""Three versions of one schema, steps under each of them, and what a view must then hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

import recollect as rc
from recollect.hot.format.translate import Translation
from recollect.hot.read.log import WriterLog
from recollect.recall.results import decode_heap
from recollect.records.rows import PackedRows
from tests.support import bits, random_value

V1 = rc.Schema(
    {
        "observation": {"pose": rc.Tensor("float32", (3,)), "camera": rc.Frames((2, 2), stack=2)},
        "action": rc.Tensor("int32"),
        "reward": rc.Tensor("float32", optional=True),
        "count": rc.Tensor("int16", optional=True),
        "tokens": rc.Ragged("int16", optional=True),
        "note": rc.Text(optional=True),
        "vector": rc.Embedding(2, optional=True),
        "uid": rc.Tensor("int64"),
    }
)
V2 = rc.Schema(
    {
        "first": rc.Tensor("bool", optional=True),
        "observation": {
            "pose": rc.Tensor("float64", (3,)),
            "camera": rc.Frames((2, 2), stack=2, dtype="uint16"),
            "touch": rc.Tensor("float32", (2,), default=[0.5, -1]),
            "depth": rc.Frames((2,), stack=2, optional=True),
        },
        "action": rc.Tensor("int64", optional=True),
        "reward": rc.Tensor("float32", optional=True),
        "mood": rc.Text(default="calm ☃"),
        "count": rc.Tensor("float32", optional=True),
        "tokens": rc.Ragged("int64", optional=True),
        "note": rc.Text(optional=True),
        "vector": rc.Embedding(2, optional=True),
        "other": rc.Embedding(3, optional=True),
        "level": rc.Tensor("uint8", default=7),
        "uid": rc.Tensor("int64"),
    },
    episode={"place": rc.Text()},
)
V3 = rc.Schema(
    {
        "first": rc.Tensor("bool", optional=True),
        "observation": {
            "pose": rc.Tensor("float64", (3,)),
            "camera": rc.Frames((2, 2), stack=2, dtype="uint16"),
            "touch": rc.Tensor("float64", (2,), default=[0.5, -1]),
            "depth": rc.Frames((2,), stack=2, optional=True),
            "said": rc.Text(default="hm"),
        },
        "action": rc.Tensor("int64", optional=True),
        "reward": rc.Tensor("float64", optional=True),
        "mood": rc.Text(default="calm ☃", optional=True),
        "count": rc.Tensor("float64", optional=True),
        "tokens": rc.Ragged("int64", optional=True),
        "note": rc.Text(optional=True),
        "vector": rc.Embedding(2, optional=True),
        "other": rc.Embedding(3, optional=True),
        "level": rc.Tensor("uint32", default=7, optional=True),
        "uid": rc.Tensor("int64"),
        "plan": rc.Json(default={"steps": [1, None]}),
        "ids": rc.Ragged("uint8", default=[1, 2]),
        "gone": rc.Ragged("int8", default=()),
        "weight": rc.Tensor("float16", default=0.25, optional=True),
    },
    episode={"place": rc.Text(), "rank": rc.Tensor("int32")},
)
VERSIONS = (V1, V2, V3)


def kept_translations(log: WriterLog) -> list[Translation]:
    """Every translation that a log keeps."""
    return [t for mine in log._translations._of.values() for t in mine.values()]


def nest(values: dict[str, Any]) -> dict[str, Any]:
    """A step as `append` takes it."""
    out: dict[str, Any] = {"observation": {}}
    for path, value in values.items():
        if path.startswith("observation."):
            out["observation"][path.partition(".")[2]] = value
        else:
            out[path] = value
    return out


def as_read(leaf: Any, values: dict[str, Any]) -> Any:
    """What a view must give for a leaf of which `values` holds what was written, None for null, nothing if left out."""
    field = leaf.field
    value = values.get(leaf.path, getattr(field, "default", None))
    if value is None:
        return None
    if field.type in ("text", "json"):
        return value
    if field.type == "ragged":
        return np.asarray(value, field.dtype)
    return np.broadcast_to(np.asarray(value, field.dtype), field.shape)


def packed(view: rc.View) -> PackedRows:
    assert isinstance(view.rows, PackedRows)
    return view.rows


def check(view: rc.View, written: Mapping[rc.StepId, dict[str, Any]]) -> None:
    """Every row that was written, and no other step, with the values of the view's schema."""
    rows = packed(view)
    slots = np.flatnonzero(~view.episodes.is_final)
    ids = [rc.StepId(*i) for i in rows.ids(slots).tolist()]
    assert sorted(ids) == sorted(written)
    for leaf in view.schema.leaves:
        wanted = [as_read(leaf, written[i]) for i in ids]
        if leaf.field.type in ("text", "json", "ragged"):
            have: list[Any] = [decode_heap(leaf, raw) for raw in rows.heap_values(slots, leaf.path)]
            for mine, theirs in zip(have, wanted, strict=True):
                assert bits(mine) == bits(theirs) if isinstance(theirs, np.ndarray) else mine == theirs, leaf.path
            continue
        valid = rows.valid(slots, leaf.path)
        assert valid.tolist() == [value is not None for value in wanted], leaf.path
        have = list(rows.gather(slots, (leaf.path,))[leaf.path])
        for mine, theirs in zip(have, wanted, strict=True):
            if theirs is not None:
                assert bits(mine) == bits(theirs), leaf.path
            elif leaf.field.type == "tensor":
                assert np.isnan(mine).all() if mine.dtype.kind == "f" else not mine.any(), leaf.path


def random_step(rng: np.random.Generator, schema: rc.Schema) -> dict[str, Any]:
    """A step under a schema: optional fields null or absent now and then, defaults left out."""
    out: dict[str, Any] = {}
    for leaf in schema.leaves:
        has_default = getattr(leaf.field, "default", None) is not None
        if has_default and rng.random() < 0.5:
            continue
        if leaf.field.optional and rng.random() < 0.4:
            if has_default or rng.random() < 0.5:
                out[leaf.path] = None
            continue
        out[leaf.path] = random_value(rng, leaf)
    return out
