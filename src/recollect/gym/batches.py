"""The layouts of gymnasium's vector environments: batched observations, final observations, infos with masks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any

import numpy as np
from gymnasium import Space, spaces

from recollect.errors import ArgumentError

FINAL_OBSERVATION, FINAL_INFO = "final_obs", "final_info"


def copied(value: Any) -> Any:
    """`value` with arrays of its own, so that an environment may go on writing into those it handed out."""
    if type(value) is np.ndarray and value.dtype != object:
        return value.copy()
    return deepcopy(value)


def replaced(space: Space[Any], batch: Any, lanes: Sequence[int], values: Sequence[Any]) -> Any:
    """A copy of a batched observation in which some lanes hold other values.

    Args:
        space: of one lane: it tells a batch of a Tuple space from a tuple of one object per lane.
        batch: `[num_envs, ...]`: arrays, nested as `space` is; a tuple of objects where nothing batches.
        lanes: whose values to replace.
        values: one observation per lane of `lanes`.
    """
    if isinstance(space, spaces.Dict):
        return {
            key: replaced(inner, batch[key], lanes, [value[key] for value in values])
            for key, inner in space.spaces.items()
        }
    if isinstance(space, spaces.Tuple):
        return tuple(
            replaced(inner, batch[i], lanes, [value[i] for value in values]) for i, inner in enumerate(space.spaces)
        )
    out: Any = list(batch) if isinstance(batch, tuple | list) else np.array(batch)
    for lane, value in zip(lanes, values, strict=True):
        out[lane] = value
    return out


def final_observations(infos: Any, lanes: Sequence[int]) -> list[Any]:
    """What each lane saw last before it was reset within its own step.

    Raises:
        ArgumentError: the environment kept one back, so that the true next observation is lost.
    """
    found = infos.get(FINAL_OBSERVATION) if isinstance(infos, Mapping) else None
    mask = infos.get(f"_{FINAL_OBSERVATION}") if isinstance(infos, Mapping) else None
    for lane in lanes:
        if found is None or found[lane] is None or not (mask is None or mask[lane]):
            raise ArgumentError(
                f"lane {lane} ended and was reset in the same step, without infos[{FINAL_OBSERVATION!r}]",
                value=sorted(infos) if isinstance(infos, Mapping) else type(infos).__name__,
                remedy="Put RecordVector inside wrappers that change infos, or use autoreset_mode=NEXT_STEP",
            )
    return [found[lane] for lane in lanes]  # type: ignore[index]


def lane_info(infos: Any, lane: int, num_envs: int, *, leave_out: tuple[str, ...] = ()) -> dict[str, Any]:
    """One lane's info out of a vector environment's, where `_key` masks the lanes that have `key`."""
    out: dict[str, Any] = {}
    for key, value in infos.items():
        if key in leave_out or (key[:1] == "_" and key[1:] in infos):
            continue
        mask = infos.get(f"_{key}")
        if mask is not None and not mask[lane]:
            continue
        if isinstance(value, Mapping):
            out[key] = lane_info(value, lane, num_envs)
        else:
            each = isinstance(value, np.ndarray | tuple | list) and len(value) == num_envs
            out[key] = value[lane] if each else value
    return out


__all__ = ["FINAL_INFO", "FINAL_OBSERVATION", "copied", "final_observations", "lane_info", "replaced"]
