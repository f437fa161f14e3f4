"""The learning curve as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path


def draw_curve(curve: Sequence[tuple[int, float]], final: float, path: Path) -> None:
    """Writes return against environment steps, one point a round, with the final evaluation as a line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), dpi=120)
    steps = [s for s, _ in curve]
    returns = [r for _, r in curve]
    best = [max(returns[: k + 1]) for k in range(len(returns))]
    axes.plot(steps, returns, marker="o", markersize=3, linewidth=1, color="#4878a8", label="newest policy")
    axes.plot(steps, best, linewidth=1.5, color="#b04030", label="best so far")
    axes.axhline(final, linestyle="--", linewidth=1, color="#606060", label=f"final evaluation: {final:.0f}")
    axes.set_xlabel("environment steps in the snapshot")
    axes.set_ylabel("greedy return, mean of 20 episodes")
    axes.set_title("CartPole-v1, trained from snapshots only")
    axes.set_ylim(0, 520)
    axes.legend(loc="lower right", frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)
    plt.close(figure)
