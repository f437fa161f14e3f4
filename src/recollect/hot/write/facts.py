"""Checks of facts: late values about episodes and steps, written as JSON."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from recollect.errors import ArgumentError, FieldError
from recollect.masking import Masker, mask_json
from recollect.schema import Embedding, Field, Frames, Json, Ragged, Schema, Tensor, Text
from recollect.schema.values import cast_array, check_text, dump_json


def check_id(id: str, mask: Masker) -> str:
    """The caller's name for an episode as it is stored.

    Raises:
        ArgumentError: not text, or empty, before or after masking.
        FieldError: text that UTF-8 cannot hold.
    """
    if not isinstance(id, str) or not id:
        raise ArgumentError("an episode id is text that is not empty", value=id)
    masked = mask(check_text(id, "episode id"))
    if not isinstance(masked, str) or not masked:
        raise ArgumentError("an episode id is text that is not empty, once masked too", value=masked)
    return check_text(masked, "episode id")


def check_facts(schema: Schema, facts: Mapping[str, Any], mask: Masker) -> dict[str, Any]:
    """Episode facts in their JSON form. None says that the fact is not known.

    Raises:
        FieldError: a fact that the schema lacks, or a value that does not fit it.
    """
    out = {}
    for name, value in facts.items():
        field = schema.episode.get(name)
        if field is None:
            raise FieldError(f"no episode fact {name!r} in the schema", remedy=f"Facts: {', '.join(schema.episode)}")
        out[name] = to_json(field, value, f"episode.{name}", mask)
    return out


def check_step_facts(schema: Schema, facts: Mapping[str, Any], mask: Masker) -> dict[str, Any]:
    """Step facts in their JSON form: new values of a step's own fields, by dotted path.

    Raises:
        FieldError: no such field, frames (which are never overlaid), or a value that does not fit.
    """
    out = {}
    for path, value in facts.items():
        leaf = schema.by_path.get(path)
        if leaf is None or isinstance(leaf.field, Frames):
            raise FieldError(
                f"{path!r} is no field that a step fact can overlay",
                remedy="Fields: " + ", ".join(x.path for x in schema.leaves if not isinstance(x.field, Frames)),
            )
        if value is None and not leaf.field.optional:
            raise FieldError(f"field {path!r} is not optional", value=value)
        out[path] = to_json(leaf.field, value, path, mask)
    return out


def to_json(field: Field, value: Any, path: str, mask: Masker) -> Any:
    """A value in the JSON form of its field's type."""
    if value is None:
        return None
    if isinstance(field, Text):
        return mask(check_text(value, path))
    if isinstance(field, Json):
        import json

        return json.loads(dump_json(mask_json(value, mask), path))
    shape = None if isinstance(field, Ragged) else field.shape
    assert isinstance(field, Tensor | Ragged | Embedding)
    return cast_array(value, np.dtype(field.dtype), shape, path).tolist()
