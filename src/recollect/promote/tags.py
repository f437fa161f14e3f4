"""What a tag may be called."""

from __future__ import annotations

from recollect.cold.dataset import PIN_PREFIX
from recollect.errors import ArgumentError


def check_tag(tag: str | None) -> None:
    """Raises ArgumentError for a name that a tag cannot have."""
    if tag is None:
        return
    good = tag and all((c.isalnum() and c.isascii()) or c in "._-" for c in tag) and not tag.startswith((".", "-"))
    if not good or tag.isdecimal() or tag.endswith(".lock"):
        raise ArgumentError(
            "a tag is made of letters, digits, dots, dashes and underscores, and is no number", value=tag
        )
    if tag.startswith(PIN_PREFIX):
        raise ArgumentError(f"tags that begin with {PIN_PREFIX!r} are pins", value=tag, remedy="Choose another name")
