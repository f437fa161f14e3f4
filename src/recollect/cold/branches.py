"""Branches of a buffer: `steps` goes on from one of its versions in a line of its own; the rest is shared by all.

A branch is one of lance's, under a name that is used once: ours, a dot and six random bytes. Which of them a name
stands for is a key in the config of the `facts` dataset, set and taken away on condition. So a branch is there at once
and whole, or not at all; one that was deleted and made again is another one, on which nothing can land that was meant
for the first; and the rest of one whose making was killed is in nobody's way (design/0019).
"""

from __future__ import annotations

import contextlib
import os
import random
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lance

from recollect.cold.commit import commit
from recollect.cold.dataset import PIN_PREFIX, Datasets
from recollect.cold.durable import sync_files, sync_tree
from recollect.cold.faults import store_errors
from recollect.cold.location import MAIN, Location
from recollect.cold.pins import Pin, end_of, remove_tag
from recollect.cold.refs import listed
from recollect.cold.torn import open_whole
from recollect.errors import AlreadyExists, ArgumentError, ConflictError, NotFound, StoreUnavailable

PREFIX = "recollect.branch."
HOLD_S = 3600.0
ATTEMPTS = 50


@dataclass(frozen=True)
class Branch:
    """A branch of a buffer.

    Attributes:
        name: what it is called; `parent` the branch that it began on, "main" or another.
        version: the version of `parent` that it began with; its own ones have the numbers after it.
        created: when, UTC.
    """

    name: str
    parent: str
    version: int
    created: datetime


def check_branch(name: str) -> None:
    """Raises ArgumentError for a name that a branch cannot have."""
    text = isinstance(name, str) and name
    good = text and all((c.isalnum() and c.isascii()) or c in "._-" for c in name) and name[0] not in ".-"
    if not good or name.isdecimal() or ".." in name or name.endswith((".", ".lock")) or len(name) > 100:
        raise ArgumentError(
            "a branch is named with letters, digits, dots, dashes and underscores, at most 100, and is no number",
            value=name,
        )
    if name == MAIN:
        raise ArgumentError("main is where every buffer begins", value=name, remedy="Choose another name")


def registered(location: Location) -> dict[str, str]:
    """Every branch but main: its name → lance's name of it."""
    with store_errors("reading branches of", location):
        config = open_whole(location, "facts").config()
    return {k[len(PREFIX) :]: str(v) for k, v in sorted(config.items()) if k.startswith(PREFIX) and v}


def find(location: Location, name: str | None) -> Location:
    """Where a branch lies; None and "main" are main.

    Raises:
        NotFound: no branch of that name, or no buffer.
    """
    if name is None or name == MAIN:
        return location.on("")
    check_branch(name)
    Datasets.open_(location.on(""))  # says so where there is no buffer at all
    known = registered(location)
    if name not in known:
        raise NotFound(
            f"buffer {location.uri!r} has no branch {name!r}",
            remedy=f"Branches: {', '.join([MAIN, *known])}. Make one: open_buffer({location.uri!r}).branch({name!r})",
        )
    return location.on(known[name])


def branches(data: Datasets) -> list[Branch]:
    """Every branch but main, by name."""
    names = {held: name for name, held in registered(data.location).items()}
    found = data.forks()
    return [
        Branch(
            name,
            names.get(str(found[held]["parent_branch"]), MAIN),
            int(found[held]["parent_version"]),
            datetime.fromtimestamp(found[held]["create_at"], UTC),
        )
        for held, name in sorted(names.items(), key=lambda item: item[1])
        if held in found
    ]


def create(data: Datasets, name: str, version: int) -> Location:
    """Makes a branch that begins with a version of `data`'s; returns where it lies.

    Raises:
        ArgumentError: a name that a branch cannot have.
        AlreadyExists: there is a branch of that name.
        NotFound: there is no such version, or its branch was deleted meanwhile.
        ConflictError: a cleanup does not end.
    """
    check_branch(name)
    if name in registered(data.location):
        raise _taken(data.location, name)
    with Pin(data, version, HOLD_S):  # before the look at the branch it is on: `delete` looks the other way round
        _require_kept(data)
        held = f"{name}.{os.urandom(6).hex()}"
        owner, number = data.place(version)
        with store_errors("branching", data.location):
            data.steps.create_branch(held, (owner or None, number))
            if data.location.is_local:
                root = Path(data.location.child("steps.lance"))
                folder = root / "tree" / held
                for part in ("data", "_deletions", "_transactions", "_versions"):
                    (folder / part).mkdir(parents=True, exist_ok=True)
                sync_tree(folder)
                sync_files(
                    [folder, root / "tree", root / "_refs" / "branches" / f"{held}.json", root / "_refs" / "tags"]
                )
        if not _swap(data.location, name, "", held):
            _remove(data, held)
            raise _taken(data.location, name)
    return data.location.on(held)


def delete(data: Datasets, name: str, *, with_tags: bool = False) -> list[str]:
    """Deletes a branch and the versions that only it has; returns the tags that went with it.

    Args:
        with_tags: also where tags name its versions.

    Raises:
        ArgumentError: main.
        NotFound: no such branch.
        ConflictError: it has tags, somebody has a pin on it, or another branch began on it.
    """
    check_branch(name)
    held = find(data.location, name).branch
    if not _swap(data.location, name, held, ""):
        raise NotFound(f"branch {name!r} of buffer {data.location.uri!r} was deleted meanwhile")
    with store_errors("reading tags of", data.location):
        marks = [name for name, info in sorted(listed(data.steps.tags.list).items()) if info["branch"] == held]
    tags = [name for name in marks if not name.startswith(PIN_PREFIX)]
    names = {other: name for name, other in registered(data.location).items()}
    children = [names[k] for k, info in data.forks().items() if info["parent_branch"] == held and k in names]
    reading = [name for name in marks if name.startswith(PIN_PREFIX) and end_of(name) > time.time()]
    why = None
    if children:
        why = f"branch {', '.join(children)} began on it", "Delete that one first"
    elif reading:
        why = "somebody is reading it, and has a pin on it", "Release the pin, or wait for its end"
    elif tags and not with_tags:
        why = f"tag {', '.join(tags)} names a version of it", "Pass with_tags=True to delete the tags too"
    if why:
        _swap(data.location, name, "", held)
        raise ConflictError(
            f"branch {name!r} of buffer {data.location.uri!r} cannot be deleted: {why[0]}", remedy=why[1]
        )
    _remove(data, held)
    return tags


def lines(data: Datasets) -> list[Datasets]:
    """Main and every branch that has a name, each at its newest version. `data` itself is one of them."""
    found = []
    for held in ("", *registered(data.location).values()):
        if held == data.location.branch:
            found.append(data)
            continue
        with contextlib.suppress(NotFound):  # deleted meanwhile
            found.append(Datasets.open_(data.location.on(held), moved=True))
    return found


def nameless(data: Datasets, older_than_s: float) -> list[str]:
    """Lance's names of branches that nobody can reach: their making or deletion was killed, `older_than_s` ago."""
    known = set(registered(data.location).values())
    return [
        held
        for held, info in data.forks().items()
        if held not in known and time.time() - info["create_at"] >= older_than_s
    ]


def remove_nameless(data: Datasets, older_than_s: float) -> int:
    """Removes what `nameless` finds; how many. One that another one began on waits for that one."""
    gone = 0
    for held in nameless(data, older_than_s):
        with contextlib.suppress(OSError, ValueError):
            _remove(data, held)
            gone += 1
    return gone


def _remove(data: Datasets, held: str) -> None:
    with store_errors("deleting a branch of", data.location):
        for tag, info in listed(data.steps.tags.list).items():
            if info["branch"] == held:
                remove_tag(data.steps, tag)
        try:
            listed(lambda: data.steps.branches.delete(held))
        except ValueError as e:
            if "does not exist" not in str(e):
                raise


def _require_kept(data: Datasets) -> None:
    """Raises NotFound where the branch that `data` is on lost its name, which is how its deletion begins."""
    if data.location.branch and data.location.branch not in registered(data.location).values():
        raise NotFound(f"the branch of buffer {data.location.uri!r} was deleted")


def _taken(location: Location, name: str) -> AlreadyExists:
    return AlreadyExists(f"buffer {location.uri!r} has a branch {name!r}", remedy="Choose another name")


def _swap(location: Location, name: str, old: str, new: str) -> bool:
    """Makes a name stand for `new` if it stood for `old`, "" for nothing; whether it did."""
    key = PREFIX + name
    for attempt in range(ATTEMPTS):
        with store_errors("opening buffer", location):
            facts = open_whole(location, "facts")
        held = facts.config().get(key, "")
        if attempt and held == new:
            return True  # the reply was lost, the change was not: no name of lance's is used twice
        if held != old:
            return False
        change: dict[str, Any] = {key: new or None}
        updates = lance.LanceOperation.UpdateMap(updates=change)
        with contextlib.suppress(ConflictError, StoreUnavailable):
            commit(location, "facts", lance.LanceOperation.UpdateConfig(config_updates=updates), facts.version)
            return True
        time.sleep(random.SystemRandom().uniform(0.005, 0.02) * min(attempt + 1, 20))
    raise ConflictError(f"the branches of buffer {location.uri!r} could not be written", remedy="Try it again")


__all__ = [
    "Branch",
    "branches",
    "check_branch",
    "create",
    "delete",
    "find",
    "lines",
    "nameless",
    "registered",
    "remove_nameless",
]
