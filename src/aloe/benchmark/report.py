"""Puts the tables and plots of the suites into the docs, from the parquet files alone."""

import os
import re
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
from aloe.benchmark.overview import OVERVIEW, method_section, overview_section
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

    names: suites, and `OVERVIEW` for the one section, and plot, of all suites that have results, and for the sections of
    single methods, on whatever page beside `page` they are.

    Raises:
        ValueError: a suite has no results, or the page no section for it. Nothing has been written then.
    """
    if not page.is_file():
        raise ValueError(f"there is no {page} to put the tables into; name another with --page")
    suites = [name for name in names if name != OVERVIEW]
    text, rows = page.read_text(), {suite: Results(results, suite).read() for suite in suites}
    others: dict[Path, str] = {}
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
        others = _method_pages(every, page)
        draw_overview(every, pictures[OVERVIEW])
    for suite in rows.keys() & pictures.keys():
        draw_curves(rows[suite], pictures[suite])
    write_text(page, text)
    for other, content in others.items():
        write_text(other, content)
    return [page, *others, *pictures.values()]


def _method_pages(suites: Mapping[str, pd.DataFrame], page: Path) -> dict[Path, str]:
    """The pages beside `page`, and in folders there, with a section <!-- benchmark:method METHOD -->; it is filled anew."""
    pages = {}
    for other in sorted(set(page.parent.rglob("*.md")) - {page}):
        text = other.read_text()
        for method in re.findall(r"<!-- benchmark:method (\S+) -->", text):
            section = method_section(suites, method, Path(os.path.relpath(page, other.parent)).as_posix())
            text = pages[other] = replace_section(text, f"method {method}", section, other)
    return pages


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

    A row of panels for each of `_groups`.
    """
    seeds = {method: set(rows.loc[rows["method"] == method, "seed"]) for method in methods_of(rows)}
    groups = _groups(seeds)
    figure, grid = plt.subplots(
        len(groups), 2, figsize=(11, 0.4 + 4 * len(groups)), layout="constrained", sharey=True, squeeze=False
    )
    places = [*METHODS, *(method for method in methods_of(rows) if method not in METHODS)]
    legend: dict[str, Artist] = {}
    for panels, (shared, drawn) in zip(grid, groups, strict=True):
        for method in drawn:
            spent, success = curve(rows.loc[rows["seed"].isin(list(shared))], method)
            for panel, name in zip(panels, _AXES, strict=True):
                _draw_curve(panel, spent[name], success, method, places.index(method), with_band=len(shared) > 1)
        panels[0].set_ylabel(_SUCCESS)
        panels[0].set_title(f"seeds {' '.join(str(seed) for seed in sorted(shared))}", fontsize=10)
        legend |= dict(zip(*reversed(panels[0].get_legend_handles_labels()), strict=True))
    for panel, label in zip(grid[-1], _AXES.values(), strict=True):
        panel.set_xlabel(label)
    shown = [method for method in places if method in legend]
    figure.legend([legend[method] for method in shown], shown, loc="outside right center")
    figure.suptitle(f"{rows['suite'].iloc[0]} ({rows['observations'].iloc[0]})")
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _groups(seeds: Mapping[str, set[int]]) -> list[tuple[set[int], list[str]]]:
    """Which methods to draw together, on which seeds. Curves of one panel are of the same seeds, as others would begin
    elsewhere: those of a method, such that seeds times methods that have them all are most. What is left comes in panels of
    its own, beside the usual ones where these have its seeds."""
    groups: list[tuple[set[int], list[str]]] = []
    left = dict(seeds)
    while left:
        shared = max(
            left.values(), key=lambda some: (len(some) * sum(some <= each for each in left.values()), len(some))
        )
        new = [method for method in left if shared <= left[method]]
        beside = (*new, *_SIMPLE, REFERENCE)
        groups.append((shared, [method for method in seeds if method in beside and shared <= seeds[method]]))
        left = {method: some for method, some in left.items() if method not in new}
    return groups


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
