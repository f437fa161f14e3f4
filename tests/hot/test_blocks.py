"""Blocks and lanes: what they refuse is refused whole, and episodes go on from one to the next."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import recollect as rc
from recollect import errors

_ROW = rc.Schema({"x": rc.Tensor("float32"), "k": rc.Tensor("int8", optional=True), "note": rc.Text(optional=True)})
BLOCKS: list[tuple[str, dict[str, Any], type[errors.RecollectError], str]] = [
    ("no episode", {"step": [0], "x": [1.0]}, errors.FieldError, "episode"),
    ("no step", {"episode": [0], "x": [1.0]}, errors.FieldError, "step"),
    ("float episode", {"episode": [0.5], "step": [0], "x": [1.0]}, errors.FieldError, "episode"),
    ("null episode", {"episode": [None], "step": [0], "x": [1.0]}, errors.FieldError, "episode"),
    ("float step", {"episode": [0], "step": [0.0], "x": [1.0]}, errors.FieldError, "step"),
    ("missing", {"episode": [0], "step": [0]}, errors.FieldError, "'x'"),
    ("unknown", {"episode": [0], "step": [0], "x": [1.0], "y": [1.0]}, errors.FieldError, "'y'"),
    ("another length", {"episode": [0, 0], "step": [0, 1], "x": [1.0]}, errors.FieldError, "'x'"),
    (
        "another length of flags",
        {"episode": [0, 0], "step": [0, 1], "x": [1.0, 2.0], "terminated": [True]},
        errors.FieldError,
        "terminated",
    ),
    ("another shape", {"episode": [0], "step": [0], "x": [[1.0]]}, errors.FieldError, "'x'"),
    ("another dtype", {"episode": [0], "step": [0], "x": ["a"]}, errors.FieldError, "'x'"),
    ("out of range", {"episode": [0], "step": [0], "x": [1.0], "k": [200]}, errors.FieldError, "'k'"),
    ("scalar for text", {"episode": [0], "step": [0], "x": [1.0], "note": 5}, errors.FieldError, "note"),
    (
        "text for a column",
        {"episode": [0, 0], "step": [0, 1], "x": [1.0, 2.0], "note": "ab"},
        errors.FieldError,
        "note",
    ),
    (
        "valid of another length",
        {"episode": [0], "step": [0], "x": [1.0], "note": ["a"], "valid": {"note": [True, True]}},
        errors.FieldError,
        "note",
    ),
    (
        "valid of an unknown field",
        {"episode": [0], "step": [0], "x": [1.0], "valid": {"z": [True]}},
        errors.FieldError,
        "'z'",
    ),
    (
        "null where required",
        {"episode": [0], "step": [0], "x": [1.0], "valid": {"x": [False]}},
        errors.FieldError,
        "'x'",
    ),
    ("first step is not 0", {"episode": [0], "step": [1], "x": [1.0]}, errors.EpisodeError, "step 0"),
    ("a gap", {"episode": [0, 0], "step": [0, 2], "x": [1.0, 2.0]}, errors.EpisodeError, "step"),
    (
        "after the end",
        {"episode": [0, 0], "step": [0, 1], "x": [1.0, 2.0], "terminated": [True, False]},
        errors.EpisodeError,
        "end",
    ),
    (
        "facts of nobody",
        {"episode": [0], "step": [0], "x": [1.0], "facts": {7: {"status": "x"}}},
        errors.EpisodeError,
        "7",
    ),
    ("unknown fact", {"episode": [0], "step": [0], "x": [1.0], "facts": {0: {"nope": 1}}}, errors.FieldError, "nope"),
    (
        "next observation of a schema without one",
        {"episode": [0], "step": [0], "x": [1.0], "next_observation": [1.0]},
        errors.FieldError,
        "observation",
    ),
    (
        "priority that is no number",
        {"episode": [0], "step": [0], "x": [1.0], "priority": ["high"]},
        errors.FieldError,
        "priority",
    ),
]


@pytest.mark.parametrize(("block", "kind", "named"), [b[1:] for b in BLOCKS], ids=[b[0] for b in BLOCKS])
def test_a_bad_block_is_refused_whole(block: dict[str, Any], kind: type[errors.RecollectError], named: str) -> None:
    with rc.create_workspace("w", _ROW) as ws, ws.writer() as writer:
        with pytest.raises(kind, match=named):
            writer.extend(block)
        stats = ws.stats()
        assert (stats.rows, stats.facts) == (0, 0)
        good = {"episode": [0, 0], "step": [0, 1], "x": [1.0, 2.0], "k": [1, 2], "valid": {"k": [True, False]}}
        assert writer.extend(good) == 2
        assert [s["k"] for s in ws.recent(2)] == [None, 1]


def test_an_empty_block_adds_nothing() -> None:
    with rc.create_workspace("w", _ROW) as ws, ws.writer() as writer:
        assert writer.extend({"episode": np.zeros(0, int), "step": np.zeros(0, int), "x": np.zeros(0)}) == 0
        assert ws.stats().rows == 0


def test_a_blocks_episode_goes_on_in_the_next_block_until_its_end() -> None:
    schema = rc.Schema({"x": rc.Tensor("float32")}, episode={"task": rc.Text()})
    with rc.create_workspace("w", schema) as ws, ws.writer() as writer:
        writer.extend({"episode": ["a", "b"], "step": [0, 0], "x": [0.0, 0.0], "facts": {"a": {"task": "t"}}})
        with pytest.raises(errors.EpisodeError, match="step 1"):
            writer.extend({"episode": ["a"], "step": [0], "x": [0.0]})
        writer.extend({"episode": ["b", "a"], "step": [1, 1], "x": [1.0, 1.0], "terminated": [False, True]})
        writer.extend({"episode": ["a"], "step": [0], "x": [7.0]})
        assert ws.stats().episodes == 3
        assert ws.episode("a")["x"].tolist() == [7.0]
        assert ws.episode("b")["x"].tolist() == [0.0, 1.0]


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"x": [1.0]}, "x"),
        ({"x": [1.0, 2.0], "terminated": [True]}, "terminated"),
        ({"x": [1.0, 2.0], "active": [1, 0]}, "active"),
        ({"x": [1.0, 2.0], "y": [1.0, 2.0]}, "y"),
        ({}, "x"),
    ],
)
def test_bad_lanes_are_refused_whole(values: dict[str, Any], named: str) -> None:
    with rc.create_workspace("w", _ROW) as ws, ws.writer() as writer:
        lanes = writer.lanes(2)
        with pytest.raises(errors.FieldError, match=f"'{named}'"):
            lanes.append(**values)
        assert ws.stats().rows == 0
        lanes.append(x=np.zeros(2))
        assert ws.stats().rows == 2
        with pytest.raises(errors.ArgumentError):
            writer.lanes(0)


def test_a_lane_can_be_begun_with_a_name_and_facts() -> None:
    schema = rc.Schema({"x": rc.Tensor("float32")}, episode={"task": rc.Text()})
    with rc.create_workspace("w", schema) as ws, ws.writer() as writer:
        lanes = writer.lanes(2)
        lanes.begin(1, id="second", task="hop")
        lanes.append(x=np.array([1.0, 2.0]), terminated=np.array([False, True]))
        assert ws.episode("second").facts == {"task": "hop"}
        assert ws.episode("second")["x"].tolist() == [2.0]
        with pytest.raises(errors.EpisodeError, match="open"):
            lanes.begin(0)
        lanes.begin(1, id="third")
