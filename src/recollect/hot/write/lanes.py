"""`Lanes`: the open episodes of a vector environment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from recollect.errors import ArgumentError, EpisodeError
from recollect.hot.format.fields import OpenEpisode
from recollect.hot.write.columns import take_columns, take_observation
from recollect.hot.write.extend import BlockAppender, OpenNew, flat, take_priorities
from recollect.hot.write.rows import Rows
from recollect.view import EpisodeKey


class Lanes:
    """One open episode per environment of a vector environment. A lane whose episode ends opens the next by itself."""

    def __init__(
        self, appender: BlockAppender, num_envs: int, open_new: OpenNew, close: Callable[[OpenEpisode], None]
    ) -> None:
        self._appender, self._open, self._close = appender, open_new, close
        self.num_envs = num_envs
        self._states: list[OpenEpisode | None] = [None] * num_envs
        self._all = np.arange(num_envs)
        self._alone = np.full(num_envs, -1)
        self._keys = np.empty((num_envs, 2), np.int64)

    def _state(self, lane: int) -> OpenEpisode | None:
        """A lane's open episode. Raises ArgumentError."""
        if not 0 <= lane < self.num_envs:
            raise ArgumentError(f"lanes are numbered 0 to {self.num_envs - 1}", value=lane)
        return self._states[lane]

    def begin(self, lane: int, id: str | None = None, attempt: int | None = None, **facts: Any) -> None:
        """Opens a lane's next episode with an id or facts; without it the next append does.

        Raises:
            EpisodeError: the lane's episode is still open.
        """
        if self._state(lane) is not None:
            raise EpisodeError(f"lane {lane} has an open episode", remedy="begin() comes after its end")
        self._begin(lane, self._open(id, attempt, facts))

    def _begin(self, lane: int, state: OpenEpisode) -> OpenEpisode:
        self._states[lane] = state
        self._keys[lane] = state.key
        return state

    def append(
        self,
        *,
        terminated: Any = None,
        truncated: Any = None,
        next_observation: Any = None,
        active: Any = None,
        priority: Any = None,
        **fields: Any,
    ) -> None:
        """Appends one step per active lane, all visible together.

        Args:
            terminated, truncated: `[num_envs]` bool.
            next_observation: `[num_envs, ...]`: what was seen after the action, before any reset.
            active: `[num_envs]` bool; False skips a lane.
            priority: `[num_envs]`, NaN for none.
            fields: `[num_envs, ...]` per field of the schema, nested ones as mappings or tuples.

        Raises: as `Writer.extend`.
        """
        n, log, of = self.num_envs, self._appender.log, self._appender.fields
        nothing = np.zeros(n, np.bool_)
        term = nothing if terminated is None else flat(terminated, n, "terminated", "b")
        trunc = nothing if truncated is None else flat(truncated, n, "truncated", "b")
        prio = take_priorities(priority, n)
        act = None if active is None else flat(active, n, "active", "b")
        with log.lock:
            log.check()
            members = None if act is None or act.all() else np.flatnonzero(act)
            lanes = range(n) if members is None else members.tolist()
            if members is not None:
                term, trunc, prio = term[members], trunc[members], prio[members]
            count = len(lanes)
            which = self._all[:count]
            now = [self._states[lane] for lane in lanes]
            histories = [{} if s is None else s.history for s in now]
            taken, stacks = take_columns(of, fields, n, None, which, histories, members)
            following = take_observation(of, next_observation, n, stacks, members)[0]
            if not count:
                return
            for i, lane in enumerate(lanes):
                if now[i] is None:
                    now[i] = self._begin(lane, self._open(None, None, {}))
            step = np.array([s.step for s in now if s is not None], np.int64)
            rows = Rows(
                now,
                which,
                self._alone[:count],
                which,
                step,
                taken,
                following,
                term,
                trunc,
                prio,
                self._appender.observed,
            )
            rows.keys = self._keys if members is None else self._keys[members]
            self._appender.write(rows)
            for i in np.flatnonzero(rows.ended).tolist():
                self._states[lanes[i]] = None

    def interrupt(self, lane: int) -> None:
        """Closes a lane's episode without an end; the lane's next append opens another."""
        state = self._state(lane)
        if state is not None:
            self._close(state)
            self._states[lane] = None

    def episode_key(self, lane: int) -> EpisodeKey | None:
        """The key of a lane's open episode, None when it has none."""
        state = self._state(lane)
        return None if state is None else state.key
