"""The fuzzer of stored bytes: any byte of any file of a workspace flipped, zeroed, cut off or added to.

    python -m recollect.testing fuzz --count 1000000

Opening the workspace and reading everything then either raises a `RecollectError`, or reports a cut and gives a prefix,
or gives exactly what was written: never a wrong value, never another exception, never a signal. The workspaces are
closed ones, ones whose writer was killed on this boot, and copies of these.
"""

from __future__ import annotations

import os
import random
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from recollect.errors import RecollectError
from recollect.hot.format.seal import NAME as SEAL
from recollect.hot.format.segment import PAGE
from recollect.opening import create_workspace, open_workspace
from recollect.recall.verify import verify
from recollect.records.rows import PackedRows
from recollect.schema.fields import is_heap
from recollect.testing.actor import Actor, Journal, random_ops
from recollect.testing.cases import Report, doing, run_cases
from recollect.testing.corpus import SCHEMAS
from recollect.testing.expected import Bounds, Expectation, Wrong, expect, require
from recollect.testing.instants import die
from recollect.testing.kills import ended, forked, small_segments
from recollect.testing.ledger import Close, Ledger
from recollect.testing.oracle import check_workspace, warm_up
from recollect.testing.questions import Answers, Pinned, ask, build_indexes, check_answers, is_reported
from recollect.workspace import Workspace

INPUTS_PER_CASE = 250
INDEX = ".sqlite"
HEAD_PAGES = 3
"""Pages of a segment that are never empty: header, counters, what is durable."""
_SYSTEM = ("writer", "seq", "episode_writer", "episode", "time", "step", "priority", "terminated", "truncated")


def run(count: int = 5000, *, seed: int, first: int = 0, jobs: int = 1, folder: Path | None = None) -> Report:
    """About `count` inputs, 250 to a case.

    Args: as `cases.run_cases`.
    """
    warm_up()
    cases = -(-count // INPUTS_PER_CASE)
    return run_cases("fuzz", fuzz_case, cases, seed=seed, first=first, jobs=jobs, folder=folder)


def fuzz_case(folder: Path, chance: random.Random, counts: Counter[str]) -> None:
    """One workspace, damaged again and again."""
    kind = chance.choice(("closed", "killed", "copied"))
    path, expectation = _workspace(folder, chance, kind)
    files = {p: p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()}
    pinned = Pinned(folder / "pinned", [p for p in files if p.suffix == INDEX])
    require(not is_reported(path), f"verify is not silent about a {kind} workspace: {verify(path).problems}")
    with open_workspace(path) as workspace:
        check_workspace(workspace, expectation)
        wanted, about = reading(workspace), (workspace.id, workspace.name, workspace.durability)
        answers = ask(workspace)
    require(not is_reported(path), f"verify is not silent about a recovered workspace: {verify(path).problems}")
    lenient = replace(
        expectation,
        bounds={k: Bounds(0, b.most_steps, 0, b.most_marks, 0) for k, b in expectation.bounds.items()},
        rewards=0,
    )
    whole = Whole(wanted, about, answers, lenient)
    for k in range(INPUTS_PER_CASE):
        pinned.restore()
        restore(path, files)
        victim = _pick(files, chance)
        raw, what = damage(files[victim], chance)
        what = f"{kind} workspace, {victim.relative_to(path)}: {what}"
        doing(what)
        write_in_place(victim, raw)
        try:
            if victim.suffix == INDEX:
                counts[examine_index(path, whole)] += 1
            else:
                outcome = examine(path, whole, deep=k % 64 == 0, verified=k % 8 == 0)
                require(outcome == "right" or not may_not_matter(victim, files[victim], raw), f"it was {outcome}")
                counts[outcome] += 1
        except BaseException as e:
            raise Wrong(f"input {k}: {what}: {type(e).__name__}: {e}") from e


class Whole(NamedTuple):
    """What a workspace says before it is damaged, and the least that it may say after."""

    reading: dict[str, Any]
    about: tuple[Any, ...]
    answers: Answers
    lenient: Expectation


def examine(path: Path, whole: Whole, *, deep: bool, verified: bool) -> str:
    """Reads a damaged workspace; says whether it was refused, cut or right. Anything else is raised, and so is damage
    of which `verify`, where it looks first, says nothing."""
    reported = not verified or is_reported(path)
    outcome = _examine(path, whole, deep=deep, asked=verified)
    require(outcome == "right" or reported, f"verify says nothing, but the workspace is {outcome}")
    return outcome


def examine_index(path: Path, whole: Whole) -> str:
    """Reads a workspace with a damaged index, which nobody may notice; `verify` puts it right."""
    with open_workspace(path) as workspace:
        require(reading(workspace) == whole.reading, "a damaged index changed what is read")
        right = check_answers(ask(workspace), whole.answers)
    try:
        report = verify(path)
    except RecollectError as e:
        raise Wrong(f"verify gave up: {e}") from e
    require(all(p.level != "lost" for p in report.problems), f"verify reports lost rows: {report.problems}")
    require(right or not report.ok, "verify says nothing of an index that hides something")
    with open_workspace(path) as workspace:
        require(ask(workspace) == whole.answers, "answers are not right after verify")
    require(not is_reported(path), f"verify is not silent after it repaired: {verify(path).problems}")
    return "index harmless" if right else "index hid something until verify"


def _examine(path: Path, whole: Whole, *, deep: bool, asked: bool) -> str:
    try:
        with open_workspace(path) as workspace:
            require((workspace.id, workspace.name, workspace.durability) == whole.about, "it took another name")
            if reading(workspace) == whole.reading:
                if deep:
                    check_workspace(workspace, whole.lenient)
                    require(ask(workspace) == whole.answers, "answers differ")
                return "right"
            check_workspace(workspace, whole.lenient)
            if asked:
                ask(workspace)
            short = any(
                value for r in workspace.recovered for name, value in vars(r).items() if name.startswith("lost")
            )
            require(short, "something is missing, and nothing says so")
            return "cut"
    except RecollectError:
        return "refused"


def reading(workspace: Workspace) -> dict[str, Any]:
    """Everything that a view holds, as bytes."""
    view = workspace.view()
    assert isinstance(view.rows, PackedRows)
    slots = np.arange(len(view.rows))
    after = view.episodes.next_observation(slots)
    fixed = [leaf.path for leaf in view.schema.leaves if not is_heap(leaf.field)]
    seen = [leaf.path for leaf in view.schema.observations if not is_heap(leaf.field)]
    out: dict[str, Any] = {
        **{name: a.tobytes() for name, a in view.rows.gather(slots, (*_SYSTEM, *fixed)).items()},
        **{f"next_{name}": a.tobytes() for name, a in view.rows.gather(after, seen).items()},
        "drawable": view.anchors.mask(slots).tobytes(),
        "facts": sorted(fact for history in view.facts.history.values() for fact in history),
    }
    for leaf in view.schema.leaves:
        if is_heap(leaf.field):
            out[leaf.path] = view.rows.heap_values(slots, leaf.path)
        if is_heap(leaf.field) and leaf.is_observation:
            out[f"next_{leaf.path}"] = view.rows.heap_values(after, leaf.path)
        if leaf.field.optional:
            out[f"valid/{leaf.path}"] = view.rows.valid(slots, leaf.path).tobytes()
    return out


def _workspace(folder: Path, chance: random.Random, kind: str) -> tuple[Path, Expectation]:
    """A small workspace of one or two logs."""
    small_segments()
    path, journal = folder / "w", Journal()
    indexed = chance.random() < 0.5
    create_workspace(path, SCHEMAS[chance.choice(sorted(SCHEMAS))](), durability="process").close()
    ops = random_ops(chance, chance.choice((6, 14, 20)), durabilities=("process",), durability="process")
    if kind != "closed":
        ops = ops[: next(k for k, op in enumerate(ops) if isinstance(op, Close))]

    def act() -> None:
        with open_workspace(path) as workspace:
            Actor(workspace, Ledger("process")).run(ops, journal.note)
            if indexed:
                build_indexes(workspace)
            if kind != "closed":
                die()

    ended(forked(act))
    expectation = expect(ops, journal.read(), durability="process", power=False)
    journal.close()
    if kind == "copied":
        shutil.copytree(path, folder / "copy" / "w")
        path = folder / "copy" / "w"
    return path, expectation


def restore(path: Path, files: dict[Path, bytes]) -> None:
    """Puts every file back as it was, under its inode, and removes what was added."""
    known = {str(file) for file in files}
    for folder, _, names in os.walk(path):
        for name in names:
            if f"{folder}/{name}" not in known:
                os.unlink(f"{folder}/{name}")  # noqa: PTH108 - a third of the cost, as paths
    for file, raw in files.items():
        write_in_place(file, raw)


def write_in_place(file: Path, raw: bytes) -> None:
    fd = os.open(file, os.O_WRONLY | os.O_CREAT, 0o644)
    try:
        os.pwrite(fd, raw, 0)
        os.ftruncate(fd, len(raw))
    finally:
        os.close(fd)


def _pick(files: dict[Path, bytes], chance: random.Random) -> Path:
    """A file: mostly a segment, since most bytes are there; seldom an index, which is made anew each time."""
    segments, indexes = ([f for f in files if f.suffix == suffix] for suffix in (".seg", INDEX))
    kinds = [segments] * 64 + [indexes or segments] + [[f for f in files if f.suffix != INDEX]] * 32
    return chance.choice(chance.choice(kinds))


def damage(raw: bytes, chance: random.Random) -> tuple[bytes, str]:
    """Damaged bytes, and what was done to them."""
    kind = chance.choice(("bit", "bit", "byte", "byte", "zeros", "ones", "cut", "extended", "swapped", "replaced"))
    at = _place(raw, chance)
    out = bytearray(raw)
    match kind:
        case "bit" if raw:
            bit = chance.randrange(8)
            out[at] ^= 1 << bit
            return bytes(out), f"bit {bit} of byte {at} flipped"
        case "byte" if raw:
            out[at] = chance.randrange(256)
            return bytes(out), f"byte {at} set to {out[at]}"
        case "zeros" | "ones" if raw:
            size = min(chance.choice((1, 4, 8, 64, 512, 4096)), len(raw) - at)
            out[at : at + size] = (b"\0" if kind == "zeros" else b"\xff") * size
            return bytes(out), f"{size} bytes from {at} set to {out[at]}"
        case "cut":
            return raw[:at], f"cut off at {at}"
        case "replaced":
            size = chance.choice((0, 100, len(raw)))
            return chance.randbytes(size), f"replaced by {size} bytes"
        case "swapped" if len(raw) >= 8192:
            a, b = (4096 * chance.randrange(len(raw) // 4096) for _ in range(2))
            out[a : a + 4096], out[b : b + 4096] = raw[b : b + 4096], raw[a : a + 4096]
            return bytes(out), f"pages at {a} and {b} swapped"
    size = chance.choice((1, 100, 4096, 100_000))
    return raw + (bytes(size) if chance.random() < 0.5 else chance.randbytes(size)), f"{size} bytes added"


def may_not_matter(file: Path, before: bytes, after: bytes) -> bool:
    """Whether damage is where nothing is kept, or where recovery has it from elsewhere: a seal, what is behind the end
    of a segment, or its pages that were never written."""
    if file.name == SEAL:
        return True
    if file.suffix != ".seg" or len(after) < len(before):
        return False
    pages = (len(before) + PAGE - 1) // PAGE
    changed = [
        k
        for k in range(pages)
        if before[k * PAGE : (k + 1) * PAGE] != after[k * PAGE : k * PAGE + PAGE][: len(before) - k * PAGE]
    ]
    return all(k > HEAD_PAGES and not before[k * PAGE : (k + 1) * PAGE].strip(b"\0") for k in changed)


def _place(raw: bytes, chance: random.Random) -> int:
    """A byte's number: half of the time one that is not zero, since most of a segment is room not yet used."""
    if not raw:
        return 0
    at = chance.randrange(len(raw))
    if chance.random() < 0.5:
        for k in range(at, min(at + 65536, len(raw))):
            if raw[k]:
                return k
    return at
