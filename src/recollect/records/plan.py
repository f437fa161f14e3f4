"""Gather plans: which bytes of which rows a batch needs, compiled once into the kernel's job table."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from recollect.errors import NotFound
from recollect.records import layout as lay
from recollect.records.layout import Layout, column
from recollect.schema.fields import is_heap, is_inline

_FLAGS = {"terminated": lay.TERMINATED, "truncated": lay.TRUNCATED}


@dataclass(frozen=True)
class Output:
    """One array that a gather fills.

    Attributes:
        name: its name in the result.
        kind: a schema field's value, a flag (`terminated`, `truncated`), a field's validity, or a system column.
        source: the leaf path, flag or column it is read from.
        columns: columns of the slot matrix. More than one stacks planes, oldest first.
    """

    name: str
    kind: Literal["field", "flag", "valid", "system"]
    source: str
    columns: tuple[int, ...] = (0,)


@dataclass(frozen=True)
class Target:
    """Where an output lies in the arena: byte offset for `n` rows, dtype, and shape of one row."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    row_bytes: int


@dataclass
class GatherPlan:
    """A list of outputs, compiled for one layout.

    The arena is one run of bytes; outputs follow each other in it, each aligned to 64 bytes.
    """

    layout: Layout
    outputs: tuple[Output, ...]
    targets: tuple[Target, ...] = field(init=False)
    index: dict[str, int] = field(init=False)
    """Output name → place among the targets."""
    _jobs: NDArray[np.int64] = field(init=False)
    _owner: list[int] = field(init=False)
    _sized: dict[int, tuple[NDArray[np.int64], tuple[int, ...], int]] = field(init=False, default_factory=dict)

    def __post_init__(self) -> None:
        rows: list[list[int]] = []
        targets: list[Target] = []
        self._owner = []
        for k, out in enumerate(self.outputs):
            target, jobs = self._compile(out)
            targets.append(target)
            rows += jobs
            self._owner += [k] * len(jobs)
        self.targets = tuple(targets)
        self.index = {target.name: k for k, target in enumerate(targets)}
        self._jobs = np.array(rows, np.int64).reshape(-1, 8)

    def _compile(self, out: Output) -> tuple[Target, list[list[int]]]:
        dtype = self.layout.dtype
        if out.kind == "flag":
            job = [2, out.columns[0], self.layout.offset("flags"), _FLAGS[out.source], 0, 1, 0, 0]
            return Target(out.name, np.dtype(np.bool_), (), 1), [job]
        if out.kind == "system":
            inner = dtype[out.source]
            job = [0, out.columns[0], self.layout.offset(out.source), inner.itemsize, 0, inner.itemsize, 0, 0]
            return Target(out.name, inner, (), inner.itemsize), [job]
        leaf = self.layout.schema.by_path.get(out.source)
        if leaf is None or (out.kind == "field" and is_heap(leaf.field)):
            raise NotFound(f"no fixed-shape field {out.source!r}")
        if out.kind == "valid":
            word, bit = self.layout.nulls[out.source]
            job = [3, out.columns[0], self.layout.offset("nulls") + 8 * word, bit, 0, 1, 0, 0]
            return Target(out.name, np.dtype(np.bool_), (), 1), [job]
        at = self.layout.offset(column(out.source))
        if is_inline(leaf.field):
            base, shape = dtype[column(out.source)].base, leaf.field.shape  # type: ignore[union-attr]
            size = dtype[column(out.source)].itemsize
            stride = size * len(out.columns)
            if len(out.columns) > 1:
                shape = (len(out.columns), *shape)
            jobs = [[0, c, at, size, k * size, stride, 0, 0] for k, c in enumerate(out.columns)]
            return Target(out.name, base, shape, stride), jobs
        size = self.layout.plane_bytes[out.source]
        region = [x.path for x in self.layout.wide].index(out.source)
        fill = 1 if leaf.field.dtype == "float32" and leaf.field.type == "embedding" else 0  # type: ignore[union-attr]
        stride = size * len(out.columns)
        jobs = [[1, c, at, size, k * size, stride, region, fill] for k, c in enumerate(out.columns)]
        shape = leaf.field.shape  # type: ignore[union-attr]
        if len(out.columns) > 1:
            shape = (len(out.columns), *shape)
        return Target(out.name, np.dtype(leaf.field.dtype), shape, stride), jobs  # type: ignore[union-attr]

    @cached_property
    def lines(self) -> NDArray[np.int64]:
        """`[m, 2]`: (slot column, byte offset) of every cache line of a record that the jobs read."""
        seen: dict[tuple[int, int], None] = {}
        for kind, column_, at, size, *_ in self._jobs.tolist():
            for line in range(at // 64, (at + (size if kind == 0 else 8) - 1) // 64 + 1):
                seen[(column_, 64 * line)] = None
        return np.array(list(seen), np.int64).reshape(-1, 2)

    def sized(self, n: int) -> tuple[NDArray[np.int64], tuple[int, ...], int]:
        """The job table for `n` rows, each target's byte offset, and the arena's bytes."""
        hit = self._sized.get(n)
        if hit is None:
            offsets, at = [], 0
            for target in self.targets:
                offsets.append(at)
                at += (n * target.row_bytes + 63) // 64 * 64
            jobs = self._jobs.copy()
            for row, k in enumerate(self._owner):
                jobs[row, 4] += offsets[k]
            hit = self._sized[n] = (jobs, tuple(offsets), max(at, 64))
        return hit

    def arrays(self, arena: NDArray[np.uint8], n: int) -> dict[str, NDArray[Any]]:
        """Numpy views of a filled arena: name → `[n, *shape]`."""
        _, offsets, _ = self.sized(n)
        out = {}
        for target, at in zip(self.targets, offsets, strict=True):
            raw = arena[at : at + n * target.row_bytes]
            out[target.name] = raw.view(target.dtype).reshape(n, *target.shape)
        return out
