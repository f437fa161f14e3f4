"""The main job, end to end, on CartPole: `recollect demo`."""

from recollect.demo.main import run

__all__ = ["run"]
