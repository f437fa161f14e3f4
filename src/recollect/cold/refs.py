"""Listing tags and branches while others take some away: lance lists their files first and then reads each."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

ATTEMPTS = 20
T = TypeVar("T")


def listed(read: Callable[[], T]) -> T:
    """What `read` returns, which lists tags or branches and may be called again where one of them went meanwhile."""
    for attempt in range(ATTEMPTS):
        try:
            return read()
        except (OSError, ValueError) as e:
            if "_refs/" not in str(e) or "not found" not in str(e).lower():
                raise
            time.sleep(0.002 * attempt)
    return read()
