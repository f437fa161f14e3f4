"""`recollect tail`: what agents do, as they do it."""

from __future__ import annotations

import json as text_form
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recollect.cli.options import Json, Name, Where
from recollect.cli.output import Output, moment, printable

if TYPE_CHECKING:
    from recollect.recall.results import Step

LONGEST_TEXT = 48
SHOWN_NUMBERS = 4


def tail(
    context: typer.Context,
    name: Name,
    lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="Show this many of the newest steps.")] = 10,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with every new step until Ctrl-C; --json prints one a line.")
    ] = False,
    where: Where = None,
    json: Json = False,
) -> None:
    """Show the newest steps of a workspace, oldest of them first."""
    out = Output(context, json)
    from recollect.cli.follow import Follower, interruption
    from recollect.opening import open_workspace

    with open_workspace(name) as ws:
        follower = Follower(ws, where)
        steps = follower.newest(lines)
        if out.json and not follow:
            out.document({"workspace": ws.name, "steps": [describe(s) for s in steps]})
            return
        if not follower.cut.rows:
            out.note(f"nobody has written to workspace {ws.name} yet")
        reward = _reward_path(ws.schema)
        for step in steps:
            out.document(describe(step)) if out.json else out.line(readable(step, reward))
        out.flush()
        if not follow:
            return
        with interruption() as stop:
            for new in follower.until(stop):
                if new is None:
                    out.flush()
                    continue
                if reward is None:
                    reward = _reward_path(ws.schema)
                out.document(describe(new)) if out.json else out.line(readable(new, reward))


def describe(step: Step) -> dict[str, Any]:
    """A step's JSON form."""
    return {
        "id": str(step.id),
        "episode": step.episode_id,
        "episode_key": f"{step.episode.writer}:{step.episode.counter}",
        "step": step.step,
        "time": step.time,
        "terminated": step.terminated,
        "truncated": step.truncated,
        "fields": step.fields,
    }


def readable(step: Step, reward: str | None) -> str:
    """A step as one line. `reward` is the path of the field shown first; null fields are left out."""
    values = dict(_flat(step.fields))
    parts = [moment(step.time, milliseconds=True), printable(step.episode_id), f"step {step.step}"]
    if reward is not None:
        parts.append(f"reward {short(values.pop(reward, None))}")
    if step.terminated:
        parts.append("terminated")
    if step.truncated:
        parts.append("truncated")
    rest = [f"{path}={short(value)}" for path, value in values.items() if value is not None]
    return "  ".join(parts + ([" ".join(rest)] if rest else []))


def short(value: Any) -> str:
    """A value in a few characters, on one line."""
    if value is None:
        return "-"
    if isinstance(value, bool | str | list | dict):
        return _cut(text_form.dumps(value, ensure_ascii=False))
    if isinstance(value, float):
        return f"{value:.4g}"
    if not hasattr(value, "dtype"):
        return _cut(str(value))
    if value.ndim == 0:
        return short(value.item())
    if value.ndim > 1:
        return f"{value.dtype}[{'x'.join(map(str, value.shape))}]"
    shown = " ".join(short(x) for x in value[:SHOWN_NUMBERS].tolist())
    more = len(value) - SHOWN_NUMBERS
    return f"[{shown} +{more}]" if more > 0 else f"[{shown}]"


def _cut(text: str) -> str:
    text = printable(text)
    return text if len(text) <= LONGEST_TEXT else text[: LONGEST_TEXT - 3] + "..."


def _flat(fields: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted paths and values. A JSON field's own object is flattened too, which reads the same."""
    for name, value in fields.items():
        path = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{path}.")
        else:
            yield path, value


def _reward_path(schema: Any) -> str | None:
    leaf = None if schema is None else schema.role("reward")
    return None if leaf is None else leaf.path
