"""Recall in a big workspace: `recent`, `episode(id)`, opening it, and what the catalog costs.

    python benchmarks/hot_reads.py [ROWS]        prints the table; `measure` gives its lines to benchmarks/run.py

The workspace is made in blocks of 2,000 rows and is gone afterwards. Every figure is of one run on one machine.
"""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from lines import Line, verdict

BLOCK = 2_000
SMALL = 100_000
STEPS = 10
NAMED = 10
"""One episode in so many has an id of the caller's."""
OPENING = """
import re, sys, time
import numpy
begin = time.perf_counter()
import recollect as rc
rc.open_workspace
loaded = time.perf_counter()
ws = rc.open_workspace(sys.argv[1])
rows = ws.cut().rows
opened = time.perf_counter()
private_kb = int(re.search("RssAnon:\\s+(\\d+)", open("/proc/self/status").read())[1])
ws.recent(32)
print(1e3 * (loaded - begin), 1e3 * (opened - loaded), 1e3 * (time.perf_counter() - opened), private_kb)
"""


def measure(rc: Any, rows: int = 10_000_000, calls: int = 2_000) -> list[Line]:
    """Lines for the table."""

    small, big = SMALL, max(rows, 2 * SMALL)
    fill(rc, "reads-small", small)
    fill(rc, "reads", big)
    opened = {name: [opening(name) for _ in range(5)] for name in ("reads-small", "reads")}
    ws = rc.open_workspace("reads")
    begin = time.perf_counter()
    ws.episode(f"task-{big // STEPS // NAMED // 2}")
    build = time.perf_counter() - begin
    size = (ws.path / "catalog.sqlite").stat().st_size
    episodes = big // STEPS
    rng = random.Random(0)
    writer = int(ws.recent(1)[0].episode.writer)
    by_id = quantiles(lambda: ws.episode(f"task-{rng.randrange(episodes // NAMED)}"), calls)
    by_key = quantiles(lambda: ws.episode(f"e{writer}.{rng.randrange(episodes)}"), calls)
    recent = quantiles(lambda: ws.recent(32), calls)
    growing = while_growing(ws, episodes, rng, calls)
    added = catching_up(ws)
    ws.close()
    for name in ("reads", "reads-small"):
        rc.delete_workspace(name)
    loaded, milliseconds, first, kilobytes = (sorted(x)[2] for x in zip(*opened["reads"], strict=True))
    grown = kilobytes - sorted(x[3] for x in opened["reads-small"])[2]
    return [
        Line(
            f"open {big:,} rows",
            f"{milliseconds:.1f} ms, after {loaded:.0f} ms of imports; first `recent(32)` {first:.0f} ms more, numba's "
            f"import included; {grown / 1024:+.1f} MiB of private memory against {small:,}",
            "under 300 ms, memory independent of rows",
            verdict(loaded + milliseconds < 300 and grown < 4 << 10),
        ),
        Line(f"`recent(32)` at {big:,} rows", shown(recent), "p99 under 1 ms", verdict(recent[1] < 1)),
        Line(f"`episode(id)` among {episodes:,}, named", shown(by_id), "p99 under 2 ms", verdict(by_id[1] < 2)),
        Line("the same by default id", shown(by_key), "p99 under 2 ms", verdict(by_key[1] < 2)),
        Line("the same, ten steps appended before each", shown(growing)),
        Line(
            "catalog",
            f"made in {build:.1f} s ({1e6 * build / big:.2f} µs a row), {size / big:.1f} bytes a row; "
            f"{added:.2f} µs a row when caught up",
        ),
    ]


def fill(rc: Any, name: str, rows: int) -> None:
    """Episodes of ten steps of about 120 bytes, each tenth with an id of the caller's."""
    schema = rc.Schema(
        {"observation": rc.Tensor("float32", (12,)), "action": rc.Tensor("float32"), "reward": rc.Tensor("float32")}
    )
    index = np.arange(BLOCK)
    with rc.create_workspace(name, schema, durability="process") as ws, ws.writer() as writer:
        for at in range(0, rows, BLOCK):
            episode = (at + index) // STEPS
            writer.extend(
                {
                    "episode": np.array([k if k % NAMED else f"task-{k // NAMED}" for k in episode.tolist()], object),
                    "step": index % STEPS,
                    "observation": np.zeros((BLOCK, 12), np.float32),
                    "action": np.zeros(BLOCK, np.float32),
                    "reward": np.ones(BLOCK, np.float32),
                    "terminated": index % STEPS == STEPS - 1,
                }
            )


def opening(name: str) -> tuple[float, float, float, float]:
    """A fresh process: ms of imports, ms to open and see the cut, ms of the first `recent`, KiB of private memory once
    open: pages of the log itself, which the kernel maps around those that are touched, are shared with others."""
    out = subprocess.run([sys.executable, "-c", OPENING, name], check=True, capture_output=True, text=True).stdout
    loaded, opened, first, kilobytes = map(float, out.split())
    return loaded, opened, first, kilobytes


def quantiles(
    call: Callable[[], Any], calls: int, before: Callable[[], Any] = lambda: None
) -> tuple[float, float, float]:
    """Median and 99th percentile, ms, and the 99th of the thread's own time, which other processes do not add to."""
    for _ in range(50):
        call()
    times, own = [], []
    for _ in range(calls):
        before()
        begin, mine = time.perf_counter(), time.thread_time()
        call()
        own.append(1e3 * (time.thread_time() - mine))
        times.append(1e3 * (time.perf_counter() - begin))
    return float(np.median(times)), float(np.quantile(times, 0.99)), float(np.quantile(own, 0.99))


def while_growing(ws: Any, episodes: int, rng: random.Random, calls: int) -> tuple[float, float, float]:
    """`episode(id)` with ten more steps before each call, which are not in the catalog yet."""
    seen = np.zeros(12, np.float32)
    with ws.writer() as writer:

        def write() -> None:
            with writer.episode() as episode:
                for step in range(STEPS):
                    episode.append(observation=seen, action=0.0, reward=1.0, terminated=step == STEPS - 1)

        return quantiles(lambda: ws.episode(f"task-{rng.randrange(episodes // NAMED)}"), calls, write)


def catching_up(ws: Any) -> float:
    """µs a row to bring the catalog up to date after each 20,000 rows."""
    schema = ws.schema
    index = np.arange(BLOCK)
    spent = 0.0
    with ws.writer() as writer:
        for block in range(100):
            columns = {leaf.path: np.zeros((BLOCK, *leaf.field.shape), leaf.field.dtype) for leaf in schema.leaves}
            writer.extend({"episode": block * BLOCK + index // STEPS, "step": index % STEPS, **columns})
            if block % 10 == 9:
                begin = time.perf_counter()
                ws.episode("task-0")
                spent += time.perf_counter() - begin
    return 1e6 * spent / (100 * BLOCK)


def shown(quantile: tuple[float, float, float]) -> str:
    return f"median {quantile[0]:.2f} ms, p99 {quantile[1]:.2f} ms ({quantile[2]:.2f} of its own)"


def main() -> None:
    rows = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000_000
    with tempfile.TemporaryDirectory(prefix="recollect-reads-") as folder:
        os.environ["RECOLLECT_HOME"] = folder
        import recollect as rc

        for line in measure(rc, rows):
            print(" | ".join((line.work, line.measured, line.goal, line.met)))


if __name__ == "__main__":
    main()
