"""`Relabel`: a function of one's own over the values of steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from recollect.errors import ArgumentError
from recollect.schema import Schema
from recollect.transforms.base import Chance, Columns, Data, Reach, Reads, named
from recollect.view import Bool, View

Function = Callable[[Columns], Mapping[str, Any]]
"""From columns `[n, ...]` to those that are new or different, `[n, ...]` too."""


@dataclass(frozen=True)
class Relabel:
    """Changes the values of each step by a function, such as a reward model's:

        def score(step):
            return {"reward": model(step["observation"], step["action"])}

        rc.Relabel(score, fields=["observation", "action"])

    The function gets columns `[n, ...]` (numpy; not to be changed in place) of any number of steps and gives columns of
    the same length: changed ones keep their dtype, new ones have their own. It must go row by row, and depend on its
    argument alone: what comes after, `NStep` or `Previous` for one, sees the changed values of all steps that it reads.
    What an observation becomes, the next observation does not; beside transforms that read other steps, no `next_`
    column may be returned. A loader's state names the function by module and name.

    Args:
        fn: the function.
        fields: what it reads: paths of fields of fixed shape, `next_` and the path of an observation, `terminated`,
            `truncated`. All of these when None; name those that are used where the window reaches further than a step.

    Raises:
        ArgumentError: `fn` cannot be called.
    """

    fn: Function
    fields: Sequence[str] | None = None

    def __post_init__(self) -> None:
        if not callable(self.fn):
            raise ArgumentError("Relabel takes a function", value=self.fn)
        if isinstance(self.fields, str):
            raise ArgumentError("fields is a list of names", value=self.fields, remedy=f"Pass [{self.fields!r}]")
        if self.fields is not None:
            object.__setattr__(self, "fields", tuple(self.fields))

    @property
    def reach(self) -> Reach:
        return Reach()

    def needs(self, schema: Schema) -> frozenset[str]:
        if self.fields is not None:
            return frozenset(self.fields)
        fields = [leaf.path for leaf in schema.numeric]
        following = [f"next_{leaf.path}" for leaf in schema.numeric if leaf.is_observation]
        return frozenset([*fields, *following, "terminated", "truncated"])

    def to_dict(self) -> dict[str, Any]:
        fields = None if self.fields is None else list(self.fields)
        return {"kind": "relabel", "fn": named(self.fn), "fields": fields}

    def plan(self, reads: Reads, view: View, chance: Chance) -> Reads:
        return reads

    def apply(self, data: Data, reads: Reads, schema: Schema) -> Data:
        there = reads.window >= 0
        given = {name: data.windows[name][there] for name in sorted(self.needs(schema))}
        made = self.fn(given)
        if not isinstance(made, Mapping):
            raise ArgumentError("a relabelling function returns a mapping of columns", value=type(made).__name__)
        for name in made:
            if there.shape[1] > 1 and name.startswith("next_"):
                raise ArgumentError(
                    f"{name!r} cannot be relabelled where other steps are read, too",
                    remedy="Change the next observation of single steps only, or the field itself",
                )
        out = {name: _spread(name, made[name], there, data) for name in made}
        return data.with_windows(reads.now, out)


def _spread(name: str, values: Any, there: Bool, data: Data) -> Any:
    """`[B, W, ...]` of the values `[n, ...]` of the steps that are there."""
    values = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)
    if values.ndim == 0 or len(values) != np.count_nonzero(there):
        raise ArgumentError(
            f"relabelled {name!r} has another length than its steps",
            value=values.shape,
            remedy=f"Return {np.count_nonzero(there)} rows",
        )
    if name in data.windows:
        out = data.windows[name].copy()
    else:
        like = data.rows.get(name)
        out = np.zeros((*there.shape, *values.shape[1:]), values.dtype if like is None else like.dtype)
    if out.shape[2:] != values.shape[1:]:
        raise ArgumentError(f"relabelled {name!r} has another shape", value=values.shape[1:], remedy=f"{out.shape[2:]}")
    out[there] = values
    return out
