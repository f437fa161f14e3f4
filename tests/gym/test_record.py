"""`Record` stores exactly the transitions that took place."""

from __future__ import annotations

import importlib
import sys
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import recollect as rc
from recollect.errors import EpisodeError, FieldError, MissingDependency, SchemaMismatch

from .conftest import Open
from .counting import SPACES, Counting, Truth
from .reading import episodes, transitions


def play(env: Any, truth: Truth, steps: int) -> None:
    """Resets where an episode ended, and steps with every form of action that a policy may return."""
    forms = (int, np.int64, np.array)
    over = True
    for k in range(steps):
        if over:
            env.reset()
            truth.reset()
        action = forms[k % 3](k % 7)
        _, _, terminated, truncated, _ = env.step(action)
        truth.step([action])
        over = terminated or truncated


@pytest.mark.parametrize("form", [f for f in SPACES if f not in ("text", "named")])
def test_every_space_is_stored_as_it_was_seen(opened: Open, form: str) -> None:
    ws, writer = opened(Counting(2, form))
    truth = Truth(1, form, None)
    truth.envs = [Counting(2, form)]
    play(rc.gym.Record(Counting(2, form), writer), truth, 40)
    assert sorted(transitions(ws)) == sorted(truth.log)


@pytest.mark.parametrize("form", ["text", "named"])
def test_text_observations_are_stored(opened: Open, form: str) -> None:
    env = Counting(1, form)
    ws, writer = opened(env)
    truth = Truth(1, form, None)
    truth.envs = [Counting(1, form)]
    play(rc.gym.Record(env, writer), truth, 12)
    path = "observation" if form == "text" else "observation.name"
    seen = [text for record in episodes(ws) for text in record[path]]
    ends = [record.final[path] for record in episodes(ws) if record.ended and record.final]
    assert seen == [t.observation if form == "text" else t.observation[1] for t in truth.log]
    last = [t.next_observation for t in truth.log if t.terminated or t.truncated]
    assert ends == [x if form == "text" else x[1] for x in last]


def test_episodes_begin_at_reset_and_end_where_the_environment_says(opened: Open) -> None:
    env = rc.gym.Record(Counting(3), opened_writer := opened(Counting())[1])
    assert (env.episode_key, env.episode_id) == (None, None)
    env.reset()
    first = env.episode_key
    assert first == rc.EpisodeKey(opened_writer.id, 0)
    assert env.episode_id == first.default_id
    while not env.step(0)[2]:
        assert env.episode_key == first
    assert env.episode_key == first, "so that facts can be added after the end"
    env.reset()
    assert env.episode_key == rc.EpisodeKey(opened_writer.id, 1)


def test_a_reset_and_a_close_interrupt_an_open_episode_and_leave_the_writer_open(opened: Open) -> None:
    ws, writer = opened(Counting())
    with rc.gym.Record(Counting(4), writer) as env:
        env.reset()
        env.step(1)
        env.reset()
        env.step(2)
    ended = rc.gym.Record(Counting(0), writer)
    ended.reset()
    assert ended.step(3)[2], "episode 0 of lane 0 has one step"
    ended.close()
    ended.close()
    assert [(len(e), e.ended, e.facts.get("status")) for e in episodes(ws)] == [
        (1, False, "interrupted"),
        (1, False, "interrupted"),
        (1, True, None),
    ]
    with writer.episode() as episode:
        episode.append(observation=np.zeros(4, np.float32), action=0, reward=0.0)


def test_stepping_outside_an_episode_is_refused_before_the_environment_moves(opened: Open) -> None:
    inner = Counting(0)
    ws, writer = opened(inner)
    env = rc.gym.Record(inner, writer)
    with pytest.raises(EpisodeError, match=r"Call reset\(\)"):
        env.step(0)
    env.reset()
    env.step(0)
    with pytest.raises(EpisodeError, match=r"Call reset\(\)"):
        env.step(0)
    assert inner.at == 1
    assert len(transitions(ws)) == 1


def test_a_step_that_cannot_be_stored_interrupts_its_episode(opened: Open) -> None:
    """Otherwise the next step would be stored as if it followed on the one before."""
    ws, writer = opened(Counting())
    env = rc.gym.Record(Counting(4), writer)
    env.reset()
    env.step(1)
    with pytest.raises(FieldError, match="action"):
        env.step(1.5)
    with pytest.raises(EpisodeError):
        env.step(1)
    env.reset()
    env.step(1)
    assert [(len(e), e.facts.get("status")) for e in episodes(ws)] == [(1, "interrupted"), (1, None)]
    assert len(transitions(ws)) == 2


def test_actions_are_stored_as_they_were_given(opened: Open) -> None:
    class Clipping(gymnasium.Env[Any, Any]):
        observation_space = action_space = spaces.Box(-1, 1, (2,), np.float32)

        def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
            return np.zeros(2, np.float32), {}

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            np.clip(action, -1, 1, out=action)
            return action, 1, True, False, {}

    ws, writer = opened(Clipping())
    env = rc.gym.Record(Clipping(), writer)
    env.reset()
    env.step(np.array([3, -3], np.float32))
    (record,) = episodes(ws)
    assert record["action"].tolist() == [[3, -3]]
    assert record.final is not None
    assert record.final["observation"].tolist() == [1, -1]


def test_info_is_stored_only_where_the_schema_has_a_place_for_it(opened: Open) -> None:
    base = {"observation": rc.Tensor("float32", (4,)), "action": rc.Tensor("int64"), "reward": rc.Tensor("float32")}
    for field, wanted in ((rc.Json(), [{"at": 1, "inner": {"lane": 1}}]), (rc.Text(optional=True), [None])):
        ws, writer = opened(rc.Schema({**base, "info": field}))
        env = rc.gym.Record(Counting(1), writer)
        env.reset()
        env.step(0)
        assert episodes(ws)[0]["info"] == wanted


def test_facts_come_from_the_reset(opened: Open) -> None:
    schema = rc.Schema(
        {"observation": rc.Tensor("float32", (4,)), "action": rc.Tensor("int64"), "reward": rc.Tensor("float32")},
        episode={"level": rc.Tensor("int64")},
    )
    ws, writer = opened(schema)
    env = rc.gym.Record(Counting(0), writer, facts=lambda info: {**info, "id": f"run/{info['level']}"})
    for level in range(2):
        env.reset()
        env.step(0)
        assert ws.episode(f"run/{level}").facts["level"] == level
        assert env.episode_id is not None
        assert ws.episode(env.episode_id).id == f"run/{level}"


FITTING = {
    "observation": rc.Tensor("float32", (4,)),
    "action": rc.Tensor("int64"),
    "reward": rc.Tensor("float32"),
}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({**FITTING, "observation": rc.Tensor("float32", (5,))}, "field 'observation' is"),
        ({**FITTING, "observation": rc.Tensor("int32", (4,))}, "field 'observation' is"),
        ({**FITTING, "action": rc.Tensor("float32", (1,))}, "field 'action' is"),
        ({"observation": FITTING["observation"], "reward": FITTING["reward"]}, "field 'action' is missing"),
        ({**FITTING, "observation": {"camera": FITTING["observation"]}}, "field 'observation' is missing"),
        ({**FITTING, "logits": rc.Tensor("float32", (7,))}, "field 'logits' is required"),
        ({**FITTING, "info": rc.Text()}, "field 'info' is required"),
    ],
)
def test_an_environment_that_does_not_fit_is_refused_by_field(opened: Open, fields: Any, words: str) -> None:
    _, writer = opened(rc.Schema(fields))
    with pytest.raises(SchemaMismatch, match=words):
        rc.gym.Record(Counting(), writer)


@pytest.mark.parametrize(
    "fields",
    [
        {**FITTING, "observation": rc.Tensor("float64", (4,)), "reward": rc.Tensor("float64")},
        {**FITTING, "observation": rc.Frames((4,), dtype="float32")},
        {**FITTING, "action": rc.Tensor("int32"), "logits": rc.Tensor("float32", (7,), optional=True)},
        {**FITTING, "goal": rc.Tensor("float32", (2,), role="observation", optional=True)},
    ],
)
def test_a_schema_that_keeps_steps_in_another_way_is_accepted(opened: Open, fields: Any) -> None:
    ws, writer = opened(rc.Schema(fields))
    truth = Truth(1, "box", None)
    play(rc.gym.Record(Counting(), writer), truth, 9)
    seen = [tuple(o) for e in episodes(ws) for o in e["observation"].tolist()]
    assert seen == [tuple(t.observation) for t in truth.log]


def test_without_gymnasium_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gymnasium", None)
    monkeypatch.delitem(sys.modules, "recollect.gym", raising=False)
    with pytest.raises(MissingDependency, match=r"recollect\[gym\]"):
        importlib.import_module("recollect.gym")
