"""The parsed form: values and conditions, checked against a schema. Everything else works on these."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["int", "uint", "float", "bool", "text", "time", "other"]
"""What values of a column are: `int` fits int64, `uint` is uint64, `time` is nanoseconds since 1970 in an int64.
`other` can be asked for null and nothing else."""
Comparison: TypeAlias = Literal["=", "!=", "<", "<=", ">", ">="]
Operator: TypeAlias = Literal["+", "-", "*", "/", "%"]

NUMBERS = ("int", "uint", "float")


@dataclass(frozen=True)
class Column:
    """A column of steps, or a fact of their episodes.

    Attributes:
        scope: whose it is.
        path: dotted path, without `episode.`.
        kind: what its values are.
        dtype: numpy name; "" for text and `other`.
        element: which number of the flattened value; None for the value itself.
        index: the same as the reader wrote it, by axis.
    """

    scope: Literal["step", "episode"]
    path: str
    kind: Kind
    dtype: str = ""
    element: int | None = None
    index: tuple[int, ...] = ()


@dataclass(frozen=True)
class Constant:
    """A value in the text, as it is compared; `shown` is how the canonical text spells it."""

    value: int | float | bool | str
    kind: Kind
    shown: str = field(default="", compare=False)


@dataclass(frozen=True)
class Arithmetic:
    """Of float64, whatever the operands are."""

    operator: Operator
    left: Value
    right: Value
    kind: Kind = "float"


@dataclass(frozen=True)
class Absolute:
    """`abs()` of a float64."""

    of: Value
    kind: Kind = "float"


@dataclass(frozen=True)
class Length:
    """Characters of a text, numbers of a ragged field."""

    of: Column
    kind: Kind = "int"


Value: TypeAlias = "Column | Constant | Arithmetic | Absolute | Length"


@dataclass(frozen=True)
class Compare:
    operator: Comparison
    left: Value
    right: Value


@dataclass(frozen=True)
class Member:
    """`in (…)`."""

    of: Value
    values: tuple[Constant, ...]


@dataclass(frozen=True)
class IsNull:
    of: Value


@dataclass(frozen=True)
class IsNan:
    """Never unknown: null is not NaN."""

    of: Value


@dataclass(frozen=True)
class Like:
    """`like` or, when `folds`, `ilike`.

    Attributes:
        pattern: the pattern with a backslash before every character that stands for itself only when escaped.
    """

    of: Column
    pattern: str
    folds: bool


@dataclass(frozen=True)
class Known:
    """A truth that needs no row; None is unknown."""

    truth: bool | None


@dataclass(frozen=True)
class And:
    parts: tuple[Condition, ...]


@dataclass(frozen=True)
class Or:
    parts: tuple[Condition, ...]


@dataclass(frozen=True)
class Not:
    of: Condition


Leaf: TypeAlias = "Compare | Member | IsNull | IsNan | Like | Known"
Condition: TypeAlias = "Leaf | And | Or | Not"


def columns(node: Condition | Value) -> Iterator[Column]:
    """Every column in reading order; one may come more than once."""
    if isinstance(node, Column):
        yield node
    elif isinstance(node, And | Or):
        for part in node.parts:
            yield from columns(part)
    elif isinstance(node, Compare | Arithmetic):
        yield from columns(node.left)
        yield from columns(node.right)
    elif not isinstance(node, Constant | Known):
        yield from columns(node.of)


def depth(node: Condition | Value) -> int:
    """How deep it is nested."""
    if isinstance(node, Column | Constant | Known):
        return 0
    if isinstance(node, And | Or):
        return 1 + max(depth(part) for part in node.parts)
    if isinstance(node, Compare | Arithmetic):
        return 1 + max(depth(node.left), depth(node.right))
    return 1 + depth(node.of)
