"""The types a field can have. Each is frozen and comparable, and says what it stores, not how."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeAlias, get_args

import numpy as np

from recollect.errors import SchemaError
from recollect.schema.defaults import json_default, ragged_default, tensor_default, text_default

Role: TypeAlias = Literal[
    "observation",
    "action",
    "reward",
    "discount",
    "text",
    "embedding",
    "policy_version",
    "log_prob",
    "priority",
]
ROLES: tuple[str, ...] = get_args(Role)

_NUMERIC = frozenset(
    ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
    + ["float16", "float32", "float64"]
)


def _check_dtype(dtype: str) -> str:
    try:
        name = np.dtype(dtype).name
    except TypeError:
        name = str(dtype)
    if name not in _NUMERIC:
        raise SchemaError(
            "a field's dtype must be a bool, integer or float type",
            value=dtype,
            remedy=f"Use one of {', '.join(sorted(_NUMERIC))}",
        )
    return name


def _check_shape(shape: Sequence[int]) -> tuple[int, ...]:
    if not isinstance(shape, tuple | list) or not all(isinstance(n, int | np.integer) for n in shape):
        raise SchemaError("a shape is a tuple of whole numbers", value=shape, remedy="Write (3,) for three numbers")
    out = tuple(int(n) for n in shape)
    if any(n < 1 for n in out):
        raise SchemaError("every axis of a field's shape must be at least 1", value=out)
    return out


def _check_role(role: str | None) -> None:
    if role is not None and role not in ROLES:
        raise SchemaError("unknown role", value=role, remedy=f"Use one of {', '.join(ROLES)}")


@dataclass(frozen=True)
class Tensor:
    """A fixed-shape array, kept inside the row's record.

    Args:
        dtype: numpy name of a bool, integer or float type.
        shape: axes of one step's value; `()` is a scalar.
        role: what the value means; a top-level field named like a role has it.
        optional: None is accepted and kept apart from every number.
        default: what a step holds where the field is left out, and what rows older than the field read as: one finite
            number for every element, or numbers nested as `shape` says. None: the field may not be left out.
    """

    type: ClassVar[str] = "tensor"
    dtype: str
    shape: tuple[int, ...] = ()
    role: Role | None = None
    optional: bool = False
    default: Any = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", _check_dtype(self.dtype))
        object.__setattr__(self, "shape", _check_shape(self.shape))
        _check_role(self.role)
        if self.default is not None:
            object.__setattr__(self, "default", tensor_default(self.default, self.dtype, self.shape))


@dataclass(frozen=True)
class Frames:
    """Image planes. A stack of the newest `stack` planes is accepted and read; each plane is stored once.

    There is no default: an invented image would be learned from. A field that can be missing is `optional`.

    Args:
        shape: axes of one plane, such as `(84, 84)` or `(84, 84, 3)`.
        stack: planes in one observation, oldest first; 1 means no stack axis.
        pad: what stands before an episode's first plane: zeros, or that plane repeated.
        dtype: numpy name, `uint8` by default.
        role, optional: as for `Tensor`.
    """

    type: ClassVar[str] = "frames"
    shape: tuple[int, ...]
    stack: int = 1
    pad: Literal["zero", "repeat"] = "zero"
    dtype: str = "uint8"
    role: Role | None = None
    optional: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", _check_dtype(self.dtype))
        object.__setattr__(self, "shape", _check_shape(self.shape))
        _check_role(self.role)
        if self.stack < 1:
            raise SchemaError("a frame stack holds at least one plane", value=self.stack)
        if self.pad not in ("zero", "repeat"):
            raise SchemaError("unknown pad", value=self.pad, remedy="Use 'zero' or 'repeat'")

    @property
    def stacked_shape(self) -> tuple[int, ...]:
        """The shape that is read: `[stack, *shape]`, or `shape` alone when `stack` is 1."""
        return self.shape if self.stack == 1 else (self.stack, *self.shape)


@dataclass(frozen=True)
class Embedding:
    """A float32 vector of `size` numbers, kept beside the record because most steps have none.

    There is no default: an invented vector would be found by searches. A field that can be missing is `optional`.
    """

    type: ClassVar[str] = "embedding"
    size: int
    role: Role | None = "embedding"
    optional: bool = False
    dtype: ClassVar[str] = "float32"

    def __post_init__(self) -> None:
        _check_role(self.role)
        if self.size < 1:
            raise SchemaError("an embedding has at least one number", value=self.size)

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.size,)


@dataclass(frozen=True)
class Ragged:
    """A one-dimensional array whose length differs from step to step (token ids, masks, log-probabilities).

    Args:
        default: as for `Tensor`, a sequence of finite numbers, which may be empty.
    """

    type: ClassVar[str] = "ragged"
    dtype: str
    role: Role | None = None
    optional: bool = False
    default: Any = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "dtype", _check_dtype(self.dtype))
        _check_role(self.role)
        if self.default is not None:
            object.__setattr__(self, "default", ragged_default(self.default, self.dtype))


@dataclass(frozen=True)
class Text:
    """A string, stored as UTF-8 and masked before it is written.

    Args:
        default: as for `Tensor`; part of the schema, so it is not masked.
    """

    type: ClassVar[str] = "text"
    role: Role | None = None
    optional: bool = False
    default: str | None = None

    def __post_init__(self) -> None:
        _check_role(self.role)
        if self.default is not None:
            object.__setattr__(self, "default", text_default(self.default))


@dataclass(frozen=True)
class Json:
    """Any JSON value. Numpy scalars and arrays are accepted; the strings inside are masked.

    Args:
        default: as for `Tensor`; any JSON value but null. It is copied; do not change the copy.
    """

    type: ClassVar[str] = "json"
    role: Role | None = None
    optional: bool = False
    default: Any = field(default=None, hash=False)

    def __post_init__(self) -> None:
        _check_role(self.role)
        if self.default is not None:
            object.__setattr__(self, "default", json_default(self.default))


Field: TypeAlias = Tensor | Frames | Embedding | Ragged | Text | Json
FIELD_TYPES: dict[str, type[Any]] = {t.type: t for t in (Tensor, Frames, Embedding, Ragged, Text, Json)}


_WIDE = (Frames, Embedding)
_HEAP = (Ragged, Text, Json)  # a union would be built at every call


def is_inline(field: Field) -> bool:
    """Whether the value lies inside the packed record."""
    return isinstance(field, Tensor)


def is_wide(field: Field) -> bool:
    """Whether the value lies in a plane region of fixed-size entries beside the records."""
    return isinstance(field, _WIDE)


def is_heap(field: Field) -> bool:
    """Whether the value's size varies, so that it lies in the heap."""
    return isinstance(field, _HEAP)


def plane_bytes(field: Frames | Embedding) -> int:
    """Bytes of one stored plane."""
    return math.prod(field.shape) * np.dtype(field.dtype).itemsize


def read_shape(field: Tensor | Frames | Embedding) -> tuple[int, ...]:
    """The shape that a batch holds for one step."""
    return field.stacked_shape if isinstance(field, Frames) else field.shape
