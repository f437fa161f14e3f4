"""Text as terms: whole tokens, the parts of identifiers and paths, pairs of CJK characters.

Agents search for code, paths, error numbers and log lines as often as for prose, and a tokenizer for prose loses those.
Index and query go through `words`, so that both hold the same terms.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

LONGEST_TERM = 128
"""Characters of a term; what is longer is a blob that nobody searches for whole."""
_TOKEN = re.compile(r"[\w./:\-]+")
_PUNCTUATION = "_-./:"
_SPLIT = re.compile(r"[_\-./:]+")
_CAMEL = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_CJK = re.compile(r"[\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U0003ffff]+")
_STOP = (
    "a about after all also an and any are as at be because been before but by can could did do does for from had has "
    "have he her his how i if in into is it its just me my no not of on or our she should so some than that the their "
    "them then there these they this to us was we were what when where which while who why will with would you your"
)
STOP = frozenset(_STOP.split())
"""English words that say nothing of what is looked for."""


class Word(NamedTuple):
    """One word of a text.

    Attributes:
        whole: the word as one term.
        parts: the terms it is made of, without `whole`; none for a plain word.
        is_identifier: whether it is a name rather than a word: it has an inner capital, punctuation inside, or
            digits beside letters.
    """

    whole: str
    parts: tuple[str, ...]
    is_identifier: bool

    @property
    def terms(self) -> tuple[str, ...]:
        return (self.whole, *self.parts) if self.whole else self.parts


def words(text: str) -> list[Word]:
    """The words of a text, in order, repeated ones too."""
    out = []
    for raw in _TOKEN.findall(unicodedata.normalize("NFKC", text)):
        token = raw.strip(_PUNCTUATION)
        if not token:
            continue
        if _CJK.search(token):
            out += _mixed(token)
            continue
        # A number within a code (E1234) is no word of its own; one between punctuation is.
        pieces = _CAMEL.findall(token) if token.isascii() else []
        coded = any(c.isdigit() for c in token) and not token.isdecimal()
        name = coded or len(pieces) > 1 or any(c in _PUNCTUATION for c in token)
        parts = dict.fromkeys(p for p in map(_fold, (*_SPLIT.split(token), *pieces)) if len(p) > 1)
        whole = _fold(token)
        parts.pop(whole, None)
        out.append(Word(whole, tuple(parts), name and len(whole) > 2))
    return out


def _mixed(token: str) -> list[Word]:
    """CJK text has no spaces: each run is one word of overlapping pairs, what stands between runs are words again."""
    out: list[Word] = []
    at = 0
    for run in _CJK.finditer(token):
        out += words(token[at : run.start()])
        text = run.group()
        pairs = [text[k : k + 2] for k in range(len(text) - 1)] or [text]
        out += [Word(pair, (), False) for pair in pairs]
        at = run.end()
    return out + words(token[at:])


def _fold(term: str) -> str:
    """Lower case without accents, cut to a sane length."""
    if term.isascii():
        return term.lower()[:LONGEST_TERM]
    plain = "".join(c for c in unicodedata.normalize("NFKD", term.casefold()) if not unicodedata.combining(c))
    return plain[:LONGEST_TERM]
