"""gymnasium spaces to fields, read by attribute so that gymnasium itself is never imported."""

from __future__ import annotations

from typing import Any

from recollect.errors import SchemaError
from recollect.schema.fields import Json, Tensor, Text
from recollect.schema.schema import FieldSpec, Schema

_KNOWN = (
    "Box", "Dict", "Discrete", "Graph", "MultiBinary", "MultiDiscrete", "OneOf", "Sequence", "Text", "Tuple",
)  # fmt: skip


def schema_from_env(env: Any) -> Schema:
    """`observation`, `action` and a float32 `reward`, from a single or a vector environment."""
    observation = getattr(env, "single_observation_space", None) or getattr(env, "observation_space", None)
    action = getattr(env, "single_action_space", None) or getattr(env, "action_space", None)
    if observation is None or action is None:
        raise SchemaError("an environment needs observation_space and action_space", value=type(env).__name__)
    return Schema(
        {
            "observation": space_to_field(observation, "observation"),
            "action": space_to_field(action, "action"),
            "reward": Tensor("float32", ()),
        }
    )


def space_to_field(space: Any, path: str) -> FieldSpec:
    """One space as a field, or as a mapping of fields for Dict and Tuple spaces.

    Box, Discrete, MultiBinary and MultiDiscrete keep their dtype and shape; Text becomes text; Graph, Sequence
    and OneOf, whose size varies, become JSON.

    Raises:
        SchemaError: another kind of space, named with its path.
    """
    kinds = [cls.__name__ for cls in type(space).__mro__]
    kind = next((k for k in kinds if k in _KNOWN), kinds[0])
    if kind == "Dict":
        return {str(k): space_to_field(inner, f"{path}.{k}") for k, inner in space.spaces.items()}
    if kind == "Tuple":
        return {str(i): space_to_field(inner, f"{path}.{i}") for i, inner in enumerate(space.spaces)}
    if kind in ("Box", "Discrete", "MultiBinary", "MultiDiscrete"):
        return Tensor(str(space.dtype), tuple(space.shape))
    if kind == "Text":
        return Text()
    if kind in ("Graph", "Sequence", "OneOf"):
        return Json()
    raise SchemaError(
        f"{path}: a {kind} space has no stored form",
        remedy="Wrap the environment so that the space is Box, Discrete, MultiBinary, MultiDiscrete, "
        "Text, Dict or Tuple, or declare the schema yourself",
    )
