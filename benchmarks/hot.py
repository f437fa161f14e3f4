"""The hot log: how fast it takes rows in, and what durability costs. `hot_beside.py` has what others cost it.

    python benchmarks/hot.py          prints these lines alone; `make bench` puts them into the table

`RECOLLECT_BENCH_SCALE=0.1` makes every size a tenth. Each figure stands beside its floor: a memmove of the same bytes,
one fdatasync of them, or the same work without the other process.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import mmap
import os
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from children import answer, child, tell
from lines import Line, verdict
from timing import in_turns, per_call_us

SCALE = float(os.environ.get("RECOLLECT_BENCH_SCALE", "1"))
BLOCK = 1_000
BLOCKS = max(100, int(2_000 * SCALE))
"""Blocks of one measured run: 240 MB of rows."""
APPENDS = max(5_000, int(100_000 * SCALE))
LANES = 64


def measure(rc: Any, folder: Path, rounds: int) -> Iterator[Line]:
    """Every line about writing. `folder` is on the disk whose rate is stated."""
    rounds = max(3, rounds // 3)
    yield from extend(rc, folder, rounds)
    yield from two_writers(rc, rounds)
    yield from short_episodes(rc, rounds)
    yield from lanes(rc, rounds)
    yield from durability(rc, rounds)
    yield from stalls(rc)


def schema_of(rc: Any) -> Any:
    """A row of 120 bytes, 56 of them its record's own."""
    return rc.Schema(
        {"observation": rc.Tensor("float32", (12,)), "action": rc.Tensor("int64"), "reward": rc.Tensor("float32")}
    )


def block(step: int = 0, episodes: int = 1) -> dict[str, Any]:
    """1,000 rows of `episodes` episodes, which end with the block."""
    rng, i = np.random.default_rng(step), np.arange(BLOCK)
    length = BLOCK // episodes
    return {
        "episode": i // length,
        "step": i % length,
        "observation": rng.standard_normal((BLOCK, 12), np.float32),
        "action": i,
        "reward": rng.standard_normal(BLOCK, np.float32),
        "terminated": i % length == length - 1,
    }


def row_bytes(rc: Any) -> int:
    from recollect.records.layout import Layout

    return Layout.of(schema_of(rc)).itemsize


# -- blocks ----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def preallocated() -> Iterator[None]:
    """Writers made inside begin with a segment that holds two runs, so that none needs another."""
    from recollect.hot.write import growing

    usual, growing.SEGMENT_BYTES = growing.SEGMENT_BYTES, (300 * BLOCK * BLOCKS,)
    try:
        yield
    finally:
        growing.SEGMENT_BYTES = usual


def write_blocks(writer: Any, columns: dict[str, Any]) -> float:
    """Rows a second of one run."""
    begin = time.perf_counter()
    for _ in range(BLOCKS):
        writer.extend(columns)
    return BLOCK * BLOCKS / (time.perf_counter() - begin)


def memmove_us(count: int) -> float:
    """Microseconds to copy `count` bytes into a mapped file, faulted in, a block at a time."""
    with tempfile.TemporaryFile() as f:
        f.truncate(64 << 20)
        target = np.frombuffer(mmap.mmap(f.fileno(), 64 << 20), np.uint8)
        target[:] = 1
        source = np.ones(count, np.uint8)
        places = [i * count for i in range((64 << 20) // count)]
        took = []
        for at in places:
            start = time.perf_counter()
            target[at : at + count] = source
            took.append(time.perf_counter() - start)
        del target
    return float(np.median(took)) * 1e6


def flush_rate(folder: Path, count: int) -> float:
    """Bytes a second that reach the disk: one write of `count` bytes and one fdatasync."""
    data = os.urandom(1 << 20)
    with open(folder / "floor", "wb", buffering=0) as f:
        start = time.perf_counter()
        for _ in range(max(1, count >> 20)):
            f.write(data)
        os.fdatasync(f.fileno())
        took = time.perf_counter() - start
    (folder / "floor").unlink()
    return (max(1, count >> 20) << 20) / took


def extend(rc: Any, folder: Path, rounds: int) -> Iterator[Line]:
    columns, size = block(), row_bytes(rc)
    ws = rc.create_workspace("bench-extend", schema_of(rc), durability="process")
    at_hand, rolling, floors, disk, disk_floor = [], [], [], [], []
    for _ in range(rounds):
        with preallocated(), ws.writer() as writer:
            took = [per_call_us(lambda: writer.extend(columns), 1) for _ in range(BLOCKS)]
            at_hand.append((1e6 * BLOCK / np.median(took), 1e6 * BLOCK / np.mean(took)))
        floors.append(memmove_us(BLOCK * size))
        with ws.writer() as writer:
            rolling.append(write_blocks(writer, columns))
        with ws.writer(durability="interval") as writer:
            begin = time.perf_counter()
            write_blocks(writer, columns)
            writer.sync()
            disk.append(BLOCK * BLOCKS / (time.perf_counter() - begin))
        disk_floor.append(flush_rate(folder, BLOCK * BLOCKS * size))
    ws.close()
    rc.delete_workspace("bench-extend")
    memory, whole = np.median(at_hand, axis=0)
    floor = float(np.median(floors))
    yield Line(
        f"`extend`, blocks of 1,000 rows of {size} bytes, into memory, segment preallocated",
        f"{memory / 1e6:.1f}M rows/s at the median block, {1e9 / memory / floor:.0f} × the floor (memmove of its bytes "
        f"into a file: {floor:.0f} µs); {whole / 1e6:.1f}M over the run, {np.median(rolling) / 1e6:.1f}M where a new "
        "writer makes its segments as it goes",
        "at least 5M",
        verdict(bool(memory >= 5e6)),
    )
    rate, most = float(np.median(disk)), float(np.median(disk_floor))
    yield Line(
        "the same under `interval`, until all of it is on the disk",
        f"{rate / 1e6:.2f}M rows/s = {rate * size / 1e6:,.0f} MB/s, {rate * size / most:.2f} × a plain file and one "
        f"fdatasync ({most / 1e6:,.0f} MB/s)",
    )


def short_episodes(rc: Any, rounds: int) -> Iterator[Line]:
    """Blocks of 1,000 rows again, but of other shapes; beside SQLite."""
    ws = rc.create_workspace("bench-shapes", schema_of(rc), durability="process")
    whole, short = block(), block(episodes=BLOCK)
    following = {**whole, "next_observation": np.roll(whole["observation"], -1, axis=0)}
    writer = ws.writer()
    rows = [tuple(r) for r in zip(range(BLOCK), whole["reward"].tolist(), strict=True)]
    payload = [(a, b, whole["observation"][a].tobytes()) for a, b in rows]
    with tempfile.TemporaryDirectory(prefix="recollect-bench-") as folder:
        db = sqlite3.connect(f"{folder}/peer.sqlite", isolation_level=None)
        db.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; CREATE TABLE t (a, r, o BLOB)")

        def peer() -> None:
            db.execute("BEGIN")
            db.executemany("INSERT INTO t VALUES (?, ?, ?)", payload)
            db.execute("COMMIT")

        calls = max(20, int(200 * SCALE))
        got = in_turns(
            {
                "one": lambda: per_call_us(lambda: writer.extend(whole), calls),
                "next": lambda: per_call_us(lambda: writer.extend(following), calls),
                "short": lambda: per_call_us(lambda: writer.extend(short), calls),
                "sqlite": lambda: per_call_us(peer, calls),
            },
            rounds,
        )
        db.close()
    ws.close()
    rc.delete_workspace("bench-shapes")
    rate = {name: BLOCK / us for name, us in got.items()}
    yield Line(
        "the same, other blocks",
        f"with `next_observation` {rate['next']:.1f}M rows/s; 1,000 episodes of one step {rate['short']:.2f}M; SQLite, "
        f"one transaction a block, {rate['sqlite']:.2f}M ({rate['one'] / rate['sqlite']:.0f} × slower)",
    )


WRITE = """
import sys
sys.path.insert(0, sys.argv[2])
import recollect as rc, hot
ws, columns = rc.open_workspace(sys.argv[1]), hot.block()
with hot.preallocated(), ws.writer(durability="process") as writer:
    for _ in range(20):
        writer.extend(columns)
    print("ready", flush=True)
    sys.stdin.readline()
    print(hot.write_blocks(writer, columns))
"""


def two_writers(rc: Any, rounds: int) -> Iterator[Line]:
    """Processes of their own, which begin together."""
    ws = rc.create_workspace("bench-two", schema_of(rc), durability="process")

    def rate(count: int) -> float:
        writers = [child(WRITE, "bench-two", str(Path(__file__).parent)) for _ in range(count)]
        for w in writers:
            assert answer(w) == "ready"
        for w in writers:
            tell(w)
        total = sum(float(answer(w)) for w in writers)
        for w in writers:
            w.communicate()
        return total

    got = in_turns({"one": lambda: rate(1), "two": lambda: rate(2)}, rounds)
    ws.close()
    rc.delete_workspace("bench-two")
    ratio = got["two"] / got["one"]
    yield Line(
        "two writing processes against one, segments preallocated",
        f"{got['two'] / 1e6:.1f}M rows/s = {ratio:.2f} × one ({got['one'] / 1e6:.1f}M), {os.cpu_count()} cores",
        "at least 1.8 ×",
        verdict(ratio >= 1.8),
    )


# -- lanes -----------------------------------------------------------------------------------------------------------


def lanes(rc: Any, rounds: int) -> Iterator[Line]:
    """A vector environment of 64, every step with its next observation."""
    import cpprb

    schema = rc.Schema(
        {
            "observation": rc.Tensor("float32", (17,)),
            "action": rc.Tensor("float32", (6,)),
            "reward": rc.Tensor("float32"),
        }
    )
    rng = np.random.default_rng(0)
    seen = [rng.standard_normal((LANES, 17), np.float32) for _ in range(2)]
    action, reward, done = np.zeros((LANES, 6), np.float32), np.zeros(LANES, np.float32), np.zeros(LANES)
    ws = rc.create_workspace("bench-lanes", schema, durability="process")
    writer = ws.writer()
    group, plain = writer.lanes(LANES), writer.lanes(LANES)
    peer = cpprb.ReplayBuffer(
        100_000, {"obs": {"shape": 17}, "act": {"shape": 6}, "rew": {}, "next_obs": {"shape": 17}, "done": {}}
    )
    turn = iter(range(1 << 60))

    def step() -> None:
        k = next(turn) % 2
        group.append(observation=seen[k], action=action, reward=reward, next_observation=seen[1 - k])

    calls = max(20, int(300 * SCALE))
    got = in_turns(
        {
            "next": lambda: per_call_us(step, calls) / LANES,
            "plain": lambda: (
                per_call_us(lambda: plain.append(observation=seen[0], action=action, reward=reward), calls) / LANES
            ),
            "cpprb": lambda: (
                per_call_us(lambda: peer.add(obs=seen[0], act=action, rew=reward, next_obs=seen[1], done=done), calls)
                / LANES
            ),
        },
        rounds,
    )
    ws.close()
    rc.delete_workspace("bench-lanes")
    yield Line(
        f"`lanes.append`, {LANES} lanes of 17 + 6 floats, with `next_observation`",
        f"{got['next']:.2f} µs a row; {got['plain']:.2f} without; cpprb.add of the batch {got['cpprb']:.2f}, into one "
        "process's memory",
        "under 2 µs",
        verdict(got["next"] < 2),
    )


# -- what else costs -------------------------------------------------------------------------------------------------


def appender(episode: Any, calls: int) -> Callable[[], float]:
    observation = np.zeros(12, np.float32)

    def one() -> None:
        episode.append(observation=observation, action=1, reward=1.0)

    return lambda: per_call_us(one, calls)


def durability(rc: Any, rounds: int) -> Iterator[Line]:
    """Half a second of appends at full speed, under either promise in turn."""
    ws = rc.create_workspace("bench-durability", schema_of(rc))
    calls = APPENDS
    columns = block()

    def blocks(name: str) -> float:
        with ws.writer(durability=name) as writer:
            return 1e6 * BLOCK / write_blocks(writer, columns)

    def steps(name: str) -> float:
        with ws.writer(durability=name) as writer, writer.episode() as episode:
            return appender(episode, calls)()

    got = in_turns(
        {
            "append process": lambda: steps("process"),
            "append interval": lambda: steps("interval"),
            "extend process": lambda: blocks("process"),
            "extend interval": lambda: blocks("interval"),
        },
        2 * rounds,
    )
    ws.close()
    rc.delete_workspace("bench-durability")
    cost = {way: 1 - got[f"{way} process"] / got[f"{way} interval"] for way in ("append", "extend")}
    yield Line(
        "what `interval` costs of the throughput of `process`",
        f"`append` at full speed {cost['append']:.0%} ({got['append interval']:.1f} against "
        f"{got['append process']:.1f} µs); `extend` at full speed, which outruns the disk, {cost['extend']:.0%}",
        "at most 15%",
        verdict(max(cost.values()) <= 0.15),
    )


def stalls(rc: Any) -> Iterator[Line]:
    """Every append's own time, over several new segments."""
    ws = rc.create_workspace("bench-stalls", schema_of(rc), durability="interval")
    count = 6 * APPENDS
    observation = np.zeros(12, np.float32)
    took = np.empty(count)
    with ws.writer() as writer, writer.episode() as episode:
        for k in range(count):
            start = time.perf_counter()
            episode.append(observation=observation, action=1, reward=1.0)
            took[k] = time.perf_counter() - start
        segments = len(list((ws.path / "log").glob("*/*.seg")))
    ws.close()
    rc.delete_workspace("bench-stalls")
    p50, p999, most = np.percentile(took * 1e6, [50, 99.9, 100])
    yield Line(
        f"the slowest of {count:,} appends under `interval`, {segments} segments",
        f"p50 {p50:.1f} µs, p99.9 {p999:.0f} µs, worst {most / 1e3:.1f} ms",
    )


def main() -> None:
    import hot_beside
    import recollect as rc

    with tempfile.TemporaryDirectory(prefix="recollect-bench-") as folder:
        os.environ["RECOLLECT_HOME"] = f"{folder}/home"
        os.environ["RECOLLECT_CACHE"] = f"{folder}/cache"
        for line in itertools.chain(measure(rc, Path(folder), 15), hot_beside.measure(rc, Path(folder), 15)):
            print(json.dumps(line.__dict__, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
