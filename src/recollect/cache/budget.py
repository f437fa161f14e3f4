"""Where decoded blocks lie, and how much room they may take."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

from recollect.errors import ArgumentError

VARIABLE = "RECOLLECT_CACHE_BYTES"
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*(?:([kmgtp])(i?)b?|b)?", re.IGNORECASE)


def cache_folder() -> Path:
    """`RECOLLECT_CACHE`, or `recollect` under the user's cache folder."""
    given = os.environ.get("RECOLLECT_CACHE")
    if given:
        return Path(given)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "recollect"


def parse_bytes(text: str) -> int:
    """`"1000000"`, `"10GB"` (powers of 1000) or `"512MiB"` (powers of 1024) as bytes. Raises ArgumentError."""
    match = _SIZE.fullmatch(text.strip())
    out = 0
    if match:
        number, unit, binary = match.groups()
        power = " kmgtp".index(unit.lower()) if unit else 0
        out = int(float(number) * (1024 if binary else 1000) ** power) if power else int(float(number))
    if out < 1:
        raise ArgumentError(
            f"{VARIABLE} is a number of bytes, at least 1", value=text, remedy="Write 10GB, 512MiB or 1000000000"
        )
    return out


def budget_bytes(folder: Path, used: int) -> int:
    """The room that blocks may take: `RECOLLECT_CACHE_BYTES`, or half of what the disk has free for them.

    Args:
        folder: where the blocks lie; it need not exist.
        used: bytes that they take already: these count as free.

    Raises:
        ArgumentError: the variable holds no size.
    """
    given = os.environ.get(VARIABLE)
    if given:
        return parse_bytes(given)
    at = folder.absolute()
    while not at.exists() and at != at.parent:
        at = at.parent
    return max(1, (shutil.disk_usage(at).free + used) // 2)
