"""Flushing what lance writes to a local disk: it never does so itself."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

LAST_VERSION = 2**64 - 1


def manifest_path(dataset: Path, version: int) -> Path:
    """Where the manifest of a version lies: lance names them so that the newest sorts first."""
    named = dataset / "_versions" / f"{LAST_VERSION - version:020d}.manifest"
    plain = dataset / "_versions" / f"{version}.manifest"
    return plain if not named.exists() and plain.exists() else named


def version_number(name: str) -> int | None:
    """The version that a manifest's file name stands for, None for another file. 20 digits count down."""
    digits, dot, rest = name.partition(".")
    if not digits.isdecimal() or dot + rest != ".manifest":
        return None
    return LAST_VERSION - int(digits) if len(digits) == 20 else int(digits)


def sync_files(paths: Iterable[Path]) -> None:
    """Flushes files and the folders that they lie in. One that is gone was cleaned up since."""
    folders = set()
    for path in paths:
        folders.add(path.parent)
        with contextlib.suppress(FileNotFoundError):
            _sync_path(path, os.O_RDONLY)
    for folder in sorted(folders):
        with contextlib.suppress(FileNotFoundError):
            _sync_path(folder, os.O_RDONLY | os.O_DIRECTORY)


def sync_tree(folder: Path) -> None:
    """Flushes every file and folder below a folder, and the folder itself; nothing where there is none."""
    for at, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                _sync_path(Path(at) / name, os.O_RDONLY)
        _sync_path(Path(at), os.O_RDONLY | os.O_DIRECTORY)


def sync_commit(dataset: Path, version: int, transaction: str) -> None:
    """Flushes what a commit wrote beside data files: the transaction's file, then the manifest that made it count."""
    sync_files([dataset / "_transactions" / transaction, manifest_path(dataset, version)])


def _sync_path(path: Path, flags: int) -> None:
    fd = os.open(path, flags)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
