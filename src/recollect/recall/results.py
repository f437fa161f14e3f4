"""What recall returns: steps, and whole episodes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import starmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recollect.errors import NotFound
from recollect.hot.write.resume import INTERRUPTED
from recollect.records.rows import PackedRows
from recollect.schema import Frames, Json, Leaf, Ragged, Tensor
from recollect.schema.fields import is_heap
from recollect.view import EpisodeKey, Fact, FactIndex, Slots, StepId, View

_NAMES = ("writer", "seq", "episode_writer", "episode", "step", "time", "terminated", "truncated")


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
    """Recalled steps, best first.

    Attributes:
        steps: the steps.
        scores: how well each matches (BM25, higher is better); empty where nothing was searched for.
    """

    steps: tuple[Step, ...]
    scores: tuple[float, ...] = ()

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
        facts: newest value of every fact; `history` all of them as they were written, oldest first.
        derived: names among `facts` that nobody wrote. An episode that neither ended nor was given a status, and
            whose writers are gone, has the status "interrupted".
        ids: StepIds of the steps.
        ended: whether it terminated or was truncated.
        final: the observation after its last step, name → value, None when there is none.
    """

    def __init__(self, view: View, key: EpisodeKey, slots: Slots, *, over: bool = False) -> None:
        """`over` says that nobody who could go on with the episode is left."""
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
        self.derived: frozenset[str] = frozenset()
        if over and len(self._slots) and not self.ended and self.facts.get("status") is None:
            self.facts["status"] = INTERRUPTED
            self.derived = frozenset({"status"})
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
            out = np.zeros((len(self._slots), *leaf.field.stacked_shape), leaf.field.dtype)
            for k in np.flatnonzero(rows.valid(self._slots, name)).tolist():
                out[k] = value_at(self._view, int(self._slots[k]), leaf, padded=True)
            return out
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
    step = _packed(view).gather(slots, ("step",))["step"].astype(np.int64)
    e, back = view.episodes, np.minimum(depth - 1, step)
    out: NDArray[np.bool_] = (e.offset(slots, 0) >= 0) & (e.offset(slots, -back) < 0)
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
    return steps_at(view, np.array([slot], np.int64), facts)[0]


def steps_at(view: View, slots: Slots, facts: FactIndex) -> list[Step]:
    """Rows as recalled steps; `facts` name their episodes."""
    rows, leaves = _packed(view), view.schema.leaves
    plain = [leaf for leaf in leaves if not is_heap(leaf.field) and getattr(leaf.field, "stack", 1) == 1]
    got = rows.gather(slots, (*_NAMES, *(leaf.path for leaf in plain)))
    columns: dict[str, list[Any]] = {}
    for leaf in leaves:
        if is_heap(leaf.field):
            columns[leaf.path] = [decode_heap(leaf, raw) for raw in rows.heap_values(slots, leaf.path)]
            continue
        if leaf not in plain:
            columns[leaf.path] = [value_at(view, slot, leaf) for slot in slots.tolist()]
            continue
        column = got[leaf.path]
        values = column.tolist() if column.ndim == 1 else [value.copy() for value in column]
        if leaf.field.optional:
            valid = rows.valid(slots, leaf.path).tolist()
            values = [value if there else None for value, there in zip(values, valid, strict=True)]
        columns[leaf.path] = values
    places = [(leaf.parts[:-1], leaf.parts[-1], columns[leaf.path]) for leaf in leaves]
    names = zip(*(got[name].tolist() for name in _NAMES), strict=True)
    out = []
    for k, (writer, seq, episode_writer, episode, step, time, terminated, truncated) in enumerate(names):
        fields: dict[str, Any] = {}
        for outer, name, values in places:
            inner = fields
            for part in outer:
                inner = inner.setdefault(part, {})
            inner[name] = values[k]
        key = EpisodeKey(episode_writer, episode)
        moment = datetime.fromtimestamp(time / 1e9, tz=UTC)
        out.append(Step(StepId(writer, seq), key, facts.id_of(key), step, moment, terminated, truncated, fields))
    return out


def interrupted(view: View, is_over: Callable[[int], bool], going: Set[EpisodeKey]) -> int:
    """Episodes that were interrupted: by their status, or as `EpisodeRecord.derived` says.

    Args:
        is_over: whether a writer will write no more.
        going: episodes that were resumed by writers that may still write.
    """
    e, statuses = view.episodes, {key: facts.get("status") for key, facts in view.facts.episodes.items()}
    told: int = sum(status == INTERRUPTED for status in statuses.values())
    steps = np.flatnonzero(~e.is_final & (e.group >= 0))
    got = _packed(view).gather(steps, ("terminated", "truncated", "writer"))
    unended = np.bincount(e.group[steps], minlength=len(e.keys)) > 0
    unended[e.group[steps[got["terminated"] | got["truncated"]]]] = False
    writers = np.unique(got["writer"])
    alive = np.isin(got["writer"], [w for w in writers.tolist() if not is_over(w)])
    unended[e.group[steps[alive]]] = False
    keys = starmap(EpisodeKey, e.keys[unended].tolist())
    return told + sum(statuses.get(key) is None and key not in going and is_over(key.writer) for key in keys)


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
