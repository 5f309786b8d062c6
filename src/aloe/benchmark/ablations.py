"""The tables of the ablations, one for each question, from their rows alone."""

from typing import Final

import numpy as np
import pandas as pd

from aloe.benchmark import statistics
from aloe.benchmark.critics import trust_cells
from aloe.benchmark.results import PLAIN
from aloe.benchmark.start import CHOICE
from aloe.benchmark.suites import QUESTIONS, REFERENCE
from aloe.benchmark.tables import check_comparable, markdown_table, measured, percent, rates

TRUST: Final = (
    *("rank correlation of V", "bias of V", "error of V", "steps from drop to failure"),
    *("samples above executed", "effective share"),
)
"""What a table says of the critics, by its heading in `critics.py`."""


def question_section(rows: pd.DataFrame, question: str) -> str:
    """The default, and below it every variant that answers the question, as far as they have been played."""
    last = check_comparable(rows)
    played = set(rows["method"])
    lines = [_line(rows, name, last) for name in (REFERENCE, *QUESTIONS[question]) if name in played]
    return markdown_table(
        ("variant", "seeds", "the clone", "success", "beside the default", "critics choosing", *TRUST), lines
    )


def _line(rows: pd.DataFrame, name: str, last: int) -> list[str]:
    mine, default = (rates(rows, method, last, PLAIN) for method in (name, REFERENCE))
    seeds = sorted(mine.keys() & default.keys())
    beside = "-"
    if name != REFERENCE and seeds:
        ours, theirs = (np.array([found[seed] for seed in seeds]) for found in (mine, default))
        beside = percent(statistics.paired_difference(ours, theirs), "+.0f")
    clone = np.mean([*rates(rows, name, 0, PLAIN).values()])
    judged = rows.loc[(rows["method"] == name) & (rows["round"] == last) & rows["trust"].notna()]
    return [
        f"`{name}`",
        str(len(mine)),
        f"{100 * clone:.0f}",
        measured(rows, name, last, PLAIN),
        beside,
        measured(rows, name, last, CHOICE),
        *trust_cells(judged, TRUST),
    ]
