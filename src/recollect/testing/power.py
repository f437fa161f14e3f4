"""The power-cut harness: a workload on a disk that keeps only what was flushed, cut at any instruction.

    python -m recollect.testing power --count 10000

The process dies, a folder that the cut could have left is made up (`disk`), and is opened under another boot id.
Whatever a returned `sync` covered must be there: once, equal in value, in order, next observations included. What lies
beyond may be cut, as a prefix of each writer's operations, and what was cut is reported. In some cases the power goes
again during recovery.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import NamedTuple

from recollect.errors import ArgumentError, CorruptionError, NotFound
from recollect.hot.format.files import file_system_type
from recollect.hot.format.layouts import Layouts
from recollect.hot.format.segment import ROWS_MASK, Segment
from recollect.opening import create_workspace, open_workspace
from recollect.schema import Schema
from recollect.testing.actor import Actor, Journal, random_ops
from recollect.testing.cases import Report, run_cases
from recollect.testing.corpus import SCHEMAS
from recollect.testing.disk import Device, Disk
from recollect.testing.expected import Expectation, adopt, expect, require
from recollect.testing.instants import at_instant, die
from recollect.testing.kills import check_settled, ended, forked, small_segments
from recollect.testing.ledger import Ledger, Op, Resume
from recollect.testing.oracle import check_workspace, warm_up
from recollect.workspace import Workspace


def run(count: int = 300, *, seed: int, first: int = 0, jobs: int = 1, folder: Path | None = None) -> Report:
    """`count` power cuts.

    Args: as `cases.run_cases`; `folder` must be in memory.

    Raises:
        ArgumentError: the folder is not on tmpfs.
    """
    if folder is not None and file_system_type(folder) != "tmpfs":
        raise ArgumentError("power cuts are acted out in memory", value=str(folder), remedy="Pass a folder on tmpfs")
    warm_up()
    return run_cases("power", power_case, count, seed=seed, first=first, jobs=jobs, folder=folder)


def power_case(folder: Path, chance: random.Random, counts: Counter[str]) -> None:
    """One cut, sometimes a second one during recovery, then everything is read; sometimes all of it again, with
    writers that go on with episodes of the dead."""
    small_segments()
    durability = chance.choice(("process", "process", "interval", "step"))
    schema = SCHEMAS[chance.choice(sorted(SCHEMAS))]()
    creating = chance.random() < 0.1
    live = folder / "live"
    live.mkdir()
    if not creating:
        create_workspace(live / "w", schema, durability=durability).close()  # type: ignore[arg-type]
    before: Expectation | None = None
    for generation in range(chance.choice((1, 1, 1, 1, 2, 3))):
        ops = random_ops(
            chance,
            chance.choice((3, 10, 30, 80)),
            writers=chance.choice((1, 1, 2, 3)),
            first_writer=100 * generation,
            durability=durability,
            durabilities=("process", "process", "interval", "step") if durability != "step" else ("step",),
            after=before.ledger if before else None,
            known=before.ids if before else (),
        )
        journal, noted = Journal(), os.memfd_create("noted")
        work = _Work(live, schema if creating else None, durability, ops, journal, noted, before)
        seed = chance.getrandbits(32)
        pid = forked(partial(work.carry_out, seed))
        counts["cuts" if ended(pid) == "kills" else "cuts after the end"] += 1
        left = cut(live, noted, folder / f"left{generation}", chance)
        made, entries = entries_of(journal, creating)
        expectation = expect(ops, entries, durability=durability, power=True, after=before)
        counts["resumptions"] += sum(isinstance(op, Resume) for op in ops[: len(entries)])
        journal.close()
        while chance.random() < 0.25:
            left = _cut_recovery(left, chance, counts)
        published = published_rows(left / "w", schema)
        with rebooted(), opened(left / "w", made) as workspace:
            if workspace is None:
                counts["cuts before there was a workspace"] += 1
                return
            counts["logs cut short"] += check_reports(workspace, published)
            found = check_workspace(workspace, expectation)
            check_settled(left / "w", expectation)
        adopt(expectation, found)
        live, before, creating = left, expectation, False


class _Work(NamedTuple):
    """What a child does before its power is cut.

    Attributes:
        schema: of the workspace, if it is to create it; None where it is there.
        before: what is there already.
    """

    live: Path
    schema: Schema | None
    durability: str
    ops: list[Op]
    journal: Journal
    noted: int
    before: Expectation | None

    def carry_out(self, seed: int) -> None:
        """Carries the operations out on the device; dies at an instruction of one of them, or after the last."""
        chance = random.Random(seed)
        device = Device(self.live, self.noted)
        device.install()
        resumptions = [k for k, op in enumerate(self.ops) if isinstance(op, Resume)]
        fatal = chance.randrange(-1 if self.schema is not None else 0, len(self.ops) + 1)
        if resumptions and chance.random() < 0.3:
            fatal = min(chance.choice(resumptions) + chance.randrange(3), len(self.ops) - 1)

        def act() -> int:
            if chance.random() < 0.6:
                die()
            device.note_any_file(chance)
            return int(10 ** chance.uniform(0, 3))

        instant = int(10 ** chance.uniform(0, 4))
        path = self.live / "w"
        if self.schema is not None:
            with at_instant(instant, act) if fatal < 0 else contextlib.nullcontext():
                create_workspace(path, self.schema, durability=self.durability).close()  # type: ignore[arg-type]
            self.journal.note(-1)
        if self.before is None:
            actor = Actor(open_workspace(path), Ledger(self.durability))
        else:
            actor = Actor(open_workspace(path), self.before.ledger, self.before.ids)
        for k, op in enumerate(self.ops):
            with at_instant(instant, act) if k == fatal else contextlib.nullcontext():
                first, second = actor.do(op)
            self.journal.note(k, first, second)
            if k == fatal:
                die()
            if chance.random() < 0.1:
                device.note_any_file(chance)


def entries_of(journal: Journal, creating: bool) -> tuple[bool, list[tuple[int, int, int]]]:
    """Whether the workspace's creation had returned, and what the operations had."""
    entries = journal.read()
    return (bool(entries), entries[1:]) if creating else (True, entries)


def cut(live: Path, noted: int, left: Path, chance: random.Random) -> Path:
    """Replaces the folder of a dead process by one that a power cut could have left of it; closes `noted`."""
    Disk(live, noted).compose(left, chance)
    os.close(noted)
    shutil.rmtree(live)
    return left


def _cut_recovery(folder: Path, chance: random.Random, counts: Counter[str]) -> Path:
    """The power goes again while the workspace is opened."""
    noted, seed = os.memfd_create("noted"), chance.getrandbits(32)

    def act() -> None:
        own = random.Random(seed)
        device = Device(folder, noted)
        device.install()

        def next_instant() -> int:
            if own.random() < 0.5:
                die()
            device.note_any_file(own)
            return int(10 ** own.uniform(0, 3))

        with rebooted(), at_instant(int(10 ** own.uniform(0, 4.5)), next_instant), contextlib.suppress(NotFound):
            open_workspace(folder / "w").close()
        die()

    counts["cuts in recovery"] += ended(forked(act)) == "kills"
    return cut(folder, noted, folder.with_name(folder.name + "+"), chance)


@contextlib.contextmanager
def rebooted() -> Iterator[None]:
    """Lets the product see another boot id, wherever it was imported."""
    name = f"boot-{os.urandom(4).hex()}"
    holders = [m for n, m in list(sys.modules.items()) if n.startswith("recollect.") and hasattr(m, "boot_id")]
    before = [m.boot_id for m in holders]
    for module in holders:
        module.boot_id = lambda: name  # type: ignore[attr-defined]
    try:
        yield
    finally:
        for module, known in zip(holders, before, strict=True):
            module.boot_id = known  # type: ignore[attr-defined]


@contextlib.contextmanager
def opened(path: Path, made: bool) -> Iterator[Workspace | None]:
    """The workspace, None where its creation had not returned and nothing, or no schema, is there."""
    try:
        workspace = open_workspace(path)
    except NotFound:
        require(not made, "the workspace is gone")
        yield None
        return
    with workspace:
        require(workspace.schema is not None or not made, "the schema is gone")
        yield None if workspace.schema is None else workspace


def check_reports(workspace: Workspace, published: dict[int, int]) -> int:
    """Fails unless every log with fewer rows than its counters said was reported as cut; returns how many were."""
    held = {e.writer: e.stop - e.start for e in workspace.cut().extents}
    lost = {r.writer for r in workspace.recovered if r.lost_rows}
    for writer, rows in published.items():
        short = held.get(writer, 0) < rows
        require(not short or writer in lost, f"writer {writer:016x}: {held.get(writer, 0)} of {rows} rows, unreported")
    return len(lost)


def published_rows(path: Path, schema: Schema) -> dict[int, int]:
    """What the counters of each unsealed log say, as they lie on the disk. The lock tells a log that was begun."""
    out: dict[int, int] = {}
    layouts = Layouts({1: schema}.get)
    for log in (path / "log").glob("*") if (path / "log").is_dir() else ():
        if (log / "sealed.json").exists() or not (log / "lock").exists():
            continue
        for segment in sorted(log.glob("*.seg")):
            with contextlib.suppress(CorruptionError):
                rows = Segment.open_(segment, layouts).word & ROWS_MASK
                out[int(log.name, 16)] = out.get(int(log.name, 16), 0) + rows
    return out
