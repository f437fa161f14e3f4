"""Checks and casts of single values. Casting is numpy's `same_kind`, and never wraps an integer around."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recollect.errors import FieldError


def cast_array(value: Any, dtype: np.dtype[Any], shape: tuple[int, ...] | None, path: str) -> NDArray[Any]:
    """`value` as a C-contiguous array of `dtype` and `shape` (any one-dimensional length when shape is None).

    Raises:
        FieldError: not numeric, a cast that is not `same_kind`, an integer out of range, another shape.
    """
    try:
        array = np.asarray(value)
    except (ValueError, TypeError, RuntimeError) as e:
        raise FieldError(f"field {path!r} takes numbers of dtype {dtype.name}: {e}") from None
    if array.dtype.kind not in "biuf":
        given = {"U": "text", "S": "bytes"}.get(array.dtype.kind, f"of dtype {array.dtype.name}")
        raise FieldError(f"field {path!r} takes numbers of dtype {dtype.name}, the value is {given}", value=value)
    if shape is not None and array.shape != shape:
        raise FieldError(
            f"field {path!r} has shape {shape}, the value has {array.shape}",
            remedy="Reshape the value or change the schema",
        )
    if shape is None and array.ndim != 1:
        raise FieldError(f"field {path!r} takes one-dimensional arrays, the value has shape {array.shape}")
    if array.dtype == dtype:
        return np.asarray(array, order="C")
    return cast_dtype(array, dtype, path, literal=not isinstance(value, np.ndarray | np.generic))


def cast_dtype(array: NDArray[Any], dtype: np.dtype[Any], path: str, *, literal: bool = False) -> NDArray[Any]:
    """`array` in `dtype`; `literal` values (plain Python integers) may also enter an unsigned field."""
    fits = np.can_cast(array.dtype, dtype, "same_kind")
    if not fits and not (literal and array.dtype.kind in "iu" and dtype.kind in "iu") and array.size:
        raise FieldError(
            f"field {path!r} is {dtype.name}, the value is {array.dtype.name}",
            remedy=f"Cast it yourself, with .astype({dtype.name!r}), if the loss is meant",
        )
    if dtype.kind in "iu" and array.dtype.kind in "iu" and array.size:
        info = np.iinfo(dtype)
        low, high = int(array.min()), int(array.max())
        if low < info.min or high > info.max:
            raise FieldError(
                f"field {path!r} is {dtype.name}, which ends at {info.min} and {info.max}",
                value=low if low < info.min else high,
            )
    with np.errstate(over="ignore", invalid="ignore"):
        out = np.asarray(array, dtype=dtype, order="C")
    if dtype.kind == "f" and (beyond := np.isinf(out)).any() and (beyond := beyond & np.isfinite(array)).any():
        raise FieldError(
            f"field {path!r} is {dtype.name}, which ends at {np.finfo(dtype).max:.3g}",
            value=float(np.abs(array[beyond]).max()),
            remedy="Clip it, or declare a wider dtype",
        )
    return out


def check_text(value: Any, path: str) -> str:
    """Raises FieldError unless `value` is a string that UTF-8 can hold."""
    if not isinstance(value, str):
        raise FieldError(f"field {path!r} takes text", value=value)
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        raise FieldError(
            f"field {path!r} holds a lone surrogate, which UTF-8 cannot store",
            value=value,
            remedy="Decode the source with errors='replace'",
        ) from None
    return value


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not JSON")


def dump_json(value: Any, path: str) -> str:
    """JSON text of `value`, numpy values included; NaN and infinities keep Python's spelling.

    Raises:
        FieldError: something that JSON has no form for, or text that UTF-8 cannot hold.
    """
    try:
        text = json.dumps(value, default=_plain, ensure_ascii=False, separators=(",", ":"))
        text.encode("utf-8")
    except (TypeError, ValueError, RecursionError) as e:
        raise FieldError(f"field {path!r} takes JSON values: {e}", value=value) from None
    return text
