"""The one place where exceptions become a line on stderr and an exit code. Nothing gets past it as a traceback."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Any

import typer
from typer.core import TyperGroup

from recollect.cli.output import dump, printable
from recollect.errors import RecollectError, StoreError

INTERRUPTED = 130
BROKEN_PIPE = 141
"""What a shell reports of a program that a closed pipe ended."""
DEBUG = "RECOLLECT_DEBUG"


class Guarded(TyperGroup):
    """The root command: runs the others and reports what they raise."""

    def invoke(self, ctx: Any) -> Any:
        json = wants_json(ctx)
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
        except KeyboardInterrupt:
            raise typer.Exit(INTERRUPTED) from None
        except BrokenPipeError:
            silence()
            raise typer.Exit(BROKEN_PIPE) from None
        except RecollectError as error:
            report(error, json=json)
            raise typer.Exit(error.exit_code) from None
        except Exception as error:
            if isinstance(error, typer.Exit | typer.Abort) or hasattr(error, "format_message"):
                raise
            if os.environ.get(DEBUG):
                raise
            wrapped = unexpected(error)
            report(wrapped, json=json)
            raise typer.Exit(wrapped.exit_code) from None
        return result


def wants_json(ctx: Any) -> bool:
    """Whether `--json` stands anywhere in the command that is about to run."""
    rest = [*getattr(ctx, "_protected_args", ()), *ctx.args]
    return bool(ctx.params.get("json")) or "--json" in rest


def report(error: RecollectError, *, json: bool) -> None:
    """Prints an error as one line on stderr."""
    if json:
        value = None if error.value is None else printable(str(error.value))
        described = {"kind": error.kind, "message": error.message, "value": value, "remedy": error.remedy}
        line = dump({"error": described})
    else:
        line = f"error: {printable(' '.join(error.text.split()))}"
    with contextlib.suppress(BrokenPipeError):
        sys.stderr.write(line + "\n")


def unexpected(error: Exception) -> RecollectError:
    """The operating system's refusals, and our own bugs, in the same words as every other error."""
    if isinstance(error, OSError) and error.strerror:
        where = f" {os.fspath(error.filename)!r}" if isinstance(error.filename, str) else ""
        return StoreError(
            f"{error.strerror.lower()}:{where}" if where else error.strerror.lower(),
            remedy="Check that the path exists and may be read and written",
        )
    return RecollectError(
        f"unexpected {type(error).__name__}: {error}",
        remedy=f"This is a bug in recollect; run it again with {DEBUG}=1 for a traceback and report it",
    )


def silence() -> None:
    """Points stdout at nothing, so that the interpreter's last flush says nothing either."""
    with contextlib.suppress(OSError, ValueError):
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)
