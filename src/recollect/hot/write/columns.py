"""Checks and casts of whole columns, for blocks and lanes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from recollect.errors import FieldError
from recollect.hot.format.fields import MISSING, FieldWriters
from recollect.records.block import Values
from recollect.schema import Frames, Leaf
from recollect.schema.fields import is_heap
from recollect.schema.values import cast_dtype

Histories = Sequence[Mapping[str, list[NDArray[Any]]]]
Older: TypeAlias = Callable[[int], "tuple[NDArray[Any], NDArray[np.bool_]]"]
"""`older(j)`: plane j of the `stack - 1` before every row in its episode, and which of them are padding with zeros."""


def take_columns(
    fields: FieldWriters,
    columns: Mapping[str, Any],
    n: int,
    valid: Mapping[str, Any] | None,
    which: NDArray[np.int64],
    histories: Histories,
    rows: NDArray[np.int64] | None = None,
) -> tuple[dict[str, Values], dict[str, Older]]:
    """Every given field as checked values, optional fields that are absent left out; and the planes that the stacks of
    next observations must begin with.

    Args:
        n: rows that every column must have.
        valid: leaf path → `[n]` bool of the rows that are not null.
        which: episode of each row that is taken, indexing `histories`, whose newest planes its stacks must begin with.
        rows: the rows to take, all when None; what stands in the others is not looked at.

    Raises:
        FieldError: missing, unknown, wrong length, shape or dtype, or a stack that does not overlap.
    """
    fields.check_names(columns)
    for path, mask in (valid or {}).items():
        if path not in fields.schema.by_path:
            raise FieldError(f"no field {path!r} in the schema", remedy="valid= takes dotted field paths")
        if np.shape(mask) != (n,) or np.asarray(mask).dtype != np.bool_:
            raise FieldError(f"valid[{path!r}] holds one bool per row, shape ({n},)", value=mask)
    out: dict[str, Values] = {}
    stacks: dict[str, Older] = {}
    for leaf in fields.schema.leaves:
        value, mask = fields.take(columns, leaf), (valid or {}).get(leaf.path)
        if value is MISSING and leaf.path in fields.defaults:
            out[leaf.path] = _default(fields, leaf, n, mask, rows)
            continue
        if value is MISSING or value is None:
            if not leaf.field.optional:
                raise fields.missing(leaf.path)
            continue
        out[leaf.path] = _column(fields, leaf, value, n, mask, rows)
        if isinstance(leaf.field, Frames) and leaf.field.stack > 1:
            before, after = _older(leaf, out[leaf.path], which, histories)
            out[leaf.path] = _newest(leaf, out[leaf.path], before)
            if leaf.is_observation:
                stacks[leaf.path] = after
    return out, stacks


def take_observation(
    fields: FieldWriters,
    observation: Any,
    n: int,
    stacks: Mapping[str, Older],
    rows: NDArray[np.int64] | None = None,
) -> tuple[dict[str, Values] | None, NDArray[np.bool_]]:
    """The next observations as values, and which rows have one. None means that no row has."""
    count = n if rows is None else len(rows)
    if observation is None:
        return None, np.zeros(count, np.bool_)
    leaves = fields.schema.observations
    if not leaves:
        raise FieldError("next_observation was given, but no field has the role observation")
    roots = list(dict.fromkeys(leaf.parts[0] for leaf in leaves))
    nested = observation if len(roots) > 1 else {roots[0]: observation}
    if not isinstance(nested, Mapping):
        raise FieldError(f"next_observation must be a mapping of {', '.join(roots)}")
    fields.check_names(nested)
    out = {}
    for leaf in leaves:
        value = fields.take(nested, leaf)
        if value is MISSING and leaf.path in fields.defaults:
            out[leaf.path] = _default(fields, leaf, n, None, rows)
            continue
        if value is MISSING or value is None:
            if not leaf.field.optional:
                raise fields.missing("next_" + leaf.path)
            continue
        values = _column(fields, leaf, value, n, None, rows)
        if leaf.path in stacks:
            values = _newest(leaf, values, stacks[leaf.path])
        out[leaf.path] = values
    return out, np.ones(count, np.bool_)


def _column(fields: FieldWriters, leaf: Leaf, value: Any, n: int, valid: Any, rows: NDArray[np.int64] | None) -> Values:
    field = leaf.field
    if is_heap(field):
        if isinstance(value, str | bytes | Mapping) or not hasattr(value, "__len__"):
            raise FieldError(f"field {leaf.path!r} takes a list with one value per row", value=value)
        items = list(value)
        _check_length(leaf.path, len(items), n)
        if rows is not None:
            items = [items[i] for i in rows.tolist()]
        if valid is not None:
            items = [x if ok else None for x, ok in zip(items, np.asarray(valid).tolist(), strict=True)]
        encoded = [fields.encode(leaf, x) for x in items]
        lengths = np.array([0 if x is None else len(x) for x in encoded], np.int64)
        data = np.frombuffer(b"".join(x for x in encoded if x is not None), np.uint8)
        known = np.array([x is not None for x in encoded], np.bool_)
        return Values(data, None if known.all() else known, lengths)
    try:
        array = np.asarray(value)
    except ValueError:
        raise FieldError(f"field {leaf.path!r} takes one array of rows") from None
    if array.ndim == 0 or array.dtype.kind not in "biuf":
        raise FieldError(f"field {leaf.path!r} takes an array of numbers, one row per step", value=array.dtype.name)
    _check_length(leaf.path, len(array), n)
    if rows is not None:
        array = array[rows]
    shape = field.shape  # type: ignore[union-attr]
    forms = {shape}
    if isinstance(field, Frames):
        forms.add(field.stacked_shape)
    if array.shape[1:] not in forms:
        raise FieldError(
            f"field {leaf.path!r} has shape {shape}, the rows have {array.shape[1:]}",
            remedy="Reshape the values or change the schema",
        )
    dtype = np.dtype(field.dtype)  # type: ignore[union-attr]
    if array.dtype != dtype:
        array = cast_dtype(array, dtype, leaf.path, literal=not isinstance(value, np.ndarray))
    return Values(array, _mask(leaf, valid))


def _mask(leaf: Leaf, valid: Any) -> NDArray[np.bool_] | None:
    if valid is None:
        return None
    mask = np.asarray(valid, np.bool_)
    if not leaf.field.optional and not mask.all():
        raise FieldError(f"field {leaf.path!r} is not optional, so valid= may not leave rows out")
    return mask


def _default(fields: FieldWriters, leaf: Leaf, n: int, valid: Any, rows: NDArray[np.int64] | None) -> Values:
    """The column of a field that was left out: its default in every row."""
    default, mask = fields.defaults[leaf.path], _mask(leaf, valid)
    count = n if rows is None else len(rows)
    if not is_heap(leaf.field):
        return Values(np.broadcast_to(default, (count, *default.shape)), mask)
    lengths = np.full(count, len(default), np.int64)
    if mask is not None:
        lengths[~mask] = 0
    data = np.frombuffer(default * int((lengths > 0).sum()), np.uint8)
    return Values(data, mask, lengths)


def _check_length(name: str, have: int, n: int) -> None:
    if have != n:
        raise FieldError(f"column {name!r} has {have} rows, the block has {n}")


def _newest(leaf: Leaf, values: Values, older: Older) -> Values:
    """The newest plane of every stack, after a check that each begins with the planes stored before it."""
    field = leaf.field
    assert isinstance(field, Frames)
    data = values.data
    if field.stack == 1 or data.ndim == 1 + len(field.shape):
        return values
    wrong = np.zeros(len(data), np.bool_)
    inner = tuple(range(1, 1 + len(field.shape)))
    for j in range(field.stack - 1):
        planes, blank = older(j)
        wrong |= np.where(blank, data[:, j].any(axis=inner), (data[:, j] != planes).any(axis=inner))
    if values.valid is not None:
        wrong &= values.valid
    if wrong.any():
        raise FieldError(
            f"field {leaf.path!r}: the stack of row {int(np.flatnonzero(wrong)[0])} does not begin with the planes "
            "stored before it",
            remedy=f"Pass single frames of shape {field.shape}, or match pad={field.pad!r} at the start",
        )
    return Values(np.ascontiguousarray(data[:, -1]), values.valid)


def _older(leaf: Leaf, values: Values, which: NDArray[np.int64], histories: Histories) -> tuple[Older, Older]:
    """The planes before every row in its episode, and those before its next one.

    Where an episode has none so far, its first plane repeated or zeros stand for them. A null row's plane is zeros,
    as it is when it is read.
    """
    field = leaf.field
    assert isinstance(field, Frames)
    planes = values.data[:, -1] if values.data.ndim > 1 + len(field.shape) else values.data
    if values.valid is not None:
        planes = np.array(planes, copy=True)
        planes[~values.valid] = 0
    depth, zeros = field.stack - 1, field.pad == "zero"
    past = [h.get(leaf.path, []) for h in histories]
    held = np.array([len(p) for p in past], np.int64)
    first_held = np.cumsum(held) - held
    known = [np.asarray(plane)[None] for p in past for plane in p]
    pool = np.concatenate([*known, planes]) if known else planes
    order = np.argsort(which, kind="stable")
    first = np.searchsorted(which[order], np.arange(len(histories)))
    place = np.empty(len(which), np.int64)
    place[order] = np.arange(len(which)) - first[which[order]]

    def older(shift: int) -> Older:
        def plane(j: int) -> tuple[NDArray[Any], NDArray[np.bool_]]:
            """An episode's planes are those remembered of it, then its rows here."""
            at = held[which] + place + shift - depth + j
            blank = (at < 0) & zeros
            at = np.maximum(at, 0)
            here = np.clip(first[which] + at - held[which], 0, len(which) - 1)
            source = np.where(at < held[which], first_held[which] + at, len(known) + order[here])
            return pool[source], blank

        return plane

    return older(0), older(1)
