"""Steps whose every value follows from a number, so that a checker needs no copy of what a writer was given.

A step has a `uid`, its own in the whole workspace, and a `look`: what was observed. Two steps with one look have equal
observations, which is how a waiting next observation comes to equal, or to contradict, the step after it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from recollect.schema import Embedding, Field, Frames, Json, Leaf, Ragged, Schema, Tensor, Text
from recollect.schema.fields import is_heap


class Moment(NamedTuple):
    """One step as it was written.

    Attributes:
        uid: its number, unique in the workspace; the field `uid` holds it.
        episode: the model's number of its episode; `step` its index there.
        look: which observation it has; `following` the one that was given as next, -1 for none.
        terminated, truncated: how it ends its episode.
        whole: whether optional fields of fixed shape were given; columns of lanes have no way to leave them out.
    """

    uid: int
    episode: int
    step: int
    look: int
    following: int
    terminated: bool
    truncated: bool
    whole: bool


_POOL = np.random.Generator(np.random.PCG64(20)).integers(0, 256, (1 << 16) + 4096, np.uint8)
_LETTERS = 'naïve ☃ 漢字 𝔘nicode\n\t"\\ plain words, digits 0123456789 '


BORN = {"count": "int16", "ratio": "float32"}
"""Fields that are widened later → the dtype they begin with. Their values follow from that one, so that a value read
as a wider dtype is the same number."""
SINCE = {"count": 2, "remark": 2, "ratio": 3}
"""Fields that a later version of a schema adds → that version."""
VERSIONS = 4


def _offsets(numbers: NDArray[np.int64], salt: int) -> NDArray[np.int64]:
    mixed = numbers.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(salt * 0x2545F4914F6CDD1D % (1 << 64))
    return ((mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9) >> np.uint64(48)).astype(np.int64)


@functools.cache
def _salt(path: str) -> int:
    return sum((i + 1) * b for i, b in enumerate(path.encode())) % 9973 + 1


def fixed_values(leaf: Leaf, numbers: Sequence[int] | NDArray[np.int64]) -> NDArray[Any]:
    """Values `[n, *shape]` of a leaf of fixed shape for uids, or for looks where the leaf is an observation."""
    field = leaf.field
    assert isinstance(field, Tensor | Frames | Embedding)
    asked = np.asarray(numbers, np.int64)
    dtype = np.dtype(BORN.get(leaf.path, field.dtype))
    if leaf.path == "uid":
        return asked.astype(dtype)
    size = int(np.prod(field.shape, dtype=np.int64)) * dtype.itemsize
    raw: NDArray[np.uint8] = _POOL[_offsets(asked, _salt(leaf.path))[:, None] + np.arange(size)]
    out: NDArray[Any]
    if dtype.kind == "b":
        out = (raw & 1).astype(np.bool_)
    elif isinstance(field, Embedding):
        out = raw.reshape(len(asked), -1, 4)[:, :, 0].astype(np.float32) / 16
    else:
        out = np.ascontiguousarray(raw).view(dtype)
    with np.errstate(invalid="ignore"):  # a signalling NaN that is widened
        return out.reshape(len(asked), *field.shape).astype(field.dtype, copy=False)


def heap_value(leaf: Leaf, number: int) -> Any:
    """The text, JSON value or array of a leaf, of 0 to some hundred bytes."""
    field = leaf.field
    pick = int(_offsets(np.array([number]), _salt(leaf.path))[0])
    if isinstance(field, Ragged):
        return np.frombuffer(_POOL[pick : pick + 8 * (pick % 23)].tobytes(), np.uint8)[: pick % 23].astype(field.dtype)
    text = (_LETTERS * 3)[pick % 40 : pick % 40 + (pick >> 3) % 90]
    return text if isinstance(field, Text) else {"uid": number, "é": [None, True, 1.5, text], "deep": {"er": pick}}


def heap_bytes(leaf: Leaf, number: int) -> bytes:
    """The bytes under which that value is stored."""
    value = heap_value(leaf, number)
    if isinstance(leaf.field, Ragged):
        return bytes(value.tobytes())
    if isinstance(leaf.field, Json):
        return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
    return str(value).encode()


def number_of(leaf: Leaf, moment: Moment) -> int:
    """What a leaf's value follows from: the look for observations, the uid for the rest."""
    return moment.look if leaf.is_observation else moment.uid


def is_null(leaf: Leaf, moment: Moment) -> bool:
    """Whether an optional leaf was left out of a step. Observations never are."""
    if not leaf.field.optional or leaf.is_observation or (moment.whole and not is_heap(leaf.field)):
        return False
    return int(_offsets(np.array([moment.uid]), _salt(leaf.path) + 1)[0]) % 3 == 0


def is_older(leaf: Leaf, version: int) -> bool:
    """Whether a writer of that version of the schema lacks the leaf: its rows read as null or the default."""
    return version < SINCE.get(leaf.path, 1)


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """Dotted paths to nested dicts."""
    out: dict[str, Any] = {}
    for path, value in flat.items():
        at = out
        *parents, last = path.split(".")
        for part in parents:
            at = at.setdefault(part, {})
        at[last] = value
    return out


def value(leaf: Leaf, number: int) -> Any:
    """One value of a leaf."""
    return heap_value(leaf, number) if is_heap(leaf.field) else fixed_values(leaf, [number])[0]


def step_fields(schema: Schema, moment: Moment) -> dict[str, Any]:
    """The fields of a step in the form that `append` takes."""
    return nested(
        {leaf.path: value(leaf, number_of(leaf, moment)) for leaf in schema.leaves if not is_null(leaf, moment)}
    )


def observation(schema: Schema, look: int) -> Any:
    """A next observation in the form that `append` takes, None for no look."""
    if look < 0 or not schema.observations:
        return None
    return nested({leaf.path: value(leaf, look) for leaf in schema.observations})["observation"]


def column(leaf: Leaf, numbers: Sequence[int], null: Sequence[bool] | None = None) -> Any:
    """A column in the form that `extend` and `lanes` take."""
    if is_heap(leaf.field):
        left_out = null or [False] * len(numbers)
        return [None if skip else heap_value(leaf, n) for n, skip in zip(numbers, left_out, strict=True)]
    return fixed_values(leaf, numbers)


def _plain() -> Schema:
    return Schema(
        {
            "observation": Tensor("float32", (3,)),
            "action": Tensor("int64"),
            "reward": Tensor("float32"),
            "uid": Tensor("int64"),
        },
        episode={"mark": Tensor("int64")},
    )


def _wide() -> Schema:
    return Schema(
        {
            "observation": {"camera": Frames((9, 7), stack=2), "pose": Tensor("float64", (2,))},
            "embedding": Embedding(5, optional=True),
            "action": Tensor("int16", (3,)),
            "reward": Tensor("float32", optional=True),
            "uid": Tensor("int64"),
        },
        episode={"mark": Tensor("int64")},
    )


def _words() -> Schema:
    return Schema(
        {
            "observation": {"said": Text(), "state": Tensor("float32", (2,))},
            "note": Text(optional=True),
            "tokens": Ragged("int32", optional=True),
            "info": Json(optional=True),
            "reward": Tensor("float32"),
            "uid": Tensor("int64"),
        },
        episode={"mark": Tensor("int64")},
    )


def _mixed() -> Schema:
    return Schema(
        {
            "observation": Tensor("float32", (4,)),
            "note": Text(optional=True),
            "picture": Frames((6, 6), optional=True),
            "flag": Tensor("bool"),
            "reward": Tensor("float32", optional=True),
            "uid": Tensor("int64"),
        },
        episode={"mark": Tensor("int64")},
    )


SCHEMAS: dict[str, Callable[[], Schema]] = {"plain": _plain, "wide": _wide, "words": _words, "mixed": _mixed}
"""Schemas of the harness: fields inside the record, planes, text, and a mixture. Each has `uid`, `reward` and the
episode fact `mark`."""


def version_of(schema: Schema) -> int:
    """Which version of one of these schemas it is, from 1."""
    ratio = schema.by_path.get("ratio")
    if ratio is None:
        return 2 if "count" in schema.by_path else 1
    assert isinstance(ratio.field, Tensor)
    return 3 if ratio.field.dtype == "float32" else 4


def evolved(schema: Schema) -> Schema:
    """The next version of one of these schemas: with new fields, nullable or with a default, and wider ones."""
    old = schema.to_dict()
    added: dict[str, Field] = {
        "count": Tensor(("int16", "int32", "int64")[version_of(schema) - 1], (2,), optional=True),
        "remark": Text(default="nothing was said"),
    }
    if version_of(schema) > 1:
        added["ratio"] = Tensor("float32" if version_of(schema) == 2 else "float64", default=1.5)
    fields = {leaf.path: leaf.field for leaf in schema.leaves} | added
    return Schema(nested(fields), {k: schema.episode[k] for k in old["episode"]})
