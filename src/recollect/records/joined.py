"""Several views laid side by side as one, at the cost of copying their indexes: none of their rows is looked at.

Each view may hold rows at its end that are there to be read only: what the rows before them need of others
(design/0015).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recollect.records.rows import PackedRows
from recollect.view import Bool, Cut, Runs, Slots, View


@dataclass(frozen=True)
class Part:
    """A view, of which the first `own` rows may be drawn."""

    view: View
    own: int

    @cached_property
    def drawable(self) -> Slots:
        """Sorted slots of the rows that may be drawn."""
        anchors = self.view.anchors
        every = np.arange(len(self.view.rows)) if anchors.slots is None else anchors.slots
        return every[: int(np.searchsorted(every, self.own))]

    @cached_property
    def sound(self) -> Bool:
        """By slot, over everything that can be read: rows that could be drawn if they were not another's."""
        rows = self.view.rows
        assert isinstance(rows, PackedRows)
        out = np.zeros(rows.extent, np.bool_)
        out[: len(rows)] = self.view.anchors.complete(np.arange(len(rows)))
        return out


class JoinedRows(PackedRows):
    """The rows of several views; a row's slot is the one it has in its view, moved by the views before it."""

    def __init__(self, parts: Sequence[PackedRows]) -> None:
        self.layout = parts[0].layout
        self.offsets = np.cumsum([0] + [p.extent for p in parts])
        self.count = int(self.offsets[-1])
        moved = list(zip(parts, self.offsets[:-1].tolist(), strict=True))
        self._pieces = [piece for p in parts for piece in p._pieces]
        self.starts = np.concatenate([*(p.starts[:-1] + at for p, at in moved), self.offsets[-1:]])
        self.bases = np.concatenate([p.bases for p in parts])
        self.planes = np.concatenate([p.planes for p in parts], axis=1)
        changed = [(p._changed + at, p._targets + at) for p, at in moved if p._changed is not None]
        self._changed = np.concatenate([slots for slots, _ in changed]) if changed else None
        self._targets = np.concatenate([targets for _, targets in changed]) if changed else np.empty(0, np.int64)
        self._extents = tuple(e for p in parts for e in p._extents)
        self._extent_slots = np.concatenate([p._extent_slots[:-1] + at for p, at in moved])
        self._plans = {}


@dataclass(frozen=True)
class JoinedAnchors:
    """The anchors of joined views.

    Attributes:
        slots: sorted, of the rows that may be drawn.
        sound: by slot: also those that are there for others' windows.
    """

    slots: Slots
    sound: Bool
    undrawable_truncated: int = 0
    undrawable_open: int = 0
    undrawable_beheaded: int = 0

    def __len__(self) -> int:
        return len(self.slots)

    def select(self, ranks: Slots) -> Slots:
        return self.slots[ranks]

    def mask(self, slots: Slots) -> Bool:
        """Whether each slot may be drawn."""
        at = np.minimum(np.searchsorted(self.slots, slots), max(0, len(self.slots) - 1))
        return self.slots[at] == slots if len(self.slots) else np.zeros(len(slots), np.bool_)

    def complete(self, slots: Slots) -> Bool:
        """Whether a window may hold each slot."""
        out: NDArray[np.bool_] = (slots >= 0) & self.sound[np.maximum(slots, 0)]
        return out


def join_views(parts: Sequence[Part], cut: Cut, name: str) -> View:
    """One view that draws from the own rows of several, in their order.

    Args:
        cut: of these rows.
    """
    rows = JoinedRows([p.view.rows for p in parts if isinstance(p.view.rows, PackedRows)])
    offsets = rows.offsets.tolist()
    anchors = JoinedAnchors(
        np.concatenate([p.drawable + at for p, at in zip(parts, offsets, strict=False)]),
        np.concatenate([p.sound for p in parts]),
    )
    return View(parts[0].view.schema, cut, rows, _join_runs(parts, offsets), anchors, parts[0].view.load_facts, name)


def _join_runs(parts: Sequence[Part], offsets: Sequence[int]) -> Runs:
    columns: dict[str, list[NDArray[Any]]] = {}
    ranks = runs = groups = 0
    for part, at in zip(parts, offsets, strict=False):
        own, rows = part.view.episodes, part.view.rows
        assert isinstance(own, Runs) and isinstance(rows, PackedRows)
        behind = rows.extent - len(rows)
        rank = np.arange(len(rows), dtype=np.int32) if own.rank is None else own.rank
        slot = np.arange(len(rows)) if own.slot is None else own.slot
        grown = {
            "run": _padded(_moved(own.run, runs), behind, -1),
            "rank": _padded(_moved(rank, ranks), behind, -1),
            "slot": slot + at,
            "run_start": own.run_start + ranks,
            "run_stop": own.run_stop + ranks,
            "successor": _padded(_moved(own.successor, at), behind, -1),
            "group": _padded(_moved(own.group, groups), behind, -1),
            "keys": own.keys,
            "is_final": _padded(own.is_final, behind, False),
        }
        for column, values in grown.items():
            columns.setdefault(column, []).append(values)
        ranks, runs, groups = ranks + len(slot), runs + len(own.run_start), groups + len(own.keys)
    return Runs(**{column: np.concatenate(arrays) for column, arrays in columns.items()})


def _moved(numbers: NDArray[Any], by: int) -> NDArray[Any]:
    """Numbers that count from 0, counted from `by`; -1 stays none."""
    return np.where(numbers >= 0, numbers + numbers.dtype.type(by), numbers)


def _padded(array: NDArray[Any], count: int, value: Any) -> NDArray[Any]:
    return np.concatenate([array, np.full(count, value, array.dtype)]) if count else array
