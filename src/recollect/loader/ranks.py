"""Ranks: each takes a slice of one global order."""

from __future__ import annotations

import numpy as np

from recollect.samplers import Draw


def sliced(draw: Draw, rank: int, world_size: int) -> Draw:
    """The keys `rank::world_size` of every batch, with their chances and weights.

    All ranks make the same draws, so that a rank's rows depend on nothing that another rank does, and a run goes on
    with any number of them. A short batch may have no row for a rank.
    """
    if world_size == 1:
        return draw
    mine = slice(rank, None, world_size)
    keys = draw.keys[:, mine]
    probability, weight = (np.broadcast_to(a, draw.keys.shape)[:, mine] for a in (draw.probability, draw.weight))
    sizes = draw.sizes and tuple(len(range(rank, size, world_size)) for size in draw.sizes)
    return draw._replace(keys=keys, probability=probability, weight=weight, sizes=sizes)
