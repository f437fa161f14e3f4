"""Scale on paper: what buffers of 10^6, 10^9 and 10^12 steps come to, from constants that were measured (design/0023).

    python benchmarks/scale.py [--rows 152]

Deterministic, and done in a second: promotions and compactions are played fragment by fragment with the buffer's own
`plan`, up to 10^9 steps; beyond that the state that they have reached by then is extended.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass

from recollect.cold.compact import AUTOMATIC, full_rows, plan

# Measured on 2 x86-64 cores with a local disk; `benchmarks/storage.py` and design/0023 say how.
MANIFEST_BYTES = 165
"""of a manifest for each fragment; it is written whole by every commit"""
COMMIT_S, COMMIT_FRAGMENT_S = 0.003, 4e-6
"""of a commit without flushes, and for each fragment in it"""
SNAPSHOT_S = 0.05
"""of a small promotion beside its commit: reading the log, staging, flushing"""
PROMOTE_ROWS_S, DECODE_ROWS_S = 500_000, 1_500_000
VIEW_BYTES, FACT_BYTES = 60, 400
"""of memory for each row of a view, and for each fact that it knows"""
STORE_S = 0.03
"""of one request to an object store, in sequence; a promotion makes about `STORE_REQUESTS` of them"""
STORE_REQUESTS = 20

# Prices of an object store and a disk in its region, in dollars, as stated in design/0023.
STORE_TB_MONTH, DISK_TB_MONTH = 23.0, 80.0
PUT_1000, GET_1000 = 0.005, 0.0004
GET_BYTES = 8 << 20
"""of one request while a block is decoded"""


@dataclass
class State:
    """A buffer after so many promotions: the rows of its fragments in order, and what it took to come there."""

    fragments: list[int]
    full: int
    commits: int = 0
    manifest_bytes: int = 0
    rewritten: int = 0
    compactions: int = 0

    def promote(self, rows: int) -> None:
        while rows:
            piece = min(rows, self.full)
            self.fragments.append(piece)
            rows -= piece
        self._commit()
        small = self._small()
        groups = [(low + small, high + small) for low, high in plan(self.fragments[small:], self.full)]
        if sum(high - low - 1 for low, high in groups) >= AUTOMATIC:
            for low, high in reversed(groups):
                total = sum(self.fragments[low:high])
                files = -(-total // self.full)
                self.fragments[low:high] = [total // files + (k < total % files) for k in range(files)]
                self.rewritten += total
            self.compactions += 1
            self._commit()

    def _small(self) -> int:
        """The first of the newest fragments of which none is left alone for good."""
        k = len(self.fragments)
        while k and 2 * self.fragments[k - 1] < self.full:
            k -= 1
        return k

    def _commit(self) -> None:
        self.commits += 1
        self.manifest_bytes += MANIFEST_BYTES * len(self.fragments)


def grow(steps: int, each: int, row_bytes: int) -> State:
    """Promotions of `each` rows until there are `steps`."""
    state = State([], full_rows(row_bytes))
    for _ in range(steps // each):
        state.promote(each)
    return state


def report(row_bytes: int, stored_bytes: float) -> Iterator[str]:
    """Lines of a table.

    Args:
        row_bytes: of a row in memory; `stored_bytes` of one in a file.
    """
    yield "| steps | promotions of | fragments | manifest | commit | manifests written | rows rewritten |"
    yield "|---|---|---|---|---|---|---|"
    for steps, each in (
        (10**6, 10**3),
        (10**6, 10**5),
        (10**9, 10**4),
        (10**9, 10**5),
        (10**9, 10**6),
        (10**12, 10**6),
        (10**12, 10**8),
    ):
        played = min(steps, 10**9)
        state = grow(played, min(each, played), row_bytes)
        factor = steps // played
        count = len(state.fragments) * factor
        commit = COMMIT_S + COMMIT_FRAGMENT_S * count
        # Fragments grow in proportion to the steps, so that the manifests of all commits grow with their square.
        written = state.manifest_bytes * factor * factor
        yield (
            f"| {steps:.0e} | {each:.0e} | {count:,} | {_bytes(count * MANIFEST_BYTES)} | {_time(commit)} | "
            f"{_bytes(written)} | {state.rewritten / played:.2f} × |"
        )
    yield ""
    yield "| steps | stored | store, month | decoded on disk, month | epoch from the store | requests | decoding |"
    yield "|---|---|---|---|---|---|---|"
    for steps in (10**6, 10**9, 10**12):
        stored = steps * stored_bytes
        gets = max(1, round(stored / GET_BYTES))
        yield (
            f"| {steps:.0e} | {_bytes(stored)} | ${stored / 1e12 * STORE_TB_MONTH:,.2f} | "
            f"${steps * row_bytes / 1e12 * DISK_TB_MONTH:,.2f} | ${gets / 1000 * GET_1000:,.4f} | {gets:,} | "
            f"{_time(steps / DECODE_ROWS_S)} |"
        )
    yield ""
    yield "| steps | index of a view | facts, episodes of 200 | index of a tenth in rotation | its blocks |"
    yield "|---|---|---|---|---|"
    for steps in (10**6, 10**9, 10**12):
        yield (
            f"| {steps:.0e} | {_bytes(steps * VIEW_BYTES)} | {_bytes(steps / 200 * FACT_BYTES)} | "
            f"{_bytes(steps / 10 * VIEW_BYTES)} | {_bytes(steps / 10 * row_bytes)} |"
        )
    yield ""
    yield "| promotions of | rows/s, local disk | rows/s, object store | steps a day, object store |"
    yield "|---|---|---|---|"
    for each in (10**3, 10**5, 10**6):
        local = each / (SNAPSHOT_S + COMMIT_S + each / PROMOTE_ROWS_S)
        store = each / (SNAPSHOT_S + STORE_REQUESTS * STORE_S + each / PROMOTE_ROWS_S)
        yield f"| {each:.0e} | {local:,.0f} | {store:,.0f} | {store * 86400:.1e} |"
    yield ""
    yield "| shards of 10^12 steps | fragments each | manifest each | commit |"
    yield "|---|---|---|---|"
    fragments = len(grow(10**9, 10**6, row_bytes).fragments) * 1000
    for shards in (1, 10, 100, 1000):
        each = -(-fragments // shards)
        commit = COMMIT_S + COMMIT_FRAGMENT_S * each
        yield f"| {shards} | {each:,} | {_bytes(each * MANIFEST_BYTES)} | {_time(commit)} |"


def _bytes(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:,.3g} PB"


def _time(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1e3:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 3600 else f"{seconds / 3600:,.3g} h"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, default=152, help="bytes of a row in memory; 17 + 6 floats by default")
    parser.add_argument("--stored", type=float, default=100.0, help="bytes of a row in a file")
    options = parser.parse_args()
    for line in report(options.rows, options.stored):
        print(line)


if __name__ == "__main__":
    main()
