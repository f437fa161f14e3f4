"""How two versions of a buffer differ: rows, episodes, values, groups of episodes, schema."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recollect.cache.view import BufferReader
from recollect.cold.history import History
from recollect.errors import NotFound
from recollect.schema import Schema, Tensor
from recollect.schema.fields import is_heap
from recollect.schema.schema import BUILT_IN_FACTS
from recollect.versions.shift import Shift, Values, hash_ids, shift
from recollect.view import Cut, EpisodeKey, Extent, View
from recollect.view.reach import by_writer, union, without

CHUNK_VALUES = 1 << 21
"""About so many values of a field are looked at together."""
MOST_GROUPS = 50
OTHERS = "(others)"


@dataclass(frozen=True)
class GroupShift:
    """The episodes of one task, agent or policy in two versions.

    Attributes:
        value: what they have in common, None where it is not known; "(others)" for all beyond the 50 largest groups.
        rows_a, rows_b: steps; `episodes_a`, `episodes_b` episodes, open ones included.
        returns: sums of the rewards of the episodes that ended and are whole.
    """

    value: Any
    rows_a: int
    rows_b: int
    episodes_a: int
    episodes_b: int
    returns: Shift


@dataclass(frozen=True)
class Diff:
    """What changed from version `a` to version `b`.

    Attributes:
        a, b: their names.
        rows_a, rows_b: steps, and the observations behind the last steps of episodes.
        rows_added, rows_removed: rows that `b` has and `a` lacks, and the other way round, by id.
        episodes_a, episodes_b: episodes; `episodes_added`, `episodes_removed` likewise by key; `episodes_changed` those
            that both have, with another number of steps.
        facts_a, facts_b: facts about episodes and steps.
        schema: one line for each field or fact that was added, removed or changed.
        fields: path → how its values lie, of the fields of either.
        returns, lengths: of the episodes that ended and are whole.
        groups: fact or field → its values, those of most rows first.
    """

    a: str
    b: str
    rows_a: int
    rows_b: int
    rows_added: int
    rows_removed: int
    episodes_a: int
    episodes_b: int
    episodes_added: int
    episodes_removed: int
    episodes_changed: int
    facts_a: int
    facts_b: int
    schema: tuple[str, ...]
    fields: Mapping[str, Shift]
    returns: Shift
    lengths: Shift
    groups: Mapping[str, tuple[GroupShift, ...]]


@dataclass(frozen=True)
class Side:
    """A version that is compared."""

    reader: BufferReader
    steps: Any
    history: History
    cut: Cut
    name: str

    @property
    def schema(self) -> Schema:
        return self.reader.layout.schema


def diff(a: Side, b: Side, by: Sequence[str] | None = None) -> Diff:
    """Reads both versions once, a block at a time.

    In memory: one decoded block, about 100,000 values of each field, and 60 bytes for each episode.

    Args:
        by: facts of episodes, or scalar fields, to group by; those facts that are texts or whole numbers, and the field
            of the role `policy_version`, when None.

    Raises:
        NotFound: `by` names what neither version has.
    """
    known = {**a.schema.by_path, **b.schema.by_path, **a.schema.episode, **b.schema.episode}
    for name in by or ():
        if name not in known:
            raise NotFound(f"no fact or field {name!r} to group by", remedy=f"There are: {', '.join(known)}")
    one, two = _read(a, by), _read(b, by)
    rows_a, rows_b = by_writer(one.extents), by_writer(two.extents)
    fields = {
        path: shift(one.fields.get(path), two.fields.get(path)) for path in dict.fromkeys([*one.fields, *two.fields])
    }
    common, at, to = np.intersect1d(one.keys, two.keys, assume_unique=True, return_indices=True)
    return Diff(
        a.name,
        b.name,
        _count(rows_a),
        _count(rows_b),
        _beyond(rows_b, rows_a),
        _beyond(rows_a, rows_b),
        len(one.keys),
        len(two.keys),
        len(two.keys) - len(common),
        len(one.keys) - len(common),
        int((one.steps[at] != two.steps[to]).sum()),
        one.facts,
        two.facts,
        tuple(_schema(a.schema, b.schema)),
        fields,
        shift(_column(one.hashes, one.returns), _column(two.hashes, two.returns)),
        shift(_column(one.hashes, one.lengths), _column(two.hashes, two.lengths)),
        {
            name: _groups(one.groups.get(name, {}), two.groups.get(name, {}))
            for name in dict.fromkeys([*one.groups, *two.groups])
        },
    )


# -- one version ---------------------------------------------------------------------------------------------------

_EPISODE = np.dtype([("writer", "<i8"), ("episode", "<i8")])


@dataclass
class _Read:
    """What was read of a version. By episode: `keys`, `steps`, `hashes`, `returns` (NaN unknown), `lengths` (-1)."""

    extents: list[Extent]
    fields: dict[str, Values]
    keys: NDArray[Any]
    steps: NDArray[np.int64]
    hashes: NDArray[np.uint64]
    returns: NDArray[np.float64]
    lengths: NDArray[np.int64]
    facts: int
    groups: dict[str, dict[Any, tuple[int, int, Values]]]


def _read(side: Side, by: Sequence[str] | None) -> _Read:
    schema = side.schema
    fields = {leaf.path: Values() for leaf in schema.leaves}
    reward = schema.role("reward")
    if reward is not None and (is_heap(reward.field) or reward.field.shape != ()):  # type: ignore[union-attr]
        reward = None
    facts, steps_by = _grouping(schema, by)
    extents: list[Extent] = []
    parts: list[dict[str, NDArray[Any]]] = []
    rows_of: dict[str, dict[Any, int]] = {name: {} for name in steps_by}
    index: Any = None
    for part in side.reader.parts(side.steps, side.history, side.cut, side.name):
        view = part.view
        if view is None:
            continue
        index = view.facts if index is None else index
        extents += view.cut.extents
        for slots in _chunks(view, schema):
            _add_fields(view, schema, slots, fields)
            for name in steps_by:
                values, counts = np.unique(view.rows.gather(slots, (name,))[name], return_counts=True)
                for value, n in zip(values.tolist(), counts.tolist(), strict=True):
                    rows_of[name][value] = rows_of[name].get(value, 0) + n
        parts.append(_episodes(view, reward.path if reward else None, steps_by))
    keys, merged = _merge(parts)
    whole = merged["ended"] & (merged["first"] == 0) & (merged["last"] + 1 == merged["steps"])
    returns = np.where(whole, merged["return"], np.nan) if reward else np.full(len(keys), np.nan)
    out = _Read(
        extents, fields, keys, merged["steps"], hash_ids(keys["writer"], keys["episode"]), returns,
        np.where(whole, merged["steps"], -1), sum(stop for _, stop in side.cut.facts), {},
    )  # fmt: skip
    for name in facts:
        found = index.episodes if index is not None else {}
        told = [found.get(EpisodeKey(*key), {}).get(name) for key in keys.tolist()]
        out.groups[name] = _grouped(told, merged["steps"], out, None)
    for name in steps_by:
        out.groups[name] = _grouped(merged[name].tolist(), merged["steps"], out, rows_of[name])
    return out


def _grouping(schema: Schema, by: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Facts of episodes and fields of steps to group by."""
    if by is not None:
        return [n for n in by if n in schema.episode], [
            n for n in by if n not in schema.episode and n in schema.by_path
        ]
    facts = [
        name
        for name, field in schema.episode.items()
        if name not in BUILT_IN_FACTS
        and (
            field.type == "text"
            or (isinstance(field, Tensor) and field.shape == () and np.dtype(field.dtype).kind in "iu")
        )
    ]
    role = schema.role("policy_version")
    scalar = role is not None and isinstance(role.field, Tensor) and role.field.shape == ()
    return facts, [role.path] if role is not None and scalar else []


def _chunks(view: View, schema: Schema) -> Iterator[NDArray[np.int64]]:
    """The steps of a view, some at a time."""
    widest = max([1, *(int(np.prod(leaf.field.shape)) for leaf in schema.numeric)])  # type: ignore[union-attr]
    size = max(64, min(1 << 16, CHUNK_VALUES // widest))
    for start in range(0, len(view.rows), size):
        slots = np.arange(start, min(start + size, len(view.rows)))
        yield slots[(view.episodes.group[slots] >= 0) & ~view.episodes.is_final[slots]]


def _add_fields(view: View, schema: Schema, slots: NDArray[np.int64], fields: dict[str, Values]) -> None:
    ids = view.rows.ids(slots)
    hashes = hash_ids(ids["writer"], ids["seq"])
    for leaf in schema.leaves:
        if is_heap(leaf.field):
            values = view.rows.heap_values(slots, leaf.path)
            size = np.dtype(leaf.field.dtype).itemsize if leaf.field.type == "ragged" else 1  # type: ignore[union-attr]
            lengths = np.array([0 if v is None else len(v) // size for v in values], np.int64)
            fields[leaf.path].add(hashes, lengths, np.array([v is not None for v in values], np.bool_))
        else:
            held = view.rows.gather(slots, (leaf.path,))[leaf.path]
            fields[leaf.path].add(hashes, held, view.rows.valid(slots, leaf.path))


def _episodes(view: View, reward: str | None, steps_by: Sequence[str]) -> dict[str, NDArray[Any]]:
    """The episodes that a view has steps of, and sums over those."""
    slots = np.flatnonzero((view.episodes.group >= 0) & ~view.episodes.is_final)
    group = view.episodes.group[slots]
    used, member = np.unique(group, return_inverse=True)
    got = view.rows.gather(slots, ("step", "terminated", "truncated", *steps_by))
    rewards = np.zeros(len(slots))
    if reward is not None:
        with np.errstate(invalid="ignore"):
            rewards = view.rows.gather(slots, (reward,))[reward].astype(np.float64)
        rewards[~view.rows.valid(slots, reward)] = 0.0
    first = np.full(len(used), np.iinfo(np.int64).max)
    last = np.full(len(used), -1)
    np.minimum.at(first, member, got["step"])
    np.maximum.at(last, member, got["step"])
    keys = np.empty(len(used), _EPISODE)
    keys["writer"], keys["episode"] = view.episodes.keys[used, 0], view.episodes.keys[used, 1]
    opening = np.zeros(len(used), np.int64)
    opening[member[got["step"] == first[member]]] = np.flatnonzero(got["step"] == first[member])
    return {
        "keys": keys,
        "return": np.bincount(member, rewards, len(used)),
        "steps": np.bincount(member, minlength=len(used)),
        "first": first,
        "last": last,
        "ended": np.bincount(member, got["terminated"] | got["truncated"], len(used)) > 0,
        **{name: got[name][opening] for name in steps_by},
    }


def _merge(parts: list[dict[str, NDArray[Any]]]) -> tuple[NDArray[Any], dict[str, NDArray[Any]]]:
    """Episodes by key, with the sums of their parts."""
    columns = {name: np.concatenate([p[name] for p in parts]) for name in parts[0]} if parts else _nothing()
    keys, member = np.unique(columns.pop("keys"), return_inverse=True)
    order = np.lexsort((columns["first"], member))
    opening = order[np.flatnonzero(np.diff(member[order], prepend=-1))]
    out = {name: column[opening] for name, column in columns.items()}  # of the part with the first step
    for name in ("return", "steps"):
        out[name] = np.bincount(member, columns[name], len(keys)).astype(columns[name].dtype)
    for name, join in (("last", np.maximum), ("ended", np.logical_or)):
        out[name] = out[name].copy()
        join.at(out[name], member, columns[name])
    return keys, out


def _nothing() -> dict[str, NDArray[Any]]:
    whole = {name: np.empty(0, np.int64) for name in ("steps", "first", "last")}
    return {"keys": np.empty(0, _EPISODE), "return": np.empty(0), "ended": np.empty(0, np.bool_), **whole}


def _grouped(
    values: list[Any], steps: NDArray[np.int64], read: _Read, rows: Mapping[Any, int] | None
) -> dict[Any, tuple[int, int, Values]]:
    """Value → rows, episodes and returns. `rows` by value where steps were counted one by one."""
    members: dict[Any, list[int]] = {value: [] for value in rows or ()}
    for k, value in enumerate(values):
        members.setdefault(value, []).append(k)
    out = {}
    for value, found in members.items():
        at = np.array(found, np.int64)
        count = int(steps[at].sum()) if rows is None else rows.get(value, 0)
        out[value] = (count, len(at), _column(read.hashes[at], read.returns[at]))
    return out


def _column(hashes: NDArray[np.uint64], values: NDArray[Any]) -> Values:
    """Numbers of episodes; those that are NaN or negative counts are unknown and left out."""
    out = Values()
    known = ~np.isnan(values) if values.dtype.kind == "f" else values >= 0
    out.add(hashes[known], values[known], np.ones(int(known.sum()), np.bool_))
    return out


# -- two versions --------------------------------------------------------------------------------------------------


def _groups(
    a: Mapping[Any, tuple[int, int, Values]], b: Mapping[Any, tuple[int, int, Values]]
) -> tuple[GroupShift, ...]:
    values = sorted({*a, *b}, key=lambda v: (-max(x[v][0] if v in x else 0 for x in (a, b)), str(v)))
    out = [_group(v, [v], a, b) for v in values[:MOST_GROUPS]]
    return (*out, *([_group(OTHERS, values[MOST_GROUPS:], a, b)] if len(values) > MOST_GROUPS else []))


def _group(name: Any, values: Sequence[Any], a: Mapping[Any, Any], b: Mapping[Any, Any]) -> GroupShift:
    def total(side: Mapping[Any, Any], k: int) -> int:
        return sum(side[v][k] for v in values if v in side)

    def returns(side: Mapping[Any, Any]) -> Values | None:
        found = [side[v][2] for v in values if v in side]
        if len(found) < 2:
            return found[0] if found else None
        out = Values()
        for part in found:
            out.merge(part)
        return out

    return GroupShift(name, total(a, 0), total(b, 0), total(a, 1), total(b, 1), shift(returns(a), returns(b)))


def _schema(a: Schema, b: Schema) -> Iterator[str]:
    for what, one, two in (
        ("field", {p: x.field for p, x in a.by_path.items()}, {p: x.field for p, x in b.by_path.items()}),
        ("episode fact", dict(a.episode), dict(b.episode)),
    ):
        for name in dict.fromkeys([*one, *two]):
            if name not in one:
                yield f"{what} {name} was added: {two[name]}"
            elif name not in two:
                yield f"{what} {name} was removed: {one[name]}"
            elif one[name] != two[name]:
                yield f"{what} {name} was {one[name]}, and is {two[name]}"


def _count(ranges: Mapping[int, Sequence[tuple[int, int]]]) -> int:
    return sum(stop - start for found in ranges.values() for start, stop in found)


def _beyond(a: Mapping[int, Sequence[tuple[int, int]]], b: Mapping[int, Sequence[tuple[int, int]]]) -> int:
    """Rows of `a` that `b` lacks."""
    return sum(
        stop - start for writer, found in a.items() for start, stop in without(union(found), union(b.get(writer, ())))
    )
