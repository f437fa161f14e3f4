"""Transforms: frames stacked at draw and sequences with n-step returns, beside a copy of as many bytes.

    python benchmarks/transforms.py        prints these lines alone; `make bench` puts them into the table

`RECOLLECT_BENCH_SCALE=0.1` makes every size a tenth. The floor copies as many bytes as a batch has, in pieces that lie
anywhere in the very blocks that the rows lie in, which are far larger than the processor's caches, into fresh memory.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from lines import Line, verdict
from timing import in_turns, per_call_us

SCALE = float(os.environ.get("RECOLLECT_BENCH_SCALE", "1"))
BATCH = 256
PLANE = 84 * 84
EPISODE = 500


def measure(rounds: int) -> Iterator[Line]:
    """Lines about frames, and about sequences of frames and of small rows."""
    import recollect as rc

    rows = int(SCALE * 100_000) // EPISODE * EPISODE
    frames = _frames(rc, rows)
    view = frames.view()
    cold = max((b.planes["observation"] for b, _, _ in view.rows.pieces(0, len(view.rows))), key=len).reshape(-1)
    names = ("observation", "next_observation", "action", "reward", "terminated")
    stacked = rc.Loader(view, batch_size=BATCH, seed=0, transforms=[rc.FrameStack(4)], output="numpy")
    size = BATCH * 2 * 4 * PLANE
    got = in_turns(
        {
            "stacked": lambda: per_call_us(lambda: _touch(stacked, names), 5),
            "floor": lambda: per_call_us(_copying(cold, BATCH, 2 * 4 * PLANE), 5),
            "planes": lambda: per_call_us(_copying(cold, BATCH * 8, PLANE), 5),
        },
        rounds,
    )
    ratio = got["stacked"] / got["floor"]
    yield Line(
        f"frames 4×84×84 stacked at draw with the next observation, {BATCH} of {rows:,} rows",
        f"{got['stacked'] / 1e3:.2f} ms = {ratio:.2f} × a copy of the batch's {size / 1e6:.1f} MB "
        f"({got['floor'] / 1e3:.2f} ms); plane by plane from anywhere that copy takes {got['planes'] / 1e3:.2f} ms",
        "at most 1.4 ×",
        verdict(ratio <= 1.4),
    )
    sequences = rc.Sequence(80, stride=40)
    steps = [rc.FrameStack(4), rc.NStep(3, 0.99)]
    long = rc.Loader(view, sequences, batch_size=16, seed=0, transforms=steps, output="numpy")
    small = _vectors(rc, int(SCALE * 500_000) // EPISODE * EPISODE)
    pieces = small.view().rows.pieces(0, len(small.view().rows))
    flat = max((b.records for b, _, _ in pieces), key=len).view(np.uint8).reshape(-1)
    short = rc.Loader(small.view(), sequences, batch_size=16, seed=0, transforms=steps[1:], output="numpy")
    names = (*names, "discount")
    batch = next(short)
    row = sum(np.asarray(batch[name]).nbytes for name in names) // (16 * 80)
    got = in_turns(
        {
            "frames": lambda: per_call_us(lambda: _touch(long, names), 2),
            "frames floor": lambda: per_call_us(_copying(cold, 16, 80 * 2 * 4 * PLANE), 2),
            "rows": lambda: per_call_us(lambda: _touch(short, names), 100),
            "rows floor": lambda: per_call_us(_copying(flat, 16, 80 * row), 100),
        },
        rounds,
    )
    for title, name, unit in (("frames 4×84×84", "frames", 1e3), ("17 + 6 floats", "rows", 1.0)):
        ratio = got[name] / got[f"{name} floor"]
        shown = "ms" if unit > 1 else "µs"
        yield Line(
            f"sequences 16 × 80 with `NStep(3)`, {title}, next observation",
            f"{got[name] / unit:.1f} {shown} = {ratio:.2f} × a copy of their bytes "
            f"({got[f'{name} floor'] / unit:.1f} {shown})",
            "at most 1.5 ×",
            verdict(ratio <= 1.5),
        )
    frames.close()
    small.close()


def _touch(loader: Any, names: tuple[str, ...]) -> None:
    batch = next(loader)
    for name in names:
        batch[name]


def _copying(source: Any, pieces: int, size: int) -> Callable[[], None]:
    """Copies so many pieces from random places into fresh memory."""
    rng = np.random.default_rng(0)
    pieces_apart = max(1, len(source) - size)

    def one() -> None:
        out = np.empty(pieces * size, np.uint8)
        for k, at in enumerate(rng.integers(0, pieces_apart, pieces).tolist()):
            out[k * size : (k + 1) * size] = source[at : at + size]

    return one


def _frames(rc: Any, rows: int) -> Any:
    schema = rc.Schema(
        {
            "observation": rc.Frames((84, 84)),
            "action": rc.Tensor("int32", ()),
            "reward": rc.Tensor("float32", ()),
        }
    )
    return _filled(rc, schema, rows, lambda rng, n: rng.integers(0, 255, (n, 84, 84), np.uint8), np.zeros(1, np.int32))


def _vectors(rc: Any, rows: int) -> Any:
    schema = rc.Schema(
        {
            "observation": rc.Tensor("float32", (17,)),
            "action": rc.Tensor("float32", (6,)),
            "reward": rc.Tensor("float32", ()),
        }
    )
    return _filled(rc, schema, rows, lambda rng, n: rng.standard_normal((n, 17), np.float32), np.zeros((1, 6), "f4"))


def _filled(rc: Any, schema: Any, rows: int, make: Callable[[Any, int], Any], action: Any) -> Any:
    """A workspace of truncated episodes of one length."""
    workspace = rc.create_workspace(None, schema, keep=rc.Keep())
    rng = np.random.default_rng(0)
    with workspace.writer() as writer:
        for k in range(rows // EPISODE):
            step = np.arange(EPISODE)
            writer.extend(
                {
                    "episode": np.full(EPISODE, k),
                    "step": step,
                    "observation": make(rng, EPISODE),
                    "action": np.repeat(action, EPISODE, axis=0),
                    "reward": np.ones(EPISODE, np.float32),
                    "terminated": step == EPISODE - 1,
                }
            )
    return workspace


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="recollect-bench-") as folder:
        os.environ["RECOLLECT_HOME"] = f"{folder}/home"
        for line in measure(9):
            print(json.dumps(line.__dict__, ensure_ascii=False), flush=True)


if __name__ == "__main__":
    main()
