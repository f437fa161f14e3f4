"""Which code wrote what a snapshot promotes."""

from __future__ import annotations

import os

from recollect.errors import ArgumentError

VARIABLE = "RECOLLECT_COMMIT"
MOST = 200


def commit_of(given: str | None) -> str | None:
    """The commit for a version's lineage: what was given, else the variable `RECOLLECT_COMMIT`, None for neither.

    Raises:
        ArgumentError: it is empty, longer than 200 characters, or has characters that cannot be printed.
    """
    text = os.environ.get(VARIABLE) or None if given is None else given
    if text is not None and not (isinstance(text, str) and 0 < len(text) <= MOST and text.isprintable()):
        raise ArgumentError(
            f"a commit is a line of 1 to {MOST} characters", value=text, remedy="Pass git rev-parse HEAD"
        )
    return text
