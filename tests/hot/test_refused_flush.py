"""A disk that refuses to flush: somebody is told, and nothing counts as durable that may not be.

After a failed flush the kernel may take pages for clean that never reached the disk, and the next flush then succeeds
without writing them (Rebello et al., "Can applications recover from fsync failures?", USENIX ATC 2020).
"""

from __future__ import annotations

import errno
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect.errors import StoreError, WriterError
from recollect.hot.format.segment import FAILED, UNDER_WAY
from recollect.hot.write import growing

SCHEMA = rc.Schema({"observation": rc.Tensor("float32", (2,)), "picture": rc.Frames((64,)), "note": rc.Text()})
PAGE = 4096


def _step(k: int) -> dict[str, Any]:
    return {"observation": [k, k], "picture": np.full(64, k % 250 + 1, np.uint8), "note": f"note {k}"}


class Disk:
    """Counts the pages that a process wrote by system calls, and refuses flushes while `refuses`."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.refuses = False
        self.written: dict[str, set[int]] = {}
        self.flushed: list[str] = []
        for name in ("fsync", "fdatasync"):
            patch.setattr(os, name, self._flush(getattr(os, name)))
        real = os.pwrite

        def pwrite(fd: int, raw: bytes, at: int) -> int:
            pages = self.written.setdefault(_path(fd), set())
            pages.update(range(at // PAGE, (at + len(raw) - 1) // PAGE + 1))
            return real(fd, raw, at)

        patch.setattr(os, "pwrite", pwrite)

    def _flush(self, real: Callable[[int], None]) -> Callable[[int], None]:
        def flush(fd: int) -> None:
            if self.refuses and not os.path.isdir(f"/proc/self/fd/{fd}"):  # noqa: PTH112
                raise OSError(errno.EIO, "Input/output error")
            real(fd)
            self.flushed.append(_path(fd))

        return flush


def _path(fd: int) -> str:
    return os.readlink(f"/proc/self/fd/{fd}")  # noqa: PTH115


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    monkeypatch.setattr(growing, "SEGMENT_BYTES", (1 << 14,))
    return Disk(monkeypatch)


def _wait_until(true: Callable[[], bool]) -> None:
    stop = time.monotonic() + 60
    while not true():
        assert time.monotonic() < stop
        time.sleep(0.01)


def test_who_closes_is_told_of_a_flush_that_failed_in_the_background(disk: Disk) -> None:
    ws = rc.create_workspace("w", SCHEMA)
    writer = ws.writer(durability="interval")
    episode = writer.episode()
    disk.refuses = True
    episode.append(**_step(0))
    _wait_until(lambda: not writer.usable)
    disk.refuses = False
    with pytest.raises(StoreError, match=r"in the background.*Input/output error"):
        writer.close()
    writer.close()  # told once
    ws.close()
    with rc.open_workspace("w") as again:
        assert len(again.view().rows) == 1


def test_who_was_told_by_an_append_is_not_told_again(disk: Disk) -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer(durability="interval") as writer:
        episode = writer.episode()
        disk.refuses = True
        episode.append(**_step(0))
        _wait_until(lambda: not writer.usable)
        with pytest.raises(WriterError, match="sync failed"):
            episode.append(**_step(1))


def test_facts_that_could_not_be_flushed_are_told_by_the_next_call(disk: Disk) -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        with ws.writer(durability="process") as writer, writer.episode() as episode:
            step = episode.append(**_step(0), terminated=True)
        ws.annotate(step, note="before")
        disk.refuses = True
        ws.annotate(step, note="first")
        annotator = ws._own_writers()[-1]
        _wait_until(lambda: not annotator.usable)
        with pytest.raises(StoreError, match="in the background"):
            ws.annotate(step, note="second")
        disk.refuses = False
        ws.annotate(step, note="third")
        assert ws.recent(1)[0].fields["note"] == "third"


@pytest.mark.parametrize("state", [FAILED, UNDER_WAY])
def test_recovery_writes_again_what_a_failed_flush_may_have_left_out(state: int, disk: Disk) -> None:
    """Also where the process died while the flush was under way."""
    ws = rc.create_workspace("w", SCHEMA)
    writer = ws.writer(durability="process")
    episode = writer.episode()
    for k in range(400):
        episode.append(**_step(k))
    disk.refuses = True
    with pytest.raises(StoreError):
        writer.sync()
    disk.refuses = False
    marked = [s for s in writer._log.behind.unsynced if s.flush_state]
    assert [s.flush_state for s in marked] == [FAILED]
    marked[0].control[6] = state
    folder = writer._log.folder
    files = {str(p): p.read_bytes() for p in (*folder.glob("*.seg"), *folder.glob("*.tails"))}
    assert len(files) > 2
    writer.close()
    ws.close()
    disk.written.clear()
    disk.flushed.clear()
    with rc.open_workspace("w") as again:
        assert len(again.view().rows) == 400 and again.recovered[0].lost is None
    for path, raw in files.items():
        full = {k for k in range(-(-len(raw) // PAGE)) if raw[k * PAGE : (k + 1) * PAGE].strip(b"\0")}
        assert full <= disk.written.get(path, set()), path
        assert path in disk.flushed


def test_a_recovery_whose_flush_fails_leaves_it_to_the_next_one_to_write_again(disk: Disk, tmp_path: Path) -> None:
    with rc.create_workspace(tmp_path / "live", SCHEMA) as ws, ws.writer(durability="process") as writer:
        writer.episode().append(**_step(0))
        shutil.copytree(ws.path, tmp_path / "dead")
    disk.written.clear()
    disk.refuses = True
    with pytest.raises(StoreError):
        rc.open_workspace(tmp_path / "dead")
    disk.refuses = False
    (segment,) = (tmp_path / "dead" / "log").glob("*/*.seg")
    whole = {k for k in range(segment.stat().st_size // PAGE) if segment.read_bytes()[k * PAGE :][:PAGE].strip(b"\0")}
    assert not whole <= disk.written.get(str(segment), set())
    rc.open_workspace(tmp_path / "dead").close()
    assert whole <= disk.written[str(segment)]


def test_a_log_that_flushed_well_is_not_written_again(disk: Disk) -> None:
    ws = rc.create_workspace("w", SCHEMA)
    writer = ws.writer(durability="process")
    writer.episode().append(**_step(0))
    writer.sync()
    shutil.copytree(ws.path, ws.path.with_name("copy"))
    disk.written.clear()
    with rc.open_workspace("copy") as copied:
        assert len(copied.view().rows) == 1
    assert sum(map(len, disk.written.values())) <= 4  # marks
    writer.close()
    ws.close()


def test_an_episode_does_not_go_on_after_steps_that_could_not_be_flushed(disk: Disk) -> None:
    ws = rc.create_workspace("w", SCHEMA)
    first = ws.writer(durability="process")
    with first.episode(id="e") as episode:
        episode.append(**_step(0))
    disk.refuses = True
    with pytest.raises(StoreError):
        first.sync()
    disk.refuses = False
    with ws.writer(durability="process") as second, pytest.raises(StoreError, match="could not flush"):
        second.resume_episode("e")
    first.close()
    ws.close()
    with rc.open_workspace("w") as again, again.writer() as third:
        third.resume_episode("e").append(**_step(1), terminated=True)
        assert len(again.view().rows) == 2
