"""Appending one step: the path that a live agent waits for.

Values are checked and prepared first; rows are written where no reader looks; one store publishes them. Fields that lie
inside the record and are given as they are stored take one short loop. Everything else, frames, text, nesting, nulls,
is prepared by `FieldWriters`.
"""

from __future__ import annotations

import struct
import time
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recollect.errors import EpisodeError, FieldError
from recollect.hot.format.fields import MISSING, FieldWriters, OpenEpisode, Prepared
from recollect.hot.format.segment import ROWS_PER_APPEND
from recollect.hot.format.tails import TailFile
from recollect.hot.write.growing import GrowingLog
from recollect.records.layout import FINAL, HAS_NEXT, SYSTEM_STRUCT, TERMINATED, TRUNCATED, column
from recollect.schema import Frames
from recollect.schema.fields import is_inline, is_wide
from recollect.schema.values import cast_array
from recollect.view import StepId

_pack = struct.Struct(SYSTEM_STRUCT).pack_into
_pack_crc = struct.Struct("<I").pack_into
_crc32 = zlib.crc32
_clock = time.time_ns
_id = tuple.__new__
_NAN, _INFINITE = float("nan"), float("inf")
_FLOAT32 = np.dtype(np.float32)


class StepAppender:
    """Appends single steps to a log."""

    def __init__(self, log: GrowingLog, fields: FieldWriters) -> None:
        self.log, self.fields = log, fields
        self._size = log.layout.itemsize
        self._segment: Any = None
        self._simple = fields.simple_observation
        """Name, column, dtype and shape of the one observation field, when it lies in the record."""
        self._observed_at = [
            (log.layout.offset(column(leaf.path)), log.layout.dtype[column(leaf.path)].itemsize)
            for leaf in log.layout.schema.observations
            if is_inline(leaf.field)
        ]

    def _bind(self) -> None:
        """Takes the columns of a new segment."""
        log = self.log
        self._segment = log.segment
        self._plain = [
            (name, log.records[col], dtype, shape, floats, ints, scalar)
            for name, col, dtype, shape, floats, ints, scalar in self.fields.plain
        ]

    def append(
        self,
        episode: OpenEpisode,
        values: dict[str, Any],
        terminated: bool,
        truncated: bool,
        next_observation: Any,
        priority: float | None,
    ) -> StepId:
        """`Episode.append`."""
        log = self.log
        with log.lock:
            if log.unusable is not None:
                log.check()
            if episode.ended:
                raise ended_error(episode)
            if log.rows >= log.max_rows:
                log.turn_page()
            if type(terminated) is not bool or type(truncated) is not bool:
                terminated, truncated = _flag(terminated, "terminated"), _flag(truncated, "truncated")
            if priority is not None:
                priority = float(cast_array(priority, _FLOAT32, (), "priority"))
                if not 0.0 <= priority < _INFINITE:
                    raise FieldError("a priority is a finite number of at least 0, None for none", value=priority)
            prepared: Prepared | None = None
            observed: Any = None
            heap_bytes = 0
            if self.fields.rich:
                prepared, heap_bytes = self.fields.prepare_step(values, episode.history)
            if next_observation is not None:
                observed = self._check_next(episode, values, next_observation, prepared)
                if episode.lane is None and self.fields.tailed and not (terminated or truncated):
                    log.tails.take(episode)
                if prepared is not None and self._simple is None:
                    heap_bytes += sum(len(v) for _, v in observed if type(v) is bytes)
            if prepared is not None:
                log.reserve(rows=ROWS_PER_APPEND, planes=ROWS_PER_APPEND, heap_bytes=heap_bytes)
            if self._segment is not log.segment:
                self._bind()
            row = log.rows
            for name, target, dtype, shape, floats, ints, scalar in self._plain:
                value = values.get(name, MISSING)
                kind = type(value)
                if (
                    (kind is np.ndarray and value.dtype is dtype and value.shape == shape)
                    or (floats and isinstance(value, float) and -floats <= value <= floats)
                    or kind is scalar
                ):
                    target[row] = value
                else:
                    given = value if value is not MISSING else self._left_out(name, values)
                    target[row] = self._cast(name, given, dtype, shape, ints)
            extra = 0
            heap_at = log.heap_used
            if prepared is not None:
                heap_at = self._put(row, prepared)
                extra = self._covered(row, prepared, heap_at)
            elif len(values) != len(self._plain):
                self.fields.check_names(values)

            # Nothing below can fail for what was passed; what may interrupt it ends the writer (test_interrupted).
            try:
                now = _clock()
                if now < log.last_time:
                    now = log.last_time
                log.last_time = now
                if episode.pending and not self._continues(episode, row):
                    row = self._put_beside(episode, row, now)
                flags = (TERMINATED if terminated else 0) | (TRUNCATED if truncated else 0)
                if observed is not None:
                    flags |= HAS_NEXT
                seq, step, key = log.first_row + row, episode.step, episode.key
                at = log.records_at + row * self._size
                _pack(log.map, at + 4, 1, flags, log.id, seq, *key, now, step, _NAN if priority is None else priority)
                log.rows = row + 1
                log.heap_used = heap_at
                if prepared is not None:
                    self._advance(prepared, episode, row)
                episode.step = step + 1
                episode.pending = False
                if observed is not None:
                    if terminated or truncated or not self.fields.tailed:
                        self._put_final(episode, observed, now)
                    else:
                        self._put_tail(episode, observed, now, seq)
                if terminated or truncated:
                    episode.ended = True
                    log.tails.give_back(episode)
                # Last: a step that recovery finds whole has what comes with it.
                _pack_crc(log.map, at, _crc32(log.map[at + 4 : at + self._size], extra))
                log.publish()
            except BaseException:
                log.unusable = log.unusable or "an append was interrupted halfway"
                raise
            return _id(StepId, (log.id, seq))

    def close_episode(self, episode: OpenEpisode) -> None:
        """Keeps the observation that waits behind an episode's newest step, as its final row; frees its tail slots."""
        log = self.log
        if episode.pending:
            tail, slot = log.tails.slot(episode)
            self.put_observation(episode, tail.records[slot : slot + 1], tail.planes)
            episode.pending = False
        log.tails.give_back(episode)
        episode.ended = True

    def put_observation(
        self, episode: OpenEpisode, record: NDArray[np.void], planes: Mapping[str, NDArray[Any]]
    ) -> None:
        """Writes and publishes a row of its own for the observation after an episode's newest step. `record` `[1]`
        holds it, and where in `planes` its wide fields lie."""
        log = self.log
        log.reserve(rows=1, planes=1)
        self._put_observation_row(episode, log.rows, log.now(), {}, record, planes)
        log.rows += 1
        log.publish()

    # -- checking ------------------------------------------------------------------------------------------

    def _left_out(self, name: str, values: Mapping[str, Any]) -> Any:
        """The default of a field that the caller left out. Raises FieldError where it has none."""
        if name not in self.fields.defaults:
            raise self.fields.missing(name)
        self.fields.check_names(values)  # as many names as fields no longer means that every name is a field's
        return self.fields.defaults[name]

    def _cast(self, name: str, value: Any, dtype: np.dtype[Any], shape: tuple[int, ...], ints: bool) -> Any:
        if value is None:
            raise self.fields.missing(name)
        if ints and type(value) is int:
            info = np.iinfo(dtype)
            if not info.min <= value <= info.max:
                raise FieldError(
                    f"field {name!r} is {dtype.name}, which ends at {info.min} and {info.max}", value=value
                )
            return value
        return cast_array(value, dtype, shape, name)

    def _check_next(
        self, episode: OpenEpisode, values: Mapping[str, Any], observation: Any, prepared: Prepared | None
    ) -> Any:
        """The next observation, ready to be stored: an array for a single field in the record, prepared values
        otherwise."""
        if self._simple is not None:
            name, _, dtype, shape = self._simple
            if type(observation) is np.ndarray and observation.dtype is dtype and observation.shape == shape:
                return observation
            return cast_array(observation, dtype, shape, f"next_{name}")
        histories: dict[str, list[NDArray[Any]]] = {}
        for leaf, plane in prepared or ():
            if isinstance(leaf.field, Frames) and leaf.is_observation:
                known = np.zeros(leaf.field.shape, leaf.field.dtype) if plane is None else plane
                histories[leaf.path] = [*episode.history.get(leaf.path, []), known]
        return self.fields.prepare_observation(observation, histories)

    # -- writing -------------------------------------------------------------------------------------------

    def _put(self, row: int, prepared: Prepared) -> int:
        """Writes prepared values into a record; returns where the heap then ends."""
        log = self.log
        end = self.fields.put(
            log.records, row, prepared, log.segment.planes, log.planes, log.segment.heap, log.heap_used
        )
        if log.layout.heap:
            log.records["heap_at"][row], log.records["heap_bytes"][row] = log.heap_used, end - log.heap_used
        return end

    def _covered(self, row: int, prepared: Prepared, heap_end: int) -> int:
        """The checksum of the planes and heap bytes of a record just written, which its own goes on from."""
        log, crc = self.log, 0
        for leaf, value in prepared:
            if value is not None and is_wide(leaf.field):
                plane = int(log.records[column(leaf.path)][row])
                crc = _crc32(log.segment.planes[leaf.path][plane], crc)
        if heap_end > log.heap_used:
            crc = _crc32(log.segment.heap[log.heap_used : heap_end].data, crc)
        return crc

    def _advance(self, prepared: Prepared, episode: OpenEpisode | None, row: int) -> None:
        """Counts the planes just written, and remembers those that the episode's next stack must begin with."""
        log = self.log
        for leaf, value in prepared:
            if not is_wide(leaf.field):
                continue
            log.planes[leaf.path] += value is not None
            if episode is not None and isinstance(leaf.field, Frames) and leaf.field.stack > 1:
                history = episode.history.setdefault(leaf.path, [])
                plane = int(log.records[column(leaf.path)][row])
                blank = np.zeros(leaf.field.shape, leaf.field.dtype)
                history.append(blank if value is None else log.segment.planes[leaf.path][plane])
                del history[: -(leaf.field.stack - 1)]

    def _system(self, map_: Any, at: int, seq: int, episode: OpenEpisode, now: int, step: int) -> None:
        """The system columns of an observation-only record."""
        _pack(map_, at + 4, 1, FINAL, self.log.id, seq, *episode.key, now, step, _NAN)

    def _continues(self, episode: OpenEpisode, row: int) -> bool:
        """Whether the observation just written is, byte for byte, the one that waits in the tail."""
        log = self.log
        tail, slot = log.tails.slot(episode)
        mine, theirs = log.records_at + row * self._size, tail.slot_at(slot)
        for at, size in self._observed_at:
            if log.map[mine + at : mine + at + size] != tail.map[theirs + at : theirs + at + size]:
                return False
        if self._simple is not None:
            return True
        new, old = log.records[row], tail.records[slot]
        for leaf in log.layout.schema.observations:
            if is_wide(leaf.field):
                a, b = int(new[column(leaf.path)]), int(old[column(leaf.path)])
                if (a < 0) != (b < 0):
                    return False
                if b >= 0 and log.segment.planes[leaf.path][a].tobytes() != tail.planes[leaf.path][slot].tobytes():
                    return False
            if leaf.path in log.layout.nulls:
                word, bit = log.layout.nulls[leaf.path]
                if (int(new["nulls"][word]) ^ int(old["nulls"][word])) >> bit & 1:
                    return False
        return True

    def _put_beside(self, episode: OpenEpisode, row: int, now: int) -> int:
        """Keeps a waiting observation that the step contradicts: as a row of its own, before the step's."""
        records = self.log.records
        records[row + 1] = records[row]
        taken = {leaf.path: int(records[column(leaf.path)][row] >= 0) for leaf in self.log.layout.wide}
        tail, slot = self.log.tails.slot(episode)
        self._put_observation_row(episode, row, now, taken, tail.records[slot : slot + 1], tail.planes)
        return row + 1

    def _put_observation_row(
        self,
        episode: OpenEpisode,
        row: int,
        now: int,
        taken: Mapping[str, int],
        source: NDArray[np.void],
        planes: Mapping[str, NDArray[Any]],
    ) -> None:
        """Writes an observation as a row. `taken` planes were written already but are not counted yet."""
        log = self.log
        record = source.copy()
        extra = 0
        for leaf in log.layout.wide:
            if leaf.is_observation and int(record[column(leaf.path)][0]) >= 0:
                plane = log.planes[leaf.path] + taken.get(leaf.path, 0)
                region = log.segment.planes[leaf.path]
                region[plane] = planes[leaf.path][int(source[column(leaf.path)][0])]
                record[column(leaf.path)] = plane
                extra = _crc32(region[plane], extra)
                log.planes[leaf.path] += 1
        log.records[row] = record[0]
        at = log.records_at + row * self._size
        self._system(log.map, at, log.first_row + row, episode, now, episode.step)
        _pack_crc(log.map, at, _crc32(log.map[at + 4 : at + self._size], extra))

    def _put_final(self, episode: OpenEpisode, observed: Any, now: int) -> None:
        """Writes the observation after the newest step as a row of its own."""
        log = self.log
        row = log.rows
        log.records[row] = self.fields.blank_void
        extra = 0
        if self._simple is not None:
            log.records[self._simple[1]][row] = observed
        else:
            end = self._put(row, observed)
            extra = self._covered(row, observed, end)
            log.heap_used = end
            self._advance(observed, None, row)
        at = log.records_at + row * self._size
        self._system(log.map, at, log.first_row + row, episode, now, episode.step)
        _pack_crc(log.map, at, _crc32(log.map[at + 4 : at + self._size], extra))
        log.rows = row + 1

    def _put_tail(self, episode: OpenEpisode, observed: Any, now: int, seq: int) -> None:
        """Leaves the observation after the newest step in a tail slot."""
        tails = self.log.tails
        tails.turn(episode, seq)
        tail, slot = tails.slot(episode)
        if self._simple is not None:
            tail.records[self._simple[1]][slot] = observed
        else:
            self._fill_tail(tail, slot, observed)
        at = tail.slot_at(slot)
        self._system(tail.map, at, seq, episode, now, episode.step)
        _pack_crc(tail.map, at, tail.checksum(slot))
        episode.pending = True

    def _fill_tail(self, tail: TailFile, slot: int, observed: Prepared) -> None:
        tail.records[slot] = self.fields.blank_void
        self.fields.put(
            tail.records, slot, observed, tail.planes, dict.fromkeys(tail.planes, slot), np.zeros(0, np.uint8), 0
        )


def ended_error(episode: OpenEpisode) -> EpisodeError:
    return EpisodeError(
        f"episode {episode.id or episode.key.default_id} has ended", remedy="Open a new one with writer.episode()"
    )


def _flag(value: Any, name: str) -> bool:
    """Raises FieldError unless `value` is one truth value."""
    array = np.asarray(value)
    if array.shape != () or array.dtype != np.bool_:
        raise FieldError(f"{name} is True or False", value=value)
    return bool(array)
