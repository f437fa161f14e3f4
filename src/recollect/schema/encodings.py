"""How each type of field is encoded in a buffer's files: one table, by measurement (design/0024).

Lance takes an encoding from the metadata of an Arrow field, and writes in each file how it was encoded. So what is
said here concerns new buffers alone, and every file stays readable.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

_PREFIX = "lance-encoding:"
Encoding = dict[str, str]
"""Metadata of an Arrow field."""


def _encoding(**settings: str) -> Encoding:
    return {f"{_PREFIX}{name.replace('_', '-')}": value for name, value in settings.items()}


PLAIN: Encoding = {}
"""What Lance chooses: bits packed where that helps, else as it is."""
PACKED = _encoding(compression="zstd")
"""Counters, times and ids: packed by Lance, then compressed."""
FLOATS = _encoding(compression="zstd", bss="on")
"""The bytes of a float by significance, then compressed."""
TEXT = _encoding(compression="zstd", structural_encoding="miniblock", minichunk_size=str(1 << 16))
"""Many values are compressed together; 64 KiB of them are read for one."""
FRAMES = _encoding(compression="zstd", structural_encoding="miniblock", minichunk_size=str(1 << 22))
"""Frames that follow one another are alike: 4 MiB of them is compressed together, and read for one."""
RAW = _encoding(compression="none")
"""Noise: nothing is tried."""


def of_values(kind: Any) -> Encoding:
    """The encoding of a column, or of a list's values, of a scalar Arrow type."""
    if pa.types.is_floating(kind):
        return FLOATS
    if pa.types.is_boolean(kind) or pa.types.is_timestamp(kind) or (pa.types.is_integer(kind) and kind.bit_width >= 32):
        return PACKED
    return PLAIN
