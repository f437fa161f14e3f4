"""The words of the language, over sqlglot's parser. The only module that loads sqlglot.

Few words are keywords, so that a field may be called `order` or `value` without being quoted.
"""

from __future__ import annotations

from typing import Any, ClassVar

from sqlglot import Dialect
from sqlglot import parser as sqlglot_parser
from sqlglot import tokens as sqlglot_tokens
from sqlglot.errors import ParseError, SqlglotError
from sqlglot.tokens import TokenType  # type: ignore[attr-defined]

from recollect.errors import ArgumentError

WORDS = ("AND", "OR", "NOT", "IN", "BETWEEN", "IS", "NULL", "TRUE", "FALSE", "LIKE", "ILIKE", "ESCAPE")
SYNTAX = "Write a condition such as reward > 0 and episode.task = 'hopper'"
_OPERATORS = {"<=": TokenType.LTE, ">=": TokenType.GTE, "!=": TokenType.NEQ, "<>": TokenType.NEQ}


class Where(Dialect):
    """sqlglot's name for the language."""

    class Tokenizer(sqlglot_tokens.Tokenizer):
        KEYWORDS: ClassVar[dict[str, Any]] = {**{w: sqlglot_tokens.Tokenizer.KEYWORDS[w] for w in WORDS}, **_OPERATORS}
        QUOTES: ClassVar[list[Any]] = ["'"]
        STRING_ESCAPES: ClassVar[list[str]] = ["'"]
        IDENTIFIERS: ClassVar[list[Any]] = ['"', "`"]
        COMMENTS: ClassVar[list[Any]] = []

    class Parser(sqlglot_parser.Parser):
        FUNCTIONS: ClassVar[dict[str, Any]] = {}


def syntax_tree(text: str) -> Any:
    """sqlglot's tree of one condition.

    Raises:
        ArgumentError: it does not read as one; the place is named.
    """
    try:
        found = Where().parse(text)
    except ParseError as e:
        place = e.errors[0] if e.errors else {}
        raise ArgumentError(
            f"where: not understood at {str(place.get('highlight') or text[-20:])!r}"
            f" (column {place.get('col', len(text))})",
            value=text,
            remedy=SYNTAX,
        ) from None
    except SqlglotError:
        raise ArgumentError("where: a quote is not closed", value=text, remedy=SYNTAX) from None
    if len(found) != 1 or found[0] is None:
        raise ArgumentError("where: takes one condition", value=text, remedy=SYNTAX)
    return found[0]


def spelt(tree: Any) -> str:
    """A part of the text as sqlglot writes it, for people."""
    return str(tree.sql(dialect=Where, normalize_functions=False))
