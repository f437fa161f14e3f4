"""Reading rows of an older schema in the layout of the newest one.

A translation holds a segment's records once more, in the newer layout, copied when they are first asked for. Planes are
shared where their dtype is unchanged, the heap where no other bytes are needed. Checksums are those of the rows as they
were written: they are checked on `source`, never here (design/0007).
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recollect.hot.format.fields import FieldWriters
from recollect.masking import keep
from recollect.records.block import Block
from recollect.records.layout import FINAL, NO_PLANE, SPAN, Layout, column
from recollect.schema import Leaf
from recollect.schema.defaults import stored_default
from recollect.schema.fields import is_heap, is_inline, is_wide

CHUNK_ROWS = 16_384
"""Rows that are copied together: enough to be worth numpy's calls, few enough to stay in the cache."""
KEPT_LAYOUTS = 2
"""Into so many layouts a log's blocks are kept translated: two that read one log by turns, each in its own, find their
translations again. Each costs a copy of what was read, so that more are not kept."""


class Origin(NamedTuple):
    """What a translated block was made from, and the layout of that. Such a block's `owner`."""

    block: Block
    layout: Layout


class Run(NamedTuple):
    """Bytes that lie side by side in both records: offset in the old one, offset in the new one, count."""

    old: int
    new: int
    size: int


class Moved(NamedTuple):
    """Null bits that moved together: word and mask in the old record, word in the new one, places to the left."""

    old_word: int
    mask: int
    new_word: int
    left: int


class Recipe:
    """What becomes of each column between two layouts.

    Attributes:
        runs: bytes that are copied as they are.
        widened: inline columns that are cast; `planes` wide leaves, and `lists` ragged leaves, whose values are.
        constants: columns that the old rows lack, with what they hold there; `finals` what final rows hold, which have
            nothing but observations.
        missing: wide leaves that the old rows lack.
        heap: columns of the heap leaves that the old rows have.
        defaults: the bytes of the defaults of those that they lack.
        floats: inline columns that were integers and nullable, with their null bit: a null is NaN from now on.
        moved: null bits; `null_words` those that are set in every old row, `final_words` in every final row.

    Raises:
        SchemaMismatch: the new schema is no later version of the old one.
    """

    def __init__(self, old: Layout, new: Layout) -> None:
        old.schema.evolution(new.schema)
        self.widened: list[str] = []
        self.planes: list[Leaf] = []
        self.lists: list[Leaf] = []
        self.constants: dict[str, Any] = {}
        self.finals: dict[str, Any] = {}
        self.missing: list[Leaf] = []
        self.heap: list[str] = []
        self.defaults = b""
        self.floats: list[tuple[str, int, int]] = []
        blank = FieldWriters(new, keep).blank[0]
        # Neither the checksum nor the frame before the flags: no frame of a translation could be verified.
        flags, after = old.offset("flags"), old.offset("priority") + old.dtype["priority"].itemsize
        same = [Run(flags, new.offset("flags"), after - flags)]
        for leaf in new.schema.leaves:
            name, was = column(leaf.path), old.schema.by_path.get(leaf.path)
            if was is None:
                self._add(leaf, blank[name])
            elif is_inline(leaf.field) and old.dtype[name] != new.dtype[name]:
                self._widen(leaf, old, new, blank[name])
            else:
                same.append(Run(old.offset(name), new.offset(name), new.dtype[name].itemsize))
                cast = getattr(was.field, "dtype", None) != getattr(leaf.field, "dtype", None)
                if is_heap(leaf.field):
                    self.heap.append(name)
                    self.lists += [leaf] if cast else []
                elif is_wide(leaf.field):
                    self.planes += [leaf] if cast else []
        self.runs = _merged(same)
        self.moved, self.null_words, self.final_words = _null_bits(old, new)

    def _add(self, leaf: Leaf, blank: Any) -> None:
        """A field that the old rows lack."""
        name, default = column(leaf.path), stored_default(leaf.field)
        if is_heap(leaf.field):
            if default:
                self.constants[name] = np.array((len(self.defaults), len(default)), SPAN)
                self.defaults += bytes(default)
        elif is_wide(leaf.field):
            self.constants[name] = NO_PLANE
            self.missing.append(leaf)
        else:
            self.constants[name] = blank if default is None else default
        if name in self.constants and not leaf.is_observation:
            self.finals[name] = blank

    def _widen(self, leaf: Leaf, old: Layout, new: Layout, blank: Any) -> None:
        name = column(leaf.path)
        self.widened.append(name)
        if old.dtype[name].base.kind in "iu" and new.dtype[name].base.kind == "f":
            if leaf.path in new.nulls:
                self.floats.append((name, *new.nulls[leaf.path]))
            if not leaf.is_observation:
                self.finals[name] = blank


def _merged(runs: list[Run]) -> list[Run]:
    """Runs that follow each other in both records as one."""
    out: list[Run] = []
    for run in sorted(runs, key=lambda r: r.new):
        if out and (out[-1].old + out[-1].size, out[-1].new + out[-1].size) == (run.old, run.new):
            out[-1] = Run(out[-1].old, out[-1].new, out[-1].size + run.size)
        else:
            out.append(run)
    return out


def _null_bits(old: Layout, new: Layout) -> tuple[list[Moved], list[int], list[int]]:
    masks: dict[tuple[int, int, int], int] = {}
    words = (len(new.nulls) + 63) // 64
    nulls, finals = [0] * words, [0] * words
    for path, (word, bit) in new.nulls.items():
        leaf = new.schema.by_path[path]
        if path in old.nulls:
            from_word, from_bit = old.nulls[path]
            key = (from_word, word, bit - from_bit)
            masks[key] = masks.get(key, 0) | 1 << from_bit
        elif path not in old.schema.by_path and stored_default(leaf.field) is None:
            nulls[word] |= 1 << bit
        if not leaf.is_observation:
            finals[word] |= 1 << bit
    return [Moved(a, mask, b, left) for (a, b, left), mask in masks.items()], nulls, finals


class Translation:
    """A block of an older layout, readable in a newer one. The caller keeps two threads from reading at once.

    Costs `layout.itemsize` + 1 bytes for each row that was read; the memory of the others is not touched.

    Attributes:
        source: the block as it was written; checksums are those of its bytes.
        layout: the newer layout.

    Raises:
        SchemaMismatch: the new schema is no later version of the old one.
    """

    def __init__(self, source: Block, old: Layout, new: Layout) -> None:
        self.source, self.layout = source, new
        recipe = self._recipe = Recipe(old, new)
        n = len(source.records)
        planes = {leaf.path: region for leaf in new.wide if (region := source.planes.get(leaf.path)) is not None}
        for leaf in recipe.missing:
            planes[leaf.path] = np.zeros((0, *leaf.field.shape), leaf.field.dtype)  # type: ignore[union-attr]
        for leaf in recipe.planes:
            planes[leaf.path] = np.zeros(planes[leaf.path].shape, leaf.field.dtype)  # type: ignore[union-attr]
        heap, self._free = source.heap, 0
        if recipe.defaults or recipe.lists:
            # The defaults, then the old heap, then the cast lists. No two rows share heap bytes, so that the widest
            # list bounds what all of them need.
            growth = max((_growth(leaf, old) for leaf in recipe.lists), default=0)
            self._free = len(recipe.defaults) + len(source.heap)
            heap = np.empty(self._free + growth * len(source.heap), np.uint8)
            heap[: len(recipe.defaults)] = np.frombuffer(recipe.defaults, np.uint8)
        self._block = Block(np.zeros(n, new.dtype), planes, heap, owner=Origin(source, old))
        self._old = old
        self._records = source.records.astype(old.dtype, copy=False)  # numpy drops the padding where it concatenates
        self._from = self._records.view(np.uint8).reshape(n, old.itemsize)
        self._to = self._block.records.view(np.uint8).reshape(n, new.itemsize)
        self._done = np.zeros(n, np.bool_)

    @property
    def block(self) -> Block:
        """The block in the newer layout, as far as it was read."""
        return self._block

    def read(self, start: int, stop: int) -> Block:
        """The block with rows `start` to `stop` translated; of the others only those that were asked for before."""
        missing = np.flatnonzero(~self._done[start:stop]) + start
        for part in np.split(missing, np.flatnonzero(np.diff(missing) > 1) + 1) if len(missing) else ():
            for low in range(int(part[0]), int(part[-1]) + 1, CHUNK_ROWS):
                self._copy(low, min(low + CHUNK_ROWS, int(part[-1]) + 1))
        self._done[start:stop] = True
        return self._block

    @np.errstate(invalid="ignore")  # a signalling NaN becomes a quiet one, which is no reason to warn a reader
    def _copy(self, low: int, high: int) -> None:
        recipe = self._recipe
        for run in recipe.runs:
            self._to[low:high, run.new : run.new + run.size] = self._from[low:high, run.old : run.old + run.size]
        old, new = self._records[low:high], self._block.records[low:high]
        for name in recipe.widened:
            new[name] = old[name]
        for name, value in recipe.constants.items():
            new[name] = value
        final = np.flatnonzero(new["flags"] & FINAL)
        for name, value in recipe.finals.items() if len(final) else ():
            new[name][final] = value
        if recipe.null_words:
            self._nulls(old, new, final)
        for leaf in recipe.planes:
            held = new[column(leaf.path)]
            held = held[held >= 0]
            if len(held):
                first, last = int(held.min()), int(held.max()) + 1
                self._block.planes[leaf.path][first:last] = self.source.planes[leaf.path][first:last]
        if self._block.heap is not self.source.heap:
            self._lists(old, new)

    def _nulls(self, old: NDArray[np.void], new: NDArray[np.void], final: NDArray[np.int64]) -> None:
        recipe, words = self._recipe, new["nulls"]
        words[:] = np.array(recipe.null_words, np.uint64)
        for moved in recipe.moved:
            bits = old["nulls"][:, moved.old_word] & np.uint64(moved.mask)
            words[:, moved.new_word] |= (
                bits << np.uint64(moved.left) if moved.left >= 0 else bits >> np.uint64(-moved.left)
            )
        if len(final):
            words[final] |= np.array(recipe.final_words, np.uint64)
        for name, word, bit in recipe.floats:
            new[name][(words[:, word] >> np.uint64(bit)) & np.uint64(1) != 0] = np.nan

    def _lists(self, old: NDArray[np.void], new: NDArray[np.void]) -> None:
        """Copies the heap bytes of some rows behind the defaults, and their cast lists behind those."""
        shift = len(self._recipe.defaults)
        heap, source = self._block.heap, self.source.heap
        for name in self._recipe.heap:
            at, count = old[name]["at"], old[name]["count"]
            filled = count > 0
            if filled.any():
                first, last = int(at[filled].min()), int((at + count)[filled].max())
                heap[shift + first : shift + last] = source[first:last]
            new[name]["at"] += shift
        for leaf in self._recipe.lists:
            spans = old[column(leaf.path)]
            was = self._old.schema.by_path[leaf.path].field.dtype  # type: ignore[union-attr]
            ends = np.cumsum(spans["count"])
            index = np.arange(int(ends[-1])) + np.repeat(spans["at"] - (ends - spans["count"]), spans["count"])
            values = np.ascontiguousarray(source[index]).view(was).astype(leaf.field.dtype)  # type: ignore[union-attr]
            data = values.view(np.uint8)
            heap[self._free : self._free + len(data)] = data
            factor = values.dtype.itemsize // np.dtype(was).itemsize
            new[column(leaf.path)]["at"] = self._free + factor * (ends - spans["count"])
            new[column(leaf.path)]["count"] = factor * spans["count"]
            self._free += len(data)


def _growth(leaf: Leaf, old: Layout) -> int:
    """How many bytes a cast list has for each that it had."""
    before, after = old.schema.by_path[leaf.path].field.dtype, leaf.field.dtype  # type: ignore[union-attr]
    return np.dtype(after).itemsize // np.dtype(before).itemsize


def translated(block: Block, layout: Layout, new: Layout, rows: NDArray[np.int64]) -> Block:
    """A block with the same rows in a newer layout; of them only `rows`, which are sorted, are there.

    A translation is made from what its block was itself translated from, so that copies do not pile up as a schema goes
    on evolving. The values are the same: the rules of evolution compose.
    """
    source = block.owner if isinstance(block.owner, Origin) else Origin(block, layout)
    out = Translation(source.block, source.layout, new)
    for run in np.split(rows, np.flatnonzero(np.diff(rows) > 1) + 1):
        out.read(int(run[0]), int(run[-1]) + 1)
    return out.block


class Translations:
    """The translations of a log's blocks: one for each block and layout, for the layouts that were asked for last. The
    caller keeps two threads from using it at once."""

    def __init__(self) -> None:
        self._of: dict[int, dict[int, Translation]] = {}
        """By layout, the one used last at the end; by block."""

    def __len__(self) -> int:
        """Blocks that are kept in one layout, at most."""
        return max(map(len, self._of.values()), default=0)

    def of(self, block: Block, old: Layout, new: Layout) -> Translation:
        """The translation of a block, made when it is first asked for."""
        mine = self._of.pop(id(new), {})
        self._of[id(new)] = mine
        while len(self._of) > KEPT_LAYOUTS:
            del self._of[next(iter(self._of))]
        known = mine.get(id(block))
        # A number may come again once what had it is gone.
        if known is None or known.source is not block or known.layout is not new:
            known = mine[id(block)] = Translation(block, old, new)
        return known

    def keep(self, blocks: Iterable[Block]) -> None:
        """Forgets those of all other blocks; each holds its block's map."""
        held = {id(block) for block in blocks}
        self._of = {
            layout: kept for layout, mine in self._of.items() if (kept := {k: t for k, t in mine.items() if k in held})
        }
