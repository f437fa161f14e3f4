"""What commands print: one JSON document, or lines and tables for people. Only results go to stdout."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import PurePath
from typing import TYPE_CHECKING, Any, TextIO

import typer

if TYPE_CHECKING:
    from rich.console import Console

LONGEST_ARRAY = 16
"""Arrays of more numbers than this are described in JSON, not listed."""
PIPE_WIDTH = 500
"""Columns of a stream that is no terminal: tables stay one line a row there."""


class Output:
    """Where a command's results go.

    Attributes:
        json: whether the reader is a program.
    """

    def __init__(self, context: typer.Context, json: bool) -> None:
        self.json = json or bool(context.find_root().params.get("json"))

    def document(self, value: Any) -> None:
        """Prints one JSON document, on one line."""
        self.line(dump(value))

    def line(self, text: str) -> None:
        """Prints a line as it is."""
        sys.stdout.write(text + "\n")

    def flush(self) -> None:
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """Prints a remark on stderr."""
        sys.stderr.write(printable(text) + "\n")

    def confirm(self, question: str) -> bool:
        """Asks on stderr; anything but a yes is a no."""
        sys.stderr.write(f"{printable(question)} [y/N] ")
        sys.stderr.flush()
        return sys.stdin.readline().strip().lower() in ("y", "yes")

    def table(
        self, title: str, columns: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()
    ) -> None:
        """Prints a table; the columns named in `right` are numbers."""
        from rich import box
        from rich.table import Table

        table = Table(
            title=title or None, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold", pad_edge=False
        )
        for name in columns:
            table.add_column(name, justify="right" if name in right else "left", overflow="fold")
        for row in rows:
            table.add_row(*(printable(cell) for cell in row))
        console(sys.stdout).print(table)


def console(stream: TextIO) -> Console:
    """A rich console that prints text as it is: no markup, no emoji, no highlighting."""
    from rich.console import Console

    fixed = None if stream.isatty() or os.environ.get("COLUMNS") else PIPE_WIDTH
    return Console(file=stream, width=fixed, markup=False, emoji=False, highlight=False, soft_wrap=False)


def dump(value: Any) -> str:
    """One line of strict JSON."""
    return json.dumps(plain(value), allow_nan=False)


def plain(value: Any) -> Any:
    """`value` as JSON holds it.

    Arrays of at most 16 numbers become lists, longer ones `{"dtype", "shape"}`; NaN becomes null, the infinities the
    texts "Infinity" and "-Infinity"; moments are ISO 8601 in UTC.
    """
    if isinstance(value, bool | int | str) or value is None:
        return value
    if isinstance(value, float):
        if math.isnan(value):
            return None
        return value if math.isfinite(value) else ("Infinity" if value > 0 else "-Infinity")
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat()
    if isinstance(value, PurePath):
        return str(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if hasattr(value, "dtype") and hasattr(value, "tolist"):
        if value.size > LONGEST_ARRAY:
            return {"dtype": str(value.dtype), "shape": list(value.shape)}
        return plain(value.tolist())
    return [plain(v) for v in value]


def printable(text: str) -> str:
    """Text that cannot move a terminal's cursor: control characters are spelt out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)


def count(number: int, noun: str) -> str:
    """`1 row`, `2,000 rows`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def size(number: float) -> str:
    """Bytes for people, in powers of 1024."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            return f"{number:.0f} {unit}" if unit == "B" else f"{number:.1f} {unit}"
        number /= 1024
    return f"{number:.1f} TiB"


def moment(time: datetime, *, milliseconds: bool = False) -> str:
    """A time in UTC for people."""
    text = time.astimezone(UTC).isoformat(sep=" ", timespec="milliseconds" if milliseconds else "seconds")
    return text.replace("+00:00", "Z")
