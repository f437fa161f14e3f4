"""Appending many steps at once: one layout with numpy, one checksum, one store that publishes them.

What `append` would have written one by one is written here too: final rows, rows beside an episode's order, tails.
Nothing here loops over rows; episodes are looped over only where their state must be kept (design/0011).
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from recollect.hot.format.fields import FieldWriters, OpenEpisode
from recollect.hot.format.tails import TailFile
from recollect.hot.write.growing import GrowingLog
from recollect.hot.write.rows import Rows, differ, subset
from recollect.records.block import Values, write_values
from recollect.records.layout import FINAL, HAS_NEXT, TERMINATED, TRUNCATED, Layout, column, set_frame
from recollect.schema import Frames
from recollect.schema.fields import is_wide


def write_block(log: GrowingLog, fields: FieldWriters, rows: Rows) -> None:
    """Writes and publishes one block. The log's lock is held; what interrupts it halfway ends the writer."""
    room = rows.room
    log.tails.ensure(room.lanes)
    log.reserve(room.rows, room.planes, 0, room.heap_bytes)
    try:
        _write(log, fields, rows)
    except BaseException:
        log.unusable = log.unusable or "an append was interrupted halfway"
        raise
    log.publish()


def _write(log: GrowingLog, fields: FieldWriters, rows: Rows) -> None:
    layout, n = log.layout, len(rows.which)
    states = rows.states
    beside = _contradicted(log, rows)
    segment, base = log.segment, log.rows
    heap_begin, plane_begin = log.heap_used, dict(log.planes)
    total = n + len(rows.extra) + len(beside)
    target = segment.records[base : base + total]
    now = log.now()
    place = np.arange(n)
    if total == n:
        used = _put_steps(log, target, rows, now, 0)
    else:
        place[beside] += 1
        width = np.ones(n, np.int64)
        width[rows.extra] += 1
        width[beside] += 1
        place += np.cumsum(width) - width - np.arange(n)
        steps = np.zeros(n, layout.dtype)  # what lies between fields is checked too
        used = _put_steps(log, steps, rows, now, 0)
        raw = _raw(target)
        raw[place] = _raw(steps)
        used = _put_finals(log, fields, raw, place[rows.extra] + 1, rows, now, used)
        for i in beside.tolist():
            _copy_tail(log, states[rows.which[i]], target, int(place[i]) - 1, now)
        target["seq"] = np.arange(log.first_row + base, log.first_row + base + total)
    target["crc"] = 0
    target["frame"] = 0
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
    log.heap_used += used
    log.rows += total
    _advance(log, rows)
    if len(rows.waits):
        _write_tails(log, fields, rows, now, log.first_row + base + place[rows.waits])
    _remember(log, rows)
    # Last: a block that recovery finds whole has what comes with it.
    at = log.records_at + base * layout.itemsize
    with memoryview(log.map) as view:
        target["crc"][0] = zlib.crc32(view[at + 4 : at + total * layout.itemsize], crc)


def _raw(records: NDArray[np.void]) -> NDArray[np.void]:
    """Records without their fields: numpy copies them as plain bytes, and a field at a time otherwise."""
    return records.view(np.dtype((np.void, records.dtype.itemsize)))


def _put_steps(log: GrowingLog, target: NDArray[np.void], rows: Rows, now: int, used: int) -> int:
    """Writes the steps side by side into `target` `[n]`; returns the heap bytes used by then."""
    n = len(target)
    used = _put_values(log, target, rows.columns, used)
    flags = rows.terminated.view(np.uint8) * np.uint8(TERMINATED) + rows.truncated.view(np.uint8) * np.uint8(TRUNCATED)
    if rows.following is not None:
        flags += np.uint8(HAS_NEXT)
    target["flags"] = flags
    target["writer"], target["time"] = log.id, now
    target["seq"] = np.arange(log.first_row + log.rows, log.first_row + log.rows + n)
    _put_keys(target, rows, rows.which)
    target["step"], target["priority"] = rows.step, rows.priority
    return used


def _put_values(log: GrowingLog, target: NDArray[np.void], columns: Mapping[str, Values], used: int) -> int:
    """Writes columns into `target`, planes and heap bytes behind those of the segment, and counts the planes."""
    wide = log.layout.wide
    spots = {leaf.path: (log.segment.planes[leaf.path], log.planes[leaf.path]) for leaf in wide}
    heap = (log.segment.heap, log.heap_used + used)
    used += write_values(log.layout, target, slice(0, len(target)), columns, spots, heap)
    for leaf in wide:
        values = columns.get(leaf.path)
        if values is not None:
            log.planes[leaf.path] += len(target) if values.valid is None else int(values.valid.sum())
    return used


def _put_keys(target: NDArray[np.void], rows: Rows, which: NDArray[np.int64]) -> None:
    keys = rows.keys
    if len(keys) == 1:
        target["episode_writer"], target["episode"] = keys[0, 0], keys[0, 1]
    else:
        target["episode_writer"], target["episode"] = keys[which, 0], keys[which, 1]


def _put_finals(
    log: GrowingLog,
    fields: FieldWriters,
    raw: NDArray[np.void],
    at: NDArray[np.int64],
    rows: Rows,
    now: int,
    used: int,
) -> int:
    """Writes the observations that need rows of their own; returns the heap bytes used by then."""
    if not len(at):
        return used
    chosen = {path: subset(v, rows.extra) for path, v in (rows.following or {}).items()}
    records = _blank(fields, len(at))
    used = _put_values(log, records, chosen, used)
    records["flags"], records["writer"], records["time"] = FINAL, log.id, now
    _put_keys(records, rows, rows.which[rows.extra])
    records["step"], records["priority"] = rows.step[rows.extra] + 1, np.nan
    raw[at] = _raw(records)
    return used


def _blank(fields: FieldWriters, n: int) -> NDArray[np.void]:
    """Records of nulls and zeros."""
    return np.frombuffer(bytearray(fields.blank.tobytes() * n), fields.layout.dtype)


def _copy_tail(log: GrowingLog, state: OpenEpisode | None, target: NDArray[np.void], row: int, now: int) -> None:
    """Keeps a waiting observation that the next step contradicts: as a row of its own, before the step's."""
    assert state is not None
    tail, slot = log.tails.slot(state)
    target[row] = tail.records[slot]
    target["writer"][row], target["time"][row] = log.id, now
    target["flags"][row], target["priority"][row] = FINAL, np.nan
    target["episode_writer"][row], target["episode"][row] = state.key
    target["step"][row] = state.step
    for leaf in log.layout.wide:
        if leaf.is_observation and int(target[column(leaf.path)][row]) >= 0:
            plane = log.planes[leaf.path]
            log.segment.planes[leaf.path][plane] = tail.planes[leaf.path][slot]
            target[column(leaf.path)][row] = plane
            log.planes[leaf.path] += 1


def _advance(log: GrowingLog, rows: Rows) -> None:
    """Takes note of where every open episode now stands."""
    last = rows.last
    for k, step, over in zip(
        rows.which[last].tolist(), rows.step[last].tolist(), rows.ended[last].tolist(), strict=True
    ):
        state = rows.states[k]
        if state is None:
            continue
        state.step = step + 1
        state.pending = False
        if over:
            state.ended = True
            log.tails.give_back(state)


# -- tails -----------------------------------------------------------------------------------------------------------


def _contradicted(log: GrowingLog, rows: Rows) -> NDArray[np.int64]:
    """Rows whose observation is not the one that waits in their episode's tail."""
    pending = rows.pending
    if not pending:
        return rows.last[:0]
    whole = len(pending) == len(rows.states)
    first = rows.first if whole else rows.first[[s is not None and s.pending for s in rows.states]]
    every = whole and len(first) == len(rows.which)  # one row of every episode, as lanes write them
    paths = [leaf.path for leaf in log.layout.schema.observations]
    written = log.waiting
    if written is not None and written[0] == pending:
        wrong = differ(paths, written[1], None, rows.columns, None if every else first, len(pending))
    else:
        wrong = np.zeros(len(pending), np.bool_)
        for tail, slots, members in log.tails.slots(pending):
            held = _waiting(log.layout, tail, slots)
            wrong[members] = differ(paths, held, None, rows.columns, first[members], len(members))
    return np.sort(first[wrong])


def _waiting(layout: Layout, tail: TailFile, slots: NDArray[np.int64]) -> dict[str, Values]:
    """The observations in some slots."""
    records = _raw(tail.records)[slots].view(layout.dtype)
    out = {}
    for leaf in layout.schema.observations:
        valid = None
        if leaf.path in layout.nulls:
            word, bit = layout.nulls[leaf.path]
            valid = (records["nulls"][:, word] >> np.uint64(bit)) & np.uint64(1) == 0
        data = tail.planes[leaf.path][slots] if is_wide(leaf.field) else records[column(leaf.path)]
        out[leaf.path] = Values(data, valid)
    return out


def _write_tails(log: GrowingLog, fields: FieldWriters, rows: Rows, now: int, seqs: NDArray[np.int64]) -> None:
    """Leaves the next observations of the rows that wait in tail slots."""
    waits, which = rows.waits, rows.which[rows.waits]
    one_each = len(waits) == len(rows.which) == len(rows.states)
    owners = rows.states if one_each else [rows.states[k] for k in which.tolist()]
    states = [s for s in owners if s is not None]
    take, turn = log.tails.take, log.tails.turn
    for state, seq in zip(states, seqs.tolist(), strict=True):
        if state.lane is None:
            take(state)
        turn(state, seq)
        state.pending = True
    layout = log.layout
    records = _blank(fields, len(waits))
    records["flags"], records["frame"], records["writer"], records["seq"] = FINAL, 1, log.id, seqs
    _put_keys(records, rows, which)
    records["time"], records["step"] = now, rows.step[waits] + 1
    records["priority"] = np.nan
    wide: dict[str, Values] = {}
    following = {path: subset(values, waits) for path, values in (rows.following or {}).items()}
    log.waiting = (states, following)
    for path, values in following.items():
        leaf = layout.schema.by_path[path]
        if leaf.field.optional:
            word, bit = layout.nulls[path]
            known = np.ones(len(waits), np.bool_) if values.valid is None else values.valid
            records["nulls"][:, word] &= ~(known.astype(np.uint64) << np.uint64(bit))
        if is_wide(leaf.field):
            wide[path] = values
        elif values.valid is None:
            records[column(path)] = values.data
        else:
            records[column(path)][values.valid] = values.data[values.valid]
    for tail, slots, members in log.tails.slots(states):
        mine = records if len(members) == len(records) else records[members]
        for path, values in wide.items():
            has = slice(None) if values.valid is None else values.valid[members]
            tail.planes[path][slots[has]] = values.data[members[has]]
            mine[column(path)][has] = slots[has]
        _raw(tail.records)[slots] = _raw(mine)
        _sum_slots(tail, slots)


def _sum_slots(tail: TailFile, slots: NDArray[np.int64]) -> None:
    """Stores the checksums of slots just written."""
    base, size, crc32 = tail.slot_at(0), tail.slot_bytes, zlib.crc32
    with memoryview(tail.map) as view:
        sums = [crc32(view[at + 4 : at + size]) for at in (base + size * slots).tolist()]
    tail.records["crc"][slots] = sums


def _remember(log: GrowingLog, rows: Rows) -> None:
    """Keeps each open episode's newest planes, which its next stack must begin with."""
    for leaf in log.layout.wide:
        if not isinstance(leaf.field, Frames) or leaf.field.stack == 1 or leaf.path not in rows.columns:
            continue
        values, depth = rows.columns[leaf.path], leaf.field.stack - 1
        order = np.argsort(rows.which, kind="stable")
        stops = np.searchsorted(rows.which[order], np.arange(len(rows.states)), "right").tolist()
        start = 0
        for state, stop in zip(rows.states, stops, strict=True):
            if state is not None and not state.ended:
                mine = order[max(start, stop - depth) : stop]
                planes = values.data[mine]
                if values.valid is not None:
                    planes[~values.valid[mine]] = 0
                history = state.history.setdefault(leaf.path, [])
                history.extend(planes)
                del history[:-depth]
            start = stop
