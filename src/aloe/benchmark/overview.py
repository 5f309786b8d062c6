"""All methods in all suites at a glance, from their rows alone."""

from collections.abc import Mapping
from typing import Final

import pandas as pd

from aloe.benchmark.results import PLAIN
from aloe.benchmark.suites import REFERENCE
from aloe.benchmark.tables import check_comparable, difference, markdown_table, measured, methods_of, rates

OVERVIEW: Final = "overview"
"""Name of the section."""

_CLOSEST: Final = ("dagger", "filtered")
"""The strongest of the others, beside which `REFERENCE` is set after every round."""


def overview_section(suites: Mapping[str, pd.DataFrame], picture: str) -> str:
    """Success of every method in every suite at its last round, how far `REFERENCE` is ahead of it there, and of the
    strongest of them after every round.

    suites: rows by the name of their suite. picture: of the learning curves, from the page.

    Raises:
        ValueError: cells of a suite may not be set side by side (`check_comparable`).
    """
    lasts = {name: check_comparable(rows) for name, rows in suites.items()}
    every = methods_of(pd.concat(suites.values(), ignore_index=True))
    head = ["method", *(f"`{name}`" for name in suites)]
    rounds = range(1, max(lasts.values()) + 1)

    def success(name: str, method: str) -> str:
        seeds = len(rates(suites[name], method, lasts[name], PLAIN))
        return f"{measured(suites[name], method, lasts[name], PLAIN)}, {seeds}" if seeds else "-"

    return "\n\n".join(
        [
            f"![success over episodes in every suite]({picture})",
            "Success in percent: interquartile mean over seeds, its 95 % interval, and the number of seeds. Methods of "
            "other seeds may have had easier or harder starts; the second table takes that out.",
            markdown_table(head, [[f"`{method}`", *(success(name, method) for name in suites)] for method in every]),
            f"How far `{REFERENCE}` is ahead, in percentage points: mean over the seeds that both have, each pair from the "
            "same start, and its 95 % interval.",
            markdown_table(
                head,
                [
                    [f"`{method}`", *(difference(suites[name], REFERENCE, method, lasts[name]) for name in suites)]
                    for method in every
                    if method != REFERENCE
                ],
            ),
            "The same after every round:",
            markdown_table(
                ["suite", "method", *(f"round {index}" for index in rounds)],
                [
                    [f"`{name}`", f"`{method}`", *(difference(rows, REFERENCE, method, index) for index in rounds)]
                    for name, rows in suites.items()
                    for method in _CLOSEST
                    if method in methods_of(rows)
                ],
            ),
        ]
    )


def method_section(suites: Mapping[str, pd.DataFrame], method: str, page: str) -> str:
    """What one method came to in every suite in which it was played. page: where the suites' sections are.

    Raises:
        ValueError: see `overview_section`; or it was played in none.
    """
    played = {name: rows for name, rows in suites.items() if method in methods_of(rows)}
    if not played:
        raise ValueError(f"{method} has no results; play it first, or take its section out of its page")
    lines = []
    for name, rows in played.items():
        last = check_comparable(rows)
        seeds = sorted(rates(rows, method, last, PLAIN))
        ahead = [] if method == REFERENCE else [difference(rows, REFERENCE, method, last)]
        names = method if method == REFERENCE else f"{method} {REFERENCE}"
        command = f"`aloe benchmark {name} --methods {names} --seeds {' '.join(map(str, seeds))}`"
        lines.append([f"`{name}`", measured(rows, method, last, PLAIN), *ahead, command])
    head = ["suite", "success", *([] if method == REFERENCE else [f"`{REFERENCE}` is ahead by"]), "played by"]
    also = "" if method == REFERENCE else f", and how many points `{REFERENCE}` is ahead on the same seeds"
    return "\n\n".join(
        [
            f"Success at the last round in percent, interquartile mean over the seeds with its 95 % interval{also}. "
            f"[Curves and every round]({page}#the-benchmark).",
            markdown_table(head, lines),
        ]
    )
