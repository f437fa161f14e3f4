"""Other processes: they see an append on their next read, and a killed writer loses nothing it acknowledged."""

from __future__ import annotations

import os
import random
import select
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors
from recollect.hot.format.layouts import Layouts
from recollect.hot.recovery.recover import recover
from recollect.records.layout import Layout
from recollect.view import Extent
from tests.support import all_ids, python, rows_of, run_python

SCHEMA = rc.Schema(
    {
        "observation": rc.Tensor("float32", (3,)),
        "reward": rc.Tensor("float32"),
        "note": rc.Text(optional=True),
        "picture": rc.Frames((4, 4), stack=2, optional=True),
        "uid": rc.Tensor("int64"),
    }
)

READER = """
import sys
import recollect as rc
ws = rc.open_workspace(sys.argv[1])
for line in sys.stdin:
    view = ws.view()
    hit = ws.recent(1)
    last = hit[0] if len(hit) else None
    print(len(view.rows), len(view), -1 if last is None else last["uid"], flush=True)
"""

WRITER = """
import sys
import numpy as np
import recollect as rc
name, first = sys.argv[1], int(sys.argv[2])
ws = rc.open_workspace(name)
writer = ws.writer()
uid = first
print("ready", flush=True)
sys.stdin.readline()
while True:
    with writer.episode() as episode:
        for t in range(7):
            given = uid % 3 == 0
            id = episode.append(
                observation=np.full(3, uid, np.float32), reward=uid / 2, note=f"n{uid}" * (uid % 50), uid=uid,
                picture=np.full((4, 4), uid % 251, np.uint8),
                next_observation=np.full(3, uid + 1, np.float32) if given else None,
                terminated=t == 6,
            )
            sys.stdout.write(f"{id} {uid} {int(given or t == 6)}\\n")
            sys.stdout.flush()
            uid += 1
"""


def test_another_process_sees_each_append_on_its_next_read() -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer:
        child = python(READER, "w")
        assert child.stdin is not None and child.stdout is not None

        def ask() -> list[int]:
            assert child.stdin is not None and child.stdout is not None
            child.stdin.write("\n")
            child.stdin.flush()
            return [int(x) for x in child.stdout.readline().split()]

        assert ask() == [0, 0, -1]
        drawable = uid = 0
        extra = 0
        for round_ in range(60):
            with writer.episode() as episode:
                for t in range(1 + round_ % 4):
                    given, last = (uid + round_) % 2 == 0, t == round_ % 4
                    episode.append(
                        observation=[uid] * 3,
                        reward=0.0,
                        uid=uid,
                        terminated=last,
                        next_observation=[uid + 1] * 3 if given else None,
                    )
                    uid += 1
                    extra += given and last
                    drawable = uid if given or last else uid - 1
                    assert ask() == [uid + extra, drawable, uid - 1]
        child.communicate(timeout=20)
        assert child.returncode == 0


def test_a_process_that_writes_first_is_read_here_at_once() -> None:
    ws = rc.create_workspace("w", SCHEMA)
    child = python(WRITER, "w", "0")
    try:
        assert child.stdin is not None and child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.stdin.write("\n")
        child.stdin.flush()
        for _ in range(200):
            id, uid, drawable = child.stdout.readline().split()
            writer, seq = (int(x) for x in id.split(":"))
            view = ws.view()
            slot = view.rows.find(np.array([(writer, seq)], rc.view.ID_DTYPE))
            assert slot[0] >= 0
            assert int(view.rows.gather(slot, ("uid",))["uid"][0]) == int(uid)
            if int(drawable):
                assert view.anchors.mask(slot).all()
    finally:
        child.kill()
        child.communicate()


def _kill_while_writing(child: subprocess.Popen[str], chance: random.Random) -> list[tuple[int, int, int, bool]]:
    """Starts the writer, kills it within a moment. Returns (writer, seq, uid, drawable) of what it acknowledged."""
    assert child.stdin is not None and child.stdout is not None
    assert child.stdout.readline() == "ready\n", child.communicate()[1]
    child.stdin.write("\n")
    child.stdin.flush()
    select.select([child.stdout], [], [], 10)
    stop = time.monotonic() + chance.uniform(0.0, 0.08)
    raw = b""
    os.set_blocking(child.stdout.fileno(), False)
    while time.monotonic() < stop:
        raw += os.read(child.stdout.fileno(), 1 << 20) if select.select([child.stdout], [], [], 0.002)[0] else b""
    child.send_signal(signal.SIGKILL)
    child.wait()
    os.set_blocking(child.stdout.fileno(), True)
    while more := os.read(child.stdout.fileno(), 1 << 20):
        raw += more
    child.communicate()
    out = []
    for line in raw.decode().splitlines(keepends=True):
        if line.endswith("\n"):
            id, uid, drawable = line.split()
            writer, seq = id.split(":")
            out.append((int(writer), int(seq), int(uid), drawable == "1"))
    return out


@pytest.mark.parametrize("kills", [12, pytest.param(300, marks=pytest.mark.torture)])
def test_acknowledged_steps_survive_kill_9_once_in_order_with_equal_values(kills: int) -> None:
    rc.create_workspace("w", SCHEMA).close()
    chance = random.Random(3)
    acknowledged: list[tuple[int, int, int, bool]] = []
    for k in range(kills):
        child = python(WRITER, "w", str(1_000_000 * k))
        got = _kill_while_writing(child, chance)
        acknowledged += got
        ws = rc.open_workspace("w")
        if k == 0:
            assert got, "the writer was killed before its first append"
        (writer,) = {w for w, *_ in got} or {r.writer for r in ws.recovered}
        assert [r.writer for r in ws.recovered] == [writer]
        assert ws.recovered[0].lost is None
        assert rc.open_workspace("w").recovered == []
        ws.close()
    view = rc.open_workspace("w").view()
    ids = all_ids(view)
    assert len(set(ids)) == len(ids)
    place = {i: slot for slot, i in enumerate(ids)}
    slots = np.array([place[w, s] for w, s, *_ in acknowledged])
    assert np.array_equal(view.rows.gather(slots, ("uid",))["uid"], [u for _, _, u, _ in acknowledged])
    assert view.anchors.mask(slots[[d for *_, d in acknowledged]]).all()
    rows = rows_of(view, batch_size=256)
    step_uids = [int(u) for u in view.rows.gather(np.flatnonzero(~view.episodes.is_final), ("uid",))["uid"]]
    for k in range(kills):
        mine = [u for u in step_uids if u // 1_000_000 == k]
        assert mine == list(range(1_000_000 * k, 1_000_000 * k + len(mine)))
        # At most one append had not returned yet.
        assert len(mine) - sum(u // 1_000_000 == k for _, _, u, _ in acknowledged) in (0, 1)
    for uid, row in rows.items():
        assert row["observation"][2] == np.full(3, uid, np.float32).tobytes()
        assert row["note"] == f"n{uid}" * (uid % 50)
        assert row["picture"][2][16:] == bytes([uid % 251]) * 16
        if row["valid/next_observation"][2] == b"\x01":
            assert row["next_observation"][2] == np.full(3, uid + 1, np.float32).tobytes()


def test_a_log_copied_elsewhere_is_verified_frame_by_frame(tmp_path: Path) -> None:
    """What a restored backup is: another inode, so the counter alone is not believed."""
    ws = rc.create_workspace(tmp_path / "w", SCHEMA)
    writer = ws.writer(durability="process")
    with writer.episode() as episode:
        for i in range(40):
            episode.append(observation=[i] * 3, reward=0.0, uid=i, note="x" * i)
    copied = tmp_path / "copy"
    run_python(f"import shutil; shutil.copytree({str(tmp_path / 'w')!r}, {str(copied)!r})")
    segment = next((copied / "log").glob("*/00000000.seg"))
    layout = Layout.of(SCHEMA)
    from recollect.hot.format.segment import Segment

    layouts = Layouts({1: SCHEMA}.get)
    at = Segment.open_(segment, layouts).records_at + 25 * layout.itemsize + layout.offset("/observation")
    raw = bytearray(segment.read_bytes())
    raw[at] ^= 0xFF
    segment.write_bytes(raw)
    other = rc.open_workspace(copied)
    assert [(r.rows, r.lost, r.lost_rows) for r in other.recovered] == [(25, Extent(writer.id, 25, 40), 15)]
    assert len(other.view().rows) == 25
    assert len(ws.view().rows) == 40
    assert recover(copied / "log", layouts) == []


def test_a_forked_writer_raises_and_its_parent_goes_on() -> None:
    code = """
import os, sys
import recollect as rc
from recollect import errors
ws = rc.open_workspace("w")
writer = ws.writer()
episode = writer.episode()
append = lambda i: episode.append(observation=[0, 0, 0], reward=0.0, uid=i)
append(0)
pid = os.fork()
if pid == 0:
    refused = 0
    for act in (lambda: append(1), lambda: writer.episode(id="x"), lambda: writer.sync(), lambda: writer.extend(
        {"episode": [0], "step": [0], "observation": [[0.0, 0, 0]], "reward": [0.0], "uid": [0]})):
        try:
            act()
        except errors.WriterError:
            refused += 1
    os._exit(40 + refused)
_, status = os.waitpid(pid, 0)
print(os.waitstatus_to_exitcode(status), append(2).seq, len(ws.view().rows))
writer.close()
"""
    rc.create_workspace("w", SCHEMA)
    assert run_python(code).split() == ["44", "1", "2"]


@pytest.mark.parametrize("durability", ["process", "interval", "step"])
def test_sync_marks_rows_durable(durability: Any) -> None:
    with rc.create_workspace("w", SCHEMA, durability=durability) as ws:
        writer = ws.writer()
        episode = writer.episode()
        for i in range(5):
            episode.append(observation=[0, 0, 0], reward=0.0, uid=i)
            if durability == "step":
                assert ws.stats().writers[0].durable == i + 1
        if durability == "process":
            assert ws.stats().writers[0].durable == 0
        if durability == "interval":
            stop = time.monotonic() + 10
            while ws.stats().writers[0].durable < 5:
                assert time.monotonic() < stop, "the interval flush never came"
                time.sleep(0.02)
        writer.sync()
        assert ws.stats().writers[0].durable == 5
        episode.append(observation=[0, 0, 0], reward=0.0, uid=9)
        if durability == "process":
            assert ws.stats().writers[0].durable == 5
        writer.close()
        assert ws.stats().writers[0].durable == ws.stats().writers[0].visible


def test_opening_a_workspace_does_not_seal_a_writer_that_is_being_created(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process looks between the creation of a writer's lock file and its lock."""
    import fcntl

    with rc.create_workspace("w", SCHEMA) as ws:
        real = fcntl.flock
        looked: list[int] = []

        def flock(fd: int, how: int) -> None:
            if not looked:
                looked.append(fd)
                rc.open_workspace("w")
            real(fd, how)

        monkeypatch.setattr(fcntl, "flock", flock)
        writer = ws.writer()
        assert looked
        with writer.episode() as episode:
            id = episode.append(observation=[0, 0, 0], reward=0.0, uid=7)
        assert [s.id for s in ws.recent(1)] == [id]
        assert len(rc.open_workspace("w").view().rows) == 1


# -- segments --------------------------------------------------------------------------------------------------------


def test_a_log_rolls_over_segments_without_losing_or_reordering_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("recollect.hot.write.growing.SEGMENT_BYTES", (1 << 16,))
    with rc.create_workspace("w", SCHEMA, durability="process") as ws:
        writer = ws.writer()
        episode = writer.episode()
        big = "☃" * 3_000_000
        view_before = None
        for uid in range(3000):
            note = big if uid == 1500 else None if uid % 2 else f"note {uid}"
            picture = None if uid % 3 else np.full((4, 4), uid % 256, np.uint8)
            episode.append(
                observation=[uid, 0, 0],
                reward=0.0,
                uid=uid,
                note=note,
                picture=picture,
                next_observation=[uid + 1, 0, 0],
            )
            if uid == 100:
                view_before = ws.view()
        segments = sorted((ws.path / "log").glob("*/*.seg"))
        assert len(segments) > 3
        view = ws.view()
        assert [s for _, s in all_ids(view)] == list(range(3000))
        rows = rows_of(view, batch_size=200)
        assert sorted(rows) == list(range(3000))
        assert rows[1500]["note"] == big
        assert all(r["note"] == (None if u % 2 else f"note {u}") for u, r in rows.items() if u != 1500)
        assert view_before is not None and sorted(rows_of(view_before)) == list(range(101))
        writer.close()
        assert rows_of(rc.open_workspace("w").view(), batch_size=200) == rows


def test_a_block_larger_than_a_segment_is_written_whole() -> None:
    schema = rc.Schema(
        {"observation": rc.Tensor("float32", (8,)), "tokens": rc.Ragged("int32"), "uid": rc.Tensor("int64")}
    )
    n = 40_000
    with rc.create_workspace("w", schema, durability="process") as ws, ws.writer() as writer:
        block = {
            "episode": np.arange(n) // 100,
            "step": np.arange(n) % 100,
            "terminated": np.arange(n) % 100 == 99,
            "observation": np.arange(n * 8, dtype=np.float32).reshape(n, 8),
            "tokens": [np.arange(i % 40, dtype=np.int32) for i in range(n)],
            "uid": np.arange(n),
        }
        assert writer.extend(block) == n
        view = ws.view()
        assert (len(view.rows), len(view)) == (n, n)
        slots = np.arange(n)
        assert np.array_equal(view.rows.gather(slots, ("observation",))["observation"], block["observation"])
        assert np.array_equal(view.rows.gather(slots, ("uid",))["uid"], slots)
        assert [len(b or b"") // 4 for b in view.rows.heap_values(slots, "tokens")] == [i % 40 for i in range(n)]


def test_a_live_writer_keeps_its_workspace_from_being_deleted() -> None:
    rc.create_workspace("w", SCHEMA).close()
    child = python(WRITER, "w", "0")
    assert child.stdout is not None
    assert child.stdout.readline() == "ready\n"
    with pytest.raises(errors.WriterError, match="live"):
        rc.delete_workspace("w")
    child.kill()
    child.communicate()
    rc.delete_workspace("w")
    assert rc.list_workspaces() == []
    with pytest.raises(errors.NotFound):
        rc.open_workspace("w")
