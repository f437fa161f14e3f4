"""Conditions as text that Lance's scanner takes as a filter. Nothing of Lance is imported.

Lance compares floats in IEEE's total order, where NaN is above everything and -0.0 below 0.0, and knows no CASE. So a
condition is written twice, as where it is true and where it is false, and every leaf says for itself what NaN and null
make of it. No NOT stands above a leaf (design/0013).
"""

from __future__ import annotations

from collections.abc import Iterable

from recollect.where import tree
from recollect.where.text import quote
from recollect.where.tree import Column, Condition, Constant, Value

_OPPOSITE = {"=": "!=", "!=": "=", "<": ">=", ">=": "<", ">": "<=", "<=": ">"}
_RANGE = {"int8": 2**7, "int16": 2**15, "int32": 2**31, "int64": 2**63}


def write(node: Condition, wanted: bool = True) -> str:
    """A filter for the rows where a condition is true; where it is false when `wanted` is False."""
    if isinstance(node, tree.Not):
        return write(node.of, not wanted)
    if isinstance(node, tree.And | tree.Or):
        parts = [write(part, wanted) for part in node.parts]
        return all_of(parts) if isinstance(node, tree.And) == wanted else any_of(parts)
    if isinstance(node, tree.Known):
        return "true" if node.truth is wanted else "false"
    return _leaf(node, wanted)


def all_of(parts: Iterable[str]) -> str:
    held = [part for part in parts if part != "true"]
    return "false" if "false" in held else _joined(" AND ", held, "true")


def any_of(parts: Iterable[str]) -> str:
    held = [part for part in parts if part != "false"]
    return "true" if "true" in held else _joined(" OR ", held, "false")


def _joined(word: str, parts: list[str], none: str) -> str:
    parts = list(dict.fromkeys(parts))
    return none if not parts else parts[0] if len(parts) == 1 else f"({word.join(parts)})"


def _leaf(node: tree.Leaf, wanted: bool) -> str:
    if isinstance(node, tree.IsNull):
        held = [f"{_column(c)} IS {'NOT ' if not wanted else ''}NULL" for c in _columns(node.of)]
        return any_of(held) if wanted else all_of(held)
    if isinstance(node, tree.IsNan):
        if node.of.kind != "float":
            return "true" if not wanted else "false"
        nan = f"isnan({_float(node.of)})"
        return all_of([*_present(node.of), nan]) if wanted else any_of([*_absent(node.of), f"NOT {nan}"])
    if isinstance(node, tree.Member):
        return _member(node, wanted)
    if isinstance(node, tree.Like):
        text = f"lower({_column(node.of)})" if node.folds else _column(node.of)
        return f"{text} {'' if wanted else 'NOT '}LIKE {quote(node.pattern)}"
    assert isinstance(node, tree.Compare)
    return _compare(node, wanted)


def _compare(node: tree.Compare, wanted: bool) -> str:
    left, right = node.left, node.right
    operator = node.operator if wanted else _OPPOSITE[node.operator]
    if "float" not in (left.kind, right.kind):
        a, b = _exact(left, right), _exact(right, left)
        return f"{a} {operator} {b}"
    nans = [f"isnan({_float(x)})" for x in (left, right) if _may_be_nan(x)]
    plain = f"{_zeroed(left)} {operator} {_zeroed(right)}"
    if (node.operator == "!=") == wanted:
        # NaN differs from everything, so it is among what is asked for; what is null is not.
        return all_of([*_present(left), *_present(right), any_of([*nans, plain])]) if nans else plain
    return all_of([*(f"NOT {nan}" for nan in nans), plain])


def _member(node: tree.Member, wanted: bool) -> str:
    kinds = {v.kind for v in node.values}
    if node.of.kind in ("text", "int", "time") and kinds <= {"text", "int", "time"}:
        items = [_exact(v, node.of) for v in node.values]
        return f"{_exact(node.of, *node.values)} {'' if wanted else 'NOT '}IN ({', '.join(items)})"
    each = [_compare(tree.Compare("=", node.of, v), wanted) for v in node.values]
    return any_of(each) if wanted else all_of(each)


def _exact(value: Value, *others: Value) -> str:
    """A text, a truth, a time or a whole number, in a type that holds all that it is compared with."""
    if isinstance(value, Constant):
        if value.kind == "text":
            return quote(str(value.value))
        if value.kind == "bool":
            return "true" if value.value else "false"
        number = int(value.value)
        if _is_huge(value, *others):
            return f"CAST('{number}' AS DECIMAL(20, 0))"
        return str(number) if number > -(2**63) else f"CAST('{number}' AS BIGINT)"
    if value.kind == "text":
        assert isinstance(value, Column)
        return _column(value)
    if value.kind == "bool":
        assert isinstance(value, Column)
        return _column(value) if value.element is None else f"CAST({_element(value)} AS BOOLEAN)"
    if _is_huge(value, *others):
        return f"CAST({_plain(value)} AS DECIMAL(20, 0))"
    if isinstance(value, Column) and value.kind == "int" and value.element is None:
        bound = _RANGE.get(value.dtype, 0)
        if all(isinstance(o, Constant) and -bound <= int(o.value) < bound for o in others):
            return _column(value)
    return f"CAST({_plain(value)} AS BIGINT)"


def _is_huge(*values: Value) -> bool:
    """Whether int64 does not hold what is compared."""
    return any(v.kind == "uint" or (isinstance(v, Constant) and int(v.value) >= 2**63) for v in values)


def _float(value: Value) -> str:
    """A number as a float64."""
    if isinstance(value, Constant):
        if value.value != value.value or value.value in (float("inf"), -float("inf")):
            return f"CAST('{float(value.value)}' AS DOUBLE)"
        return repr(float(value.value))
    if isinstance(value, tree.Absolute):
        return f"abs({_float(value.of)})"
    if isinstance(value, tree.Arithmetic):
        return f"({_float(value.left)} {value.operator} {_float(value.right)})"
    text = _plain(value)
    return text if isinstance(value, Column) and value.dtype == "float64" else f"CAST({text} AS DOUBLE)"


def _may_be_nan(value: Value) -> bool:
    return value.kind == "float" and (not isinstance(value, Constant) or value.value != value.value)


def _zeroed(value: Value) -> str:
    """The same with -0.0 made 0.0."""
    return _float(value) if isinstance(value, Constant) else f"({_float(value)} + 0.0)"


def _plain(value: Value) -> str:
    if isinstance(value, tree.Length):
        of = _column(value.of)
        return f"length({of})" if value.of.kind == "text" else f"cardinality({of})"
    assert isinstance(value, Column)
    return _column(value) if value.element is None else _element(value)


def _element(column: Column) -> str:
    assert column.element is not None
    return f"array_element({_column(column)}, {column.element + 1})"


def _column(column: Column) -> str:
    assert column.scope == "step", "facts are no columns of the steps"
    return ".".join(f"`{part}`" for part in column.path.split("."))


def _columns(value: Value) -> list[Column]:
    return list(dict.fromkeys(tree.columns(value)))


def _present(value: Value) -> list[str]:
    return [f"{_column(c)} IS NOT NULL" for c in _columns(value)]


def _absent(value: Value) -> list[str]:
    return [f"{_column(c)} IS NULL" for c in _columns(value)]
