"""The Arrow form of a schema: what a buffer's dataset looks like to any other tool."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa

from recollect.schema.fields import Embedding, Field, Frames, Ragged, Tensor
from recollect.schema.schema import Schema

SYSTEM: list[tuple[str, Any]] = [
    ("writer", pa.int64()),
    ("seq", pa.int64()),
    ("episode_writer", pa.int64()),
    ("episode", pa.int64()),
    ("step", pa.int32()),
    ("time", pa.timestamp("ns", tz="UTC")),
    ("terminated", pa.bool_()),
    ("truncated", pa.bool_()),
    ("final", pa.bool_()),
    ("has_next", pa.bool_()),
    ("priority_at_append", pa.float32()),
]
"""Columns that every dataset of steps begins with."""


def arrow_type(field: Field) -> Any:
    """The storage type of one field. Tensors of several axes are flattened; bools inside tensors are bytes."""
    if isinstance(field, Tensor | Frames | Embedding):
        base = pa.from_numpy_dtype(np.dtype(field.dtype))
        if field.shape == ():
            return base
        return pa.list_(pa.uint8() if pa.types.is_boolean(base) else base, math.prod(field.shape))
    if isinstance(field, Ragged):
        base = pa.from_numpy_dtype(np.dtype(field.dtype))
        return pa.list_(pa.uint8() if pa.types.is_boolean(base) else base)
    return pa.string()


def arrow_field(name: str, field: Field) -> Any:
    """An Arrow field; its metadata says the type and shape in our words."""
    metadata = {"recollect.type": field.type}
    if isinstance(field, Tensor | Frames):
        metadata["recollect.shape"] = json.dumps(list(field.shape))
    return pa.field(name, arrow_type(field), nullable=True, metadata=metadata)


def arrow_schema(schema: Schema, *, observations_only: bool = False) -> Any:
    """System columns, then one column per field; nested fields are structs."""
    fields = [pa.field(name, kind) for name, kind in SYSTEM]
    leaves = schema.observations if observations_only else schema.leaves
    tree: dict[str, Any] = {}
    for leaf in leaves:
        at = tree
        for part in leaf.parts[:-1]:
            at = at.setdefault(part, {})
        at[leaf.parts[-1]] = leaf.field
    return pa.schema(fields + [_nested(name, node) for name, node in tree.items()])


def _nested(name: str, node: Any) -> Any:
    if isinstance(node, dict):
        return pa.field(name, pa.struct([_nested(k, v) for k, v in node.items()]))
    return arrow_field(name, node)
