"""`Previous`: what was done and received one step before."""

from __future__ import annotations

from typing import Any

import numpy as np

from recollect.errors import ArgumentError
from recollect.schema import Schema
from recollect.schema.fields import is_heap
from recollect.transforms.base import Chance, Data, Reach, Reads
from recollect.view import View


class Previous:
    """Adds the values that fields had one step before in the episode, as `previous_action` and so on (the inputs of
    Kapturowski et al. 2019, "Recurrent experience replay in distributed reinforcement learning").

    At an episode's first step they are 0; where the step before was evicted or deleted they are 0 as well.
    `batch.valid["previous_action"]` is False in both cases, and where an optional field was null.

    Args:
        fields: names of fields of fixed shape; a name that stands for nested ones gives `previous_name.inner`.

    Raises:
        ArgumentError: no field, or one of variable size.
        NotFound: a field that the schema lacks.
    """

    def __init__(self, *fields: str) -> None:
        if not fields or not all(isinstance(name, str) for name in fields):
            raise ArgumentError("Previous takes names of fields", value=fields, remedy='Write rc.Previous("action")')
        self.fields = fields

    def __repr__(self) -> str:
        return f"Previous({', '.join(map(repr, self.fields))})"

    @property
    def reach(self) -> Reach:
        return Reach(1, 0)

    def _paths(self, schema: Schema) -> list[str]:
        leaves = schema.select(self.fields)
        for leaf in leaves:
            if is_heap(leaf.field):
                raise ArgumentError(f"field {leaf.path!r} has no fixed shape", remedy="Name fields of fixed shape")
        return [leaf.path for leaf in leaves]

    def needs(self, schema: Schema) -> frozenset[str]:
        paths = self._paths(schema)
        return frozenset([*paths, *(f"/valid/{p}" for p in paths if schema.by_path[p].field.optional)])

    def to_dict(self) -> dict[str, Any]:
        return {"kind": "previous", "fields": list(self.fields)}

    def plan(self, reads: Reads, view: View, chance: Chance) -> Reads:
        return reads

    def apply(self, data: Data, reads: Reads, schema: Schema) -> Data:
        at = reads.now - 1
        known = reads.window[:, at] >= 0
        out = {}
        for path in self._paths(schema):
            values = data.windows[path][:, at]
            shown = known.reshape(-1, *(1,) * (values.ndim - 1))
            out[f"previous_{path}"] = np.where(shown, values, np.zeros((), values.dtype))
            valid = data.windows.get(f"/valid/{path}")
            out[f"/valid/previous_{path}"] = known.copy() if valid is None else known & valid[:, at]
        return data.with_rows(**out)
