"""`View`: an immutable set of rows, what may be read and what may be drawn."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias, Union

import numpy as np
from numpy.typing import NDArray

from recollect.schema import Schema
from recollect.view.facts import FactIndex
from recollect.view.ids import Bool, Cut, EpisodeKey, Ids, Slots
from recollect.view.window import Window
from recollect.where import Filter

if TYPE_CHECKING:
    from recollect.view.statistics import Statistics

Narrowing: TypeAlias = Union[Filter, Window, "Callable[[View, Slots], Bool]"]
"""What restricts which rows of a view are drawn."""


def _has_words(value: object) -> bool:
    """Whether an object's text is of its own making, such as that of a dataclass."""
    return any("__repr__" in vars(kind) for kind in type(value).__mro__[:-1])


def described(narrowing: object) -> str:
    """A condition, a window, a function or a callable object, in words that tell it from others."""
    if isinstance(narrowing, Filter | Window):
        return str(narrowing)
    if not hasattr(narrowing, "__qualname__") and _has_words(narrowing):
        return re.sub(r" at 0x[0-9a-f]+", "", repr(narrowing))
    where: Any = narrowing if hasattr(narrowing, "__qualname__") else type(narrowing)
    return f"{where.__module__}.{where.__qualname__}"


class Rows(Protocol):
    """Residency of a view's rows: a hot map, cached blocks, a join."""

    def __len__(self) -> int: ...
    def gather(self, slots: Slots, fields: Sequence[str]) -> dict[str, NDArray[Any]]: ...
    def ids(self, slots: Slots) -> Ids: ...
    def find(self, ids: Ids) -> Slots: ...
    def valid(self, slots: Slots, path: str) -> Bool: ...
    def heap_values(self, slots: Slots, path: str) -> list[bytes | None]: ...


class Episodes(Protocol):
    """Where each row stands in its episode. Interleaving, resumption and missing rows are hidden here.

    A *run* is a stretch of an episode without a missing step; no window leaves its run.

    Attributes:
        group: by slot, int32: index into `keys`, -1 for holes.
        keys: `[groups, 2]` the episodes, by group.
        is_final: by slot, bool: observation-only rows.
    """

    @property
    def group(self) -> NDArray[np.int32]: ...
    @property
    def keys(self) -> NDArray[np.int64]: ...
    @property
    def is_final(self) -> Bool: ...
    def group_of(self, slots: Slots) -> NDArray[np.int32]:
        """`[n]`: the group of each slot, -1 for holes and rows that are not here."""
        ...

    def offset(self, slots: Slots, k: Slots | int) -> Slots: ...
    def next_observation(self, slots: Slots) -> Slots: ...
    def rows_of(self, key: EpisodeKey) -> Slots: ...


@dataclass(frozen=True)
class Runs:
    """The episodes of a view that does not grow: runs laid side by side.

    Attributes:
        run: `[n]` int32, -1 for rows in none.
        rank: `[n]` int32: a row's place when runs are laid side by side; None when that is the slot itself.
        slot: rank → slot, None likewise.
        run_start, run_stop: `[runs]` int64: ranks, half-open, the final row included.
        successor: `[n]` int64: slot of the row that holds the next observation, -1 none. Slots at and past the view's
            length are waiting observations.
        group: `[n]` int32: index into `keys`, -1 for holes.
        keys: the episodes, by group.
        is_final: `[n]` bool: observation-only rows.
    """

    run: NDArray[np.int32]
    rank: NDArray[np.int32] | None
    slot: Slots | None
    run_start: Slots
    run_stop: Slots
    successor: Slots
    group: NDArray[np.int32]
    keys: NDArray[np.int64]
    is_final: Bool

    def group_of(self, slots: Slots) -> NDArray[np.int32]:
        """`[n]`: the group of each slot, -1 for holes."""
        return self.group[slots]

    def offset(self, slots: Slots, k: Slots | int) -> Slots:
        """The row `k` steps later (earlier when negative) in the same run, -1 where there is none."""
        known = np.maximum(slots, 0)
        run = self.run[known]
        rank = (known if self.rank is None else self.rank[known]) + k
        inside = (slots >= 0) & (run >= 0)
        safe = np.maximum(run, 0)
        inside &= (rank >= self.run_start[safe]) & (rank < self.run_stop[safe])
        at = np.where(inside, rank, 0)
        return np.where(inside, at if self.slot is None else self.slot[at], -1)

    def next_observation(self, slots: Slots) -> Slots:
        """Slot of the row that holds the next observation, -1 where there is none."""
        return np.where(slots >= 0, self.successor[np.maximum(slots, 0)], -1)

    def rows_of(self, key: EpisodeKey) -> Slots:
        """Every row of an episode in step order, the final row last; empty when the view holds none."""
        group = np.flatnonzero((self.keys[:, 0] == key.writer) & (self.keys[:, 1] == key.counter))
        if not len(group):
            return np.empty(0, np.int64)
        runs = np.unique(self.run[self.group == group[0]])
        parts = [np.arange(self.run_start[r], self.run_stop[r]) for r in runs if r >= 0]
        ranks = np.concatenate(parts) if parts else np.empty(0, np.int64)
        return ranks if self.slot is None else self.slot[ranks]


class Anchors(Protocol):
    """Rows that may be drawn.

    Attributes:
        slots: sorted, int64; None when every row of the view may be drawn.
        undrawable_truncated: truncated steps without their next observation, left out.
        undrawable_open: other steps without it: the last of an episode that is still open.
        undrawable_beheaded: steps whose frame stack reaches back to steps that the view lacks.
    """

    @property
    def slots(self) -> Slots | None: ...
    @property
    def undrawable_truncated(self) -> int: ...
    @property
    def undrawable_open(self) -> int: ...
    @property
    def undrawable_beheaded(self) -> int: ...
    def __len__(self) -> int: ...
    def select(self, ranks: Slots) -> Slots: ...
    def mask(self, slots: Slots) -> Bool: ...
    def complete(self, slots: Slots) -> Bool:
        """Whether each slot could be drawn, were there no condition: such steps may be part of a window."""
        ...


@dataclass(frozen=True)
class AnchorList:
    """The anchors of a view that does not grow.

    Attributes:
        slots: sorted, int64; None when every row of the view may be drawn.
        rows: rows of the view.
        undrawable_truncated: truncated steps without their next observation, left out.
        undrawable_open: other steps without it: the last of an episode that is still open.
        undrawable_beheaded: steps whose frame stack reaches back to steps that the view lacks.
        whole: what could be drawn but for the condition of the view; None when it has none.
    """

    slots: Slots | None
    rows: int
    undrawable_truncated: int = 0
    undrawable_open: int = 0
    undrawable_beheaded: int = 0
    whole: Anchors | None = None

    def __len__(self) -> int:
        return self.rows if self.slots is None else len(self.slots)

    def select(self, ranks: Slots) -> Slots:
        return ranks if self.slots is None else self.slots[ranks]

    def mask(self, slots: Slots) -> Bool:
        """Whether each slot may be drawn."""
        if self.slots is None:
            return (slots >= 0) & (slots < self.rows)
        at = np.minimum(np.searchsorted(self.slots, slots), max(0, len(self.slots) - 1))
        return (
            np.asarray(len(self.slots) > 0) & (self.slots[at] == slots)
            if len(self.slots)
            else np.zeros(len(slots), np.bool_)
        )

    def complete(self, slots: Slots) -> Bool:
        """Whether each slot could be drawn, were there no condition."""
        return self.mask(slots) if self.whole is None else self.whole.complete(slots)

    @property
    def unmatched(self) -> int:
        """Rows that could be drawn, but for the condition of the view."""
        return 0 if self.whole is None else len(self.whole) - len(self)


@dataclass(frozen=True)
class View:
    """An immutable set of rows. Equal cuts give equal slots, hot or cold.

    Attributes:
        schema: what a row is.
        cut: what the view is.
        rows: every row of the cut, to be read.
        episodes: each row's place in its episode.
        anchors: the rows that may be drawn.
        name: where the view came from, for people.
        filter: what `where` restricted the anchors to, None when nothing did.
        narrowings: everything that restricted the anchors, conditions included, in order.
        narrowed_from: the view before the last of them.
    """

    schema: Schema
    cut: Cut
    rows: Rows
    episodes: Episodes
    anchors: Anchors
    load_facts: Callable[[], FactIndex] = field(default=FactIndex, repr=False, compare=False)
    name: str = ""
    filter: Filter | None = None
    narrowings: tuple[Narrowing, ...] = ()
    narrowed_from: View | None = field(default=None, repr=False, compare=False)

    @cached_property
    def facts(self) -> FactIndex:
        """The facts of the cut, read when first asked for."""
        return self.load_facts()

    @cached_property
    def fact_stops(self) -> tuple[tuple[int, int], ...]:
        """Per writer, how many of its facts belong to the cut."""
        return self.cut.facts

    def same_values(self, older: View) -> bool:
        """Whether the rows that both views hold have the same values in both: late facts may change them."""
        return self.fact_stops == older.fact_stops

    @property
    def parts(self) -> Mapping[str, View]:
        """Of joined views: each by its name. Others have none."""
        return {}

    @property
    def restriction(self) -> str | None:
        """What restricted the anchors, in words that tell one restriction from another; None when nothing did."""
        parts: list[Narrowing] = []
        for narrowing in self.narrowings:
            if parts and isinstance(narrowing, Filter) and isinstance(parts[-1], Filter):
                parts[-1] = parts[-1] & narrowing
            else:
                parts.append(narrowing)
        told = [described(part) for part in parts]
        return " and ".join(f"({text})" for text in told) if len(told) > 1 else next(iter(told), None)

    def __len__(self) -> int:
        """Rows that may be drawn."""
        return len(self.anchors)

    def at(self, step: int) -> View:
        """A view is its own constant source."""
        return self

    def where(self, condition: str | Filter) -> View:
        """The same rows, of which only those may be drawn that a condition is true of.

        Everything can still be read, so that windows, next observations and frame stacks are what they were. Facts are
        those of the cut. Of a view that is restricted already both conditions must be true. Costs one look at the
        fields concerned of every drawable row.

        Args:
            condition: such as `"episode.task = 'hopper' and reward > 0"`; `recollect.where` has the language.

        Raises:
            ArgumentError: it cannot be read, or compares what cannot be compared; the part is named.
            NotFound: a field or fact that the schema lacks.
        """
        from recollect.where import parse

        return self.narrow(parse(condition, self.schema) if isinstance(condition, str) else condition)

    def narrow(
        self,
        keep: Narrowing | None = None,
        *,
        last: int | None = None,
        age: float | timedelta | None = None,
        policy_lag: int | None = None,
    ) -> View:
        """The same rows, of which fewer may be drawn. Everything can still be read, as with `where`.

        Args:
            keep: a `Window`; or a function of (view, slots `[n]` int64 of its drawable rows, sorted) that returns
                which of them stay, `[n]` bool. A function must depend on its arguments alone; a loader's state names
                it by module and name.
            last, age, policy_lag: the fields of a `Window`, in short.

        Raises:
            ArgumentError: nothing to narrow by, or a number out of range.
            NotFound: `policy_lag` without a policy version in the schema.
        """
        from recollect.view.narrow import chosen, narrowed

        return narrowed(self, chosen(keep, last, age, policy_lag))

    def drawing(self, slots: Slots) -> View:
        """The same view, of which only these sorted slots are drawn. It is no restriction of the view's own: what a
        sampler draws from."""
        out = copy(self)
        a = self.anchors
        counts = a.undrawable_truncated, a.undrawable_open, a.undrawable_beheaded
        whole = a.whole if isinstance(a, AnchorList) and a.whole is not None else a
        out.__dict__["anchors"] = AnchorList(slots, len(self.rows), *counts, whole=whole)
        return out

    def statistics(self, fields: Sequence[str] | None = None) -> Statistics:
        """Count, mean, standard deviation and range of fields of fixed shape, over the rows that may be drawn.

        Made in one pass over them, part by part, in float64. A function of the view alone: equal cuts give equal
        numbers, bit for bit. Frames and embeddings are looked at element by element, like everything else.

        Args:
            fields: paths, or names that stands for nested fields; None is every field of fixed shape.

        Raises:
            NotFound: a field that the schema lacks.
            ArgumentError: one of variable size.
        """
        from recollect.view.statistics import statistics

        return statistics(self, fields)

    def __repr__(self) -> str:
        chosen = "" if self.restriction is None else f", where={self.restriction!r}"
        return f"View({self.name!r}, rows={len(self.rows)}, drawable={len(self.anchors)}{chosen})"


class Source(Protocol):
    """Yields successive views. A view is its own constant source."""

    def at(self, step: int) -> View:
        """The view that batch `step` is drawn from; asked once for each, in order."""
        ...


class GrowingSource(Source, Protocol):
    """A source whose views grow: a later one holds an earlier one's rows at the same slots, or has let go of them."""

    def mark(self, view: View) -> dict[str, Any]:
        """Names one of its views in plain values."""
        ...

    def restore(self, marks: Sequence[Mapping[str, Any]]) -> list[View]:
        """The views that marks name; the source goes on from the last."""
        ...


class UnboundSource(Protocol):
    """A source whose views depend on who draws from them: a loader binds it once."""

    def bind(
        self, *, seed: int, batch_size: int, reach: int, depth: int = 1, stack: int = 1, epochs: int | None = None
    ) -> GrowingSource:
        """The source of one loader, whose windows hold `reach` steps after the anchor and `depth` up to it, whose
        stacks need `stack` steps, and which counts `epochs`."""
        ...
