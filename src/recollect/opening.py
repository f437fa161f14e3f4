"""Workspaces by name: creating, opening, listing and deleting them."""

from __future__ import annotations

import contextlib
import os

from recollect.errors import ArgumentError, SchemaError, StoreError
from recollect.hot import home
from recollect.hot.keep import Keep
from recollect.hot.private import PrivateFolder
from recollect.hot.write.growing import SEGMENT_BYTES, Durability
from recollect.masking import Masker
from recollect.masking import keep as unmasked
from recollect.records.layout import Layout
from recollect.schema import Schema
from recollect.workspace import Workspace

_EVERYTHING = Keep()


def create_workspace(
    name: str | os.PathLike[str] | None,
    schema: Schema | None = None,
    *,
    durability: Durability | None = None,
    keep: Keep = _EVERYTHING,
    home: str | os.PathLike[str] | None = None,
    mask: Masker = unmasked,
) -> Workspace:
    """Creates a workspace.

    A replay ring for one process, in memory, that holds the newest million rows and vanishes with the process:

        ws = rc.create_workspace(None, schema, keep=rc.Keep(rows=1_000_000, unpromoted="drop"))

    Args:
        name: a name under RECOLLECT_HOME, or a location (text with a slash). None makes a private workspace of this
            process: in shared memory where that has room, else in the temporary folder; removed by `close()` and at
            exit.
        schema: what a step is; None leaves it to the first writer.
        durability: what survives power loss, and when: `"process"` what `sync` and `close` cover, `"interval"` what
            is older than 0.25 s and two flushes (on a busy disk one may take a second), `"step"` every append before
            it returns. None is `"interval"`, for a private workspace `"process"`.
        keep: how much is kept; everything unless it says so.
        home: the buffer whose rows may go once it holds them; the first target of a snapshot when None.
        mask: text → text, applied to everything textual before it is written. It belongs to the handle, not to the
            workspace: whoever opens it to write passes its own.

    Raises:
        AlreadyExists: the name is taken, or the folder holds something that is no workspace.
        StoreError: the folder cannot be made, or lies on a network file system.
    """
    if schema is not None and not isinstance(schema, Schema):
        raise SchemaError("schema= takes a Schema", value=schema, remedy="Wrap the fields: rc.Schema({...})")
    if not isinstance(keep, Keep):
        raise ArgumentError("keep= takes a Keep", value=keep, remedy="Write rc.Keep(rows=1_000_000)")
    folder = None
    if name is None:
        layout = None if schema is None else Layout.of(schema)
        row_bytes = 0 if layout is None else layout.itemsize + sum(layout.plane_bytes.values())
        folder = PrivateFolder(2 * SEGMENT_BYTES[-1] + row_bytes * (keep.rows or 0))
    return _create(name, folder, schema, durability, keep, home, mask)


def _create(
    name: str | os.PathLike[str] | None,
    folder: PrivateFolder | None,
    schema: Schema | None,
    durability: Durability | None,
    keep: Keep,
    at: str | os.PathLike[str] | None,
    mask: Masker,
) -> Workspace:
    with contextlib.ExitStack() as undo:
        uri = None
        if folder is not None:
            undo.callback(folder.remove)
        if at is not None:
            from recollect.cold.location import Location

            uri = Location(at).uri  # before anything is made: it may be none
        if folder is not None:
            description = home.create(folder.path, "private", durability or "process", keep, schema, uri)
        else:
            assert name is not None
            path = home.workspace_path(name)
            description = home.create(path, path.name, durability or "interval", keep, schema, uri)
        undo.pop_all()
    return Workspace(description, mask, folder)


def open_workspace(name: str | os.PathLike[str], *, mask: Masker = unmasked) -> Workspace:
    """Opens a workspace, and seals the logs of writers that have died. Raises NotFound."""
    path = home.workspace_path(name)
    try:
        return Workspace(home.describe(path), mask)
    except (FileNotFoundError, StoreError):
        home.describe(path)  # it may have been deleted meanwhile
        raise


def list_workspaces() -> list[str]:
    """Names of the workspaces under RECOLLECT_HOME."""
    return [path.name for path in home.list_workspaces()]


def delete_workspace(name: str | os.PathLike[str]) -> None:
    """Removes a workspace; buffers that it was promoted to stay.

    Raises:
        NotFound: no such workspace.
        WriterError: a live agent is writing to it.
        StoreError: its folder holds something that is no part of it.
    """
    home.delete(home.workspace_path(name))
