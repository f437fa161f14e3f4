"""A newest version that a power cut left torn, and going back to the one before it. Local disks only.

Lance does not flush. A promotion flushes its manifest before it counts as made (design/0016), so that what is torn here
was never acknowledged by a snapshot: going back loses nothing that the workspace does not hold.
"""

from __future__ import annotations

import os
from pathlib import Path

import lance

from recollect.cold.durable import sync_files, version_number
from recollect.cold.location import Location, store_errors
from recollect.errors import ArgumentError, CorruptionError

DATASETS = ("steps", "facts", "tails")
ASIDE = "torn"


def torn(location: Location, name: str) -> list[Path]:
    """Manifests at the end of a dataset that cannot be read, newest first. Empty for a store, which has none."""
    if not location.is_local:
        return []
    found = []
    for version, path in sorted(_manifests(Path(location.child(f"{name}.lance"))).items(), reverse=True):
        if _readable(location, name, version, path):
            break
        found.append(path)
    return found


def refuse(location: Location) -> None:
    """Raises CorruptionError where a dataset ends with a torn version."""
    for name in DATASETS:
        if paths := torn(location, name):
            raise CorruptionError(
                f"the newest version of {name} in buffer {location.uri!r} is torn: {paths[0].name} cannot be read",
                remedy=f"Go back to the version before it: recollect verify {location.uri} --repair",
            )


def go_back(location: Location) -> list[str]:
    """Sets torn manifests aside, under `torn`, and takes away tags that name their versions; says what it did.

    Raises:
        CorruptionError: a dataset has no version that can be read. Nothing is changed then.
    """
    done: list[str] = []
    ends = {name: torn(location, name) for name in DATASETS}
    with store_errors("repairing", location):
        for name, paths in ends.items():
            if paths and len(paths) == len(_manifests(Path(location.child(f"{name}.lance")))):
                raise CorruptionError(
                    f"no version of {name} in buffer {location.uri!r} can be read", remedy="Restore it from a backup"
                )
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
                dataset = lance.dataset(location.child(f"{name}.lance"))
                for tag, info in dataset.tags.list().items():
                    if info["version"] >= version:
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


def _readable(location: Location, name: str, version: int, path: Path) -> bool:
    """Whether a version opens as itself: one of zeros opens as an empty dataset of version 0."""
    if not path.stat().st_size:
        return False
    try:
        opened = lance.dataset(location.child(f"{name}.lance"), version=version, session=lance.Session())
    except (ValueError, OSError):
        return False
    return int(opened.version) == version and len(opened.schema) > 0
