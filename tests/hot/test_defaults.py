"""Fields with a default may be left out of every way to write."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors
from tests.hot.versions import V3
from tests.support import bits, rows_of


def test_a_field_with_a_default_may_be_left_out_of_every_way_to_write() -> None:
    ws = rc.create_workspace("w", V3)
    bare: dict[str, Any] = {"observation": {"pose": [1, 2, 3], "camera": np.zeros((2, 2), np.uint16)}}
    with ws.writer() as writer:
        with writer.episode() as episode:
            episode.append(**bare, uid=0, next_observation=bare["observation"])
            episode.append(**bare, uid=1, weight=None, mood=None, level=9, ids=[5])
        lanes = writer.lanes(3)
        many = {"pose": np.ones((3, 3)), "camera": np.zeros((3, 2, 2), np.uint16)}
        on = np.array([True, False, True])
        lanes.append(observation=many, uid=np.array([2, 99, 3]), active=on, next_observation=many)
        block = {"observation": many, "uid": np.array([4, 5, 6]), "episode": [0, 0, 0], "step": [0, 1, 2]}
        some = np.array([True, False, True])
        writer.extend({**block, "valid": {"weight": some, "mood": some}, "next_observation": many})
    rows = rows_of(ws.view())
    assert sorted(rows) == [0, 2, 3, 4, 5, 6]
    defaults = {"observation.touch": [0.5, -1], "level": 7, "plan": {"steps": [1, None]}, "ids": [1, 2], "gone": []}
    for uid, row in rows.items():
        for path, value in defaults.items():
            leaf = V3.by_path[path]
            plain = value if leaf.field.type == "json" else np.array(value, leaf.field.dtype)  # type: ignore[union-attr]
            assert row[path] == bits(plain), (uid, path)
        assert row["valid/weight"] == bits(np.bool_(uid != 5))
        assert row["mood"] == (None if uid == 5 else "calm ☃")
        assert row["next_observation.touch"] == bits(np.array([0.5, -1]))
    last = ws.recent(7)[-2]
    assert (last["uid"], last["weight"], last["mood"], last["level"]) == (1, None, None, 9)
    assert last["ids"].tolist() == [5]


def test_a_default_left_out_hides_no_unknown_name() -> None:
    schema = rc.Schema({"a": rc.Tensor("int64"), "b": rc.Tensor("float32", (2,), default=3)})
    ws = rc.create_workspace("w", schema)
    with ws.writer() as writer, writer.episode() as episode:
        with pytest.raises(errors.FieldError, match="no field 'c'"):
            episode.append(a=1, c=2)
        with pytest.raises(errors.FieldError, match="'a' is missing"):
            episode.append(b=[1, 2])
        with pytest.raises(errors.FieldError, match="'b' is missing"):
            episode.append(a=1, b=None)
        with pytest.raises(errors.FieldError, match="'b' is not optional"):
            writer.extend({"a": [1], "episode": [0], "step": [0], "valid": {"b": np.array([False])}})
        episode.append(a=1)
        episode.append(a=2, b=[4, 5])
    assert [s["b"].tolist() for s in ws.recent(2)] == [[4, 5], [3, 3]]


def test_the_mask_does_not_touch_a_default() -> None:
    """Old rows and new ones read as the same text."""
    schema = rc.Schema({"uid": rc.Tensor("int64"), "note": rc.Text(default="secret")})
    ws = rc.create_workspace("w", schema, mask=lambda text: text.replace("secret", "***"))
    with ws.writer() as writer, writer.episode() as episode:
        episode.append(uid=0)
        episode.append(uid=1, note="secret")
    assert [s["note"] for s in ws.recent(2)] == ["***", "secret"]
