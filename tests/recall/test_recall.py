"""recent(), episode(), annotate() and stats(), against lists kept beside the workspace."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors

SCHEMA = rc.Schema(
    {
        "observation": rc.Frames((2,), stack=3, pad="repeat"),
        "inner": {"a": rc.Tensor("float32"), "b": (rc.Text(optional=True),)},
        "reward": rc.Tensor("float32", optional=True),
        "tokens": rc.Ragged("int16", optional=True),
        "uid": rc.Tensor("int64"),
    },
    episode={"task": rc.Text()},
)


def _step(uid: int, **more: Any) -> dict[str, Any]:
    return {
        "observation": np.full(2, uid % 256, np.uint8),
        "inner": {"a": uid / 2, "b": (f"t{uid}",)},
        "reward": float(uid),
        "tokens": [uid],
        "uid": uid,
        **more,
    }


def test_recent_steps_come_newest_first_over_all_writers() -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        writers = [ws.writer() for _ in range(3)]
        episodes = [w.episode() for w in writers]
        ids = []
        for uid in range(200):
            k = uid * 7 % 3
            ids.append(episodes[k].append(**_step(uid)))
        for k in (1, 5, 64, 199, 200, 500):
            hits = ws.recent(k)
            assert hits.ids == ids[::-1][:k]
            assert [int(s["uid"]) for s in hits] == list(range(199, -1, -1))[:k]
        with pytest.raises(errors.ArgumentError):
            ws.recent(0)


def test_final_rows_are_no_recent_steps() -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer:
        for k in range(100):
            with writer.episode() as episode:
                episode.append(**_step(k), truncated=True, next_observation=np.zeros(2, np.uint8))
        assert [int(s["uid"]) for s in ws.recent(40)] == list(range(99, 59, -1))


def test_a_recent_step_is_whole() -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer:
        before = datetime.now(UTC)
        with writer.episode(id="mine") as episode:
            for uid in range(60):
                id = episode.append(
                    **_step(uid, **({"reward": None, "tokens": None} if uid == 59 else {})), terminated=uid == 59
                )
        step = ws.recent(1)[0]
        assert (step.id, step.episode, step.episode_id, step.step) == (id, episode.key, "mine", 59)
        assert (step.terminated, step.truncated) == (True, False)
        assert before.timestamp() - 0.001 <= step.time.timestamp() <= datetime.now(UTC).timestamp() + 0.001
        assert step["observation"].tolist() == [[57, 57], [58, 58], [59, 59]]
        assert step["inner"] == {"a": 29.5, "b": {"0": "t59"}}
        assert step["reward"] is None and step["tokens"] is None and step["uid"] == 59
        for step in ws.recent(60):
            uid = int(step["uid"])
            assert step["observation"][:, 0].tolist() == [max(0, uid - 2), max(0, uid - 1), uid]


def test_nothing_has_happened_yet() -> None:
    with rc.create_workspace("w") as ws:
        assert len(ws.recent()) == 0
        stats = ws.stats()
        assert (stats.rows, stats.steps, stats.episodes, stats.writers) == (0, 0, 0, ())
        with pytest.raises(errors.SchemaError, match="no schema"):
            ws.view()
    with rc.create_workspace("v", SCHEMA) as ws:
        assert len(ws.recent()) == 0 and len(ws.view()) == 0
        with pytest.raises(errors.NotFound):
            ws.episode("e1.0")


@pytest.mark.parametrize("dtype", ["float32", "int32"])
@pytest.mark.parametrize("optional", [True, False])
def test_stats_of_a_workspace_without_steps_are_zeros(dtype: str, optional: bool) -> None:
    with rc.create_workspace("w", rc.Schema({"reward": rc.Tensor(dtype, optional=optional)})) as ws:
        assert ws.stats().rows == ws.stats().nan_rewards == 0
        ws.writer()
        assert ws.stats().rows == ws.stats().nan_rewards == 0
        assert [w.live for w in ws.stats().writers] == [True]


def test_an_episode_is_its_steps_its_facts_and_its_final_observation() -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer:
        noise = writer.episode()
        with writer.episode(id="mine", attempt=2, task="hop") as episode:
            ids = []
            for uid in range(5):
                noise.append(**_step(100 + uid))
                ids.append(
                    episode.append(
                        **_step(uid),
                        truncated=uid == 4,
                        next_observation=np.full(2, 77, np.uint8) if uid == 4 else None,
                    )
                )
            episode.finish(status="success", reward=3, lesson="jump")
        for name in ("mine", episode.key, ids[2]):
            got = ws.episode(name)
            assert (got.id, got.attempt, got.key, got.ids, len(got)) == ("mine", 2, episode.key, ids, 5)
            assert got.facts == {"task": "hop", "status": "success", "reward": 3.0, "lesson": "jump"}
            assert (got.terminated, got.truncated, got.ended) == (False, True, True)
            assert got["uid"].tolist() == list(range(5))
            assert got["reward"].tolist() == [0, 1, 2, 3, 4]
            assert got["observation"].shape == (5, 3, 2) and got["observation"][:, 0, 0].tolist() == [0, 0, 0, 1, 2]
            assert got["inner"]["a"].tolist() == [0, 0.5, 1, 1.5, 2] and got["inner.b.0"] == [f"t{k}" for k in range(5)]
            assert [t.tolist() for t in got["tokens"]] == [[k] for k in range(5)]
            assert got["truncated"].tolist() == [False] * 4 + [True]
            assert got.final is not None
            assert got.final["observation"][:, 0].tolist() == [3, 4, 77]
            with pytest.raises(errors.NotFound, match="nope"):
                got["nope"]
        assert ws.episode(noise.key).final is None and not ws.episode(noise.key).ended
        assert ws.episode(noise.key.default_id)["uid"].tolist() == list(range(100, 105))


def test_the_newest_attempt_answers_to_an_id() -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        for k, attempt in enumerate((1, 3, 2)):
            with ws.writer() as writer, writer.episode(id="task", attempt=attempt) as episode:
                episode.append(**_step(k), terminated=True)
        assert ws.episode("task")["uid"].tolist() == [1]


def test_an_open_episodes_waiting_observation_is_its_final_one() -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer:
        episode = writer.episode(id="open")
        episode.append(**_step(3), next_observation=np.full(2, 9, np.uint8))
        got = ws.episode("open")
        assert got.final is not None and got.final["observation"][:, 0].tolist() == [3, 3, 9]


@pytest.mark.parametrize("name", ["nothing", "e1.0", "e1.x", "", rc.EpisodeKey(1, 2), rc.StepId(1, 2)])
def test_an_unknown_episode_is_not_found(name: Any) -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer().episode() as episode:
        episode.append(**_step(0))
        with pytest.raises(errors.NotFound):
            ws.episode(name)
        with pytest.raises(errors.NotFound):
            ws.annotate(name, lesson="x")
        assert ws.stats().facts == 0


def test_the_newest_fact_wins_and_all_are_kept() -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer:
        with writer.episode(id="mine", task="a") as episode:
            id = episode.append(**_step(0))
        other = rc.open_workspace("w")
        seen = {ws.annotate("mine", reward=1.0), other.annotate(episode.key, reward=2.0), ws.annotate(id, reward=9.0)}
        ws.annotate("mine", lesson="late")
        assert len(seen) == 3
        for reader in (ws, other, rc.open_workspace("w")):
            got = reader.episode("mine")
            assert got.facts == {"task": "a", "status": "interrupted", "reward": 2.0, "lesson": "late"}
            assert [f.values.get("reward") for f in got.history if "reward" in f.values] == [1.0, 2.0, 9.0]
            assert got["reward"].tolist() == [9.0]
        ws.annotate("mine", reward=None)
        assert ws.episode("mine").facts["reward"] is None
        other.close()


def test_step_facts_overlay_new_views_and_leave_old_ones() -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer:
        with writer.episode() as episode:
            ids = [episode.append(**_step(uid)) for uid in range(6)]
        before = ws.view()
        ws.annotate(ids[2], reward=50.0, **{"inner.a": 7, "inner.b.0": "judged"})
        after = ws.view()
        for view, want in ((before, [0, 1, 2, 3, 4, 5]), (after, [0, 1, 50, 3, 4, 5])):
            assert view.rows.gather(np.arange(6), ("reward",))["reward"].tolist() == want
        step = ws.recent(4)[3]
        assert step["inner"] == {"a": 7.0, "b": {"0": "judged"}} and step["reward"] == 50.0
        assert step["tokens"].tolist() == [2]
        for bad in ({"observation": [1, 2]}, {"nope": 1}, {"uid": None}, {"uid": 1.5}, {"inner": {"a": 1}}, {}):
            with pytest.raises(errors.RecollectError):
                ws.annotate(ids[1], **bad)
        assert ws.view().cut.facts == after.cut.facts


def test_stats_count_everything() -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        writer = ws.writer(agent="actor-0")
        seen = np.zeros(2, np.uint8)
        with writer.episode(task="a") as e:
            e.append(**_step(0))
            e.append(**_step(1, reward=float("nan")), terminated=True)
        with writer.episode() as e:
            e.append(**_step(2), truncated=True)
        with writer.episode() as e:
            e.append(**_step(3), truncated=True, next_observation=seen)
        with writer.episode() as e:
            e.append(**_step(4))
        tail = writer.episode()
        tail.append(**_step(5), next_observation=seen)
        stats = ws.stats()
        assert (stats.rows, stats.steps, stats.drawable) == (7, 6, 4)
        assert (stats.undrawable_truncated, stats.undrawable_open) == (1, 1)
        assert (stats.episodes, stats.facts, stats.nan_rewards) == (5, 2, 1)
        assert stats.disk_bytes > 7 * 64
        (mine,) = stats.writers
        assert (mine.writer, mine.agent, mine.visible, mine.facts, mine.live) == (writer.id, "actor-0", 7, 2, True)
        writer.close()
        (mine,) = rc.open_workspace("w").stats().writers
        assert (mine.live, mine.appended, mine.visible, mine.durable) == (False, 8, 8, 8)


# -- workspaces ------------------------------------------------------------------------------------------------------


def test_workspaces_are_created_listed_opened_and_deleted(tmp_path: Path) -> None:
    assert rc.list_workspaces() == []
    for name in ("b", "a", "rl-live.2"):
        rc.create_workspace(name, SCHEMA).close()
    assert rc.list_workspaces() == ["a", "b", "rl-live.2"]
    with pytest.raises(errors.AlreadyExists, match="'a'"):
        rc.create_workspace("a", SCHEMA)
    rc.delete_workspace("b")
    assert rc.list_workspaces() == ["a", "rl-live.2"]
    for missing in ("b", "zz", str(tmp_path / "none")):
        with pytest.raises(errors.NotFound):
            rc.open_workspace(missing)
        with pytest.raises(errors.NotFound):
            rc.delete_workspace(missing)
    placed = rc.create_workspace(tmp_path / "here" / "w", SCHEMA)
    assert rc.open_workspace(f"file://{tmp_path}/here/w").id == placed.id
    assert "w" not in rc.list_workspaces()


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a b", "-x", "é", "a\n", "x" * 200, "s3://bucket/w"])
def test_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(errors.ArgumentError):
        rc.create_workspace(name, SCHEMA)
    with pytest.raises(errors.ArgumentError):
        rc.open_workspace(name)


def test_an_unknown_durability_is_refused_and_creates_nothing() -> None:
    with pytest.raises(errors.ArgumentError, match="sometimes"):
        rc.create_workspace("w", SCHEMA, durability="sometimes")  # type: ignore[arg-type]
    assert rc.list_workspaces() == []


def test_the_first_writer_fixes_the_schema_and_the_next_must_agree() -> None:
    with rc.create_workspace("w") as ws, rc.open_workspace("w") as other:
        assert ws.schema is None
        with pytest.raises(errors.SchemaError, match="no schema"):
            ws.writer()
        ws.writer(schema=SCHEMA)
        assert other.schema == SCHEMA
        other.writer(schema=SCHEMA)
        with pytest.raises(errors.SchemaMismatch, match="'uid'"):
            other.writer(schema=rc.Schema({"uid": rc.Text()}))
        assert rc.open_workspace("w").schema == SCHEMA
