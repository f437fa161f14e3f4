"""Times as text: ISO 8601, UTC unless the text says otherwise, down to nanoseconds."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

from recollect.errors import ArgumentError

_FRACTION = re.compile(r"(?<=:\d\d)[.,](\d+)")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def nanoseconds(text: str) -> int:
    """Nanoseconds since 1970. Digits of a second beyond the ninth are refused.

    Raises:
        ArgumentError: not a time, or not one that 64 bits hold.
    """
    fraction = _FRACTION.search(text)
    digits = fraction.group(1) if fraction else ""
    try:
        moment = datetime.fromisoformat(_FRACTION.sub("", text))
    except ValueError:
        moment = None
    if moment is None or len(digits) > 9:
        raise ArgumentError(
            "where: not a time", value=text, remedy="Write '2026-01-31T12:00:00Z', or nanoseconds since 1970"
        )
    moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    ns = (moment - _EPOCH) // timedelta(seconds=1) * 10**9 + int(digits.ljust(9, "0"))
    if not -(2**63) <= ns < 2**63:
        raise ArgumentError("where: a time before 1678 or after 2261 is not stored", value=text)
    return ns


def spelt(ns: int) -> str:
    """The text form, in quotes, with as many digits as needed."""
    second, rest = divmod(ns, 10**9)
    text = (_EPOCH + timedelta(seconds=second)).strftime("%Y-%m-%dT%H:%M:%S")
    digits = f".{rest:09d}".rstrip("0") if rest else ""
    return f"'{text}{digits}Z'"
