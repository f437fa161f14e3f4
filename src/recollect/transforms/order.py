"""Which transforms go together, and in which order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from recollect.errors import ArgumentError
from recollect.transforms.base import Transform
from recollect.transforms.hindsight import HindsightRelabel
from recollect.transforms.normalize import Normalize
from recollect.transforms.nstep import NStep
from recollect.transforms.previous import Previous
from recollect.transforms.relabel import Relabel
from recollect.transforms.returns import ReturnsToGo

_CHANGES = (HindsightRelabel, Relabel)
_READS_THEM = (NStep, ReturnsToGo, Previous)


def checked(transforms: Sequence[Transform]) -> tuple[Transform, ...]:
    """Raises ArgumentError unless they are transforms that go together in this order."""
    given: Any = transforms if isinstance(transforms, Sequence) else None
    wanted = ("plan", "apply", "reach", "needs", "to_dict")
    if given is None or any(isinstance(t, type) or not all(hasattr(t, n) for n in wanted) for t in given):
        raise ArgumentError("transforms is a list of transforms", value=transforms, remedy="Write [rc.NStep(1, 0.99)]")
    if sum(isinstance(t, NStep) for t in given) > 1:
        raise ArgumentError("returns are summed once", value=transforms, remedy="Use one NStep")
    for kind in (HindsightRelabel, ReturnsToGo):
        if sum(isinstance(t, kind) for t in given) > 1:
            raise ArgumentError(f"{kind.__name__} comes once", value=transforms)
    moves = [t for t in given if isinstance(t, NStep) or (isinstance(t, ReturnsToGo) and t.bootstrap)]
    if len(moves) > 1:
        raise ArgumentError(
            "NStep and ReturnsToGo(bootstrap=True) both move the next observation", remedy="Use bootstrap=False"
        )
    for k, later in enumerate(given):
        for earlier in given[:k]:
            if isinstance(later, _CHANGES) and isinstance(earlier, _READS_THEM):
                raise _turned(earlier, later, "reads what the other changes")
            if isinstance(later, HindsightRelabel) and isinstance(earlier, Normalize):
                raise _turned(earlier, later, "would normalise other goals than those that are put in their place")
    return tuple(given)


def _turned(earlier: Any, later: Any, why: str) -> ArgumentError:
    names = type(earlier).__name__, type(later).__name__
    return ArgumentError(f"{names[0]} {why}, so {names[1]} comes before it", remedy=f"List {names[1]} first")
