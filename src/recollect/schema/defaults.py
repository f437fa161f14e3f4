"""Defaults of fields: what a step holds where the caller left a field out, and what rows older than the field read as.

A default is kept in one form whatever the caller wrote: numbers cast to the field's dtype, nested tuples for arrays
(one number where all are the same), JSON with sorted keys. So equal defaults are equal schemas.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from recollect.errors import FieldError, SchemaError
from recollect.schema.values import cast_array, check_text, dump_json

if TYPE_CHECKING:
    from recollect.schema.fields import Field

_UNKNOWN = "Declare the field optional=True where the value can be unknown"


def tensor_default(value: Any, dtype: str, shape: tuple[int, ...]) -> Any:
    """One number for the whole of `shape`, or nested tuples of it.

    Raises:
        SchemaError: not castable to dtype and shape, or not finite.
    """
    nested = isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.shape != ())
    array = _cast(value, dtype, shape if nested else ())
    flat = array.reshape(-1)
    if all(number.tobytes() == flat[0].tobytes() for number in flat):
        return flat[0].item()
    return _tuples(array.tolist())


def ragged_default(value: Any, dtype: str) -> tuple[Any, ...]:
    """A tuple of numbers. Raises SchemaError as `tensor_default` does."""
    if isinstance(value, list | tuple) and not value:
        return ()
    return tuple(_cast(value, dtype, None).tolist())


def text_default(value: Any) -> str:
    """Raises SchemaError unless `value` is text that UTF-8 can hold."""
    try:
        return check_text(value, "default")
    except FieldError as e:
        raise SchemaError("a text field's default is text", value=value, remedy=e.remedy) from None


def json_default(value: Any) -> Any:
    """A copy of a JSON value, its keys sorted. Raises SchemaError for what JSON has no form for."""
    try:
        return json.loads(json_text(json.loads(dump_json(value, "default"))))
    except ValueError as e:  # FieldError is one too
        raise SchemaError(f"a JSON field's default is a JSON value: {e}", value=value) from None


def json_text(value: Any) -> str:
    """JSON with sorted keys. Raises ValueError for NaN and infinities, which JSON lacks."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False, separators=(",", ":"), allow_nan=False)


def stored_default(field: Field) -> NDArray[Any] | bytes | None:
    """A field's default as a row holds it: an array of its shape, or heap bytes. None where it has none."""
    value = getattr(field, "default", None)
    if value is None:
        return None
    if field.type == "text":
        return str(value).encode("utf-8")
    if field.type == "json":
        return json_text(value).encode("utf-8")
    if field.type == "ragged":
        return np.array(value, field.dtype).tobytes()  # type: ignore[union-attr]
    out = np.empty(field.shape, field.dtype)  # type: ignore[union-attr]
    out[...] = np.array(value, field.dtype)  # type: ignore[union-attr]
    out.flags.writeable = False
    return out


def plain_default(field: Field, value: Any) -> Any:
    """A default in the form of schema files: JSON values as JSON text, since TOML has no null."""
    return json_text(value) if field.type == "json" else _lists(value)


def parse_default(kind: str, path: str, value: Any) -> Any:
    """The default from a schema file's form. Raises SchemaError."""
    if kind != "json":
        return value
    try:
        out = json.loads(value)
    except (TypeError, ValueError):
        out = None
    if out is None:
        raise SchemaError(
            f"field {path!r}: the default of a JSON field is written as JSON text, and null is none",
            value=value,
            remedy="""Write default = '{"key": 1}'""",
        )
    return out


def _cast(value: Any, dtype: str, shape: tuple[int, ...] | None) -> NDArray[Any]:
    if np.dtype(dtype).kind in "iu" and isinstance(value, list | tuple):
        # Python's own numbers first: numpy takes small and very large ones together for floats.
        with contextlib.suppress(OverflowError, TypeError, ValueError):
            exact = np.array(value, object)
            value = exact.astype(dtype) if all(type(x) is int for x in exact.flat) else value
    try:
        array = cast_array(value, np.dtype(dtype), shape, "default")
    except FieldError as e:
        raise SchemaError(f"a default does not fit its field: {e.message}", value=value, remedy=e.remedy) from None
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise SchemaError("a default is a finite number", value=value, remedy=_UNKNOWN)
    return array


def _tuples(value: Any) -> Any:
    return tuple(_tuples(x) for x in value) if isinstance(value, list) else value


def _lists(value: Any) -> Any:
    return [_lists(x) for x in value] if isinstance(value, tuple) else value
