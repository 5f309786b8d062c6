"""The tables of the ablations, one for each question, from their rows alone."""

from typing import Final

import numpy as np
import pandas as pd

from aloe.benchmark.critics import trust_cells
from aloe.benchmark.results import PLAIN
from aloe.benchmark.start import CHOICE
from aloe.benchmark.suites import QUESTIONS, REFERENCE
from aloe.benchmark.tables import check_comparable, difference, markdown_table, measured, rates

_TRUST: Final = (
    *("rank correlation of V", "bias of V", "bias in the starts", "error of V"),
    *("steps from drop to failure", "samples above executed", "effective share"),
)
"""What a table says of the critics, by its heading in `critics.py`."""


def question_section(rows: pd.DataFrame, question: str) -> str:
    """The default, and below it every variant that answers the question, as far as they have been played."""
    last = check_comparable(rows)
    played = set(rows["method"])
    lines = [_line(rows, name, last) for name in (REFERENCE, *QUESTIONS[question]) if name in played]
    return markdown_table(
        ("variant", "seeds", "the clone", "success", "beside the default", "critics choosing", *_TRUST), lines
    )


def _line(rows: pd.DataFrame, name: str, last: int) -> list[str]:
    clone = np.array([*rates(rows, name, 0, PLAIN).values()])  # a variant of the chunk's length has one of its own
    judged = rows.loc[(rows["method"] == name) & (rows["round"] == last) & rows["trust"].notna()]
    return [
        f"`{name}`",
        str(len(clone)),
        f"{100 * clone.mean():.0f}",
        measured(rows, name, last, PLAIN),
        difference(rows, name, REFERENCE, last) if name != REFERENCE else "-",
        measured(rows, name, last, CHOICE),
        *trust_cells(judged, _TRUST),
    ]
