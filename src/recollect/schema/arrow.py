"""The Arrow form of a schema: what a buffer's dataset looks like to any other tool."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa

from recollect.schema import encodings
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
    """The storage type of one field, with the encoding of a list's values.

    Tensors of several axes are flattened. Frames are the bytes of a plane, in C order and little-endian. Lists of fixed
    size hold something where they are null, so an embedding that most steps lack is a list of any size.
    """
    if isinstance(field, Frames):
        return pa.binary()
    if isinstance(field, Ragged):
        return _list(field.dtype)
    if isinstance(field, Embedding):
        return _list(field.dtype, encodings.RAW) if field.optional else pa.list_(_base(field.dtype), field.size)
    if isinstance(field, Tensor):
        return _base(field.dtype) if field.shape == () else pa.list_(_base(field.dtype), math.prod(field.shape))
    return pa.string()


def _base(dtype: str) -> Any:
    return pa.from_numpy_dtype(np.dtype(dtype))


def _list(dtype: str, encoding: encodings.Encoding | None = None) -> Any:
    base = _base(dtype)
    return pa.list_(pa.field("item", base, metadata=encodings.of_values(base) if encoding is None else encoding))


def arrow_field(name: str, field: Field) -> Any:
    """An Arrow field; its metadata says the type, dtype and shape in our words, and the encoding in Lance's."""
    kind = arrow_type(field)
    metadata = {"recollect.type": field.type}
    if isinstance(field, Tensor | Frames):
        metadata |= {"recollect.shape": json.dumps(list(field.shape)), "recollect.dtype": field.dtype}
    if isinstance(field, Frames):
        metadata |= encodings.FRAMES
    elif pa.types.is_string(kind):
        metadata |= encodings.TEXT
    elif not pa.types.is_nested(kind):
        metadata |= encodings.of_values(kind)
    return pa.field(name, kind, nullable=True, metadata=metadata)


def arrow_schema(schema: Schema, *, observations_only: bool = False) -> Any:
    """System columns, then one column per field; nested fields are structs."""
    fields = [pa.field(name, kind, metadata=encodings.of_values(kind)) for name, kind in SYSTEM]
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
