"""`recollect doctor`: whether this machine can run recollect, and what to do where it cannot."""

from __future__ import annotations

import platform
from dataclasses import asdict
from typing import Annotated

import typer

from recollect.cli.options import Json, StorageOptions, location, storage_options
from recollect.cli.output import Output, size


def doctor(
    context: typer.Context,
    store: Annotated[
        str | None,
        typer.Option(
            metavar="URI",
            help="Check a replay buffer's location too: credentials, rights, conditional put. Writes a few bytes.",
            show_default=False,
        ),
    ] = None,
    storage_option: StorageOptions = None,
    json: Json = False,
) -> None:
    """Check this machine: versions, places, file systems, compiler. Exits with 1 when a check fails."""
    from recollect.cli import checks
    from recollect.cli.stores import check_store

    out = Output(context, json)
    home, cache = checks.places()
    found, readable = checks.workspaces()
    results = [
        checks.writable("home", home, "RECOLLECT_HOME"),
        checks.local(home),
        checks.roomy("home", home, "RECOLLECT_HOME"),
        readable,
        checks.writable("cache", cache, "RECOLLECT_CACHE"),
        checks.roomy("cache", cache, "RECOLLECT_CACHE"),
        checks.compiler(),
        checks.store(),
        checks.populate(),
    ]
    if store is not None:
        results += check_store(location(store), storage_options(storage_option))
    fine = all(c.level != "failed" for c in results)
    versions = checks.versions()
    if out.json:
        out.document(
            {
                "ok": fine,
                "python": platform.python_version(),
                "platform": platform.platform(),
                "versions": versions,
                "home": asdict(home) | {"workspaces": found},
                "cache": asdict(cache),
                "checks": results,
            }
        )
    else:
        out.line(f"{'python':<11} {platform.python_version()}")
        out.line(f"{'platform':<11} {platform.platform()}")
        for name, version in versions.items():
            out.line(f"{name:<11} {version or 'not installed'}")
        for name, place in (("home", home), ("cache", cache)):
            free = "free space unknown" if place.free_bytes is None else f"{size(place.free_bytes)} free"
            out.line(f"{name:<11} {place.path} (from {place.source}), {place.file_system}, {free}")
        out.line(f"{'workspaces':<11} {found}")
        out.line("")
        for c in results:
            remedy = f". {c.remedy}" if c.remedy else ""
            out.line(f"{c.level:<9}{c.name}: {c.text}{remedy}")
    if not fine:
        raise typer.Exit(1)
