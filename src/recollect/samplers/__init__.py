"""Samplers return rows, probabilities and weights, never data. One a file."""

from recollect.samplers.base import Cursor, Draw, Feedback, Receipt, Sampler, Span, State, feedback_of
from recollect.samplers.mixture import Mixture
from recollect.samplers.own import Choose, Chosen, as_sampler, bound
from recollect.samplers.prioritized import Prioritized
from recollect.samplers.recent import Recent
from recollect.samplers.reservoir import Reservoir
from recollect.samplers.schedules import Linear, Schedule
from recollect.samplers.sequence import Sequence, steps_of
from recollect.samplers.stratified import Stratified
from recollect.samplers.uniform import Uniform

__all__ = [
    "Choose",
    "Chosen",
    "Cursor",
    "Draw",
    "Feedback",
    "Linear",
    "Mixture",
    "Prioritized",
    "Receipt",
    "Recent",
    "Reservoir",
    "Sampler",
    "Schedule",
    "Sequence",
    "Span",
    "State",
    "Stratified",
    "Uniform",
    "as_sampler",
    "bound",
    "feedback_of",
    "steps_of",
]
