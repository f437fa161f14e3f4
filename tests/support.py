"""Trajectories in plain Python, three ways to write them, and what a view must then give back.

The reference knows nothing of records, blocks or views: a trajectory is a list of steps, and a step's batch row follows
from the list alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import recollect as rc

End = Literal["terminated", "truncated", "open"]
ROOT = Path(__file__).resolve().parents[1]


@dataclass
class Moment:
    """One step as the caller gives it: leaf path → value (absent is null), and what was seen next."""

    values: dict[str, Any]
    following: dict[str, Any] | None = None


@dataclass
class Trajectory:
    """Steps of one episode, and how it ends. `open` episodes are interrupted when their writer lets go of them."""

    moments: list[Moment] = field(default_factory=list)
    end: End = "terminated"

    def __len__(self) -> int:
        return len(self.moments)


# -- schemas ---------------------------------------------------------------------------------------------------------


def _vector() -> rc.Schema:
    return rc.Schema(
        {
            "observation": rc.Tensor("float32", (3,)),
            "action": rc.Tensor("int64", ()),
            "reward": rc.Tensor("float32", ()),
            "uid": rc.Tensor("int64", ()),
        }
    )


def _frames(pad: Any) -> rc.Schema:
    return rc.Schema(
        {
            "observation": rc.Frames((2, 3), stack=3, pad=pad),
            "action": rc.Tensor("int16", (2,)),
            "reward": rc.Tensor("float64", ()),
            "uid": rc.Tensor("int64", ()),
        }
    )


def _nested() -> rc.Schema:
    return rc.Schema(
        {
            "observation": {
                "camera": rc.Frames((2, 2), stack=2, pad="repeat"),
                "pose": rc.Tensor("float64", (2,)),
                "pair": (rc.Tensor("bool", (2,)), rc.Tensor("uint16", ())),
            },
            "action": rc.Tensor("float16", (2,)),
            "reward": rc.Tensor("float32", (), optional=True),
            "logits": rc.Tensor("float32", (2,), optional=True),
            "choice": rc.Tensor("int32", (), optional=True),
            "tokens": rc.Ragged("int32", optional=True),
            "note": rc.Text(optional=True),
            "info": rc.Json(optional=True),
            "embedding": rc.Embedding(4, optional=True),
            "uid": rc.Tensor("int64", ()),
        }
    )


def _words() -> rc.Schema:
    return rc.Schema(
        {
            "observation": {"said": rc.Text(), "state": rc.Tensor("float32", (2,))},
            "reward": rc.Tensor("float32", ()),
            "uid": rc.Tensor("int64", ()),
        }
    )


def _agent() -> rc.Schema:
    return rc.Schema(
        {
            "prompt": rc.Text(),
            "tokens": rc.Ragged("int64"),
            "reward": rc.Tensor("float32", (), optional=True),
            "uid": rc.Tensor("int64", ()),
        }
    )


def _hazy() -> rc.Schema:
    return rc.Schema(
        {
            "observation": {"seen": rc.Tensor("float32", (2,)), "felt": rc.Tensor("int16", (2,), optional=True)},
            "reward": rc.Tensor("float32", ()),
            "uid": rc.Tensor("int64", ()),
        }
    )


SCHEMAS: dict[str, Callable[[], rc.Schema]] = {
    "vector": _vector,
    "frames-zero": lambda: _frames("zero"),
    "frames-repeat": lambda: _frames("repeat"),
    "nested-with-nulls": _nested,
    "text-observation": _words,
    "optional-observation": _hazy,
    "no-observation": _agent,
}

_NANS = np.array([0x7FC00001, 0xFFC12345, 0x7FFFFFFF], np.uint32)


def random_value(rng: np.random.Generator, leaf: Any) -> Any:
    """A value of a leaf, with the odd NaN payload, infinity, negative zero, empty array and wide character."""
    kind = leaf.field
    if kind.type == "text":
        return str(rng.choice(["", "a", "naïve ☃", "漢字 and spaces", "𝔘nicode\n\t", "x" * 300]))
    if kind.type == "json":
        return [{"k": int(rng.integers(100)), "é": [None, True, 1.5]}, [], "text", 7, {"deep": {"er": ["☃"]}}][
            int(rng.integers(5))
        ]
    if kind.type == "ragged":
        return rng.integers(-9, 9, int(rng.choice([0, 1, 5, 60]))).astype(kind.dtype)
    dtype = np.dtype(kind.dtype)
    if dtype.kind == "b":
        return rng.random(kind.shape) < 0.5
    if dtype.kind in "iu":
        info = np.iinfo(dtype)
        return rng.integers(info.min, info.max, kind.shape, dtype, endpoint=True)
    value = rng.standard_normal(kind.shape).astype(dtype)
    if kind.type == "tensor" and rng.random() < 0.15:
        value = np.full(kind.shape, rng.choice([np.inf, -np.inf, -0.0]), dtype)
    if kind.type == "tensor" and dtype == np.float32 and rng.random() < 0.15:
        value = np.full(kind.shape, rng.choice(_NANS), np.uint32).view(np.float32).reshape(kind.shape)
    return value


def random_trajectories(
    schema: rc.Schema,
    rng: np.random.Generator,
    *,
    count: int,
    longest: int = 7,
    nulls: bool = True,
    following: Callable[[int], bool] | None = None,
) -> list[Trajectory]:
    """Episodes of every kind. The observation given as next differs from the following step's now and then.

    Args:
        nulls: whether optional numeric fields may be null.
        following: by uid, whether the step comes with its next observation; a coin when None.
    """
    out = []
    uid = 0
    ends: list[End] = ["terminated", "truncated", "open"]
    for k in range(count):
        length = 1 if k < 3 else int(rng.integers(1, longest + 1))
        trajectory = Trajectory(end=ends[k % 3])
        for _ in range(length + 1):
            values = {}
            for leaf in schema.leaves:
                skip = leaf.field.optional and (nulls or leaf.field.type in ("text", "json", "ragged"))
                if not (skip and rng.random() < 0.4):
                    values[leaf.path] = random_value(rng, leaf)
            values["uid"] = np.int64(uid)
            uid += 1
            trajectory.moments.append(Moment(values))
        uid -= 1
        last = trajectory.moments.pop()
        if schema.observations:
            for t, moment in enumerate(trajectory.moments):
                seen = trajectory.moments[t + 1] if t + 1 < length else last
                given = rng.random() < 0.5 if following is None else following(int(moment.values["uid"]))
                if given:
                    moment.following = observation_of(schema, seen)
                    if rng.random() < 0.15:
                        moment.following = {leaf.path: random_value(rng, leaf) for leaf in schema.observations}
        out.append(trajectory)
    return out


def observation_of(schema: rc.Schema, moment: Moment) -> dict[str, Any]:
    return {leaf.path: moment.values[leaf.path] for leaf in schema.observations if leaf.path in moment.values}


# -- ways to write ---------------------------------------------------------------------------------------------------


def nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted paths to nested dicts."""
    out: dict[str, Any] = {}
    for path, value in flat.items():
        at = out
        *parents, last = path.split(".")
        for part in parents:
            at = at.setdefault(part, {})
        at[last] = value
    return out


def next_of(following: Mapping[str, Any] | None) -> Any:
    """A next observation in the form that `append` takes."""
    return None if following is None else nest(following)["observation"]


def order_of(trajectories: list[Trajectory], rng: np.random.Generator) -> list[tuple[int, int]]:
    """(trajectory, step) pairs: each trajectory in order, several interleaved."""
    left = [len(t) for t in trajectories]
    done = [0] * len(trajectories)
    out: list[tuple[int, int]] = []
    active: list[int] = []
    waiting = list(range(len(trajectories)))
    while waiting or active:
        while waiting and len(active) < 3:
            active.append(waiting.pop(0))
        k = active[int(rng.integers(len(active)))]
        out.append((k, done[k]))
        done[k] += 1
        if done[k] == left[k]:
            active.remove(k)
    return out


def flags_of(trajectory: Trajectory, t: int) -> dict[str, bool]:
    last = t == len(trajectory) - 1
    return {
        "terminated": last and trajectory.end == "terminated",
        "truncated": last and trajectory.end == "truncated",
    }


def write_appends(writer: rc.Writer, trajectories: list[Trajectory], order: list[tuple[int, int]]) -> dict[int, Any]:
    """One by one, in the given order. Returns uid → StepId."""
    episodes: dict[int, rc.Episode] = {}
    ids = {}
    for k, t in order:
        trajectory = trajectories[k]
        moment = trajectory.moments[t]
        if k not in episodes:
            episodes[k] = writer.episode()
        ids[int(moment.values["uid"])] = episodes[k].append(
            **nest(moment.values), next_observation=next_of(moment.following), **flags_of(trajectory, t)
        )
    return ids


def column_of(values: list[Any], leaf: Any) -> Any:
    """A column of a block: an array, or a list for values of varying size. Nulls are anything where not valid."""
    if leaf.field.type in ("text", "json", "ragged"):
        return values
    empty = np.zeros(leaf.field.shape, leaf.field.dtype)
    return np.stack([np.asarray(empty if v is None else v, leaf.field.dtype) for v in values])


def write_block(
    writer: rc.Writer, schema: rc.Schema, trajectories: list[Trajectory], part: list[tuple[int, int]]
) -> None:
    """One `extend`. Either every row of the part has its next observation or none has."""
    moments = [trajectories[k].moments[t] for k, t in part]
    columns: dict[str, Any] = {}
    valid: dict[str, Any] = {}
    for leaf in schema.leaves:
        column = [m.values.get(leaf.path) for m in moments]
        columns[leaf.path] = column_of(column, leaf)
        if leaf.field.optional:
            valid[leaf.path] = np.array([v is not None for v in column])
    ends = [flags_of(trajectories[k], t) for k, t in part]
    block: dict[str, Any] = {
        "episode": np.array([k for k, _ in part]),
        "step": np.array([t for _, t in part]),
        "valid": valid,
        **{name: np.array([e[name] for e in ends]) for name in ("terminated", "truncated")},
        **nest(columns),
    }
    if moments[0].following is not None:
        flat = {
            leaf.path: column_of([m.following[leaf.path] for m in moments], leaf)  # type: ignore[index]
            for leaf in schema.observations
        }
        block["next_observation"] = next_of(flat)
    assert writer.extend(block) == len(part)


def write_lanes(
    writer: rc.Writer,
    schema: rc.Schema,
    trajectories: list[Trajectory],
    lanes_of: list[list[int]],
    rng: np.random.Generator,
    *,
    following: bool,
) -> None:
    """Lane i plays the trajectories named in `lanes_of[i]`; lanes rest at random."""
    lanes = writer.lanes(len(lanes_of))
    at = [[0, 0] for _ in lanes_of]
    while True:
        left = [i for i, (k, _) in enumerate(at) if k < len(lanes_of[i])]
        if not left:
            return
        active = [i for i in left if rng.random() < 0.7]
        chosen: list[tuple[Trajectory, int]] = []
        for i, (k, t) in enumerate(at):
            names = lanes_of[i]
            chosen.append((trajectories[names[min(k, len(names) - 1)]], t if k < len(names) else 0))
        moments = [trajectory.moments[t] for trajectory, t in chosen]
        columns = {leaf.path: column_of([m.values.get(leaf.path) for m in moments], leaf) for leaf in schema.leaves}
        ends = [flags_of(trajectory, t) for trajectory, t in chosen]
        seen: Any = None
        if following and schema.observations:
            flat = {
                leaf.path: column_of([m.following[leaf.path] for m in moments], leaf)  # type: ignore[index]
                for leaf in schema.observations
            }
            seen = next_of(flat)
        lanes.append(
            **nest(columns),
            next_observation=seen,
            active=np.isin(np.arange(len(lanes_of)), active),
            **{name: np.array([e[name] for e in ends]) for name in ("terminated", "truncated")},
        )
        for i in active:
            k, t = at[i]
            trajectory = trajectories[lanes_of[i][k]]
            if t + 1 < len(trajectory):
                at[i][1] = t + 1
                continue
            at[i] = [k + 1, 0]
            if trajectory.end == "open":
                lanes.interrupt(i)


# -- what must come back ---------------------------------------------------------------------------------------------


@dataclass
class Expected:
    """uid → row of the drawable steps, and the counts of the others."""

    rows: dict[int, dict[str, Any]]
    undrawable_truncated: int
    undrawable_open: int


def bits(value: Any) -> Any:
    """A value in a form that compares bit for bit."""
    if hasattr(value, "numpy") and not isinstance(value, np.ndarray):
        value = value.numpy()
    if isinstance(value, np.ndarray | np.generic):
        array = np.asarray(value)
        return (array.dtype.str, array.shape, array.tobytes())
    if isinstance(value, Mapping):
        return {k: bits(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [bits(v) for v in value]
    return value


def expected(schema: rc.Schema, trajectories: Iterable[Trajectory]) -> Expected:
    """The batch row of every drawable step, by brute force."""
    out = Expected({}, 0, 0)
    for trajectory in trajectories:
        for t, moment in enumerate(trajectory.moments):
            ended = flags_of(trajectory, t)
            seen = moment.following
            if seen is None and t + 1 < len(trajectory):
                seen = observation_of(schema, trajectory.moments[t + 1])
            if schema.observations and seen is None and not ended["terminated"]:
                if ended["truncated"]:
                    out.undrawable_truncated += 1
                else:
                    out.undrawable_open += 1
                continue
            row: dict[str, Any] = {name: np.bool_(v) for name, v in ended.items()}
            row["step_index"], row["is_first"] = np.int32(t), np.bool_(t == 0)
            for leaf in schema.leaves:
                row[leaf.path] = _field(leaf, trajectory, t, moment.values)
                if leaf.field.optional:
                    row[f"valid/{leaf.path}"] = np.bool_(leaf.path in moment.values)
                if seen is not None and leaf.is_observation and leaf.field.type not in ("text", "json", "ragged"):
                    row[f"next_{leaf.path}"] = _next_field(leaf, trajectory, t, seen)
            if schema.observations:
                row["valid/next_observation"] = np.bool_(seen is not None)
            out.rows[int(moment.values["uid"])] = {k: bits(v) for k, v in row.items()}
    return out


def _empty(leaf: Any) -> NDArray[Any]:
    """What stands for a null: NaN in floats, 0 in integers."""
    dtype = np.dtype(leaf.field.dtype)
    return np.full(leaf.field.shape, np.nan if dtype.kind == "f" else 0, dtype)


def _field(leaf: Any, trajectory: Trajectory, t: int, values: Mapping[str, Any]) -> Any:
    kind = leaf.field.type
    if kind in ("text", "json"):
        return values.get(leaf.path)
    if kind == "ragged":
        return np.asarray(values.get(leaf.path, np.zeros(0)), leaf.field.dtype)
    if kind == "frames" and leaf.field.stack > 1:
        return _stack(leaf, [m.values[leaf.path] for m in trajectory.moments[: t + 1]])
    return np.asarray(values.get(leaf.path, _empty(leaf)), leaf.field.dtype)


def _next_field(leaf: Any, trajectory: Trajectory, t: int, seen: Mapping[str, Any]) -> Any:
    if leaf.field.type == "frames" and leaf.field.stack > 1:
        return _stack(leaf, [*(m.values[leaf.path] for m in trajectory.moments[: t + 1]), seen[leaf.path]])
    return np.asarray(seen.get(leaf.path, _empty(leaf)), leaf.field.dtype)


def _stack(leaf: Any, planes: list[Any]) -> NDArray[Any]:
    """The newest `stack` planes, padded at the front."""
    newest = planes[-leaf.field.stack :]
    pad = np.zeros(leaf.field.shape, leaf.field.dtype) if leaf.field.pad == "zero" else newest[0]
    return np.stack([pad] * (leaf.field.stack - len(newest)) + newest)


def rows_of(view: rc.View, *, batch_size: int = 7) -> dict[int, dict[str, Any]]:
    """uid → every value of every drawable row, read through a loader's epoch."""
    if not len(view):
        return {}
    names = list(view.schema.by_path)
    out: dict[int, dict[str, Any]] = {}
    loader = rc.Loader(view, rc.Uniform(), batch_size=batch_size, seed=1, epochs=1, fields=names, output="numpy")
    for batch in loader:
        flat: dict[str, Any] = {name: batch[name] for name in names}
        for leaf in view.schema.observations:
            if leaf.field.type not in ("text", "json", "ragged"):
                flat[f"next_{leaf.path}"] = batch[f"next_{leaf.path}"]
        for name in ("terminated", "truncated", "step_index", "is_first"):
            flat[name] = batch[name]
        for name, valid in batch.valid.items():
            flat[f"valid/{name}"] = valid
        for i in range(len(batch)):
            row = {name: column[i] for name, column in flat.items()}
            for name, lengths in batch.lengths.items():
                row[name] = row[name][: lengths[i]]
            uid = int(batch["uid"][i])
            assert uid not in out, f"row {uid} was visited twice in one epoch"
            out[uid] = {k: bits(v) for k, v in row.items()}
    return out


def assert_holds(view: rc.View, schema: rc.Schema, trajectories: Iterable[Trajectory]) -> None:
    """Fails unless the view's drawable rows and counts are exactly those of the trajectories."""
    want, have = expected(schema, trajectories), rows_of(view)
    assert sorted(have) == sorted(want.rows)
    for uid, row in want.rows.items():
        for name, value in row.items():
            assert have[uid][name] == value, f"row {uid}, {name}: {have[uid][name]} is not {value}"
    assert view.anchors.undrawable_truncated == want.undrawable_truncated
    assert view.anchors.undrawable_open == want.undrawable_open


# -- batches ---------------------------------------------------------------------------------------------------------


def batch_bits(batch: Any) -> dict[str, Any]:
    """Everything a batch holds, in a form that compares bit for bit."""
    out = {name: bits(batch[name]) for name in batch.keys()}  # noqa: SIM118
    out["/ids"] = bits(batch.ids)
    out["/weight"], out["/probability"] = bits(batch.weight), bits(batch.probability)
    out["/valid"] = {k: bits(v) for k, v in batch.valid.items()}
    out["/lengths"] = {k: bits(v) for k, v in batch.lengths.items()}
    return out


def take(loader: Any, count: int) -> list[dict[str, Any]]:
    return [batch_bits(next(loader)) for _ in range(count)]


def all_ids(view: rc.View) -> list[tuple[int, int]]:
    """Every row's id in view order."""
    return [(int(w), int(s)) for w, s in view.rows.ids(np.arange(len(view.rows))).tolist()]


# -- other processes -------------------------------------------------------------------------------------------------


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    """A child that runs `code` on this checkout, with pipes for its input and output."""
    source = Path(rc.__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": f"{source}{os.pathsep}{ROOT}", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=ROOT,
    )


def run_python(code: str, *arguments: str, timeout_s: float = 60) -> str:
    """The output of a child; fails with its error text when it fails."""
    child = python(code, *arguments)
    out, err = child.communicate(timeout=timeout_s)
    assert child.returncode == 0, err
    return out
