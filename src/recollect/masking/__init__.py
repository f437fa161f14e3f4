"""The one gate that text passes before anything is written.

Text fields, strings inside JSON, textual facts and annotations all go through `Masker`. A masker is any callable
from text to text; what it should hide is the caller's to say, and `keep` hides nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

Masker: TypeAlias = Callable[[str], str]


def keep(text: str) -> str:
    """The masker that hides nothing."""
    return text


def mask_json(value: Any, mask: Masker) -> Any:
    """`value` with every string in it masked, keys included; other values are returned as they are."""
    if mask is keep:
        return value
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, dict):
        return {mask(k) if isinstance(k, str) else k: mask_json(v, mask) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [mask_json(v, mask) for v in value]
    return value


__all__ = ["Masker", "keep", "mask_json"]
