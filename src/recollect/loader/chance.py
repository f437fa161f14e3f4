"""The random numbers that transforms take: functions of the seed, the batch's number and the row's place in it."""

from __future__ import annotations

from functools import cache

import numpy as np

from recollect.samplers import Draw
from recollect.samplers.streams import Stream
from recollect.transforms import Chance
from recollect.view import F64

_STREAM = 7_001
"""Apart from the streams of samplers under the same seed."""


@cache
def _stream(seed: int, place: int, purpose: int) -> Stream:
    return Stream(seed, _STREAM, place, purpose)


def chance_of(seed: int, place: int, draw: Draw, length: int, rank: int = 0, world_size: int = 1) -> Chance:
    """What the transform at a place of the list asks for random numbers of the rows of a draw.

    Args:
        draw: of all ranks, so that a row has the same numbers whichever rank gathers it.
        length: rows that belong to one key, and have its number.
    """

    def numbers(purpose: int) -> F64:
        batches, n = draw.keys.shape
        mine = slice(rank, None, world_size)
        out = _stream(seed, place, purpose).uniforms(draw.step, batches, n)[:, mine]
        counted = out.reshape(-1) if draw.sizes is None else out[draw.keys[:, mine] >= 0]
        return counted if length == 1 else np.repeat(counted, length)

    return numbers
