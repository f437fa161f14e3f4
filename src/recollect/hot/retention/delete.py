"""Deletion of rows from a workspace: gone from every read at the next look, and with `purge` from its files.

What is deleted becomes a hole of its log (`holes`), with the reason and the time. Nothing moves: ids, counters
and cuts mean what they meant. Order of work, killed anywhere: how far episodes had got → the note of each log → a new
generation of `evicted.json`, at which readers look → indexes are removed → `purge`. A deletion that was killed may be
half done; the same again does the rest (design/0018).
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recollect.errors import ArgumentError, StoreError, WriterError
from recollect.hot.format.evicted import write_evicted
from recollect.hot.format.files import is_locked, locked, os_errors
from recollect.hot.format.holes import Hole, Holes, among, ranges_of, write_holes
from recollect.hot.read.sidecar import drop_index
from recollect.hot.read.store import HotStore
from recollect.hot.recovery.repair import tell
from recollect.hot.retention.purge import purge_log
from recollect.hot.retention.selection import Episodes, Ids, selected
from recollect.masking import Masker
from recollect.view import Bool, EpisodeKey, Extent, View
from recollect.view.reach import Ranges, by_writer, union, within

WAIT_S = 60.0
"""How long a deletion waits for an eviction, a repair or another deletion to end."""


@dataclass(frozen=True)
class Deletion:
    """What was deleted from a workspace.

    Attributes:
        rows: how many rows, final rows that went with their steps included; `ids` which, as extents.
        episodes: how many episodes lost rows; `whole_episodes` of them all that they had.
        facts: facts about these steps, and about the episodes that went whole.
        reason: why.
        purged: whether the bytes were overwritten.
        dry_run: whether nothing was done.
    """

    rows: int
    ids: tuple[Extent, ...]
    episodes: int
    whole_episodes: int
    facts: int
    reason: str
    purged: bool
    dry_run: bool

    def __str__(self) -> str:
        would = "would delete" if self.dry_run else "deleted"
        purged = "; their bytes are overwritten" if self.purged else ""
        whole = f" ({self.whole_episodes:,} whole)" if self.whole_episodes else ""
        return f"{would} {self.rows:,} rows of {self.episodes:,} episodes{whole} and {self.facts:,} facts{purged}"


def delete(
    store: HotStore,
    mask: Masker,
    ids: Ids | None,
    episodes: Episodes | None,
    where: str | None,
    reason: str,
    *,
    purge: bool,
    dry_run: bool,
) -> Deletion:
    """`Workspace.delete`, which says what the arguments mean and what is raised: what is asked for is looked up in
    what is published now. `mask` is put over the reason."""
    extents: tuple[Extent, ...] = ()
    named: frozenset[EpisodeKey] = frozenset()
    if not (purge and ids is None and episodes is None and where is None):
        extents, named = selected(store.view(), ids, episodes, where)
    masked = mask(reason) if isinstance(reason, str) else reason
    return delete_rows(store, extents, masked, episodes=named, purge=purge, dry_run=dry_run)


def delete_rows(
    store: HotStore,
    extents: Iterable[Extent],
    reason: str,
    *,
    episodes: Iterable[EpisodeKey] = (),
    purge: bool = False,
    dry_run: bool = False,
) -> Deletion:
    """Deletes rows by their ids, whether they are there or not. The same again deletes nothing.

    A step takes along the row that only holds its next observation, and such a row the step before it. Facts about
    deleted steps go, and facts about episodes that lose every row, or that are named.

    Args:
        store: the workspace's; others see it at their next look.
        extents: rows; what is gone or was never there is passed over.
        reason: kept, with the time; the values are not.
        episodes: whose facts go too.
        purge: overwrites the bytes of what is gone, of earlier deletions too. What a live writer has cannot be.
        dry_run: only says what would go.

    Raises:
        ArgumentError: no reason.
        WriterError: a live writer has what is to be purged; nothing was deleted.
        CorruptionError: rows are damaged. Repair the workspace first.
        ConflictError: an eviction, or another deletion, did not end.
        StoreError: the folder cannot be written.
    """
    if not isinstance(reason, str) or not reason.strip():
        raise ArgumentError("a deletion has a reason", value=reason, remedy='Pass reason="why it has to go"')
    with os_errors("deleting from", store.folder), locked(store.folder.parent / "evict.lock", WAIT_S):
        store.look_again()
        with store.pinned():
            chosen = _Chosen(store, store.view(), extents, frozenset(episodes))
        out = Deletion(
            chosen.rows,
            chosen.extents,
            len(chosen.touched),
            len(chosen.whole),
            chosen.fact_count,
            reason,
            purge,
            dry_run,
        )
        notes = chosen.notes(reason)
        if purge:
            _refuse_live(store, notes)
        if not dry_run:
            chosen.carry_out(notes, reason)
            if purge:
                _purge(store)
        return out


def _refuse_live(store: HotStore, notes: dict[int, Holes]) -> None:
    """Raises WriterError where bytes that are to be overwritten lie in the log of a live writer, who has it mapped."""
    for log in list(store.logs.values()):
        holes = notes.get(log.writer, log.holes)
        concerned = not log.gone and (holes.holes or holes.unfollowed)
        if concerned and not log.sealed and is_locked(log.folder / "lock"):
            raise WriterError(
                f"writer {log.writer} ({log.agent!r}) is live and has rows or facts that are to be purged",
                remedy="Close it first, or delete without purge now, which hides them at once, and purge later",
            )


def _purge(store: HotStore) -> None:
    for log in list(store.logs.values()):
        if not log.gone and (log.holes.holes or log.holes.unfollowed):
            if not log.sealed:
                raise WriterError(
                    f"the log of writer {log.writer}, which died, is not sealed yet",
                    remedy="Open the workspace again, then purge",
                )
            purge_log(log.folder, store.layouts)
    tell(store.folder)  # so that readers let go of the files that were written over
    _drop_indexes(store)
    store.refresh()


def _drop_indexes(store: HotStore) -> None:
    """Removes what was made from rows that are gone; it is made anew from those that are left."""
    store.catalog.file.close()
    for path in sorted(store.folder.parent.glob("*.sqlite")):
        if not drop_index(path):
            raise StoreError(f"{str(path)!r} is being written all the time", remedy="Run the deletion again")


class _Chosen:
    """What a deletion takes.

    Attributes:
        rows: how many; `extents` which, by writer and number.
        touched: episodes that lose rows; `whole` those that lose all.
        fact_count: facts that go.
    """

    def __init__(self, store: HotStore, view: View, extents: Iterable[Extent], episodes: frozenset[EpisodeKey]) -> None:
        self._store, self._now = store, time.time_ns()
        n = len(view.rows)
        every = np.arange(n)
        after = view.episodes.next_observation(every)
        after[after >= n] = -1
        mask = np.zeros(n, np.bool_)
        ids = view.rows.ids(every)
        for writer, ranges in by_writer(extents).items():
            mine = np.flatnonzero(ids["writer"] == writer)
            mask[mine[among(union(ranges), ids["seq"][mine])]] = True
        final = view.episodes.is_final
        followed = after >= 0
        for _ in range(2):  # a final row takes its step along, and a step its final row
            mask[followed] |= mask[after[followed]] & final[after[followed]]
            follows = after[mask & followed]
            mask[follows[final[follows]]] = True
        self._unfollowed = self._ranges(ids, followed & ~mask & mask[np.maximum(after, 0)])
        self._rows = self._ranges(ids, mask)
        self.rows = int(mask.sum())
        self.extents = tuple(Extent(w, a, b) for w, found in sorted(self._rows.items()) for a, b in found)
        group = view.episodes.group
        keys = [EpisodeKey(*key) for key in view.episodes.keys.tolist()]
        left = np.bincount(group[~mask & (group >= 0)], minlength=len(keys))
        lost = np.bincount(group[mask & (group >= 0)], minlength=len(keys))
        self.touched = {keys[k] for k in np.flatnonzero(lost).tolist()}
        self.whole = {keys[k] for k in np.flatnonzero((lost > 0) & (left == 0)).tolist()}
        step = view.rows.gather(every, ("step",))["step"].astype(np.int64)
        self._reached = self._ends(keys, group, step, mask, ~final)
        self._facts = self._facts_of(view, self.whole | episodes)
        self.fact_count = sum(b - a for ranges in self._facts.values() for a, b in ranges)

    @staticmethod
    def _ranges(ids: Any, mask: Bool) -> dict[int, Ranges]:
        found = ids[mask]
        return {w: ranges_of(found["seq"][found["writer"] == w]) for w in np.unique(found["writer"]).tolist()}

    @staticmethod
    def _ends(
        keys: Sequence[EpisodeKey], group: NDArray[np.int32], step: NDArray[np.int64], mask: Bool, is_step: Bool
    ) -> dict[EpisodeKey, int]:
        """Episodes that lose their newest step → how many steps they had."""
        lost, left = np.full(len(keys), -1), np.full(len(keys), -1)
        for out, rows in ((lost, mask & is_step & (group >= 0)), (left, ~mask & is_step & (group >= 0))):
            np.maximum.at(out, group[rows], step[rows])
        return {keys[k]: int(lost[k]) + 1 for k in np.flatnonzero(lost > left).tolist()}

    def _facts_of(self, view: View, episodes: set[EpisodeKey] | frozenset[EpisodeKey]) -> dict[int, Ranges]:
        found: dict[int, list[int]] = {}
        for writer, stop in view.cut.facts:
            log = self._store.logs[writer]
            for fact in log.fact_pieces(0, stop).parsed():
                step = fact.step
                gone = step is not None and bool(within(self._rows.get(step.writer, ()), step.seq, step.seq + 1))
                if gone or fact.episode in episodes:
                    found.setdefault(writer, []).append(fact.seq)
        return {w: ranges_of(np.array(seqs, np.int64)) for w, seqs in found.items()}

    def notes(self, reason: str) -> dict[int, Holes]:
        """Writer → what is gone of its log afterwards, where that changes."""
        out = {}
        for writer in self._rows.keys() | self._facts.keys() | self._unfollowed.keys():
            before = self._store.logs[writer].holes
            after = self._with(before, writer, reason, self._rows.get(writer, ()))
            if after is not before:
                out[writer] = after
        return out

    def _with(self, before: Holes, writer: int, reason: str, rows: Ranges = ()) -> Holes:
        hole = Hole(reason, self._now, False, rows, self._facts.get(writer, ()))
        return before.with_more(hole, unfollowed=self._unfollowed.get(writer, ()))

    def carry_out(self, notes: dict[int, Holes], reason: str) -> None:
        """Takes note of what goes, log by log, and tells readers. Rows come last: what goes along with them is found
        by them, should this be killed."""
        store = self._store
        if not notes:
            return
        reached = {key: max(steps, store.evicted.reached.get(key, 0)) for key, steps in self._reached.items()}
        if reached:
            write_evicted(store.folder, replace(store.evicted, reached={**store.evicted.reached, **reached}))
        for writer in sorted(notes):
            log = store.logs[writer]
            early = self._with(log.holes, writer, reason)
            if early is not log.holes:
                write_holes(log.folder, early)
        for writer, holes in sorted(notes.items()):
            write_holes(store.logs[writer].folder, holes)
        tell(store.folder)
        store.refresh()
        _drop_indexes(store)
