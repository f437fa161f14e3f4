"""The loader beside a training step: how long it is waited for, many segments against few, memory beyond mapped pages.

    python benchmarks/loader.py          prints these lines alone; `make bench` puts them into the table

`RECOLLECT_BENCH_SCALE=0.1` makes every size a tenth.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from lines import Line, verdict
from timing import in_turns, per_call_us

SCALE = float(os.environ.get("RECOLLECT_BENCH_SCALE", "1"))
BATCH = 256
NAMES = ("observation", "action", "reward", "next_observation", "terminated")


def measure(rc: Any, rounds: int) -> Iterator[Line]:
    """Lines about rows of 17 + 6 floats and a reward."""
    schema = rc.Schema(
        {
            "observation": rc.Tensor("float32", (17,)),
            "action": rc.Tensor("float32", (6,)),
            "reward": rc.Tensor("float32", ()),
        }
    )
    rows = int(500_000 * SCALE)
    with rc.create_workspace("bench-few", schema, durability="process") as few:
        _fill(few, rows, 1)
        view = few.view()
        yield from _waiting(rc, view, rounds)
        with rc.create_workspace("bench-many", schema, durability="process") as many:
            segments = int(1000 * SCALE)
            _fill(many, rows, segments)
            yield from _segments(rc, view, many.view(), segments, rounds)
    yield from _memory(rc, schema)


def _fill(workspace: Any, rows: int, writers: int) -> None:
    """Episodes of 100 steps, as many rows for each writer."""
    rng = np.random.default_rng(1)
    each = rows // writers
    for k in range(writers):
        with workspace.writer() as writer:
            for start in range(0, each, 10_000):
                n = min(10_000, each - start)
                at = start + np.arange(n)
                writer.extend(
                    {
                        "episode": k * each + at // 100,
                        "step": at % 100,
                        "observation": rng.standard_normal((n, 17), np.float32),
                        "action": rng.standard_normal((n, 6), np.float32),
                        "reward": rng.standard_normal(n, np.float32),
                        "terminated": (at % 100 == 99) | (at == each - 1),
                    }
                )


def _touch(loader: Any) -> Any:
    batch = next(loader)
    for name in NAMES:
        batch[name]
    return batch


def _waiting(rc: Any, view: Any, rounds: int) -> Iterator[Line]:
    """A training step of about 1 ms on the CPU, measured by the loader."""
    weights = np.random.default_rng(0).standard_normal((17, 17)).astype(np.float32)
    told = {}
    for threads in (0, 1):
        shares = []
        for _ in range(rounds):
            with rc.Loader(view, rc.Uniform(), batch_size=BATCH, seed=0, output="numpy", threads=threads) as loader:
                for _ in range(200):
                    batch = _touch(loader)
                    x, until = batch["observation"], time.perf_counter() + 1e-3
                    while time.perf_counter() < until:
                        x = np.tanh(x @ weights)
                shares.append(loader.stats()["waiting_share"])
        told[threads] = float(np.median(shares))
    yield Line(
        "a training loop on the CPU with a step of 1 ms waits for its batches of 256 (`loader.stats()`)",
        f"{told[0]:.1%} of its time, streamed (the default); {told[1]:.1%} with `threads=1`",
        "under 2%",
        verdict(told[0] < 0.02),
    )


def _segments(rc: Any, few: Any, many: Any, segments: int, rounds: int) -> Iterator[Line]:
    loaders = {
        name: rc.Loader(view, rc.Uniform(), batch_size=BATCH, seed=0, ahead=ahead, output="numpy")
        for name, view, ahead in (("few", few, 1), ("many", many, 1), ("few s", few, None), ("many s", many, None))
    }
    got = in_turns({n: (lambda x=x: per_call_us(lambda: _touch(x), 300)) for n, x in loaders.items()}, rounds)  # type: ignore[misc]
    ratio = got["many"] / got["few"]
    yield Line(
        f"a batch of 256 from {segments:,} segments beside as many rows of one writer",
        f"{got['many']:.0f} µs = {ratio:.2f} × ({got['few']:.0f} µs) one at a time, "
        f"{got['many s'] / got['few s']:.2f} × streamed",
        "at most 1.2 ×",
        verdict(ratio <= 1.2),
    )


def _memory(rc: Any, schema: Any) -> Iterator[Line]:
    """Private memory that sampling adds. It goes with the number of rows (what each belongs to, what follows it), so
    that small rows are the worst case; 20 GB of records of about 50 kB, such as frames, are 400,000 rows."""
    rows = int(2_000_000 * SCALE)
    with rc.create_workspace("bench-memory", schema, durability="process") as workspace:
        _fill(workspace, rows, 1)
        before = _private_bytes()
        loader = rc.Loader(workspace.view(), rc.Uniform(), batch_size=BATCH, seed=0, output="numpy")
        for _ in range(2000):
            _touch(loader)
        grown = _private_bytes() - before
        size = sum(p.stat().st_size for p in Path(workspace.path).rglob("*") if p.is_file())
        yield Line(
            f"memory beyond mapped pages, sampling {rows:,} rows ({size / 1e9:.2f} GB)",
            f"{grown / 1e6:.0f} MB = {grown / rows:.0f} bytes a row: 20 GB of records of {size / rows:.0f} bytes would "
            f"take {grown / size * 20:.1f} GB, of records of 50 kB {grown / rows * 0.4e6 / 1e9:.2f} GB",
            "under 1 GB for 20 GB",
            verdict(grown / size * 20 < 1),
        )


def _private_bytes() -> int:
    """Memory of this process that is no file's."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise RuntimeError("no RssAnon in /proc/self/status")


def main() -> None:
    import recollect as rc

    with tempfile.TemporaryDirectory(prefix="recollect-bench-") as folder:
        os.environ["RECOLLECT_HOME"] = f"{folder}/home"
        for line in measure(rc, 7):
            print(json.dumps(line.__dict__, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
