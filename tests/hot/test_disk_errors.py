"""A disk that refuses: an error, nothing half-written, and smaller segments while there is room for them."""

from __future__ import annotations

import errno
import os
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors
from tests.support import all_ids

SCHEMA = rc.Schema(
    {
        "observation": rc.Tensor("float32", (3,)),
        "reward": rc.Tensor("float32"),
        "note": rc.Text(optional=True),
        "picture": rc.Frames((4, 4), stack=2, optional=True),
        "uid": rc.Tensor("int64"),
    }
)


def _failing(code: int) -> Any:
    def fail(*arguments: Any) -> None:
        raise OSError(code, os.strerror(code))

    return fail


@pytest.mark.parametrize("given", [True, False], ids=["with-next", "without-next"])
@pytest.mark.parametrize("way", ["append", "extend", "lanes"])
def test_a_full_disk_is_an_error_and_nothing_is_half_written(
    way: str, given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The very append that needs more room fails whole; the same call works when there is room again."""
    schema = rc.Schema({"observation": rc.Tensor("float32", (64,)), "uid": rc.Tensor("int64")})
    with rc.create_workspace("w", schema, durability="process") as ws, ws.writer() as writer:
        episode = writer.episode()
        lanes = writer.lanes(2)

        def write(uid: int) -> None:
            rows = np.full((2, 64), uid, np.float32)
            seen: Any = rows + 1 if given else None
            if way == "append":
                episode.append(observation=rows[0], uid=uid, next_observation=None if seen is None else seen[0])
            elif way == "lanes":
                lanes.append(observation=rows, uid=np.array([uid, uid + 1_000_000]), next_observation=seen)
            else:
                block = {"episode": [0, 1], "step": [uid, uid], "observation": rows, "uid": [uid, uid + 1_000_000]}
                writer.extend(block if seen is None else {**block, "next_observation": seen})

        def visible() -> list[int]:
            view = ws.view()
            return [int(u) for u in view.rows.gather(np.arange(len(view.rows)), ("uid",))["uid"]]

        failed = 0
        uid = 0
        with monkeypatch.context() as patch:
            patch.setattr(os, "posix_fallocate", _failing(errno.ENOSPC))
            while uid < 20_000:
                try:
                    write(uid)
                except errors.DiskFull as e:
                    assert "space" in str(e)
                    failed = 1
                    break
                uid += 1
            assert failed, "the disk never filled"
            before = visible()
            with pytest.raises(errors.DiskFull):
                write(uid)
            assert visible() == before
            assert not list(ws.path.rglob(".*.new"))
        for _ in range(3):
            write(uid)
            uid += 1
        after = visible()
        assert sorted(u for u in after if u < 1_000_000) == list(range(uid))
        assert len(after) == len(set(after)) == (uid if way == "append" else 2 * uid)
        assert [s for _, s in all_ids(ws.view())] == list(range(len(after)))


def test_a_block_of_several_parts_fails_whole_on_a_full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """`extend` says that its steps become visible together."""
    schema = rc.Schema({"observation": rc.Tensor("float32", (8,)), "uid": rc.Tensor("int64")})
    n = 60_000
    block = {
        "episode": np.zeros(n, int),
        "step": np.arange(n),
        "observation": np.zeros((n, 8)),
        "uid": np.arange(n),
    }
    with rc.create_workspace("w", schema, durability="process") as ws, ws.writer() as writer:
        real = os.posix_fallocate
        calls: list[int] = []

        def fallocate(fd: int, at: int, size: int) -> None:
            calls.append(size)
            if len(calls) >= 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(fd, at, size)

        monkeypatch.setattr(os, "posix_fallocate", fallocate)
        with pytest.raises(errors.DiskFull):
            writer.extend(block)
            writer.extend({**block, "episode": np.ones(n, int)})
        assert len(ws.view().rows) in (0, n)


def test_a_writer_goes_on_in_smaller_segments_while_the_disk_has_room_for_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    schema = rc.Schema({"observation": rc.Tensor("float32", (250,))})
    real = os.posix_fallocate
    room = 7 << 20

    def fallocate(fd: int, at: int, size: int) -> None:
        nonlocal room
        if size > room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        room -= size
        real(fd, at, size)

    monkeypatch.setattr(os, "posix_fallocate", fallocate)
    written = 0
    with rc.create_workspace("w", schema, durability="process") as ws, ws.writer() as writer:
        episode = writer.episode()
        with pytest.raises(errors.DiskFull, match=r"allocating 1\.\d MiB"):
            while True:
                episode.append(observation=np.full(250, written))
                written += 1
        assert room < 1.1 * (1 << 20), "what was left had no room for the smallest segment"
        view = ws.view()
        seen = view.rows.gather(np.arange(len(view.rows)), ("observation",))["observation"][:, 0]
        assert seen.tolist() == list(range(written))


def test_no_room_for_a_writer_or_a_workspace_is_disk_full(monkeypatch: pytest.MonkeyPatch) -> None:
    ws = rc.create_workspace("w", SCHEMA)
    with monkeypatch.context() as patch:
        patch.setattr(os, "posix_fallocate", _failing(errno.ENOSPC))
        with pytest.raises(errors.DiskFull, match="space"):
            ws.writer()
    with ws.writer().episode() as episode:
        episode.append(observation=[0, 0, 0], reward=0.0, uid=0)
    assert ws.stats().steps == 1
    ws.close()


def test_a_failed_flush_poisons_the_writer_and_the_next_one_works(monkeypatch: pytest.MonkeyPatch) -> None:
    with rc.create_workspace("w", SCHEMA, durability="process") as ws:
        writer = ws.writer()
        episode = writer.episode()
        episode.append(observation=[0, 0, 0], reward=0.0, uid=0)
        with monkeypatch.context() as patch:
            patch.setattr(os, "fdatasync", _failing(errno.EIO))
            with pytest.raises(errors.StoreError):
                writer.sync()
        with pytest.raises(errors.WriterError, match="sync failed"):
            episode.append(observation=[0, 0, 0], reward=0.0, uid=1)
        with pytest.raises(errors.WriterError):
            writer.sync()
        assert [int(s["uid"]) for s in ws.recent(9)] == [0]
        with ws.writer().episode() as other:
            other.append(observation=[0, 0, 0], reward=0.0, uid=2)
        assert sorted(int(s["uid"]) for s in ws.recent(9)) == [0, 2]
