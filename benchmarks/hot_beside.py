"""The hot log beside others: while it is promoted, while it is polled, and after its writer died."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from children import answer, child, tell
from hot import BLOCK, SCALE, block, schema_of
from lines import Line, verdict
from timing import in_turns, per_call_us


def measure(rc: Any, folder: Path, rounds: int) -> Iterator[Line]:
    """Every line about the others."""
    yield from beside_a_snapshot(rc, folder, max(3, rounds // 3))
    yield from visible(rc)
    yield from recovery(rc, folder)


SNAPSHOT = """
import sys
import recollect as rc
ws = rc.open_workspace(sys.argv[1])
ws.snapshot(sys.argv[2] + "-0")
print("ready", flush=True)
k = 1
while sys.stdin.readline():
    ws.snapshot(f"{sys.argv[2]}-{k}")
    k += 1
    print("done", flush=True)
"""


def beside_a_snapshot(rc: Any, folder: Path, rounds: int) -> Iterator[Line]:
    """The median append while a process of its own promotes the same workspace to local disk, again and again."""
    ws = rc.create_workspace("bench-beside", schema_of(rc), durability="interval")
    columns = block()
    with ws.writer() as filler:
        for _ in range(max(20, int(300 * SCALE))):
            filler.extend(columns)
    writer = ws.writer()
    episode = writer.episode()
    observation = np.zeros(12, np.float32)
    other = child(SNAPSHOT, "bench-beside", str(folder / "beside"))
    assert answer(other) == "ready"
    os.set_blocking(other.stdout.fileno(), False)  # type: ignore[union-attr]

    def median(busy: bool) -> float:
        took = np.empty(5_000)
        for part in range(2):
            if busy:
                tell(other)
            while True:
                for k in range(len(took) // 2):
                    start = time.perf_counter()
                    episode.append(observation=observation, action=1, reward=1.0)
                    took[part * len(took) // 2 + k] = time.perf_counter() - start
                    time.sleep(0)
                if not busy or answer(other) == "done":
                    break
        return float(np.median(took)) * 1e6

    got = in_turns({"alone": lambda: median(False), "beside": lambda: median(True)}, rounds)
    assert other.stdin is not None
    other.stdin.close()
    other.wait()
    ws.close()
    rc.delete_workspace("bench-beside")
    ratio = got["beside"] / got["alone"]
    yield Line(
        "median append while another process snapshots the workspace",
        f"{got['beside']:.1f} µs = {ratio:.2f} × alone ({got['alone']:.1f} µs)",
        "at most 1.3 ×; waits on no lock: `tests/hot/test_no_waits.py`",
        verdict(ratio <= 1.3),
    )


STAMP = """
import sys, time
import numpy as np
import recollect as rc
ws = rc.open_workspace(sys.argv[1])
with ws.writer(durability="process") as writer, writer.episode() as episode:
    seen = np.zeros(12, np.float32)
    episode.append(observation=seen, action=0, reward=0.0)
    print("ready", flush=True)
    sys.stdin.readline()
    for _ in range(int(sys.argv[2])):
        until = time.perf_counter_ns() + 500_000
        while time.perf_counter_ns() < until:
            pass
        episode.append(observation=seen, action=time.perf_counter_ns(), reward=0.0)
"""


def visible(rc: Any) -> Iterator[Line]:
    """From the moment a process calls `append` to the moment that another, which polls, knows of the row."""
    ws = rc.create_workspace("bench-visible", schema_of(rc))
    count = max(200, int(2_000 * SCALE))

    def latencies(poll: Callable[[Any], int]) -> Any:
        other = child(STAMP, "bench-visible", str(count))
        assert answer(other) == "ready"
        log = next(log for log in _logs(ws) if not log.sealed)
        first = log.rows
        seen, at = first, []
        tell(other)
        while seen < first + count:
            rows = poll(log)
            if rows != seen:
                now = time.perf_counter_ns()
                sent = log.segments[-1].records["/action"][seen:rows].tolist()
                at += [now - s for s in sent]
                seen = rows
        other.communicate()
        return np.percentile(np.array(at) / 1e3, [50, 99])

    def by_cut(log: Any) -> int:
        return int(next(e for e in ws.cut().extents if e.writer == log.writer).stop)

    online = ws.live()
    online.refresh()
    raw = latencies(lambda log: log.segments[-1].word & 0xFFFFFFFF)
    online.refresh()  # the first look that finds rows loads what numba compiled
    cut = latencies(by_cut)
    online.refresh()
    live = latencies(
        lambda log: max((e.stop for e in online.refresh().cut.extents if e.writer == log.writer), default=0)
    )
    cost = per_call_us(ws.cut, 500)
    ws.close()
    rc.delete_workspace("bench-visible")
    yield Line(
        "append seen by a polling process, the append's own time included",
        f"by `ws.cut()` ({cost:.0f} µs a call, one writer live) p50 {cut[0]:.0f}, p99 {cut[1]:.0f} µs; by a view of "
        f"`ws.live()` p50 {live[0]:.0f}, p99 {live[1]:.0f} µs; by the counter itself p50 {raw[0]:.0f}, "
        f"p99 {raw[1]:.0f} µs",
        "p99 under 200 µs",
        verdict(cut[1] < 200),
    )


def _logs(ws: Any) -> list[Any]:
    ws.cut()
    return list(ws._store.logs.values())


# -- recovery --------------------------------------------------------------------------------------------------------

LEAVE = """
import os, sys
sys.path.insert(0, sys.argv[3])
import recollect as rc, hot
ws, columns = rc.open_workspace(sys.argv[1]), hot.block()
writer = ws.writer(durability="process")
durable, tail = map(int, sys.argv[2].split(","))
for part, count in enumerate((durable, tail)):
    for _ in range(count // hot.BLOCK):
        writer.extend(columns)
    if not part:
        writer.sync()
os.kill(os.getpid(), 9)
"""


def recovery(rc: Any, folder: Path) -> Iterator[Line]:
    """Opening after a death, by the rows that were not durable; those that were are not read again. A copy is."""
    from recollect.hot.format.layouts import Layouts
    from recollect.hot.recovery.recover import recover

    layouts = Layouts({1: schema_of(rc)}.get)
    most = max(10_000, int(1_000_000 * SCALE) // BLOCK * BLOCK)
    took: dict[tuple[int, int], float] = {}
    copied = 0.0
    for durable, tail in ((0, most // 100), (0, most // 10), (0, most), (most, most // 100)):
        times = []
        for _ in range(3):
            ws = rc.create_workspace("bench-recovery", schema_of(rc))
            child(LEAVE, "bench-recovery", f"{durable},{tail}", str(Path(__file__).parent)).communicate()
            os.sync()  # recovery flushes what it keeps; the disk's part is not what is compared
            if durable:
                shutil.copytree(ws.path / "log", folder / "copied")
            start = time.perf_counter()
            (done,) = recover(ws.path / "log", layouts)
            times.append((time.perf_counter() - start) * 1e3)
            assert done.rows == durable + tail, done
            if durable:
                start = time.perf_counter()
                recover(folder / "copied", layouts)
                copied = (time.perf_counter() - start) * 1e3
                shutil.rmtree(folder / "copied")
            ws.close()
            rc.delete_workspace("bench-recovery")
        took[durable, tail] = sorted(times)[1]
    sizes = ", ".join(f"{tail:,}: {ms:.0f}" for (durable, tail), ms in took.items() if not durable)
    alone, behind = took[0, most // 100], took[most, most // 100]
    yield Line(
        "recovery of a killed writer's log, ms by undurable rows",
        f"{sizes}; {most // 100:,} behind {most:,} durable ones: {behind:.0f}; a copy of those, read whole: "
        f"{copied:.0f}",
        "grows with the undurable tail only",
        verdict(behind < 2 * alone + 5),
    )
