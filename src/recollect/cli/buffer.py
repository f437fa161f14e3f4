"""`recollect log`: the versions of a replay buffer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from recollect.cli.options import Json, OnBranch, StorageOptions, location, storage_options
from recollect.cli.output import Output, moment
from recollect.cli.versions import which

if TYPE_CHECKING:
    from recollect.buffer import Version


def log(
    context: typer.Context,
    uri: Annotated[
        str, typer.Argument(help="The replay buffer: a path, file:// or s3://bucket/name.", show_default=False)
    ],
    branch: OnBranch = None,
    as_of: Annotated[
        str | None,
        typer.Option(
            metavar="VERSION",
            help="Only what was there by this version: a tag, a number, or a moment such as 2026-05-01T12:00+02:00.",
            show_default=False,
        ),
    ] = None,
    storage_option: StorageOptions = None,
    json: Json = False,
) -> None:
    """Show the versions of a replay buffer, oldest first."""
    from recollect.buffer import open_buffer

    out = Output(context, json)
    with open_buffer(location(uri), branch=branch, storage_options=storage_options(storage_option)) as buffer:
        versions = buffer.versions()
        if as_of is not None:
            last = buffer.number(which(buffer, as_of))
            versions = [v for v in versions if v.version <= last]
        if out.json:
            out.document({"uri": buffer.uri, "versions": [_describe(v) for v in versions]})
            return
        if not versions:
            out.note(f"{buffer.uri} has no versions yet; snapshot a workspace to it")
            return
        out.table(
            "",
            ("version", "tags", "time", "rows", "added", "from", "branch", "commit", "episodes", "mean return"),
            [
                (
                    str(v.version), ", ".join(v.tags) or "-", moment(v.time), f"{v.rows:,}", f"{v.rows_added:+,}",
                    _source(v), v.branch, (v.commit or "-")[:12],
                    f"{_returns(v)['count']:,}", _mean(v),
                )
                for v in versions
            ],
            right=("version", "rows", "added", "episodes", "mean return"),
        )  # fmt: skip


def _source(version: Version) -> str:
    """Where a version's change came from: a workspace, a column, or a deletion and its reason."""
    if version.reason is not None:
        return f"deleted: {version.reason}"
    return version.workspace if version.column is None else f"column {version.column}"


def _returns(version: Version) -> dict[str, Any]:
    """How many episodes ended, how many of their returns are NaN, and mean, deviation and range of the others."""
    sums = version.statistics["returns"]
    counts = {"count": int(sums["count"] + sums["nans"]), "nans": int(sums["nans"])}
    return {**counts, **{k: sums[k] for k in ("mean", "std", "min", "max")}}


def _mean(version: Version) -> str:
    """The mean return, and how many NaN returns it leaves out."""
    returns = _returns(version)
    left = f" ({returns['nans']} NaN)" if returns["nans"] else ""
    return _number(returns["mean"]) + left


def _describe(version: Version) -> dict[str, Any]:
    returns = _returns(version)
    return {
        "version": version.version,
        "tags": list(version.tags),
        "time": version.time,
        "rows": version.rows,
        "rows_added": version.rows_added,
        "branch": version.branch,
        "parent": version.parent,
        "workspace": version.workspace,
        "workspace_id": version.workspace_id,
        "cut": version.cut.to_dict(),
        "schema": version.schema,
        "commit": version.commit,
        "column": version.column,
        "reason": version.reason,
        "deleted": [{"writer": str(e.writer), "start": e.start, "stop": e.stop} for e in version.deleted],
        "finished_only": version.finished_only,
        "where": version.where,
        "held_rows": version.held_rows,
        "open_episodes": version.open_episodes,
        "mean_return": returns["mean"],
        "returns": returns,
    }


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
