"""What is refused says so in the package's own errors, with nothing written."""

from __future__ import annotations

import shutil
import time
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors
from recollect.hot.format import files

FIELDS: dict[str, Any] = {"reward": rc.Tensor("float32")}
SCHEMA = rc.Schema(FIELDS)


@pytest.mark.parametrize("agent", [7, None, b"a", "\ud800"])
def test_an_agent_is_a_name(agent: Any) -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        with pytest.raises(errors.RecollectError, match="agent"):
            ws.writer(agent=agent)
        assert ws.stats().writers == ()


@pytest.mark.parametrize("bad", [5, None, 1.5, b"a"])
def test_what_names_nothing_is_refused(bad: Any) -> None:
    for call in (rc.open_workspace, rc.delete_workspace, *(() if bad is None else (rc.create_workspace,))):
        with pytest.raises(errors.ArgumentError):
            call(bad)
    with rc.create_workspace("w", SCHEMA) as ws, pytest.raises(errors.ArgumentError, match="episode"):
        ws.episode(bad)


def test_a_step_that_no_segment_could_hold_makes_no_schema() -> None:
    with pytest.raises(errors.SchemaError, match="bytes"):
        rc.Schema({"x": rc.Tensor("float32", (10**6, 10**3))})
    with pytest.raises(errors.SchemaError, match="bytes"):
        rc.Schema({name: rc.Frames((10**4, 10**4)) for name in "abcdefghijkl"})


def test_json_nested_too_deep_is_a_field_error() -> None:
    deep: Any = 1
    for _ in range(5000):
        deep = [deep]
    schema = rc.Schema({"info": rc.Json()})
    with rc.create_workspace("w", schema) as ws, ws.writer() as writer, writer.episode() as episode:
        with pytest.raises(errors.FieldError, match="info"):
            episode.append(info=deep)
        episode.append(info=[1])
        assert len(ws.recent(9)) == 1


@pytest.mark.parametrize("value", [1e300, np.float64(-1e39), 10**39])
def test_a_number_that_would_become_infinite_is_refused(value: Any) -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer, writer.episode() as episode:
        with pytest.raises(errors.FieldError, match="reward"):
            episode.append(reward=value)
        with pytest.raises(errors.FieldError, match="reward"):
            writer.extend({"reward": np.array([0.0, 1e300]), "episode": [1, 1], "step": [0, 1]})
        for fine in (float("inf"), np.float64("-inf"), float("nan"), 3.4e38):
            episode.append(reward=fine)
        assert len(ws.recent(9)) == 4


def test_a_copied_workspace_goes_by_its_folder() -> None:
    with rc.create_workspace("one", SCHEMA) as ws:
        shutil.copytree(ws.path, ws.path.with_name("two"))
    assert rc.open_workspace("two").name == "two"
    with rc.create_workspace(None, SCHEMA) as ring:
        assert ring.name == "private"


def test_a_resumption_that_is_interrupted_leaves_the_episode_to_others(monkeypatch: pytest.MonkeyPatch) -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        with ws.writer() as first, first.episode("a") as episode:
            episode.append(reward=0.0)
        with ws.writer() as second, ws.writer() as third:

            def interrupted() -> None:
                raise KeyboardInterrupt

            with monkeypatch.context() as patch:
                patch.setattr(second._log, "sync", interrupted)
                with pytest.raises(KeyboardInterrupt):
                    second.resume_episode("a")
            with third.resume_episode("a") as again:
                assert again.append(reward=1.0)
        assert len(ws.recent(9)) == 2


@pytest.mark.parametrize(
    ("kind", "refused"),
    [
        ("nfs4", True),
        ("gpfs", True),
        ("virtiofs", True),
        ("wekafs", True),
        ("fuse", True),
        ("fuse.glusterfs", True),
        ("fuse.ceph-fuse", True),
        ("fuse.s3fs", True),
        ("fuse.juicefs", True),
        ("ext4", False),
        ("tmpfs", False),
        ("overlay", False),
        ("fuse.fuse-overlayfs", False),
    ],
)
def test_a_file_system_behind_a_network_is_refused(kind: str, refused: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "file_system_type", lambda path: kind)
    if refused:
        with pytest.raises(errors.StoreError, match=kind):
            rc.create_workspace("w", SCHEMA)
        assert rc.list_workspaces() == []
    else:
        rc.create_workspace("w", SCHEMA).close()


def test_a_writer_of_the_older_schema_says_so() -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer, writer.episode() as episode:
        ws.evolve(rc.Schema({**FIELDS, "aux": rc.Tensor("float32", optional=True)}))
        with pytest.raises(errors.FieldError, match="before evolve"):
            episode.append(reward=0.0, aux=1.0)


def test_an_older_writer_is_told_to_resume_with_a_new_one() -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as old:
        ws.evolve(rc.Schema({**FIELDS, "aux": rc.Tensor("float32", optional=True)}))
        with ws.writer() as new, new.episode("a") as episode:
            episode.append(reward=0.0, aux=1.0)
        with pytest.raises(errors.SchemaMismatch, match=r"new writer"):
            old.resume_episode("a")


def test_an_ended_episode_is_named_as_its_caller_named_it() -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer, writer.episode("mine") as episode:
        episode.append(reward=0.0, terminated=True)
        with pytest.raises(errors.EpisodeError, match="episode mine has ended"):
            episode.append(reward=0.0)


def test_text_for_a_number_is_called_text() -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer:
        episode = writer.episode()
        with pytest.raises(errors.FieldError, match="the value is text"):
            episode.append(reward="a")


def test_stats_say_how_old_the_oldest_row_is_that_is_not_durable() -> None:
    with rc.create_workspace("w", SCHEMA, durability="process") as ws, ws.writer() as writer:
        assert [w.behind_s for w in ws.stats().writers] == [0.0]
        writer.episode().append(reward=0.0)
        began = time.monotonic()
        time.sleep(0.05)
        (now,) = ws.stats().writers
        assert 0.05 <= now.behind_s <= time.monotonic() - began + 60
        writer.sync()
        assert [w.behind_s for w in ws.stats().writers] == [0.0]


def test_a_segment_cut_short_has_a_remedy() -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer, writer.episode() as episode:
        episode.append(reward=0.0)
    path = next((ws.path / "log").glob("*/*.seg"))
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(errors.CorruptionError, match="cut short") as caught:
        rc.open_workspace("w").recent(1)
    assert caught.value.remedy
