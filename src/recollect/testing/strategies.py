"""Hypothesis strategies: schemas, and steps that fit them.

    from hypothesis import given
    from recollect.testing import strategies as rst

    @given(rst.schemas().flatmap(lambda s: st.tuples(st.just(s), rst.episodes(s))))
    def test_my_backend(case): ...

This module alone needs Hypothesis.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recollect.errors import MissingDependency
from recollect.schema import Embedding, Field, Frames, Json, Leaf, Ragged, Schema, Tensor, Text
from recollect.testing.corpus import nested

try:
    from hypothesis import strategies as st
except ImportError as e:
    raise MissingDependency("recollect.testing.strategies needs hypothesis", remedy="pip install hypothesis") from e

DTYPES = (
    *("bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"),
    *("float16", "float32", "float64"),
)


@dataclass(frozen=True)
class DrawnStep:
    """A step to be appended: `episode.append(**step.fields, next_observation=step.next_observation, ...)`.

    Attributes:
        fields: nested mappings, as `append` takes them; optional fields may be absent.
        next_observation: what was seen after it, None where it is not given.
        terminated, truncated: whether it ends its episode.
    """

    fields: Mapping[str, Any]
    next_observation: Any
    terminated: bool
    truncated: bool


def shapes(least_axes: int = 0, most_axes: int = 2) -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes of one value: `least_axes` to `most_axes` axes of 1 to 4."""
    axis = st.integers(1, 4)
    return st.one_of(*(st.tuples(*[axis] * n) for n in range(least_axes, most_axes + 1)))


def tensors(optional: st.SearchStrategy[bool] | None = None) -> st.SearchStrategy[Tensor]:
    """Tensor fields of every dtype."""
    return st.builds(
        Tensor, st.sampled_from(DTYPES), shapes(), optional=st.booleans() if optional is None else optional
    )


def field_types() -> st.SearchStrategy[Field]:
    """Every type of field."""
    maybe = st.booleans()
    return st.one_of(
        tensors(),
        st.builds(
            Frames,
            shapes(1),
            stack=st.integers(1, 4),
            pad=st.sampled_from(("zero", "repeat")),
            dtype=st.sampled_from(("uint8", "uint16", "float32")),
            optional=st.just(False),
        ),
        st.builds(Embedding, st.integers(1, 6), role=st.none(), optional=maybe),
        st.builds(Ragged, st.sampled_from(DTYPES), optional=maybe),
        st.builds(Text, optional=maybe),
        st.builds(Json, optional=maybe),
    )


def observations() -> st.SearchStrategy[Any]:
    """One field, or a mapping of some. Text and ragged observations are among them."""
    field = field_types().filter(lambda f: not f.optional)
    return field | st.dictionaries(st.sampled_from("abcd"), field, min_size=1, max_size=3)


@st.composite
def schemas(draw: st.DrawFn, *, observed: bool | None = None) -> Schema:
    """Schemas with up to four fields of any type besides a reward and `uid`, an int64 for the caller's bookkeeping.

    Args:
        observed: whether there is an observation; drawn when None.
    """
    spec: dict[str, Any] = {}
    if draw(st.booleans()) if observed is None else observed:
        spec["observation"] = draw(observations())
    names = st.sampled_from([f"field_{letter}" for letter in "abcdef"])
    spec.update(draw(st.dictionaries(names, field_types(), max_size=4)))
    spec["reward"] = draw(st.sampled_from((Tensor("float32"), Tensor("float64", optional=True))))
    spec["uid"] = Tensor("int64")
    facts = draw(st.dictionaries(st.sampled_from(("task", "goal")), st.just(Text()), max_size=2))
    return Schema(spec, episode=facts)


def _arrays(dtype: str, shape: tuple[int, ...], *, finite: bool = False) -> st.SearchStrategy[NDArray[Any]]:
    """Any bits of the dtype, NaN payloads and infinities included."""
    kind = np.dtype(dtype)
    size = int(np.prod(shape, dtype=np.int64))

    def make(raw: bytes) -> NDArray[Any]:
        if kind.kind == "b":
            return (np.frombuffer(raw, np.uint8)[:size] & 1).astype(np.bool_).reshape(shape)
        if finite:
            return np.frombuffer(raw, np.int8)[:size].astype(kind).reshape(shape)
        return np.frombuffer(raw, kind).reshape(shape).copy()

    count = size * kind.itemsize
    return st.binary(min_size=count, max_size=count).map(make)


def values(leaf: Leaf) -> st.SearchStrategy[Any]:
    """Values of one field, without null. Frames are single planes."""
    field = leaf.field
    if isinstance(field, Text):
        return st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
    if isinstance(field, Json):
        plain = st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text("ab☃", max_size=5)
        return st.recursive(
            plain,
            lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text("xyé", max_size=3), x, max_size=3),
            max_leaves=6,
        ).filter(lambda x: x is not None)
    if isinstance(field, Ragged):
        return st.integers(0, 9).flatmap(lambda n: _arrays(field.dtype, (n,)))
    return _arrays(field.dtype, field.shape, finite=isinstance(field, Embedding))


def _observation(schema: Schema) -> st.SearchStrategy[Any]:
    roots = {leaf.parts[0] for leaf in schema.observations}
    whole = st.fixed_dictionaries({leaf.path: values(leaf) for leaf in schema.observations}).map(nested)
    return whole.map(lambda tree: next(iter(tree.values()))) if len(roots) == 1 else whole


@st.composite
def steps(draw: st.DrawFn, schema: Schema, *, uid: int = 0, last: bool = False) -> DrawnStep:
    """One step that fits a schema.

    Args:
        uid: the value of the field `uid`, where the schema has one.
        last: whether it may end its episode.
    """
    flat: dict[str, Any] = {}
    for leaf in schema.leaves:
        if leaf.path == "uid":
            flat["uid"] = uid
        elif not leaf.field.optional or draw(st.booleans()):
            flat[leaf.path] = draw(values(leaf))
    end = draw(st.sampled_from(("", "terminated", "truncated"))) if last else ""
    following = draw(st.none() | _observation(schema)) if schema.observations else None
    return DrawnStep(nested(flat), following, end == "terminated", end == "truncated")


@st.composite
def episodes(draw: st.DrawFn, schema: Schema, *, first_uid: int = 0, most_steps: int = 5) -> list[DrawnStep]:
    """The steps of one episode, numbered from `first_uid`; the last one ends it or leaves it open."""
    count = draw(st.integers(1, most_steps))
    return [draw(steps(schema, uid=first_uid + k, last=k == count - 1)) for k in range(count)]
