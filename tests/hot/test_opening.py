"""Creating and deleting: what lies in the folder already, and what a failure leaves."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import recollect as rc
from recollect import errors

SCHEMA = rc.Schema({"observation": rc.Tensor("float32", (3,)), "reward": rc.Tensor("float32")})


def test_a_folder_of_other_things_does_not_become_a_workspace(tmp_path: Path) -> None:
    paper = tmp_path / "mine" / "results" / "paper.txt"
    paper.parent.mkdir(parents=True)
    paper.write_text("precious")
    with pytest.raises(errors.AlreadyExists, match="'results'") as caught:
        rc.create_workspace(tmp_path / "mine", SCHEMA)
    assert caught.value.remedy
    assert [p.name for p in (tmp_path / "mine").iterdir()] == ["results"]


def test_deleting_removes_nothing_but_the_workspace(tmp_path: Path) -> None:
    ws = rc.create_workspace(tmp_path / "w", SCHEMA, home=tmp_path / "b")
    with ws.writer() as writer, writer.episode() as episode:
        episode.append(observation=np.zeros(3, "f4"), reward=0.0)
    ws.snapshot(tmp_path / "b")
    ws.similar("anything")
    ws.close()
    (ws.path / "paper.txt").write_text("precious")
    with pytest.raises(errors.StoreError, match=r"paper\.txt"):
        rc.delete_workspace(ws.path)
    assert (ws.path / "paper.txt").read_text() == "precious" and len(rc.open_workspace(ws.path).recent(9)) == 1
    (ws.path / "paper.txt").unlink()
    rc.delete_workspace(ws.path)
    assert not ws.path.exists()


def test_an_empty_folder_and_what_a_dead_creator_left_may_become_one(tmp_path: Path) -> None:
    path = tmp_path / "w"
    (path / "log").mkdir(parents=True)
    (path / ".schema.json.12.ab").write_bytes(b"half")
    (path / "home.json").write_bytes(b"half")
    ws = rc.create_workspace(path, SCHEMA)
    assert ws.home is None
    rc.delete_workspace(path)


def test_a_home_that_is_none_leaves_no_workspace(tmp_path: Path) -> None:
    with pytest.raises(errors.RecollectError):
        rc.create_workspace("w", SCHEMA, home="ftp://host/buffer")
    assert rc.list_workspaces() == []
    assert rc.create_workspace("w", SCHEMA, home=tmp_path / "b").home == str(tmp_path / "b")


def test_a_missing_description_is_told_and_the_logs_are_taken_up_again(tmp_path: Path) -> None:
    ws = rc.create_workspace(tmp_path / "w", SCHEMA)
    with ws.writer() as writer, writer.episode() as episode:
        episode.append(observation=np.zeros(3, "f4"), reward=0.5)
    ws.close()
    (ws.path / "workspace.json").unlink()
    with pytest.raises(errors.CorruptionError, match=r"workspace\.json is missing") as caught:
        rc.open_workspace(ws.path)
    assert caught.value.remedy is not None and "create the workspace again" in caught.value.remedy
    with rc.create_workspace(ws.path, SCHEMA) as again:
        assert len(again.recent(9)) == 1
