"""Measures what the README promises, peers in the same run, and writes benchmarks/results.md.

    make bench            or    python benchmarks/run.py [--quick]

Goals are goals: the table shows what was measured, met or not. Only ratios within one run mean anything.
"""

from __future__ import annotations

import argparse
import datetime
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import cliffwalk
import hot
import hot_beside
import hot_reads
import loader
import samplers
import storage
import transforms
from lines import Line, verdict
from timing import in_turns, per_call_us

HERE = Path(__file__).parent
ROWS = 500_000
EPISODE = 200
BATCH = 256


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="fewer repetitions; prints, writes nothing")
    quick = parser.parse_args().quick
    with tempfile.TemporaryDirectory(prefix="recollect-bench-") as folder:
        os.environ["RECOLLECT_HOME"] = f"{folder}/home"
        os.environ["RECOLLECT_CACHE"] = f"{folder}/cache"
        lines = list(everything(Path(folder), 5 if quick else 15))
    text = table(lines)
    print(text)
    if not quick:
        (HERE / "results.md").write_text(text)


def everything(folder: Path, rounds: int) -> Iterator[Line]:
    import recollect as rc

    schema = rc.Schema(
        {
            "observation": rc.Tensor("float32", (17,)),
            "action": rc.Tensor("float32", (6,)),
            "reward": rc.Tensor("float32", ()),
        }
    )
    yield from append(rc, schema, rounds)
    workspace = rc.create_workspace("bench", schema, durability="process")
    fill(workspace)
    yield from snapshot(rc, workspace, folder, max(3, rounds // 3))
    yield from uniform(rc, folder, rounds)
    workspace.close()
    yield from hot.measure(rc, folder, rounds)
    yield from hot_beside.measure(rc, folder, rounds)
    yield from hot_reads.measure(rc, int(10_000_000 * hot.SCALE), 2_000 if rounds > 5 else 300)
    yield from loader.measure(rc, rounds)
    yield from samplers.measure(rounds)
    yield from transforms.measure(rounds)
    yield from storage.measure(rc, folder, rounds)
    if rounds > 5:
        yield from cliffwalk.lines(folder)
    yield from start_up(rounds)


def append(rc: Any, schema: Any, rounds: int) -> Iterator[Line]:
    """One step at a time, beside the bare assignment and cpprb."""
    import cpprb

    calls = 10_000
    observation = np.random.default_rng(0).standard_normal(17).astype(np.float32)
    action = np.zeros(6, np.float32)
    bare_records = np.zeros(calls, [("o", "f4", 17), ("a", "f4", 6), ("r", "f4")])

    def bare() -> float:
        at = iter(range(calls))

        def one() -> None:
            record = bare_records[next(at)]
            record["o"], record["a"], record["r"] = observation, action, 1.0

        return per_call_us(one, calls)

    workspace = rc.create_workspace("bench-append", schema, durability="process")
    writer = workspace.writer()
    episode = writer.episode()
    peer = cpprb.ReplayBuffer(
        ROWS, {"obs": {"shape": 17}, "act": {"shape": 6}, "rew": {}, "next_obs": {"shape": 17}, "done": {}}
    )
    got = in_turns(
        {
            "bare": bare,
            "append": lambda: per_call_us(
                lambda: episode.append(observation=observation, action=action, reward=1.0), calls
            ),
            "next": lambda: per_call_us(
                lambda: episode.append(
                    observation=observation, action=action, reward=1.0, next_observation=observation
                ),
                calls,
            ),
            "cpprb": lambda: per_call_us(
                lambda: peer.add(obs=observation, act=action, rew=1.0, next_obs=observation, done=0.0), calls
            ),
        },
        rounds,
    )
    workspace.close()
    above = got["append"] - got["bare"]
    yield Line(
        "`episode.append`, 17 + 6 floats + reward",
        f"{got['append']:.1f} µs: {above:.1f} above the bare assignment ({got['bare']:.1f})",
        "at most 8 µs above",
        verdict(above <= 8),
    )
    yield Line(
        "the same with `next_observation`",
        f"{got['next']:.1f} µs; cpprb.add {got['cpprb']:.1f} µs ({got['next'] / got['cpprb']:.2f} ×)",
        "-",
        "-",
    )


def fill(workspace: Any) -> None:
    """500,000 steps in episodes of 200, with their final observations."""
    rng = np.random.default_rng(1)
    with workspace.writer() as writer:
        for block in range(ROWS // 10_000):
            n = 10_000
            step = np.arange(n) % EPISODE
            observation = rng.standard_normal((n, 17), np.float32)
            following = np.roll(observation, -1, axis=0)
            terminated = step == EPISODE - 1
            following[terminated] = 0.5
            writer.extend(
                {
                    "episode": block * n // EPISODE + np.arange(n) // EPISODE,
                    "step": step,
                    "observation": observation,
                    "action": rng.standard_normal((n, 6), np.float32),
                    "reward": rng.standard_normal(n, np.float32),
                    "terminated": terminated,
                    "next_observation": following,
                }
            )


def snapshot(rc: Any, workspace: Any, folder: Path, rounds: int) -> Iterator[Line]:
    """Promotion to local disk, then open and decode with an empty cache."""
    warm = folder / "warm-up"
    workspace.snapshot(warm)
    rc.open_buffer(warm).at()
    promoted, opened = [], []
    for k in range(rounds):
        uri = folder / f"replay-{k}"
        result = workspace.snapshot(uri, tag="all")
        promoted.append(result.rows_added / result.seconds)
        os.environ["RECOLLECT_CACHE"] = f"{folder}/cache-{k}"
        start = time.perf_counter()
        view = rc.open_buffer(uri).at("all")
        opened.append(len(view.rows) / (time.perf_counter() - start))
    rate, decode = statistics.median(promoted), statistics.median(opened)
    yield Line(
        "snapshot of 500k rows to local disk, synced",
        f"{rate / 1e3:,.0f}k rows/s",
        "at least 500k",
        verdict(rate >= 5e5),
    )
    yield Line("open + decode, empty cache", f"{decode / 1e6:.2f}M rows/s", "at least 1.5M", verdict(decode >= 1.5e6))


def uniform(rc: Any, folder: Path, rounds: int) -> Iterator[Line]:
    """Batches of 256 with next observations, every field touched, beside cpprb and the floor."""
    import cpprb
    import torch

    torch.set_num_threads(1)
    view = rc.open_buffer(folder / "replay-0").at("all")
    names = ("observation", "action", "reward", "next_observation", "terminated")
    rows = len(view)
    peer = cpprb.ReplayBuffer(
        rows, {"obs": {"shape": 17}, "act": {"shape": 6}, "rew": {}, "next_obs": {"shape": 17}, "done": {}}
    )
    rng = np.random.default_rng(2)
    for _ in range(rows // 10_000):
        peer.add(
            obs=rng.standard_normal((10_000, 17), np.float32),
            act=rng.standard_normal((10_000, 6), np.float32),
            rew=rng.standard_normal(10_000, np.float32),
            next_obs=rng.standard_normal((10_000, 17), np.float32),
            done=np.zeros(10_000, np.float32),
        )
    single = rc.Loader(view, rc.Uniform(), batch_size=BATCH, seed=0, ahead=1)
    streamed = rc.Loader(view, rc.Uniform(), batch_size=BATCH, seed=0)
    floor_rows = np.zeros(rows, [("o", "f4", 17), ("a", "f4", 6), ("r", "f4"), ("d", "f4")])
    floor_rng = np.random.default_rng(3)

    def touch(loader: Any) -> None:
        batch = next(loader)
        for name in names:
            batch[name]

    def floor() -> None:
        index = floor_rng.integers(0, rows - 1, BATCH)
        here, there = floor_rows[index], floor_rows["o"][index + 1]
        for name in ("o", "a", "r", "d"):
            torch.from_numpy(here[name])
        torch.from_numpy(there)

    calls = 500
    got = in_turns(
        {
            "single": lambda: per_call_us(lambda: touch(single), calls),
            "streamed": lambda: per_call_us(lambda: touch(streamed), calls),
            "cpprb": lambda: per_call_us(lambda: peer.sample(BATCH), calls),
            "floor": lambda: per_call_us(floor, calls),
        },
        rounds,
    )
    titles = (("one at a time (`ahead=1`)", "single", 0.6), ("streamed (the default)", "streamed", 0.4))
    for title, name, goal in titles:
        ratio = got[name] / got["cpprb"]
        yield Line(
            f"uniform batch of 256 of 500k rows, next observation, torch: {title}",
            f"{got[name]:.0f} µs = {ratio:.2f} × cpprb ({got['cpprb']:.0f} µs), {got[name] / got['floor']:.2f} × the "
            f"floor ({got['floor']:.0f} µs: numpy index draw, two packed gathers, views)",
            f"at most {goal} × cpprb" + (", 1.3 × the floor" if name == "single" else ""),
            verdict(ratio <= goal and (name == "streamed" or got[name] <= 1.3 * got["floor"])),
        )


def start_up(rounds: int) -> Iterator[Line]:
    """`import recollect`, in fresh interpreters, beside numpy alone."""

    def importing(what: str) -> float:
        code = f"import time; t = time.perf_counter(); import {what}; print(time.perf_counter() - t)"
        run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return float(run.stdout) * 1e3

    everything = "recollect as rc; rc.create_workspace, rc.Schema, rc.Tensor"
    got = in_turns(
        {w: (lambda w=w: importing(w)) for w in ("recollect", everything, "numpy")},  # type: ignore[misc]
        rounds,
    )
    yield Line(
        "`import recollect`",
        f"{got['recollect']:.0f} ms; {got[everything]:.0f} ms with the names of a workspace used, numpy's "
        f"{got['numpy']:.0f} ms among them",
        "under 150 ms",
        verdict(got["recollect"] < 150),
    )


def table(lines: list[Line]) -> str:
    import recollect as rc

    out = [
        "# Measured",
        "",
        f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, {os.cpu_count()} cores ({platform.machine()}, "
        f"{processor()}), Python {platform.python_version()}, recollect {rc.__version__}, numpy {np.__version__}. "
        "Medians of interleaved blocks, warm page cache. Written by `make bench`.",
        "",
        "| work | measured | goal | |",
        "|---|---|---|---|",
    ]
    out += [f"| {x.work} | {x.measured} | {x.goal} | {x.met} |" for x in lines]
    return "\n".join(out) + "\n"


def processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return "unknown processor"


if __name__ == "__main__":
    main()
