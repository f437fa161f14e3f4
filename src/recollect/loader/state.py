"""A loader's state: plain values, and priorities in a file of their own where they are many."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from recollect.errors import ArgumentError, CorruptionError, NotFound, StoreError
from recollect.loader.drawing import Drawing
from recollect.loader.options import Options
from recollect.loader.undelivered import draw_from, draw_state
from recollect.records.join import earlier_view
from recollect.samplers import State
from recollect.view import Cut, View

STATE_FORMAT = 3
_SAME = ("seed", "batch_size", "lag", "epochs", "growing", "rate", "where", "sampler", "transforms")
"""What must be the same where a state is loaded. Ranks, threads, fields and outputs may differ."""


def state_of(drawing: Drawing, options: Options, step: int, folder: Path | None) -> dict[str, Any]:
    """Everything that batch `step` and those after it depend on."""
    cursor, source = dict(drawing.known.state()), drawing.source
    views = drawing.needed_views(step)
    place = {id(view): k for k, (_, view) in enumerate(views)}
    return {
        "format": STATE_FORMAT,
        "step": step,
        **_identity(drawing, options),
        "views": [
            {"from": start, **({"cut": view.cut.to_dict()} if source is None else source.mark(view))}
            for start, view in views
        ],
        "cursor": cursor if folder is None else _write(folder, cursor),
        "cursor_view": 0 if drawing.is_ahead else place.get(id(drawing.view), 0),
        "came": drawing.came[1],
        "undelivered": [draw_state(d.draw, place[id(d.view)]) for d in drawing.waiting(step)],
    }


def _identity(drawing: Drawing, options: Options) -> dict[str, Any]:
    view, rate = drawing.view, options.rate
    return {
        "seed": options.seed,
        "batch_size": options.batch_size,
        "lag": options.lag,
        "epochs": options.epochs,
        "growing": drawing.source is not None,
        "rate": None if rate is None else rate.to_dict(),
        "where": view.restriction,
        "sampler": drawing.sampler.to_dict(),
        "transforms": [t.to_dict() for t in options.transforms],
    }


def restore(drawing: Drawing, options: Options, state: Mapping[str, Any], folder: Path | None) -> int:
    """Goes on where a state was taken. Returns the next batch's number.

    Raises:
        ArgumentError: the state was taken from another cut, sampler, transform, seed or batch size; named.
        NotFound: rows or the file of the cursor are gone.
        CorruptionError: that file is damaged.
    """
    if not isinstance(state, Mapping) or state.get("format") != STATE_FORMAT:
        raise ArgumentError("no loader state of this format", value=state)
    mine = _identity(drawing, options)
    for name in _SAME:
        if state[name] != mine[name]:
            raise ArgumentError(
                f"the state was taken with another {name}: {state[name]!r}, this loader has {mine[name]!r}",
                remedy=f"Make the loader with {name}={state[name]!r}",
            )
    cursor = _read(state["cursor"], folder)
    views = _views(drawing, state)
    segments = [(int(mark["from"]), view) for mark, view in zip(state["views"], views, strict=True)]
    place = int(state["cursor_view"])
    drawing.restart(
        segments,
        place,
        [(draw_from(d), views[d["view"]]) for d in state["undelivered"]],
        drawing.bind(views[place], cursor),
        int(state["came"]),
    )
    return int(state["step"])


def _views(drawing: Drawing, state: Mapping[str, Any]) -> list[View]:
    marks = state["views"]
    if drawing.source is not None:
        return drawing.source.restore(marks)
    newest = drawing.segments[-1][1]
    if marks[-1]["cut"] != newest.cut.to_dict():
        raise ArgumentError(
            "the state was taken on other rows than this loader's view holds",
            remedy="Open the loader on the version it was taken on, then advance()",
        )
    return [*(earlier_view(newest, Cut.from_dict(m["cut"])) for m in marks[:-1]), newest]


# -- the cursor in a file ----------------------------------------------------------------------------------------------


def _write(folder: Path, cursor: State) -> dict[str, Any]:
    """Writes a cursor's state under the name of its SHA-256, durably. A checkpoint never changes an earlier one."""
    data = json.dumps(cursor, sort_keys=True, separators=(",", ":")).encode()
    digest = hashlib.sha256(data).hexdigest()
    path = folder.absolute() / f"{digest}.json"
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            with part.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
            handle = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(handle)
            finally:
                os.close(handle)
    except OSError as e:
        with contextlib.suppress(OSError):
            part.unlink()
        raise StoreError(f"priorities cannot be written: {e.strerror}", value=str(path)) from e
    return {"file": str(path), "bytes": len(data)}


def _read(cursor: Mapping[str, Any], folder: Path | None) -> State:
    if "file" not in cursor:
        return cursor
    path = Path(cursor["file"])
    if folder is not None:
        path = folder / path.name
    try:
        data = path.read_bytes()
    except OSError as e:
        raise NotFound(
            f"the priorities of this state cannot be read: {e.strerror}",
            value=str(path),
            remedy="Pass priorities= the folder that they were moved to",
        ) from e
    if hashlib.sha256(data).hexdigest() != path.stem:
        raise CorruptionError("the priorities of this state are damaged", value=str(path), remedy="Use another state")
    out: State = json.loads(data)
    return out
