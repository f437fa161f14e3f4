"""`recollect workspace create | list | show | evolve | delete`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypeAlias

import typer

from recollect.cli.options import DropUnpromoted, Home, Json, KeepAge, KeepBytes, KeepRows, Name, location
from recollect.cli.output import Output, count, moment, plain, size
from recollect.errors import ArgumentError, CorruptionError

if TYPE_CHECKING:
    from recollect.hot.home import Description
    from recollect.hot.recovery.recover import Recovery
    from recollect.hot.retention.retain import Retention
    from recollect.recall.stats import WorkspaceStats
    from recollect.schema import Schema
    from recollect.workspace import Workspace

Durability: TypeAlias = Literal["process", "interval", "step"]
Preset: TypeAlias = Literal["llm-agent"]

app = typer.Typer(help="Create, list, show, evolve and delete workspaces.", no_args_is_help=True)


@app.command("create")
def create(
    context: typer.Context,
    name: Name,
    env: Annotated[
        str | None,
        typer.Option(metavar="GYM_ID", help="Take the schema of this gymnasium environment.", show_default=False),
    ] = None,
    schema: Annotated[
        Path | None, typer.Option(metavar="FILE.toml", help="Read the schema from this TOML file.", show_default=False)
    ] = None,
    preset: Annotated[
        Preset | None, typer.Option(help="Take a schema that comes with recollect.", show_default=False)
    ] = None,
    durability: Annotated[
        Durability,
        typer.Option(help="What survives power loss: what was synced, what is 0.25 s old, or every append."),
    ] = "interval",
    keep_rows: KeepRows = None,
    keep_bytes: KeepBytes = None,
    keep_age: KeepAge = None,
    drop_unpromoted: DropUnpromoted = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """Create a workspace. Without a schema, the first writer fixes it; without a limit, it keeps everything."""
    from recollect.hot.keep import Keep
    from recollect.opening import create_workspace

    out = Output(context, json)
    if sum(x is not None for x in (env, schema, preset)) > 1:
        raise ArgumentError("--env, --schema and --preset exclude each other", remedy="Pass one of them")
    keep = Keep(keep_rows, keep_bytes, keep_age, "drop" if drop_unpromoted else "refuse")
    at = None if home is None else location(home)
    with create_workspace(name, _schema(env, schema, preset), durability=durability, keep=keep, home=at) as ws:
        made = ws.schema
        if out.json:
            out.document(_identity(ws) | {"schema": _describe(made)})
            return
        fields = "schema left to the first writer" if made is None else count(len(made.leaves), "field")
        out.line(f"created workspace {ws.name} ({fields}) at {ws.path}")


@app.command("keep")
def keep_(
    context: typer.Context,
    name: Name,
    keep_rows: KeepRows = None,
    keep_bytes: KeepBytes = None,
    keep_age: KeepAge = None,
    drop_unpromoted: DropUnpromoted = False,
    home: Home = None,
    json: Json = False,
) -> None:
    """Change what a workspace keeps, to exactly what the options say: without a limit, everything from now on."""
    from recollect.hot.keep import Keep
    from recollect.opening import open_workspace

    out = Output(context, json)
    keep = Keep(keep_rows, keep_bytes, keep_age, "drop" if drop_unpromoted else "refuse")
    with open_workspace(name) as ws:
        if home is not None:
            ws.set_home(location(home))
        ws.set_keep(keep)
        went = ws.evict()
        if out.json:
            out.document(_identity(ws) | {"evicted_rows": went.rows})
            return
        out.line(f"workspace {ws.name} keeps {keep}")
        if went.rows:
            out.line(f"{count(went.rows, 'row')} evicted, {went.dropped_rows:,} of them not promoted")


def _schema(env: str | None, file: Path | None, preset: str | None) -> Schema | None:
    if env is not None:
        from recollect.cli.environment import schema_of

        return schema_of(env)
    from recollect.schema import Schema
    from recollect.schema.presets import PRESETS

    if file is not None:
        return Schema.from_toml(file)
    return None if preset is None else PRESETS[preset]()


@app.command("list")
def list_(context: typer.Context, json: Json = False) -> None:
    """List the workspaces under RECOLLECT_HOME."""
    from datetime import UTC, datetime

    from recollect.hot import home

    out = Output(context, json)
    found: list[dict[str, Any]] = []
    for path in home.list_workspaces():
        entry: dict[str, Any] = {"name": path.name, "path": path, "live_writers": len(home.live_writers(path))}
        entry |= {"id": None, "durability": None, "keep": None, "created": None, "fields": None, "damaged": False}
        found.append(entry)
        try:
            d = home.describe(path)
            entry |= _identity(d) | {"created": datetime.fromtimestamp(d.created_ns / 1e9, tz=UTC)}
            schema = home.read_schema(path)
            entry["fields"] = None if schema is None else len(schema.leaves)
        except CorruptionError:
            entry["damaged"] = True
    if out.json:
        out.document({"home": home.home_folder(), "workspaces": found})
        return
    if not found:
        out.note(f"no workspaces under {home.home_folder()}; create one: recollect workspace create NAME")
        return
    rows = []
    for w in found:
        fields = "not fixed yet" if w["fields"] is None else str(w["fields"])
        fields = "damaged" if w["damaged"] else fields
        created = moment(w["created"]) if w["created"] else "?"
        rows.append((w["name"], created, w["durability"] or "?", fields, str(w["live_writers"])))
    out.table("", ("name", "created", "durability", "fields", "live writers"), rows, right=("live writers",))


@app.command("show")
def show(context: typer.Context, name: Name, json: Json = False) -> None:
    """Show a workspace's schema, its counts and its writers."""
    from recollect.opening import open_workspace

    out = Output(context, json)
    with open_workspace(name) as ws:
        schema, stats = ws.schema, ws.stats()
        if out.json:
            counts: dict[str, Any] = plain(stats)
            for writer in counts["writers"]:
                writer["writer"] = str(writer["writer"])
            sealed = [plain(r) | {"writer": str(r.writer), "lost": _lost_ids(r)} for r in ws.recovered]
            out.document(_identity(ws) | {"schema": _describe(schema), "stats": counts, "recovered": sealed})
            return
        for label, text in (("workspace", ws.name), ("id", ws.id), ("path", ws.path), ("durability", ws.durability)):
            out.line(f"{label:<12}{text}")
        out.line(f"{'keeps':<12}{ws.keep}")
        _show_schema(out, schema)
        _show_stats(out, stats)
        for r in ws.recovered:
            ids = _lost_ids(r)
            lost = f"; {count(r.lost_rows, 'damaged row')} cut off, {ids[0]} to {ids[1]}" if ids else ""
            facts = f"; {count(r.lost_facts, 'damaged fact')} cut off" if r.lost_facts else ""
            files = f"; {count(r.lost_segments, 'segment')} could not be read" if r.lost_segments else ""
            out.note(f"writer {r.writer} had died: its log is sealed at {count(r.rows, 'row')}{lost}{facts}{files}")


def _lost_ids(recovery: Recovery) -> tuple[str, str] | None:
    """The first and the last id that recovery cut off."""
    from recollect.view import StepId

    lost = recovery.lost
    return None if lost is None else (str(StepId(lost.writer, lost.start)), str(StepId(lost.writer, lost.stop - 1)))


def _show_schema(out: Output, schema: Schema | None) -> None:
    if schema is None:
        out.line("schema      not fixed yet: the first writer fixes it")
        return
    rows = []
    for leaf in schema.leaves:
        field: Any = leaf.field
        dtype = str(getattr(field, "dtype", ""))
        shape = "x".join(map(str, getattr(field, "shape", ()))) or "-"
        if getattr(field, "stack", 1) > 1:
            shape = f"{field.stack} planes of {shape}"
        default = getattr(field, "default", None)
        shown = "-" if default is None else repr(default)
        rows.append((leaf.path, field.type, dtype, shape, leaf.role or "-", "yes" if field.optional else "no", shown))
    out.line(f"{'schema':<12}{schema.fingerprint}")
    out.line(f"{'facts':<12}{', '.join(schema.episode)}")
    out.table("", ("field", "type", "dtype", "shape", "role", "optional", "default"), rows)


def _show_stats(out: Output, stats: WorkspaceStats) -> None:
    out.line(
        f"{'holds':<12}{count(stats.steps, 'step')} in {count(stats.episodes, 'episode')}, "
        f"{count(stats.rows, 'row')}, {count(stats.facts, 'fact')}, {size(stats.disk_bytes)} on disk"
    )
    out.line(
        f"{'drawable':<12}{stats.drawable:,}; not: {stats.undrawable_open:,} at the end of an open episode, "
        f"{stats.undrawable_truncated:,} truncated without a next observation"
    )
    if stats.interrupted:
        out.line(f"{'interrupted':<12}{count(stats.interrupted, 'episode')}")
    if stats.nan_rewards:
        out.line(f"{'NaN rewards':<12}{stats.nan_rewards:,}")
    if stats.undrawable_beheaded:
        out.line(f"{'':<12}{stats.undrawable_beheaded:,} whose frame stacks reach back to evicted steps")
    if stats.retention is not None:
        _show_retention(out, stats.retention)
    if stats.writers:
        out.table(
            "",
            ("writer", "agent", "appended", "visible", "durable", "facts", "live"),
            [
                (
                    str(w.writer),
                    w.agent or "-",
                    f"{w.appended:,}",
                    f"{w.visible:,}",
                    f"{w.durable:,}",
                    f"{w.facts:,}",
                    "yes" if w.live else "no",
                )
                for w in stats.writers
            ],
            right=("writer", "appended", "visible", "durable", "facts"),
        )


def _show_retention(out: Output, kept: Retention) -> None:
    if kept.home is not None:
        out.line(f"{'home':<12}{kept.home}")
    for target in kept.targets:
        out.line(f"{'promoted':<12}to {target.uri} version {target.version}; {count(target.rows, 'row')} not there yet")
    if kept.evicted_rows or kept.evicted_facts:
        out.line(
            f"{'evicted':<12}{count(kept.evicted_rows, 'row')} and {count(kept.evicted_facts, 'fact')}, of which "
            f"{kept.dropped_rows:,} and {kept.dropped_facts:,} were not promoted"
        )
    if kept.over_limit:
        waiting = f"{count(kept.waiting_rows, 'row')} ({size(kept.waiting_bytes)})"
        out.line(f"{'over limit':<12}{waiting} beyond it wait for a snapshot to the home buffer")
    if kept.problem:
        out.line(f"{'retention':<12}{kept.problem}")


@app.command("evolve")
def evolve(
    context: typer.Context,
    name: Name,
    schema: Annotated[
        Path, typer.Option(metavar="FILE.toml", help="Read the new schema from this TOML file.", show_default=False)
    ],
    json: Json = False,
) -> None:
    """Give a workspace the next version of its schema. What was written before stays readable."""
    from recollect.opening import open_workspace
    from recollect.schema import Schema

    out = Output(context, json)
    wanted = Schema.from_toml(schema)
    with open_workspace(name) as ws:
        changes = ws.evolve(wanted)
        if out.json:
            out.document(_identity(ws) | {"schema": _describe(ws.schema), "changes": plain(changes)})
            return
        for change in changes:
            out.line(change.text)
        made = f"evolved with {count(len(changes), 'change')}" if changes else "has that schema already"
        out.line(f"workspace {ws.name} {made} ({wanted.fingerprint})")


@app.command("delete")
def delete(
    context: typer.Context,
    name: Name,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Delete without asking.")] = False,
    json: Json = False,
) -> None:
    """Delete a workspace. Buffers that it was promoted to stay."""
    from recollect.hot import home
    from recollect.opening import delete_workspace

    out = Output(context, json)
    path = home.workspace_path(name)
    try:
        identity = _identity(home.describe(path))
    except CorruptionError:
        identity = {"name": path.name, "path": path}
    rows = _rows(name)
    held = "rows that cannot be read" if rows is None else count(rows, "row")
    if not yes:
        if not sys.stdin.isatty():
            raise ArgumentError(f"deleting workspace {identity['name']!r} needs --yes where nobody can be asked")
        question = f"Delete workspace {identity['name']} with {held}? What no snapshot holds is lost"
        if not out.confirm(question):
            out.note("nothing deleted")
            raise typer.Exit(1)
    delete_workspace(name)
    if out.json:
        out.document(identity | {"deleted": True, "rows": rows})
    else:
        out.line(f"deleted workspace {identity['name']} ({held})")


def _rows(name: str) -> int | None:
    """How many rows a workspace holds, None where it is too damaged to tell."""
    from recollect.opening import open_workspace

    try:
        with open_workspace(name) as ws:
            return ws.cut().rows
    except CorruptionError:
        return None


def _identity(ws: Workspace | Description) -> dict[str, Any]:
    about = {"name": ws.name, "id": ws.id, "path": str(ws.path), "durability": ws.durability}
    return about | {"keep": ws.keep.to_dict()}


def _describe(schema: Schema | None) -> dict[str, Any] | None:
    return None if schema is None else {"fingerprint": schema.fingerprint, **schema.to_dict()}
