"""Processes that decode the same block: one does it, the others wait; a dead one leaves nothing behind."""

from __future__ import annotations

import os
import random
import signal
import subprocess
from pathlib import Path

import pytest

import recollect as rc
from recollect import errors
from recollect.cache import room
from recollect.cache.blocks import BlockCache
from tests.cache.buffers import blocks, blocks_folder, make_buffer, strays
from tests.support import python, rows_of

READER = """
import sys
import recollect as rc
buffer = rc.open_buffer(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()
view = buffer.at()
print(len(view.rows), buffer.decoded_rows, flush=True)
sys.stdin.readline()
"""

# Stops for good in the middle of a block, holding its lock.
STUCK = """
import sys, time
import recollect as rc
import recollect.cache.blockfile as blockfile
add = blockfile.BlockWriter.add
def slow(self, part):
    add(self, part)
    print("inside", flush=True)
    time.sleep(600)
blockfile.BlockWriter.add = slow
rc.open_buffer(sys.argv[1]).at()
"""

DIES = """
import sys
import recollect as rc
from recollect.testing.instants import at_instant, die
buffer = rc.open_buffer(sys.argv[1])
with at_instant(int(sys.argv[2]), die):
    buffer.at()
print("lived", flush=True)
"""


def _say(child: subprocess.Popen[str], line: str = "go") -> None:
    assert child.stdin is not None
    child.stdin.write(line + "\n")
    child.stdin.flush()


def _hear(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    line = child.stdout.readline().strip()
    assert line, child.stderr.read() if child.stderr else ""
    return line


def _end(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.communicate(timeout=60)


def test_two_processes_decode_a_block_once(tmp_path: Path) -> None:
    buffer = make_buffer(tmp_path, files=3, rows=200)
    children = [python(READER, str(buffer)) for _ in range(2)]
    try:
        for child in children:
            assert _hear(child) == "ready"
        for child in children:
            _say(child)
        heard = [_hear(child).split() for child in children]
        assert [h[0] for h in heard] == ["600", "600"]
        assert sum(int(h[1]) for h in heard) == 600
        assert all(b.in_use for b in BlockCache().room.show())
    finally:
        for child in children:
            _end(child)
    assert not any(b.in_use for b in BlockCache().room.show()) and not strays()


def test_the_other_waits_for_a_decoder_and_takes_over_when_it_dies(tmp_path: Path) -> None:
    buffer = make_buffer(tmp_path, rows=200)
    stuck, other = python(STUCK, str(buffer)), python(READER, str(buffer))
    try:
        assert _hear(other) == "ready"
        assert _hear(stuck) == "inside"
        _say(other)
        assert sorted(name.rpartition(".")[2] for name in strays()) == ["lock", "part"] and not blocks()
        stuck.send_signal(signal.SIGKILL)
        assert _hear(other) == "200 200"
    finally:
        _end(stuck)
        _end(other)
    assert len(blocks()) == 1 and not strays()


def test_a_decoder_that_gets_no_further_is_not_waited_for_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    buffer = make_buffer(tmp_path, rows=200)
    stuck = python(STUCK, str(buffer))
    try:
        assert _hear(stuck) == "inside"
        (lock,) = blocks_folder().glob(".*.lock")
        os.utime(lock, (0, 0))  # as if it had been long ago
        with pytest.raises(errors.ConflictError, match="End it if it is stopped"):
            rc.open_buffer(buffer).at()
    finally:
        _end(stuck)
    assert len(rc.open_buffer(buffer).at().rows) == 200


def test_what_a_dead_decoder_left_is_counted_and_swept_by_others(tmp_path: Path) -> None:
    buffer, other = make_buffer(tmp_path / "1", rows=200), make_buffer(tmp_path / "2", name="other")
    stuck = python(STUCK, str(buffer))
    try:
        assert _hear(stuck) == "inside"
        room = BlockCache().room
        assert sum(h.bytes for h in room.held()) > 20_000
        room.sweep()
        assert len(strays()) == 2, "it lives"
    finally:
        _end(stuck)
    rc.open_buffer(other).at()
    assert len(blocks()) == 1 and not strays()


@pytest.mark.parametrize("kills", [8, pytest.param(200, marks=pytest.mark.torture)])
def test_killed_at_any_instruction(kills: int, tmp_path: Path) -> None:
    buffer = make_buffer(tmp_path, files=2, rows=50)
    with rc.open_workspace("w") as ws:
        want = rows_of(ws.view())
    chance = random.Random(5)
    died = 0
    for _ in range(kills):
        child = python(DIES, str(buffer), str(int(10 ** chance.uniform(2.5, 3.9))))
        child.communicate(timeout=60)
        died += child.returncode == -signal.SIGKILL
        assert rows_of(rc.open_buffer(buffer).at()) == want
        BlockCache().room.clear()
        assert not blocks() and not strays()
    assert died


def test_a_lock_removed_by_its_holder_is_not_mistaken_for_a_free_one(tmp_path: Path) -> None:
    """Two that wait for the same file must not both get it: the one that is left has no name any more."""
    block = tmp_path / "x"
    with room.decoding(block):
        old = os.open(room.lock_of(block), os.O_RDWR)
    try:
        with room.decoding(block) as held:
            assert not os.path.samestat(os.fstat(old), os.fstat(held))
    finally:
        os.close(old)
    assert not list(tmp_path.iterdir())
