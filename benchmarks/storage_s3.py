"""The replay buffer on an object store of this machine.

It is moto's, a server in Python that takes a whole object into memory for every request of a part of it: what lance
takes to read the same rows from it is given as the floor. `rclone serve s3`, the other server that pip gives, ignores
conditional puts and answers some ranges with whole objects, which lance refuses.
"""

from __future__ import annotations

import contextlib
import os
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from children import answer, child
from lines import Line, verdict

SCALE = float(os.environ.get("RECOLLECT_BENCH_SCALE", "1"))
URI = "s3://bench/replay"


def measure(rc: Any, folder: Path) -> Iterator[Line]:
    """A million rows: the first batch with an empty cache, decoding, and a second snapshot of 1% more."""
    rows = int(1_000_000 * SCALE)
    schema = rc.Schema(
        {
            "observation": rc.Tensor("float32", (17,)),
            "action": rc.Tensor("float32", (6,)),
            "reward": rc.Tensor("float32"),
        }
    )
    with rc.create_workspace("bench-s3", schema, durability="process") as workspace, workspace.writer() as writer:
        _floats(writer, rows, 0)
        with _moto() as options:
            workspace.snapshot(URI, tag="one", storage_options=options)
            yield from _reads(rc, folder, rows, options)
            yield _one_percent_more(rc, workspace, writer, rows, options)


def _reads(rc: Any, folder: Path, rows: int, options: dict[str, str]) -> Iterator[Line]:
    os.environ["RECOLLECT_CACHE"] = str(folder / "warm-up")
    _first_batch(rc, None, options)  # imports and connects
    os.environ["RECOLLECT_CACHE"] = str(folder / "cache")
    seconds, opened, decoded, _ = _first_batch(rc, None, options)
    yield Line(
        f"first batch of a snapshot of {rows:,} rows on S3 (moto), empty cache",
        f"{seconds:.2f} s",
        "under 3 s",
        verdict(seconds < 3),
    )
    rate, scan = decoded / opened, rows / _scan(options)
    yield Line(
        "open + decode there, empty cache",
        f"{rate / 1e6:.2f}M rows/s = {rate / scan:.2f} × what lance takes to read the same there ({scan / 1e6:.2f}M)",
        "at least 1.5M",
        verdict(rate >= 1.5e6),
    )


def _one_percent_more(rc: Any, workspace: Any, writer: Any, rows: int, options: dict[str, str]) -> Line:
    """In four snapshots, read before and after they were compacted, with what was read before in the cache."""
    more = max(100, rows // 100)
    for k in range(4):
        _floats(writer, more // 4, 1 + k)
        workspace.snapshot(URI, tag=f"more-{k}", storage_options=options)
    _, _, before, _ = _first_batch(rc, None, options)
    with rc.open_buffer(URI, storage_options=options) as buffer:
        merged = buffer.compact()
    _, _, after, held = _first_batch(rc, None, options)
    part = (before + after) / held
    return Line(
        "rows decoded for 1% more that came in four snapshots, read before and after they were compacted",
        f"{100 * part:.2f}% ({before:,} + {after:,} of {held:,}; {merged.fragments_before} files became "
        f"{merged.fragments_after})",
        "at most 2%",
        verdict(part <= 0.02),
    )


def _floats(writer: Any, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    for start in range(0, rows, 10_000):
        n = min(10_000, rows - start)
        step = np.arange(n) % 200
        writer.extend(
            {
                "episode": (seed << 20) + start // 200 + np.arange(n) // 200,
                "step": step,
                "observation": rng.standard_normal((n, 17), np.float32),
                "action": rng.standard_normal((n, 6), np.float32),
                "reward": rng.standard_normal(n, np.float32),
                "terminated": (step == 199) | (np.arange(n) == n - 1),
            }
        )


def _scan(options: dict[str, str]) -> float:
    """Seconds that lance takes to read every row: the floor, which is mostly the server's."""
    import lance

    start = time.perf_counter()
    for _ in lance.dataset(f"{URI}/steps.lance", storage_options=options).to_batches():
        pass
    return time.perf_counter() - start


def _first_batch(rc: Any, tag: str | None, options: dict[str, str]) -> tuple[float, float, int, int]:
    """Seconds to the first batch and to the view, rows decoded, rows held."""
    start = time.perf_counter()
    with rc.open_buffer(URI, storage_options=options) as buffer:
        view = buffer.at(tag) if tag else buffer.at()
        opened = time.perf_counter() - start
        with rc.Loader(view, rc.Uniform(), batch_size=256, seed=0, output="numpy") as loader:
            next(loader)
        return time.perf_counter() - start, opened, buffer.decoded_rows, len(view.rows)


_MOTO = """
import logging, sys, threading
from moto.server import ThreadedMotoServer
logging.getLogger("werkzeug").setLevel(logging.ERROR)
server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
server.start()
print(*server.get_host_and_port(), flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def _moto() -> Iterator[dict[str, str]]:
    """The storage options of an S3 server in a process of its own, with a bucket named bench."""
    server = child(_MOTO)
    try:
        host, port = answer(server).split()
        endpoint = f"http://{host}:{port}"
        signed = "AWS4-HMAC-SHA256 Credential=k/20260101/us-east-1/s3/aws4_request, SignedHeaders=host, Signature=0"
        request = urllib.request.Request(f"{endpoint}/bench", method="PUT", headers={"Authorization": signed})
        urllib.request.urlopen(request).close()
        yield _options(endpoint)
    finally:
        server.communicate("")


def _options(endpoint: str) -> dict[str, str]:
    return {
        "aws_endpoint": endpoint,
        "aws_allow_http": "true",
        "aws_region": "us-east-1",
        "aws_access_key_id": "bench-key",
        "aws_secret_access_key": "bench-secret",
    }
