"""`recollect demo`: the main job on real input."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from recollect.cli.options import Json
from recollect.cli.output import Output
from recollect.errors import MissingDependency

NEEDS = ("torch", "gymnasium", "matplotlib")


def demo(
    context: typer.Context,
    seed: Annotated[int, typer.Option(help="Seed of actors, learner and evaluation.")] = 0,
    rounds: Annotated[
        int | None,
        typer.Option(min=1, help="Train this many rounds instead of the demo's own number.", show_default=False),
    ] = None,
    out: Annotated[Path, typer.Option(help="The folder for the learning curve, a PNG file.")] = Path(),
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Print the outcome only.")] = False,
    json: Json = False,
) -> None:
    """Play CartPole with two actors, train a DQN from snapshots only, kill an actor, lose nothing."""
    output = Output(context, json)
    missing = [name for name in NEEDS if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependency(f"the demo needs {', '.join(missing)}", remedy="pip install 'recollect[demo]'")
    try:
        from recollect.demo import run
    except ModuleNotFoundError as e:
        if (e.name or "").partition(".")[0] == "recollect":
            raise
        raise MissingDependency(f"the demo needs {e.name}", remedy="pip install 'recollect[demo]'") from None
    with _stdout_to_stderr() if output.json else contextlib.nullcontext():
        code = run(seed=seed, rounds=rounds, out=out, quiet=quiet or output.json)
    if output.json:
        output.document({"seed": seed, "rounds": rounds, "out": out.absolute(), "exit_code": code})
    if code:
        raise typer.Exit(code)


@contextlib.contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """What this process and its children print goes to stderr meanwhile: stdout is for the document."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
