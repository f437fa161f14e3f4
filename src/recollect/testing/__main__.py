"""`python -m recollect.testing HARNESS`: run a harness on this machine."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

HARNESSES = {"kills": 50, "power": 300, "fuzz": 5000}
"""Name → cases of the short form. The long forms are 5,000, 10,000 and 1,000,000."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the harness that the command line names; 0 when it found nothing."""
    parser = argparse.ArgumentParser(prog="python -m recollect.testing", description=__doc__)
    parser.add_argument("harness", choices=sorted(HARNESSES))
    parser.add_argument("--count", type=int, help="cases; the short form's number when left out")
    parser.add_argument("--seed", type=int, help="RECOLLECT_SEED, or a new one when left out")
    parser.add_argument("--case", type=int, help="run one case again")
    parser.add_argument("--jobs", type=int, default=len(os.sched_getaffinity(0)), help="processes at a time")
    parser.add_argument("--folder", type=Path, help="where to work; in memory when left out")
    given = parser.parse_args(arguments)
    from recollect.testing.cases import default_seed

    seed = default_seed() if given.seed is None else given.seed
    print(f"seed {seed}", flush=True)
    count, first = given.count or HARNESSES[given.harness], 0
    if given.case is not None:
        count, first = 1, given.case
    harness = importlib.import_module(f"recollect.testing.{given.harness}")
    report = harness.run(count, seed=seed, first=first, jobs=given.jobs, folder=given.folder)
    print(report)
    return 1 if report.finds else 0


if __name__ == "__main__":
    sys.exit(main())
