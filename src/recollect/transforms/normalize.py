"""`Normalize`: values by the mean and deviation of their field."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recollect.errors import ArgumentError, NotFound
from recollect.schema import Schema
from recollect.transforms.base import Chance, Data, Reach, Reads
from recollect.view import View
from recollect.view.statistics import FieldStatistics, Statistics


@dataclass(frozen=True)
class Normalize:
    """Subtracts a field's mean and divides by its standard deviation, element by element; the next observation by the
    same numbers. float64 stays float64, everything else becomes float32.

    The numbers are part of the configuration: they do not move while a loader runs, whatever its view does, and a
    loader's state names them by a digest and is refused by a loader with others. `statistics.to_dict()` keeps them.

    Args:
        statistics: `view.statistics(fields)`.
        fields: which of its fields are normalised; all when None.
        epsilon: deviations below it count as 1, so that what never varied becomes 0.
        clip: results are kept within so many deviations; None for no limit.

    Raises:
        ArgumentError: a number out of range.
        NotFound: a field that the statistics lack.
    """

    statistics: Statistics
    fields: Sequence[str] | None = None
    epsilon: float = 1e-8
    clip: float | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.statistics, Statistics):
            raise ArgumentError(
                "Normalize takes statistics", value=self.statistics, remedy='Pass view.statistics(["observation"])'
            )
        if isinstance(self.fields, str):
            raise ArgumentError("fields is a list of names", value=self.fields, remedy=f"Pass [{self.fields!r}]")
        if self.fields is not None:
            object.__setattr__(self, "fields", tuple(self.fields))
            for path in self.fields:
                if path not in self.statistics:
                    raise NotFound(f"no statistics of {path!r}", remedy=f"There are {', '.join(self.statistics)}")
        if not self.epsilon > 0:
            raise ArgumentError("epsilon is a number above 0", value=self.epsilon)
        if self.clip is not None and not self.clip > 0:
            raise ArgumentError("clip is a number above 0", value=self.clip)

    @property
    def reach(self) -> Reach:
        return Reach()

    def needs(self, schema: Schema) -> frozenset[str]:
        return frozenset()

    def to_dict(self) -> dict[str, Any]:
        fields = list(self.statistics if self.fields is None else self.fields)
        numbers = {"epsilon": self.epsilon, "clip": self.clip}
        return {"kind": "normalize", "statistics": self.statistics.digest, "fields": fields, **numbers}

    def plan(self, reads: Reads, view: View, chance: Chance) -> Reads:
        return reads

    def apply(self, data: Data, reads: Reads, schema: Schema) -> Data:
        rows, windows = dict(data.rows), dict(data.windows)
        for path in self.statistics if self.fields is None else self.fields:
            for name in (path, f"next_{path}"):
                for columns in (rows, windows):
                    if name in columns:
                        columns[name] = self._normalized(columns[name], self.statistics[path])
        return data._replace(rows=rows, windows=windows)

    def _normalized(self, values: NDArray[Any], known: FieldStatistics) -> NDArray[Any]:
        dtype = np.dtype(np.float64 if values.dtype == np.float64 else np.float32)
        spread = np.where(known.std < self.epsilon, 1.0, known.std)
        out = (values.astype(np.float64) - known.mean) / spread
        if self.clip is not None:
            np.clip(out, -self.clip, self.clip, out=out)
        return out.astype(dtype)
