"""`Lanes`: the open episodes of a vector environment."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from recollect.errors import ArgumentError, EpisodeError
from recollect.hot.blocks import BlockAppender, OpenNew, Rows, check_priorities, flat
from recollect.hot.columns import take_columns, take_observation
from recollect.hot.fields import OpenEpisode
from recollect.view import EpisodeKey


class Lanes:
    """One open episode per environment of a vector environment. A lane whose episode ends opens the next by itself."""

    def __init__(
        self, appender: BlockAppender, num_envs: int, open_new: OpenNew, close: Callable[[OpenEpisode], None]
    ) -> None:
        self._appender, self._open, self._close = appender, open_new, close
        self.num_envs = num_envs
        self._states: list[OpenEpisode | None] = [None] * num_envs

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
        self._states[lane] = self._open(id, attempt, facts)

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
        ends = [
            flat(nothing if v is None else v, n, name, "b")
            for name, v in (("terminated", terminated), ("truncated", truncated))
        ]
        act = ~nothing if active is None else flat(active, n, "active", "b")
        prio = flat(np.full(n, np.nan) if priority is None else priority, n, "priority", "fiu").astype(np.float32)
        check_priorities(prio)
        with log.lock:
            log.check()
            members = np.flatnonzero(act)
            histories = [s.history if (s := self._states[lane]) is not None else {} for lane in members.tolist()]
            taken, stacks = take_columns(of, fields, n, None, np.arange(len(members)), histories, members)
            following, has_next = take_observation(of, next_observation, n, stacks, members)
            if not len(members):
                return
            for lane in members.tolist():
                if self._states[lane] is None:
                    self._states[lane] = self._open(None, None, {})
            states = [s for lane in members.tolist() if (s := self._states[lane]) is not None]
            self._appender.write(
                Rows(
                    states,
                    np.arange(len(members)),
                    np.array([s.step for s in states], np.int64),
                    taken,
                    following,
                    has_next,
                    ends[0][members],
                    ends[1][members],
                    prio[members],
                    of.tailed,
                ),
            )
            for lane in members.tolist():
                state = self._states[lane]
                if state is not None and state.ended:
                    self._states[lane] = None

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
