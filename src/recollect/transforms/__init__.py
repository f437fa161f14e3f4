"""Transforms: from window to window at draw time; the log is never changed. One a file."""

from recollect.transforms.base import Columns, Reads, Transform
from recollect.transforms.nstep import NStep

__all__ = ["Columns", "NStep", "Reads", "Transform"]
