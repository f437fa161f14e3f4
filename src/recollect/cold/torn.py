"""A newest version that a power cut left torn, and going back to the one before it. Local disks only.

Lance does not flush. A promotion flushes its manifest before it counts as made (design/0016), so that what is torn here
was never acknowledged by a snapshot: going back loses nothing that the workspace does not hold.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import lance

from recollect.cold.durable import sync_files, version_number
from recollect.cold.faults import store_errors
from recollect.cold.location import Location
from recollect.errors import ArgumentError, CorruptionError

DATASETS = ("steps", "facts", "tails")
ASIDE = "torn"


def torn(location: Location, name: str) -> list[Path]:
    """Manifests at the end of a dataset that cannot be read, newest first. Empty for a store, which has none."""
    if not location.is_local:
        return []
    found = []
    for version, path in sorted(_manifests(Path(location.dataset(name))).items(), reverse=True):
        if _readable(location, name, version, path):
            break
        found.append(path)
    return found


def torn_tags(location: Location) -> list[Path]:
    """Tags that cannot be read: their snapshot did not return, and the next one of its workspace makes them again.

    Likewise what names a branch whose making did not return.
    """
    folder = Path(location.child("steps.lance")) / "_refs"
    return [p for p in sorted(folder.glob("*/*.json")) if not _is_json(p)] if location.is_local else []


def refuse(location: Location) -> None:
    """Raises CorruptionError where a dataset ends with a torn version, or a tag is torn."""
    if paths := torn_tags(location):
        raise CorruptionError(
            f"tag {paths[0].stem} of buffer {location.uri!r} is torn",
            remedy=f"Take it away: recollect verify {location.uri} --repair",
        )
    for name in DATASETS:
        if paths := torn(location, name):
            raise CorruptionError(
                f"the newest version of {name} in buffer {location.uri!r} is torn: {paths[0].name} cannot be read",
                remedy=f"Go back to the version before it: recollect verify {location.uri} --repair",
            )


def open_whole(location: Location, name: str) -> Any:
    """A dataset at its newest version.

    Raises:
        ValueError, OSError: lance's own, where there is none or the store cannot be reached.
        CorruptionError: its newest version is torn. Lance opens a manifest of zeros as an empty dataset of version 0.
    """
    try:
        opened = lance.dataset(location.dataset(name), storage_options=location.options)
    except BaseException as e:
        if isinstance(e, ValueError | OSError) or _is_panic(e):
            refuse(location)
        raise
    if not len(opened.schema):
        refuse(location)
    return opened


def go_back(location: Location) -> list[str]:
    """Sets torn manifests aside, under `torn`, and takes away torn tags and tags of their versions; says what it did.

    Raises:
        CorruptionError: a dataset has no version that can be read. Nothing is changed then.
    """
    done: list[str] = []
    ends = {name: torn(location, name) for name in DATASETS}
    with store_errors("repairing", location):
        for name, paths in ends.items():
            there = _manifests(Path(location.dataset(name)))
            if paths and len(paths) == len(there) and (list(there) != [1] or _holds_rows(location)):
                raise CorruptionError(
                    f"no version of {name} in buffer {location.uri!r} can be read", remedy="Restore it from a backup"
                )
        for path in torn_tags(location):
            path.unlink()
            sync_files([path])
            done.append(f"tag {path.stem} was torn and is gone")
        for name, paths in ends.items():
            for path in paths:
                version = version_number(path.name)
                assert version is not None
                aside = Path(location.child(ASIDE)) / f"{name}-{version}-{os.urandom(4).hex()}.manifest"
                aside.parent.mkdir(exist_ok=True)
                tags = Path(location.child(f"{name}.lance")) / "_refs" / "tags"
                path.replace(aside)
                sync_files([aside, path])
                done.append(f"{name} went back from version {version}, which is set aside as {ASIDE}/{aside.name}")
                if version == 1:  # the buffer was being created
                    continue
                dataset = lance.dataset(location.dataset(name))
                for tag, info in dataset.tags.list().items():
                    if (info["branch"] or "") == location.branch and info["version"] >= version:
                        dataset.tags.delete(tag)
                        sync_files([tags / f"{tag}.json"])
                        done.append(f"tag {tag} named version {info['version']} and is gone")
    return done


def require_local(location: Location) -> None:
    """Raises ArgumentError for a store: its commits are atomic, so there is nothing to go back from."""
    if not location.is_local:
        raise ArgumentError("only a local buffer is repaired", value=location.uri, remedy="Restore the store's objects")


def _manifests(dataset: Path) -> dict[int, Path]:
    folder = dataset / "_versions"
    paths = list(folder.iterdir()) if folder.is_dir() else []
    return {v: p for p in paths if (v := version_number(p.name)) is not None}


def _holds_rows(location: Location) -> bool:
    """Whether a snapshot was made: creating a buffer makes version 1 of each dataset, the first snapshot version 2."""
    return any(version > 1 for version in _manifests(Path(location.dataset("steps"))))


def _is_json(path: Path) -> bool:
    try:
        return isinstance(json.loads(path.read_bytes()), dict)
    except ValueError:
        return False


def _readable(location: Location, name: str, version: int, path: Path) -> bool:
    """Whether a version opens as itself: one of zeros opens as an empty dataset of version 0."""
    if not path.stat().st_size:
        return False
    try:
        opened = lance.dataset(location.dataset(name), version=version, session=lance.Session())
    except (ValueError, OSError):
        return False
    except BaseException as e:
        if _is_panic(e):
            return False
        raise
    return int(opened.version) == version and len(opened.schema) > 0


def _is_panic(error: BaseException) -> bool:
    """Whether lance's own code stopped short, as it does on some torn manifests."""
    return type(error).__name__ == "PanicException"
