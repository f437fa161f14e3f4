"""Where weights of rows lie: side by side, whatever slots the rows have."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from recollect.view import F64, I64, PART_SHIFT, Slots

SHIFT = 12
"""Slots are given places 4096 at a time, so that rows keep the neighbours that they are summed with."""


def _within() -> int:
    return (1 << SHIFT) - 1


class Places:
    """Numbers places from 0, in chunks of neighbouring slots, in the order in which these were first needed.

    Slots of a view begin anywhere, and those of joined views lie far apart (`PART_SHIFT`).

    Args:
        chunks: slot >> SHIFT of each chunk, in the order of their places.
    """

    def __init__(self, chunks: I64 | None = None) -> None:
        self._have(np.empty(0, np.int64) if chunks is None else chunks.copy())

    def _have(self, chunks: I64) -> None:
        self.chunks = chunks
        self._order = np.argsort(chunks, kind="stable")
        self._sorted = chunks[self._order]
        self._is_one_run = not len(chunks) or bool((chunks == chunks[0] + np.arange(len(chunks))).all())

    def of(self, slots: Slots) -> I64:
        """`[n]`: the place of each slot, -1 where it has none."""
        if not len(self.chunks):
            return np.full(len(slots), -1, np.int64)
        if self._is_one_run:
            places = slots - (int(self.chunks[0]) << SHIFT)
            return np.where((slots >= 0) & (places >= 0) & (places < len(self.chunks) << SHIFT), places, -1)
        chunk = slots >> SHIFT
        at = np.minimum(np.searchsorted(self._sorted, chunk), len(self.chunks) - 1)
        known = (self._sorted[at] == chunk) & (slots >= 0)
        return np.where(known, self._order[at] << SHIFT | slots & _within(), -1)

    def slots(self, places: I64) -> Slots:
        """The slots at places, in their shape."""
        if self._is_one_run:
            return places + (int(self.chunks[0]) << SHIFT)
        out: Slots = self.chunks[places >> SHIFT] << SHIFT | places & _within()
        return out

    def taken(self, slots: Slots) -> I64:
        """`[n]`: the places of slots, which get some where they have none yet."""
        chunk = np.unique(slots >> SHIFT)
        fresh = np.setdiff1d(chunk, self._sorted, assume_unique=True)
        if len(fresh):
            self._have(np.concatenate([self.chunks, fresh]))
        return self.of(slots)

    def let_go(self, firsts: Sequence[int], held: F64) -> F64 | None:
        """Forgets the chunks whose rows are all gone, once they are more than half of the weights.

        Args:
            firsts: the first slot of each part that is still there.
            held: weights by place.

        Returns:
            The weights by their new places; None when nothing was forgotten.
        """
        gone = np.zeros(len(self.chunks), np.bool_)
        for part, first in enumerate(firsts):
            mine = self.chunks >> (PART_SHIFT - SHIFT) == part
            gone |= mine & (self.chunks + 1 << SHIFT <= first)
        count = int(gone.sum()) << SHIFT
        if count <= max(1 << SHIFT, len(held) // 2):
            return None
        padded = np.zeros(len(self.chunks) << SHIFT)
        padded[: min(len(held), len(padded))] = held[: len(padded)]
        out: F64 = padded.reshape(-1, 1 << SHIFT)[~gone].reshape(-1)
        self._have(self.chunks[~gone])
        return out
