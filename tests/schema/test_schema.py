"""A schema says the same thing in every form it has."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from hypothesis import given
from hypothesis import strategies as st

import recollect as rc
from recollect import errors
from tests.support import SCHEMAS

FULL = rc.Schema(
    {
        "observation": {
            "camera": rc.Frames((84, 84, 3), stack=4, pad="repeat", dtype="uint16"),
            "parts": (rc.Tensor("bool", (2, 3)), {"deep": rc.Text(optional=True)}),
        },
        "action": (rc.Tensor("int64"), rc.Tensor("float16", (1,))),
        "reward": rc.Tensor("float32", optional=True),
        "gamma": rc.Tensor("float32", role="discount"),
        "version": rc.Tensor("int64", role="policy_version", optional=True),
        "tokens": rc.Ragged("int32", role="log_prob", optional=True),
        "note": rc.Text(role="text"),
        "info": rc.Json(optional=True),
        "vector": rc.Embedding(7, optional=True),
        "other_vector": rc.Embedding(3, role=None),
    },
    episode={"task": rc.Text(), "score": rc.Tensor("float64", (2,)), "extra": rc.Json()},
)
EVERY = {**{k: make() for k, make in SCHEMAS.items()}, "full": FULL, "llm-agent": rc.Schema.llm_agent()}

_names = st.from_regex(r"[a-z]{1,6}_[a-z0-9]{0,3}", fullmatch=True)
_optional = st.booleans()
_dtypes = st.sampled_from(["bool", "int8", "uint64", "float16", "float64"])
_shapes = st.lists(st.integers(1, 5), max_size=3).map(tuple)
_fields = st.one_of(
    st.builds(rc.Tensor, _dtypes, _shapes, optional=_optional),
    st.builds(
        rc.Frames,
        _shapes.filter(bool),
        stack=st.integers(1, 4),
        pad=st.sampled_from(["zero", "repeat"]),
        optional=_optional,
    ),
    st.builds(rc.Ragged, _dtypes, optional=_optional),
    st.builds(rc.Text, optional=_optional),
    st.builds(rc.Json, optional=_optional),
    st.builds(rc.Embedding, st.integers(1, 9), optional=_optional),
)
_specs: Any = st.recursive(
    _fields,
    lambda inner: st.one_of(
        st.dictionaries(_names, inner, min_size=1, max_size=3), st.lists(inner, min_size=1, max_size=3).map(tuple)
    ),
    max_leaves=6,
)


@given(st.dictionaries(_names.map("x".__add__), _specs, min_size=1, max_size=4))
def test_any_schema_survives_toml_and_json(fields: dict[str, Any]) -> None:
    schema = rc.Schema(fields)
    from recollect.schema.toml import loads

    for copy in (loads(schema.to_toml()), rc.Schema.from_dict(json.loads(json.dumps(schema.to_dict())))):
        assert copy == schema and copy.fingerprint == schema.fingerprint
        assert copy.leaves == schema.leaves and copy.episode == schema.episode
        assert hash(copy) == hash(schema) and schema.differences(copy) == []


@pytest.mark.parametrize("name", EVERY)
def test_schemas_survive_a_toml_file(name: str, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(EVERY[name].to_toml(), encoding="utf-8")
    assert rc.Schema.from_toml(tmp_path / "s.toml").leaves == EVERY[name].leaves


def test_leaves_carry_path_type_and_role() -> None:
    roles = {leaf.path: leaf.role for leaf in FULL.leaves}
    assert roles == {
        "observation.camera": "observation",
        "observation.parts.0": "observation",
        "observation.parts.1.deep": "observation",
        "action.0": "action",
        "action.1": "action",
        "reward": "reward",
        "gamma": "discount",
        "version": "policy_version",
        "tokens": "log_prob",
        "note": "text",
        "info": None,
        "vector": "embedding",
        "other_vector": None,
    }
    assert FULL.roots[:3] == ("observation", "action", "reward")
    assert [leaf.path for leaf in FULL.observations] == list(roles)[:3]
    reward = FULL.role("reward")
    assert reward is not None and reward.path == "reward" and FULL.role("priority") is None
    assert [leaf.path for leaf in FULL.select(("action", "note"))] == ["action.0", "action.1", "note"]
    assert set(FULL.episode) == {"status", "reward", "lesson", "task", "score", "extra"}
    assert all(field.optional for field in FULL.episode.values())
    assert "note" not in [leaf.path for leaf in FULL.select(None)]
    with pytest.raises(errors.NotFound, match="nowhere"):
        FULL.select(["nowhere"])


CHANGES: list[tuple[str, dict[str, Any], dict[str, Any], list[str]]] = [
    ("dtype", {"a": rc.Tensor("float64", (2,)), "b": rc.Text()}, {}, ["'a'"]),
    ("shape", {"a": rc.Tensor("float32", (3,)), "b": rc.Text()}, {}, ["'a'"]),
    ("optional", {"a": rc.Tensor("float32", (2,), optional=True), "b": rc.Text()}, {}, ["'a'"]),
    ("role", {"a": rc.Tensor("float32", (2,), role="reward"), "b": rc.Text()}, {}, ["'a'"]),
    ("type", {"a": rc.Tensor("float32", (2,)), "b": rc.Json()}, {}, ["'b'"]),
    ("missing", {"a": rc.Tensor("float32", (2,))}, {}, ["'b'"]),
    ("more", {"a": rc.Tensor("float32", (2,)), "b": rc.Text(), "c": rc.Text()}, {}, ["'c'"]),
    ("nested", {"a": {"x": rc.Tensor("float32", (2,))}, "b": rc.Text()}, {}, ["'a'", "'a.x'"]),
    ("fact", {"a": rc.Tensor("float32", (2,)), "b": rc.Text()}, {"task": rc.Text()}, ["'task'"]),
    ("order", {"b": rc.Text(), "a": rc.Tensor("float32", (2,))}, {}, ["order"]),
    (
        "several",
        {"a": rc.Tensor("int8"), "b": rc.Json(), "c": rc.Text()},
        {"task": rc.Text()},
        ["'a'", "'b'", "'c'", "'task'"],
    ),
]


@pytest.mark.parametrize(("fields", "facts", "named"), [c[1:] for c in CHANGES], ids=[c[0] for c in CHANGES])
def test_every_difference_changes_the_fingerprint_and_is_named(
    fields: dict[str, Any], facts: dict[str, Any], named: list[str]
) -> None:
    base = rc.Schema({"a": rc.Tensor("float32", (2,)), "b": rc.Text()})
    other = rc.Schema(fields, episode=facts)
    assert base != other and base.fingerprint != other.fingerprint
    for one, two in ((base, other), (other, base)):
        with pytest.raises(errors.SchemaMismatch) as caught:
            one.require_equal(two, what="the buffer")
        for name in named:
            assert name in str(caught.value)
    base.require_equal(rc.Schema({"a": rc.Tensor("float32", [2]), "b": rc.Text()}), what="itself")  # type: ignore[arg-type]


BAD: list[tuple[dict[Any, Any], str]] = [
    ({}, "at least one"),
    *(
        ({name: rc.Text()}, "reserved")
        for name in ("writer", "seq", "episode", "step", "time", "next_observation", "next_")
    ),
    *(({name: rc.Tensor("bool")}, "built in") for name in ("terminated", "truncated")),
    *(({name: rc.Text()}, "name") for name in ("", "a b", "a.b", "1a", "é", "a-b", "a\n", 3, None)),
    ({"a": {}}, "nothing"),
    ({"a": ()}, "nothing"),
    ({"a": {"b.c": rc.Text()}}, "b.c"),
    ({"a": {"": rc.Text()}}, "nested"),
    ({"a": "float32"}, "type"),
    ({"a": rc.Text}, "type"),
    ({"a": {"b": None}}, "a.b"),
]


@pytest.mark.parametrize(("fields", "text"), BAD, ids=lambda x: repr(x)[:40])
def test_a_bad_declaration_is_refused(fields: dict[Any, Any], text: str) -> None:
    with pytest.raises(errors.SchemaError, match=text):
        rc.Schema(fields)


@pytest.mark.parametrize(
    "make",
    [
        lambda: rc.Tensor("complex64"),
        lambda: rc.Tensor("object"),
        lambda: rc.Tensor("U5"),
        lambda: rc.Tensor("datetime64[ns]"),
        lambda: rc.Tensor("nonsense"),
        lambda: rc.Tensor("float32", (0,)),
        lambda: rc.Tensor("float32", (-1,)),
        lambda: rc.Tensor("float32", role="king"),  # type: ignore[arg-type]
        lambda: rc.Frames((2, 2), stack=0),
        lambda: rc.Frames((2, 2), pad="mirror"),  # type: ignore[arg-type]
        lambda: rc.Embedding(0),
        lambda: rc.Ragged("float128x"),
        lambda: rc.Text(role="x"),  # type: ignore[arg-type]
        lambda: rc.Schema({"a": rc.Text()}, episode={"id": rc.Text()}),
        lambda: rc.Schema({"a": rc.Text()}, episode={"attempt": rc.Tensor("int64")}),
        lambda: rc.Schema({"a": rc.Text()}, episode={"status": rc.Tensor("int64")}),
        lambda: rc.Schema({"a": rc.Text()}, episode={"tokens": rc.Ragged("int64")}),
        lambda: rc.Schema({"a": rc.Text()}, episode={"a b": rc.Text()}),
    ],
)
def test_a_bad_field_is_refused(make: Any) -> None:
    with pytest.raises(errors.SchemaError):
        make()


@pytest.mark.parametrize(
    "text",
    [
        "not toml [",
        "format = 2",
        "format = 1",
        "format = 1\nstep = 3",
        "format = 1\n[step]",
        'format = 1\n[step.a]\ntype = "tensor"',
        'format = 1\n[step.a]\ntype = "tensor"\ndtype = "float32"\ncolour = 1',
        'format = 1\n[step.a]\ntype = "alien"',
        "format = 1\n[step]\na = 3",
        'format = 1\n[step.a]\ntype = "tensor"\ndtype = "float32"\nshape = "wide"',
        'format = 1\n[step.a]\ntype = "tensor"\ndtype = 3',
        'format = 1\n[step.a]\ntype = "tensor"\ndtype = "float32"\nshape = 3',
        'format = 1\nepisode = 3\n[step.a]\ntype = "text"',
        'format = 1\n[step.a]\ntype = "text"\n[episode]\nb = 3',
    ],
)
def test_a_malformed_schema_file_is_a_schema_error(text: str, tmp_path: Path) -> None:
    (tmp_path / "s.toml").write_text(text)
    with pytest.raises(errors.SchemaError):
        rc.Schema.from_toml(tmp_path / "s.toml")


def test_a_missing_schema_file_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(errors.NotFound, match=r"none\.toml"):
        rc.Schema.from_toml(tmp_path / "none.toml")


# -- environments ----------------------------------------------------------------------------------------------------


class _Env:
    def __init__(self, observation: Any, action: Any) -> None:
        self.observation_space, self.action_space = observation, action


SPACES: list[tuple[Any, Any]] = [
    (spaces.Box(-1, 1, (3, 2), np.float64), rc.Tensor("float64", (3, 2))),
    (spaces.Box(0, 255, (4, 4, 3), np.uint8), rc.Tensor("uint8", (4, 4, 3))),
    (spaces.Box(0, 1, (), np.float32), rc.Tensor("float32")),
    (spaces.Discrete(5), rc.Tensor("int64")),
    (spaces.MultiDiscrete([2, 3]), rc.Tensor("int64", (2,))),
    (spaces.MultiDiscrete(np.array([[2, 3], [1, 4]]), dtype=np.int32), rc.Tensor("int32", (2, 2))),
    (spaces.MultiBinary(4), rc.Tensor("int8", (4,))),
    (spaces.MultiBinary((2, 2)), rc.Tensor("int8", (2, 2))),
    (spaces.Text(8), rc.Text()),
    (spaces.Sequence(spaces.Discrete(3)), rc.Json()),
    (
        spaces.Dict({"b": spaces.Discrete(2), "a": spaces.Tuple((spaces.Text(3), spaces.Box(0, 1, (2,))))}),
        {"b": rc.Tensor("int64"), "a": (rc.Text(), rc.Tensor("float32", (2,)))},
    ),
    (
        spaces.Tuple((spaces.Discrete(2), spaces.Dict({"x": spaces.MultiBinary(1)}))),
        (rc.Tensor("int64"), {"x": rc.Tensor("int8", (1,))}),
    ),
]


@pytest.mark.parametrize(("space", "field"), SPACES, ids=lambda x: type(x).__name__)
def test_a_space_becomes_a_field_of_its_dtype_and_shape(space: Any, field: Any) -> None:
    for env in (_Env(space, spaces.Discrete(2)), _Env(spaces.Discrete(2), space)):
        got = rc.Schema.from_env(env)
        first = env.observation_space is space
        plain = rc.Tensor("int64")
        want = {
            "observation": field if first else plain,
            "action": plain if first else field,
            "reward": rc.Tensor("float32"),
        }
        keys = sorted(want["observation"]) if isinstance(want["observation"], dict) else None
        assert {leaf.path: leaf.field for leaf in got.leaves} == {
            leaf.path: leaf.field for leaf in rc.Schema(want).leaves
        }
        assert keys is None or len(keys) == 2


@pytest.mark.parametrize("space", [spaces.Dict({"a b": spaces.Discrete(2)}), spaces.Dict({"a.b": spaces.Discrete(2)})])
def test_a_space_whose_names_cannot_be_stored_is_refused_by_name(space: Any) -> None:
    with pytest.raises(errors.SchemaError, match=r"a[ .]b"):
        rc.Schema.from_env(_Env(space, spaces.Discrete(2)))


def test_an_unknown_space_is_named_with_its_path() -> None:
    class Odd(spaces.Space[Any]):
        pass

    with pytest.raises(errors.SchemaError, match=r"observation\.inner.*Odd"):
        rc.Schema.from_env(_Env(spaces.Dict({"inner": Odd((1,), np.float32)}), spaces.Discrete(2)))
    with pytest.raises(errors.SchemaError, match="action_space"):
        rc.Schema.from_env(object())


def test_a_vector_environment_gives_its_single_spaces() -> None:
    env = gymnasium.make("CartPole-v1")
    many = gymnasium.make_vec("CartPole-v1", num_envs=3)
    schema = rc.Schema.from_env(env)
    assert schema == rc.Schema.from_env(many)
    assert schema.by_path["observation"].field == rc.Tensor("float32", (4,))
    assert schema.by_path["action"].field == rc.Tensor("int64")
    env.close()
    many.close()


@pytest.mark.parametrize("space", [s for s, _ in SPACES], ids=lambda x: type(x).__name__)
def test_samples_of_a_space_can_be_appended_and_come_back(space: Any) -> None:
    schema = rc.Schema.from_env(_Env(space, spaces.Discrete(2)))
    space.seed(0)
    with rc.create_workspace("w", schema) as ws, ws.writer().episode() as episode:
        for _ in range(3):
            sample = space.sample()
            given = list(sample) if isinstance(space, spaces.Sequence) else sample
            episode.append(observation=given, action=np.int64(1), reward=1.0, next_observation=given)
            _same(ws.recent(1)[0]["observation"], given)


def _same(got: Any, want: Any) -> None:
    if isinstance(want, dict):
        assert set(got) == set(want)
        for k in want:
            _same(got[k], want[k])
    elif isinstance(want, tuple):
        for k, value in enumerate(want):
            _same(got[str(k)], value)
    else:
        assert np.array_equal(got, want)
