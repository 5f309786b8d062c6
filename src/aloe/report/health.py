"""Whether a critic can be trusted, for somebody who has a minute. What each number means is in docs/trust.md."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import numpy as np
import pandas as pd
from jaxtyping import Shaped
from numpy import ndarray

from aloe.evaluation import health
from aloe.evaluation.support import effective_share
from aloe.report.folder import RunSoFar
from aloe.types import Source

ENOUGH: Final = 10
"""Fresh episodes below which no verdict is given: one episode more or less would change it."""
BINS: Final = 41
WEIGHTED: Final = ("aloe", "awr")
"""Methods whose weights choose; the others learn from some windows, and from all of them alike."""
Verdict = Literal["nothing warns", "with caution", "do not trust", "too little to tell", "not judged"]


@dataclass(frozen=True)
class Check:
    """A number that a warning may be about."""

    number: str
    """Its name in `trust.json`."""
    title: str
    question: str
    healthy: str
    unit: Literal["number", "share", "of the range"]
    """What its threshold is a part of."""


CHECKS: Final = (
    Check(
        "value_rank_correlation",
        "Order",
        "Do states with a higher value really end better?",
        f"rank correlation of {health.RANK_CORRELATION} or more",
        "number",
    ),
    Check(
        "value_bias",
        "Level",
        "Are values as high as the returns that followed?",
        f"off by at most {health.BIAS:.0%} of the range of returns",
        "of the range",
    ),
    Check(
        "above_best_at_step",
        "Wishful thinking",
        "Are actions that nobody tried valued above everything seen?",
        f"at most {health.ABOVE_BEST_AT_STEP:.0%} of sampled chunks",
        "share",
    ),
    Check(
        "spread_executed",
        "Doubt",
        "Do the critics of the ensemble differ at all?",
        f"spread of {health.COLLAPSED_SPREAD:.1%} of the range of returns or more",
        "of the range",
    ),
    Check(
        "effective_share",
        "Weights",
        "Do the weights choose, and not hang on a few windows?",
        f"effective share from {health.FEW_EFFECTIVE:.0%} to {health.EQUAL_WEIGHTS:.0%}",
        "share",
    ),
)


def critic_health(run: RunSoFar) -> list[dict[str, Any]]:
    """What the page draws about the critics of each round, oldest first."""
    return [round_health(run, index) for index in run.judged]


def round_health(run: RunSoFar, index: int) -> dict[str, Any]:
    """One round's checks, clues, deciles and histograms, as JSON takes them."""
    table, trust = run.values(index), run.trust(index)
    assert table is not None
    weight = table["weight"].to_numpy()
    result: dict[str, Any] = {
        "round": index,
        "windows": len(table),
        "effective_share": none_if_nan(effective_share(weight)) if run.config["method"] in WEIGHTED else None,
        "positive": int((weight > 0).sum()),
        "histograms": {name: by_source(table, name) for name in ("advantage", "weight")},
        "sources": shares(table),
    }
    if trust is None:
        return result | {"verdict": "not judged", "said": "Nobody has judged the values of this round.", "checks": []}
    numbers = trust["numbers"]
    seen = table["return"].dropna()
    return_range = trust.get("return_range") or float(seen.max() - seen.min())
    warnings = health.warnings_of(numbers, return_range, q_chunking=run.config["method"] == "qc")
    verdict, said = verdict_of(numbers, warnings)
    return result | {
        "verdict": verdict,
        "said": said,
        "episodes": numbers["episodes"],
        "checks": [
            {
                "title": check.title,
                "question": check.question,
                "healthy": check.healthy,
                "value": shown(numbers.get(check.number), check, return_range),
                "warning": warnings.get(check.number),
                "known": numbers.get(check.number) is not None,
            }
            for check in CHECKS
        ],
        "clues": clues(numbers),
        "numbers": {check.number: numbers.get(check.number) for check in CHECKS},
        "deciles": trust["by_decile"],
    }


def verdict_of(numbers: Mapping[str, float | None], warnings: Mapping[str, str]) -> tuple[Verdict, str]:
    """The verdict, and a sentence that says why."""
    episodes = int(numbers["episodes"] or 0)
    known = sum(numbers.get(check.number) is not None for check in CHECKS)
    count = f"{len(warnings)} of {known} checks {'warn' if len(warnings) != 1 else 'warns'}"
    judged = f"on {episodes} episode{'s' * (episodes != 1)} that it has not learnt from"
    if episodes < ENOUGH:
        return "too little to tell", f"Judged {judged}, which says little either way; {count}."
    if "value_rank_correlation" in warnings:
        return "do not trust", f"Its values do not follow what happened {judged}; {count}."
    if warnings:
        verdict = "do not trust" if 2 * len(warnings) > known else "with caution"
        return verdict, f"Its values follow what happened {judged}, but {count}."
    return "nothing warns", f"Its values follow what happened {judged}, and none of {known} checks warns."


def clues(numbers: Mapping[str, float | None]) -> list[dict[str, str]]:
    """Weaker evidence, without a threshold."""
    found = []
    distance, chance = numbers.get("credit_distance"), numbers.get("credit_distance_of_chance")
    if distance is not None and chance is not None:
        found.append(
            {
                "title": "Where it went wrong",
                "said": f"In {numbers['credit_episodes']:.0f} failed fresh episodes the steepest drop of V lies "
                f"{distance:.0f} steps from the failure, as the simulator knows it; a guess would lie {chance:.0f} away.",
            }
        )
    auc = numbers.get("takeover_auc")
    if auc is not None:
        found.append(
            {
                "title": "Before a takeover",
                "said": f"With a chance of {auc:.0%} V was lower than usual before the human acted, over "
                f"{numbers['takeovers_compared']:.0f} takeovers (50% would be blind; these it has learnt from).",
            }
        )
    correlation = numbers.get("spread_error_correlation")
    if correlation is not None:
        meaning = "doubt marks errors" if correlation > 0.2 else "doubt says little about errors"
        found.append(
            {
                "title": "Doubt and error",
                "said": f"Rank correlation of the ensemble's spread with its error: {signed(correlation)}; {meaning}.",
            }
        )
    return found


def by_source(table: pd.DataFrame, column: str) -> dict[str, Any]:
    """A histogram by who acted: common edges, the outermost one per cent drawn in, and a share a bin (of its source).
    Windows without a weight are left out of that of the weights."""
    used = table["weight"].to_numpy() > 0 if column == "weight" else np.ones(len(table), bool)
    values, of = table[column].to_numpy(np.float64)[used], table["source"].to_numpy()[used]
    low, high = np.quantile(values, (0.005, 0.995)) if len(values) else (0.0, 1.0)
    edges = np.linspace(low, high, BINS + 1) if high > low else np.linspace(low - 0.5, low + 0.5, BINS + 1)
    counted = {
        source.name.lower(): np.histogram(np.clip(values[mine], edges[0], edges[-1]), edges)[0] / mine.sum()
        for source in Source
        if (mine := of == source).any()
    }
    return {"edges": plain(edges), "shares": {name: plain(share) for name, share in counted.items()}}


def shares(table: pd.DataFrame) -> list[dict[str, Any]]:
    """Of each source: windows, mean advantage, and share of the actor's weight."""
    total = float(table["weight"].sum()) or 1.0
    return [
        {
            "source": source.name.lower(),
            "windows": len(mine),
            "advantage": float(mine["advantage"].mean()),
            "weighted": int((mine["weight"] > 0).sum()),
            "weight_share": float(mine["weight"].sum()) / total,
        }
        for source in Source
        if len(mine := table[table["source"] == source])
    ]


def plain(values: Shaped[ndarray, "N"]) -> list[float | None]:
    """Four digits each; what is no number, and so no JSON, as None."""
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in values.tolist()]


def none_if_nan(value: float) -> float | None:
    return None if math.isnan(value) else value


def shown(value: float | None, check: Check, return_range: float) -> str:
    """A check's number as its threshold counts it."""
    if value is None:
        return "unknown"
    if check.unit == "share":
        return f"{value:.0%}"
    figure = f"{value:.2g}" if check.number == "spread_executed" else signed(value)
    return (
        f"{figure} ({abs(value) / return_range:.1%})" if check.unit == "of the range" and return_range > 0 else figure
    )


def signed(value: float) -> str:
    """Two decimals, with a real minus."""
    return f"{value:+.2f}".replace("-", "−")
