"""`Writer.extend`: a caller's columns, checked, become a block of rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from recollect.errors import EpisodeError, FieldError
from recollect.hot.format.fields import FieldWriters, OpenEpisode
from recollect.hot.write.blocks import write_block
from recollect.hot.write.columns import take_columns, take_observation
from recollect.hot.write.facts import check_facts, check_id
from recollect.hot.write.growing import GrowingLog, encode_fact
from recollect.hot.write.rows import Rows, episode_keys, neighbours, number_keys
from recollect.view import EpisodeKey

_CONTROL = ("episode", "step", "terminated", "truncated", "next_observation", "priority", "valid", "facts")

OpenNew: TypeAlias = Callable[[str | None, int | None, Mapping[str, Any]], OpenEpisode]
Number: TypeAlias = Callable[[int], EpisodeKey]
"""Takes so many new episode keys, one counter after the other, and returns the first."""


class BlockAppender:
    """Appends blocks of columns to a log."""

    def __init__(self, log: GrowingLog, fields: FieldWriters) -> None:
        self.log, self.fields = log, fields
        self.observed = tuple(leaf.path for leaf in log.layout.schema.observations) if fields.tailed else ()
        """Fields of the observations that wait in tail slots; empty when they are written as rows."""

    def write(self, rows: Rows) -> None:
        """Writes and publishes checked rows, the log's lock held."""
        write_block(self.log, self.fields, rows)

    def _make_room(self, rows: Rows, facts: list[bytes]) -> None:
        """Finds room for a block and its facts before either is written, so that neither comes without the other."""
        room = rows.room
        self.log.tails.ensure(room.lanes)
        self.log.reserve(room.rows, room.planes, len(facts), room.heap_bytes + sum(map(len, facts)))

    def extend(
        self, columns: Mapping[str, Any], named: dict[int | str, OpenEpisode], open_new: OpenNew, number: Number
    ) -> int:
        """`Writer.extend`. `named` holds the episodes that are open across calls, by the caller's keys."""
        schema = self.log.layout.schema
        if "episode" not in columns or "step" not in columns:
            raise FieldError("a block needs the columns 'episode' and 'step'", value=sorted(columns))
        keys = np.asarray(columns["episode"])
        if keys.ndim != 1 or keys.dtype.kind not in "iuUO":
            raise FieldError("column 'episode' holds one int or text per row", value=columns["episode"])
        n = len(keys)
        for key in keys.tolist() if keys.dtype.kind == "O" else ():
            if not isinstance(key, int | str) or isinstance(key, bool):
                raise FieldError("column 'episode' holds one int or text per row", value=key)
        step = flat(columns["step"], n, "step", "iu").astype(np.int64, copy=False)
        nothing = np.zeros(n, np.bool_)
        terminated = flat(columns.get("terminated", nothing), n, "terminated", "b")
        truncated = flat(columns.get("truncated", nothing), n, "truncated", "b")
        priority = take_priorities(columns.get("priority"), n)
        values = {k: v for k, v in columns.items() if k not in _CONTROL}
        facts = {k: check_facts(schema, v, self.fields.mask) for k, v in columns.get("facts", {}).items()}
        if not n:
            return 0
        which, index = number_keys(keys)
        distinct = list(index)
        later, first = neighbours(which)
        with self.log.lock:
            self.log.check()
            states: list[OpenEpisode | None] = [named.get(k) for k in distinct]
            _check_order(distinct, states, which, later, first, step, terminated | truncated)
            for k in facts:
                if k not in named and k not in index:
                    raise EpisodeError("facts were given for an episode that has no rows", value=k)
            histories = [{} if s is None else s.history for s in states]
            taken, stacks = take_columns(self.fields, values, n, columns.get("valid"), which, histories)
            following = take_observation(self.fields, columns.get("next_observation"), n, stacks)[0]
            rows = Rows(
                states, which, later, first, step, taken, following, terminated, truncated, priority, self.observed
            )
            unopened = [k for k, s in zip(distinct, states, strict=True) if s is None]
            texts = [check_id(k, self.fields.mask) for k in unopened if isinstance(k, str)]
            named_facts = [*({"id": text} for text in texts), *facts.values()]
            self._make_room(rows, [encode_fact(values) for values in named_facts])
            if unopened:
                rows.keys = self._open(rows, distinct, facts, named, open_new, number)
            else:
                rows.keys = episode_keys([s for s in states if s is not None])
            for k, fact in facts.items():
                self.log.append_fact(named[k].key, None, fact)
                named[k].judged = named[k].judged or fact.get("status") is not None
            self.write(rows)
            for k, state in zip(distinct, states, strict=True):
                if state is not None and state.ended:
                    del named[k]
        return n

    def _open(
        self,
        rows: Rows,
        distinct: Sequence[int | str],
        facts: Mapping[Any, Any],
        named: dict[int | str, OpenEpisode],
        open_new: OpenNew,
        number: Number,
    ) -> NDArray[np.int64]:
        """Opens the block's new episodes, in their order, and returns every episode's key.

        An episode that a whole number names, without facts, and that begins and ends in this block, leaves nothing to
        remember: it gets a key and no state. Blocks of short episodes cost a loop over episodes otherwise.
        """
        over = np.zeros(len(distinct), np.bool_)
        over[rows.which[rows.last]] = rows.ended[rows.last]
        brief = [
            s is None and done and type(k) is int and k not in facts
            for k, s, done in zip(distinct, rows.states, over.tolist(), strict=True)
        ]
        out = np.empty((len(distinct), 2), np.int64)
        at = 0
        for alike, run in itertools.groupby(brief):
            count = sum(1 for _ in run)
            if alike:
                first = number(count)
                out[at : at + count, 0] = first.writer
                out[at : at + count, 1] = np.arange(first.counter, first.counter + count)
            else:
                for i in range(at, at + count):
                    state, k = rows.states[i], distinct[i]
                    if state is None:
                        state = rows.states[i] = named[k] = open_new(k if isinstance(k, str) else None, None, {})
                    out[i] = state.key
            at += count
        return out


def take_priorities(value: Any, n: int) -> NDArray[np.float32]:
    """A column of priorities, NaN for none. Raises FieldError for one that is negative or infinite."""
    if value is None:
        return np.full(n, np.nan, np.float32)
    priority = flat(value, n, "priority", "fiu").astype(np.float32)
    bad = np.isinf(priority) | (priority < 0)
    if bad.any():
        raise FieldError("a priority is a finite number of at least 0, NaN for none", value=float(priority[bad][0]))
    return priority


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
    states: Sequence[OpenEpisode | None],
    which: NDArray[np.int64],
    later: NDArray[np.int64],
    first: NDArray[np.int64],
    step: NDArray[np.int64],
    ended: NDArray[np.bool_],
) -> None:
    """Raises EpisodeError unless every episode goes on where it stood, one step at a time, and ends with its end."""
    expected = np.array([0 if s is None else s.step for s in states], np.int64)
    off = np.flatnonzero(step[first] != expected)
    if len(off):
        k = int(off[0])
        raise EpisodeError(f"episode {keys[k]!r} goes on at step {int(expected[k])}", value=int(step[first[k]]))
    inside = np.flatnonzero(later >= 0)
    bad = inside[step[later[inside]] != step[inside] + 1]
    if len(bad):
        i = int(bad[0])
        raise EpisodeError(f"episode {keys[which[i]]!r}: step {int(step[i])} is followed by step {int(step[later[i]])}")
    after = inside[ended[inside]]
    if len(after):
        raise EpisodeError(f"episode {keys[which[after[0]]]!r} has rows after its end at step {int(step[after[0]])}")
