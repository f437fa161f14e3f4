"""The compiled loops: one gather for a batch, and one pass that finds every row's episode and successor.

Rows are addressed by pointer. A view's blocks are two small arrays, the first slot of each block and the address of
that slot's record, so that one kernel serves any number of segments, blocks and files without being compiled again.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

COPY, PLANE, FLAG, VALID = 0, 1, 2, 3
"""Kinds of job: copy inline bytes, copy a plane, test a flag, test a null bit."""
J_KIND, J_COLUMN, J_SOURCE, J_SIZE, J_TARGET, J_STRIDE, J_PLANE, J_FILL = range(8)
"""Columns of the job table: kind, column of the slot matrix, byte offset in the record, bytes (or bit mask, or bit),
byte offset in the target, bytes between targets of two rows, index of the plane region, what stands for a null (1 is
float32 NaN)."""


def _loader(bits: int) -> Any:
    kind = {8: types.uint8, 16: types.uint16, 32: types.uint32, 64: types.int64}[bits]

    @intrinsic
    def load(typingctx: Any, address: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            pointer = builder.inttoptr(args[0], ir.IntType(bits).as_pointer())
            value = builder.load(pointer)
            value.align = 1
            return value

        return kind(types.int64), codegen

    return load


load16, load32, load64 = _loader(16), _loader(32), _loader(64)


def _storer(bits: int) -> Any:
    """Stores an integer of so many bits at an address; wider values are cut, the sign of narrower ones is kept."""

    @intrinsic
    def store(typingctx: Any, address: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kind = ir.IntType(bits)
            number = args[1] if bits == 64 else builder.trunc(args[1], kind)
            done = builder.store(number, builder.inttoptr(args[0], kind.as_pointer()))
            done.align = 1
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), codegen

    return store


_store8, _store32, _store64 = _storer(8), _storer(32), _storer(64)


@intrinsic
def _copy(typingctx: Any, target: Any, source: Any, size: Any) -> Any:
    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte = ir.IntType(8).as_pointer()
        cgutils.raw_memcpy(
            builder, builder.inttoptr(args[0], byte), builder.inttoptr(args[1], byte), args[2], 1, align=1
        )
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), codegen


def _mover(size: int) -> Any:
    """Copies so many bytes from one address to another, in registers as wide as the machine has."""

    @intrinsic
    def move(typingctx: Any, target: Any, source: Any) -> Any:
        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            kind = ir.VectorType(ir.IntType(8), size)
            value = builder.load(builder.inttoptr(args[1], kind.as_pointer()))
            value.align = 1
            done = builder.store(value, builder.inttoptr(args[0], kind.as_pointer()))
            done.align = 1
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), codegen

    return move


_move16, _move32 = _mover(16), _mover(32)


@intrinsic
def _prefetch(typingctx: Any, address: Any) -> Any:
    """Asks for a cache line that will be read soon; harmless for any address."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        byte, word = ir.IntType(8).as_pointer(), ir.IntType(32)
        kind = ir.FunctionType(ir.VoidType(), [byte, word, word, word])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0i8")
        pointer = builder.inttoptr(args[0], byte)
        builder.call(function, [pointer, word(0), word(3), word(1)])
        return context.get_dummy_value()

    return types.void(types.int64), codegen


@njit(nogil=True, cache=True)
def _fill(target: int, size: int, nan: int) -> None:
    if nan == 1:
        for k in range(0, size, 4):
            _store32(target + k, 0x7FC00000)
    else:
        for k in range(size):
            _store8(target + k, 0)


@njit(nogil=True, cache=True)
def _block_of(starts: Any, slot: Any) -> Any:
    """A binary search without a branch: which way it goes cannot be predicted, and a wrong guess costs more than a
    step."""
    low, count = 0, starts.shape[0] - 1
    while count > 1:
        half = count >> 1
        low += half * np.int64(starts[low + half] <= slot)
        count -= half
    return low


TILE_ROWS = 16
"""Rows that are copied together, job by job, while the cache lines of the next tile are on their way."""


@njit(nogil=True, cache=True)
def _locate(
    slots: Any, starts: Any, bases: Any, itemsize: int, lines: Any, low: int, high: int, address: Any, block: Any
) -> None:
    """Addresses of the rows `low` to `high`, and a request for every cache line that will be read of them."""
    for i in range(low, high):
        b = 0
        for w in range(slots.shape[1]):
            slot = slots[i, w]
            if slot < 0:
                address[w, i] = 0
            else:
                if slot < starts[b] or slot >= starts[b + 1]:  # a row's columns lie close to one another
                    b = _block_of(starts, slot)
                block[w, i] = b
                address[w, i] = bases[b] + (slot - starts[b]) * itemsize
        for k in range(lines.shape[0]):
            _prefetch(address[lines[k, 0], i] + lines[k, 1])


@njit(nogil=True, cache=True)
def _copy_planes(i: int, jobs: Any, planes: Any, address: Any, block: Any, target: Any) -> None:
    """All planes of row `i`, one after the other, since those of a stack lie side by side: planes that do so at both
    ends are copied together, and those of the next observation are in the cache then."""
    begin, source, count = np.int64(0), np.int64(0), np.int64(0)
    for j in range(jobs.shape[0]):
        if jobs[j, J_KIND] != PLANE:
            continue
        size, column = jobs[j, J_SIZE], jobs[j, J_COLUMN]
        to = target + jobs[j, J_TARGET] + i * jobs[j, J_STRIDE]
        row = address[column, i]
        plane = np.int64(-1)
        if row != 0:
            plane = load64(row + jobs[j, J_SOURCE])
        if plane < 0:
            _fill(to, size, 0 if row == 0 else jobs[j, J_FILL])
            continue
        at = planes[jobs[j, J_PLANE], block[column, i]] + plane * size
        if count > 0 and at == source + count and to == begin + count:
            count += size
            continue
        if count > 0:
            _copy(begin, source, count)
        begin, source, count = to, at, size
    if count > 0:
        _copy(begin, source, count)


@njit(nogil=True, cache=True)
def gather(slots: Any, starts: Any, bases: Any, planes: Any, itemsize: int, jobs: Any, lines: Any, arena: Any) -> None:
    """Copies what `jobs` names for every row of the slot matrix `[n, columns]` to the bytes of `arena`.

    `starts` `[blocks + 1]` int64 are first slots, `bases` `[blocks]` the addresses of their records, `planes`
    `[regions, blocks]` the addresses of plane 0, `lines` `[m, 2]` the (column, byte offset) of the cache lines that the
    jobs read. A slot of -1 gives zeros.
    """
    n, width = slots.shape
    target = arena.ctypes.data
    address = np.empty((width, n), np.int64)
    block = np.empty((width, n), np.int64)
    has_planes = (jobs[:, J_KIND] == PLANE).any()
    _locate(slots, starts, bases, itemsize, lines, 0, min(n, TILE_ROWS), address, block)
    for low in range(0, n, TILE_ROWS):
        high = min(n, low + TILE_ROWS)
        _locate(slots, starts, bases, itemsize, lines, high, min(n, high + TILE_ROWS), address, block)
        for j in range(jobs.shape[0]):
            kind, size, source = jobs[j, J_KIND], jobs[j, J_SIZE], jobs[j, J_SOURCE]
            stride, to = jobs[j, J_STRIDE], target + jobs[j, J_TARGET] + low * jobs[j, J_STRIDE]
            row = address[jobs[j, J_COLUMN]]
            if kind == COPY and size == 4:
                for i in range(low, high):
                    _store32(to, load32(row[i] + source) if row[i] != 0 else 0)
                    to += stride
            elif kind == COPY and size <= 256 and (size >= 16 or size == 8):
                for i in range(low, high):
                    at = row[i] + source
                    if row[i] == 0:
                        _fill(to, size, 0)
                    elif size >= 32:  # the last register overlaps the one before
                        for k in range(0, size - 31, 32):
                            _move32(to + k, at + k)
                        _move32(to + size - 32, at + size - 32)
                    elif size >= 16:
                        _move16(to, at)
                        _move16(to + size - 16, at + size - 16)
                    else:
                        _store64(to, load64(at))
                    to += stride
            elif kind == COPY:
                for i in range(low, high):
                    if row[i] == 0:
                        _fill(to, size, 0)
                    else:
                        _copy(to, row[i] + source, size)
                    to += stride
            elif kind == FLAG:
                for i in range(low, high):
                    _store8(to, 1 if row[i] != 0 and (load16(row[i] + source) & size) != 0 else 0)
                    to += stride
            elif kind == VALID:
                for i in range(low, high):
                    _store8(to, 1 if row[i] != 0 and ((load64(row[i] + source) >> size) & 1) == 0 else 0)
                    to += stride
        if has_planes:
            for i in range(low, high):
                _copy_planes(i, jobs, planes, address, block, target)


@njit(nogil=True, cache=True)
def pair_slots(keys: Any, successor: Any, out: Any) -> None:
    """Fills `out` `[n, 2]` with each key and the slot of its next observation."""
    for i in range(keys.shape[0]):
        out[i, 0] = keys[i]
        out[i, 1] = successor[keys[i]]


@njit(nogil=True, cache=True)
def _mix(a: Any, b: Any) -> Any:
    h = np.uint64(a) * np.uint64(0x9E3779B97F4A7C15) ^ np.uint64(b)
    h ^= h >> np.uint64(32)
    h *= np.uint64(0xD6E8FEB86659FD93)
    h ^= h >> np.uint64(32)
    return np.int64(h & np.uint64(0x7FFFFFFFFFFFFFFF))


@njit(nogil=True, cache=True)
def group_rows(
    starts: Any,
    bases: Any,
    itemsize: int,
    n: int,
    at_flags: int,
    at_writer: int,
    at_counter: int,
    at_step: int,
    hole: int,
    final: int,
) -> Any:
    """First pass over a view: which episode each row belongs to.

    Returns:
        group `[n]` int32 (-1 for holes), step `[n]` int32, flags `[n]` uint16, keys `[groups, 2]` int64, counts
        `[groups]` int64, and whether every episode's rows lie side by side in step order.
    """
    group = np.empty(n, np.int32)
    step = np.empty(n, np.int32)
    flags = np.empty(n, np.uint16)
    capacity = 1024
    table = np.full(capacity, -1, np.int64)
    keys = np.empty((256, 2), np.int64)
    counts = np.zeros(256, np.int64)
    last_slot = np.empty(256, np.int64)
    groups = 0
    linear = True
    before_writer, before_counter, before = np.int64(-1), np.int64(-1), -1
    b = 0
    for slot in range(n):
        while starts[b + 1] <= slot:
            b += 1
        at = bases[b] + (slot - starts[b]) * itemsize
        f = load16(at + at_flags)
        flags[slot] = f
        if f & hole:
            group[slot] = -1
            step[slot] = 0
            linear = False
            continue
        writer, counter = load64(at + at_writer), load64(at + at_counter)
        s = np.int32(load32(at + at_step))
        step[slot] = s
        if before >= 0 and writer == before_writer and counter == before_counter:
            g = before
        else:
            place = _mix(writer, counter) & (capacity - 1)
            g = -1
            while table[place] >= 0:
                k = table[place]
                if keys[k, 0] == writer and keys[k, 1] == counter:
                    g = k
                    break
                place = (place + 1) & (capacity - 1)
            if g < 0:
                g = groups
                if groups == keys.shape[0]:
                    more_keys = np.empty((2 * groups, 2), np.int64)
                    more_keys[:groups] = keys
                    keys = more_keys
                    more_counts = np.zeros(2 * groups, np.int64)
                    more_counts[:groups] = counts
                    counts = more_counts
                    more_last = np.empty(2 * groups, np.int64)
                    more_last[:groups] = last_slot
                    last_slot = more_last
                keys[g, 0] = writer
                keys[g, 1] = counter
                table[place] = g
                groups += 1
                if 2 * groups > capacity:
                    capacity *= 4
                    table = np.full(capacity, -1, np.int64)
                    for k in range(groups):
                        place = _mix(keys[k, 0], keys[k, 1]) & (capacity - 1)
                        while table[place] >= 0:
                            place = (place + 1) & (capacity - 1)
                        table[place] = k
            before_writer, before_counter, before = writer, counter, g
        if counts[g] > 0 and (last_slot[g] != slot - 1 or step[slot - 1] + 1 != s or (flags[slot - 1] & final) != 0):
            linear = False
        last_slot[g] = slot
        counts[g] += 1
        group[slot] = g
    return group, step, flags, keys[:groups].copy(), counts[:groups].copy(), linear


@njit(nogil=True, cache=True)
def order_rows(group: Any, step: Any, flags: Any, counts: Any, final: int) -> Any:
    """Every episode's rows side by side in step order: a counting sort, then a sort of the few that need it.

    A final row of step k comes before the step row k. Returns order `[rows]` int64 (slots).
    """
    groups = counts.shape[0]
    place = np.zeros(groups + 1, np.int64)
    for g in range(groups):
        place[g + 1] = place[g] + counts[g]
    start = place.copy()
    order = np.empty(place[groups], np.int64)
    for slot in range(group.shape[0]):
        g = group[slot]
        if g >= 0:
            order[place[g]] = slot
            place[g] += 1
    for g in range(groups):
        low, high = start[g], start[g + 1]
        sorted_ = True
        for r in range(low + 1, high):
            a, c = order[r - 1], order[r]
            ka = 2 * np.int64(step[a]) + (0 if flags[a] & final else 1)
            kc = 2 * np.int64(step[c]) + (0 if flags[c] & final else 1)
            if kc < ka:
                sorted_ = False
                break
        if not sorted_:
            rows = order[low:high].copy()
            key = np.empty(high - low, np.int64)
            for r in range(high - low):
                key[r] = 2 * np.int64(step[rows[r]]) + (0 if flags[rows[r]] & final else 1)
            order[low:high] = rows[np.argsort(key, kind="mergesort")]
    return order


@njit(nogil=True, cache=True)
def link_rows(order: Any, linear: bool, group: Any, step: Any, flags: Any, final: int) -> Any:
    """Second pass: runs of consecutive steps, and each step's next observation.

    A run is a stretch of one episode without a missing step. A final row in the middle of an episode (an environment
    that jumped) is the next observation of the step before it and belongs to no run.

    Returns:
        run `[n]` int32 (-1 for rows in none), rank `[n]` int32, run_start and run_stop `[runs]` int64 (ranks;
        half-open, the final row included), successor `[n]` int32 (-1 none), kept `[m]` int64: rank → slot.
    """
    n = group.shape[0]
    total = n if linear else order.shape[0]
    run = np.full(n, -1, np.int32)
    rank = np.full(n, -1, np.int32)
    successor = np.full(n, -1, np.int32)
    kept = np.empty(0 if linear else total, np.int64)
    run_start = np.empty(256, np.int64)
    runs = 0
    at = 0
    before = -1
    for r in range(total):
        slot = r if linear else order[r]
        is_final = (flags[slot] & final) != 0
        if before >= 0 and is_final and group[before] == group[slot] and step[slot] == step[before] + 1:
            successor[before] = slot
            following = -1
            if r + 1 < total:
                following = r + 1 if linear else order[r + 1]
            if following >= 0 and group[following] == group[slot]:
                continue  # beside the episode's order
        elif (
            before >= 0
            and group[before] == group[slot]
            and step[slot] == step[before] + 1
            and (flags[before] & final) == 0
        ):
            if successor[before] < 0:
                successor[before] = slot
        else:
            if runs == run_start.shape[0]:
                more = np.empty(2 * runs, np.int64)
                more[:runs] = run_start
                run_start = more
            run_start[runs] = at
            runs += 1
        run[slot] = runs - 1
        rank[slot] = at
        if not linear:
            kept[at] = slot
        at += 1
        before = slot
    run_stop = np.empty(runs, np.int64)
    for k in range(runs):
        run_stop[k] = run_start[k + 1] if k + 1 < runs else at
    return run, rank, run_start[:runs].copy(), run_stop, successor, kept[:at].copy()


@njit(nogil=True, cache=True)
def count_bytes(values: Any) -> Any:
    """`[256]` int64: how often each byte is among `values` `[n]` uint8. Four tables, so that equal neighbours don't
    wait for one another's counter."""
    tables = np.zeros((4, 256), np.int64)
    whole = len(values) - len(values) % 4
    for k in range(0, whole, 4):
        tables[0, values[k]] += 1
        tables[1, values[k + 1]] += 1
        tables[2, values[k + 2]] += 1
        tables[3, values[k + 3]] += 1
    for k in range(whole, len(values)):
        tables[0, values[k]] += 1
    return tables.sum(axis=0)
