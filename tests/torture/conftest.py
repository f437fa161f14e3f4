"""Folders for many processes at once."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from recollect.testing.cases import scratch_folder


@pytest.fixture
def memory() -> Iterator[Path]:
    """A folder in memory where there is one: what is proved there does not rest on the disk, and flushes cost time."""
    with tempfile.TemporaryDirectory(prefix="recollect-", dir=scratch_folder()) as folder:
        yield Path(folder)
