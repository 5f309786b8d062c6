"""Puts the tables and plots of the suites into the docs, from the parquet files alone."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")  # no screen is needed
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes

from aloe.benchmark.ablations import question_section
from aloe.benchmark.critics import critics_section
from aloe.benchmark.overview import OVERVIEW, overview_section
from aloe.benchmark.results import Results
from aloe.benchmark.statistics import Estimate
from aloe.benchmark.suites import ABLATION, METHODS, QUESTIONS, REFERENCE, SUITES
from aloe.benchmark.tables import curve, methods_of, origin_section, suite_section
from aloe.run import write_text

# Okabe and Ito's colours, which the colour-blind can tell apart; grey for yellow, which is too pale for a line. The last is
# ALOE's, by its place in `METHODS`.
_COLOURS = ("#888888", "#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#0072B2", "#D55E00", "#000000")
_MARKERS = "osD^vPX*<>"
_AXES = {"episodes": "episodes in the store (demonstrations included)", "human_steps": "environment steps by the human"}
_SUCCESS = "success with nobody watching, percent"
_SIMPLE = ("sft", "dagger", "filtered")
"""What a lab would do without critics: all that the overview's plot sets beside `REFERENCE`."""


def write_report(names: Sequence[str], results: Path, page: Path) -> list[Path]:
    """Replaces the section of every suite in `page`, and draws its curves beside it; returns what was written.

    A section stands between the lines <!-- benchmark:SUITE --> and <!-- /benchmark -->. The ablations have one more for
    each of their `QUESTIONS`, <!-- benchmark:ablations-state QUESTION -->.

    names: suites, and `OVERVIEW` for the one section, and plot, of all suites that have results.

    Raises:
        ValueError: a suite has no results, or the page no section for it. Nothing has been written then.
    """
    if not page.is_file():
        raise ValueError(f"there is no {page} to put the tables into; name another with --page")
    suites = [name for name in names if name != OVERVIEW]
    text, rows = page.read_text(), {suite: Results(results, suite).read() for suite in suites}
    # The ablations have one round, and so no curves.
    pictures = {suite: page.with_name(f"benchmark-{suite}.png") for suite in suites if suite != ABLATION}
    for suite in suites:
        for name, section in _sections(suite, rows[suite], pictures.get(suite)).items():
            text = replace_section(text, name, section, page)
    if OVERVIEW in names:
        compared = [suite for suite in with_results(results) if suite != ABLATION]
        if not compared:
            raise ValueError(
                f"there are no results of methods in {results}; play a suite first: aloe benchmark {SUITES[0]} "
                f"(ablations alone are shown by aloe benchmark-report {ABLATION})"
            )
        every = {suite: Results(results, suite).read() for suite in compared}
        pictures[OVERVIEW] = page.with_name(f"benchmark-{OVERVIEW}.png")
        text = replace_section(text, OVERVIEW, overview_section(every, pictures[OVERVIEW].name), page)
        draw_overview(every, pictures[OVERVIEW])
    for suite in rows.keys() & pictures.keys():
        draw_curves(rows[suite], pictures[suite])
    write_text(page, text)
    return [page, *pictures.values()]


def with_results(results: Path) -> list[str]:
    """The suites that have been played, in the order of `SUITES`; others after them."""
    played = {path.stem for path in results.glob("*.parquet")}
    return [name for name in SUITES if name in played] + sorted(played - set(SUITES))


def _sections(suite: str, rows: pd.DataFrame, picture: Path | None) -> dict[str, str]:
    if suite == ABLATION:
        tables = {f"{suite} {question}": question_section(rows, question) for question in QUESTIONS}
        return tables | {suite: origin_section(rows)}
    return {suite: suite_section(rows, picture.name if picture else None, critics_section(rows))}


def replace_section(text: str, name: str, section: str, page: Path) -> str:
    """The page with a new section of this name."""
    begin, end = f"<!-- benchmark:{name} -->", "<!-- /benchmark -->"
    before, found, rest = text.partition(begin)
    old, closed, after = rest.partition(end)
    if not found or not closed or "<!-- benchmark:" in old:  # whose own end is missing would take others along
        raise ValueError(
            f"{page} has no place for {name}; add the lines {begin} and {end} where its tables shall stand"
        )
    return f"{before}{begin}\n\n{section}\n\n{end}{after}"


def draw_curves(rows: pd.DataFrame, path: Path) -> None:
    """Success over episodes and over the human's steps: interquartile mean of the seeds, with its 95 % interval.

    All curves are of the same seeds, as others would begin elsewhere: those of a method, such that seeds times methods
    that have them all are most. The other methods are left out.
    """
    figure, panels = plt.subplots(1, 2, figsize=(11, 4.4), layout="constrained", sharey=True)
    places = [*METHODS, *(method for method in methods_of(rows) if method not in METHODS)]
    seeds = {method: set(rows.loc[rows["method"] == method, "seed"]) for method in methods_of(rows)}
    shared = max(seeds.values(), key=lambda some: (len(some) * sum(some <= each for each in seeds.values()), len(some)))
    drawn = [method for method in seeds if shared <= seeds[method]]
    for method in drawn:
        spent, success = curve(rows.loc[rows["seed"].isin(list(shared))], method)
        for panel, name in zip(panels, _AXES, strict=True):
            _draw_curve(panel, spent[name], success, method, places.index(method), with_band=len(shared) > 1)
    for panel, label in zip(panels, _AXES.values(), strict=True):
        panel.set_xlabel(label)
    panels[0].set_ylabel(_SUCCESS)
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center")
    others = "" if all(each == shared for each in seeds.values()) else "; the table has all"
    named = " ".join(str(seed) for seed in sorted(shared))
    figure.suptitle(f"{rows['suite'].iloc[0]} ({rows['observations'].iloc[0]}), seeds {named}{others}")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def draw_overview(suites: Mapping[str, pd.DataFrame], path: Path) -> None:
    """Success over episodes in every suite: `REFERENCE` and what is done without critics, on the seeds that all have."""
    columns = min(3, len(suites))
    size = -(-len(suites) // columns), columns
    figure, grid = plt.subplots(
        *size, figsize=(11, 0.6 + 2.6 * size[0]), layout="constrained", sharey=True, squeeze=False
    )
    legend: dict[str, Artist] = {}
    panels = list(grid.flat)
    for panel in panels[len(suites) :]:
        panel.set_axis_off()
    for panel, (suite, rows) in zip(panels, suites.items(), strict=False):
        drawn = [method for method in (*_SIMPLE, REFERENCE) if (rows["method"] == method).any()]
        seeds = set(rows["seed"]).intersection(*(rows.loc[rows["method"] == method, "seed"] for method in drawn))
        for method in drawn if seeds else ():
            spent, success = curve(rows.loc[rows["seed"].isin(list(seeds))], method)
            _draw_curve(
                panel, spent["episodes"], success, method, list(METHODS).index(method), with_band=len(seeds) > 1
            )
        panel.set_title(f"{suite}, seeds: {len(seeds)}", fontsize=10)
        legend |= dict(zip(*reversed(panel.get_legend_handles_labels()), strict=True))
    figure.supxlabel(_AXES["episodes"], fontsize=10)
    figure.supylabel(_SUCCESS, fontsize=10)
    figure.legend(legend.values(), legend.keys(), loc="outside right center")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _draw_curve(
    panel: Axes, spent: list[float], success: list[Estimate], method: str, place: int, *, with_band: bool
) -> None:
    """place: of the method in `METHODS`, which decides how it looks. with_band: of one seed the spread is not known."""
    colour, marker = _COLOURS[place % len(_COLOURS)], _MARKERS[place % len(_MARKERS)]
    line = "-" if place < len(_COLOURS) else "--"
    panel.plot(spent, [100 * s.value for s in success], line, color=colour, marker=marker, ms=5, label=method)
    if with_band:
        low, high = (np.array([getattr(s, end) for s in success]) for end in ("low", "high"))
        panel.fill_between(spent, 100 * low, 100 * high, color=colour, alpha=0.12, linewidth=0)
    panel.set_ylim(0, 102)
    panel.grid(visible=True, alpha=0.3)
