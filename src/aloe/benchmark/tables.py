"""The tables of a suite as Markdown, from its rows alone."""

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from aloe.benchmark import statistics
from aloe.benchmark.results import PLAIN, by_cell, check_one_start, start_seconds
from aloe.benchmark.start import CHOICE
from aloe.benchmark.statistics import Estimate
from aloe.benchmark.suites import ABLATION, ABLATIONS, METHODS, REFERENCE


def methods_of(rows: pd.DataFrame) -> list[str]:
    """The methods that were played, in the order of `METHODS` and `ABLATIONS`; others after them."""
    played, known = set(rows["method"]), dict.fromkeys([*METHODS, *ABLATIONS])
    return [name for name in known if name in played] + sorted(played - known.keys())


def check_comparable(rows: pd.DataFrame) -> int:
    """The last round of the suite.

    Raises:
        ValueError: the cells differ in how much they were given, or in how they began, so that no table may set them side
            by side.
    """
    suite = rows["suite"].iloc[0]
    for name in ("observations", "evaluation_episodes"):
        if rows[name].nunique() > 1:
            raise ValueError(f"rows of {suite} differ in {name}: {sorted(set(rows[name]))}; play the older cells anew")
    if suite != ABLATION and rows["start_hash"].nunique() > 1:  # there, a variant may have a start of its own
        other = rows.loc[rows["start_hash"] != rows["start_hash"].iloc[0], "method"].iloc[0]
        raise ValueError(
            f"rows of {suite} began in different ways ({rows['method'].iloc[0]} and {other} among them): its tasks or its "
            f"budget have changed; play the older cells anew"
        )
    check_one_start(rows)
    for method in methods_of(rows):
        if rows.loc[rows["method"] == method, "config_hash"].nunique() > 1:
            raise ValueError(
                f"seeds of {method} in {suite} were played under different configs and may not be averaged; "
                f"play the older ones anew: aloe benchmark {suite} --methods {method}"
            )
    lasts = {cell: int(mine["round"].max()) for cell, mine in by_cell(rows).items()}
    fewest, most = min(lasts.values()), max(lasts.values())
    if fewest < most:
        method, seed = min(lasts, key=lambda cell: lasts[cell])
        raise ValueError(
            f"cells of {suite} have {fewest} to {most} rounds; play those with fewer anew, "
            f"first aloe benchmark {suite} --methods {method} --seeds {seed}"
        )
    return most


def suite_section(rows: pd.DataFrame, picture: str | None, critics: Sequence[str] = ()) -> str:
    """Everything that the docs say about a suite's results, without a heading. picture: file of its curves, if any.
    critics: paragraphs about the critics."""
    last = check_comparable(rows)
    observations, episodes = rows["observations"].iloc[0], rows["evaluation_episodes"].iloc[0]
    parts = [
        f"Observations: **{observations}**. Round {last}, {episodes} evaluation episodes a seed and measurement; success "
        "in percent, interquartile mean over seeds with its 95 % interval. *Critics choosing*: the same policy "
        "with the best of its chunks by the critics executed, where the method's success is that of the policy alone.",
        markdown_table(_HEAD, [_method_row(rows, method, last) for method in methods_of(rows)]),
    ]
    told = rows.loc[(rows["measurement"] == PLAIN) & rows["by_task"].notna()]
    if len(told):
        parts += [
            "Success in each task, in percent, mean over the seeds of which it is known; *the clone* is the policy that "
            "all start from.",
            _by_task(told, last),
        ]
    if REFERENCE in set(rows["method"]) and len(methods_of(rows)) > 1:
        parts += [
            f"`{REFERENCE}` against each: mean difference in percentage points over the seeds that both have, each pair "
            f"from the same start; probability that a seed of `{REFERENCE}` beats one of the other. *At equal human "
            "steps*: both curves read, linearly between rounds, where the one with fewer of the human's steps ends.",
            markdown_table(_AGAINST, [_against(rows, other, last) for other in methods_of(rows) if other != REFERENCE]),
        ]
    if picture is not None:
        parts.append(f"![success over episodes and over human steps]({picture})")
    parts += [
        *critics,
        origin_section(rows),
    ]
    return "\n\n".join(parts)


def origin_section(rows: pd.DataFrame) -> str:
    """The commands, cost, commits and machine of a suite's cells, and every number in them."""
    return "\n\n".join([_commands(rows), _origin(rows), _details(rows)])


_HEAD = (
    *("method", "seeds", "success", "mean", "successes an hour", "episodes", "human steps"),
    *("critics choosing", "under disturbance", "from unseen starts"),
)
_AGAINST = (
    *("method", "seeds", "difference in points", "probability of improvement"),
    *("at equal human steps", "under disturbance", "from unseen starts"),
)
_EVERY = (
    *("method", "seed", "round", "measurement", "episodes", "human steps", "takeovers"),
    *("successes", "steps to success", "successes an hour"),
)


def _method_row(rows: pd.DataFrame, method: str, last: int) -> list[str]:
    at_last = rows[(rows["method"] == method) & (rows["measurement"] == PLAIN) & (rows["round"] == last)]
    plain = np.array([*rates(rows, method, last, PLAIN).values()])
    return [
        f"`{method}`",
        str(len(plain)),
        measured(rows, method, last, PLAIN),
        f"{100 * plain.mean():.0f}",
        *(f"{at_last[name].mean():.0f}" for name in ("throughput", "episodes", "human_steps")),
        *(measured(rows, method, last, name) for name in (CHOICE, "disturbance", "unseen")),
    ]


def _by_task(told: pd.DataFrame, last: int) -> str:
    """A line for the clone and one for every method at its last round, a column a task."""
    firsts = told.loc[told["round"] == 0].drop_duplicates("seed")
    lasts = told.loc[told["round"] == last]
    groups = {"the clone": firsts} | {f"`{name}`": lasts.loc[lasts["method"] == name] for name in methods_of(lasts)}
    tasks = sorted(json.loads(told["by_task"].iloc[0]))
    lines = []
    for name, mine in groups.items():
        if mine.empty:
            continue
        counts = np.array([[json.loads(text)[task] for task in tasks] for text in mine["by_task"]])
        won, played = counts.sum(0).T
        lines.append([name, str(len(mine)), *(f"{100 * w / p:.0f}" for w, p in zip(won, played, strict=True))])
    return markdown_table(["method", "seeds", *tasks], lines)


def measured(rows: pd.DataFrame, method: str, last: int, measurement: str) -> str:
    """Interquartile mean over seeds with its interval; - where that has not been measured."""
    found = np.array([*rates(rows, method, last, measurement).values()])
    return percent(statistics.interquartile_mean(found)) if len(found) else "-"


def _against(rows: pd.DataFrame, other: str, last: int) -> list[str]:
    ours, theirs = (rates(rows, method, last, PLAIN) for method in (REFERENCE, other))
    chance = statistics.probability_of_improvement(np.array([*ours.values()]), np.array([*theirs.values()]))
    both = sorted(ours.keys() & theirs.keys())
    return [
        f"`{other}`",
        str(len(both)),
        difference(rows, REFERENCE, other, last),
        _with_interval(chance, ".2f"),
        _paired([_at_equal_human_steps(rows, other, seed) for seed in both]),
        *(difference(rows, REFERENCE, other, last, name) for name in ("disturbance", "unseen")),
    ]


def _at_equal_human_steps(rows: pd.DataFrame, other: str, seed: int) -> tuple[float, float]:
    """Success of `REFERENCE` and of another method on one seed, after as many of the human's steps."""
    mine = rows.loc[(rows["seed"] == seed) & (rows["measurement"] == PLAIN)].sort_values("round")
    curves = [mine.loc[mine["method"] == method] for method in (REFERENCE, other)]
    spent = min(int(curve["human_steps"].iloc[-1]) for curve in curves)
    won = [curve["successes"] / curve["evaluation_episodes"] for curve in curves]
    ours, theirs = (float(np.interp(spent, c["human_steps"], w)) for c, w in zip(curves, won, strict=True))
    return ours, theirs


def difference(rows: pd.DataFrame, method: str, other: str, last: int, measurement: str = PLAIN) -> str:
    """How many points of success `method` is above `other`: mean over the seeds that both have; - without any."""
    ours, theirs = (rates(rows, name, last, measurement) for name in (method, other))
    both = sorted(ours.keys() & theirs.keys())
    return _paired([(ours[seed], theirs[seed]) for seed in both])


def _paired(rates: Sequence[tuple[float, float]]) -> str:
    """Mean difference in points, in pairs of one seed each; - without any."""
    if not rates:
        return "-"
    ours, theirs = np.array(rates).T
    return percent(statistics.paired_difference(ours, theirs), "+.0f")


def rates(rows: pd.DataFrame, method: str, index: int, measurement: str) -> dict[int, float]:
    """Success rate of one round by seed; empty where nothing was measured."""
    mine = rows.loc[(rows["method"] == method) & (rows["measurement"] == measurement) & (rows["round"] == index)]
    found = mine["successes"] / mine["evaluation_episodes"]
    return {int(seed): float(rate) for seed, rate in sorted(zip(mine["seed"], found, strict=True))}


def percent(estimate: Estimate, form: str = ".0f") -> str:
    """84 (79 to 88); without an interval where there is none."""
    ends = (estimate.value, estimate.low, estimate.high)
    value, low, high = (None if end is None else 100 * end for end in ends)
    assert value is not None
    return _with_interval(Estimate(value=value, low=low, high=high), form)


def _with_interval(estimate: Estimate, form: str) -> str:
    value, low, high = (
        None if end is None else format(0.0 if format(end, form).strip("+-0.") == "" else end, form)
        for end in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value}" if low is None else f"{value} ({low} to {high})"


def _commands(rows: pd.DataFrame) -> str:
    """What plays these cells and ranks their policies: one command for each set of methods that have the same seeds."""
    suite = rows["suite"].iloc[0]
    lines = []
    for more, mine in (("", rows), (" --rank", rows.loc[rows["ranking"].notna()])):
        by_seeds: dict[tuple[int, ...], list[str]] = {}
        for method in methods_of(mine):
            seeds = tuple(sorted(int(seed) for seed in set(mine.loc[mine["method"] == method, "seed"])))
            by_seeds.setdefault(seeds, []).append(method)
        lines += [
            f"    aloe benchmark {suite} --methods {' '.join(methods)} --seeds {' '.join(map(str, seeds))}{more}"
            for seeds, methods in by_seeds.items()
        ]
    return "\n".join([*lines, f"    aloe benchmark-report {suite}"])


def _origin(rows: pd.DataFrame) -> str:
    commits, machines = (", ".join(sorted(set(rows[name]))) for name in ("commit", "machine"))
    names = ["collecting_seconds", "training_seconds", "evaluation_seconds"]
    hours = (rows[names].to_numpy().sum() - _counted_twice(rows)) / 3600
    return f"{len(by_cell(rows))} cells, {hours:.1f} hours of one core. Commit {commits}; {machines}."


def _counted_twice(rows: pd.DataFrame) -> float:
    """Seconds. A common start stands in the rows of every method that began there, but was made once."""
    once: dict[tuple[int, str], float] = {}
    every = 0.0
    for (_, seed), mine in by_cell(rows).items():
        every += start_seconds(mine)
        once.setdefault((seed, mine["start_hash"].iloc[0]), start_seconds(mine))
    return every - sum(once.values())


def _details(rows: pd.DataFrame) -> str:
    order = methods_of(rows)

    def place(row: dict[Any, Any]) -> tuple[Any, ...]:
        measurement = row["measurement"]
        return order.index(row["method"]), row["seed"], row["round"], measurement != PLAIN, measurement

    lines = []
    for row in sorted(rows.to_dict("records"), key=place):
        steps = "-" if np.isnan(row["steps_to_success"]) else f"{row['steps_to_success']:.0f}"
        given = (row[name] for name in ("seed", "round", "measurement", "episodes", "human_steps", "takeovers"))
        won = f"{row['successes']} of {row['evaluation_episodes']}"
        lines.append([f"`{row['method']}`", *given, won, steps, f"{row['throughput']:.0f}"])
    table = markdown_table(_EVERY, lines)
    return f"<details>\n<summary>Every seed and round</summary>\n\n{table}\n\n</details>"


def markdown_table(head: Sequence[str], lines: Sequence[Sequence[object]]) -> str:
    every = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in every)


def curve(rows: pd.DataFrame, method: str) -> tuple[dict[str, list[float]], list[Estimate]]:
    """Where a method stood after each round (means over seeds of `episodes` and `human_steps`), and its success there."""
    mine = rows.loc[(rows["method"] == method) & (rows["measurement"] == PLAIN)]
    rounds = sorted(set(mine["round"]))
    found = np.array([[*rates(rows, method, index, PLAIN).values()] for index in rounds])
    spent = {
        name: [float(mine.loc[mine["round"] == index, name].mean()) for index in rounds]
        for name in ("episodes", "human_steps")
    }
    return spent, statistics.interquartile_means(found.T)
