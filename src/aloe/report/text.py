"""The table and the learning curve of a run, from its folder alone."""

import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # no screen is needed
import matplotlib.pyplot as plt
from rich.table import Table


def read_summary(run: Path) -> dict[str, Any]:
    """The content of `summary.json`.

    Raises:
        ValueError: there is none (yet).
    """
    path = run / "summary.json"
    if not path.is_file():
        raise ValueError(f"{run} holds no finished round: there is no summary.json; is it a run of `aloe run`?")
    return json.loads(path.read_text())


def summary_table(summary: dict[str, Any]) -> Table:
    """Round, episodes so far, human takeovers, success with its 95 % interval, steps to success, wall time."""
    table = Table(title=f"{summary['method']} on {summary['task']}, seed {summary['seed']}")
    for name in (
        "round",
        "episodes",
        "takeovers",
        "success",
        "95 % interval",
        "steps to success",
        "wall time",
    ):
        table.add_column(name, justify="right")
    elapsed = 0.0
    for row in summary["rounds"]:
        elapsed += sum(row["seconds"].values())
        steps = row["steps_to_success"]
        table.add_row(
            str(row["round"]),
            str(row["episodes"]),
            str(row["takeovers"]),
            *(
                ("-", "-")  # offline nothing is measured
                if row["success"] is None
                else (f"{row['success']:.0%}", f"{row['success_low']:.0%} to {row['success_high']:.0%}")
            ),
            "-" if steps is None else f"{steps:.0f}",
            f"{elapsed // 60:.0f}:{elapsed % 60:02.0f}",
        )
    return table


def draw_curve(summaries: list[dict[str, Any]], path: Path) -> None:
    """Success of every policy version over the episodes that it has learnt from, with 95 % Wilson intervals."""
    figure, axes = plt.subplots(figsize=(7, 4.2), layout="constrained")
    for summary in summaries:
        rounds = summary["rounds"]
        episodes = [row["episodes"] for row in rounds]
        axes.plot(
            episodes,
            [100 * row["success"] for row in rounds],
            marker="o",
            label=f"{summary['method']}, seed {summary['seed']}",
        )
        axes.fill_between(
            episodes,
            [100 * row["success_low"] for row in rounds],
            [100 * row["success_high"] for row in rounds],
            alpha=0.15,
        )
    axes.set_xlabel("episodes in the store (demonstrations included)")
    axes.set_ylabel("success of the policy alone, percent")
    axes.set_ylim(0, 102)
    axes.set_title(", ".join(sorted({summary["task"] for summary in summaries})))
    axes.grid(alpha=0.3)
    axes.legend(loc="lower right")
    figure.savefig(path, dpi=130)
    plt.close(figure)
