"""The replay buffer: what experience takes on disk, what promotion and reading cost, beside others.

    python benchmarks/storage.py [sizes|frames|memory|s3|upkeep ...]     prints these lines alone

`RECOLLECT_BENCH_SCALE=0.1` makes every size a tenth; `RECOLLECT_BENCH_GB=0.5,10` and `RECOLLECT_BENCH_PROMOTIONS=10000`
are the sizes of the large promotions and the number of small ones.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import corpora
import storage_beside
import storage_s3
from corpora import Episode
from lines import Line, verdict
from storage_beside import size_of

SCALE = float(os.environ.get("RECOLLECT_BENCH_SCALE", "1"))
MEMORY = os.environ.get("RECOLLECT_BENCH_GB", "0.5,2").split(",")


def measure(rc: Any, folder: Path, rounds: int) -> Iterator[Line]:
    yield from sizes(rc, folder / "sizes")
    yield from frames(rc, folder / "frames", max(3, rounds // 3))
    yield from memory(folder / "memory", tuple(map(float, MEMORY)))
    yield from storage_s3.measure(rc, folder / "s3")
    yield from upkeep(rc, folder / "upkeep")


# -- bytes on disk ----------------------------------------------------------------------------------------------------


def _schema(rc: Any, episode: Episode) -> Any:
    shape = episode.observations.shape[1:]
    wide = len(shape) == 2
    action = rc.Tensor("int64") if episode.actions.ndim == 1 else rc.Tensor("float32", episode.actions.shape[1:])
    observation = rc.Frames(shape) if wide else rc.Tensor("float32", shape)
    return rc.Schema({"observation": observation, "action": action, "reward": rc.Tensor("float32")})


def _append(workspace: Any, episodes: list[Episode]) -> None:
    """Step by step, as an agent does: each has a time of its own."""
    with workspace.writer() as writer:
        for e in episodes:
            with writer.episode() as episode:
                for t in range(len(e)):
                    last = t == len(e) - 1
                    episode.append(
                        observation=e.observations[t],
                        action=e.actions[t],
                        reward=e.rewards[t],
                        next_observation=e.observations[t + 1],
                        terminated=last and e.terminated,
                        truncated=last and not e.terminated,
                    )


def sizes(rc: Any, folder: Path) -> Iterator[Line]:
    import lance

    kinds = {
        "CartPole": (corpora.cartpole, 100_000),
        "HalfCheetah-like floats": (corpora.runner, 50_000),
        "Atari frames (Breakout)": (corpora.atari, 10_000),
    }
    for name, (make, steps) in kinds.items():
        at = folder / make.__name__
        try:
            episodes = make(max(2000, int(steps * SCALE)))
        except ImportError as e:
            yield Line(f"bytes on disk, {name}", f"not measured: {e}", "within 10% of the smallest", "-")
            continue
        rows = sum(map(len, episodes))
        with rc.create_workspace(f"bench-{make.__name__}", _schema(rc, episodes[0])) as workspace:
            _append(workspace, episodes)
            workspace.snapshot(at / "buffer")
        ours = size_of(at / "buffer" / "steps.lance")
        table = lance.dataset(at / "buffer" / "steps.lance").to_table()
        others = storage_beside.sizes(at, table, episodes)
        tuned = others.pop(storage_beside.TUNED)
        least = min(v for v in others.values() if isinstance(v, int))
        told = ", ".join(
            f"{k} {v / rows:.1f}" if isinstance(v, int) else f"{k} failed ({v})" for k, v in others.items()
        )
        by_hand = f"{tuned / rows:.1f} ({ours / tuned:.2f} ×)" if isinstance(tuned, int) else f"failed ({tuned})"
        yield Line(
            f"bytes on disk a step, {name}, {rows:,} steps with ids and times",
            f"{ours / rows:.1f} = {ours / least:.2f} × the smallest of {told}; Parquet with encodings chosen by hand "
            f"for every column: {by_hand}",
            "within 10% of the smallest",
            verdict(ours <= 1.1 * least),
        )


# -- promotion --------------------------------------------------------------------------------------------------------


def frames(rc: Any, folder: Path, rounds: int) -> Iterator[Line]:
    """A promotion of 84×84 frames, beside what lance takes to write the same table."""
    import lance

    count = max(2000, int(20_000 * SCALE))
    schema = rc.Schema({"observation": rc.Frames((84, 84)), "action": rc.Tensor("int64")})
    with rc.create_workspace("bench-frames", schema, durability="process") as workspace:
        with workspace.writer() as writer:
            rng = np.random.default_rng(0)
            scene = rng.integers(0, 255, (84, 84), np.uint8)
            for start in range(0, count, 1000):
                planes = np.repeat(scene[None], 1000, axis=0)
                for k in range(1000):  # an eighth of each frame is new
                    planes[k, (k % 8) * 10 : (k % 8) * 10 + 10] = rng.integers(0, 255, (10, 84), np.uint8)
                writer.extend(
                    {
                        "episode": np.full(1000, start),
                        "step": np.arange(1000),
                        "observation": planes,
                        "action": rng.integers(0, 4, 1000),
                        "terminated": np.arange(1000) == 999,
                    }
                )
        workspace.snapshot(folder / "warm")
        table = lance.dataset(folder / "warm" / "steps.lance").to_table()
        ours, theirs = [], []
        for k in range(rounds):
            start = time.perf_counter()
            lance.write_dataset(table, folder / f"theirs-{k}", data_storage_version="2.2")
            theirs.append(count / (time.perf_counter() - start))
            done = workspace.snapshot(folder / f"ours-{k}")
            ours.append(done.rows_added / done.seconds)
    mine, lances = statistics.median(ours), statistics.median(theirs)
    raw = 84 * 84 / 1e6
    yield Line(
        f"snapshot of {count:,} 84×84 frames to local disk, synced",
        f"{mine / 1e3:.1f}k frames/s ({mine * raw:,.0f} MB/s) = {mine / lances:.2f} × lance, which flushes nothing "
        f"({lances / 1e3:.1f}k)",
        "at least 0.7 × lance",
        verdict(mine >= 0.7 * lances),
    )


_MEMORY = """
import sys, threading, time
from pathlib import Path
import recollect as rc
workspace = rc.open_workspace(sys.argv[1])

def anonymous():
    held = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    return int(held["RssAnon"].split()[0])

peak, running = 0, True
def watch():
    global peak
    while running:
        peak = max(peak, anonymous())
        time.sleep(0.005)
thread = threading.Thread(target=watch); thread.start()
done = workspace.snapshot(sys.argv[2])
running = False; thread.join()
print(done.rows_added, max(peak, anonymous()) * 1024, done.seconds)
"""


def memory(folder: Path, gigabytes: tuple[float, ...]) -> Iterator[Line]:
    """Memory of its own that a promotion takes at most, in a process that does nothing else."""
    told, peaks = [], []
    for size in gigabytes:
        size *= SCALE
        rows, peak, seconds = promote_large(folder / f"{size}", size)
        peaks.append(peak)
        told.append(f"{peak / 1e6:,.0f} MB for {size:.3g} GB ({rows:,} rows, {size * 1e3 / seconds:,.0f} MB/s)")
    yield Line(
        "memory of a promotion at its peak, beside the mapped log, 84×84 frames and 23 floats a row",
        "; ".join(told),
        "under 500 MB for 10 GB",
        verdict(max(peaks) < 5e8 and peaks[-1] < 1.5 * peaks[0] + 5e7),
    )


def promote_large(folder: Path, gigabytes: float) -> tuple[int, int, float]:
    """Rows, bytes of anonymous memory at the peak, seconds."""
    import recollect as rc

    schema = rc.Schema({"observation": {"camera": rc.Frames((84, 84)), "joints": rc.Tensor("float32", (23,))}})
    count = max(1000, int(gigabytes * 1e9 / (84 * 84 + 23 * 4 + 64)) // 1000 * 1000)
    name = f"bench-memory-{time.time_ns()}"
    rng = np.random.default_rng(0)
    planes = rng.integers(0, 255, (1000, 84, 84), np.uint8)
    planes[:, 10:] = planes[0, 10:]
    with rc.create_workspace(name, schema, durability="process") as workspace, workspace.writer() as writer:
        for start in range(0, count, 1000):
            joints = rng.standard_normal((1000, 23), np.float32)
            writer.extend(
                {
                    "episode": np.full(1000, start),
                    "step": np.arange(1000),
                    "observation": {"camera": planes, "joints": joints},
                    "terminated": np.arange(1000) == 999,
                }
            )
    command = [sys.executable, "-c", _MEMORY, name, str(folder)]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    rows, peak, seconds = run.stdout.split()
    return int(rows), int(peak), float(seconds)


# -- many promotions --------------------------------------------------------------------------------------------------


def upkeep(rc: Any, folder: Path) -> Iterator[Line]:
    """Promotions of 1,000 rows, with the compactions that they make by themselves; the log keeps its newest rows."""
    count = int(os.environ.get("RECOLLECT_BENCH_PROMOTIONS", max(300, int(1500 * SCALE))))
    schema = rc.Schema({"observation": rc.Tensor("float32", (4,)), "reward": rc.Tensor("float32")})
    keep = rc.Keep(rows=100_000)
    seconds = []
    with rc.create_workspace("bench-upkeep", schema, keep=keep, durability="process") as workspace:
        writer, rng = workspace.writer(), np.random.default_rng(0)
        for k in range(count):
            step = np.arange(1000)
            writer.extend(
                {
                    "episode": k * 5 + step // 200,
                    "step": step % 200,
                    "observation": rng.standard_normal((1000, 4), np.float32),
                    "reward": rng.standard_normal(1000, np.float32),
                    "terminated": step % 200 == 199,
                }
            )
            start = time.perf_counter()
            workspace.snapshot(folder / "buffer")
            seconds.append(time.perf_counter() - start)
        with rc.open_buffer(folder / "buffer") as buffer:
            held = buffer.versions()[-1].rows
    assert held == count * 1000
    first, last = sum(seconds[:100]), sum(seconds[-100:])
    yield Line(
        f"{count:,} promotions of 1,000 rows, compactions among them",
        f"the last 100 took {last:.2f} s = {last / first:.2f} × the first 100 ({first:.2f} s); "
        f"median {statistics.median(seconds) * 1e3:.0f} ms, largest {max(seconds) * 1e3:,.0f} ms",
        "at most 2 ×",
        verdict(last <= 2 * first),
    )


def main() -> None:
    import recollect as rc

    with tempfile.TemporaryDirectory(prefix="recollect-bench-", dir=os.environ.get("RECOLLECT_BENCH_DIR")) as name:
        folder = Path(name)
        os.environ["RECOLLECT_HOME"], os.environ["RECOLLECT_CACHE"] = f"{folder}/home", f"{folder}/cache"
        parts = {
            "sizes": lambda: sizes(rc, folder / "sizes"),
            "frames": lambda: frames(rc, folder / "frames", 5),
            "memory": lambda: memory(folder / "memory", tuple(map(float, MEMORY))),
            "s3": lambda: storage_s3.measure(rc, folder / "s3"),
            "upkeep": lambda: upkeep(rc, folder / "upkeep"),
        }
        for part in sys.argv[1:] or parts:
            for line in parts[part]():
                print(json.dumps(line.__dict__, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
