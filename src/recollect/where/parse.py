"""From sqlglot's tree to ours: names looked up, types checked, literals in the form in which they are compared."""

from __future__ import annotations

from typing import Any

import numpy as np

from recollect.errors import ArgumentError
from recollect.schema import Schema
from recollect.schema.fields import Ragged
from recollect.where import tree
from recollect.where.filter import Filter
from recollect.where.moments import nanoseconds, spelt
from recollect.where.names import describe, resolve
from recollect.where.tree import NUMBERS, Column, Condition, Constant, Value

MAX_DEPTH = 10
"""How deep a condition may be nested: Lance's parser gives up not far beyond it."""
LEAST, MOST = -(2**63), 2**64 - 1
_COMPARISONS = {"EQ": "=", "NEQ": "!=", "LT": "<", "LTE": "<=", "GT": ">", "GTE": ">="}
_ARITHMETIC = {"Add": "+", "Sub": "-", "Mul": "*", "Div": "/", "Mod": "%"}
_SWAPPED = {"=": "=", "!=": "!=", "<": ">", "<=": ">=", ">": "<", ">=": "<="}
_WORDS = {"bool": "a truth value", "text": "text", "time": "a time", **dict.fromkeys(NUMBERS, "a number")}
WHAT_THERE_IS = (
    "There are comparisons, and, or, not, in, between, is null, is nan, like, ilike, + - * / %, abs() and length()"
)


def parse(text: str, schema: Schema) -> Filter:
    """Reads a condition on the steps of a schema and the facts of their episodes.

    Raises:
        ArgumentError: not a condition, or not one of this language; the part concerned is named.
        NotFound: a field or fact that the schema lacks.
    """
    if not isinstance(text, str):
        raise ArgumentError("where takes text", value=text, remedy='Write where="reward > 0"')
    from recollect.where.grammar import syntax_tree

    try:
        condition = _Reader(schema).condition(syntax_tree(text))
        deep = tree.depth(condition) > MAX_DEPTH
    except RecursionError:
        deep = True
    if deep:
        raise ArgumentError(
            f"where: nested more than {MAX_DEPTH} deep", value=text, remedy="Join conditions side by side"
        ) from None
    return Filter(schema, condition)


class _Reader:
    def __init__(self, schema: Schema) -> None:
        self.schema = schema

    # -- conditions ----------------------------------------------------------------------------------------

    def condition(self, e: Any) -> Condition:
        e = e.unnest()
        name = type(e).__name__
        if name in ("And", "Or"):
            kind = tree.And if name == "And" else tree.Or
            parts = [self.condition(part) for part in e.flatten()]
            return kind(tuple(x for p in parts for x in (p.parts if isinstance(p, kind) else (p,))))
        if name == "Not":
            return tree.Not(self.condition(e.this))
        if name == "Boolean":
            return tree.Known(bool(e.this))
        if name in _COMPARISONS:
            return self.compare(_COMPARISONS[name], e.this, e.expression, e)
        if name == "Between":
            low, high = e.args["low"], e.args["high"]
            if e.args.get("symmetric"):
                raise _unsupported(e)
            return tree.And((self.compare(">=", e.this, low, e), self.compare("<=", e.this, high, e)))
        if name == "In":
            return self.member(e)
        if name == "Is":
            return self.is_(e)
        if name in ("Like", "ILike", "Escape"):
            return self.like(e)
        if name in ("Column", "Dot", "Bracket"):
            column = self.column(e)
            if column.kind != "bool":
                raise ArgumentError(
                    f"where: {_shown(e)!r} is {self.word(column)}, not a condition",
                    remedy=f"Compare it, such as {_shown(e)} = …, or ask whether it is null",
                )
            return tree.Compare("=", column, Constant(True, "bool", "true"))
        raise _unsupported(e)

    def compare(self, operator: Any, left: Any, right: Any, whole: Any) -> Condition:
        a, b = self.value(left), self.value(right)
        if isinstance(a, Constant) and not isinstance(b, Constant):
            a, b, operator = b, a, _SWAPPED[operator]
        if not any(tree.columns(a)) and not any(tree.columns(b)):
            raise ArgumentError(f"where: {_shown(whole)!r} names no field", remedy="Write true or false")
        b = self.literal(b, a, whole) if isinstance(b, Constant) else b
        self.check(operator, a, b, whole)
        return tree.Compare(operator, a, b)

    def check(self, operator: str, a: Value, b: Value, whole: Any) -> None:
        """Raises ArgumentError unless the two can be compared."""
        for x in (a, b):
            if x.kind == "other":
                assert isinstance(x, Column)
                what = describe(self.schema, x)
                hint = "Compare one element, such as x[0]" if what.startswith("an array of shape") else ""
                if what.startswith("an array whose"):
                    hint = "Compare its length(), or ask whether it is null"
                raise ArgumentError(
                    f"where: {_shown(whole)!r} compares {what}, which is neither true nor false as a whole",
                    remedy=hint or "Ask whether it is null",
                )
        if _family(a) != _family(b):
            raise ArgumentError(
                f"where: {_shown(whole)!r} compares {_WORDS[a.kind]} with {_WORDS[b.kind]}",
                remedy="Text and times stand in single quotes, numbers and true or false do not",
            )
        if a.kind == "bool" and operator not in ("=", "!="):
            raise ArgumentError(f"where: {_shown(whole)!r} orders truth values", remedy="Use = or !=")

    def literal(self, c: Constant, other: Value, whole: Any) -> Constant:
        """A literal in the form in which `other` is compared with it."""
        if other.kind == "time":
            if c.kind == "text":
                return _time(nanoseconds(str(c.value)))
            if c.kind == "int" and -(2**63) <= int(c.value) < 2**63:
                return _time(int(c.value))
        if other.kind in ("int", "uint") and c.kind == "int" and not LEAST <= c.value <= MOST:  # type: ignore[operator]
            raise ArgumentError(f"where: {c.shown} in {_shown(whole)!r} is beyond 64 bits", remedy="Write 1e30")
        if other.kind == "float" and c.kind in ("int", "float"):
            value = np.float64(c.value)
            dtype = other.dtype if isinstance(other, Column) else "float64"
            with np.errstate(over="ignore"):
                rounded = value.astype(dtype)
            if np.isfinite(rounded):
                return Constant(float(rounded) + 0.0, "float", c.shown)
            return Constant(float(value), "float", c.shown)
        return c

    def member(self, e: Any) -> Condition:
        if any(e.args.get(k) for k in ("query", "unnest", "field", "is_global")) or not e.expressions:
            raise _unsupported(e)
        of = self.value(e.this)
        values = []
        for item in e.expressions:
            value = self.value(item)
            if not isinstance(value, Constant):
                raise ArgumentError(
                    f"where: {_shown(item)!r} in a list is no literal", remedy="Compare fields with =, joined by or"
                )
            value = self.literal(value, of, e)
            self.check("=", of, value, e)
            values.append(value)
        if not any(tree.columns(of)):
            raise ArgumentError(f"where: {_shown(e)!r} names no field", remedy="Write true or false")
        return tree.Member(of, tuple(values))

    def is_(self, e: Any) -> Condition:
        what = e.expression
        name = type(what).__name__
        of = self.value(e.this)
        if not any(tree.columns(of)):
            raise ArgumentError(f"where: {_shown(e)!r} names no field", remedy="Write true or false")
        if name == "Null":
            return tree.IsNull(of)
        if name == "Column" and what.name.lower() == "nan" and not what.args.get("table"):
            if of.kind not in NUMBERS:
                raise ArgumentError(f"where: {_shown(e)!r}: only numbers can be NaN", remedy="Ask whether it is null")
            return tree.IsNan(of)
        raise ArgumentError(
            f"where: {_shown(e)!r} asks for something else than null or nan", remedy="Compare with = or !="
        )

    def like(self, e: Any) -> Condition:
        escape = "\\"
        whole = e
        if type(e).__name__ == "Escape":
            escape = e.expression.name if e.expression.is_string else ""
            e = e.this
        of, pattern = self.value(e.this), e.expression
        if type(e).__name__ not in ("Like", "ILike") or len(escape) != 1:
            raise _unsupported(whole)
        if not isinstance(of, Column) or of.kind != "text" or not pattern.is_string:
            raise ArgumentError(
                f"where: {_shown(whole)!r}: like and ilike compare a text field with a pattern in quotes",
                remedy="Write note like '%timeout%'",
            )
        folds = type(e).__name__ == "ILike"
        text = _pattern(pattern.name, escape, _shown(whole))
        found: Condition = tree.Like(of, text.lower() if folds else text, folds)
        return tree.Not(found) if e.args.get("negate") else found

    # -- values --------------------------------------------------------------------------------------------

    def value(self, e: Any) -> Value:
        e = e.unnest()
        name = type(e).__name__
        if name == "Literal":
            return Constant(e.name, "text") if e.is_string else _number(e.name, _shown(e))
        if name == "Boolean":
            return Constant(bool(e.this), "bool", "true" if e.this else "false")
        if name == "Neg":
            of = self.value(e.this)
            if isinstance(of, Constant) and of.kind in NUMBERS:
                return Constant(-of.value, of.kind, of.shown[1:] if of.shown[0] == "-" else f"-{of.shown}")  # type: ignore[operator]
            return tree.Arithmetic("*", Constant(-1.0, "float", "-1"), self.number(of, e))
        if name in _ARITHMETIC:
            left, right = (self.number(self.value(x), e) for x in (e.this, e.expression))
            return tree.Arithmetic(_ARITHMETIC[name], left, right)  # type: ignore[arg-type]
        if name == "Anonymous":
            return self.call(e)
        if name in ("Column", "Dot", "Bracket"):
            return self.column(e)
        if name == "Null":
            raise ArgumentError("where: nothing equals null", remedy="Write is null, or is not null")
        raise _unsupported(e)

    def number(self, value: Value, whole: Any) -> Value:
        """A value that can be computed with. A literal becomes a float64."""
        if value.kind not in NUMBERS:
            word = self.word(value) if isinstance(value, Column) else _WORDS[value.kind]
            raise ArgumentError(f"where: {_shown(whole)!r} computes with {word}", remedy="Compute with numbers only")
        if isinstance(value, Constant):
            return Constant(float(value.value) + 0.0, "float", value.shown)
        return value

    def call(self, e: Any) -> Value:
        name = str(e.this).lower()
        if name not in ("abs", "length", "len") or len(e.expressions) != 1:
            raise _unsupported(e)
        of = self.value(e.expressions[0])
        if name == "abs":
            return tree.Absolute(self.number(of, e))
        fields = {leaf.path: leaf.field for leaf in self.schema.leaves}
        ragged = isinstance(of, Column) and of.scope == "step" and isinstance(fields.get(of.path), Ragged)
        if not isinstance(of, Column) or not (of.kind == "text" or ragged):
            raise ArgumentError(
                f"where: {_shown(e)!r}: only text and ragged fields have a length", remedy="Compare the field itself"
            )
        return tree.Length(of)

    def column(self, e: Any) -> Column:
        return resolve(self.schema, _parts(e), _shown(e))

    def word(self, column: Column) -> str:
        return describe(self.schema, column) if column.kind == "other" else _WORDS[column.kind]


def _parts(e: Any) -> list[str | int]:
    name = type(e).__name__
    if name == "Column":
        return [part.name for part in e.parts]
    if name == "Dot" and type(e.expression).__name__ in ("Identifier", "Literal"):
        return [*_parts(e.this), e.expression.name]
    if name == "Bracket" and len(e.expressions) == 1:
        index = e.expressions[0]
        if type(index).__name__ == "Literal" and not index.is_string and index.name.isdecimal():
            return [*_parts(e.this), int(index.name)]
        raise ArgumentError(f"where: {_shown(e)!r}: an element is named by a whole number", remedy="Write action[0]")
    raise _unsupported(e)


def _family(value: Value) -> str:
    return "number" if value.kind in NUMBERS else value.kind


def _time(ns: int) -> Constant:
    return Constant(ns, "time", spelt(ns))


def _number(text: str, shown: str) -> Constant:
    if text.isascii() and text.isdecimal():
        if len(text) > 300:
            raise ArgumentError(f"where: the number {text[:20]}… is too large", remedy="Write fewer digits")
        return Constant(int(text), "int", str(int(text)))
    try:
        value = float(text)
    except ValueError:
        raise ArgumentError(f"where: {shown!r} is no number") from None
    if not np.isfinite(value):
        raise ArgumentError(f"where: the number {text} is too large for float64", remedy="Use is nan, or a smaller one")
    return Constant(value, "float", repr(value))


def _pattern(pattern: str, escape: str, shown: str) -> str:
    """The pattern with a backslash where the caller's escape stood, and nowhere else."""
    out, at = [], 0
    while at < len(pattern):
        char = pattern[at]
        if char == escape:
            at += 1
            if at == len(pattern):
                raise ArgumentError(f"where: the pattern of {shown!r} ends with its escape", remedy="Write it twice")
            char = pattern[at]
            out.append(f"\\{char}" if char in "%_\\" else char)
        else:
            out.append("\\\\" if char == "\\" else char)
        at += 1
    return "".join(out)


def _shown(e: Any) -> str:
    """A part of the text, for people."""
    from recollect.where.grammar import spelt as as_text

    return as_text(e)


def _unsupported(e: Any) -> ArgumentError:
    return ArgumentError(f"where: {_shown(e)!r} is not part of the language", remedy=WHAT_THERE_IS)
