"""Recorders: a gymnasium environment, or a vector of them, whose steps go into a workspace as they happen.

with ws.writer(agent="actor-0") as writer:
    env = rc.gym.Record(gymnasium.make("CartPole-v1"), writer)
    envs = rc.gym.RecordVector(gymnasium.make_vec("CartPole-v1", num_envs=8), writer)
"""

from __future__ import annotations

from recollect.errors import MissingDependency

try:
    import gymnasium as _gymnasium  # noqa: F401
except ImportError as e:
    raise MissingDependency(
        "recollect.gym needs gymnasium", remedy="Install it with pip install 'recollect[gym]'"
    ) from e

from recollect.gym.record import Record
from recollect.gym.record_vector import RecordVector

__all__ = ["Record", "RecordVector"]
