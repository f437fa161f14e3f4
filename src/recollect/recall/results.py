"""What recall returns: steps, and whole episodes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recollect.errors import NotFound
from recollect.records.rows import PackedRows
from recollect.schema import Frames, Json, Leaf, Ragged, Tensor
from recollect.schema.fields import is_heap
from recollect.view import EpisodeKey, Fact, FactIndex, Slots, StepId, View


@dataclass(frozen=True)
class Step:
    """One recalled step.

    Attributes:
        id: its StepId; `episode` the key of its episode, `episode_id` the caller's name for that.
        step: index in the episode.
        time: when it was appended, UTC.
        terminated, truncated: whether it ended its episode.
        fields: name → value: numpy arrays and scalars, text, JSON values; None where null. Nested fields are dicts.
    """

    id: StepId
    episode: EpisodeKey
    episode_id: str
    step: int
    time: datetime
    terminated: bool
    truncated: bool
    fields: Mapping[str, Any]

    def __getitem__(self, name: str) -> Any:
        return self.fields[name]


@dataclass(frozen=True)
class Hits:
    """Recalled steps, best first."""

    steps: tuple[Step, ...]

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[Step]:
        return iter(self.steps)

    def __getitem__(self, k: int) -> Step:
        return self.steps[k]

    @property
    def ids(self) -> list[StepId]:
        return [s.id for s in self.steps]


class EpisodeRecord:
    """One whole episode: `episode[field]` is `[T, …]`, the final row apart.

    Attributes:
        key, id, attempt: its names.
        facts: newest value of every fact; `history` all of them, oldest first.
        ids: StepIds of the steps.
        ended: whether it terminated or was truncated.
        final: the observation after its last step, name → value, None when there is none.
    """

    def __init__(self, view: View, key: EpisodeKey, slots: Slots) -> None:
        self._view, self._rows = view, _packed(view)
        final = view.episodes.is_final[slots]
        self._slots = slots[~final]
        last = slots[final]
        self.key = key
        facts = view.facts.episodes.get(key, {})
        self.id = view.facts.id_of(key)
        self.attempt: int | None = facts.get("attempt")
        self.facts = {k: v for k, v in facts.items() if k not in ("id", "attempt")}
        self.history: list[Fact] = sorted(view.facts.history.get(key, []), key=lambda f: f.order)
        self.ids = [StepId(*i) for i in self._rows.ids(self._slots).tolist()]
        flags = self._rows.gather(self._slots, ("terminated", "truncated"))
        self.terminated, self.truncated = bool(flags["terminated"].any()), bool(flags["truncated"].any())
        waiting = view.episodes.next_observation(self._slots[-1:]) if len(self._slots) else last
        at = last if len(last) else waiting[waiting >= 0]
        self.final: dict[str, Any] | None = None
        if len(at) and view.schema.observations:
            self.final = {
                leaf.path: value_at(view, int(at[-1]), leaf, after=int(self._slots[-1]) if len(self._slots) else -1)
                for leaf in view.schema.observations
            }

    @property
    def ended(self) -> bool:
        return self.terminated or self.truncated

    def __len__(self) -> int:
        return len(self._slots)

    def __getitem__(self, name: str) -> Any:
        """A field over the episode: `[T, *shape]`, a list for text, JSON and ragged fields, a dict for nested ones.

        Raises:
            NotFound: no such field.
        """
        rows, schema = self._rows, self._view.schema
        if name in ("terminated", "truncated", "time", "step", "writer", "seq"):
            return rows.gather(self._slots, (name,))[name]
        leaf = schema.by_path.get(name)
        if leaf is None:
            inner = [x for x in schema.leaves if x.path.startswith(name + ".")]
            if not inner:
                raise NotFound(f"no field {name!r}", remedy=f"Fields: {', '.join(schema.by_path)}")
            return {x.path[len(name) + 1 :]: self[x.path] for x in inner}
        if is_heap(leaf.field):
            return [decode_heap(leaf, b) for b in rows.heap_values(self._slots, name)]
        if isinstance(leaf.field, Frames) and leaf.field.stack > 1:
            return np.stack([value_at(self._view, int(s), leaf, padded=True) for s in self._slots])
        return rows.gather(self._slots, (name,))[name]

    def valid(self, name: str) -> NDArray[np.bool_]:
        """`[T]` bool: where an optional field is not null, and a frame stack does not reach back to steps that were
        evicted. Null integers read as 0, null floats as NaN; missing planes as padding."""
        if name not in self._view.schema.by_path:
            raise NotFound(f"no field {name!r}", remedy=f"Fields: {', '.join(self._view.schema.by_path)}")
        field = self._view.schema.by_path[name].field
        whole = ~_cut_off(self._view, self._slots, field.stack if isinstance(field, Frames) else 1)
        return self._rows.valid(self._slots, name) & whole

    def keys(self) -> list[str]:
        """Top-level names of the fields, and the two ends."""
        return [*self._view.schema.roots, "terminated", "truncated"]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())

    def __contains__(self, name: object) -> bool:
        return name in self.keys() or name in self._view.schema.by_path

    def __repr__(self) -> str:
        return f"EpisodeRecord(id={self.id!r}, steps={len(self)}, facts={self.facts})"


def value_at(view: View, slot: int, leaf: Leaf, *, after: int = -1, padded: bool = False) -> Any:
    """One field of one row. For a row outside its episode's order, `after` is the step it follows. A frame stack that
    reaches back to steps that were evicted is None, or padded as if the episode began there."""
    rows = _packed(view)
    at = np.array([slot], np.int64)
    if is_heap(leaf.field):
        return decode_heap(leaf, rows.heap_values(at, leaf.path)[0])
    if not rows.valid(at, leaf.path)[0]:
        return None
    if not isinstance(leaf.field, Frames) or leaf.field.stack == 1:
        value = rows.gather(at, (leaf.path,))[leaf.path][0]
        return value.item() if np.ndim(value) == 0 else value
    base, shift = (after, 1) if after >= 0 else (slot, 0)
    if _cut_off(view, np.array([base], np.int64), leaf.field.stack - shift)[0] and not padded:
        return None
    start = np.array([base], np.int64)
    newest, planes = at, [at]
    for k in range(1, leaf.field.stack):
        back = view.episodes.offset(start, shift - k)
        if leaf.field.pad == "repeat":
            back = np.where(back < 0, newest, back)
        newest = back
        planes.insert(0, back)
    return rows.gather(np.concatenate(planes), (leaf.path,))[leaf.path]


def _cut_off(view: View, slots: Slots, depth: int) -> NDArray[np.bool_]:
    """`[n]`: where `depth` planes reach back before a run that does not begin its episode."""
    e = view.episodes
    if depth < 2 or not len(slots):
        return np.zeros(len(slots), np.bool_)
    run = e.run[slots]
    start = e.run_start[np.maximum(run, 0)]
    heads = start if e.slot is None else e.slot[start]
    rank = slots if e.rank is None else e.rank[slots]
    before = _packed(view).gather(heads, ("step",))["step"]
    out: NDArray[np.bool_] = (run >= 0) & (before > 0) & (rank - start < depth - 1)
    return out


def decode_heap(leaf: Leaf, raw: bytes | None) -> Any:
    """A heap field's value from its stored bytes."""
    if raw is None:
        return None
    if isinstance(leaf.field, Ragged):
        return np.frombuffer(raw, leaf.field.dtype)
    text = raw.decode("utf-8")
    return json.loads(text) if isinstance(leaf.field, Json) else text


def step_at(view: View, slot: int, facts: FactIndex) -> Step:
    """One row as a recalled step; `facts` name its episode."""
    rows = _packed(view)
    at = np.array([slot], np.int64)
    got = rows.gather(at, ("writer", "seq", "episode_writer", "episode", "step", "time", "terminated", "truncated"))
    key = EpisodeKey(int(got["episode_writer"][0]), int(got["episode"][0]))
    fields: dict[str, Any] = {}
    for leaf in view.schema.leaves:
        inner = fields
        for part in leaf.parts[:-1]:
            inner = inner.setdefault(part, {})
        inner[leaf.parts[-1]] = value_at(view, slot, leaf)
    return Step(
        StepId(int(got["writer"][0]), int(got["seq"][0])),
        key,
        facts.id_of(key),
        int(got["step"][0]),
        datetime.fromtimestamp(int(got["time"][0]) / 1e9, tz=UTC),
        bool(got["terminated"][0]),
        bool(got["truncated"][0]),
        fields,
    )


def nan_rewards(view: View) -> int:
    """Steps whose reward is not a number; nulls do not count."""
    leaf = view.schema.role("reward")
    if leaf is None or not isinstance(leaf.field, Tensor) or np.dtype(leaf.field.dtype).kind != "f":
        return 0
    steps = np.flatnonzero(~view.episodes.is_final & (view.episodes.group >= 0))
    rows = _packed(view)
    bad = np.isnan(rows.gather(steps, (leaf.path,))[leaf.path])
    return int((bad.any(axis=tuple(range(1, bad.ndim))) & rows.valid(steps, leaf.path)).sum())


def _packed(view: View) -> PackedRows:
    assert isinstance(view.rows, PackedRows)
    return view.rows
