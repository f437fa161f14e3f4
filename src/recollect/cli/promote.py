"""`recollect snapshot`: from a workspace to a replay buffer."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from typing import Annotated

import typer

from recollect.cli.options import Json, Name, OnBranch, StorageOptions, location, storage_options
from recollect.cli.output import Output, console, plain


def snapshot(
    context: typer.Context,
    name: Name,
    to: Annotated[
        str,
        typer.Option(
            metavar="URI",
            help="The replay buffer: a path, file:// or s3://bucket/name; made when missing.",
            show_default=False,
        ),
    ],
    tag: Annotated[str | None, typer.Option(help="Give the new version this name.", show_default=False)] = None,
    finished_only: Annotated[
        bool, typer.Option("--finished-only", help="Leave out episodes that an agent has open; they stay promotable.")
    ] = False,
    where: Annotated[
        str | None,
        typer.Option(
            metavar="CONDITION",
            help="Only episodes that this is true of, such as \"episode.task = 'hopper'\"; the others stay promotable.",
            show_default=False,
        ),
    ] = None,
    branch: OnBranch = None,
    commit: Annotated[
        str | None,
        typer.Option(
            help="The commit of the code that wrote the rows; RECOLLECT_COMMIT without it.", show_default=False
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be promoted; write nothing.")] = False,
    storage_option: StorageOptions = None,
    json: Json = False,
) -> None:
    """Promote what the buffer does not hold yet, exactly once, as one version."""
    from recollect.opening import open_workspace

    out = Output(context, json)
    target, options = location(to), storage_options(storage_option)
    with open_workspace(name) as ws, _bar() as progress:
        made = ws.snapshot(
            target, tag, storage_options=options, finished_only=finished_only, where=where, branch=branch,
            commit=commit, dry_run=dry_run, progress=progress,
        )  # fmt: skip
    if out.json:
        rest = {k: v for k, v in vars(made).items() if k != "cut"}
        out.document(plain(rest) | {"cut": None if made.cut is None else made.cut.to_dict()})
    else:
        out.line(made.message)
        if made.note:
            out.note(made.note)


@contextlib.contextmanager
def _bar() -> Iterator[Callable[[int, int], None] | None]:
    """A progress bar on stderr, None where nobody looks at it."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("promoting"), BarColumn(), MofNCompleteColumn(), TextColumn("rows"), TimeRemainingColumn())
    with Progress(*columns, console=console(sys.stderr), transient=True) as bar:
        task = bar.add_task("promoting", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
