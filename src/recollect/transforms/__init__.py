"""Transforms: from window to window at draw time; the log is never changed. One a file."""

from recollect.transforms.base import WHOLE, Chance, Columns, Data, Lookup, Reach, Reads, Transform
from recollect.transforms.hindsight import HindsightRelabel
from recollect.transforms.normalize import Normalize
from recollect.transforms.nstep import NStep
from recollect.transforms.order import checked
from recollect.transforms.previous import Previous
from recollect.transforms.relabel import Relabel
from recollect.transforms.returns import ReturnsToGo
from recollect.transforms.stack import FrameStack, stacks_of

__all__ = [
    "Chance",
    "Columns",
    "Data",
    "FrameStack",
    "HindsightRelabel",
    "Lookup",
    "NStep",
    "Normalize",
    "Previous",
    "Reach",
    "Reads",
    "Relabel",
    "ReturnsToGo",
    "Transform",
    "WHOLE",
    "checked",
    "stacks_of",
]
