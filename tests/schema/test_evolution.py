"""What a later version of a schema may change, and the defaults that old rows then read as."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import recollect as rc
from recollect import errors
from recollect.schema.evolution import is_widened
from recollect.schema.toml import loads

BASE: dict[str, Any] = {
    "observation": {"pose": rc.Tensor("float32", (3,)), "camera": rc.Frames((2, 2), stack=2)},
    "action": rc.Tensor("int32"),
    "reward": rc.Tensor("float32"),
    "gear": rc.Tensor("int8", default=2),
    "tokens": rc.Ragged("int16", optional=True),
    "note": rc.Text(optional=True),
    "info": rc.Json(default={"b": [1, None], "a": True}),
    "vector": rc.Embedding(4, optional=True),
}
FACTS: dict[str, Any] = {"task": rc.Text(), "score": rc.Tensor("float32")}
OLD = rc.Schema(BASE, episode=FACTS)


def version(*, without: str = "", facts: dict[str, Any] | None = None, **fields: Any) -> rc.Schema:
    return rc.Schema(
        {k: v for k, v in {**BASE, **fields}.items() if k != without}, episode=FACTS if facts is None else facts
    )


POSE, CAMERA = BASE["observation"]["pose"], BASE["observation"]["camera"]

ALLOWED: list[tuple[str, rc.Schema, list[tuple[str, str]]]] = [
    ("nothing", version(), []),
    ("optional field", version(extra=rc.Text(optional=True)), [("field_added", "extra")]),
    ("default", version(extra=rc.Tensor("uint8", (2,), default=0)), [("field_added", "extra")]),
    ("false is a default", version(extra=rc.Tensor("bool", default=False)), [("field_added", "extra")]),
    ("empty is a default", version(extra=rc.Ragged("int8", default=())), [("field_added", "extra")]),
    (
        "nested, between others",
        version(observation={"pose": POSE, "more": {"x": rc.Frames((2,), optional=True)}, "camera": CAMERA}),
        [("field_added", "observation.more.x")],
    ),
    ("widened", version(action=rc.Tensor("int64")), [("dtype_widened", "action")]),
    ("exact float", version(action=rc.Tensor("float64")), [("dtype_widened", "action")]),
    ("optional", version(reward=rc.Tensor("float32", optional=True)), [("made_optional", "reward")]),
    ("default given", version(reward=rc.Tensor("float32", default=0)), [("default_given", "reward")]),
    ("default widened", version(gear=rc.Tensor("int16", default=2)), [("dtype_widened", "gear")]),
    ("list widened", version(tokens=rc.Ragged("int32", optional=True)), [("dtype_widened", "tokens")]),
    (
        "planes widened",
        version(observation={"pose": POSE, "camera": rc.Frames((2, 2), stack=2, dtype="uint16")}),
        [("dtype_widened", "observation.camera")],
    ),
    ("fact", version(facts={**FACTS, "seed": rc.Tensor("int64")}), [("fact_added", "episode.seed")]),
    (
        "fact widened",
        version(facts={**FACTS, "score": rc.Tensor("float64")}),
        [("dtype_widened", "episode.score")],
    ),
    (
        "another reward behind the first",
        version(bonus=rc.Tensor("float32", role="reward", optional=True)),
        [("field_added", "bonus")],
    ),
    (
        "several",
        version(action=rc.Tensor("float64", optional=True), extra=rc.Json(optional=True)),
        [("dtype_widened", "action"), ("made_optional", "action"), ("field_added", "extra")],
    ),
]

REFUSED: list[tuple[str, rc.Schema, list[str]]] = [
    ("removed", version(without="note"), ["'note' is gone"]),
    ("renamed", version(without="note", remark=rc.Text(optional=True)), ["'note' is gone"]),
    ("new, neither optional nor default", version(extra=rc.Text()), ["'extra'", "optional", "default"]),
    ("shape", version(action=rc.Tensor("int32", (2,))), ["'action' has shape (2,), not ()"]),
    ("size", version(vector=rc.Embedding(5, optional=True)), ["'vector'"]),
    ("type", version(note=rc.Json(optional=True)), ["'note' is json, not text"]),
    ("role", version(action=rc.Tensor("int32", role="priority")), ["'action' has role 'priority'"]),
    ("spelt-out role", version(reward=rc.Tensor("float32", role="reward")), ["'reward' has role"]),
    (
        "stack and pad",
        version(observation={"pose": POSE, "camera": rc.Frames((2, 2), stack=3, pad="repeat")}),
        ["stack 3, not 2", "pad 'repeat'"],
    ),
    ("narrowed", version(action=rc.Tensor("int16")), ["'action' is int16"]),
    ("rounds", version(action=rc.Tensor("float32")), ["'action' is float32", "same number"]),
    ("now required", version(note=rc.Text()), ["'note' is no longer optional"]),
    (
        "now required, with default",
        version(note=rc.Text(default="")),
        ["'note' is no longer optional", "got a default"],
    ),
    ("default for an optional", version(note=rc.Text(optional=True, default="")), ["'note' got a default"]),
    ("default changed", version(gear=rc.Tensor("int8", default=3)), ["'gear' has default 3, not 2"]),
    ("default gone", version(gear=rc.Tensor("int8")), ["'gear' has default None, not 2"]),
    ("json default changed", version(info=rc.Json(default={"b": [1, None], "a": 1})), ["'info' has default"]),
    ("fact gone", version(facts={"task": rc.Text()}), ["'score' is gone"]),
    ("fact of another type", version(facts={**FACTS, "task": rc.Json()}), ["'episode.task' is json"]),
    (
        "order",
        rc.Schema({k: BASE[k] for k in reversed(BASE)}, episode=FACTS),
        ["another place"],
    ),
    (
        "a reward before the reward",
        rc.Schema({"bonus": rc.Tensor("float32", role="reward", default=0.0), **BASE}, episode=FACTS),
        ["'bonus' takes the role reward from 'reward'"],
    ),
    (
        "several are all named",
        version(without="note", action=rc.Tensor("int8"), gear=rc.Text()),
        ["'note'", "'action'", "'gear'"],
    ),
]


@pytest.mark.parametrize(("schema", "wanted"), [c[1:] for c in ALLOWED], ids=[c[0] for c in ALLOWED])
def test_what_a_later_version_may_change(schema: rc.Schema, wanted: list[tuple[str, str]]) -> None:
    changes = OLD.evolution(schema)
    assert sorted((c.kind, c.path) for c in changes) == sorted(wanted)
    assert all(c.path.removeprefix("episode.") in c.text for c in changes)
    assert OLD.evolves_to(schema)
    assert (changes == []) == (schema == OLD)


@pytest.mark.parametrize(("schema", "words"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_what_it_may_not_is_named(schema: rc.Schema, words: list[str]) -> None:
    with pytest.raises(errors.SchemaMismatch) as caught:
        OLD.evolution(schema)
    for word in words:
        assert word in str(caught.value)
    assert not OLD.evolves_to(schema)


@pytest.mark.parametrize("name", [c[0] for c in ALLOWED if c[2]])
def test_no_way_leads_back(name: str) -> None:
    schema = next(c[1] for c in ALLOWED if c[0] == name)
    assert not schema.evolves_to(OLD)


def test_a_schema_without_observations_gets_none() -> None:
    blind = rc.Schema({"reward": rc.Tensor("float32")})
    seeing = rc.Schema({"reward": rc.Tensor("float32"), "observation": rc.Tensor("float32", default=0)})
    with pytest.raises(errors.SchemaMismatch, match="without observations"):
        blind.evolution(seeing)


NUMERIC = ["bool", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
NUMERIC += ["float16", "float32", "float64"]


@pytest.mark.parametrize("old", NUMERIC)
@pytest.mark.parametrize("new", NUMERIC)
def test_a_dtype_is_widened_where_its_extremes_stay_the_same_numbers(old: str, new: str) -> None:
    """The ends of the range and the odd numbers next to them tell whether anything is rounded or wrapped."""
    a, b = np.dtype(old), np.dtype(new)
    if "b" in (a.kind, b.kind):
        assert not is_widened(old, new)
        return
    if a.kind == "f":
        ends = [float(np.finfo(a).max), float(np.finfo(a).tiny), 1 + float(np.finfo(a).eps)]
    else:
        ends = [np.iinfo(a).min, np.iinfo(a).min + 1, np.iinfo(a).max - 1, np.iinfo(a).max]
    with np.errstate(all="ignore"):
        exact = all(np.array([x], a).astype(b).tolist() == [x] for x in ends)
    assert is_widened(old, new) == (exact and a != b)


def test_versions_follow_each_other() -> None:
    """A step from the first version to the third is as good as two."""
    second = version(action=rc.Tensor("int64"), extra=rc.Tensor("int8", default=1))
    third = version(action=rc.Tensor("int64", optional=True), extra=rc.Tensor("int16", default=1, optional=True))
    assert OLD.evolves_to(second) and second.evolves_to(third) and OLD.evolves_to(third)


_defaults = st.one_of(
    st.tuples(st.just("float32"), st.floats(-1e30, 1e30)),
    st.tuples(st.just("int64"), st.integers(-(2**63), 2**63 - 1)),
    st.tuples(st.just("uint64"), st.integers(0, 2**64 - 1)),
    st.tuples(st.just("bool"), st.booleans()),
)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
).filter(lambda value: value is not None)


@given(_defaults, st.lists(st.integers(-128, 127), max_size=4), st.text(max_size=5), _json)
def test_defaults_survive_toml_and_json(number: tuple[str, Any], items: list[int], text: str, value: Any) -> None:
    schema = rc.Schema(
        {
            "n": rc.Tensor(number[0], default=number[1]),
            "grid": rc.Tensor(number[0], (2, 2), default=[[number[1]] * 2, [0 if number[0] != "bool" else False] * 2]),
            "items": rc.Ragged("int8", default=items),
            "text": rc.Text(default=text),
            "value": rc.Json(default=value),
        }
    )
    for copy in (loads(schema.to_toml()), rc.Schema.from_dict(json.loads(json.dumps(schema.to_dict())))):
        assert copy == schema and copy.leaves == schema.leaves and copy.differences(schema) == []


def test_equal_defaults_are_equal_fields() -> None:
    assert rc.Tensor("float32", (2,), default=[1, 1]) == rc.Tensor("float32", (2,), default=np.float32(1))
    assert rc.Tensor("float32", (2,), default=[1, 2]) == rc.Tensor("float32", (2,), default=np.array([1.0, 2.0]))
    assert rc.Json(default={"a": 1, "b": [np.int64(2)]}) == rc.Json(default={"b": [2], "a": 1})
    assert rc.Schema({"a": rc.Json(default=1)}) != rc.Schema({"a": rc.Json(default=True)})
    assert rc.Schema({"a": rc.Tensor("int8")}) != rc.Schema({"a": rc.Tensor("int8", default=0)})
    mine: dict[str, Any] = {"a": [1]}
    field = rc.Json(default=mine)
    mine["a"].append(2)
    assert field.default == {"a": [1]}


@pytest.mark.parametrize(
    ("make", "word"),
    [
        (lambda: rc.Tensor("int8", default=300), "300"),
        (lambda: rc.Tensor("uint8", default=-1), "-1"),
        (lambda: rc.Tensor("int32", default=1.5), "1.5"),
        (lambda: rc.Tensor("bool", default=1), "1"),
        (lambda: rc.Tensor("float32", default="x"), "'x'"),
        (lambda: rc.Tensor("float32", default=float("nan")), "nan"),
        (lambda: rc.Tensor("float16", default=1e6), "1000000"),
        (lambda: rc.Tensor("float32", (2,), default=[1, 2, 3]), "[1, 2, 3]"),
        (lambda: rc.Tensor("float32", (2, 2), default=[[1], [2, 3]]), "[[1], [2, 3]]"),
        (lambda: rc.Tensor("float32", default=[1.0]), "[1.0]"),
        (lambda: rc.Ragged("int8", default=3), "3"),
        (lambda: rc.Ragged("int8", default=[[1]]), "[[1]]"),
        (lambda: rc.Ragged("float32", default=[float("inf")]), "inf"),
        (lambda: rc.Text(default=7), "7"),  # type: ignore[arg-type]
        (lambda: rc.Text(default="\ud800"), "ud800"),
        (lambda: rc.Json(default={1, 2}), "{1, 2}"),
        (lambda: rc.Json(default=[float("inf")]), "inf"),
        (lambda: rc.Schema({"a": rc.Text()}, episode={"x": rc.Text(default="y")}), "'y'"),
        (lambda: loads('format = 1\n[step.a]\ntype = "json"\ndefault = "not json"'), "not json"),
        (lambda: loads('format = 1\n[step.a]\ntype = "frames"\nshape = [2]\ndefault = 0'), "default"),
    ],
)
def test_a_default_that_does_not_fit_is_refused_at_once(make: Any, word: str) -> None:
    with pytest.raises(errors.SchemaError) as caught:
        make()
    assert word in str(caught.value)


def test_very_large_and_small_numbers_stand_together_in_a_default() -> None:
    field = rc.Tensor("uint64", (2, 2), default=[[2**64 - 1, 2**63], [0, 1]])
    assert field.default == ((2**64 - 1, 2**63), (0, 1))
    with pytest.raises(errors.SchemaError):
        rc.Tensor("uint64", (2,), default=[2**64, 0])
