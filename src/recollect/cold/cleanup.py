"""Cleanup: old versions and what only they hold, and the leftovers of promotions that did not land.

One branch is cleaned up at a time. Kept in any case: its newest version, the one that the newest snapshot or column
made where no deletion came after it, what a tag or a pin names, what another branch began with, and whatever was
staged less than `STAGED_S` ago. Data files that no version names are lance's to judge, which spares them for seven
days.

A promotion that was stopped for longer must not land on what was removed. It commits on exactly the version it read,
and checks the age of what it staged after it read it. So a cleanup that finds something to remove commits once itself,
without a change: whoever read before that is refused, whoever reads after it stages anew (design/0016). What is staged
may be for any branch, so where some of it goes, every branch gets such a commit (design/0019).
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pyarrow.compute as pc

from recollect.cold.branches import lines, nameless, registered, remove_nameless
from recollect.cold.commit import commit, delete
from recollect.cold.dataset import Datasets
from recollect.cold.faults import store_errors
from recollect.cold.history import FOLDER
from recollect.cold.leases import Leases
from recollect.cold.pins import CLEANUP, pins, remove_tag
from recollect.cold.refs import listed
from recollect.errors import ArgumentError, ConflictError

STAGED_S = 48 * 3600.0
"""Twice as long as a promotion keeps what it staged: clocks of machines differ."""
LEASE_S = 3600.0
_NAMES = 500


@dataclass(frozen=True)
class Cleanup:
    """What a cleanup removed, or would remove.

    Attributes:
        versions: numbers of the versions that go; `bytes` what their files and the leftovers take.
        history_files, rows: leftover files of the history, and rows of facts and tails that no promotion names.
        branched: versions that are old enough and are kept, since these branches began with them.
        newest, young: the newest version, and how many were too young to go.
        tagged, pinned: versions that are old enough and are kept: by which tags; until when (seconds since 1970).
        dry_run: whether nothing was removed.
    """

    versions: tuple[int, ...]
    bytes: int
    history_files: int
    rows: int
    newest: int
    young: int
    tagged: dict[int, tuple[str, ...]]
    pinned: dict[int, float]
    dry_run: bool
    branched: Mapping[int, tuple[str, ...]] = field(default_factory=dict)


def cleanup(data: Datasets, older_than_s: float, *, dry_run: bool = False) -> Cleanup:
    """Removes versions older than `older_than_s` seconds that no tag and no pin names, and what is left over.

    Raises:
        ArgumentError: a negative age.
        ConflictError: another cleanup is under way.
        StoreError: the store cannot be reached or written.
    """
    if older_than_s < 0:
        raise ArgumentError("an age is not negative", value=older_than_s)
    with contextlib.ExitStack() as stack:
        if not dry_run and not stack.enter_context(Leases(data.location).hold(CLEANUP, LEASE_S)):
            raise ConflictError(
                f"another cleanup of {data.location.uri!r} is under way", remedy="Run it again when that one ended"
            )
        data.refresh()
        with store_errors("cleaning up", data.location):
            found = _cleanup(data, older_than_s, dry_run=True)
            if dry_run or not (
                found.bytes or found.history_files or found.rows or _expired(data) or nameless(data, STAGED_S)
            ):
                return found
            for line in lines(data) if found.history_files or found.rows else [data]:
                _fence(line)
            remove_nameless(data, STAGED_S)
            return _cleanup(data, older_than_s, dry_run=False)


def _fence(data: Datasets) -> None:
    """Makes a version that refuses every promotion which read an older one of its branch."""
    with contextlib.suppress(ConflictError):  # then another commit did
        commit(data.location, "steps", lance.LanceOperation.Rewrite([], []), data.steps.version)
    data.refresh()


def _expired(data: Datasets) -> list[str]:
    return [name for name, (_, end) in pins(data).items() if end <= time.time()]


def _forks(data: Datasets) -> dict[int, tuple[str, ...]]:
    """The versions of this branch that others began with, and which those are, by lance's names where need be."""
    names = {held: name for name, held in registered(data.location).items()}
    found: dict[int, tuple[str, ...]] = {}
    for held, info in sorted(data.forks().items()):
        if (info["parent_branch"] or "") == data.location.branch:
            version = int(info["parent_version"])
            found[version] = (*found.get(version, ()), names.get(held, held))
    return found


def _cleanup(data: Datasets, older_than_s: float, dry_run: bool) -> Cleanup:
    steps, now = data.steps, time.time()
    tags: dict[int, list[str]] = {}
    for name, version in data.tags().items():
        tags.setdefault(version, []).append(name)
    held: dict[int, float] = {}
    for version, end in pins(data).values():
        if end > now:
            held[version] = max(end, held.get(version, 0.0))
    for name in () if dry_run else _expired(data):
        remove_tag(steps, name)
    newest, head = int(steps.version), data.history().head
    # What a deletion made may name files that hold what it deleted, until a compaction wrote them again.
    made = newest if head is None or "deleted" in head.record else head.base_version + 1
    there = {int(v["version"]): v["timestamp"].timestamp() for v in steps.versions()}
    old = [v for v, at in there.items() if v not in (newest, made) and now - at >= older_than_s]
    forks = _forks(data)
    going = [v for v in old if v not in tags and v not in held and v not in forks]
    size = _versions(steps, going, dry_run)
    if not dry_run:
        left = data.manifests(data.location.branch)  # lance looks at the tags itself: a pin may have come in between
        going = [v for v in going if v not in left]
    live = _live(data, [v for v in there if v not in going])
    files, history_bytes = _history(data, live, dry_run)
    rows = sum(_rows(data, name, live.stages, dry_run) for name in ("facts", "tails"))
    return Cleanup(
        tuple(sorted(going)),
        size + history_bytes,
        files,
        rows,
        newest,
        len(there.keys() - {*old, newest, made}),
        {v: tuple(sorted(tags[v])) for v in old if v in tags},
        {v: held[v] for v in old if v in held and v not in tags},
        dry_run,
        {v: forks[v] for v in old if v in forks},
    )


def _versions(steps: Any, numbers: list[int], dry_run: bool) -> int:
    """Removes versions and the files that only they name, and old data files of nobody; the bytes that frees."""
    chosen: dict[str, Any] = {"versions": numbers} if numbers else {"older_than": timedelta(days=36_500)}
    if dry_run:
        told = listed(lambda: steps.explain_cleanup_old_versions(**chosen, error_if_tagged_old_versions=False))
        return int(told.stats.bytes_removed)
    done = listed(lambda: steps.cleanup_old_versions(**chosen, error_if_tagged_old_versions=False))
    return int(done.bytes_removed)


@dataclass
class _Live:
    """Names that some version leads to: promotions by their files, folds, and stages of facts and tails."""

    files: set[str]
    stages: set[str]


def _live(data: Datasets, versions: Iterable[int]) -> _Live:
    """What the versions that stay need, those of the other branches included."""
    here = data.location.branch or None
    places: list[Any] = [data.steps.checkout_version((here, v)) for v in versions]
    for name in {None, *data.forks()} - {here}:
        branch = data.steps.checkout_version((name, None))
        places += [branch.checkout_version((name, v["version"])) for v in branch.versions()]
    live = _Live(set(), set())
    for promotion in {data.promotion_id(steps) for steps in places} - {""}:
        history = data.records.history(promotion)
        live.stages |= history.stages
        live.files |= {p.id for p in history.links}
        before = history.fold
        if before is not None:
            live.files |= {f"fold-{name}" for name in (before.name, *before.earlier)}
    return live


def _history(data: Datasets, live: _Live, dry_run: bool) -> tuple[int, int]:
    """Removes files of the history that nothing leads to; how many, and (on a local disk) their bytes."""
    removed = size = 0
    newest = {line.location.branch: int(line.steps.version) for line in lines(data)}
    for name in data.records.names():
        if name in live.files:
            continue
        branch, base_version, written = data.records.written_for(name)
        if time.time() - written < STAGED_S or (base_version >= newest.get(branch, base_version + 1) and not dry_run):
            continue
        removed += 1
        if data.location.is_local:
            size += Path(data.location.child(f"{FOLDER}/{name}.lance")).stat().st_size
        if not dry_run:
            data.records.remove(name)
    return removed, size


def _rows(data: Datasets, name: str, live: set[str], dry_run: bool) -> int:
    """Removes rows that were staged for promotions that did not land; how many."""
    dataset = data.dataset(name)
    before = int((time.time() - STAGED_S) * 1e9)
    table = dataset.to_table(columns=["stage", "staged"])
    staged = table.column("staged").cast(pa.int64())
    dead = table.filter(pc.less(staged, before)).column("stage")
    names = sorted(set(dead.unique().to_pylist()) - live)
    rows = int(pc.sum(pc.is_in(dead, pa.array(names, pa.string()))).as_py() or 0)
    for k in range(0, 0 if dry_run else len(names), _NAMES):
        quoted = ", ".join(f"'{n}'" for n in names[k : k + _NAMES])
        delete(data.location, name, f"stage IN ({quoted})")
    return rows
