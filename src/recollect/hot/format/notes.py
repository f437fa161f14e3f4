"""Notes: small files of one JSON object with its checksum in it, so that no flipped bit is taken for what was written.

{..., "crc": CRC-32 of the rest, its keys sorted}
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recollect.hot.format.files import ABSENT, os_errors


def pack(body: Mapping[str, Any]) -> bytes:
    """A note that says `body`, whose keys are text."""
    return json.dumps({**body, "crc": _checksum(body)}).encode()


def unpack(raw: bytes) -> dict[str, Any]:
    """What a note says. Raises ValueError for bytes that `pack` did not make."""
    body = json.loads(raw)
    if not isinstance(body, dict) or body.pop("crc", None) != _checksum(body):
        raise ValueError("its checksum does not fit")
    return body


def read(path: Path) -> dict[str, Any]:
    """What the note in a file says.

    Raises:
        FileNotFoundError, NotADirectoryError: there is none.
        ValueError: it is damaged.
        StoreError: it is there and cannot be read.
    """
    with os_errors("reading", path, but=ABSENT):
        raw = path.read_bytes()
    return unpack(raw)


def _checksum(body: Mapping[str, Any]) -> int:
    return zlib.crc32(json.dumps(body, sort_keys=True).encode())
