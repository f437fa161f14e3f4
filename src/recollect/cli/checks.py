"""What `recollect doctor` looks at: places, packages, and what the kernel and the compiler can do."""

from __future__ import annotations

import importlib
import importlib.metadata
import mmap
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from recollect.errors import RecollectError

Level: TypeAlias = Literal["ok", "warning", "failed"]

PACKAGES = ("numpy", "numba", "pylance", "pyarrow", "torch", "gymnasium")
LITTLE_SPACE = 1 << 30


@dataclass(frozen=True)
class Check:
    """One finding.

    Attributes:
        name: what was looked at.
        level: `"failed"` where recollect cannot work, `"warning"` where it works less well.
        text: what was found.
        remedy: what to do about it, None when all is well.
    """

    name: str
    level: Level
    text: str
    remedy: str | None = None


@dataclass(frozen=True)
class Place:
    """A folder that recollect writes to.

    Attributes:
        path: where it is; it need not exist yet.
        source: the environment variable that says so, or `"default"`.
        file_system: the kernel's name of the file system that holds it.
        free_bytes: room on that file system, None where it cannot be told.
    """

    path: Path
    source: str
    file_system: str
    free_bytes: int | None


def places() -> tuple[Place, Place]:
    """The home of the workspaces, and the cache."""
    from recollect.cache.blocks import cache_folder
    from recollect.hot.home import home_folder

    return _place(home_folder(), "RECOLLECT_HOME"), _place(cache_folder(), "RECOLLECT_CACHE", "XDG_CACHE_HOME")


def _place(path: Path, *variables: str) -> Place:
    from recollect.hot.format.files import file_system_type

    source = next((v for v in variables if os.environ.get(v)), "default")
    existing = _existing(path)
    try:
        free: int | None = shutil.disk_usage(existing).free
    except OSError:
        free = None
    return Place(path, source, file_system_type(existing), free)


def _existing(path: Path) -> Path:
    """`path`, or the nearest parent that exists."""
    at = path.absolute()
    while not at.exists() and at != at.parent:
        at = at.parent
    return at


def versions() -> dict[str, str | None]:
    """Release of each package, None where it is not installed. Imports none of them."""
    import recollect

    out: dict[str, str | None] = {"recollect": recollect.__version__}
    for name in PACKAGES:
        try:
            out[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            out[name] = None
    return out


def writable(name: str, place: Place, variable: str) -> Check:
    """Whether a file can be written in a place, or in the parent where it would be made."""
    remedy = f"Set {variable} to a folder on a local disk that you may write to"
    try:
        with tempfile.TemporaryFile(dir=_existing(place.path)) as f:
            f.write(b"recollect")
            f.flush()
    except OSError as e:
        return Check(f"{name} is writable", "failed", f"{place.path}: {e.strerror or e}", remedy)
    return Check(f"{name} is writable", "ok", str(place.path))


def local(place: Place) -> Check:
    """Whether the home lies on this machine."""
    from recollect.hot.format.files import NETWORK_FILE_SYSTEMS

    name = "home is on a local file system"
    if place.file_system in NETWORK_FILE_SYSTEMS:
        remedy = "Set RECOLLECT_HOME to a local disk, and snapshot to the network"
        return Check(name, "failed", f"{place.path} lies on {place.file_system}", remedy)
    return Check(name, "ok", place.file_system)


def roomy(name: str, place: Place, variable: str) -> Check:
    """Whether there is some space left."""
    from recollect.cli.output import size

    label = f"{name} has free space"
    if place.free_bytes is None:
        return Check(label, "warning", "unknown", f"Check the disk of {place.path}")
    level: Level = "ok" if place.free_bytes >= LITTLE_SPACE else "warning"
    remedy = None if level == "ok" else f"Free some space, or set {variable} to a larger disk"
    return Check(label, level, size(place.free_bytes), remedy)


def workspaces() -> tuple[int, Check]:
    """How many workspaces the home holds, and whether each can be read."""
    from recollect.hot import home

    name = "workspaces are readable"
    try:
        paths = home.list_workspaces()
        found = len(paths)
        for path in paths:
            home.describe(path)
            home.read_schema(path)
    except RecollectError as e:
        return 0, Check(name, "failed", e.message, e.remedy or "Move the damaged workspace out of the home folder")
    except OSError as e:
        return 0, Check(name, "failed", str(e), "Check the rights on RECOLLECT_HOME")
    return found, Check(name, "ok", str(found))


def compiler() -> Check:
    """Whether numba compiles, and can keep what it compiled."""
    name = "numba compiles"
    try:
        numba = importlib.import_module("numba")
        importlib.import_module("recollect.records.kernels")
        compiled = numba.njit("int64(int64)")(_successor)
        if compiled(1) != 2:
            raise RuntimeError("a compiled kernel gave a wrong result")
    except Exception as e:
        remedy = "Reinstall numba and llvmlite; where the package's folder is read-only, set NUMBA_CACHE_DIR"
        return Check(name, "failed", " ".join(f"{type(e).__name__}: {e}".split()), remedy)
    return Check(name, "ok", f"numba {numba.__version__}")


def _successor(x: int) -> int:
    return x + 1


def store() -> Check:
    """Whether the cold format's library loads."""
    name = "lance loads"
    try:
        importlib.import_module("recollect.cold.dataset")
    except Exception as e:
        remedy = "Reinstall it: pip install 'pylance>=14.0.2,<15'"
        return Check(name, "failed", " ".join(f"{type(e).__name__}: {e}".split()), remedy)
    return Check(name, "ok", importlib.metadata.version("pylance"))


def populate() -> Check:
    """Whether the kernel can fault a segment's pages in at once (MADV_POPULATE_WRITE, Linux 5.14)."""
    name = "kernel populates maps"
    with mmap.mmap(-1, mmap.PAGESIZE) as page:
        try:
            page.madvise(23)
        except (OSError, ValueError, AttributeError):
            return Check(name, "warning", "no MADV_POPULATE_WRITE", "Linux 5.14 or newer opens segments faster")
    return Check(name, "ok", "MADV_POPULATE_WRITE")
