"""Samplers: what a draw and an update of priorities cost, beside cpprb.

    python benchmarks/samplers.py          prints these lines alone; `make bench` puts them into the table

`RECOLLECT_BENCH_SCALE=0.1` makes every size a tenth. The floor is the draw of as many random places, a read of their
numbers and a write of new ones, in numpy.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import numpy as np

from lines import Line, verdict
from timing import in_turns, per_call_us

SCALE = float(os.environ.get("RECOLLECT_BENCH_SCALE", "1"))
BATCH = 256
CALLS = 300


class _Rows:
    """Rows without values: what a cursor asks of a view that has no priorities given at append."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.schema = self.anchors = self.rows = self
        self.slots = None

    def __len__(self) -> int:
        return self.count

    def gather(self, slots: Any, fields: Any) -> Any:
        return {"priority": np.full(len(slots), np.nan, np.float32)}

    def role(self, name: str) -> None:
        return None

    def select(self, ranks: Any) -> Any:
        return ranks


def measure(rounds: int) -> Iterator[Line]:
    """Lines about a million rows, and about 16 million."""
    small, large = int(SCALE * 2**20), int(SCALE * 2**24)
    rng = np.random.default_rng(0)
    signals = [rng.random(BATCH) for _ in range(50)]
    contestants = {
        "tree": _tree(small, signals),
        "prioritized": _prioritized(small, signals, "proportional"),
        "rank": _prioritized(small, signals, "rank"),
        "cpprb": _cpprb(small, signals),
        "floor": _floor(small, signals),
        "tree large": _tree(large, signals),
        "prioritized large": _prioritized(large, signals, "proportional"),
    }
    got = in_turns({name: (lambda f=f: per_call_us(f, CALLS)) for name, f in contestants.items()}, rounds)  # type: ignore[misc]
    ratio, tree = got["prioritized"] / got["cpprb"], got["tree"] / got["cpprb"]
    yield Line(
        f"`Prioritized`, draw and update of {BATCH} among {small:,} rows",
        f"{got['prioritized']:.0f} µs = {ratio:.2f} × cpprb ({got['cpprb']:.0f} µs, with its gather of one float), "
        f"{got['prioritized'] / got['floor']:.1f} × the floor ({got['floor']:.0f} µs: random places in numpy); "
        f"the sum tree alone {got['tree']:.0f} µs = {tree:.2f} ×; exact ranks {got['rank']:.0f} µs = "
        f"{got['rank'] / got['cpprb']:.2f} ×",
        "at most 0.33 × cpprb",
        verdict(ratio <= 0.33),
    )
    larger = got["prioritized large"] / got["prioritized"]
    yield Line(
        f"the same among {large:,}",
        f"{got['prioritized large']:.0f} µs = {larger:.2f} ×; the sum tree alone {got['tree large']:.0f} µs = "
        f"{got['tree large'] / got['tree']:.2f} ×",
        "at most 2 ×",
        verdict(larger <= 2),
    )


def _tree(rows: int, signals: list[Any]) -> Any:
    from recollect.samplers.tree import SumTree

    tree = SumTree(rows)
    tree.load(0, np.random.default_rng(1).random(rows))
    key, turn = (np.uint64(1), np.uint64(2)), iter(range(1 << 60))

    def one() -> None:
        k = next(turn)
        places, _, _ = tree.sample(key, k, BATCH)
        tree.set(places, signals[k % len(signals)])

    return one


def _prioritized(rows: int, signals: list[Any], kind: str) -> Any:
    import recollect as rc

    cursor: Any = rc.Prioritized(kind=kind).bind(_Rows(rows), 0)  # type: ignore[arg-type]
    every = np.random.default_rng(1).random(rows)
    cursor.update(np.arange(rows), every)
    turn = iter(range(1 << 60))

    def one() -> None:
        k = next(turn)
        cursor.update(cursor.draw(k, BATCH).keys[0], signals[k % len(signals)])

    return one


def _cpprb(rows: int, signals: list[Any]) -> Any:
    import cpprb

    buffer = cpprb.PrioritizedReplayBuffer(rows, {"x": {}}, alpha=0.6)
    rng = np.random.default_rng(1)
    for start in range(0, rows, 65_536):
        count = min(65_536, rows - start)
        buffer.add(x=np.zeros(count, np.float32), priorities=rng.random(count))
    turn = iter(range(1 << 60))

    def one() -> None:
        drawn = buffer.sample(BATCH, beta=0.4)
        buffer.update_priorities(drawn["indexes"], signals[next(turn) % len(signals)])

    return one


def _floor(rows: int, signals: list[Any]) -> Any:
    weights, rng, turn = np.random.default_rng(1).random(rows), np.random.default_rng(2), iter(range(1 << 60))

    def one() -> None:
        places = rng.integers(0, rows, BATCH)
        weights[places]
        weights[places] = signals[next(turn) % len(signals)]

    return one


def main() -> None:
    for line in measure(9):
        print(json.dumps(line.__dict__, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
