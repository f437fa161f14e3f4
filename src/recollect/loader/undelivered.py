"""Draws that were made and not delivered, in plain values: part of a loader's state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from recollect.samplers import Draw, Span


def draw_state(draw: Draw, view: int) -> dict[str, Any]:
    """A draw of one batch in plain values; `view` is the place of its view in the state."""
    return {
        "step": draw.step,
        "view": view,
        "keys": draw.keys[0].tolist(),
        "span": None if draw.span is None else list(draw.span),
        "probability": np.broadcast_to(draw.probability, draw.keys.shape)[0].tolist(),
        "weight": np.broadcast_to(draw.weight, draw.keys.shape)[0].tolist(),
    }


def draw_from(state: Mapping[str, Any]) -> Draw:
    """The draw again."""
    keys = np.array([state["keys"]], np.int64)
    span = None if state["span"] is None else Span(*state["span"])
    return Draw(state["step"], keys, np.array([state["probability"]]), np.array([state["weight"]]), span=span)
