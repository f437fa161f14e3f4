"""Where workspaces live, and what a workspace's folder says of it.

<home>/workspaces/<name>/workspace.json    id, format, durability, time of creation
<home>/workspaces/<name>/schema.json       made once, by whoever fixes the schema
<home>/workspaces/<name>/schema.2.json     the next version, made once by whoever evolves it; and so on
<home>/workspaces/<name>/log/<writer>/     one folder per writer
<home>/workspaces/<name>/targets/          locks of the promoters and how far each got, one per target
<home>/workspaces/<name>/home.json         the home buffer
<home>/workspaces/<name>/evicted.json      what was evicted

Each of these files carries a checksum (`notes`).
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from recollect.errors import (
    AlreadyExists,
    ArgumentError,
    CorruptionError,
    NotFound,
    SchemaError,
    StoreError,
    WriterError,
)
from recollect.hot.format.files import (
    ABSENT,
    create_exclusive,
    is_locked,
    locked,
    make_folder,
    os_errors,
    refuse_network_file_system,
    replace_file,
    sync_folder,
    writers_folders,
)
from recollect.hot.format.layouts import Layouts
from recollect.hot.format.notes import pack, read
from recollect.hot.format.targets import change_home
from recollect.hot.keep import Keep
from recollect.hot.write.growing import GATE, GATE_WAIT_S, Durability
from recollect.schema import Change, Schema

FORMAT = 1
DURABILITIES = ("process", "interval", "step")
_DESCRIBED = {"format", "id", "name", "durability", "keep", "created_ns"}
GATES = 1000
"""How often a workspace may be deleted under the hands of whoever creates or deletes it."""
_DAMAGED = "Restore it from a backup, or delete the workspace"
_OURS = re.compile(
    r"log|targets|owner|evict\.lock|(catalog|text)\.sqlite.*|\.?(workspace|home|evicted|schema(\.\d+)?)\.json.*"
)
"""What lies in a workspace's folder, with what writing it may leave behind."""
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")


def home_folder() -> Path:
    """`RECOLLECT_HOME`, or `~/.recollect`."""
    return Path(os.environ.get("RECOLLECT_HOME") or Path.home() / ".recollect").expanduser().absolute()


def workspace_path(name: str | os.PathLike[str]) -> Path:
    """The folder of a workspace: text with a slash is a location, anything else a name under the home folder.

    Raises:
        ArgumentError: a name that is no name, or a location that is not local.
    """
    if not isinstance(name, str | os.PathLike) or not isinstance(text := os.fspath(name), str):
        raise ArgumentError("a workspace is named by text or a path", value=name)
    if "://" in text:
        scheme, _, rest = text.partition("://")
        if scheme != "file":
            raise ArgumentError(
                "a workspace lives on a local disk",
                value=text,
                remedy="Snapshot it to the object store instead",
            )
        return Path("/" + rest.lstrip("/"))
    if "/" in text:
        return Path(text).expanduser().absolute()
    if not _NAME.match(text):
        raise ArgumentError("a workspace's name is letters, digits, dots, dashes and underscores", value=text)
    return home_folder() / "workspaces" / text


@dataclass(frozen=True)
class Description:
    """What `workspace.json` says."""

    id: str
    name: str
    path: Path
    durability: Durability
    keep: Keep
    created_ns: int


def create(
    path: Path, name: str, durability: Durability, kept: Keep, schema: Schema | None = None, home: str | None = None
) -> Description:
    """Makes a workspace. `workspace.json` comes last: whoever finds it finds the schema and the home buffer too.

    Of those that create it at a time, one at a time looks for it, so that the schema is the winner's.

    Raises:
        AlreadyExists: there is one, or the folder holds something else.
        SchemaMismatch, CorruptionError: the folder holds logs without a description, of another schema or of none.
        ArgumentError, StoreError: an unknown durability; the folder cannot be made.
    """
    if durability not in DURABILITIES:
        raise ArgumentError("unknown durability", value=durability, remedy=f"One of {', '.join(DURABILITIES)}")
    with os_errors("creating workspace", path):
        if foreign := _foreign(path):
            raise AlreadyExists(
                f"{str(path)!r} is no workspace, and it is not empty: it holds {foreign!r}",
                remedy="Choose a folder that is empty or not there yet",
            )
        make_folder(path)
        refuse_network_file_system(path)
        data = {
            "format": FORMAT,
            "id": uuid.uuid4().hex,
            "name": name,
            "durability": durability,
            "keep": kept.to_dict(),
            "created_ns": time.time_ns(),
        }
        with _gate(path):
            taken = (path / "workspace.json").exists()
            if not taken:
                if schema is not None:
                    _begin_with(path, schema)
                if home is not None:
                    change_home(path, home)
                elif not _has_logs(path):
                    (path / "home.json").unlink(missing_ok=True)  # of a creator that died
            if taken or not create_exclusive(path / "workspace.json", pack(data)):
                raise AlreadyExists(f"workspace {name!r} exists", remedy="Open it, or choose another name")
    return describe(path)


def _foreign(path: Path) -> str | None:
    """The name of something in a folder that is no part of a workspace; None where there is nothing such."""
    try:
        return min((entry.name for entry in os.scandir(path) if not _OURS.fullmatch(entry.name)), default=None)
    except FileNotFoundError:
        return None


def _begin_with(path: Path, schema: Schema) -> None:
    """Makes `schema` that of a workspace that is not there yet. What a creator that died left is overwritten."""
    version, left = _newest(path)
    if version == 1 and left != schema and not _has_logs(path):
        replace_file(Path(_schema_file(path, 1)), _packed(schema))
    else:
        fix_schema(path, schema)


def describe(path: Path) -> Description:
    """What a workspace's folder says of it.

    Raises:
        NotFound: there is no workspace.
        CorruptionError: what is there is damaged, of another release, or missing though logs are there.
        StoreError: it cannot be read.
    """
    try:
        data = read(path / "workspace.json")
    except ABSENT:
        if _has_logs(path):
            raise CorruptionError(
                f"workspace {str(path)!r} is damaged: workspace.json is missing, but logs are there",
                remedy="Restore it from a backup, or create the workspace again with the same schema, durability and "
                "keep: it goes on with these logs",
            ) from None
        raise NotFound(
            f"no workspace at {str(path)!r}", remedy=f"Create it: recollect workspace create {path.name}"
        ) from None
    except ValueError as e:
        raise CorruptionError(f"{str(path / 'workspace.json')!r} is damaged: {e}", remedy=_DAMAGED) from None
    if not data.keys() >= _DESCRIBED:
        raise CorruptionError(f"{str(path / 'workspace.json')!r} is damaged", value=data, remedy=_DAMAGED)
    if data["format"] != FORMAT:
        raise CorruptionError(f"workspace {str(path)!r} has a format that this release does not read")
    try:
        kept = Keep.from_dict(data["keep"])
    except (ArgumentError, TypeError) as e:
        raise CorruptionError(f"{str(path / 'workspace.json')!r} is damaged: {e}", remedy=_DAMAGED) from None
    durability = cast(Durability, data["durability"])
    name = data["name"] if (path / "owner").exists() else path.name  # it may have been copied or renamed since
    return Description(data["id"], name, path, durability, kept, int(data["created_ns"]))


@contextlib.contextmanager
def _gate(path: Path) -> Iterator[None]:
    """Holds a workspace's gate alone. A deletion takes the folder away with its gate, so whoever waited for that one
    looks for the gate of the folder that has the name by now."""
    gate = path / "log" / GATE
    with contextlib.ExitStack() as stack:
        for attempt in range(GATES):
            try:
                make_folder(gate.parent)
                lock = stack.enter_context(locked(gate, GATE_WAIT_S))
                if os.path.samestat(os.fstat(lock.fd), gate.stat()):
                    break
            except FileNotFoundError:
                if attempt + 1 == GATES:
                    raise
            stack.close()
        yield


@contextlib.contextmanager
def held(path: Path, id: str) -> Iterator[None]:
    """Keeps a workspace from being deleted meanwhile.

    Raises:
        NotFound: it was deleted, or another one has its name by now.
    """
    try:
        with os_errors("holding workspace", path), locked(path / "log" / GATE, GATE_WAIT_S, shared=True):
            require(path, id)
            yield
    except StoreError as e:
        if isinstance(e.__cause__, FileNotFoundError):
            require(path, id)
        raise


def require(path: Path, id: str) -> None:
    """Raises NotFound where a workspace was deleted, though another one may have its name by now."""
    try:
        found: str | None = describe(path).id
    except NotFound:
        found = None
    if found != id:
        raise NotFound(f"workspace {path.name!r} was deleted", remedy="Open it again if it was created again")


def change_keep(path: Path, kept: Keep) -> None:
    """Makes `kept` what the workspace keeps; every process goes by it from its next eviction on."""
    describe(path)
    with os_errors("writing", path / "workspace.json"):
        data = read(path / "workspace.json")
        replace_file(path / "workspace.json", pack({**data, "keep": kept.to_dict()}))


def fix_schema(path: Path, schema: Schema) -> None:
    """Makes `schema` the workspace's, or checks that it is.

    Raises:
        SchemaMismatch: the workspace has another schema; each field that differs is named.
    """
    with os_errors("writing schema of", path):
        if _newest(path)[0] == 0 and create_exclusive(Path(_schema_file(path, 1)), _packed(schema)):
            return
    present = _newest(path)[1]
    assert present is not None
    if present != schema and present.evolves_to(schema):
        present.require_equal(
            schema, what="the caller of this workspace", remedy="It is a later version: call ws.evolve(schema) first"
        )
    present.require_equal(schema, what="the caller of this workspace")


def evolve_schema(path: Path, schema: Schema) -> list[Change]:
    """Makes `schema` the workspace's next version; the changes that it brings, none where it is the newest already.

    Whoever comes second, of two at a time, finds the first one's version and is checked against that.

    Raises:
        SchemaMismatch: it is no later version of the newest; each field concerned is named.
    """
    while True:
        version, present = _newest(path)
        if present is None:
            raise SchemaError(
                f"workspace {path.name!r} has no schema yet", remedy="Pass schema= to its first writer() instead"
            )
        changes = present.evolution(schema)
        if not changes:
            return []
        with os_errors("writing schema of", path):
            if create_exclusive(Path(_schema_file(path, version + 1)), _packed(schema)):
                return changes


def read_schema(path: Path) -> Schema | None:
    """The newest version of the workspace's schema, None while nobody has fixed it."""
    return _newest(path)[1]


def read_version(path: Path, version: int) -> Schema | None:
    """One version of the workspace's schema, counted from 1; None where there is none.

    Raises:
        CorruptionError: the file is damaged.
        StoreError: it cannot be read.
    """
    file = _schema_file(path, version)
    if not os.path.exists(file):  # noqa: PTH110 - asked at every refresh
        return None
    try:
        return Schema.from_dict(read(Path(file)))
    except ABSENT:
        return None  # the workspace was deleted meanwhile
    except (ValueError, AttributeError) as e:
        raise CorruptionError(f"{file!r} is damaged: {e}", remedy=_DAMAGED) from None


def layouts(path: Path) -> Layouts:
    """The layouts of every version.

    Raises:
        NotFound: nobody has fixed the schema.
        CorruptionError: somebody had.
    """
    _newest(path)
    return Layouts(lambda version: read_version(path, version))


def _newest(path: Path) -> tuple[int, Schema | None]:
    """The newest version's number and schema; 0 and None while there is none.

    Raises:
        CorruptionError: a file is damaged, or the first one is missing: a log was written under some schema.
    """
    version = 0
    while os.path.exists(_schema_file(path, version + 1)):  # noqa: PTH110
        version += 1
    if version == 0 and _has_logs(path) and not os.path.exists(_schema_file(path, 1)):  # noqa: PTH110
        raise CorruptionError(
            f"workspace {path.name!r} is damaged: schema.json is missing, but logs are there",
            remedy="Copy the workspace again, whole, or copy the schema.json of a workspace with the same schema",
        )
    return version, read_version(path, version) if version else None


def _has_logs(path: Path) -> bool:
    with os_errors("reading", path):
        return any(next(folder.glob("*.seg"), None) is not None for folder in writers_folders(path / "log"))


def _schema_file(path: Path, version: int) -> str:
    return f"{path}/schema.json" if version == 1 else f"{path}/schema.{version}.json"


def _packed(schema: Schema) -> bytes:
    return pack(schema.to_dict())


def list_workspaces() -> list[Path]:
    """The folder of every workspace under the home folder, by name. Damaged ones are listed too."""
    folder = home_folder() / "workspaces"
    if not folder.is_dir():
        return []
    with os_errors("reading", folder):
        found = sorted(folder.iterdir())
    return [p for p in found if not p.name.startswith(".") and (p / "workspace.json").exists()]


def live_writers(path: Path) -> list[int]:
    """Writers whose process is alive, by their locks."""
    return [int(folder.name, 16) for folder in writers_folders(path / "log") if is_locked(folder / "lock")]


def delete(path: Path) -> None:
    """Removes a workspace. Buffers that it was promoted to are not touched.

    Raises:
        NotFound: no such workspace.
        WriterError: an agent is writing to it.
        StoreError: something else lies in its folder, or it cannot be removed.
    """
    if not (path / "workspace.json").exists():
        describe(path)
    grave = path.with_name(f".{path.name}.deleted.{uuid.uuid4().hex[:8]}")
    with os_errors("deleting workspace", path):
        with _gate(path):
            if not (path / "workspace.json").exists():
                describe(path)
            if foreign := _foreign(path):
                raise StoreError(
                    f"{foreign!r} in {str(path)!r} is no part of the workspace",
                    remedy="Move it elsewhere, then delete again",
                )
            alive = live_writers(path)
            if alive:
                raise WriterError(
                    f"workspace {path.name!r} has {len(alive)} live writer{'s' if len(alive) > 1 else ''}",
                    remedy="Stop the agents that write to it first",
                )
            path.rename(grave)
            sync_folder(path.parent)
        try:
            shutil.rmtree(grave)
        except OSError as e:
            raise StoreError(
                f"workspace {path.name!r} is gone, but its files could not all be removed: {e.strerror}",
                remedy=f"What is left is in {str(grave)!r}; remove it by hand",
            ) from e
