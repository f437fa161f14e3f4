"""A line of the table, and whether its goal was met."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Line:
    """One line of the table."""

    work: str
    measured: str
    goal: str = "-"
    met: str = "-"


def verdict(met: bool) -> str:
    return "met" if met else "**missed**"
