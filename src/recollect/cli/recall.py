"""`recollect recall`: the steps of a workspace that a text is about."""

from __future__ import annotations

from typing import Annotated

import typer

from recollect.cli.options import Json, Name
from recollect.cli.output import Output
from recollect.cli.tail import describe, readable


def recall(
    context: typer.Context,
    name: Name,
    text: Annotated[str, typer.Argument(help="What to look for, in words.", show_default=False)],
    k: Annotated[int, typer.Option("-k", min=1, help="Show at most this many steps.")] = 5,
    json: Json = False,
) -> None:
    """Show the steps that a text is most about, best first; none where nothing is relevant."""
    from recollect.opening import open_workspace

    out = Output(context, json)
    with open_workspace(name) as ws:
        hits = ws.similar(text, k)
        if out.json:
            found = [describe(step) | {"score": score} for step, score in zip(hits, hits.scores, strict=True)]
            out.document({"workspace": ws.name, "query": text, "steps": found})
            return
        if not hits:
            out.note(f"nothing in workspace {ws.name} is about that")
        for step in hits:
            out.line(readable(step, None))
