"""Samplers return rows, probabilities and weights, never data. One a file."""

from recollect.samplers.base import Cursor, Draw, Receipt, Sampler, State
from recollect.samplers.uniform import Uniform

__all__ = ["Cursor", "Draw", "Receipt", "Sampler", "State", "Uniform"]
