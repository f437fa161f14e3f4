"""The program `recollect`: its commands and its entry point."""

from __future__ import annotations

import contextlib
import io
import platform
import sys
from collections.abc import Sequence
from typing import Annotated

import typer

import recollect
from recollect.cli import buffer, cache, demo, doctor, promote, recall, tail, upkeep, verify, versions, workspace
from recollect.cli.guard import Guarded, report
from recollect.cli.options import Json
from recollect.cli.output import Output
from recollect.errors import ArgumentError

app = typer.Typer(
    cls=Guarded,
    name="recollect",
    help="Recall and replay what agents live through: workspaces (hot), snapshots, replay buffers (cold).",
    invoke_without_command=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(workspace.app, name="workspace")
app.add_typer(cache.app, name="cache")
app.add_typer(versions.app, name="branch")
app.command("snapshot")(promote.snapshot)
app.command("log")(buffer.log)
app.command("tag")(versions.tag)
app.command("diff")(versions.diff)
app.command("compact")(upkeep.compact)
app.command("cleanup")(upkeep.cleanup)
app.command("tail")(tail.tail)
app.command("recall")(recall.recall)
app.command("verify")(verify.verify)
app.command("doctor")(doctor.doctor)
app.command("demo")(demo.demo)


@app.callback()
def root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Print the release and stop.")] = False,
    json: Json = False,
) -> None:
    """Handles what stands before the command."""
    if version:
        out = Output(context, json)
        if out.json:
            out.document({"recollect": recollect.__version__, "python": platform.python_version()})
        else:
            out.line(f"recollect {recollect.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        if json:
            raise ArgumentError("no command", remedy="See recollect --help")
        typer.echo(context.get_help())


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command.

    Returns:
        0; the `exit_code` of the recollect error; 2 for wrong usage; 130 after Ctrl-C.
    """
    args = list(sys.argv[1:] if argv is None else argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            with contextlib.suppress(ValueError, OSError):
                stream.reconfigure(errors="backslashreplace")
    json = "--json" in args
    try:
        # Typer prints usage errors in a box, which suits people only.
        result = app(args=args, prog_name="recollect", standalone_mode=not json)
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except KeyboardInterrupt:
        return 130
    except typer.Abort:
        return 1
    except Exception as error:
        words = getattr(error, "format_message", None)
        if words is None:
            raise
        report(ArgumentError(words(), remedy="See --help"), json=True)
        return ArgumentError.exit_code
    return result if isinstance(result, int) else 0
