"""Random conditions, each as a text and as a plain function that says what it means, and random rows to ask them.

The functions know nothing of the package: they go through Python values one row at a time. A row is a dict of dotted
paths, the facts of its episode under `episode.…`; None is null.
"""

from __future__ import annotations

import itertools
import math
import operator
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from hypothesis import strategies as st

import recollect as rc

SCHEMA = rc.Schema(
    {
        "observation": rc.Tensor("float32", (2,)),
        "reward": rc.Tensor("float32", optional=True),
        "half": rc.Tensor("float16", optional=True),
        "value": rc.Tensor("float64"),
        "count": rc.Tensor("int64", optional=True),
        "small": rc.Tensor("int8"),
        "large": rc.Tensor("uint64", optional=True),
        "flag": rc.Tensor("bool", optional=True),
        "action": rc.Tensor("float32", (2, 2), optional=True),
        "mask": rc.Tensor("bool", (3,)),
        "note": rc.Text(optional=True),
        "tokens": rc.Ragged("int16", optional=True),
        "info": rc.Json(optional=True),
        "order": {"Select": rc.Tensor("int32"), "pair": (rc.Tensor("float64"), rc.Text())},
    },
    episode={
        "task": rc.Text(),
        "level": rc.Tensor("int64"),
        "score": rc.Tensor("float64"),
        "solved": rc.Tensor("bool"),
        "skill": rc.Tensor("float32", (2,)),
        "extra": rc.Json(),
    },
)
Row = Mapping[str, Any]
DTYPES = {
    "reward": "float32", "half": "float16", "value": "float64", "count": "int64", "small": "int8", "large": "uint64",
    "step": "int32", "seq": "int64", "writer": "int64", "order.Select": "int32", "order.pair[0]": "float64",
    "action[1][0]": "float32", "action[0][1]": "float32", "observation[1]": "float32",
    "episode.reward": "float32", "episode.level": "int64", "episode.score": "float64", "episode.skill[1]": "float32",
    "episode.attempt": "int64",
}  # fmt: skip
BOOLS = ("flag", "terminated", "truncated", "mask[2]", "episode.solved")
TEXTS = ("note", "order.pair[1]", "episode.task", "episode.id", "episode.status")
ANY = ("action", "info", "tokens", "mask", "episode.extra", "episode.skill", *DTYPES, *BOOLS, *TEXTS, "time")
FLOATS = (0.0, -0.0, 1.0, -1.0, 0.1, 0.5, 2.0, 3.5, math.nan, math.inf, -math.inf, 1e-7, 65504.0)
INTEGERS = (0, 1, -1, 2, 3, 7, 127, -128, 2**53, 2**53 + 1, 2**63 - 1, -(2**63))
HUGE = (0, 1, 5, 2**53 + 1, 2**63 - 1, 2**63, 2**64 - 1)
STRINGS = ("", "a", "A", "b", "hopper", "Hop%er", "a_b\\c", "ä\nÖ", "ΑΣ", "ß", "it's", "日本", "\U0001f600x", "aa\x00")
PATTERNS = (
    "",
    "%",
    "_",
    "a%",
    "%A",
    "h_p%",
    "%\\%%",
    "a\\_b\\\\c",
    "ä_ö",
    "ας",
    "%'s",
    "日_",
    "__",
    "%x",
    "ho%er",
    ".*",
)
TIMES = (0, 1, -1, 10**18, 1_700_000_000_123_456_789, 2**62)


# -- rows --------------------------------------------------------------------------------------------------------------


def _cast(values: tuple[Any, ...], dtype: str) -> st.SearchStrategy[Any]:
    kind = np.dtype(dtype)
    if kind.kind == "f":
        return st.sampled_from([float(np.float64(v).astype(kind)) for v in values])
    return st.sampled_from([v for v in values if np.iinfo(kind).min <= v <= np.iinfo(kind).max])


def numbers(dtype: str) -> st.SearchStrategy[Any]:
    if np.dtype(dtype).kind == "f":
        return _cast(FLOATS, dtype)
    return _cast(HUGE if dtype == "uint64" else INTEGERS, dtype)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.one_of(st.none(), strategy, strategy, strategy)


def steps() -> st.SearchStrategy[dict[str, Any]]:
    """The fields of one step by dotted path; tensors as flat lists."""
    float32 = numbers("float32")
    return st.fixed_dictionaries(
        {
            "observation": st.lists(float32, min_size=2, max_size=2),
            "reward": maybe(float32),
            "half": maybe(numbers("float16")),
            "value": numbers("float64"),
            "count": maybe(numbers("int64")),
            "small": numbers("int8"),
            "large": maybe(numbers("uint64")),
            "flag": maybe(st.booleans()),
            "action": maybe(st.lists(float32, min_size=4, max_size=4)),
            "mask": st.lists(st.booleans(), min_size=3, max_size=3),
            "note": maybe(st.sampled_from(STRINGS)),
            "tokens": maybe(st.lists(st.integers(0, 9), max_size=3)),
            "info": maybe(st.sampled_from(["1", "{}", '"a"'])),
            "order.Select": numbers("int32"),
            "order.pair.0": numbers("float64"),
            "order.pair.1": st.sampled_from(STRINGS),
            "step": st.integers(0, 5),
            "time": st.sampled_from(TIMES),
            "terminated": st.booleans(),
            "truncated": st.booleans(),
            "final": st.sampled_from([False, False, False, True]),
            "episode": st.integers(0, 3),
        }
    )


def facts() -> st.SearchStrategy[dict[str, Any]]:
    return st.fixed_dictionaries(
        {},
        optional={
            "id": st.sampled_from(STRINGS[1:]),
            "attempt": maybe(st.integers(0, 3)),
            "task": maybe(st.sampled_from(STRINGS)),
            "status": maybe(st.sampled_from(["success", "interrupted"])),
            "reward": maybe(numbers("float32")),
            "level": maybe(numbers("int64")),
            "score": maybe(numbers("float64")),
            "solved": maybe(st.booleans()),
            "skill": maybe(st.lists(numbers("float32"), min_size=2, max_size=2)),
            "extra": maybe(st.sampled_from([1, {"a": 1}])),
        },
    )


def some_rows(count: int) -> list[dict[str, Any]]:
    """Rows in which every value that is hard to compare comes often, the same at every call."""
    rng = random.Random(count)

    def pick(dtype: str) -> Any:
        kind = np.dtype(dtype)
        if kind.kind == "f":
            return float(np.float64(rng.choice(FLOATS)).astype(kind))
        held = HUGE if dtype == "uint64" else INTEGERS
        return rng.choice([v for v in held if np.iinfo(kind).min <= v <= np.iinfo(kind).max])

    def often(value: Any) -> Any:
        return None if rng.random() < 0.2 else value

    return [
        {
            "observation": [pick("float32") for _ in range(2)],
            "reward": often(pick("float32")),
            "half": often(pick("float16")),
            "value": pick("float64"),
            "count": often(pick("int64")),
            "small": pick("int8"),
            "large": often(pick("uint64")),
            "flag": often(rng.random() < 0.5),
            "action": often([pick("float32") for _ in range(4)]),
            "mask": [rng.random() < 0.5 for _ in range(3)],
            "note": often(rng.choice(STRINGS)),
            "tokens": often([1] * rng.randrange(4)),
            "info": often("{}"),
            "order.Select": pick("int32"),
            "order.pair.0": pick("float64"),
            "order.pair.1": rng.choice(STRINGS),
            "step": rng.randrange(6),
            "time": rng.choice(TIMES),
            "terminated": rng.random() < 0.5,
            "truncated": rng.random() < 0.5,
            "final": rng.random() < 0.1,
            "episode": rng.randrange(4),
        }
        for _ in range(count)
    ]


SOME_FACTS: list[dict[str, Any]] = [
    {"task": "hopper", "level": 3, "score": math.nan, "reward": -0.0, "solved": True, "skill": [0.5, math.nan]},
    {"task": "a", "level": None, "score": 0.0, "attempt": 1, "id": "A", "extra": {"a": 1}},
    {"level": 2**53 + 1, "score": 1.0, "reward": math.nan, "solved": False, "status": "success", "skill": [1.0, 0.0]},
    {},
]


def simple() -> list[Node]:
    """Every field of numbers, every comparison, some literals and some fields, as they are and denied."""
    out = []
    others = [_literal(v) for v in (0.0, 0.1, 2**53, -1)] + [_field(n) for n in ("value", "large", "episode.score")]
    for k, (name, sign) in enumerate(itertools.product(DTYPES, COMPARISONS)):
        a, b = _field(name), others[k % len(others)]
        out.append(_compared(sign, a, rounded(b, a), denied=k % 2 == 0))
    return out


def _compared(sign: str, a: Node, b: Node, *, denied: bool) -> Node:
    def of(row: Row) -> bool | None:
        truth = compared(sign, a.of(row), b.of(row))
        return truth if truth is None or not denied else not truth

    return Node(f"{'not ' if denied else ''}{a.text} {sign} {b.text}", of)


def value_of(row: Row, name: str) -> Any:
    """What a name in a text stands for."""
    if name.startswith("order.pair["):
        return row[f"order.pair.{name[-2]}"]
    path, bracket, rest = name.partition("[")
    held = row.get(path)
    if not bracket or held is None:
        return held
    places = [int(i) for i in rest[:-1].split("][")]
    return held[places[0] * 2 + places[1] if len(places) == 2 else places[0]]


# -- conditions --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    """A part of a condition.

    Attributes:
        text: how it is written.
        of: what it is for a row: a number, a text, a truth; None where unknown.
        dtype: of a field that stands alone, "" for anything else.
        literal: whether it is a number in the text.
        binds: how tightly it holds together: 0 or, 1 and, 2 not, 3 anything else.
    """

    text: str
    of: Callable[[Row], Any]
    dtype: str = ""
    literal: bool = False
    binds: int = 3


COMPARISONS = {
    "=": operator.eq, "!=": operator.ne, "<>": operator.ne, "<": operator.lt, "<=": operator.le, ">": operator.gt,
    ">=": operator.ge,
}  # fmt: skip


def compared(sign: str, a: Any, b: Any) -> bool | None:
    if a is None or b is None:
        return None
    if isinstance(a, float) or isinstance(b, float):
        a, b = float(a), float(b)
        if math.isnan(a) or math.isnan(b):
            return sign in ("!=", "<>")
    return bool(COMPARISONS[sign](a, b))


def computed(sign: str, a: Any, b: Any) -> float | None:
    if a is None or b is None:
        return None
    x, y = float(a), float(b)
    if sign in "+-*":
        return {"+": x + y, "-": x - y, "*": x * y}[sign]
    if sign == "%":
        return math.nan if y == 0 or math.isinf(x) or math.isnan(x + y) else math.fmod(x, y)
    if y != 0 or math.isnan(y):
        return x / y
    return math.nan if x == 0 or math.isnan(x) else math.copysign(math.inf, x) * math.copysign(1.0, y)


def rounded(literal: Node, other: Node) -> Node:
    """A literal beside a field of floats is rounded to it."""
    if not literal.literal or np.dtype(other.dtype or "int8").kind != "f":
        return literal
    with np.errstate(over="ignore"):
        value = float(np.float64(literal.of({})).astype(other.dtype))
    return Node(literal.text, lambda row: value) if math.isfinite(value) else literal


def fields(scope: str) -> tuple[str, ...]:
    """Names of numbers: of steps, of episodes, or both."""
    return tuple(n for n in DTYPES if scope == "both" or n.startswith("episode.") == (scope == "episode"))


def _field(name: str) -> Node:
    return Node(name, lambda row: value_of(row, name), DTYPES.get(name, ""))


def _literal(value: Any) -> Node:
    return Node(repr(value), lambda row: value, literal=True)


LITERALS = st.sampled_from(
    [_literal(v) for v in (*INTEGERS, 2**63, 2**64 - 1, 0.0, 0.1, -0.5, 1e-7, 1e300, 70000.0, 3.5)]
)


def _absolute(of: Any) -> Any:
    return None if of is None else abs(float(of))


@st.composite
def terms(draw: Any, scope: str, depth: int = 2) -> Node:
    """A number that some field is part of."""
    kind = draw(st.integers(0, 6)) if depth else 0
    if kind <= 2:
        return _field(draw(st.sampled_from(fields(scope))))
    if kind == 3:
        of = draw(terms(scope, depth - 1))
        return Node(f"abs({of.text})", lambda row: _absolute(of.of(row)))
    if kind == 4:
        name = draw(st.sampled_from(("tokens", *TEXTS[:2]) if scope != "episode" else TEXTS[2:]))
        return Node(f"length({name})", lambda row: None if value_of(row, name) is None else len(value_of(row, name)))
    if kind == 5:
        of = draw(terms(scope, depth - 1))
        return Node(f"(-({of.text}))", lambda row: computed("*", of.of(row), -1.0))
    a, b = draw(terms(scope, depth - 1)), draw(st.one_of(LITERALS, terms(scope, depth - 1)))
    if draw(st.booleans()):
        a, b = b, a
    sign = draw(st.sampled_from("+-*/%"))
    return Node(f"({a.text} {sign} {b.text})", lambda row: computed(sign, a.of(row), b.of(row)))


def quoted(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"


def like(pattern: str) -> re.Pattern[str]:
    out, at = "", 0
    while at < len(pattern):
        if pattern[at] == "\\":
            at += 1
            out += re.escape(pattern[at])
        else:
            out += {"%": ".*", "_": "."}.get(pattern[at]) or re.escape(pattern[at])
        at += 1
    return re.compile(out, re.DOTALL)


@st.composite
def leaves(draw: Any, scope: str) -> Node:
    """One comparison or question."""
    mine = [n for n in ANY if scope == "both" or n.startswith("episode.") == (scope == "episode")]
    kind = draw(st.integers(0, 8))
    sign = draw(st.sampled_from(list(COMPARISONS)))
    no = draw(st.sampled_from(["", "not "]))

    def negated(of: Callable[[Row], bool | None]) -> Callable[[Row], bool | None]:
        return (lambda row: None if of(row) is None else not of(row)) if no else of

    if kind <= 1:
        a: Node = draw(terms(scope))
        b: Node = draw(st.one_of(LITERALS, LITERALS, terms(scope)))
        a, b = (rounded(a, b), rounded(b, a))
        if draw(st.booleans()):
            a, b = b, a
        return Node(f"{a.text} {sign} {b.text}", lambda row: compared(sign, a.of(row), b.of(row)))
    if kind == 2:
        a = draw(terms(scope))
        items = [rounded(b, a) for b in draw(st.lists(LITERALS, min_size=1, max_size=4))]

        def one_of(row: Row) -> bool | None:
            return None if a.of(row) is None else any(compared("=", a.of(row), b.of(row)) for b in items)

        return Node(f"{a.text} {no}in ({', '.join(b.text for b in items)})", negated(one_of))
    if kind == 3:
        a = draw(terms(scope))
        low, high = (rounded(draw(LITERALS), a) for _ in range(2))

        def within(row: Row) -> bool | None:
            return both([compared(">=", a.of(row), low.of(row)), compared("<=", a.of(row), high.of(row))])

        return Node(f"{a.text} {no}between {low.text} and {high.text}", negated(within))
    if kind == 4:
        name = draw(st.sampled_from(mine))
        return Node(f"{name} is {no}null", negated(lambda row: value_of(row, name) is None))
    if kind == 5:
        a = draw(terms(scope))
        return Node(f"{a.text} is {no}nan", negated(lambda row: a.of(row) is not None and math.isnan(a.of(row))))
    texts = [n for n in TEXTS if n in mine]
    if kind == 6:
        name, pattern = draw(st.sampled_from(texts)), draw(st.sampled_from(PATTERNS))
        folds = draw(st.booleans())

        def matches(row: Row) -> bool | None:
            text = value_of(row, name)
            if text is None:
                return None
            wanted = like(pattern.lower() if folds else pattern)
            return wanted.fullmatch(text.lower() if folds else text) is not None

        return Node(f"{name} {no}{'ilike' if folds else 'like'} {quoted(pattern)}", negated(matches))
    if kind == 7:
        name, text = draw(st.sampled_from(texts)), draw(st.sampled_from(STRINGS))
        other = draw(st.sampled_from([None, *texts]))
        if other is not None:
            return Node(f"{name} {sign} {other}", lambda row: compared(sign, value_of(row, name), value_of(row, other)))
        if draw(st.booleans()):
            return Node(f"{quoted(text)} {sign} {name}", lambda row: compared(sign, text, value_of(row, name)))
        few = draw(st.lists(st.sampled_from(STRINGS), min_size=1, max_size=3))

        def among(row: Row) -> bool | None:
            return None if value_of(row, name) is None else value_of(row, name) in few

        return Node(f"{name} {no}in ({', '.join(map(quoted, few))})", negated(among))
    if scope != "episode" and draw(st.booleans()):
        ns = draw(st.sampled_from(TIMES))
        return Node(f"time {sign} {ns}", lambda row: compared(sign, row["time"], ns))
    name = draw(st.sampled_from([n for n in BOOLS if n in mine]))
    other = draw(st.sampled_from([None, "true", "false", *[n for n in BOOLS if n in mine]]))
    if other is None:
        return Node(name, lambda row: value_of(row, name))
    sign = draw(st.sampled_from(["=", "!="]))
    if other in ("true", "false"):
        return Node(f"{name} {sign} {other}", lambda row: compared(sign, value_of(row, name), other == "true"))
    return Node(f"{name} {sign} {other}", lambda row: compared(sign, value_of(row, name), value_of(row, other)))


def both(truths: list[bool | None]) -> bool | None:
    return False if False in truths else None if None in truths else True


def either(truths: list[bool | None]) -> bool | None:
    return True if True in truths else None if None in truths else False


@st.composite
def conditions(draw: Any, scope: str = "both", depth: int = 3) -> Node:
    kind = draw(st.integers(0, 4)) if depth else 0
    if kind <= 1:
        return draw(leaves(scope))  # type: ignore[no-any-return]
    if kind == 2:
        of = draw(conditions(scope, depth - 1))
        text = of.text if of.binds > 2 and draw(st.booleans()) else f"({of.text})"
        return Node(f"NOT {text}", lambda row: None if of.of(row) is None else not of.of(row), binds=2)
    parts = draw(st.lists(conditions(scope, depth - 1), min_size=2, max_size=3))
    word, mine, join = (" and ", 1, both) if kind == 3 else (" or ", 0, either)
    text = word.join(part.text if part.binds > mine else f"({part.text})" for part in parts)
    return Node(text, lambda row: join([part.of(row) for part in parts]), binds=mine)
