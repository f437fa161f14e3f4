"""What a loader is asked for, checked once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from recollect.errors import ArgumentError
from recollect.loader.rate import RateLimit
from recollect.transforms import Transform, checked
from recollect.view import F64, Ids

Exchange: TypeAlias = Callable[[Ids, F64], Sequence[tuple[Ids, F64]]]
"""Gives every rank the ids and signals of all ranks, in the order of the ranks."""


@dataclass(frozen=True)
class Options:
    """The arguments of `Loader` that are plain values, under their names there.

    Raises:
        ArgumentError: one out of range, or two that exclude each other.
    """

    batch_size: int
    seed: int
    transforms: Sequence[Transform]
    fields: Sequence[str] | None
    next_fields: Sequence[str] | None
    lag: int
    steps: int | None
    epochs: int | None
    min_rows: int | None
    timeout_s: float
    rate: RateLimit | None
    rank: int
    world_size: int
    exchange: Exchange | None
    ahead: int | None
    threads: int

    def __post_init__(self) -> None:
        whole = (("batch_size", 1), ("lag", 0), ("seed", 0), ("threads", 0), ("world_size", 1), ("rank", 0))
        for name, least in whole:
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise ArgumentError(f"{name} is a whole number of at least {least}", value=value)
        for name in ("steps", "epochs", "ahead", "min_rows"):
            limit = getattr(self, name)
            if limit is not None and (not isinstance(limit, int) or limit < 1):
                raise ArgumentError(f"{name} is a whole number of at least 1", value=limit)
        for name in ("fields", "next_fields"):
            if isinstance(names := getattr(self, name), str):
                raise ArgumentError(f"{name} is a list of names", value=names, remedy=f"Pass {name}=[{names!r}]")
        if self.steps is not None and self.epochs is not None:
            raise ArgumentError("steps and epochs exclude each other")
        if not isinstance(self.timeout_s, int | float) or not self.timeout_s >= 0:
            raise ArgumentError("timeout_s is a number of seconds of at least 0", value=self.timeout_s)
        if self.rank >= self.world_size:
            raise ArgumentError(
                f"rank is below world_size={self.world_size}", value=self.rank, remedy="Ranks count from 0"
            )
        if self.rate is not None and not isinstance(self.rate, RateLimit):
            raise ArgumentError("rate is a RateLimit", value=self.rate, remedy="Write rate=rc.RateLimit(8.0)")
        object.__setattr__(self, "transforms", checked(self.transforms))
