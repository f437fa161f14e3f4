"""Whether an environment's steps have a place in a writer's schema."""

from __future__ import annotations

from typing import Any

import numpy as np

from recollect.errors import SchemaMismatch
from recollect.schema import Embedding, Frames, Json, Schema, Tensor, Text
from recollect.schema.fields import Field

INFO = "info"
"""The field that takes a step's info, where the schema declares it as Json."""


def require_fit(schema: Schema, env: Any) -> None:
    """Raises SchemaMismatch, naming each field, unless `schema` can hold every step of `env`.

    `Schema.from_env(env)` says what the environment gives. A field may keep it in another way, as long as no step
    can be refused: float32 for float64, `Frames` for a box of its shape or of its stacked shape, `Json` for text.
    Fields that the environment does not give must be optional.

    Raises:
        SchemaMismatch: a field that is missing, does not fit, or would stay empty though it is required.
        SchemaError: a space that has no stored form.
    """
    wanted = Schema.from_env(env).by_path
    wrong = []
    for path, leaf in wanted.items():
        mine = schema.by_path.get(path)
        if mine is None:
            wrong.append(f"field {path!r} is missing")
        elif not _takes(mine.field, leaf.field, any_shape=path == "reward"):
            wrong.append(f"field {path!r} is {mine.field}, the environment gives {leaf.field}")
    for path, leaf in schema.by_path.items():
        if path not in wanted and not leaf.field.optional and not is_info(schema, path):
            wrong.append(f"field {path!r} is required, and the environment does not give it")
    if wrong:
        raise SchemaMismatch(
            f"the environment does not fit the writer's schema: {'; '.join(wrong)}",
            remedy="Use a workspace with rc.Schema.from_env(env), plus optional fields of your own",
        )


def is_info(schema: Schema, path: str = INFO) -> bool:
    """Whether `path` is the schema's field for info."""
    return path == INFO and path in schema.by_path and isinstance(schema.by_path[path].field, Json)


def _takes(mine: Field, given: Field, *, any_shape: bool) -> bool:
    """Whether every value of `given` may be appended to `mine`. No space declares a reward's shape."""
    if isinstance(given, Text | Json):
        return isinstance(mine, type(given) | Json)
    if not isinstance(given, Tensor) or not isinstance(mine, Tensor | Frames | Embedding):
        return False
    shapes = {mine.shape, mine.stacked_shape} if isinstance(mine, Frames) else {mine.shape}
    return (any_shape or given.shape in shapes) and np.can_cast(given.dtype, mine.dtype, "same_kind")


__all__ = ["INFO", "is_info", "require_fit"]
