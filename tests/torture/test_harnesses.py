"""The harnesses that ship with the product, short and long: kills, power cuts, damaged bytes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import recollect

LONG = pytest.mark.torture
INPUTS = int(os.environ.get("RECOLLECT_FUZZ_INPUTS", "1000000"))


def run_harness(name: str, count: int, *, short: bool) -> str:
    """Runs a harness in a clean process; fails with its report. The short forms run the same cases every time, the long
    ones explore."""
    jobs = len(os.sched_getaffinity(0))  # a case depends on its seed and number alone
    source = Path(recollect.__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "recollect.testing", name, "--count", str(count), "--jobs", str(jobs)],
        capture_output=True,
        text=True,
        env={**({"RECOLLECT_SEED": "1"} if short else {}), **os.environ, "PYTHONPATH": str(source)},
    )
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-4000:]}"
    return done.stdout


@pytest.mark.parametrize("kills", [50, pytest.param(5000, marks=[LONG, pytest.mark.timeout(3600)])])
def test_everything_acknowledged_survives_kills_once_equal_and_in_order(kills: int) -> None:
    run_harness("kills", kills, short=kills == 50)


@pytest.mark.parametrize("cuts", [300, pytest.param(10_000, marks=[LONG, pytest.mark.timeout(3600)])])
def test_everything_synced_survives_power_cuts_and_the_rest_is_a_prefix(cuts: int) -> None:
    run_harness("power", cuts, short=cuts == 300)


@pytest.mark.parametrize("inputs", [5000, pytest.param(INPUTS, marks=[LONG, pytest.mark.timeout(14_400)])])
def test_damaged_bytes_are_refused_reported_or_harmless(inputs: int) -> None:
    said = run_harness("fuzz", inputs, short=inputs == 5000)
    counts = {what: int(n) for n, what in re.findall(r"(\d+) (cut|refused|right|index harmless)", said)}
    assert sum(counts.values()) >= inputs
    # A product that refuses everything would pass, too; most bytes of a segment are room that is not used.
    assert counts["right"] > 0.4 * inputs and counts["refused"] < 0.3 * inputs and counts["cut"] > 0.1 * inputs
