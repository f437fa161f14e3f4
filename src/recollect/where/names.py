"""What an expression may name: the columns of a schema's steps and the facts of their episodes."""

from __future__ import annotations

import difflib
import math
from collections.abc import Sequence
from typing import Literal

import numpy as np

from recollect.errors import ArgumentError, NotFound
from recollect.schema import Schema
from recollect.schema.fields import Embedding, Field, Frames, Json, Ragged, Tensor, Text
from recollect.where.tree import Column, Kind

BUILT_IN: dict[str, tuple[Kind, str]] = {
    "terminated": ("bool", "bool"),
    "truncated": ("bool", "bool"),
    "step": ("int", "int32"),
    "time": ("time", "int64"),
    "writer": ("int", "int64"),
    "seq": ("int", "int64"),
}
EPISODE_BUILT_IN: dict[str, tuple[Kind, str]] = {"id": ("text", ""), "attempt": ("int", "int64")}
SHOWN = 40
"""So many names an error lists."""


def resolve(schema: Schema, parts: Sequence[str | int], shown: str) -> Column:
    """The column that a path names: its names and, behind them, places in a tensor.

    Raises:
        NotFound: no such field or fact; those that there are, and near ones.
        ArgumentError: a place that the value does not have.
    """
    scope: Literal["step", "episode"] = "step"
    if parts[0] == "episode" and len(parts) > 1:
        scope, parts = "episode", parts[1:]
    known: dict[str, Field | tuple[Kind, str]] = {}
    if scope == "step":
        known = {**{leaf.path: leaf.field for leaf in schema.leaves}, **BUILT_IN}
    else:
        known = {**EPISODE_BUILT_IN, **schema.episode}
    path, count = str(parts[0]), 1
    while path not in known and count < len(parts):
        path, count = f"{path}.{parts[count]}", count + 1
    if path not in known:
        raise _unknown(schema, known, scope, shown)
    found, index = known[path], parts[count:]
    kind, dtype, shape = (*found, ()) if isinstance(found, tuple) else _type(found)
    if not index:
        return Column(scope, path, "other" if shape else kind, dtype)
    if not shape:
        raise ArgumentError(f"where: {shown!r}: {path!r} has no elements", remedy=f"Write {_dotted(scope, path)}")
    places = tuple(int(i) if str(i).isdecimal() else -1 for i in index)
    if len(places) != len(shape) or any(not 0 <= i < n for i, n in zip(places, shape, strict=True)):
        raise ArgumentError(
            f"where: {shown!r} is no element of {path!r}, whose shape is {shape}",
            remedy=f"Name one element, the first is {_dotted(scope, path)}{'[0]' * len(shape)}",
        )
    element = int(np.ravel_multi_index(places, shape))
    return Column(scope, path, kind, dtype, element, places)


def describe(schema: Schema, column: Column) -> str:
    """What a column of kind `other` is, in words."""
    fields = {leaf.path: leaf.field for leaf in schema.leaves} if column.scope == "step" else dict(schema.episode)
    field = fields[column.path]
    if isinstance(field, Frames):
        return "image planes"
    if isinstance(field, Ragged):
        return "an array whose length differs from step to step"
    if isinstance(field, Json):
        return "JSON"
    return f"an array of shape {field.shape}"  # type: ignore[union-attr]


def _type(field: Field) -> tuple[Kind, str, tuple[int, ...]]:
    if isinstance(field, Text):
        return "text", "", ()
    if isinstance(field, Tensor | Embedding):
        kind = np.dtype(field.dtype).kind
        number: Kind = "bool" if kind == "b" else "float" if kind == "f" else "int"
        shape = field.shape if math.prod(field.shape) else ()
        return ("uint" if field.dtype == "uint64" else number), field.dtype, shape
    return "other", field.dtype if isinstance(field, Ragged) else "", ()


def _dotted(scope: str, path: str) -> str:
    return path if scope == "step" else f"episode.{path}"


def _unknown(schema: Schema, known: dict[str, Field | tuple[Kind, str]], scope: str, shown: str) -> NotFound:
    names = [_dotted(scope, path) for path in known]
    near = difflib.get_close_matches(shown, names, n=1, cutoff=0.6)
    inner = [name for name in names if name.startswith(shown + ".")]
    if inner:
        hint = f"It nests {', '.join(inner[:SHOWN])}"
    elif scope == "step" and shown in (*schema.episode, *EPISODE_BUILT_IN):
        hint = f"The episode's fact is episode.{shown}"
    else:
        guess = f"Did you mean {near[0]!r}? " if near else ""
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        hint = f"{guess}There are {', '.join(names[:SHOWN])}{more}" + (", episode.<fact>" if scope == "step" else "")
    return NotFound(f"where: no {'field' if scope == 'step' else 'episode fact'} {shown!r}", remedy=hint)
