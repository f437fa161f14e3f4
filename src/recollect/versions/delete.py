"""Deletion from a buffer: rows are gone from the newest version of every line that holds them, and from all later ones.

One commit for each line, on exactly the version that was read: deletion files for the fragments concerned, and an entry
of the history that says which rows went, why and when (never their values). The rows stay below the watermark,
so that no snapshot brings them again (design/0025).
"""

from __future__ import annotations

import os
import random
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recollect.cache.blocks import BlockCache
from recollect.cold.branches import lines
from recollect.cold.dataset import PIN_PREFIX, Datasets
from recollect.cold.deletions import stage_deletions
from recollect.cold.faults import Backoff, store_errors
from recollect.cold.fold import Promotion
from recollect.cold.history import History
from recollect.errors import ArgumentError, ConflictError, NotFound, StoreError, StoreUnavailable
from recollect.hot.format.holes import ranges_of
from recollect.versions.chosen import Chosen, Episodes, StepIds, chosen, facts_of, of_episodes, within_ranges
from recollect.view import Cut, Extent
from recollect.view.ids import Bool
from recollect.view.reach import Ranges, by_writer, union, within

ATTEMPTS = 50
PASSES = 10
_COLUMNS = ["writer", "seq", "episode_writer", "episode", "step", "final"]


@dataclass(frozen=True)
class BufferDeletion:
    """What was deleted from a buffer.

    Attributes:
        uri: the buffer; `reason` why; `dry_run` whether nothing was done.
        rows: how many rows, final rows that went with their steps included; `ids` which, on any line.
        episodes: how many episodes lost rows; `whole_episodes` of them all that a line had.
        facts: facts that went, about deleted steps and whole episodes.
        versions: branch → the version that lacks the rows; of the lines that were changed. Empty for a dry run.
        tags: tags whose versions hold rows of these still; `pins` how many pins do.
        workspaces: workspaces of this machine that hold rows of these still.
    """

    uri: str
    reason: str
    dry_run: bool
    rows: int
    ids: tuple[Extent, ...]
    episodes: int
    whole_episodes: int
    facts: int
    versions: dict[str, int] = field(default_factory=dict)
    tags: tuple[str, ...] = ()
    pins: int = 0
    workspaces: tuple[str, ...] = ()

    def __str__(self) -> str:
        would = "would delete" if self.dry_run else "deleted"
        whole = f" ({self.whole_episodes:,} whole)" if self.whole_episodes else ""
        on = ", ".join(f"{branch} is version {v}" for branch, v in sorted(self.versions.items()))
        return (
            f"{would} {self.rows:,} rows of {self.episodes:,} episodes{whole} and {self.facts:,} facts"
            f"{f': {on}' if on else ''}"
        )


def delete_rows(
    data: Datasets,
    cache: BlockCache,
    reason: str,
    *,
    ids: StepIds | None = None,
    episodes: Episodes | None = None,
    where: str | None = None,
    dry_run: bool = False,
) -> BufferDeletion:
    """Deletes rows from every line of a buffer; see `Buffer.delete`. Which ones is decided once, at the beginning."""
    if not isinstance(reason, str) or not reason.strip():
        raise ArgumentError("a deletion has a reason", value=reason, remedy='Pass reason="why it has to go"')
    data.refresh()
    at = _lines(data)
    work = _Deletion(chosen(at, cache, ids, episodes, where), cache, reason, dry_run)
    for _ in range(PASSES):  # a branch may be made of a version that had the rows still while we are at it
        changed = [work.line(line) for line in at]
        if dry_run or not any(changed):
            break
        at = _lines(data)
    data.refresh()
    tags, pins = _still_held(_lines(data), work.ids)
    return BufferDeletion(
        data.location.uri, reason, dry_run, sum(e.stop - e.start for e in work.ids), work.ids, len(work.touched),
        len(work.whole), len(work.facts), work.versions, tags, pins,
    )  # fmt: skip


def _lines(data: Datasets) -> list[Datasets]:
    """Every line at its newest version, that of `data` first."""
    return sorted(lines(data), key=lambda line: (line is not data, line.location.branch))


def _still_held(all_lines: Sequence[Datasets], ids: Sequence[Extent]) -> tuple[tuple[str, ...], int]:
    """The tags and the number of pins whose versions hold some of the rows."""
    wanted = {w: union(ranges) for w, ranges in by_writer(ids).items()}
    marks: set[str] = set()
    for line in all_lines:
        holds: dict[int, bool] = {}
        for name, version in line.marks().items() if wanted else ():
            if version not in holds:
                try:
                    holds[version] = _holds(line.history(line.at_version(version)).cut, wanted)
                except NotFound:
                    continue  # the tag was taken away meanwhile
            if holds[version]:
                marks.add(name)
    tags = tuple(sorted(name for name in marks if not name.startswith(PIN_PREFIX)))
    return tags, len(marks) - len(tags)


def _holds(cut: Cut, wanted: dict[int, Ranges]) -> bool:
    return any(within(wanted.get(e.writer, ()), e.start, e.stop) for e in cut.extents)


@dataclass(frozen=True)
class _Rows:
    """Rows of one fragment, or of all: `[n]` each."""

    columns: dict[str, NDArray[Any]]

    def of(self, mask: Any) -> _Rows:
        return _Rows({name: values[mask] for name, values in self.columns.items()})

    def __getitem__(self, name: str) -> NDArray[Any]:
        return self.columns[name]


@dataclass(frozen=True)
class _Found:
    """What goes from one version.

    Attributes:
        places: index of a fragment → places of its rows.
        rows: how many; `ids` which; `unfollowed` steps that stay while their successors go.
        touched, whole: episodes that lose rows, and those of them that lose all.
        forgotten: episodes whose facts go; `facts` which, by writer and number.
    """

    places: dict[int, NDArray[np.int64]]
    rows: int
    ids: tuple[Extent, ...]
    unfollowed: tuple[Extent, ...]
    touched: set[tuple[int, int]]
    whole: set[tuple[int, int]]
    forgotten: set[tuple[int, int]]
    facts: set[tuple[int, int]]


class _Deletion:
    def __init__(self, wanted: Chosen, cache: BlockCache, reason: str, dry_run: bool) -> None:
        self.wanted, self.cache, self.reason, self.dry_run = wanted, cache, reason, dry_run
        self.versions: dict[str, int] = {}
        self.ids: tuple[Extent, ...] = ()
        self.touched: set[tuple[int, int]] = set()
        self.whole: set[tuple[int, int]] = set()
        self.facts: set[tuple[int, int]] = set()
        self.seen: dict[tuple[Any, ...], _Rows] = {}
        """What was read of a fragment, by its files and what was asked for: others may commit in between."""

    def line(self, data: Datasets) -> bool:
        """Deletes from one line; whether there was anything. A branch that is deleted meanwhile has nothing."""
        tried: dict[str, tuple[int, _Found]] = {}
        backoff = Backoff()
        while True:
            try:
                return self._line(data, tried)
            except NotFound:
                if not data.location.branch:
                    raise
                return False
            except StoreUnavailable as e:
                backoff.wait(e)  # what came of it is unknown: the next round looks first

    def _line(self, data: Datasets, tried: dict[str, tuple[int, _Found]]) -> bool:
        for attempt in range(ATTEMPTS):
            data.refresh()
            steps = data.steps
            history = data.history(steps)
            for link, (base, found) in tried.items():
                landed = history.find(link, base)
                if landed is not None:
                    return self._done(data, found, data.version_of(landed))
            if history.head is None:
                return False
            again = self._found(data, steps, history)
            if again is None:
                return False
            if self.dry_run:
                return self._done(data, again, None)
            version = self._commit(data, steps, history, again, tried)
            if version is not None:
                return self._done(data, again, version)
            time.sleep(random.SystemRandom().uniform(0.005, 0.02) * min(attempt + 1, 20))
        raise ConflictError(
            f"deleting from {data.location}: others committed first {ATTEMPTS} times",
            remedy="Run it again: what is deleted already is passed over",
        )

    def _done(self, data: Datasets, found: _Found, version: int | None) -> bool:
        mine = by_writer((*self.ids, *found.ids))
        self.ids = tuple(Extent(w, a, b) for w in sorted(mine) for a, b in union(mine[w]))
        self.touched |= found.touched
        self.whole |= found.whole
        self.facts |= found.facts
        if version is not None:
            self.versions[data.location.branch_name] = version
        return True

    # -- what goes -----------------------------------------------------------------------------------------

    def _found(self, data: Datasets, steps: Any, history: History) -> _Found | None:
        """What goes from a version, None for nothing.

        Reads the system columns twice: the rows that are meant, then all rows of their episodes, of which about 50
        bytes each are kept.
        """
        wanted, gone = self.wanted, history.gone
        named = {(key.writer, key.counter) for key in wanted.episodes} - gone.forgotten
        if not named and not _holds(history.cut, wanted.rows):
            return None
        touched: set[tuple[int, int]] = set()
        for _, rows in self._read(data, steps, ("hit",), self._hit):
            touched.update(zip(rows["episode_writer"].tolist(), rows["episode"].tolist(), strict=True))

        def of_touched(rows: _Rows) -> Bool:
            return of_episodes(rows["episode_writer"], rows["episode"], touched)

        parts = list(self._read(data, steps, ("episodes", frozenset(touched)), of_touched))
        if not any(len(p["seq"]) for _, p in parts):
            facts = self._known(data, named, ())
            return _Found({}, 0, (), (), set(), set(), named, facts) if facts else None
        rows = _Rows({n: np.concatenate([p[n] for _, p in parts]) for n in (*_COLUMNS, "place")})
        fragment = np.concatenate([np.full(len(p["seq"]), index) for index, p in parts])
        goes, unfollowed, whole = _closed(rows, self._hit(rows))
        ids, episodes = _extents(rows.of(goes)), named | whole
        places = {int(k): rows["place"][goes & (fragment == k)] for k in np.unique(fragment[goes]).tolist()}
        facts = self._known(data, episodes, ids)
        return _Found(places, int(goes.sum()), ids, _extents(rows.of(unfollowed)), touched, whole, episodes, facts)

    def _hit(self, rows: _Rows) -> Bool:
        named = {(key.writer, key.counter) for key in self.wanted.episodes}
        out: Bool = within_ranges(rows["writer"], rows["seq"], self.wanted.rows)
        return out | of_episodes(rows["episode_writer"], rows["episode"], named)

    def _read(
        self, data: Datasets, steps: Any, what: tuple[Any, ...], keep: Callable[[_Rows], Bool]
    ) -> Iterator[tuple[int, _Rows]]:
        """(index, rows) of each fragment: those that `keep` chooses."""
        for index, fragment in enumerate(steps.get_fragments()):
            meta = fragment.metadata
            key = (*what, *(f.path for f in meta.files), str(meta.deletion_file), int(fragment.fragment_id))
            if key not in self.seen:
                parts = [_Rows({n: np.empty(0, np.int64) for n in (*_COLUMNS, "place")})]
                with store_errors("reading buffer", data.location):
                    for batch in fragment.to_batches(columns=_COLUMNS, with_row_address=True):
                        rows = {n: batch.column(n).to_numpy(zero_copy_only=False) for n in _COLUMNS}
                        rows["place"] = (batch.column("_rowaddr").to_numpy() & np.uint64(0xFFFFFFFF)).astype(np.int64)
                        held = _Rows(rows)
                        parts.append(held.of(keep(held)))
                self.seen[key] = _Rows({n: np.concatenate([p[n] for p in parts]) for n in (*_COLUMNS, "place")})
            yield index, self.seen[key]

    def _known(self, data: Datasets, episodes: set[tuple[int, int]], ids: tuple[Extent, ...]) -> set[tuple[int, int]]:
        """Writer and number of the facts about some episodes, and about the steps of `ids`."""
        deleted = {w: union(ranges) for w, ranges in by_writer(ids).items()}
        return {
            (f.writer, f.seq)
            for told in facts_of(data, self.cache).history.values()
            for f in told
            if tuple(f.episode) in episodes
            or (f.step is not None and within(deleted.get(f.step.writer, ()), f.step.seq, f.step.seq + 1))
        }

    # -- committing ----------------------------------------------------------------------------------------

    def _commit(
        self, data: Datasets, steps: Any, history: History, found: _Found, tried: dict[str, tuple[int, _Found]]
    ) -> int | None:
        """One attempt. The new version, or None when another commit took its place."""
        head = history.head
        assert head is not None
        name = uuid.uuid4().hex
        files = stage_deletions(data, steps, found.places)
        record = {
            **{key: [] for key in ("extents", "facts", "gaps", "held", "staged")},
            "missing_rows": 0,
            "missing_facts": 0,
            "counts": {"open_episodes": 0, "held_episodes": 0, "held_rows": 0},
            "statistics": head.record["statistics"],
            "schema": data.schema_of(steps).fingerprint,
            "lineage": {
                "pid": os.getpid(),
                "workspace_name": "",
                "finished_only": False,
                "where": None,
                "commit": None,
                "reason": self.reason,
            },
            "deleted": [[str(e.writer), e.start, e.stop] for e in found.ids],
            "unfollowed": [[str(e.writer), e.start, e.stop] for e in found.unfollowed],
            "forgotten": [[str(w), counter] for w, counter in sorted(found.forgotten)],
        }
        total = head.total_rows - found.rows
        link = Promotion(
            name, head.id, uuid.uuid4().hex, int(steps.version), time.time_ns(), "", "", -found.rows, total, record
        )
        tried[name] = int(steps.version), found
        data.record(link, history)
        try:
            return data.commit_steps(steps, [], name, files)
        except ConflictError:
            return None
        except StoreError:
            data.refresh()
            landed = data.history().find(name, int(steps.version))
            if landed is None:
                raise
            return data.version_of(landed)


def _closed(rows: _Rows, hit: Bool) -> tuple[Bool, Bool, set[tuple[int, int]]]:
    """From the rows of some episodes those that go, those that lose their successor, and the episodes that go whole.

    A step takes along the row that only holds its next observation, and such a row the step before it.
    """
    keys = np.stack([rows["episode_writer"], rows["episode"]], axis=1)
    held, group = np.unique(keys, axis=0, return_inverse=True)
    group = group.reshape(-1)
    final, step = rows["final"].astype(np.bool_), rows["step"].astype(np.int64)
    code = (group << 33) + step + 1
    goes = hit | (final & np.isin(code - 1, code[hit & ~final]))
    goes |= ~final & np.isin(code + 1, code[goes & final])
    unfollowed = ~final & ~goes & np.isin(code + 1, code[goes & ~final])
    count = len(held)
    whole = np.bincount(group[goes], minlength=count) == np.bincount(group, minlength=count)
    return goes, unfollowed, {(w, c) for w, c in held[whole].tolist()}


def _extents(rows: _Rows) -> tuple[Extent, ...]:
    """Ids as extents, by writer and number."""
    writers, seq = rows["writer"], rows["seq"]
    return tuple(Extent(w, a, b) for w in np.unique(writers).tolist() for a, b in ranges_of(seq[writers == w]))


__all__ = ["BufferDeletion", "delete_rows"]
