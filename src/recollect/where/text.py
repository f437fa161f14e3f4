"""The canonical text of a condition: it parses back into an equal one, and equal texts are equal conditions."""

from __future__ import annotations

import re

from recollect.where import tree
from recollect.where.tree import Column, Condition, Constant, Value

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*\Z")
_KEYWORDS = {"and", "or", "not", "in", "between", "is", "null", "true", "false", "like", "ilike", "escape"}
_QUOTED_TOO = {"all", "any", "case", "cast", "distinct", "exists", "from", "interval", "nan", "select", "some"}


def show(node: Condition) -> str:
    return _condition(node, 0)


def quote(text: str) -> str:
    """A string literal."""
    return "'" + text.replace("'", "''") + "'"


def _condition(node: Condition, tight: int) -> str:
    """`tight` is how tightly what stands around it binds: 1 or, 2 and, 3 not."""
    if isinstance(node, tree.Or | tree.And):
        word, mine = (" or ", 1) if isinstance(node, tree.Or) else (" and ", 2)
        text = word.join(_condition(part, mine + 1) for part in node.parts)
        return f"({text})" if tight > mine else text
    if isinstance(node, tree.Not):
        inner = node.of
        if isinstance(inner, tree.IsNull | tree.IsNan | tree.Member | tree.Like):
            return _leaf(inner, "not ")
        return f"not {_condition(inner, 4)}" if not isinstance(inner, tree.Not) else f"not ({show(inner)})"
    return _leaf(node, "")


def _leaf(node: tree.Leaf, no: str) -> str:
    if isinstance(node, tree.Known):
        return "unknown" if node.truth is None else str(node.truth).lower()
    if isinstance(node, tree.Compare):
        return f"{_value(node.left, 1)} {node.operator} {_value(node.right, 1)}"
    if isinstance(node, tree.Member):
        return f"{_value(node.of, 1)} {no}in ({', '.join(_value(v, 1) for v in node.values)})"
    if isinstance(node, tree.IsNull):
        return f"{_value(node.of, 1)} is {no}null"
    if isinstance(node, tree.IsNan):
        return f"{_value(node.of, 1)} is {no}nan"
    return f"{_column(node.of)} {no}{'ilike' if node.folds else 'like'} {quote(node.pattern)}"


def _value(node: Value, tight: int) -> str:
    if isinstance(node, Column):
        return _column(node)
    if isinstance(node, Constant):
        return quote(str(node.value)) if node.kind == "text" else node.shown
    if isinstance(node, tree.Absolute):
        return f"abs({_value(node.of, 0)})"
    if isinstance(node, tree.Length):
        return f"length({_column(node.of)})"
    mine = 2 if node.operator in "+-" else 3
    text = f"{_value(node.left, mine)} {node.operator} {_value(node.right, mine + 1)}"
    return f"({text})" if tight > mine else text


def _column(column: Column) -> str:
    parts = column.path.split(".")
    if column.scope == "episode":
        parts.insert(0, "episode")
    return ".".join(map(_name, parts)) + "".join(f"[{i}]" for i in column.index)


def _name(name: str) -> str:
    plain = _PLAIN.match(name) and name.lower() not in _KEYWORDS | _QUOTED_TOO
    return name if plain else f'"{name}"'
