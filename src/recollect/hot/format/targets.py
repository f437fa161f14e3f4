"""Where a workspace was promoted to: its home buffer, and how far each target got.

    <workspace>/home.json                the home buffer's address, made once by the first snapshot or by `home=`
    <workspace>/targets/<digest>.json    one per target: what its newest version was seen to hold

A cursor is what was read back from the buffer, never what was meant to be written there. Eviction trusts that of the
home buffer alone, and only while the buffer goes on from the version that was last seen (design/0010).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from recollect.errors import CorruptionError
from recollect.hot.format.files import ABSENT, create_exclusive, os_errors, replace_file
from recollect.hot.format.notes import pack, read
from recollect.view.reach import Mark
from recollect.view.reach import pack as pack_ranges
from recollect.view.reach import unpack as unpack_ranges


@dataclass(frozen=True)
class Cursor:
    """How far a target got, as it was read back.

    Attributes:
        uri: the buffer; `version` its newest one then, `promotion` the id that it ended with.
        time_ns: when it was read.
        marks: writer → how far it got, of the writers that were in the workspace.
        problem: why eviction may not go by it, "" while it may.
    """

    uri: str
    version: int
    promotion: str
    time_ns: int
    marks: Mapping[int, Mark] = field(repr=False)
    problem: str = ""


def digest(uri: str) -> str:
    """What a target's files are called."""
    return hashlib.sha256(uri.encode()).hexdigest()[:16]


def read_home(root: Path) -> str | None:
    """The home buffer's address, None while there is none. Raises CorruptionError, StoreError."""
    try:
        return str(read(root / "home.json")["uri"])
    except ABSENT:
        return None
    except (ValueError, KeyError, TypeError):
        raise CorruptionError(
            f"{str(root / 'home.json')!r} is damaged", remedy="Name the home buffer again: ws.set_home(uri)"
        ) from None


def fix_home(root: Path, uri: str) -> None:
    """Makes `uri` the home buffer where there is none yet."""
    with os_errors("writing home of", root):
        create_exclusive(root / "home.json", pack({"uri": uri}))


def change_home(root: Path, uri: str) -> None:
    """Makes `uri` the home buffer, whatever was. What it holds counts once a snapshot has read it."""
    with os_errors("writing home of", root):
        (root / "targets" / f"{digest(uri)}.json").unlink(missing_ok=True)
        replace_file(root / "home.json", pack({"uri": uri}))


def read_cursor(root: Path, uri: str) -> Cursor | None:
    """How far a target got, None when it was never seen or its note is damaged: the next snapshot writes it anew.

    Raises:
        StoreError: the note cannot be read.
    """
    try:
        data = read(root / "targets" / f"{digest(uri)}.json")
    except (*ABSENT, ValueError):
        return None
    held: dict[int, list[tuple[int, int]]] = {}
    for writer, start, stop in unpack_ranges(data.pop("held")):
        held.setdefault(int(writer), []).append((start, stop))
    marks = {
        int(writer): Mark(rows, facts, tuple(held.get(int(writer), ()))) for writer, rows, facts in data.pop("marks")
    }
    return Cursor(**data, marks=marks)


def write_cursor(root: Path, cursor: Cursor) -> None:
    """Durable when it returns."""
    marks = sorted(cursor.marks.items())
    data = {
        **cursor.__dict__,
        "marks": [[str(w), m.rows, m.facts] for w, m in marks],
        "held": pack_ranges((str(w), *r) for w, m in marks for r in m.held),
    }
    with os_errors("writing cursor of", root):
        replace_file(root / "targets" / f"{digest(cursor.uri)}.json", pack(data))


def read_cursors(root: Path) -> list[Cursor]:
    """Every target that was seen, by address. Raises StoreError."""
    out = []
    for path in _notes(root):
        try:
            data = read(path)
        except (*ABSENT, ValueError):
            continue
        cursor = read_cursor(root, data["uri"])
        out += [] if cursor is None else [cursor]
    return sorted(out, key=lambda c: c.uri)


def damaged_cursors(root: Path) -> list[Path]:
    """The notes of targets that cannot be believed, and are not. Raises StoreError."""
    out = []
    for path in _notes(root):
        try:
            read(path)
        except ABSENT:
            continue
        except ValueError:
            out.append(path)
    return out


def _notes(root: Path) -> list[Path]:
    with os_errors("reading", root / "targets"):
        return sorted((root / "targets").glob("[0-9a-f]*.json"))


def trusted(root: Path, home: str | None) -> tuple[Mapping[int, Mark], str]:
    """What eviction may take for promoted, and why that is nothing (""  when there is no reason)."""
    if home is None:
        return {}, "no snapshot was made yet"
    cursor = read_cursor(root, home)
    if cursor is None:
        return {}, f"no snapshot to the home buffer {home!r} was made yet"
    if cursor.problem:
        return {}, cursor.problem
    if "://" not in home and not (Path(home) / "steps.lance").is_dir():
        return {}, f"the home buffer {home!r} is gone; name another with ws.set_home(uri), or restore it"
    return cursor.marks, ""
