"""`recollect compact`, `recollect cleanup`, and `recollect verify` of a buffer."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from recollect.cli.options import Json, OnBranch, StorageOptions, Uri, duration, location, storage_options
from recollect.cli.output import Output, count, moment, plain, size
from recollect.errors import CorruptionError


def compact(
    context: typer.Context, uri: Uri, branch: OnBranch = None, storage_option: StorageOptions = None, json: Json = False
) -> None:
    """Merge a replay buffer's small data files. Snapshots do so by themselves once there are many."""
    from recollect.buffer import open_buffer

    out = Output(context, json)
    with open_buffer(location(uri), branch=branch, storage_options=storage_options(storage_option)) as buffer:
        done = buffer.compact()
    if out.json:
        out.document({"uri": buffer.uri, **plain(done)})
    elif done.version is None:
        out.line(f"{buffer.uri} stays as it is: {done.note}")
    else:
        out.line(
            f"{buffer.uri} version {done.version}: {done.fragments_before} data files are {done.fragments_after} now; "
            f"{count(done.rows, 'row')} ({size(done.bytes)}) written again"
        )


def cleanup(
    context: typer.Context,
    uri: Uri,
    older_than: Annotated[
        str, typer.Option(metavar="AGE", help="Remove versions of at least this age, such as 7d, 12h or 30m.")
    ] = "7d",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go; remove nothing.")] = False,
    branch: OnBranch = None,
    storage_option: StorageOptions = None,
    json: Json = False,
) -> None:
    """Remove old versions of a replay buffer that no tag and no pin names. They cannot be brought back."""
    from recollect.buffer import open_buffer

    out = Output(context, json)
    with open_buffer(location(uri), branch=branch, storage_options=storage_options(storage_option)) as buffer:
        done = buffer.cleanup(duration(older_than), dry_run=dry_run)
    if out.json:
        out.document({"uri": buffer.uri, **plain(done)})
        return
    would = "would free" if dry_run else "freed"
    out.line(
        f"{buffer.uri}: {would} {size(done.bytes)}: {count(len(done.versions), 'version')}, "
        f"{count(done.history_files, 'leftover file')} and {count(done.rows, 'leftover row')}"
    )
    for version, tags in sorted(done.tagged.items()):
        out.line(f"kept version {version}: tagged {', '.join(tags)}")
    for version, until in sorted(done.pinned.items()):
        out.line(f"kept version {version}: pinned until {moment(datetime.fromtimestamp(until, UTC))}")
    for version, names in sorted(done.branched.items()):
        out.line(f"kept version {version}: branch {', '.join(names)} began with it")
    out.line(f"kept version {done.newest}: the newest")
    if done.young:
        out.line(f"kept {count(done.young, 'version')} younger than {older_than}")


def is_buffer(text: str) -> bool:
    """Whether `verify` is asked about a buffer: a URI, or a folder that holds one."""
    return "://" in text or ("/" in text and (Path(text).expanduser() / "steps.lance").is_dir())


def verify_buffer(
    out: Output, uri: str, options: dict[str, str] | None, repair: bool, branch: str | None = None
) -> None:
    """Checks a buffer, after going back from a torn newest version where that is asked for."""
    from recollect.buffer import open_buffer, repair_buffer

    repaired = repair_buffer(uri) if repair else []
    with open_buffer(uri, branch=branch, storage_options=options) as buffer:
        report = buffer.verify()
    report.repaired = repaired
    if out.json:
        out.document({"ok": report.ok, **plain(report)})
    else:
        for line in repaired:
            out.line(f"repaired   {line}")
        for f in report.findings:
            out.line(f"lost       {f.where}: {f.what}. {f.remedy}")
        out.line(
            f"{'ok' if report.ok else 'damaged':<11}{report.uri}: {count(report.rows, 'row')} and "
            f"{count(report.facts, 'fact')} in {count(report.fragments, 'data file')}, "
            f"{count(report.promotions, 'snapshot')} and {count(report.tags, 'tag')} checked"
        )
    if not report.ok:
        raise typer.Exit(CorruptionError.exit_code)
