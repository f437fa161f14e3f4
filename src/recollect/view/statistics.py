"""Mean, deviation and range of fields over the drawable rows of a view, in one pass over them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from recollect.errors import ArgumentError
from recollect.schema.fields import is_heap
from recollect.view.ids import F64

if TYPE_CHECKING:
    from recollect.view.view import View

CHUNK_BYTES = 32 << 20
"""Bytes of values that are looked at together."""


@dataclass(frozen=True, eq=False)
class FieldStatistics:
    """Of one field, element by element: arrays of the field's shape, float64.

    Attributes:
        count: rows with a value; nulls are none.
        mean, std: of these; `std` divides by the count. NaN where the count is 0 or a value is NaN.
        min, max: likewise.
    """

    count: int
    mean: F64
    std: F64
    min: F64
    max: F64

    def to_dict(self) -> dict[str, Any]:
        arrays = {name: getattr(self, name).tolist() for name in ("mean", "std", "min", "max")}
        return {"count": self.count, **arrays}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> FieldStatistics:
        """What `to_dict` was given."""
        arrays = {name: np.array(data[name], np.float64) for name in ("mean", "std", "min", "max")}
        return cls(int(data["count"]), **arrays)


class Statistics(Mapping[str, FieldStatistics]):
    """Path of a field → its statistics."""

    def __init__(self, fields: Mapping[str, FieldStatistics]) -> None:
        self._fields = dict(fields)

    def __getitem__(self, path: str) -> FieldStatistics:
        return self._fields[path]

    def __iter__(self) -> Any:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Statistics) and other.digest == self.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"Statistics({', '.join(f'{p}: {s.count} rows' for p, s in self.items())})"

    @property
    def digest(self) -> str:
        """Forty hex digits that are equal exactly when the numbers are."""
        return hashlib.sha256(json.dumps(self.to_dict(), sort_keys=True).encode()).hexdigest()[:40]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, exact: JSON and `torch.load` read them. NaN is Python's."""
        return {path: s.to_dict() for path, s in self.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Statistics:
        """What `to_dict` was given."""
        return cls({path: FieldStatistics.from_dict(s) for path, s in data.items()})


class _Running:
    """Moments of what was seen so far, merged block by block (Chan, Golub, LeVeque 1983, "Algorithms for computing the
    sample variance")."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        self.count = 0
        self.mean, self.squares = np.zeros(shape), np.zeros(shape)
        self.low, self.high = np.full(shape, np.inf), np.full(shape, -np.inf)

    def add(self, values: NDArray[Any]) -> None:
        """Takes in `[n, *shape]`."""
        if not len(values):
            return
        block = values.astype(np.float64)
        n = len(block)
        with np.errstate(invalid="ignore", over="ignore"):  # of infinities the mean is infinite or NaN, as it should be
            mean = block.mean(axis=0)
            away = mean - self.mean
            self.squares += np.square(block - mean).sum(axis=0) + away**2 * (self.count * n / (self.count + n))
            self.mean += away * (n / (self.count + n))
        self.count += n
        self.low, self.high = np.minimum(self.low, block.min(axis=0)), np.maximum(self.high, block.max(axis=0))

    def result(self) -> FieldStatistics:
        if not self.count:
            nan = np.full(self.mean.shape, np.nan)
            return FieldStatistics(0, nan, nan, nan, nan)
        return FieldStatistics(self.count, self.mean, np.sqrt(self.squares / self.count), self.low, self.high)


def statistics(view: View, fields: Iterable[str] | None = None) -> Statistics:
    """See `View.statistics`."""
    if isinstance(fields, str):
        raise ArgumentError("fields is a list of names", value=fields, remedy=f"Pass [{fields!r}]")
    leaves = view.schema.select(None if fields is None else list(fields))
    for leaf in leaves:
        if is_heap(leaf.field):
            raise ArgumentError(f"field {leaf.path!r} has no fixed shape", remedy="Name fields of fixed shape")
    paths = tuple(leaf.path for leaf in leaves)
    nothing = view.rows.gather(np.empty(0, np.int64), paths)
    running = {path: _Running(nothing[path].shape[1:]) for path in paths}
    bytes_ = sum(array.itemsize * int(np.prod(array.shape[1:])) for array in nothing.values())
    chunk = max(1, CHUNK_BYTES // max(1, bytes_))
    for start in range(0, len(view.anchors), chunk):
        slots = view.anchors.select(np.arange(start, min(start + chunk, len(view.anchors))))
        values = view.rows.gather(slots, paths)
        for leaf in leaves:
            column = values[leaf.path]
            running[leaf.path].add(column[view.rows.valid(slots, leaf.path)] if leaf.field.optional else column)
    return Statistics({path: r.result() for path, r in running.items()})
