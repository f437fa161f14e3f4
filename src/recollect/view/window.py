"""`Window`: newer rows only, by count, age or policy version."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from recollect.errors import ArgumentError, NotFound
from recollect.view.ids import Bool, EpisodeKey, Slots

if TYPE_CHECKING:
    from recollect.view.view import View

_UNKNOWN = np.iinfo(np.int64).min


@dataclass(frozen=True)
class Window:
    """Keeps the drawable rows that are new enough: the `last` so many of them, and of these those that age and policy
    version leave.

    What is newest is looked for among these rows, never on a clock, so that equal cuts give equal windows. On a view
    that grows the window moves along.

    Args:
        last: the newest so many drawable rows, in the view's order.
        age: seconds, or a timedelta: rows whose time is at most so much before that of the newest row.
        policy_lag: rows whose policy version is at most so much below the highest one. The version is the field with
            the role `policy_version`, else the episode fact `policy_version`; rows without one are left out.

    Raises:
        ArgumentError: none of them, or a number out of range.
    """

    last: int | None = None
    age: float | timedelta | None = None
    policy_lag: int | None = None

    def __post_init__(self) -> None:
        if self.last is None and self.age is None and self.policy_lag is None:
            raise ArgumentError("a window is by last, age or policy_lag", remedy="Write rc.Window(last=100_000)")
        for name, least in (("last", 1), ("policy_lag", 0)):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < least):
                raise ArgumentError(f"{name} is a whole number of at least {least}", value=value)
        if isinstance(self.age, timedelta):
            object.__setattr__(self, "age", self.age.total_seconds())
        if self.age is not None and not 0 <= self.age < 2**32:  # type: ignore[operator]
            raise ArgumentError("age is a number of seconds of at least 0, or a timedelta", value=self.age)

    def __str__(self) -> str:
        given = {"last": self.last, "age": self.age, "policy_lag": self.policy_lag}
        return "window " + ", ".join(f"{name}={value}" for name, value in given.items() if value is not None)

    def columns(self, view: View, slots: Slots) -> NDArray[np.int64]:
        """What the window looks at, of some rows: `[2, n]`, time and policy version, 0 where it does not ask.

        Raises:
            NotFound: the schema has no policy version.
        """
        out = np.zeros((2, len(slots)), np.int64)
        if self.age is not None and len(slots):
            out[0] = view.rows.gather(slots, ("time",))["time"]
        if self.policy_lag is not None:
            out[1] = _versions(view, slots)
        return out

    def mask(self, columns: NDArray[np.int64]) -> Bool:
        """`[n]`: which rows are in the window.

        Args:
            columns: of all drawable rows of the view, in their order.
        """
        out = self._newest(columns.shape[1])
        if not len(out):
            return out
        if self.age is not None:
            oldest = columns[0, out].max() - round(float(self.age) * 1e9)  # type: ignore[arg-type]
            out = out & (columns[0] >= oldest)
        if self.policy_lag is not None:
            least = max(columns[1, self._newest(len(out))].max() - self.policy_lag, _UNKNOWN + 1)
            out = out & (columns[1] >= least)
        return out

    def needed(self, columns: NDArray[np.int64], mask: Bool) -> Bool:
        """`[n]`: rows in the window, and those that say where it is, which need not be in it. As long as none of them
        leaves the view, the others can be forgotten."""
        if self.last is not None:
            return self._newest(len(mask))
        out = mask.copy()
        if len(out):
            out[columns.argmax(axis=1)] = True
        return out

    def _newest(self, n: int) -> Bool:
        out = np.ones(n, np.bool_)
        if self.last is not None:
            out[: max(0, n - self.last)] = False
        return out


def _versions(view: View, slots: Slots) -> NDArray[np.int64]:
    leaf = view.schema.role("policy_version")
    if leaf is not None:
        shape, dtype = getattr(leaf.field, "shape", None), getattr(leaf.field, "dtype", "")
        if shape != () or np.dtype(dtype or "O").kind not in "iu":
            raise ArgumentError("a policy version is a scalar integer", value=leaf.path, remedy="Declare it so")
        values = view.rows.gather(slots, (leaf.path,))[leaf.path].astype(np.int64)
        return np.where(view.rows.valid(slots, leaf.path), values, _UNKNOWN)
    if "policy_version" not in view.schema.episode:
        raise NotFound(
            "the schema has no policy version",
            remedy="Add a field with the role policy_version, or an episode fact policy_version",
        )
    facts = view.facts.episodes
    known: list[Any] = [facts.get(EpisodeKey(w, c), {}).get("policy_version") for w, c in view.episodes.keys.tolist()]
    table = np.array([_UNKNOWN if v is None else int(v) for v in known] + [_UNKNOWN], np.int64)
    return table[view.episodes.group_of(slots)]
