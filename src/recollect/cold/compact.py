"""Compaction: many small fragments into few, without touching what is large.

A row is rewritten only into a fragment that is at least `GROWTH` times as large as the one it was in, or full, or
where rows beside it were deleted, which leave with the old file. So no row is otherwise rewritten more than `log(full
/ first size) / log(GROWTH)` times, and a snapshot of 1% does not make the other 99% be written, read and decoded
anew. Rows keep their order: a group's fragments lie side by side, and the new ones take the last of their numbers,
since lance orders fragments by number (design/0016).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import lance

from recollect.cold.commit import commit, stage
from recollect.cold.dataset import Datasets
from recollect.cold.faults import store_errors
from recollect.cold.leases import Leases
from recollect.cold.location import Location
from recollect.errors import ConflictError

GROWTH = 4
AUTOMATIC = 64
"""Fragments that are not full, at which a snapshot compacts."""
SMALL_LIFETIME = timedelta(hours=1)
"""Versions of the small datasets are kept so long: readers open the newest, and read it at once."""
LEASE_S = 900.0
BATCH_BYTES = 16 << 20
MAX_BYTES = 256 << 20
MAX_ROWS = 1 << 20
SMALL_ROW_BYTES = 512
"""About what a fact takes."""


@dataclass(frozen=True)
class Compaction:
    """What a compaction did.

    Attributes:
        version: the version that it made, None when it made none.
        fragments_before, fragments_after: of the newest version.
        rows: rows that were rewritten; `bytes` what their new files take.
        seconds: wall time.
        note: why nothing was done, "" otherwise.
    """

    version: int | None
    fragments_before: int
    fragments_after: int
    rows: int
    bytes: int
    seconds: float
    note: str = ""


def plan(sizes: Sequence[int], full: int) -> list[tuple[int, int]]:
    """Which neighbouring fragments to merge: half-open ranges of positions, in order.

    Args:
        sizes: rows of each fragment, in view order.
        full: rows of a full fragment. What has at least half of that is never rewritten.
    """
    out: list[tuple[int, int]] = []
    stretches, start = [], 0
    for k, size in enumerate([*sizes, full]):
        if 2 * size >= full:
            stretches.append((start, k))
            start = k + 1
    while stretches:
        low, high = stretches.pop()
        if high - low < 2:
            continue
        total, largest = sum(sizes[low:high]), max(sizes[low:high])
        if total >= GROWTH * largest or total >= full:
            out.append((low, high))
            continue
        at = low + list(sizes[low:high]).index(largest)
        stretches += [(low, at), (at + 1, high)]
    return sorted(out)


def due(data: Datasets, row_bytes: int) -> bool:
    """Whether a snapshot should compact: there are `AUTOMATIC` fragments that compaction would take away."""
    groups = plan(_row_counts(data.steps), full_rows(row_bytes))
    return sum(high - low - 1 for low, high in groups) >= AUTOMATIC


def full_rows(row_bytes: int) -> int:
    """Rows of a full fragment, by the bytes of a row."""
    return max(1024, min(MAX_ROWS, MAX_BYTES // max(row_bytes, 1)))


def compact(data: Datasets, row_bytes: int, *, progress: Callable[[int, int], None] | None = None) -> Compaction:
    """Merges small fragments of the newest version, and those of facts and tails.

    It holds a lease, so that compactors don't work twice; nothing depends on it. A promotion that lands meanwhile
    refuses the compaction: it tries once more, and otherwise leaves it to the next.

    Args:
        row_bytes: about how large a row is; decides how many make a full fragment.
        progress: called with rows rewritten and rows to rewrite.

    Raises:
        StoreError, DiskFull: the store cannot be reached or written. What was not committed is not seen.
    """
    started = time.perf_counter()
    with Leases(data.location).hold("compact", LEASE_S) as held:
        if not held:
            count = len(_row_counts(data.steps))
            return Compaction(None, count, count, 0, 0, time.perf_counter() - started, "another one is at work")
        done = _compact_steps(data, row_bytes, progress, started)
        for name in ("facts", "tails"):
            _compact_small(data, name)
    return done


def _compact_steps(
    data: Datasets, row_bytes: int, progress: Callable[[int, int], None] | None, started: float
) -> Compaction:
    full = full_rows(row_bytes)
    before = 0
    for _ in range(2):
        data.refresh()
        before = len(data.steps.get_fragments())
        made = _merge(data, "steps", data.steps, row_bytes, full, progress)
        if made is None:
            return Compaction(None, before, before, 0, 0, time.perf_counter() - started, "nothing to merge")
        operation, rows, size = made
        try:
            data.steps = commit(data.location, "steps", operation, data.steps.version)
        except ConflictError:
            continue
        after = len(data.steps.get_fragments())
        return Compaction(int(data.steps.version), before, after, rows, size, time.perf_counter() - started)
    note = "snapshots came first; run it again for the rest"
    return Compaction(None, before, before, 0, 0, time.perf_counter() - started, note)


def _compact_small(data: Datasets, name: str) -> None:
    """Facts and tails: appends go on beside it. Their old versions are nobody's."""
    dataset = data.dataset(name)
    if len(dataset.get_fragments()) >= AUTOMATIC:
        made = _merge(data, name, dataset, SMALL_ROW_BYTES, full_rows(SMALL_ROW_BYTES), None)
        if made is not None:
            with contextlib.suppress(ConflictError):
                commit(data.location, name, made[0], dataset.version, max_retries=5)
    with store_errors("cleaning up", data.location):
        dataset.cleanup_old_versions(older_than=SMALL_LIFETIME, error_if_tagged_old_versions=False)


def _merge(
    data: Datasets,
    name: str,
    base: Any,
    row_bytes: int,
    full: int,
    progress: Callable[[int, int], None] | None,
) -> tuple[Any, int, int] | None:
    """Writes the merged fragments of a version; the operation that puts them in, rows, bytes. None for nothing."""
    fragments = base.get_fragments()
    groups = _with_deletions(plan(_row_counts(base), full), fragments)
    total = sum(f.metadata.num_rows for low, high in groups for f in fragments[low:high])
    rewritten, rows, size = [], 0, 0
    for low, high in groups:
        old = fragments[low:high]
        made = _rewrite(data.location, name, base, old, row_bytes, full)
        rewritten.append(lance.LanceOperation.RewriteGroup([f.metadata for f in old], made))
        rows += sum(f.num_rows for f in made)
        size += sum(f.file_size_bytes or 0 for m in made for f in m.files)
        if progress is not None:
            progress(rows, total)
    return (lance.LanceOperation.Rewrite(rewritten, []), rows, size) if groups else None


def _with_deletions(groups: Sequence[tuple[int, int]], fragments: Sequence[Any]) -> list[tuple[int, int]]:
    """And every other fragment that has deleted rows, by itself: they would stay in its files for good.

    Lance takes the number 0 for none, and puts a new fragment of it at the end. So the fragment of that number goes
    together with the next one.
    """
    out = list(groups)
    taken = {k for low, high in groups for k in range(low, high)}
    for k, fragment in enumerate(fragments):
        if not fragment.metadata.deletion_file or k in taken:
            continue
        low, high = k, k + 1
        if fragment.fragment_id == 0 and high < len(fragments):
            high = next((b for a, b in out if a == high), high + 1)
            out = [(a, b) for a, b in out if a >= high]
        taken.update(range(low, high))
        out.append((low, high))
    return sorted(out)


def _rewrite(location: Location, name: str, base: Any, old: Sequence[Any], row_bytes: int, full: int) -> list[Any]:
    """New fragments with the rows of `old` in their order, numbered so that they stay in their place."""
    rows = sum(f.metadata.num_rows for f in old)
    files = max(1, -(-rows // full))
    if old[0].fragment_id == 0 and len(old) > 1:
        files = min(files, len(old) - 1)  # none of the new ones may get that number
    with store_errors("reading buffer", location):
        batches = base.scanner(
            fragments=list(old),
            scan_in_order=True,
            batch_size=max(1, min(rows, BATCH_BYTES // max(row_bytes, 1))),
            batch_readahead=2,
            fragment_readahead=2,
        ).to_reader()
    made = stage(location, name, batches, base.schema, max_rows=max(1, -(-rows // files)))
    for fragment, number in zip(made, [f.fragment_id for f in old][-len(made) :], strict=True):
        fragment.id = number
    return made


def _row_counts(steps: Any) -> list[int]:
    return [f.metadata.num_rows for f in steps.get_fragments()]
