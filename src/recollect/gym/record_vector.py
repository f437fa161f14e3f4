"""`RecordVector`: the environments of a gymnasium vector, one lane each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv, VectorWrapper
from numpy.typing import NDArray

from recollect.errors import ArgumentError, EpisodeError
from recollect.gym.batches import (
    FINAL_INFO,
    FINAL_OBSERVATION,
    copied,
    final_observations,
    lane_info,
    replaced,
)
from recollect.gym.fit import INFO, is_info, require_fit
from recollect.hot.write.writer import Writer
from recollect.view import EpisodeKey


class RecordVector(VectorWrapper[Any, Any, Any, Any, Any]):
    """Appends every step of a vector environment to a workspace: one vectorised write per call, one lane each.

    What a call of `step` means depends on `envs.metadata["autoreset_mode"]`. With NEXT_STEP, the call after a lane's
    end resets it and ignores its action: that lane stores nothing. With SAME_STEP, the observation returned at a
    lane's end is already the next episode's, and the true one comes from `infos["final_obs"]`. With DISABLED, a lane
    stores nothing from its end until `reset(options={"reset_mask": mask})`. In every mode each stored step has its
    own next observation, never that of a reset.

    An episode that is left without its end, by a reset, by `close`, or because a step raised, has the status
    "interrupted". A step's info is stored where the schema has a Json field `info`.

    Args:
        envs: the vector environment.
        writer: from `Workspace.writer()`; it stays open when the environments close.
        facts: given the info of one lane's reset, the facts of the episode that it begins (`id` and `attempt` are
            accepted too).

    Attributes:
        episode_keys: `[num_envs]`: each lane's episode, also after its end; None before its first step. A reset lane
            gets its next key with its next step.

    Raises:
        ArgumentError: the metadata has no autoreset mode, or an unknown one.
        SchemaMismatch: the single spaces do not fit the writer's schema; each field is named.
        SchemaError: a space that has no stored form.
    """

    def __init__(
        self,
        envs: VectorEnv[Any, Any, Any],
        writer: Writer,
        *,
        facts: Callable[[Mapping[str, Any]], Mapping[str, Any]] | None = None,
    ) -> None:
        super().__init__(envs)
        schema = writer.layout.schema
        self._mode = _autoreset_mode(envs)
        require_fit(schema, envs)
        self._lanes, self._facts = writer.lanes(envs.num_envs), facts
        self._takes_info = is_info(schema)
        self._nests_next = len({leaf.parts[0] for leaf in schema.observations}) > 1
        self.episode_keys: list[EpisodeKey | None] = [None] * envs.num_envs
        self._observation: Any = None
        self._over = np.zeros(envs.num_envs, np.bool_)
        self._fresh: dict[int, Mapping[str, Any]] = {}

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        """Resets all lanes, or those in `options["reset_mask"]` `[num_envs]`, and interrupts their open episodes.

        Raises:
            EpisodeError: a masked reset where a full one is due: at first, and after a call that raised.
        """
        mask = (options or {}).get("reset_mask")
        if mask is not None and self._observation is None and not np.all(mask):
            raise EpisodeError("a part of the lanes cannot be reset before all were", remedy="Call reset() first")
        try:
            observations, infos = self.env.reset(seed=seed, options=options)  # type: ignore[arg-type]
            lanes = np.arange(self.num_envs) if mask is None else np.flatnonzero(mask)
            for lane in lanes.tolist():
                self._lanes.interrupt(lane)
            self._over[lanes] = False
            self._begin(lanes, infos)
        except BaseException:
            self._lose()
            raise
        self._observation = copied(observations)
        return observations, infos

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        """Takes one action per lane and appends the steps of all lanes that took one.

        Raises:
            EpisodeError: before the first reset, or after a call that raised. Nothing was stepped.
            ArgumentError: a lane ended in mode SAME_STEP without its final observation.
            FieldError, DiskFull, WriterError: the steps could not be stored. Every open episode is interrupted there,
                since its next step would not follow on the stored ones; reset to go on.
        """
        if self._observation is None:
            raise EpisodeError("no episode is open, so steps cannot be recorded", remedy="Call reset() first")
        taken = copied(actions)
        try:
            for lane in list(self._fresh):
                self._lanes.begin(lane, **self._fresh.pop(lane))
                self.episode_keys[lane] = self._lanes.episode_key(lane)
            result = self.env.step(actions)
            self._append(taken, *result)
        except BaseException:
            self._lose()
            raise
        return result

    def _append(
        self, actions: Any, observations: Any, rewards: Any, terminated: Any, truncated: Any, infos: dict[str, Any]
    ) -> None:
        terminated, truncated = np.asarray(terminated, np.bool_), np.asarray(truncated, np.bool_)
        active = ~self._over
        ended = active & (terminated | truncated)
        following = observations
        if self._mode is AutoresetMode.SAME_STEP and ended.any():
            lanes = np.flatnonzero(ended).tolist()
            finals = final_observations(infos, lanes)
            following = replaced(self.single_observation_space, observations, lanes, finals)
        if active.any():
            self._lanes.append(
                observation=self._observation,
                action=actions,
                reward=rewards,
                terminated=terminated,
                truncated=truncated,
                next_observation={"observation": following} if self._nests_next else following,
                active=active,
                **({INFO: self._infos(infos, active, ended)} if self._takes_info else {}),
            )
        self._observation = copied(observations)
        if self._mode is AutoresetMode.SAME_STEP:
            self._begin(np.flatnonzero(ended), infos)
        elif self._mode is AutoresetMode.NEXT_STEP:
            self._begin(np.flatnonzero(self._over), infos)
            self._over = ended
        else:
            self._over = self._over | ended

    def _infos(self, infos: Any, active: NDArray[np.bool_], ended: NDArray[np.bool_]) -> list[dict[str, Any]]:
        """Each lane's info of this step; a lane that was reset in it has it under `final_info`."""
        out: list[dict[str, Any]] = []
        for lane in range(self.num_envs):
            reset = self._mode is AutoresetMode.SAME_STEP and bool(ended[lane])
            source = infos.get(FINAL_INFO, {}) if reset else infos
            out.append(lane_info(source, lane, self.num_envs) if active[lane] else {})
        return out

    def _begin(self, lanes: Iterable[Any], infos: Any) -> None:
        """Notes lanes that were reset. Their episodes open with their next step, so that none stays without rows."""
        for lane in map(int, lanes):
            facts: Mapping[str, Any] = {}
            if self._facts is not None:
                facts = self._facts(lane_info(infos, lane, self.num_envs, leave_out=(FINAL_OBSERVATION, FINAL_INFO)))
            self._fresh[lane] = facts

    def close(self, **kwargs: Any) -> None:
        """Interrupts the open episodes and closes the environments; the writer stays open."""
        self._lose()
        super().close(**kwargs)

    def _lose(self) -> None:
        """Interrupts every open episode: where the environments now stand is not known."""
        self._observation = None
        self._fresh.clear()
        for lane in range(self.num_envs):
            self._lanes.interrupt(lane)


def _autoreset_mode(envs: VectorEnv[Any, Any, Any]) -> AutoresetMode:
    """The declared autoreset mode; a guess would store the observations of resets as transitions."""
    value = envs.metadata.get("autoreset_mode")
    try:
        return AutoresetMode(value)
    except ValueError:
        named = ", ".join(f"AutoresetMode.{mode.name}" for mode in AutoresetMode)
        raise ArgumentError(
            f"{type(envs).__name__}.metadata['autoreset_mode'] says nothing that can be recorded",
            value="nothing" if value is None else value,
            remedy=f"Set it to what the environment does: {named}",
        ) from None


__all__ = ["RecordVector"]
