"""`recollect branch`, `recollect tag` and `recollect diff`: a buffer's versions."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING, Annotated

import typer

from recollect.cli.options import Json, OnBranch, StorageOptions, Uri, location, storage_options
from recollect.cli.output import Output, moment, plain

if TYPE_CHECKING:
    from recollect.buffer import Buffer
    from recollect.versions.diff import Diff, GroupShift
    from recollect.versions.shift import Shift, Summary

app = typer.Typer(help="Branches of a replay buffer.", no_args_is_help=True)
BranchName = Annotated[str, typer.Argument(help="The branch.", show_default=False)]
Which = Annotated[
    str,
    typer.Argument(help="A tag, a version's number, or a moment such as 2026-05-01T12:00+02:00.", show_default=False),
]
At = Annotated[
    str | None,
    typer.Option(metavar="VERSION", help="A tag, a number or a moment; the newest without it.", show_default=False),
]


def which(buffer: Buffer, text: str | None) -> str | int | datetime | None:
    """What a version is called in a shell: a tag before anything else, then a number, then a moment in ISO 8601."""
    if text is None or text in buffer.tags():
        return text
    if text.isdecimal():
        return int(text)
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return text


@app.command("create")
def create(
    context: typer.Context,
    uri: Uri,
    name: BranchName,
    at: At = None,
    branch: OnBranch = None,
    storage_option: StorageOptions = None,
    json: Json = False,
) -> None:
    """Make a branch that begins with a version. Snapshots with --branch land on it."""
    from recollect.buffer import open_buffer

    out = Output(context, json)
    with open_buffer(location(uri), branch=branch, storage_options=storage_options(storage_option)) as buffer:
        buffer.branch(name, at=which(buffer, at))
        made = next(b for b in buffer.branches() if b.name == name)
    if out.json:
        out.document({"uri": buffer.uri, **plain(made)})
    else:
        out.line(f"{buffer.uri}: branch {name} begins with version {made.version} of {made.parent}")


@app.command("list")
def show(context: typer.Context, uri: Uri, storage_option: StorageOptions = None, json: Json = False) -> None:
    """List the branches of a replay buffer."""
    from recollect.buffer import open_buffer

    out = Output(context, json)
    with open_buffer(location(uri), storage_options=storage_options(storage_option)) as buffer:
        found = buffer.branches()
    if out.json:
        out.document({"uri": buffer.uri, "branches": plain(found)})
    elif not found:
        out.note(f"{buffer.uri} has no branch but main")
    else:
        rows = [(b.name, b.parent, str(b.version), moment(b.created)) for b in found]
        out.table("", ("branch", "began on", "with version", "created"), rows, right=("with version",))


@app.command("delete")
def delete(
    context: typer.Context,
    uri: Uri,
    name: BranchName,
    with_tags: Annotated[bool, typer.Option("--with-tags", help="Also where tags name versions of it.")] = False,
    storage_option: StorageOptions = None,
    json: Json = False,
) -> None:
    """Delete a branch and the versions that only it has. They cannot be brought back."""
    from recollect.buffer import open_buffer

    out = Output(context, json)
    with open_buffer(location(uri), storage_options=storage_options(storage_option)) as buffer:
        tags = buffer.delete_branch(name, with_tags=with_tags)
    if out.json:
        out.document({"uri": buffer.uri, "branch": name, "tags": tags})
    else:
        out.line(f"{buffer.uri}: branch {name} is deleted{', with tag ' + ', '.join(tags) if tags else ''}")


def tag(
    context: typer.Context,
    uri: Uri,
    name: Annotated[str, typer.Argument(help="The tag.", show_default=False)],
    at: At = None,
    branch: OnBranch = None,
    storage_option: StorageOptions = None,
    json: Json = False,
) -> None:
    """Give a version of a replay buffer a name. Cleanup keeps it then."""
    from recollect.buffer import open_buffer

    out = Output(context, json)
    with open_buffer(location(uri), branch=branch, storage_options=storage_options(storage_option)) as buffer:
        version = buffer.tag(name, which(buffer, at))
    if out.json:
        out.document({"uri": buffer.uri, "tag": name, "version": version})
    else:
        out.line(f"{buffer.uri}: {name} is version {version}")


def diff(
    context: typer.Context,
    uri: Uri,
    a: Which,
    b: Which,
    branch: OnBranch = None,
    to_branch: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="The branch of the second version; that of the first without it."),
    ] = None,
    by: Annotated[
        list[str] | None,
        typer.Option("--by", metavar="NAME", help="Group by this fact or field; may be repeated.", show_default=False),
    ] = None,
    storage_option: StorageOptions = None,
    json: Json = False,
) -> None:
    """Show how one version of a replay buffer differs from another."""
    from recollect.buffer import open_buffer

    out = Output(context, json)
    with open_buffer(location(uri), branch=branch, storage_options=storage_options(storage_option)) as buffer:
        second = buffer if to_branch is None else buffer.on(to_branch)
        found = buffer.diff(which(buffer, a), which(second, b), branch=to_branch, by=by)
    if out.json:
        out.document(plain(found))
    else:
        _print(out, found)


def _print(out: Output, d: Diff) -> None:
    out.line(f"{d.a} -> {d.b}")
    out.line(f"rows      {d.rows_a:,} -> {d.rows_b:,}: {d.rows_added:,} added, {d.rows_removed:,} removed")
    out.line(
        f"episodes  {d.episodes_a:,} -> {d.episodes_b:,}: {d.episodes_added:,} added, {d.episodes_removed:,} removed, "
        f"{d.episodes_changed:,} of another length"
    )
    out.line(f"facts     {d.facts_a:,} -> {d.facts_b:,}")
    for line in d.schema:
        out.line(f"schema    {line}")
    shifts = {"(return of an episode)": d.returns, "(length of an episode)": d.lengths, **d.fields}
    out.table(
        "",
        ("field", "nulls", "mean", "std", "5%", "50%", "95%", "PSI"),
        [(name, *_cells(s)) for name, s in shifts.items()],
        right=("nulls", "mean", "std", "5%", "50%", "95%", "PSI"),
    )
    for name, groups in d.groups.items():
        out.table(
            "", (name, "rows", "episodes", "mean return"), [_group(g) for g in groups],
            right=("rows", "episodes", "mean return"),
        )  # fmt: skip


def _cells(s: Shift) -> tuple[str, ...]:
    def pair(of: str, k: int | None = None) -> str:
        return f"{_value(s.a, of, k)} -> {_value(s.b, of, k)}"

    index = "-" if s.psi is None else f"{s.psi:.3f}"
    return (
        pair("nulls"),
        pair("mean"),
        pair("std"),
        pair("quantiles", 0),
        pair("quantiles", 2),
        pair("quantiles", 4),
        index,
    )


def _value(summary: Summary | None, of: str, k: int | None) -> str:
    value = None if summary is None else getattr(summary, of)
    if k is not None:
        value = value[k] if value else None
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _group(g: GroupShift) -> tuple[str, ...]:
    return (
        "-" if g.value is None else str(g.value),
        f"{g.rows_a:,} -> {g.rows_b:,}",
        f"{g.episodes_a:,} -> {g.episodes_b:,}",
        f"{_value(g.returns.a, 'mean', None)} -> {_value(g.returns.b, 'mean', None)}",
    )
