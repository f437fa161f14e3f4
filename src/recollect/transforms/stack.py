"""`FrameStack`: frames that were stored once, stacked when they are drawn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from recollect.errors import ArgumentError
from recollect.schema import Frames, Leaf, Schema
from recollect.schema.fields import is_heap
from recollect.transforms.base import Chance, Data, Reach, Reads
from recollect.view import View

Pad = Literal["zero", "repeat"]


@dataclass(frozen=True)
class FrameStack:
    """Fields are read with the `k - 1` steps before them: `[B, k, ...]`, oldest first, the next observation too (Mnih
    et al. 2015, "Human-level control through deep reinforcement learning", with k = 4).

    It says how fields are read and copies nothing of its own, so that its place in the list does not matter. A stack
    never leaves its episode. Before the first step of an episode stands padding. Where steps before were evicted or
    deleted, padding would make up what was never seen: such rows are not drawn, at most k - 1 for each cut. In
    sequences their burn-in may show them, padded.

    A field that the schema declares with a stack of its own is read with this one instead.

    Args:
        k: steps in a stack; 1 means no stack, and no axis for it.
        field: the field, or several; a name that stands for nested ones means all of them. The observation fields of
            type `Frames` when None.
        pad: what stands before an episode's first step: that step repeated, as frame-stacking wrappers do it, or zeros.

    Raises:
        ArgumentError: `k` or `pad` out of range.
    """

    k: int
    field: str | Sequence[str] | None = None
    pad: Pad = "repeat"

    def __post_init__(self) -> None:
        if not isinstance(self.k, int) or self.k < 1:
            raise ArgumentError("a stack holds k of at least 1 steps", value=self.k)
        if self.pad not in ("zero", "repeat"):
            raise ArgumentError("unknown pad", value=self.pad, remedy="Use 'repeat' or 'zero'")
        if self.field is not None and not isinstance(self.field, str):
            object.__setattr__(self, "field", tuple(self.field))

    @property
    def reach(self) -> Reach:
        return Reach(self.k - 1, 0, window=False)

    def needs(self, schema: Schema) -> frozenset[str]:
        return frozenset()

    def to_dict(self) -> dict[str, Any]:
        field = self.field if self.field is None or isinstance(self.field, str) else list(self.field)
        return {"kind": "frame_stack", "k": self.k, "field": field, "pad": self.pad}

    def leaves(self, schema: Schema) -> tuple[Leaf, ...]:
        """The fields that are stacked.

        Raises:
            NotFound: a field that the schema lacks.
            ArgumentError: one of variable size, or none is named and the schema has no frames.
        """
        if self.field is None:
            found = tuple(x for x in schema.observations if isinstance(x.field, Frames))
            if not found:
                raise ArgumentError("no observation is of type Frames", remedy='Name fields: FrameStack(4, field="x")')
            return found
        found = schema.select([self.field] if isinstance(self.field, str) else list(self.field))
        for leaf in found:
            if is_heap(leaf.field):
                raise ArgumentError(f"field {leaf.path!r} has no fixed shape", remedy="Stack fields of fixed shape")
        return found

    def plan(self, reads: Reads, view: View, chance: Chance) -> Reads:
        return reads

    def apply(self, data: Data, reads: Reads, schema: Schema) -> Data:
        return data


def stacks_of(schema: Schema, stacks: Sequence[FrameStack]) -> Mapping[str, tuple[int, Pad]]:
    """Path → depth and pad of every field that is read stacked, by the schema or by the transforms.

    Raises:
        ArgumentError: two of them stack one field.
    """
    out: dict[str, tuple[int, Pad]] = {
        leaf.path: (leaf.field.stack, leaf.field.pad)
        for leaf in schema.leaves
        if isinstance(leaf.field, Frames) and leaf.field.stack > 1
    }
    seen: set[str] = set()
    for stack in stacks:
        for leaf in stack.leaves(schema):
            if leaf.path in seen:
                raise ArgumentError(f"field {leaf.path!r} is stacked twice", remedy="Name it in one FrameStack")
            seen.add(leaf.path)
            out[leaf.path] = (stack.k, stack.pad)
    return {path: how for path, how in out.items() if how[0] > 1}
