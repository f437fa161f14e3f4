"""`RecordVector` stores exactly the transitions that took place, in each of gymnasium's autoreset modes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from operator import itemgetter
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AsyncVectorEnv, AutoresetMode, SyncVectorEnv, VectorEnv

import recollect as rc
from recollect.errors import ArgumentError, EpisodeError, FieldError, SchemaMismatch

from .conftest import Open
from .counting import Counting, Truth
from .reading import episodes, transitions

LANES = 3
MODES = list(AutoresetMode)
each_mode = pytest.mark.parametrize("mode", MODES, ids=[m.name for m in MODES])


def vector(kind: type[Any], form: str, mode: AutoresetMode, **options: Any) -> VectorEnv[Any, Any, Any]:
    envs: VectorEnv[Any, Any, Any] = kind(
        [partial(Counting, lane, form) for lane in range(LANES)], autoreset_mode=mode, **options
    )
    return envs


def play(envs: Any, truth: Truth, steps: int) -> None:
    """Steps; where nobody resets by itself, the ended lanes are reset first."""
    rng = np.random.default_rng(0)
    for _ in range(steps):
        reset_ended(envs, truth)
        actions = rng.integers(0, 7, LANES)
        envs.step(actions)
        truth.step(actions)


def reset_ended(envs: Any, truth: Truth) -> None:
    if envs.metadata["autoreset_mode"] is AutoresetMode.DISABLED and any(truth.over):
        mask = np.array(truth.over)
        envs.reset(options={"reset_mask": mask})
        truth.reset(np.flatnonzero(mask).tolist())


def check(ws: rc.Workspace, truth: Truth) -> None:
    assert sorted(transitions(ws)) == sorted(truth.log)
    view = ws.view()
    assert len(view) == len(truth.log)
    assert view.anchors.undrawable_open == view.anchors.undrawable_truncated == 0


@each_mode
@pytest.mark.parametrize("kind", [SyncVectorEnv, AsyncVectorEnv])
@pytest.mark.parametrize("form", ["box", "dict"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_exactly_the_true_transitions_are_stored(opened: Open, kind: type[Any], form: str, mode: AutoresetMode) -> None:
    envs = vector(kind, form, mode)
    ws, writer = opened(envs)
    recorder, truth = rc.gym.RecordVector(envs, writer), Truth(LANES, form, mode)
    recorder.reset(seed=1)
    truth.reset()
    play(recorder, truth, 40)
    recorder.close()
    check(ws, truth)
    truncated = [t for t in transitions(ws) if t.truncated]
    assert truncated
    box = itemgetter(slice(None)) if form == "box" else itemgetter(0)
    for t in truncated:
        _, episode, at, _ = box(t.observation)
        assert box(t.next_observation)[1:3] == [episode, at + 1], "not the next episode's first"


@each_mode
@pytest.mark.parametrize("form", ["dict_of_one", "tuple", "multi_discrete", "discrete", "in_place"])
def test_other_spaces_in_every_mode(opened: Open, form: str, mode: AutoresetMode) -> None:
    if form == "in_place" and mode is AutoresetMode.SAME_STEP:
        pytest.skip("gymnasium keeps a reference to the final observation, which such an environment overwrites")
    envs = vector(SyncVectorEnv, form, mode, copy=False)
    ws, writer = opened(envs)
    recorder, truth = rc.gym.RecordVector(envs, writer), Truth(LANES, form, mode)
    recorder.reset()
    truth.reset()
    play(recorder, truth, 25)
    check(ws, truth)


@each_mode
def test_text_in_a_dict_space(opened: Open, mode: AutoresetMode) -> None:
    envs = vector(SyncVectorEnv, "named", mode)
    ws, writer = opened(envs)
    recorder, truth = rc.gym.RecordVector(envs, writer), Truth(LANES, "named", mode)
    recorder.reset()
    truth.reset()
    play(recorder, truth, 15)
    names = [name for e in episodes(ws) for name in e["observation.name"]]
    assert sorted(names) == sorted(t.observation[1] for t in truth.log)
    finals = [e.final["observation.name"] for e in episodes(ws) if e.ended and e.final]
    assert sorted(finals) == sorted(t.next_observation[1] for t in truth.log if t.terminated or t.truncated)


@each_mode
def test_episodes_have_the_environments_boundaries(opened: Open, mode: AutoresetMode) -> None:
    envs = vector(SyncVectorEnv, "box", mode)
    ws, writer = opened(envs)
    recorder, truth = rc.gym.RecordVector(envs, writer), Truth(LANES, "box", mode)
    recorder.reset()
    truth.reset()
    play(recorder, truth, 23)
    recorder.close()
    found = {}
    for record in episodes(ws):
        lane, episode = map(int, record["observation"][0, :2])
        assert record["observation"][:, 2].tolist() == list(range(len(record)))
        assert set(map(tuple, record["observation"][:, :2].tolist())) == {(lane, episode)}
        assert record.facts.get("status") == (None if record.ended else "interrupted")
        found[lane, episode] = (len(record), record.ended)
    wanted: dict[tuple[int, int], tuple[int, bool]] = {}
    for t in truth.log:
        lane_episode = (int(t.observation[0]), int(t.observation[1]))
        wanted[lane_episode] = (wanted.get(lane_episode, (0, False))[0] + 1, t.terminated or t.truncated)
    assert found == wanted
    assert set(ws.view().facts.episodes) <= {e.key for e in episodes(ws)}, "no fact about an episode without rows"


@each_mode
def test_a_full_reset_interrupts_open_lanes(opened: Open, mode: AutoresetMode) -> None:
    envs = vector(SyncVectorEnv, "box", mode)
    ws, writer = opened(envs)
    recorder, truth = rc.gym.RecordVector(envs, writer), Truth(LANES, "box", mode)
    for _ in range(3):
        recorder.reset()
        truth.reset()
        play(recorder, truth, 4)
    check(ws, truth)
    open_ended = [e for e in episodes(ws) if not e.ended]
    assert {e.facts.get("status") for e in open_ended[: -sum(not o for o in truth.over)]} == {"interrupted"}


@each_mode
def test_a_masked_reset_touches_only_its_lanes(opened: Open, mode: AutoresetMode) -> None:
    envs = vector(SyncVectorEnv, "box", mode)
    ws, writer = opened(envs)
    recorder, truth = rc.gym.RecordVector(envs, writer), Truth(LANES, "box", mode)
    recorder.reset()
    truth.reset()
    play(recorder, truth, 1)
    before = list(recorder.episode_keys)
    recorder.reset(options={"reset_mask": np.array([True, False, True])})
    truth.reset([0, 2])
    play(recorder, truth, 1)
    check(ws, truth)
    changed = [a != b for a, b in zip(before, recorder.episode_keys, strict=True)]
    assert changed == [True, False, True]


def test_a_finished_lane_that_is_stepped_on_stores_nothing(opened: Open) -> None:
    """gymnasium's own vectors refuse; others go on, and what they return belongs to no episode."""

    class Lenient(SyncVectorEnv):
        def step(self, actions: Any) -> Any:
            self._autoreset_envs[:] = False
            return super().step(actions)

    envs = vector(Lenient, "box", AutoresetMode.DISABLED)
    ws, writer = opened(envs)
    recorder, truth = rc.gym.RecordVector(envs, writer), Truth(LANES, "box", AutoresetMode.DISABLED)
    recorder.reset()
    truth.reset()
    for _ in range(4):
        recorder.step(np.zeros(LANES, np.int64))
        truth.step(np.zeros(LANES, np.int64))
    check(ws, truth)
    assert len(truth.log) == 1 + 2 + 3

    strict = rc.gym.RecordVector(vector(SyncVectorEnv, "box", AutoresetMode.DISABLED), writer)
    strict.reset()
    strict.step(np.zeros(LANES, np.int64))
    with pytest.raises(AssertionError):
        strict.step(np.zeros(LANES, np.int64))


@each_mode
def test_a_call_that_raises_needs_a_full_reset(opened: Open, mode: AutoresetMode) -> None:
    """Some lanes may have moved and others not: a step from there on would join what does not belong together."""
    envs = vector(SyncVectorEnv, "box", mode)
    ws, writer = opened(envs)
    recorder, truth = rc.gym.RecordVector(envs, writer), Truth(LANES, "box", mode)
    with pytest.raises(EpisodeError, match=r"Call reset\(\)"):
        recorder.step([0, 0, 0])
    recorder.reset()
    truth.reset()
    play(recorder, truth, 2)
    reset_ended(recorder, truth)
    with pytest.raises(FieldError, match="action"):
        recorder.step([0.5, 0.5, 0.5])
    with pytest.raises(EpisodeError, match=r"Call reset\(\)"):
        recorder.step([0, 0, 0])
    with pytest.raises(EpisodeError, match=r"Call reset\(\)"):
        recorder.reset(options={"reset_mask": np.array([True, False, False])})
    assert {e.facts.get("status") for e in episodes(ws) if not e.ended} == {"interrupted"}
    recorder.reset()
    truth.envs = [Counting(lane) for lane in range(LANES)]
    for lane, env in enumerate(envs.envs):  # type: ignore[attr-defined]
        truth.envs[lane].episode = env.episode - 1
    truth.reset()
    play(recorder, truth, 5)
    check(ws, truth)


@pytest.mark.parametrize("value", [None, "Sometimes", 3])
def test_metadata_without_a_known_mode_is_refused(opened: Open, value: Any) -> None:
    envs = vector(SyncVectorEnv, "box", AutoresetMode.NEXT_STEP)
    _, writer = opened(envs)
    envs.metadata = {} if value is None else {"autoreset_mode": value}
    with pytest.raises(ArgumentError, match=r"AutoresetMode\.SAME_STEP") as caught:
        rc.gym.RecordVector(envs, writer)
    assert str(value if value is not None else "nothing") in str(caught.value)


def test_a_schema_that_does_not_fit_is_refused_by_field(opened: Open) -> None:
    _, writer = opened(Counting(0, "discrete"))
    with pytest.raises(SchemaMismatch, match="field 'observation' is"):
        rc.gym.RecordVector(vector(SyncVectorEnv, "box", AutoresetMode.NEXT_STEP), writer)


def test_a_lost_final_observation_is_refused(opened: Open) -> None:
    class Forgetful(gymnasium.vector.VectorWrapper[Any, Any, Any, Any, Any]):
        def step(self, actions: Any) -> Any:
            return *self.env.step(actions)[:4], {}

    envs = Forgetful(vector(SyncVectorEnv, "box", AutoresetMode.SAME_STEP))
    ws, writer = opened(envs)
    recorder = rc.gym.RecordVector(envs, writer)
    recorder.reset()
    with pytest.raises(ArgumentError, match=r"lane 0 ended .* without infos"):
        recorder.step([0, 0, 0])
    assert len(ws.view().rows) == 0


INFO_SCHEMA: dict[str, rc.Tensor | rc.Json | rc.Frames] = {
    "observation": rc.Tensor("float32", (4,)),
    "action": rc.Tensor("int64"),
    "reward": rc.Tensor("float32"),
    "info": rc.Json(),
}


@each_mode
def test_each_step_keeps_its_own_info_and_each_episode_its_own_facts(opened: Open, mode: AutoresetMode) -> None:
    envs = vector(SyncVectorEnv, "box", mode)
    ws, writer = opened(rc.Schema(INFO_SCHEMA, episode={"level": rc.Tensor("int64")}))

    def facts(info: Mapping[str, Any]) -> Mapping[str, Any]:
        assert list(info) == ["level"]
        return info

    recorder, truth = rc.gym.RecordVector(envs, writer, facts=facts), Truth(LANES, "box", mode)
    recorder.reset()
    truth.reset()
    play(recorder, truth, 12)
    for record in episodes(ws):
        lane, level = map(int, record["observation"][0, :2])
        assert record["info"] == [{"at": k + 1, "inner": {"lane": lane}} for k in range(len(record))]
        assert record.facts["level"] == level
    check(ws, truth)


class Stacked(gymnasium.wrappers.FrameStackObservation):
    """Counting observations as pictures, the newest two of them stacked."""

    def __init__(self, lane: int) -> None:
        box = gymnasium.spaces.Box(0, 255, (2, 2), np.uint8)
        as_picture = gymnasium.wrappers.TransformObservation(
            Counting(lane), lambda o: o.reshape(2, 2).astype(np.uint8) + 1, box
        )
        super().__init__(as_picture, 2)


@each_mode
def test_frame_stacks_are_stored_once_and_read_whole(opened: Open, mode: AutoresetMode) -> None:
    envs = SyncVectorEnv([partial(Stacked, lane) for lane in range(LANES)], autoreset_mode=mode)
    frames = rc.Frames((2, 2), stack=2, pad="repeat")
    ws, writer = opened(rc.Schema({**INFO_SCHEMA, "observation": frames, "info": rc.Json(optional=True)}))
    recorder, truth = rc.gym.RecordVector(envs, writer), Truth(LANES, "box", mode)
    truth.envs = [Stacked(lane) for lane in range(LANES)]  # type: ignore[misc]
    recorder.reset()
    truth.reset()
    play(recorder, truth, 20)
    check(ws, truth)
