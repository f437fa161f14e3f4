"""`recollect cache`: the decoded blocks of this machine, and the room they take."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from itertools import groupby
from typing import TYPE_CHECKING, Annotated, Any

import typer

from recollect.cli.options import Json
from recollect.cli.output import Output, count, moment, size

if TYPE_CHECKING:
    from recollect.cache.room import Cached

app = typer.Typer(help="Decoded blocks of replay buffers: a cache that may be cleared at any time.")


@app.command()
def show(context: typer.Context, json: Json = False) -> None:
    """Show what the cache holds, by buffer, and how much room it may take."""
    from recollect.cache.blocks import BlockCache
    from recollect.cache.budget import VARIABLE

    out = Output(context, json)
    room = BlockCache().room
    held, blocks = room.held(), room.show()
    used = sum(h.bytes for h in held)
    budget, given = room.budget(used), os.environ.get(VARIABLE)
    buffers = [_buffer(uri, list(group)) for uri, group in groupby(sorted(blocks, key=_uri), key=_uri)]
    if out.json:
        out.document(
            {
                "folder": room.folder.parent,
                "budget_bytes": budget,
                "budget_source": VARIABLE if given else "default",
                "used_bytes": used,
                "blocks": [_block(b) for b in blocks],
                "buffers": buffers,
            }
        )
        return
    source = f"from {VARIABLE}" if given else f"half of the free space; set {VARIABLE} to change it"
    out.line(f"{'folder':<11} {room.folder.parent}")
    out.line(f"{'budget':<11} {size(budget)} ({source})")
    out.line(f"{'in use':<11} {size(used)}, {count(len(blocks), 'block')}")
    if buffers:
        names = ("buffer", "blocks", "rows", "size", "hits", "last used", "mapped")
        out.table(
            "",
            names,
            [
                (
                    b["buffer"] or "?", f"{b['blocks']:,}", f"{b['rows']:,}", size(b["bytes"]), f"{b['hits']:,}",
                    moment(b["last_used"]), f"{b['blocks_in_use']:,}",
                )
                for b in buffers
            ],
            right=("blocks", "rows", "size", "hits", "mapped"),
        )  # fmt: skip


@app.command()
def clear(
    context: typer.Context,
    buffer: Annotated[
        str | None, typer.Option(metavar="URI", help="Only blocks of this replay buffer.", show_default=False)
    ] = None,
    json: Json = False,
) -> None:
    """Remove decoded blocks. Views that are open keep theirs; others decode anew what they need."""
    from recollect.cache.blocks import BlockCache
    from recollect.cli.options import location
    from recollect.cold.location import Location

    out = Output(context, json)
    wanted = None if buffer is None else Location(location(buffer)).uri
    gone = BlockCache().room.clear(lambda block: wanted is None or block.buffer == wanted)
    if out.json:
        out.document({"blocks": gone.blocks, "bytes": gone.bytes, "held_bytes": gone.held_bytes})
        return
    text = f"removed {count(gone.blocks, 'block')}, {size(gone.bytes)}"
    if gone.held_bytes:
        text += f"; {size(gone.held_bytes)} of it come back when the views that use it are closed"
    out.line(text)


def _uri(block: Cached) -> str:
    return block.buffer


def _buffer(uri: str, blocks: list[Cached]) -> dict[str, Any]:
    return {
        "buffer": uri,
        "blocks": len(blocks),
        "rows": sum(b.rows for b in blocks),
        "bytes": sum(b.bytes for b in blocks),
        "hits": sum(b.hits for b in blocks),
        "last_used": _time(max(b.used_ns for b in blocks)),
        "blocks_in_use": sum(b.in_use for b in blocks),
    }


def _block(block: Cached) -> dict[str, Any]:
    return {
        "name": block.name,
        "buffer": block.buffer,
        "file": block.file,
        "rows": block.rows,
        "bytes": block.bytes,
        "hits": block.hits,
        "last_used": _time(block.used_ns),
        "in_use": block.in_use,
    }


def _time(nanoseconds: int) -> datetime:
    return datetime.fromtimestamp(nanoseconds / 1e9, tz=UTC)
