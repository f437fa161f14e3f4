"""`recollect delete`: poisoned or private experience of a workspace or a buffer, with a reason."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recollect.cli.options import Json, StorageOptions, location, storage_options
from recollect.cli.output import Output, count
from recollect.cli.upkeep import is_buffer
from recollect.errors import ArgumentError

if TYPE_CHECKING:
    from recollect.view import Extent

SHOWN_RANGES = 8


def delete(
    context: typer.Context,
    name: Annotated[
        str,
        typer.Argument(help="A workspace, by name or path; or a replay buffer, by path or URI.", show_default=False),
    ],
    reason: Annotated[str, typer.Option(metavar="TEXT", help="Why it has to go; kept, with the time.")],
    where: Annotated[
        str | None,
        typer.Option(
            metavar="CONDITION",
            help="Steps that this is true of, such as \"episode.task = 'hopper' and reward > 100\".",
            show_default=False,
        ),
    ] = None,
    episode: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="Every attempt at this episode; may be repeated.", show_default=False),
    ] = None,
    step: Annotated[
        list[str] | None,
        typer.Option("--id", metavar="WRITER:SEQ", help="This step; may be repeated.", show_default=False),
    ] = None,
    purge: Annotated[
        bool,
        typer.Option(
            "--purge",
            help="Of a workspace: overwrite the bytes, of earlier deletions too; alone, of these only. Close writers "
            "first.",
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go; delete nothing.")] = False,
    storage_option: StorageOptions = None,
    json: Json = False,
) -> None:
    """Delete steps, with a reason: of a workspace, gone from every read at once; of a replay buffer, gone from new
    versions of main and of every branch."""
    out = Output(context, json)
    chosen: dict[str, Any] = {"ids": step or None, "episodes": episode or None, "where": where}
    if is_buffer(name):
        if purge:
            raise ArgumentError(
                "the bytes in older versions of a buffer cannot be overwritten",
                value=name,
                remedy="Delete without --purge, take away the tags that hold the steps, then recollect cleanup",
            )
        _from_buffer(out, location(name), storage_options(storage_option), reason, dry_run, chosen)
    else:
        _from_workspace(out, name, reason, purge, dry_run, chosen)


def _from_workspace(out: Output, name: str, reason: str, purge: bool, dry_run: bool, chosen: dict[str, Any]) -> None:
    from recollect.opening import open_workspace

    with open_workspace(name) as ws:
        done = ws.delete(**chosen, reason=reason, purge=purge, dry_run=dry_run)
        if out.json:
            plain = {k: v for k, v in vars(done).items() if k != "ids"}
            out.document({"workspace": ws.name, **plain, "ids": _ids(done.ids)})
            return
        out.line(f"{ws.name}: {done}")
        _print_ids(out, done.ids)


def _from_buffer(
    out: Output, uri: str, options: dict[str, str] | None, reason: str, dry_run: bool, chosen: dict[str, Any]
) -> None:
    from recollect.buffer import open_buffer

    with open_buffer(uri, storage_options=options) as buffer:
        done = buffer.delete(**chosen, reason=reason, dry_run=dry_run)
    if out.json:
        out.document({**vars(done), "ids": _ids(done.ids)})
        return
    out.line(f"{done.uri}: {done}")
    _print_ids(out, done.ids)
    if done.tags:
        out.line(f"tag {', '.join(done.tags)} names a version that holds them still")
    if done.pins:
        out.line(f"{count(done.pins, 'pin')} keep a version that holds them still")
    for workspace in done.workspaces:
        out.line(f"workspace {workspace} holds them still: delete them there too, with recollect delete {workspace}")


def _ids(ids: Sequence[Extent]) -> list[dict[str, Any]]:
    return [{"writer": str(e.writer), "start": e.start, "stop": e.stop} for e in ids]


def _print_ids(out: Output, ids: Sequence[Extent]) -> None:
    for e in ids[:SHOWN_RANGES]:
        out.line(f"{e.writer}:{e.start}" + (f" to {e.stop - 1}" if e.stop > e.start + 1 else ""))
    if len(ids) > SHOWN_RANGES:
        out.line(f"and {len(ids) - SHOWN_RANGES:,} more ranges")
