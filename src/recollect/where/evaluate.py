"""Conditions over columns, in numpy. A condition gives two masks, where it is true and where it is false; where it is
unknown, neither is set."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recollect.where import tree
from recollect.where.table import Held, Table
from recollect.where.tree import Column, Condition, Constant, Value

Bool = NDArray[np.bool_]
_COMPARE: dict[str, Any] = {
    "=": np.equal,
    "!=": np.not_equal,
    "<": np.less,
    "<=": np.less_equal,
    ">": np.greater,
    ">=": np.greater_equal,
}
_COMPUTE: dict[str, Any] = {
    "+": np.add,
    "-": np.subtract,
    "*": np.multiply,
    "/": np.divide,
    "%": np.fmod,  # the sign of the dividend, as in SQL and C
}


def masks(node: Condition, table: Table) -> tuple[Bool, Bool]:
    """`[n]` bool each: the rows where a condition is true, and those where it is false."""
    if isinstance(node, tree.And | tree.Or):
        conjunction = isinstance(node, tree.And)
        true, false = masks(node.parts[0], table)
        for part in node.parts[1:]:
            t, f = masks(part, table)
            true, false = (true & t, false | f) if conjunction else (true | t, false & f)
        return true, false
    if isinstance(node, tree.Not):
        true, false = masks(node.of, table)
        return false, true
    if isinstance(node, tree.Known):
        return np.full(len(table), node.truth is True), np.full(len(table), node.truth is False)
    with np.errstate(all="ignore"):
        return _leaf(node, table)


def _leaf(node: tree.Leaf, table: Table) -> tuple[Bool, Bool]:
    if isinstance(node, tree.Compare):
        a, b = _pair(node.left, node.right, table)
        true, known = _COMPARE[node.operator](a.values, b.values).astype(np.bool_), a.known & b.known
        return true & known, ~true & known
    if isinstance(node, tree.IsNull):
        known = _known(node.of, table)
        return ~known, known
    if isinstance(node, tree.IsNan):
        held = _value(node.of, table)
        nan = held.known & np.isnan(held.values) if held.values.dtype.kind == "f" else np.zeros(len(table), np.bool_)
        return nan, ~nan
    if isinstance(node, tree.Member):
        held = _value(node.of, table)
        true = _among(held, node.values)
        return true & held.known, ~true & held.known
    assert isinstance(node, tree.Like)
    held = table.column(node.of)
    found = matcher(node.pattern)
    values = (text.lower() for text in held.values) if node.folds else held.values
    true = np.fromiter((found(text) is not None for text in values), np.bool_, len(table))
    return true & held.known, ~true & held.known


def matcher(pattern: str) -> Any:
    """What matches a whole text against a pattern whose escape is the backslash."""
    parts = re.split(r"(\\.|[%_])", pattern, flags=re.DOTALL)
    wild = {"%": ".*", "_": "."}
    spelt = (wild.get(p) or re.escape(p[1:] if p[:1] == "\\" else p) for p in parts)
    return re.compile("".join(spelt), re.DOTALL).fullmatch


def _among(held: Held, values: tuple[Constant, ...]) -> Bool:
    if held.values.dtype == object:
        wanted = {v.value for v in values}
        return np.fromiter((x in wanted for x in held.values), np.bool_, len(held.values))
    if held.values.dtype.kind == "b":
        return np.isin(held.values, np.array([v.value for v in values], np.bool_))
    out = np.zeros(len(held.values), np.bool_)
    whole = [int(v.value) for v in values if v.kind != "float"]
    if whole:
        info = np.iinfo(held.values.dtype)
        out |= np.isin(held.values, np.array([x for x in whole if info.min <= x <= info.max], held.values.dtype))
    broken = [v.value for v in values if v.kind == "float"]
    if broken:
        out |= np.isin(held.values.astype(np.float64), np.array(broken, np.float64))
    return out


def _pair(left: Value, right: Value, table: Table) -> tuple[Held, Held]:
    """Two operands as they are compared: as they are where both are whole numbers, else as float64."""
    a, b = _value(left, table), _value(right, table)
    if left.kind in tree.NUMBERS and "float" in (left.kind, right.kind):
        return _float(a), _float(b)
    return a, b


def _float(held: Held) -> Held:
    return Held(held.values.astype(np.float64), held.known)


def _known(node: Value, table: Table) -> Bool:
    known = np.ones(len(table), np.bool_)
    for column in tree.columns(node):
        known = known & table.column(column).known
    return known


def _value(node: Value, table: Table) -> Held:
    if isinstance(node, Column):
        return table.column(node)
    if isinstance(node, Constant):
        return Held(_constant(node), np.ones(len(table), np.bool_))
    if isinstance(node, tree.Length):
        return table.length(node.of)
    if isinstance(node, tree.Absolute):
        held = _float(_value(node.of, table))
        return Held(np.abs(held.values), held.known)
    a, b = _float(_value(node.left, table)), _float(_value(node.right, table))
    return Held(_COMPUTE[node.operator](a.values, b.values), a.known & b.known)


def _constant(node: Constant) -> NDArray[Any]:
    """One value that numpy compares with a column without changing either."""
    if node.kind == "text":
        out = np.empty((), object)
        out[()] = node.value
        return out
    if node.kind in ("int", "uint", "time"):
        value = int(node.value)
        return np.array(value, np.int64 if value < 2**63 else np.uint64)
    return np.array(node.value, np.bool_ if node.kind == "bool" else np.float64)
