"""`Batch`: fields by name, everything else by attribute. It stays valid while anything refers to it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from recollect.loader.outputs import Output
from recollect.records.parted import PartedRows
from recollect.records.plan import GatherPlan
from recollect.records.rows import PackedRows
from recollect.samplers import Draw
from recollect.transforms import Reads
from recollect.view import ID_DTYPE, PART_SHIFT, Ids

T = TypeVar("T")


class Chunk:
    """Several batches that were gathered together. An array is made when somebody asks for it.

    Args:
        draw: what was drawn; `reads` where it lay.
        sizes: rows of each batch.
        rows: where they were gathered from; `arena` the gathered bytes.
        made: arrays that transforms changed or added, `[rows, ...]`, in place of those in the arena.
        each: arrays that differ in shape from batch to batch: one per batch.
        lists: text and JSON fields: one list per batch.
        length: T, steps of a sequence.
    """

    def __init__(
        self,
        draw: Draw,
        reads: Reads,
        sizes: list[int],
        plan: GatherPlan,
        output: Output,
        rows: PackedRows,
        arena: Any,
        made: Mapping[str, NDArray[Any]],
        each: Mapping[str, list[NDArray[Any]]],
        lists: Mapping[str, list[list[Any]]],
        length: int = 1,
    ) -> None:
        self.length, self.is_sequence = length, draw.span is not None
        self.step, self.sizes, self.lists = draw.step, sizes, lists
        self.count = len(sizes)
        """Batches that may be handed out; fewer than were gathered once the view changes."""
        self._draw, self._reads, self._plan, self._output = draw, reads, plan, output
        self._rows, self._arena, self._made, self._each = rows, arena, made, each
        self._is_finished = False
        self._late: dict[str, NDArray[Any]] | None = None
        self._key_ids: list[Ids] | None = None
        self.arrays: dict[str, list[Any]] = {}
        """Those that were asked for already."""

    def names(self) -> Iterator[str]:
        """Every array that `get` knows."""
        yield from self._plan.index
        yield from (n for n in self._made if n not in self._plan.index)
        yield from self._each
        yield from ("step_index", "is_first")
        if self._plan.layout.schema.observations and "/valid/next_observation" not in self._made:
            yield "/valid/next_observation"

    def get(self, name: str, k: int) -> Any:
        """The array `name` of batch `k`. Raises KeyError."""
        arrays = self.arrays.get(name)
        if arrays is None:
            arrays = self.arrays[name] = self._make(name)
            if self.is_sequence and name not in ("/weight", "/probability"):
                shapes = [(size // self.length, self.length) for size in self.sizes]
                arrays = [a.reshape(*shape, *a.shape[1:]) for a, shape in zip(arrays, shapes, strict=True)]
                self.arrays[name] = arrays
        return arrays[k]

    def _make(self, name: str) -> list[Any]:
        output = self._output
        if not self._is_finished:
            self._finish()
        made = self._made.get(name)
        if made is not None:
            of_keys = name in ("/weight", "/probability")
            return output.from_host(made, [s // self.length for s in self.sizes] if of_keys else self.sizes)
        rows = len(self._reads.anchors)
        at = self._plan.index.get(name)
        if at is not None:
            offset = self._plan.sized(rows)[1][at]
            return output.split(self._arena, self._plan.targets[at], offset, rows, self.sizes)
        if name in self._each:
            return [output.from_host(a, [len(a)])[0] for a in self._each[name]]
        if name == "is_first":
            return output.from_host((self._system()["step"] == 0) & (self._reads.anchors >= 0), self.sizes)
        if name == "step_index":
            return output.from_host(self._system()["step"], self.sizes)
        if name == "/valid/next_observation":
            return output.from_host(self._reads.following >= 0, self.sizes)
        if name == "/mask":
            return output.from_host(self._reads.anchors >= 0, self.sizes)
        return output.from_host(self._of_keys(name), [size // self.length for size in self.sizes])

    def _finish(self) -> None:
        """Brings what was gathered to where it is wanted, on the consumer's thread, when it is first asked for."""
        size = self._plan.sized(len(self._reads.anchors))[2]
        made: dict[str, NDArray[Any]] = dict(self._made)
        if self._output.is_far:
            made["/weight"], made["/probability"] = self._of_keys("/weight"), self._of_keys("/probability")
            made["/valid/next_observation"] = self._reads.following >= 0
            if self.is_sequence:
                made["/mask"] = self._reads.anchors >= 0
        self._arena, self._made = self._output.finish(self._arena, size, made)
        self._is_finished = True

    def settle(self) -> None:
        """Reads everything that is otherwise read when somebody asks, and lets go of the rows: who keeps a batch then
        keeps none of the blocks that it was drawn from."""
        self._system()
        if self.is_sequence:
            self._key_ids = [self._rows.ids(keys) for keys in self._draw.keys]
        del self._rows

    def _of_keys(self, name: str) -> NDArray[np.float32]:
        """Weights or probabilities `[keys]`."""
        rows = len(self._reads.anchors)
        value = {"/weight": self._draw.weight, "/probability": self._draw.probability}[name]
        return np.broadcast_to(value, self._draw.keys.shape).reshape(-1)[: rows // self.length].astype(np.float32)

    def _system(self) -> dict[str, NDArray[Any]]:
        """Ids and step numbers, read by a gather of their own when somebody asks: most training steps never do."""
        if self._late is None:
            self._late = self._rows.gather(self._reads.anchors, ("writer", "seq", "step"))
        return self._late

    def ids(self, k: int) -> Ids:
        """StepIds of batch `k`: of the keys, in sequences."""
        if self._key_ids is not None:
            return self._key_ids[k]
        return self._rows.ids(self._draw.keys[k]) if self.is_sequence else self.step_ids(k)

    def part(self, k: int) -> NDArray[np.int8] | None:
        """The part of each key of batch `k`, None outside joins."""
        if not isinstance(getattr(self, "_rows", None), PartedRows):
            return None
        keys = self._draw.keys[k]
        out: NDArray[np.int8] = (keys[keys >= 0] >> PART_SHIFT).astype(np.int8)
        return out

    def step_ids(self, k: int) -> Ids:
        """StepIds of every row of batch `k`."""
        stop = list(itertools.accumulate(self.sizes))[k]
        rows = slice(stop - self.sizes[k], stop)
        out = np.empty(self.sizes[k], ID_DTYPE)
        late = self._system()
        out["writer"], out["seq"] = late["writer"][rows], late["seq"][rows]
        return out


class Batch(Generic[T]):
    """One batch.

    `batch["observation"]` is `[B, …]`; nested fields are dicts, and dotted paths work too; text and JSON fields are
    lists. Ragged fields are right-padded `[B, longest]` with `batch.lengths[name]` `[B]`.

    Attributes:
        step: number of the batch in its run, from 0.
        mask: `[B, T]` bool: where a sequence has a step; None outside sequences.
        step_ids: `[B, T]` StepIds, 0:0 outside the mask; None outside sequences.
        part: `[B]` int8: the part of a join that each row is of, in the order of its parts; None outside joins.
    """

    __slots__ = ("_chunk", "_k", "mask", "part", "step", "step_ids")

    def __init__(self, chunk: Chunk, k: int) -> None:
        self._chunk, self._k = chunk, k
        self.step = chunk.step + k
        self.part = chunk.part(k)
        self.mask = chunk.get("/mask", k) if chunk.is_sequence else None
        self.step_ids = chunk.step_ids(k).reshape(-1, chunk.length) if chunk.is_sequence else None

    def __len__(self) -> int:
        return self._chunk.sizes[self._k] // self._chunk.length

    def __getitem__(self, name: str) -> Any:
        chunk = self._chunk
        made = chunk.arrays.get(name)
        if made is not None and name[0] != "/":
            return made[self._k]
        try:
            if name[0] != "/":
                return chunk.get(name, self._k)
        except KeyError:
            pass
        if name in chunk.lists:
            return chunk.lists[name][self._k]
        inner = {p[len(name) + 1 :]: self[p] for p in self._paths() if p.startswith(name + ".")}
        if not inner:
            raise KeyError(f"no field {name!r} in this batch; fields: {', '.join(self.keys())}")
        return _nest(inner)

    def _paths(self) -> Iterator[str]:
        yield from (n for n in self._chunk.names() if n[0] != "/")
        yield from self._chunk.lists

    def keys(self) -> list[str]:
        """Top-level names of the fields."""
        return list(dict.fromkeys(p.partition(".")[0] for p in self._paths()))

    def items(self) -> list[tuple[str, Any]]:
        return [(name, self[name]) for name in self.keys()]

    def __contains__(self, name: object) -> bool:
        return name in self.keys() or name in set(self._paths())

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    @property
    def ids(self) -> Ids:
        """StepIds `[B]`, a structured numpy array of `writer` and `seq`."""
        return self._chunk.ids(self._k)

    @property
    def weight(self) -> T:
        """Importance weights `[B]` float32."""
        out: T = self._chunk.get("/weight", self._k)
        return out

    @property
    def probability(self) -> T:
        """Each row's chance of being drawn, over the whole view: `[B]` float32."""
        out: T = self._chunk.get("/probability", self._k)
        return out

    @property
    def valid(self) -> Mapping[str, T]:
        """Name → `[B]` bool for optional fields and `next_observation`: False where there was no value."""
        return self._group("/valid/")

    @property
    def lengths(self) -> Mapping[str, T]:
        """Name → `[B]` int64 for ragged fields."""
        return self._group("/lengths/")

    def to_tensordict(self) -> Any:
        """The batch as a `tensordict.TensorDict` of batch size `[B]`, or `[B, T]`, over the same memory: fields under
        their names, nested ones nested, and `ids` `[B, 2]` int64 (writer, seq), `weight`, `probability`, `mask`,
        `valid`, `lengths`. Text and JSON stay outside.

        Raises:
            MissingDependency: tensordict is not installed.
            ArgumentError: the batch does not hold torch tensors.
        """
        from recollect.loader.tensordicts import to_tensordict

        return to_tensordict(self)

    def _group(self, prefix: str) -> dict[str, T]:
        names = [n for n in self._chunk.names() if n.startswith(prefix)]
        return {n[len(prefix) :]: self._chunk.get(n, self._k) for n in names}

    def __repr__(self) -> str:
        return f"Batch(step={self.step}, rows={len(self)}, fields={self.keys()})"


def _nest(flat: dict[str, Any]) -> dict[str, Any]:
    out: dict[str, Any] = {}
    for path, value in flat.items():
        at = out
        *parents, last = path.split(".")
        for part in parents:
            at = at.setdefault(part, {})
        at[last] = value
    return out
