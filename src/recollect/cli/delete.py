"""`recollect delete`: poisoned or private experience of a workspace, with a reason."""

from __future__ import annotations

from typing import Annotated

import typer

from recollect.cli.options import Json, Name
from recollect.cli.output import Output

SHOWN_RANGES = 8


def delete(
    context: typer.Context,
    name: Name,
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
            "--purge", help="Overwrite the bytes, of earlier deletions too; alone, of these only. Close writers first."
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go; delete nothing.")] = False,
    json: Json = False,
) -> None:
    """Delete steps from a workspace: gone from every read at once. What was promoted stays in its buffers."""
    from recollect.opening import open_workspace

    out = Output(context, json)
    with open_workspace(name) as ws:
        done = ws.delete(
            step or None, episodes=episode or None, where=where, reason=reason, purge=purge, dry_run=dry_run
        )
        if out.json:
            out.document(
                {
                    "workspace": ws.name,
                    **{k: v for k, v in vars(done).items() if k != "ids"},
                    "ids": [{"writer": str(e.writer), "start": e.start, "stop": e.stop} for e in done.ids],
                }
            )
            return
        out.line(f"{ws.name}: {done}")
        for e in done.ids[:SHOWN_RANGES]:
            out.line(f"{e.writer}:{e.start}" + (f" to {e.stop - 1}" if e.stop > e.start + 1 else ""))
        if len(done.ids) > SHOWN_RANGES:
            out.line(f"and {len(done.ids) - SHOWN_RANGES:,} more ranges")
