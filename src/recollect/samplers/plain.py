"""Arrays as text, bit for bit: what a state keeps of them."""

from __future__ import annotations

import base64
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray


def packed(array: NDArray[Any]) -> str:
    """A float64 or int64 array as text. Equal bytes of the numbers are laid side by side, which compresses well."""
    raw = np.ascontiguousarray(array).view(np.uint8).reshape(-1, 8)
    return base64.b64encode(zlib.compress(np.ascontiguousarray(raw.T).tobytes(), 1)).decode("ascii")


def unpacked(text: str, dtype: type[np.float64] | type[np.int64]) -> NDArray[Any]:
    """The array again."""
    raw = np.frombuffer(zlib.decompress(base64.b64decode(text)), np.uint8).reshape(8, -1)
    return np.ascontiguousarray(raw.T).reshape(-1).view(dtype)
