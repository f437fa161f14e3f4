"""One append: what it takes, what it refuses, and that a refusal leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors
from tests.support import all_ids, bits, rows_of

SCHEMA = rc.Schema(
    {
        "observation": {"camera": rc.Frames((2, 2), stack=3), "pose": rc.Tensor("float32", (2,))},
        "action": (rc.Tensor("int8"), rc.Tensor("uint8", (2,))),
        "reward": rc.Tensor("float32"),
        "count": rc.Tensor("int32", optional=True),
        "logits": rc.Tensor("float64", (2,), optional=True),
        "tokens": rc.Ragged("uint8", optional=True),
        "note": rc.Text(optional=True),
        "info": rc.Json(optional=True),
        "embedding": rc.Embedding(3, optional=True),
        "uid": rc.Tensor("int64"),
    },
    episode={"task": rc.Text(), "goal": rc.Tensor("float32", (2,)), "extra": rc.Json()},
)


def _good(uid: int = 0, /, **more: Any) -> dict[str, Any]:
    values: dict[str, Any] = {
        "observation": {"camera": np.full((2, 2), uid + 1, np.uint8), "pose": [1.0, 2.0]},
        "action": (1, [2, 3]),
        "reward": 0.5,
        "uid": uid,
    }
    return {**values, **more}


def _observation(**more: Any) -> dict[str, Any]:
    return {"camera": np.zeros((2, 2), np.uint8), "pose": np.zeros(2), **more}


def _without(name: str) -> dict[str, Any]:
    return {k: v for k, v in _good(1).items() if k != name}


BAD: list[tuple[str, dict[str, Any], str]] = [
    ("missing", _without("reward"), "reward"),
    ("missing nested root", _without("observation"), "observation.camera"),
    ("missing nested", _good(1, observation={"camera": np.zeros((2, 2), np.uint8)}), "observation.pose"),
    ("missing in a tuple", _good(1, action=(1,)), "action.1"),
    ("null where required", _good(1, reward=None), "reward"),
    ("unknown", _good(1, rewrad=1.0), "rewrad"),
    ("unknown nested", _good(1, observation=_observation(depth=1)), "observation.depth"),
    ("too long a tuple", _good(1, action=(1, [2, 3], 4)), "action"),
    ("a number where fields nest", _good(1, observation=3.0), "observation"),
    ("wrong shape", _good(1, observation=_observation(pose=[1.0, 2.0, 3.0])), "pose"),
    ("scalar for a vector", _good(1, logits=1.0), "logits"),
    ("vector for a scalar", _good(1, reward=[1.0]), "reward"),
    ("ragged rows", _good(1, logits=[[1.0], [1.0, 2.0]]), "logits"),
    ("float for an integer", _good(1, count=1.5), "count"),
    ("text for a number", _good(1, reward="1.0"), "reward"),
    ("complex for a float", _good(1, reward=1j), "reward"),
    ("object", _good(1, logits=np.array([None, 1.0])), "logits"),
    ("integer too large", _good(1, count=2**31), "2147483648"),
    ("integer beyond 64 bits", _good(1, uid=2**63), "uid"),
    ("negative for unsigned", _good(1, action=(1, [-1, 3])), "action.1"),
    ("nested integer too large", _good(1, action=(128, [2, 3])), "128"),
    ("int64 array too large for int32", _good(1, count=np.int64(2**40)), "count"),
    ("two-dimensional ragged", _good(1, tokens=[[1]]), "tokens"),
    ("ragged out of range", _good(1, tokens=[256]), "256"),
    ("bytes for text", _good(1, note=b"x"), "note"),
    ("number for text", _good(1, note=3), "note"),
    ("lone surrogate", _good(1, note="\ud800"), "note"),
    ("lone surrogate in JSON", _good(1, info={"a": "\ud800"}), "info"),
    ("no JSON", _good(1, info={"a": object()}), "info"),
    ("set in JSON", _good(1, info={1, 2}), "info"),
    ("embedding of another size", _good(1, embedding=[1.0, 2.0]), "embedding"),
    ("frame of another shape", _good(1, observation=_observation(camera=np.zeros((2, 3), np.uint8))), "camera"),
    ("stack of another depth", _good(1, observation=_observation(camera=np.zeros((2, 2, 2), np.uint8))), "camera"),
    ("float frame", _good(1, observation=_observation(camera=np.zeros((2, 2)))), "camera"),
    (
        "stack that does not begin with the planes before",
        _good(1, observation=_observation(camera=np.full((3, 2, 2), 7, np.uint8))),
        "camera",
    ),
    ("next observation without a field", _good(1, next_observation={"pose": [0.0, 0.0]}), "camera"),
    ("next observation of another shape", _good(1, next_observation=_observation(pose=[0.0])), "pose"),
    ("next observation that is a number", _good(1, next_observation=1.0), "observation"),
    ("unknown field in the next observation", _good(1, next_observation=_observation(depth=1)), "depth"),
    (
        "next stack that does not continue",
        _good(1, next_observation=_observation(camera=np.full((3, 2, 2), 7, np.uint8))),
        "camera",
    ),
    ("priority that is no number", _good(1, priority="high"), "priority"),
]


@pytest.mark.parametrize(("values", "named"), [(v, n) for _, v, n in BAD], ids=[name for name, *_ in BAD])
def test_a_bad_value_is_refused_by_name_and_nothing_is_written(values: dict[str, Any], named: str) -> None:
    with rc.create_workspace("w", SCHEMA) as ws:
        writer = ws.writer()
        with writer.episode() as episode:
            episode.append(**_good(0))
            before = ws.stats()
            with pytest.raises(errors.FieldError, match=named) as caught:
                episode.append(**values)
            assert "\n" not in str(caught.value)
            after = ws.stats()
            assert (after.rows, after.facts, after.drawable) == (before.rows, before.facts, before.drawable)
            id = episode.append(**_good(1, terminated=True))
        assert id.seq == 1
        assert all_ids(ws.view()) == [(writer.id, 0), (writer.id, 1)]
        rows = rows_of(ws.view())
        assert rows[1]["step_index"] == bits(np.int32(1))
        assert rows[0]["next_observation.pose"] == bits(np.array([1, 2], np.float32))


@pytest.mark.parametrize("end", ["terminated", "truncated"])
def test_an_append_after_the_end_is_refused(end: str) -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer:
        with writer.episode() as episode:
            episode.append(**_good(0, **{end: True}))
            with pytest.raises(errors.EpisodeError, match="ended"):
                episode.append(**_good(1))
        with pytest.raises(errors.EpisodeError, match="ended"):
            episode.append(**_good(1))
        left = writer.episode()
        with left:
            left.append(**_good(2))
        with pytest.raises(errors.EpisodeError):
            left.append(**_good(3))
        assert ws.stats().steps == 2


def test_a_closed_writer_refuses_everything() -> None:
    ws = rc.create_workspace("w", SCHEMA)
    writer = ws.writer()
    episode = writer.episode()
    writer.close()
    writer.close()
    acts: list[Callable[[], Any]] = [
        lambda: episode.append(**_good(0)),
        lambda: writer.episode(),
        lambda: writer.lanes(1),
        lambda: writer.extend({"episode": [0], "step": [0]}),
        lambda: episode.finish(status="success"),
    ]
    for act in acts:
        with pytest.raises(errors.WriterError, match="closed"):
            act()


# -- what is taken ---------------------------------------------------------------------------------------------------

CASTS: list[tuple[str, Any, Any]] = [
    ("float32", 1, 1.0),
    ("float32", True, 1.0),
    ("float32", 1.1, np.float32(1.1)),
    ("float32", np.float64(1.1), np.float32(1.1)),
    ("float16", np.float64(1.1), np.float16(1.1)),
    ("float32", 2**24 + 1, np.float32(2**24 + 1)),
    ("float32", float("inf"), np.float32(np.inf)),
    ("int8", np.int64(-128), -128),
    ("int8", 127, 127),
    ("uint8", 255, 255),
    ("uint8", np.uint64(255), 255),
    ("uint64", 2**64 - 1, 2**64 - 1),
    ("int64", -(2**63), -(2**63)),
    ("int32", True, 1),
    ("bool", True, True),
    ("bool", np.bool_(False), False),
]


@pytest.mark.parametrize("optional", [False, True])
@pytest.mark.parametrize(("dtype", "value", "want"), CASTS, ids=lambda x: repr(x))
def test_casts_of_the_same_kind_are_taken(dtype: str, value: Any, want: Any, optional: bool) -> None:
    schema = rc.Schema({"x": rc.Tensor(dtype, optional=optional), "y": rc.Tensor(dtype, (2,), optional=optional)})
    with rc.create_workspace("w", schema) as ws, ws.writer().episode() as episode:
        episode.append(x=value, y=[value, value])
        got = ws.view().rows.gather(np.zeros(1, np.int64), ("x", "y"))
        assert bits(got["x"][0]) == bits(np.asarray(want, dtype))
        assert bits(got["y"][0]) == bits(np.asarray([want, want], dtype))


@pytest.mark.parametrize(
    ("dtype", "value"),
    [
        ("bool", 1),
        ("bool", 0.0),
        ("int8", 1.0),
        ("int8", 128),
        ("uint8", -1),
        ("uint64", -1),
        ("uint8", np.int8(-1)),
        ("int64", 2**63),
        ("int32", np.float32(1)),
    ],
    ids=lambda x: repr(x),
)
@pytest.mark.parametrize("optional", [False, True])
def test_casts_of_another_kind_are_refused(dtype: str, value: Any, optional: bool) -> None:
    schema = rc.Schema({"x": rc.Tensor(dtype, optional=optional), "y": rc.Tensor(dtype, (2,), optional=True)})
    with rc.create_workspace("w", schema) as ws, ws.writer().episode() as episode:
        with pytest.raises(errors.FieldError, match="'x'"):
            episode.append(x=value)
        with pytest.raises(errors.FieldError, match="'y'"):
            episode.append(x=np.zeros((), dtype), y=[value, value])
        assert ws.stats().rows == 0


@pytest.mark.parametrize("byteorder", ["<", ">"])
def test_arrays_of_any_memory_order_are_taken(byteorder: str) -> None:
    schema = rc.Schema({"x": rc.Tensor("float32", (3, 2))})
    value = np.arange(6).reshape(2, 3).T.astype(f"{byteorder}f4")
    with rc.create_workspace("w", schema) as ws, ws.writer().episode() as episode:
        episode.append(x=value)
        episode.append(x=value[::-1])
        got = ws.view().rows.gather(np.arange(2), ("x",))["x"]
        assert np.array_equal(got[0], value) and np.array_equal(got[1], value[::-1])


def test_nan_rewards_are_kept_with_their_payload_and_counted() -> None:
    payloads = np.array([0x7FC00000, 0x7FC00001, 0xFFC12345, 0x7FFFFFFF], np.uint32).view(np.float32)
    schema = rc.Schema({"reward": rc.Tensor("float32"), "uid": rc.Tensor("int64")})
    with rc.create_workspace("w", schema) as ws, ws.writer() as writer:
        with writer.episode() as episode:
            for k, value in enumerate(payloads):
                episode.append(reward=value, uid=k)
            episode.append(reward=float("nan"), uid=4)
            episode.append(reward=1.0, uid=5)
        writer.extend({"episode": [0], "step": [0], "reward": payloads[1:2], "uid": [6]})
        assert ws.stats().nan_rewards == 6
        got = ws.view().rows.gather(np.arange(4), ("reward",))["reward"]
        assert got.tobytes() == payloads.tobytes()


def test_an_optional_null_reward_is_no_nan_reward() -> None:
    schema = rc.Schema({"reward": rc.Tensor("float32", optional=True)})
    with rc.create_workspace("w", schema) as ws, ws.writer().episode() as episode:
        episode.append()
        episode.append(reward=float("nan"))
        assert ws.stats().nan_rewards == 1
        assert ws.recent(2)[1]["reward"] is None and np.isnan(ws.recent(2)[0]["reward"])


def test_a_dict_takes_a_tuple_and_a_tuple_takes_a_dict() -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer().episode() as episode:
        episode.append(**_good(0))
        episode.append(**_good(1, action={"0": 1, "1": [2, 3]}))
        episode.append(**_good(2, action=[np.int8(1), np.array([2, 3], np.uint8)]))
        for step in ws.recent(3):
            assert step["action"]["0"] == 1 and step["action"]["1"].tolist() == [2, 3]


@pytest.mark.parametrize(
    "value", [None, 0, "", [], {}, {"a": [1, None, {"b": "☃"}]}, "text", 1.5, True, np.float32(2), np.arange(3)]
)
def test_json_of_every_shape_comes_back(value: Any) -> None:
    schema = rc.Schema({"info": rc.Json(optional=True)})
    with rc.create_workspace("w", schema) as ws, ws.writer().episode() as episode:
        episode.append(info=value)
        got = ws.recent(1)[0]["info"]
        assert got == (value.tolist() if isinstance(value, np.ndarray | np.generic) else value)


# -- frames ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["append", "extend", "lanes"])
@pytest.mark.parametrize("wrong", range(2))
def test_a_next_stack_with_a_wrong_older_plane_is_refused(wrong: int, way: str) -> None:
    schema = rc.Schema({"observation": rc.Frames((2,), stack=3, pad="repeat")})
    stack = np.array([[1, 1], [1, 1], [1, 1]], np.uint8)
    following = np.array([[1, 1], [1, 1], [2, 2]], np.uint8)
    following[wrong] = 9
    with rc.create_workspace("w", schema) as ws, ws.writer() as writer:
        with pytest.raises(errors.FieldError, match="observation"):
            if way == "append":
                writer.episode().append(observation=stack, next_observation=following)
            elif way == "lanes":
                writer.lanes(1).append(observation=stack[None], next_observation=following[None])
            else:
                writer.extend(
                    {"episode": [0], "step": [0], "observation": stack[None], "next_observation": following[None]}
                )
        assert ws.stats().rows == 0


@pytest.mark.parametrize(
    ("pad", "first", "fine"),
    [
        ("zero", [0, 0, 5], True),
        ("zero", [5, 5, 5], False),
        ("repeat", [5, 5, 5], True),
        ("repeat", [0, 0, 5], False),
        ("zero", [0, 3, 5], False),
        ("repeat", [4, 5, 5], False),
    ],
)
@pytest.mark.parametrize("way", ["append", "extend", "lanes"])
def test_an_episodes_first_stack_is_padded_as_declared(pad: Any, first: list[int], fine: bool, way: str) -> None:
    schema = rc.Schema({"observation": rc.Frames((1,), stack=3, pad=pad)})
    stack = np.array(first, np.uint8).reshape(3, 1)
    with rc.create_workspace("w", schema) as ws, ws.writer() as writer:

        def write() -> None:
            if way == "append":
                writer.episode().append(observation=stack)
            elif way == "lanes":
                writer.lanes(1).append(observation=stack[None])
            else:
                writer.extend({"episode": [0], "step": [0], "observation": stack[None]})

        if fine:
            write()
            assert ws.recent(1)[0]["observation"][:, 0].tolist() == first
        else:
            with pytest.raises(errors.FieldError, match="pad"):
                write()
            assert ws.stats().rows == 0


@pytest.mark.parametrize("way", ["append", "extend"])
def test_an_accepted_stack_is_read_back_as_it_was_given(way: str) -> None:
    """A null frame stands between two others."""
    schema = rc.Schema({"observation": rc.Frames((1,), stack=3, optional=True), "uid": rc.Tensor("int64")})
    stacks = [[0, 0, 1], None, [0, 1, 2], [1, 2, 3]]
    accepted: dict[int, list[int]] = {}
    with rc.create_workspace("w", schema) as ws, ws.writer() as writer:
        episode = writer.episode()
        step = 0
        for uid, planes in enumerate(stacks):
            value = None if planes is None else np.array(planes, np.uint8).reshape(3, 1)
            try:
                if way == "append":
                    episode.append(observation=value, uid=uid)
                else:
                    row = np.zeros((3, 1), np.uint8) if value is None else value
                    valid = {"observation": [value is not None]}
                    writer.extend(
                        {"episode": [0], "step": [step], "uid": [uid], "observation": row[None], "valid": valid}
                    )
            except errors.FieldError:
                continue
            step += 1
            if planes is not None:
                accepted[uid] = planes
        got = {int(s["uid"]): s["observation"] for s in ws.recent(9)}
    assert {uid: got[uid][:, 0].tolist() for uid in accepted} == accepted


def test_each_plane_is_stored_once() -> None:
    schema = rc.Schema({"observation": rc.Frames((64, 64), stack=4), "reward": rc.Tensor("float32")})
    with rc.create_workspace("w", schema, durability="process") as ws, ws.writer() as writer:
        planes: list[Any] = [np.zeros((64, 64), np.uint8)] * 3
        episode = writer.episode()
        episode.append(observation=planes[0], reward=0.0)
        before = ws.stats().disk_bytes
        for t in range(2000):
            planes = [*planes[-3:], np.full((64, 64), t % 256, np.uint8)]
            episode.append(observation=np.stack(planes), reward=0.0)
        grown = ws.stats().disk_bytes - before
        assert grown < 2.5 * 2000 * 64 * 64 + (64 << 20), (
            "segments are allocated ahead, but four planes a step is too much"
        )
        assert np.array_equal(ws.recent(1)[0]["observation"], np.stack(planes))


# -- masking ---------------------------------------------------------------------------------------------------------

SECRET = "sk-verysecret"


def _hide(text: str) -> str:
    return text.replace(SECRET, "[hidden]")


def test_no_secret_reaches_a_file() -> None:
    schema = rc.Schema(
        {"observation": rc.Text(), "note": rc.Text(optional=True), "info": rc.Json(optional=True)},
        episode={"task": rc.Text(), "extra": rc.Json()},
    )
    ws = rc.create_workspace("w", schema, mask=_hide)
    nested = {"a": [f"x {SECRET}", {SECRET: 1, "b": {"c": (f"{SECRET}!",)}}], SECRET: SECRET}
    writer = ws.writer(agent=f"agent {SECRET}")
    with writer.episode(id=f"id-{SECRET}", task=f"task {SECRET}", extra=nested) as episode:
        step = episode.append(observation=f"saw {SECRET}", note=SECRET, info=nested, next_observation=f"then {SECRET}")
        episode.append(observation=SECRET, info=SECRET, terminated=True)
        episode.finish(status=f"failed: {SECRET}", lesson=f"never print {SECRET}")
    writer.extend(
        {
            "episode": [f"block {SECRET}"],
            "step": [0],
            "observation": [f"o {SECRET}"],
            "note": [SECRET],
            "info": [nested],
            "next_observation": [SECRET],
            "facts": {f"block {SECRET}": {"lesson": SECRET}},
        }
    )
    lanes = writer.lanes(1)
    lanes.begin(0, id=f"lane {SECRET}", task=SECRET)
    lanes.append(observation=[SECRET], note=[SECRET], info=[nested])
    ws.annotate("id-[hidden]", lesson=f"late {SECRET}", extra=nested)
    ws.annotate(step, note=f"late {SECRET}", info=nested)
    assert ws.episode("id-[hidden]").facts["lesson"] == "late [hidden]"
    assert ws.recent(9)[-1]["note"] == "late [hidden]"
    snap_to = ws.path.parent / "buffer"
    ws.snapshot(snap_to, tag="t")
    ws.close()
    rc.open_workspace("w")
    files = [p for p in ws.path.parent.rglob("*") if p.is_file()]
    assert any(b"[hidden]" in p.read_bytes() for p in files)
    for path in files:
        assert SECRET.encode() not in path.read_bytes(), path
        assert SECRET not in path.name


# -- facts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "facts",
    [{"nope": 1}, {"task": 3}, {"goal": [1.0]}, {"goal": ["a", "b"]}, {"reward": "high"}, {"extra": object()}],
    ids=str,
)
def test_a_bad_fact_is_refused_and_nothing_is_written(facts: dict[str, Any]) -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer:
        with pytest.raises(errors.FieldError, match=next(iter(facts))):
            writer.episode(**facts)
        episode = writer.episode(id="e")
        episode.append(**_good(0))
        with pytest.raises(errors.FieldError, match=next(iter(facts))):
            episode.finish(**facts)
        with pytest.raises(errors.FieldError, match=next(iter(facts))):
            ws.annotate("e", **facts)
        assert ws.stats().facts == 1
        assert ws.episode("e").facts == {}


@pytest.mark.parametrize("id", ["", 3, b"x"])
def test_an_episode_id_is_text(id: Any) -> None:
    with (
        rc.create_workspace("w", SCHEMA) as ws,
        ws.writer() as writer,
        pytest.raises(errors.RecollectError, match="id"),
    ):
        writer.episode(id=id)


def test_leaving_an_episode_tells_how_it_ended() -> None:
    with rc.create_workspace("w", SCHEMA) as ws, ws.writer() as writer:
        with writer.episode(id="left") as episode:
            episode.append(**_good(0))
        with writer.episode(id="ended") as episode:
            episode.append(**_good(1, terminated=True))
        with writer.episode(id="judged") as episode:
            episode.append(**_good(2))
            episode.finish(status="success", reward=1)
        with pytest.raises(RuntimeError), writer.episode(id="broken") as episode:
            episode.append(**_good(3))
            raise RuntimeError
        statuses = {name: ws.episode(name).facts.get("status") for name in ("left", "ended", "judged", "broken")}
        assert statuses == {"left": "interrupted", "ended": None, "judged": "success", "broken": "interrupted"}
        assert ws.episode("judged").facts["reward"] == 1.0
