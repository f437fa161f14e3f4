"""A harness that finds nothing proves nothing: each is run on a product with a bug put in."""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from recollect.testing.disk import PAGE, Versions, compose_file
from tests.support import run_python

CASES = {"kills": 40, "power": 120, "fuzz": 1000}
PLANTED = {
    "kills: a step is acknowledged before it is written": (
        "kills",
        "must be there|was StepId",
        """
from recollect.hot.write.writer import Episode
from recollect.view import StepId
real = Episode.append
held = {}
def append(self, **step):
    waiting = held.pop(id(self), None)
    id_ = real(self, **waiting) if waiting else None
    if step.get("terminated") or step.get("truncated"):
        return real(self, **step)
    held[id(self)] = step
    return StepId(self._writer.id, id_.seq + 1 if id_ else 0)
Episode.append = append
""",
    ),
    "power: a sync that flushes nothing": (
        "power",
        "must be there|CorruptionError",
        """
import os
import recollect.hot.format.segment as segment
class Os:
    fdatasync = staticmethod(lambda fd: None)
    def __getattr__(self, name):
        return getattr(os, name)
segment.os = Os()
""",
    ),
    "power: folders are not flushed": (
        "power",
        "gone|must be there|unreported",
        """
import recollect.hot.format.files as files
import recollect.hot.format.segment as segment
files.sync_folder = segment.sync_folder = lambda path: None
""",
    ),
    "power: frames are not verified": (
        "power",
        "Wrong|Error",
        """
from recollect.hot.format.checked import Checked
def whole_rows(self, start, stop):
    records, header = self._records, self._header
    while start < min(stop, len(records)) and records["seq"][start] == header.first_row + start and (
        records["writer"][start] == header.writer
    ):
        start += 1
    return start
Checked.whole_rows = whole_rows
Checked.require_rows = lambda self, low, high: None
""",
    ),
    "kills: an observation that waited is forgotten when another writer goes on": (
        "kills",
        "next observation",
        """
import dataclasses
import recollect.workspace as workspace
real = workspace.resume_point
workspace.resume_point = lambda *a: dataclasses.replace(real(*a), waiting=None)
""",
    ),
    "kills: a resumed episode begins again": (
        "kills",
        "step indices",
        """
import dataclasses
import recollect.workspace as workspace
real = workspace.resume_point
workspace.resume_point = lambda *a: dataclasses.replace(real(*a), step=1)
""",
    ),
    "power: a resumption does not flush the rows before it": (
        "power",
        "must be there|without those before|unreported",
        """
import recollect.hot.write.resume as resume
resume.sync_file = lambda path: None
""",
    ),
    "fuzz: verify says nothing": (
        "fuzz",
        "verify says nothing",
        """
import recollect.testing.questions as questions
class Silent:
    ok = True
questions.verify = lambda path: Silent
fuzz._pick = lambda files, chance: chance.choice([f for f in files if f.suffix == ".seg"])
""",
    ),
    "fuzz: a damaged index is an error": (
        "fuzz",
        "DatabaseError|Stale|Damaged|OperationalError",
        """
from recollect.hot.read.sidecar import Sidecar
def after(self, error, doing):
    raise error
Sidecar._after = after
fuzz._pick = lambda files, chance: chance.choice([f for f in files if f.suffix in (".sqlite", ".seg")])
""",
    ),
}


@pytest.mark.parametrize("bug", sorted(PLANTED))
def test_a_bug_that_is_put_in_is_found(bug: str) -> None:
    harness, words, patch = PLANTED[bug]
    code = f"""
from recollect.testing import {harness}
{harness}.warm_up()
{harness}.warm_up = lambda: None
{patch}
import recollect.testing.cases as cases
cases.MOST_FINDS = 1
report = {harness}.run({CASES[harness]}, seed=3)
print(len(report.finds), *[find.what.strip().splitlines()[-1] for find in report.finds] or [report])
"""
    found, _, what = run_python(code, timeout_s=120).partition(" ")
    assert int(found) > 0, what
    assert re.search(words, what), what


def test_a_case_that_dies_of_a_signal_is_a_find_and_the_others_go_on(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from recollect.testing.cases import doing, run_cases
def case(folder, chance, counts):
    number = len(list(folder.parent.glob("seen*")))
    (folder.parent / f"seen{number}").touch()
    doing(f"case of number {number}")
    if number == 2:
        os.kill(os.getpid(), signal.SIGSEGV)
    assert number != 4, "four"
    counts["done"] += 1
report = run_cases("made up", case, 7, seed=1, folder=Path(sys.argv[1]))
print(report.cases, report.counts["done"], [f.case for f in report.finds])
print(report)
"""
    first, *rest = run_python(code, str(tmp_path)).splitlines()
    # What a case counted is lost with its process, not what others counted.
    assert first.split(" ", 2)[0] == "7" and first.endswith("[2, 4]")
    text = "\n".join(rest)
    assert "SIGSEGV; it was at: case of number 2" in text and "AssertionError: four" in text
    assert "--seed 1 --case 4" in text


def test_cases_depend_on_their_seed_and_number_alone(tmp_path: Path) -> None:
    code = """
from recollect.testing.cases import run_cases
def case(folder, chance, counts):
    counts[str(chance.random())] += 1
print(sorted(run_cases("x", case, 4, seed=9, jobs=2).counts) == sorted(run_cases("x", case, 4, seed=9).counts))
print(sorted(run_cases("x", case, 1, seed=9, first=2).counts)[0] in run_cases("x", case, 4, seed=9).counts)
"""
    assert run_python(code).split() == ["True", "True"]


def test_a_page_that_was_flushed_is_never_zeroed_and_an_unchanged_one_never_differs() -> None:
    old, new = b"a" * PAGE + b"same" * 1024, b"b" * PAGE + b"same" * 1024
    seen: Counter[bytes] = Counter()
    for k in range(200):
        out = compose_file(Versions(old, [new]), random.Random(k))
        assert len(out) == 2 * PAGE and out[PAGE:] == b"same" * 1024
        sectors = np.frombuffer(out[:PAGE], np.uint8).reshape(-1, 512)
        assert ((sectors == sectors[:, :1]).all(axis=1)).all() and set(out[:PAGE]) <= {97, 98}
        seen[bytes(sorted(set(out[:PAGE])))] += 1
    assert set(seen) == {b"a", b"b", b"ab"}


def test_a_file_that_was_never_flushed_may_be_empty_zeroed_or_whole() -> None:
    lengths, contents = set(), set()
    for k in range(300):
        out = compose_file(Versions(None, [b"x" * 2 * PAGE]), random.Random(k))
        lengths.add(len(out))
        contents.add((out[:1], out[PAGE : PAGE + 1]))
    assert lengths == {0, 2 * PAGE}
    assert contents >= {(b"", b""), (b"x", b"x"), (b"\0", b"x"), (b"x", b"\0")}
