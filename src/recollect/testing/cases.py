"""Running many cases of a harness: each has a seed of its own, runs where a crash is seen, and can be run again alone.

A case is a function of (folder, random generator, counts). It raises what it finds. Cases run in child processes, one
per core if asked: a case that kills its process with a signal is a find like any other.
"""

from __future__ import annotations

import json
import mmap
import os
import random
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, TypeAlias

Case: TypeAlias = Callable[[Path, random.Random, "Counter[str]"], None]
MOST_FINDS = 5
_AT = struct.Struct("<q")
_SHARED = 4096
_doing: mmap.mmap | None = None


@dataclass(frozen=True)
class Find:
    """A case that failed."""

    case: int
    what: str


@dataclass
class Report:
    """What a run did.

    Attributes:
        name, seed: which harness, from which seed.
        cases: cases that ran; `seconds` how long all of them took.
        finds: the first few that failed.
        counts: what the cases counted: kills, cuts, inputs, and how they ended.
    """

    name: str
    seed: int
    cases: int = 0
    seconds: float = 0.0
    finds: list[Find] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        counts = ", ".join(f"{n} {what}" for what, n in sorted(self.counts.items()))
        lines = [f"{self.name}: {self.cases} cases from seed {self.seed} in {self.seconds:.1f} s; {counts}"]
        for find in self.finds:
            lines.append(f"\ncase {find.case} of seed {self.seed} failed: {find.what.rstrip()}")
            lines.append(f"again: python -m recollect.testing {self.name} --seed {self.seed} --case {find.case}")
        return "\n".join(lines)


def scratch_folder() -> Path | None:
    """A folder in memory where there is one: no case needs a disk, since power cuts are acted out."""
    shm = Path("/dev/shm")
    return shm if shm.is_dir() and os.access(shm, os.W_OK) else None


def default_seed() -> int:
    """`RECOLLECT_SEED`, or a new one."""
    given = os.environ.get("RECOLLECT_SEED")
    return int(given) if given else int.from_bytes(os.urandom(4), "little")


def doing(what: str) -> None:
    """Notes what a case is about to do, so that it is known if its process dies of it."""
    if _doing is not None:
        _doing[_AT.size :] = what.encode()[: _SHARED - _AT.size].ljust(_SHARED - _AT.size, b"\0")


def run_cases(
    name: str,
    case: Case,
    count: int,
    *,
    seed: int,
    first: int = 0,
    jobs: int = 1,
    folder: Path | None = None,
) -> Report:
    """Runs cases `first` to `first + count` in child processes.

    Call it from a process without other threads; `python -m recollect.testing` is one.

    Args:
        name: of the harness, for the command that runs a case again.
        case: see the module.
        seed: with a case's number, all that the case depends on.
        jobs: processes at a time.
        folder: where the cases work; in memory when None.
    """
    report, begin = Report(name, seed), time.monotonic()
    with tempfile.TemporaryDirectory(prefix="recollect-", dir=folder or scratch_folder()) as root:
        workers = [_Worker(case, seed, range(first + k, first + count, jobs), Path(root) / str(k)) for k in range(jobs)]
        while any(worker.left for worker in workers):
            for worker in workers:
                worker.go_on(report)
        for worker in workers:
            worker.close()
    report.seconds = time.monotonic() - begin
    report.finds.sort(key=lambda find: find.case)
    return report


class _Worker:
    """One child at a time, which runs cases until it is done, finds something, or dies."""

    def __init__(self, case: Case, seed: int, numbers: range, folder: Path) -> None:
        self.case, self.seed, self.numbers, self.folder = case, seed, numbers, folder
        self.at = mmap.mmap(-1, _SHARED)
        self.out = os.memfd_create("cases")
        self.done = 0
        self.child = 0
        self._start()

    @property
    def left(self) -> int:
        return len(self.numbers) - self.done

    def _start(self) -> None:
        if not self.left:
            return
        os.ftruncate(self.out, 0)
        _AT.pack_into(self.at, 0, self.done)
        sys.stdout.flush()
        self.child = os.fork()
        if self.child == 0:
            self._run()

    def _run(self) -> NoReturn:
        """In the child: cases one after the other. Never returns."""
        global _doing
        _doing = self.at
        counts: Counter[str] = Counter()
        find = ""
        for k in range(self.done, len(self.numbers)):
            _AT.pack_into(self.at, 0, k)
            doing("")
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir()
            try:
                self.case(self.folder, random.Random(f"{self.seed}.{self.numbers[k]}"), counts)
            except BaseException:
                find = traceback.format_exc()
                break
        else:
            _AT.pack_into(self.at, 0, len(self.numbers))
        os.pwrite(self.out, json.dumps([find, counts]).encode(), 0)
        os._exit(0)

    def go_on(self, report: Report) -> None:
        """Waits for the child, takes what it found, and starts another behind the case that failed."""
        if not self.left:
            return
        status = os.waitstatus_to_exitcode(os.waitpid(self.child, 0)[1])
        at = int(_AT.unpack_from(self.at, 0)[0])
        report.cases += at - self.done
        raw = os.pread(self.out, os.fstat(self.out).st_size, 0)
        what = ""
        if raw:
            what, counts = json.loads(raw)
            report.counts.update(counts)
        if status:
            what = f"the process died: {signal.Signals(-status).name if status < 0 else f'exit code {status}'}"
            what += f"; it was at: {self.at[_AT.size :].rstrip(bytes(1)).decode(errors='replace')}"
        if what:
            report.cases += 1
            report.finds.append(Find(self.numbers[at], what))
            at = len(self.numbers) if len(report.finds) >= MOST_FINDS else at + 1
        self.done = at
        self._start()

    def close(self) -> None:
        os.close(self.out)
        self.at.close()
