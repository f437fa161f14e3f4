"""Appending many steps at once: one layout with numpy, one checksum, one store that publishes them.

What `append` would have written one by one is written here too: final rows, rows beside an episode's order, tails.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from recollect.errors import EpisodeError, FieldError
from recollect.hot.columns import take_columns, take_observation
from recollect.hot.facts import check_facts
from recollect.hot.fields import FieldWriters, OpenEpisode
from recollect.hot.growing import GrowingLog
from recollect.hot.tails import TailFile
from recollect.records.block import Values, write_values
from recollect.records.layout import FINAL, HAS_NEXT, TERMINATED, TRUNCATED, column, set_frame
from recollect.schema import Frames
from recollect.schema.fields import is_wide
from recollect.view import EpisodeKey

_CONTROL = ("episode", "step", "terminated", "truncated", "next_observation", "priority", "valid", "facts")


@dataclass
class Rows:
    """Steps to be written, already checked.

    Attributes:
        states: the episodes concerned; `which` `[n]` names each row's.
        step: `[n]` step index.
        columns: leaf path → values `[n]`.
        following: observation leaf path → values `[n]` of the next observations; None when none was given.
        has_next: `[n]` rows that come with their next observation.
        terminated, truncated: `[n]` bool.
        priority: `[n]` float32, NaN for none.
        tailed: whether the observation after an episode's newest step waits in a tail slot.
    """

    states: list[OpenEpisode]
    which: NDArray[np.int64]
    step: NDArray[np.int64]
    columns: dict[str, Values]
    following: dict[str, Values] | None
    has_next: NDArray[np.bool_]
    terminated: NDArray[np.bool_]
    truncated: NDArray[np.bool_]
    priority: NDArray[np.float32]
    tailed: bool
    ended: NDArray[np.bool_] = field(init=False)
    later: NDArray[np.int64] = field(init=False)
    """`[n]` the next row of the same episode, -1 for its last here; `first` the first row of each episode."""
    first: NDArray[np.int64] = field(init=False)
    extra: NDArray[np.bool_] = field(init=False)
    """`[n]` rows whose next observation needs a row of its own."""

    def __post_init__(self) -> None:
        self.ended = self.terminated | self.truncated
        self.later, self.first = neighbours(self.which)
        self.extra = self.has_next & (self.ended | (not self.tailed))
        inside = np.flatnonzero(self.has_next & ~self.extra & (self.later >= 0))
        if len(inside) and self.following is not None:
            self.extra[inside] = _differs(self.following, inside, self.columns, self.later[inside])

    def room(self) -> Room:
        """What the block needs at most, before anything is written."""
        waiting = sum(s.pending for s in self.states)
        rows = len(self.which) + int(self.extra.sum()) + waiting
        heap = _heap_bytes(self.columns)
        if self.extra.any():
            heap += _heap_bytes({k: subset(v, self.extra) for k, v in (self.following or {}).items()})
        return Room(rows, rows, heap, sum(s.lane is None for s in self.states))


class Room(NamedTuple):
    """Rows, planes of each wide field, heap bytes, and pairs of tail slots."""

    rows: int
    planes: int
    heap_bytes: int
    lanes: int


def write_block(log: GrowingLog, fields: FieldWriters, rows: Rows) -> None:
    """Writes and publishes one block. The log's lock is held; what interrupts it halfway ends the writer."""
    room = rows.room()
    log.tails.ensure(room.lanes)
    log.reserve(room.rows, room.planes, 0, room.heap_bytes)
    try:
        _write(log, fields, rows)
    except BaseException:
        log.unusable = log.unusable or "an append was interrupted halfway"
        raise
    log.publish()


def _write(log: GrowingLog, fields: FieldWriters, rows: Rows) -> None:
    layout = log.layout
    n = len(rows.which)
    later, first, extra = rows.later, rows.first, rows.extra
    last = np.flatnonzero(later < 0)
    waits = last[rows.has_next[last] & ~rows.ended[last]] if fields.tailed else last[:0]
    for i in waits.tolist():
        log.tails.take(rows.states[rows.which[i]])
    before = np.zeros(n, np.bool_)
    pending = np.array([s.pending for s in rows.states], np.bool_)
    for i in first[pending[rows.which[first]]].tolist():
        before[i] = _contradicts(log, rows.states[rows.which[i]], rows.columns, i)

    width = 1 + before.astype(np.int64) + extra
    stop = np.cumsum(width)
    total = int(stop[-1])
    place = stop - width + before
    plain = total == n
    finals = {k: subset(v, extra) for k, v in (rows.following or {}).items()}

    segment, base = log.segment, log.rows
    heap_begin = log.heap_used
    plane_begin = dict(log.planes)
    target = segment.records[base : base + total]
    now = log.now()
    if not plain:
        target[:] = fields.blank_void
    where: slice | NDArray[np.int64] = slice(0, n) if plain else place
    spots = {leaf.path: (segment.planes[leaf.path], log.planes[leaf.path]) for leaf in layout.wide}
    used = write_values(layout, target, where, rows.columns, spots, (segment.heap, heap_begin))
    for path in spots:
        log.planes[path] += _used(rows.columns.get(path), n)
    flags = (rows.terminated * TERMINATED + rows.truncated * TRUNCATED + rows.has_next * HAS_NEXT).astype(np.uint16)
    if plain:
        _system(target, log, base, rows, now, flags)
    else:
        body = np.zeros(n, layout.dtype)
        _system(body, log, base, rows, now, flags)
        for name in ("flags", "episode_writer", "episode", "step", "priority"):
            target[name][place] = body[name]
        target["writer"], target["time"] = log.id, now
        target["seq"] = log.first_row + base + np.arange(total)
        at = place[extra] + 1
        spots = {leaf.path: (segment.planes[leaf.path], log.planes[leaf.path]) for leaf in layout.wide}
        used += write_values(layout, target, at, finals, spots, (segment.heap, heap_begin + used))
        for path in spots:
            log.planes[path] += _used(finals.get(path), len(at))
        _final_system(target, at, rows, extra, 1)
        for i in np.flatnonzero(before).tolist():
            _copy_tail(log, rows.states[rows.which[i]], target, int(place[i]) - 1)
        _final_system(target, place[before] - 1, rows, before, 0)
    target["crc"], target["frame"] = 0, 0
    set_frame(target, total)
    if layout.heap:
        target["heap_at"], target["heap_bytes"] = heap_begin, 0
        target["heap_bytes"][0] = used
    crc = 0
    for leaf in layout.wide:
        written = segment.planes[leaf.path][plane_begin[leaf.path] : log.planes[leaf.path]]
        if len(written):
            crc = zlib.crc32(written.reshape(-1).view(np.uint8).data, crc)
    if used:
        crc = zlib.crc32(segment.heap[heap_begin : heap_begin + used].data, crc)
    at_byte = log.records_at + base * layout.itemsize
    with memoryview(log.map) as view:
        target["crc"][0] = zlib.crc32(view[at_byte + 4 : at_byte + total * layout.itemsize], crc)
    log.heap_used += used
    log.rows += total

    for i in last.tolist():
        state = rows.states[rows.which[i]]
        state.step = int(rows.step[i]) + 1
        state.pending = False
        if rows.ended[i]:
            state.ended = True
            log.tails.give_back(state)
    if len(waits):
        _write_tails(log, fields, rows, waits, now, log.first_row + base + place)
    _remember(log, rows)


def _system(
    target: NDArray[np.void], log: GrowingLog, base: int, rows: Rows, now: int, flags: NDArray[np.uint16]
) -> None:
    keys = np.array([s.key for s in rows.states], np.int64).reshape(-1, 2)
    target["flags"] = flags
    target["writer"] = log.id
    target["seq"] = np.arange(log.first_row + base, log.first_row + base + len(target))
    target["episode_writer"], target["episode"] = keys[rows.which, 0], keys[rows.which, 1]
    target["time"] = now
    target["step"] = rows.step
    target["priority"] = rows.priority


def _final_system(
    target: NDArray[np.void], at: NDArray[np.int64], rows: Rows, mask: NDArray[np.bool_], shift: int
) -> None:
    keys = np.array([s.key for s in rows.states], np.int64).reshape(-1, 2)[rows.which[mask]]
    target["flags"][at] = FINAL
    target["episode_writer"][at], target["episode"][at] = keys[:, 0], keys[:, 1]
    target["step"][at] = rows.step[mask] + shift
    target["priority"][at] = np.nan


def neighbours(which: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each row the next one of its episode (-1 none), and the first row of each episode."""
    n = len(which)
    later = np.full(n, -1, np.int64)
    if n and np.all(which[1:] >= which[:-1]):
        order = np.arange(n)
    else:
        order = np.argsort(which, kind="stable")
    grouped = which[order]
    same = grouped[1:] == grouped[:-1]
    later[order[:-1][same]] = order[1:][same]
    return later, order[np.concatenate([[True], ~same])] if n else order


def _bytes(values: Values, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
    data = np.ascontiguousarray(values.data[rows])
    return data.reshape(len(rows), -1).view(np.uint8)


def _differs(
    mine: Mapping[str, Values], at: NDArray[np.int64], theirs: Mapping[str, Values], other: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Rows whose observations are not the same bytes."""
    out = np.zeros(len(at), np.bool_)
    for path, values in mine.items():
        known = theirs.get(path)
        nobody = np.zeros(len(at), np.bool_)
        a = nobody if values.valid is None else ~values.valid[at]
        b = ~nobody if known is None else nobody if known.valid is None else ~known.valid[other]
        out |= a != b
        if known is not None:
            out |= ~(a & b) & (_bytes(values, at) != _bytes(known, other)).any(axis=1)
    return out


def _contradicts(log: GrowingLog, state: OpenEpisode, columns: Mapping[str, Values], row: int) -> bool:
    """Whether a row's observation is not the one that waits in its episode's tail."""
    tail, slot = log.tails.slot(state)
    waiting: dict[str, Values] = {}
    for leaf in log.layout.schema.observations:
        null = False
        if leaf.path in log.layout.nulls:
            word, bit = log.layout.nulls[leaf.path]
            null = bool(int(tail.records["nulls"][slot, word]) >> bit & 1)
        data = tail.planes[leaf.path][slot] if is_wide(leaf.field) else tail.records[column(leaf.path)][slot]
        waiting[leaf.path] = Values(np.asarray(data)[None], np.array([not null]))
    at = np.zeros(1, np.int64)
    return bool(_differs(waiting, at, columns, at + row)[0])


def _copy_tail(log: GrowingLog, state: OpenEpisode, target: NDArray[np.void], row: int) -> None:
    tail, slot = log.tails.slot(state)
    keep = {name: target[name][row] for name in ("writer", "seq", "time")}
    target[row] = tail.records[slot]
    for name, value in keep.items():
        target[name][row] = value
    for leaf in log.layout.wide:
        if leaf.is_observation and int(target[column(leaf.path)][row]) >= 0:
            plane = log.planes[leaf.path]
            log.segment.planes[leaf.path][plane] = tail.planes[leaf.path][slot]
            target[column(leaf.path)][row] = plane
            log.planes[leaf.path] += 1


def _write_tails(
    log: GrowingLog, fields: FieldWriters, rows: Rows, waits: NDArray[np.int64], now: int, seqs: NDArray[np.int64]
) -> None:
    """Leaves the next observations of the rows `waits` in tail slots."""
    files: dict[TailFile, tuple[list[int], list[int]]] = {}
    for i in waits.tolist():
        state = rows.states[rows.which[i]]
        state.pending = True
        file, slot = log.tails.next_slot(state)
        slots, members = files.setdefault(file, ([], []))
        slots.append(slot)
        members.append(i)
    for file, (slots, members) in files.items():
        _fill_tails(log, fields, file, np.array(slots), np.array(members), rows, now, seqs)


def _fill_tails(
    log: GrowingLog,
    fields: FieldWriters,
    tail: TailFile,
    slots: NDArray[np.int64],
    members: NDArray[np.int64],
    rows: Rows,
    now: int,
    seqs: NDArray[np.int64],
) -> None:
    layout = log.layout
    keys = np.array([s.key for s in rows.states], np.int64).reshape(-1, 2)[rows.which[members]]
    records = np.zeros(len(slots), layout.dtype)
    records[:] = fields.blank_void
    assert rows.following is not None
    chosen = {path: subset(v, members) for path, v in rows.following.items()}
    spare: dict[str, tuple[NDArray[Any], int]] = {}
    for leaf in layout.wide:
        f = leaf.field
        shape = f.shape if isinstance(f, Frames) else (f.size,)  # type: ignore[union-attr]
        spare[leaf.path] = (np.zeros((len(slots), *shape), f.dtype), 0)  # type: ignore[union-attr]
    write_values(layout, records, slice(0, len(slots)), chosen, spare, (np.zeros(0, np.uint8), 0))
    records["flags"], records["frame"], records["writer"], records["seq"] = FINAL, 1, log.id, seqs[members]
    records["episode_writer"], records["episode"] = keys[:, 0], keys[:, 1]
    records["time"], records["step"], records["priority"] = now, rows.step[members] + 1, np.nan
    for leaf in layout.wide:
        if leaf.is_observation:
            held = records[column(leaf.path)]
            has = held >= 0
            tail.planes[leaf.path][slots[has]] = spare[leaf.path][0][held[has]]
            records[column(leaf.path)][has] = slots[has]
    tail.records[slots] = records
    for slot in slots.tolist():
        tail.records["crc"][slot] = tail.checksum(slot)


def _remember(log: GrowingLog, rows: Rows) -> None:
    """Keeps each open episode's newest planes, which its next stack must begin with."""
    for leaf in log.layout.wide:
        if not isinstance(leaf.field, Frames) or leaf.field.stack == 1 or leaf.path not in rows.columns:
            continue
        values = rows.columns[leaf.path]
        data = values.data
        for k, state in enumerate(rows.states):
            mine = np.flatnonzero(rows.which == k)[-(leaf.field.stack - 1) :]
            history = state.history.setdefault(leaf.path, [])
            known = np.ones(len(data), np.bool_) if values.valid is None else values.valid
            history.extend(np.array(data[i]) if known[i] else np.zeros_like(data[i]) for i in mine)
            del history[: -(leaf.field.stack - 1)]


def _used(values: Values | None, n: int) -> int:
    return 0 if values is None else n if values.valid is None else int(values.valid.sum())


def _used_at(values: Values, mask: NDArray[np.bool_]) -> int:
    return int(mask.sum() if values.valid is None else (values.valid & mask).sum())


def _heap_bytes(columns: Mapping[str, Values]) -> int:
    return sum(int(v.lengths.sum()) for v in columns.values() if v.lengths is not None)


def subset(values: Values, rows: NDArray[Any]) -> Values:
    valid = None if values.valid is None else values.valid[rows]
    if values.lengths is None:
        return Values(values.data[rows], valid)
    ends = np.cumsum(values.lengths)
    index = np.flatnonzero(rows) if rows.dtype == np.bool_ else rows
    parts = [values.data[ends[i] - values.lengths[i] : ends[i]] for i in index.tolist()]
    data = np.concatenate(parts) if parts else np.zeros(0, np.uint8)
    return Values(data, valid, values.lengths[index])


OpenNew: TypeAlias = Callable[[str | None, int | None, Mapping[str, Any]], OpenEpisode]


class BlockAppender:
    """Appends blocks of columns to a log."""

    def __init__(self, log: GrowingLog, fields: FieldWriters) -> None:
        self.log, self.fields = log, fields

    def write(self, rows: Rows) -> None:
        """Writes and publishes checked rows, the log's lock held."""
        write_block(self.log, self.fields, rows)

    def _make_room(self, rows: Rows, facts: int, texts: list[str]) -> None:
        """Finds room for a block and its facts before either is written, so that neither comes without the other."""
        room = rows.room()
        body = sum(len(t.encode()) + 64 for t in texts)
        self.log.tails.ensure(room.lanes)
        self.log.reserve(room.rows, room.planes, facts, room.heap_bytes + body)

    def extend(self, columns: Mapping[str, Any], named: dict[int | str, OpenEpisode], open_new: OpenNew) -> int:
        """`Writer.extend`. `named` holds the episodes that are open across calls, by the caller's keys."""
        schema = self.log.layout.schema
        if "episode" not in columns or "step" not in columns:
            raise FieldError("a block needs the columns 'episode' and 'step'", value=sorted(columns))
        keys = np.asarray(columns["episode"])
        if keys.ndim != 1 or keys.dtype.kind not in "iuUO":
            raise FieldError("column 'episode' holds one int or text per row", value=columns["episode"])
        n = len(keys)
        names: list[int | str] = keys.tolist()
        for key in names if keys.dtype.kind == "O" else ():
            if not isinstance(key, int | str) or isinstance(key, bool):
                raise FieldError("column 'episode' holds one int or text per row", value=key)
        step = flat(columns["step"], n, "step", "iu").astype(np.int64)
        terminated = flat(columns.get("terminated", np.zeros(n, np.bool_)), n, "terminated", "b")
        truncated = flat(columns.get("truncated", np.zeros(n, np.bool_)), n, "truncated", "b")
        priority = flat(columns.get("priority", np.full(n, np.nan)), n, "priority", "fiu").astype(np.float32)
        check_priorities(priority)
        values = {k: v for k, v in columns.items() if k not in _CONTROL}
        facts = {k: check_facts(schema, v, self.fields.mask) for k, v in columns.get("facts", {}).items()}
        if not n:
            return 0
        with self.log.lock:
            self.log.check()
            distinct = list(dict.fromkeys(names))
            index = {k: i for i, k in enumerate(distinct)}
            which = np.array([index[k] for k in names], np.int64)
            _check_order(distinct, which, step, terminated | truncated, named)
            for k in facts:
                if k not in index and k not in named:
                    raise EpisodeError("facts were given for an episode that has no rows", value=k)
            histories = [named[k].history if k in named else {} for k in distinct]
            taken, stacks = take_columns(self.fields, values, n, columns.get("valid"), which, histories)
            following, has_next = take_observation(self.fields, columns.get("next_observation"), n, stacks)
            unopened = [k for k in distinct if k not in named]
            states = [named[k] if k in named else OpenEpisode(EpisodeKey(-1, -1)) for k in distinct]
            rows = Rows(
                states, which, step, taken, following, has_next, terminated, truncated, priority, self.fields.tailed
            )
            self._make_room(rows, len(unopened) + len(facts), [*map(str, unopened), *map(json.dumps, facts.values())])
            for k in unopened:
                states[index[k]] = named[k] = open_new(k if isinstance(k, str) else None, None, {})
            for k, fact in facts.items():
                self.log.append_fact(named[k].key, None, fact)
                named[k].judged = named[k].judged or fact.get("status") is not None
            self.write(rows)
            for k in distinct:
                if named[k].ended:
                    del named[k]
        return n


def check_priorities(priority: NDArray[np.float32]) -> None:
    """Raises FieldError for a priority that is negative or infinite; NaN is none."""
    bad = np.isinf(priority) | (priority < 0)
    if bad.any():
        raise FieldError("a priority is a finite number of at least 0, NaN for none", value=float(priority[bad][0]))


def flat(value: Any, n: int, name: str, kinds: str) -> NDArray[Any]:
    """A column of one value per row. Raises FieldError."""
    array = np.asarray(value)
    if array.shape != (n,) or array.dtype.kind not in kinds:
        raise FieldError(
            f"column {name!r} holds one value per row, shape ({n},) and kind {kinds!r}",
            value=(array.shape, array.dtype.name),
        )
    return array


def _check_order(
    keys: Sequence[int | str],
    which: NDArray[np.int64],
    step: NDArray[np.int64],
    ended: NDArray[np.bool_],
    known: Mapping[int | str, OpenEpisode],
) -> None:
    """Raises EpisodeError unless every episode goes on where it stood, one step at a time, and ends with its end."""
    later, first = neighbours(which)
    for i in first.tolist():
        key = keys[which[i]]
        expected = known[key].step if key in known else 0
        if step[i] != expected:
            raise EpisodeError(f"episode {key!r} goes on at step {expected}", value=int(step[i]))
    inside = np.flatnonzero(later >= 0)
    bad = inside[step[later[inside]] != step[inside] + 1]
    if len(bad):
        i = int(bad[0])
        raise EpisodeError(f"episode {keys[which[i]]!r}: step {int(step[i])} is followed by step {int(step[later[i]])}")
    after = inside[ended[inside]]
    if len(after):
        raise EpisodeError(f"episode {keys[which[after[0]]]!r} has rows after its end at step {int(step[after[0]])}")
