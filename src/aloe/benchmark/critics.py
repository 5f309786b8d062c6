"""How far the critics of a suite could be trusted, as Markdown, from its rows alone; docs/trust.md explains the numbers."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pandas as pd

from aloe.benchmark.results import PLAIN
from aloe.benchmark.suites import REFERENCE
from aloe.benchmark.tables import markdown_table, methods_of
from aloe.rank import ESTIMATORS, measures

Numbers = Mapping[str, float | None]


def _samples_above(numbers: Numbers) -> float | None:
    samples, executed = numbers.get("q_samples"), numbers.get("q_executed")
    return None if samples is None or executed is None else samples - executed


_COLUMNS: Final[dict[str, tuple[str, Callable[[Numbers], float | None]]]] = {
    "rank correlation of V": (".2f", lambda n: n.get("value_rank_correlation")),
    "in the starts alone": (".2f", lambda n: n.get("start_rank_correlation")),
    "bias of V": ("+.2f", lambda n: n.get("value_bias")),
    "bias in the starts": ("+.2f", lambda n: n.get("start_bias")),
    "error of V": (".2f", lambda n: n.get("value_mean_absolute_error")),
    "spread and error": ("+.2f", lambda n: n.get("spread_error_correlation")),
    "failures": (".0f", lambda n: n.get("credit_episodes")),
    "steps from drop to failure": (".0f", lambda n: n.get("credit_distance")),
    "by chance": (".0f", lambda n: n.get("credit_distance_of_chance")),
    "AUC of takeovers": (".2f", lambda n: n.get("takeover_auc")),
    "samples above executed": ("+.2f", _samples_above),
    "above the best return": (".0%", lambda n: n.get("above_best_at_step")),
    "effective share": (".2f", lambda n: n.get("effective_share")),
}
"""Heading -> how it is written, and where it comes from in the numbers of a `trust` stage."""
_NEWEST: Final = "newest"
"""A guess to measure the estimators by, which looks at nothing: later versions are better."""
_RANKING: Final = ("method", "estimator", "against", "seeds", "versions", "Spearman", "regret@1", "regret@3")


def critics_section(rows: pd.DataFrame) -> list[str]:
    """Paragraphs and tables about the critics; none where no critic was judged."""
    plain = rows.loc[rows["measurement"] == PLAIN]
    judged, ranked = (plain.loc[plain[name].notna()] for name in ("trust", "ranking"))
    parts = []
    if len(judged):
        episodes = _one_number((json.loads(text)["trust"]["episodes"] for text in judged["trust"]), "fresh episodes")
        parts += [
            f"**The critics**, judged on {episodes} fresh episodes of the policy that they evaluated "
            "([trust.md](trust.md)): mean over seeds, in brackets the lowest and the highest. "
            f"`{REFERENCE}` in all rounds, the others in the first and the last. *Failures*: failed episodes among them, "
            "on which the two columns after it rest. *Warnings*: seeds with at least one.",
            markdown_table(
                ("method", "round", "seeds", *_COLUMNS, "warnings"),
                [_trust_row(mine, method, index) for method, index, mine in _judgements(judged)],
            ),
        ]
    if len(ranked):
        steps = _one_number((json.loads(text)["steps"] for text in ranked["ranking"]), "steps of ranking critics")
        parts += [
            "**Would the critic have picked the best policy version?** Critics trained from scratch under each version on "
            f"the run's final store, {steps} steps each, against what was measured "
            "([`aloe rank`](trust.md#ranking-aloe-rank-run)); mean over seeds, in brackets the lowest and the highest. "
            f"`{_NEWEST}` looks at nothing and takes later versions for better.",
            markdown_table(_RANKING, [row for method in methods_of(ranked) for row in _ranking_rows(ranked, method)]),
        ]
    return parts


def _one_number(numbers: Iterable[int], of_what: str) -> int:
    """What all rows agree in. Raises ValueError if they do not: their critics cannot stand in one table."""
    found = sorted(set(numbers))
    if len(found) > 1:
        raise ValueError(
            f"the rows have {' and '.join(map(str, found))} {of_what}, by older and newer options: play or rank the older "
            "cells anew with another --results"
        )
    return found[0]


def _judgements(judged: pd.DataFrame) -> list[tuple[str, int, pd.DataFrame]]:
    """(method, round, its rows) in the order of the table."""
    found = []
    for method in methods_of(judged):
        mine = judged.loc[judged["method"] == method]
        rounds = sorted(set(mine["round"]))
        if method != REFERENCE:
            rounds = sorted({rounds[0], rounds[-1]})
        found += [(method, int(index), mine.loc[mine["round"] == index]) for index in rounds]
    return found


def _trust_row(mine: pd.DataFrame, method: str, index: int) -> list[str]:
    warned = sum(bool(json.loads(text)["warnings"]) for text in mine["trust"])
    return [f"`{method}`", str(index), str(len(mine)), *trust_cells(mine, [*_COLUMNS]), str(warned)]


def trust_cells(judged: pd.DataFrame, columns: Sequence[str]) -> list[str]:
    """The numbers under these headings: mean over the rows, which are to be of different seeds, with the ends."""
    said = [json.loads(text)["trust"] for text in judged["trust"]]
    wanted = [_COLUMNS[name] for name in columns]
    return [_mean_and_ends([number(numbers) for numbers in said], form) for form, number in wanted]


def _ranking_rows(ranked: pd.DataFrame, method: str) -> list[list[str]]:
    mine = ranked.loc[ranked["method"] == method]
    by_seed: list[list[dict[str, Any]]] = [
        [_with_guess(text) for text in mine.loc[mine["seed"] == seed].sort_values("round")["ranking"]]
        for seed in sorted(set(mine["seed"]))
    ]
    found = []
    for estimator in (*ESTIMATORS, _NEWEST):
        of_seed = [measures(versions, estimator) for versions in by_seed]
        for against in ("return", "success"):
            numbers = [
                _mean_and_ends([one[against][name] for one in of_seed], ".2f")
                for name in ("spearman", "regret@1", "regret@3")
            ]
            versions = str(max(len(one) for one in by_seed))
            found.append([f"`{method}`", f"`{estimator}`", against, str(len(by_seed)), versions, *numbers])
    return found


def _with_guess(text: str) -> dict[str, Any]:
    version = json.loads(text)
    return version | {_NEWEST: version["version"]}


def _mean_and_ends(numbers: Sequence[float | None], form: str) -> str:
    """0.85 (0.80 to 0.90) of those that are defined; - without any."""
    known = [number for number in numbers if number is not None]
    if not known:
        return "-"
    mean = format(float(np.mean(known)), form)
    return mean if len(known) == 1 else f"{mean} ({min(known):{form}} to {max(known):{form}})"
