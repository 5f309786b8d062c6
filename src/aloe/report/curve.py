"""The learning curve of one or more runs as a picture, for pages that cannot hold the whole report."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no screen is needed
import matplotlib.pyplot as plt

from aloe.report.folder import RunSoFar


def draw_curve(runs: Sequence[RunSoFar], path: Path) -> None:
    """Success of every policy version over the episodes that it has learnt from, with 95 % Wilson intervals.

    Raises:
        ValueError: no run has measured any.
    """
    measured = [[row for row in run.rounds if row["success"] is not None] for run in runs]
    if not any(measured):
        raise ValueError(
            f"{' and '.join(str(run.root) for run in runs)}: no success has been measured; there is no curve"
        )
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for run, rounds in zip(runs, measured, strict=True):
        episodes = [row["episodes"] for row in rounds]
        label = f"{run.config['method']}, seed {run.config['seed']}"
        axes.plot(episodes, [100 * row["success"] for row in rounds], marker="o", label=label)
        low, high = ([100 * row[bound] for row in rounds] for bound in ("success_low", "success_high"))
        axes.fill_between(episodes, low, high, alpha=0.15)
    axes.set_xlabel("episodes in the store (demonstrations included)")
    axes.set_ylabel("success of the policy alone, percent")
    axes.set_ylim(0, 102)
    axes.set_title(", ".join(sorted({run.task for run in runs})))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=130)
    plt.close(figure)
