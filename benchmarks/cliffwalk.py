"""Blind Cliffwalk: updates until a table is learnt, by sampler and by the size of the store, through the real store.

    python benchmarks/cliffwalk.py [--most 12] [--seeds 10]     prints, and draws cliffwalk.png beside this file

Schaul et al. 2016, appendix B.1 and figure 1; `recollect.testing.cliffwalk` has the walk. `make bench` runs it too.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path

from lines import Line, verdict

PICTURE = Path(__file__).parent / "cliffwalk.png"
MOST, SEEDS = 12, 10
PAPER = {"uniform": 134_000, "oracle": 700, "greedy": 8_600, "proportional": 9_200, "proportional 0.6": 11_500}
"""Updates at n = 12 that were measured elsewhere, with numpy arrays in place of a store."""

Medians = dict[str, list[tuple[int, float]]]


def medians(folder: Path, most: int, seeds: int) -> Medians:
    """For each sampler (steps in the store, median of the updates), n from 2 on."""
    import recollect as rc
    from recollect.testing import cliffwalk

    out: Medians = {method: [] for method in cliffwalk.METHODS}
    for n in range(2, most + 1):
        with rc.create_workspace(folder / f"cliff-{n}", cliffwalk.SCHEMA) as ws:
            view = cliffwalk.fill(ws, n, seed=0)
            for method, line in out.items():
                found = [cliffwalk.updates(view, n, method, seed) for seed in range(seeds)]
                line.append((len(view), statistics.median(found)))
    return out


def lines(folder: Path) -> Iterator[Line]:
    """One line for the largest walk; draws the picture."""
    got = medians(folder, MOST, SEEDS)
    draw(got, PICTURE)
    last = {method: line[-1][1] for method, line in got.items()}
    told = ", ".join(f"{method} {count:,.0f} ({PAPER.get(method, 0):,})" for method, count in last.items())
    order = [last[x] for x in ("oracle", "greedy", "proportional", "proportional 0.6", "uniform")]
    yield Line(
        f"Blind Cliffwalk, n = {MOST}, {got['uniform'][-1][0]:,} steps, medians of {SEEDS} seeds (expected)",
        told.replace(" (0)", ""),
        "in the order oracle < greedy < proportional, α 1 before 0.6 < uniform; each within 1.5 ×",
        verdict(
            order == sorted(order)
            and last["rank"] < last["uniform"] / 4
            and all(1 / 1.5 <= last[m] / count <= 1.5 for m, count in PAPER.items())
        ),
    )


def draw(got: Medians, path: Path) -> None:
    """Updates against steps in the store, both logarithmic, as in figure 1 of the paper."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), dpi=120)
    for method, line in got.items():
        style = {"uniform": "-", "oracle": ":"}.get(method, "--")
        axes.plot(*zip(*line, strict=True), style, marker="o", markersize=3, linewidth=1.2, label=method)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("steps in the store")
    axes.set_ylabel("updates until the table is learnt, median")
    axes.set_title("Blind Cliffwalk")
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--most", type=int, default=MOST, help="states of the longest walk")
    parser.add_argument("--seeds", type=int, default=SEEDS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="recollect-bench-") as folder:
        os.environ["RECOLLECT_HOME"], os.environ["RECOLLECT_CACHE"] = f"{folder}/home", f"{folder}/cache"
        got = medians(Path(folder), options.most, options.seeds)
    for method, line in got.items():
        print(f"{method:18}", "  ".join(f"{steps:,}: {count:,.0f}" for steps, count in line))
    draw(got, PICTURE)


if __name__ == "__main__":
    main()
