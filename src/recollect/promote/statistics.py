"""Statistics that a version carries: per field, and of episode returns. Partial sums merge exactly once each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recollect.records import layout as lay
from recollect.records.block import Block, planes_at
from recollect.records.build import group_by_episode
from recollect.records.kernels import count_bytes
from recollect.records.layout import Layout, column
from recollect.records.rows import PackedRows
from recollect.schema import Leaf
from recollect.schema.fields import is_heap, is_inline, is_wide

ELEMENTWISE_LIMIT = 4096
"""Fields of more numbers than this get one mean and deviation for all of them."""


class FieldSums:
    """Count, mean, squared deviations (Chan, Golub, LeVeque 1979), minimum, maximum, NaNs and nulls of a field."""

    def __init__(self, leaf: Leaf) -> None:
        self.leaf = leaf
        self.rows = self.nulls = 0
        self.nans: NDArray[Any] = np.zeros(())
        self.count: NDArray[Any] = np.zeros(())
        self.mean: NDArray[Any] = np.zeros(())
        self.squares: NDArray[Any] = np.zeros(())
        self.low: NDArray[Any] = np.full((), np.inf)
        self.high: NDArray[Any] = np.full((), -np.inf)

    def add(self, values: NDArray[Any], nulls: int) -> None:
        """`values` `[n, *shape]` without the null rows."""
        self.rows += len(values) + nulls
        self.nulls += nulls
        if not len(values):
            return
        if values.dtype == np.uint8 and values.ndim > 2:
            hist = count_bytes(values.reshape(-1)).astype(np.float64)
            at = np.arange(256.0)
            total = hist.sum()
            mean = (hist * at).sum() / total
            seen = np.flatnonzero(hist)
            self._merge(
                np.asarray(total),
                np.asarray(mean),
                np.asarray((hist * (at - mean) ** 2).sum()),
                np.asarray(float(seen[0])),
                np.asarray(float(seen[-1])),
                np.asarray(0.0),
            )
            return
        with np.errstate(invalid="ignore"):  # signalling NaNs
            data = values.astype(np.float64)
        axis: Any = 0 if math.prod(values.shape[1:]) <= ELEMENTWISE_LIMIT else None
        bad = np.isnan(data)
        with np.errstate(all="ignore"):
            if bad.any():
                count = (~bad).sum(axis)
                safe = np.where(bad, 0.0, data)
                mean = safe.sum(axis) / np.maximum(count, 1)
                squares = np.where(bad, 0.0, (data - mean) ** 2).sum(axis)
                low, high = np.where(bad, np.inf, data).min(axis), np.where(bad, -np.inf, data).max(axis)
            else:
                count = np.full(data.shape[1:] if axis == 0 else (), len(data) if axis == 0 else data.size)
                mean = data.mean(axis)
                squares = ((data - mean) ** 2).sum(axis)
                low, high = data.min(axis), data.max(axis)
        self._merge(count, mean, squares, low, high, bad.sum(axis))

    def _merge(self, count: Any, mean: Any, squares: Any, low: Any, high: Any, nans: Any) -> None:
        total = self.count + count
        with np.errstate(all="ignore"):
            delta = mean - self.mean
            share = np.where(total > 0, count / np.maximum(total, 1), 0.0)
            self.squares = self.squares + squares + delta**2 * self.count * share
            self.mean = self.mean + delta * share
        self.count = total
        self.low, self.high = np.minimum(self.low, low), np.maximum(self.high, high)
        self.nans = self.nans + nans

    def to_dict(self) -> dict[str, Any]:
        return {
            "rows": self.rows,
            "nulls": self.nulls,
            "nans": _plain(self.nans),
            "count": _plain(self.count),
            "mean": _plain(self.mean),
            "squares": _plain(self.squares),
            "min": _plain(self.low),
            "max": _plain(self.high),
        }

    def merge_dict(self, data: Mapping[str, Any]) -> None:
        """Adds the sums of another part."""
        self.rows += data["rows"]
        self.nulls += data["nulls"]
        parts = [np.array(data[k], np.float64) for k in ("count", "mean", "squares", "min", "max", "nans")]
        self._merge(*parts)


def _plain(value: Any) -> Any:
    return np.asarray(value, np.float64).tolist()


class Statistics:
    """Per-field sums and episode returns over a growing set of rows."""

    def __init__(self, layout: Layout, before: Mapping[str, Any] | None) -> None:
        self.layout = layout
        self.fields = {leaf.path: FieldSums(leaf) for leaf in layout.schema.leaves if not is_heap(leaf.field)}
        self.returns = FieldSums(layout.schema.leaves[0])
        self.lengths = FieldSums(layout.schema.leaves[0])
        self.open: dict[str, list[float]] = {}
        if before:
            for path, data in before["fields"].items():
                self.fields[path].merge_dict(data)
            self.returns.merge_dict(before["returns"])
            self.lengths.merge_dict(before["lengths"])
            self.open = {k: list(v) for k, v in before["open"].items()}

    def add_fields(self, block: Block, start: int, stop: int) -> None:
        """Counts the step rows `start` to `stop` of a block; final rows only towards observations."""
        records = block.records[start:stop]
        step = (np.ascontiguousarray(records["flags"]) & lay.FINAL) == 0
        for path, sums in self.fields.items():
            leaf = sums.leaf
            use = np.ones(len(records), np.bool_) if leaf.is_observation else step.copy()
            known = use.copy()
            if path in self.layout.nulls:
                word, bit = self.layout.nulls[path]
                known &= (records["nulls"][:, word] >> np.uint64(bit)) & np.uint64(1) == 0
            held = records[column(path)]
            if is_inline(leaf.field):
                values = held[known]
            else:
                assert is_wide(leaf.field)
                values = planes_at(block.planes[path], held[known])
            sums.add(values, int(use.sum() - known.sum()))

    def add_returns(self, pieces: Sequence[tuple[Block, int, int]]) -> None:
        """Counts the episodes that end in the new rows; sums of those that don't are kept until they do.

        A null reward adds nothing; a NaN makes the return NaN, which is counted as such. An episode that lacks steps,
        because they were evicted before their promotion, has no known return and is not counted.
        """
        leaf = self.layout.schema.role("reward")
        if leaf is None or not is_inline(leaf.field) or leaf.field.shape != ():  # type: ignore[union-attr]
            return
        rows = PackedRows(self.layout, pieces, ())
        group, index, flags, keys, _, _ = group_by_episode(rows)
        steps = np.flatnonzero((group >= 0) & ((flags & lay.FINAL) == 0))
        with np.errstate(invalid="ignore"):
            rewards = rows.gather(steps, (leaf.path,))[leaf.path].astype(np.float64)
        rewards[~rows.valid(steps, leaf.path)] = 0.0
        member = group[steps]
        totals = np.bincount(member, rewards, len(keys))
        counts = np.bincount(member, minlength=len(keys))
        over = np.bincount(member, (flags[steps] & (lay.TERMINATED | lay.TRUNCATED)) != 0, len(keys)) > 0
        first, last = np.full(len(keys), np.iinfo(np.int64).max), np.full(len(keys), -1)
        np.minimum.at(first, member, index[steps])
        np.maximum.at(last, member, index[steps])
        lacking = last - first + 1 != counts
        done: list[tuple[float, float]] = []
        columns = (keys, totals, counts, over, first, lacking)
        for key, total, count, ended, start, holes in zip(*(c.tolist() for c in columns), strict=True):
            name = f"{key[0]}.{key[1]}"
            before = self.open.pop(name, [0.0, 0.0])
            if count and (holes or start != before[1]):
                continue
            if ended:
                done.append((total + before[0], count + before[1]))
            else:
                self.open[name] = [total + before[0], count + before[1]]
        self.returns.add(np.array([d[0] for d in done]), 0)
        self.lengths.add(np.array([d[1] for d in done]), 0)

    def close_writers(self, finished: set[int]) -> None:
        """Forgets open episodes of writers that are gone and whose rows are all counted."""
        self.open = {k: v for k, v in self.open.items() if int(k.partition(".")[0]) not in finished}

    def to_dict(self) -> dict[str, Any]:
        return {
            "fields": {path: sums.to_dict() for path, sums in self.fields.items()},
            "returns": self.returns.to_dict(),
            "lengths": self.lengths.to_dict(),
            "open": self.open,
        }
