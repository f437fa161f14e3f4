"""Timing: medians of repeated blocks, taken in turns so that a noisy machine disturbs every contestant alike."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def per_call_us(call: Callable[[], object], calls: int) -> float:
    """Microseconds per call over one block."""
    start = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - start) / calls * 1e6


def in_turns(contestants: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Median of `rounds` measurements of each contestant, interleaved."""
    seen: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, measure in contestants.items():
            seen[name].append(measure())
    return {name: statistics.median(values) for name, values in seen.items()}
