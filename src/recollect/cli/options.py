"""Arguments and options that several commands take."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import Annotated, TypeAlias

import typer

from recollect.errors import ArgumentError

Json: TypeAlias = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout instead of text.")]
Name: TypeAlias = Annotated[
    str, typer.Argument(help="The workspace: a name under RECOLLECT_HOME, or a path with a slash.", show_default=False)
]
Where: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="CONDITION",
        help="Only steps that this is true of, such as \"reward > 0 and episode.task = 'hopper'\".",
        show_default=False,
    ),
]
StorageOptions: TypeAlias = Annotated[
    list[str] | None,
    typer.Option(
        "--storage-option",
        metavar="KEY=VALUE",
        help="An option of the object store, such as region=eu-west-1; may be repeated.",
        show_default=False,
    ),
]


def location(text: str) -> str:
    """A buffer's address as it was given. Raises ArgumentError for an empty one, which would be the current folder."""
    if not text.strip():
        raise ArgumentError(
            "the buffer's address is empty", value=text, remedy="Pass a path, file:// or s3://bucket/name"
        )
    return text


def storage_options(given: Sequence[str] | None) -> dict[str, str] | None:
    """`["k=v", …]` as a mapping, None for none. Raises ArgumentError where the equals sign or the key is missing."""
    out = {}
    for text in given or ():
        key, equals, value = text.partition("=")
        if not (key and equals):
            raise ArgumentError("a storage option reads KEY=VALUE", value=text, remedy="Write region=eu-west-1")
        out[key] = value
    return out or None


KeepRows: TypeAlias = Annotated[
    int | None,
    typer.Option("--keep-rows", metavar="N", help="Keep the newest N rows; older segments may go.", show_default=False),
]
KeepBytes: TypeAlias = Annotated[
    int | None,
    typer.Option("--keep-bytes", metavar="N", help="Keep about N bytes on disk.", show_default=False),
]
KeepAge: TypeAlias = Annotated[
    float | None,
    typer.Option("--keep-age", metavar="SECONDS", help="Keep what is not older than this.", show_default=False),
]
DropUnpromoted: TypeAlias = Annotated[
    bool,
    typer.Option("--drop-unpromoted", help="Let rows go that the home buffer does not hold. They are counted."),
]
Home: TypeAlias = Annotated[
    str | None,
    typer.Option(
        metavar="URI",
        help="The buffer whose rows may go once it holds them; the first snapshot's target without it.",
        show_default=False,
    ),
]
OnBranch: TypeAlias = Annotated[
    str | None,
    typer.Option("--branch", metavar="NAME", help="The branch of the buffer; main without it.", show_default=False),
]
Uri: TypeAlias = Annotated[
    str, typer.Argument(help="The replay buffer: a path, file:// or s3://bucket/name.", show_default=False)
]


def duration(text: str) -> timedelta:
    """`7d`, `12h`, `30m`, `45s`. Raises ArgumentError for anything else."""
    number, unit = text[:-1], text[-1:]
    if not (number.isascii() and number.isdecimal() and unit in _UNITS and len(number) <= 6):
        raise ArgumentError("a duration is a whole number and a unit", value=text, remedy="Write 7d, 12h, 30m or 45s")
    return timedelta(seconds=int(number) * _UNITS[unit])


_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
