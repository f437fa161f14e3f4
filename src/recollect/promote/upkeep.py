"""What a snapshot does for its buffer once it is committed."""

from __future__ import annotations

from recollect.cold import compact
from recollect.cold.dataset import Datasets
from recollect.errors import RecollectError
from recollect.records.layout import Layout


def row_bytes(layout: Layout) -> int:
    """What a row takes in memory, without text and ragged values."""
    return layout.itemsize + sum(layout.plane_bytes.values())


def tend(data: Datasets, bytes_a_row: int) -> str:
    """Compacts the buffer where that is due. The snapshot stands in any case: returns why it failed, "" if not."""
    try:
        if compact.due(data, bytes_a_row):
            compact.compact(data, bytes_a_row)
    except RecollectError as e:
        return f"the buffer could not be compacted: {e.text}"
    return ""
