"""Creating and deleting: what lies in the folder already, what a failure leaves, and whose name a workspace has."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors
from recollect.hot.format.files import create_exclusive

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


@pytest.mark.parametrize("again", [False, True])
def test_a_handle_does_not_write_to_another_workspace_of_its_name(tmp_path: Path, again: bool) -> None:
    ws = rc.create_workspace(tmp_path / "w", SCHEMA)
    with ws.writer() as writer, writer.episode() as episode:
        episode.append(observation=[0, 0, 0], reward=0.0)
    (hit,) = ws.recent(1)
    rc.delete_workspace(ws.path)
    other = rc.create_workspace(ws.path, rc.Schema({"observation": rc.Tensor("int8", (1,))})) if again else None
    for use in (
        lambda: ws.writer(),
        lambda: ws.writer(schema=SCHEMA),
        lambda: ws.annotate(hit.episode, lesson="none"),
        lambda: ws.snapshot(tmp_path / "buffer"),
    ):
        with pytest.raises(errors.NotFound):
            use()
    assert not (tmp_path / "buffer").exists()
    if other is not None:
        assert not list((other.path / "log").glob("[0-9a-f]*"))
    else:
        assert not ws.path.exists()


def test_a_deleted_workspace_without_a_schema_has_nothing_to_promote_and_no_writers(tmp_path: Path) -> None:
    ws = rc.create_workspace(tmp_path / "w")
    rc.delete_workspace(ws.path)
    with pytest.raises(errors.NotFound):
        ws.snapshot(tmp_path / "buffer")
    with pytest.raises(errors.NotFound):
        ws.writer(schema=SCHEMA)


def test_of_creators_with_different_schemas_one_wins_whole(tmp_path: Path) -> None:
    schemas = [rc.Schema({"observation": rc.Tensor("float32", (n,))}) for n in range(1, 7)]
    for attempt in range(5):
        path = tmp_path / f"w{attempt}"
        won: list[rc.Schema] = []
        seen: list[rc.Schema | None] = []
        start = threading.Barrier(len(schemas))

        def create(schema: rc.Schema, path: Path = path, won: Any = won, seen: Any = seen, start: Any = start) -> None:
            start.wait()
            try:
                rc.create_workspace(path, schema)
                won.append(schema)
            except errors.AlreadyExists:
                seen.append(rc.open_workspace(path).schema)

        threads = [threading.Thread(target=create, args=(schema,)) for schema in schemas]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(won) == 1 and len(seen) == len(schemas) - 1
        assert all(schema == won[0] for schema in seen)


def test_a_workspace_gets_its_schema_before_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = rc.Schema({"observation": rc.Tensor("int8", (1,))})

    def dies(path: Path, data: bytes) -> bool:
        if path.name == "workspace.json":
            raise KeyboardInterrupt
        return create_exclusive(path, data)

    monkeypatch.setattr("recollect.hot.home.create_exclusive", dies)
    with pytest.raises(KeyboardInterrupt):
        rc.create_workspace(tmp_path / "w", other)
    monkeypatch.undo()
    with pytest.raises(errors.NotFound):
        rc.open_workspace(tmp_path / "w")
    assert rc.create_workspace(tmp_path / "w", SCHEMA).schema == SCHEMA
    assert rc.open_workspace(tmp_path / "w").schema == SCHEMA
