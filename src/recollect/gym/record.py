"""`Record`: one gymnasium environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, SupportsFloat

import gymnasium

from recollect.errors import EpisodeError
from recollect.gym.batches import copied
from recollect.gym.fit import INFO, is_info, require_fit
from recollect.hot.write.writer import Episode, Writer
from recollect.view import EpisodeKey


class Record(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Appends every step of an environment to a workspace, with the observation that followed it.

    `reset` begins an episode; the step that terminates or truncates ends it. An episode that is left otherwise, by a
    reset, by `close`, or because a step raised, has the status "interrupted". A step's info is stored where the
    schema has a Json field `info`; what `reset` says in its info is not.

    Place it outside of wrappers that end episodes (`TimeLimit`): an end that it does not see is an interruption.

    Args:
        env: the environment.
        writer: from `Workspace.writer()`; it stays open when the environment closes.
        facts: given the info of a reset, the facts of the episode that it begins (`id` and `attempt` are accepted
            too).

    Raises:
        SchemaMismatch: the spaces do not fit the writer's schema; each field is named.
        SchemaError: a space that has no stored form.
    """

    def __init__(
        self,
        env: gymnasium.Env[Any, Any],
        writer: Writer,
        *,
        facts: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__(env)
        schema = writer.layout.schema
        require_fit(schema, env)
        self._writer, self._facts = writer, facts
        self._takes_info = is_info(schema)
        roots = {leaf.parts[0] for leaf in schema.observations}
        self._nests_next = len(roots) > 1
        self._episode: Episode | None = None
        self._open = False
        self._observation: Any = None

    @property
    def episode_key(self) -> EpisodeKey | None:
        """The key of the episode that the last `reset` began, also after its end; None before the first."""
        return None if self._episode is None else self._episode.key

    @property
    def episode_id(self) -> str | None:
        """The text that names that episode in `Workspace.episode` and `annotate`; None before the first reset."""
        return None if self._episode is None else self._episode.key.default_id

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begins an episode; the one before it is interrupted if it has not ended.

        Raises:
            FieldError: a fact that the schema lacks or that does not fit.
            WriterError: the writer is closed, forked or poisoned.
        """
        self._interrupt()
        observation, info = self.env.reset(seed=seed, options=options)
        facts = self._facts(info) if self._facts is not None else {}
        self._episode = self._writer.episode(**facts)
        self._open = True
        self._observation = copied(observation)
        return observation, info

    def step(self, action: Any) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Takes an action and appends the step.

        Raises:
            EpisodeError: no episode is open. The environment was not stepped.
            FieldError, DiskFull, WriterError: the step could not be stored. The episode is interrupted there, since
                its next step would not follow on the stored ones; reset to go on.
        """
        if not self._open or self._episode is None:
            raise EpisodeError("no episode is open, so a step cannot be recorded", remedy="Call reset() first")
        taken = copied(action)
        try:
            observation, reward, terminated, truncated, info = self.env.step(action)
            extra: dict[str, Any] = {INFO: info} if self._takes_info else {}
            self._episode.append(
                observation=self._observation,
                action=taken,
                reward=reward,
                terminated=terminated,
                truncated=truncated,
                next_observation={"observation": observation} if self._nests_next else observation,
                **extra,
            )
        except BaseException:
            self._interrupt()
            raise
        self._observation = copied(observation)
        self._open = not (terminated or truncated)
        return observation, reward, terminated, truncated, info

    def close(self) -> None:
        """Interrupts the open episode and closes the environment; the writer stays open."""
        self._interrupt()
        super().close()

    def _interrupt(self) -> None:
        if self._open and self._episode is not None:
            self._open = False
            self._episode.__exit__(None, None, None)


__all__ = ["Record"]
