"""Private workspaces: a ring in memory that goes with its process."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

import recollect as rc
from recollect.hot import private
from tests.hot.retaining import SCHEMA, small_segments, write_episodes
from tests.support import python, rows_of

__all__ = ["small_segments"]
pytestmark = pytest.mark.usefixtures("small_segments")


def test_a_ring_in_memory_is_one_line(tmp_path: Path) -> None:
    ws = rc.create_workspace(None, SCHEMA, keep=rc.Keep(rows=300, unpromoted="drop"))
    assert ws.durability == "process"
    assert rc.list_workspaces() == []
    with ws.writer() as writer:
        write_episodes(writer, 100)
        view = ws.view()
        loader = rc.Loader(view, rc.Uniform(), batch_size=16, seed=0, steps=2, output="numpy")
        assert [len(b) for b in loader] == [16, 16]
    ws.evict()
    kept = len(ws.view().rows)
    assert 300 <= kept < 600
    snapshot = ws.snapshot(tmp_path / "b")
    assert (snapshot.rows_added, snapshot.gap_rows) == (kept, 3000 - kept)
    ws.close()
    assert not ws.path.exists()
    assert len(rows_of(view)) == len(view), "a view outlives its workspace"


def test_a_private_workspace_goes_with_its_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
import os, sys
import recollect as rc
from recollect.hot import private
from pathlib import Path
private.SHARED_MEMORY = Path(sys.argv[2])
ws = rc.create_workspace(None, rc.Schema({"reward": rc.Tensor("float32")}))
if sys.argv[1] == "fork":
    pid = os.fork()
    if pid == 0:
        sys.exit(0)
    os.waitpid(pid, 0)
    assert ws.path.exists()
print(ws.path, flush=True)
if sys.argv[1] == "wait":
    sys.stdin.readline()
"""
    monkeypatch.setattr(private, "SHARED_MEMORY", tmp_path)
    for how in ("exit", "fork"):
        child = python(code, how, str(tmp_path))
        out, err = child.communicate()
        assert out.startswith(str(tmp_path)) and not Path(out.strip()).exists(), err
    child = python(code, "wait", str(tmp_path))
    assert child.stdout is not None
    path = Path(child.stdout.readline().strip())
    with rc.create_workspace(None, SCHEMA) as mine:
        assert path.exists() and mine.path.parent == path.parent
        child.kill()
        child.communicate()
        assert path.exists()
        with rc.create_workspace(None, SCHEMA):
            assert not path.exists(), "whoever creates one sweeps up"
            assert mine.path.exists()


def test_a_private_workspace_goes_to_disk_where_memory_has_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(private, "ROOM_BYTES", 1 << 62)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    with rc.create_workspace(None, SCHEMA) as ws:
        assert ws.path.is_relative_to(tmp_path)
