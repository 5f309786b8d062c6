"""From the numbers about a critic to warnings in plain words, each with what to do about it."""

import math
from collections.abc import Mapping
from typing import Final

ABOVE_BEST: Final = 0.05
"""Share of samples that may be valued above every return seen (a healthy critic errs there, too, just before a success)."""
ABOVE_BEST_AT_STEP: Final = 0.25
"""The same, above every return seen from the same step number."""
BIAS: Final = 0.2
"""Bias of the value, as a share of the range of returns seen."""
RANK_CORRELATION: Final = 0.3
"""Rank correlation of value and realised return, below which values say little."""
COLLAPSED_SPREAD: Final = 0.005
"""Spread of the ensemble, as a share of the range of returns seen, below which it says nothing."""
FEW_EFFECTIVE: Final = 0.1
"""Effective share of the weights, below which a few windows decide everything."""
EQUAL_WEIGHTS: Final = 0.95
"""Effective share of the weights, above which improving is cloning."""


def warnings_of(
    numbers: Mapping[str, float | None], return_range: float, *, q_chunking: bool = False
) -> dict[str, str]:
    """Warnings about the numbers of a `trust` stage, by the number's name; what is missing or undefined is passed over.

    return_range: largest minus smallest return seen in the data. q_chunking: whether the method is `qc`, which sets
    some options itself, so that others have to help.
    """

    def number(name: str) -> float:
        value = numbers.get(name)
        return math.nan if value is None else value  # every comparison with NaN is false

    if q_chunking:
        lower, higher = "fewer --qc.samples: the best of many is the most over-valued", "more --fit.steps"
    else:
        lower = "--fit.bootstrap in-sample, or --fit.target-aggregation min"
        higher = "--fit.advantage-aggregation mean, or more --fit.steps"
    said = {}
    above, above_at_step = number("above_best"), number("above_best_at_step")
    if above > ABOVE_BEST or above_at_step > ABOVE_BEST_AT_STEP:
        where = f"{above:.0%} of them, and" if above > 0 else "none of them, but"
        said["above_best_at_step"] = (
            f"values of sampled chunks exceed every return seen ({where} {above_at_step:.0%} exceed every return seen from "
            f"the same step on): the critic is over-estimating; try {lower}"
        )
    bias = number("value_bias")
    if abs(bias) > BIAS * return_range:
        how, remedy = ("high", lower) if bias > 0 else ("low", higher)
        said["value_bias"] = (
            f"values of fresh episodes are too {how} by {abs(bias):.2f} on average, {abs(bias) / return_range:.0%} of the "
            f"range of returns: they say little about how good the policy is; try {remedy}"
        )
    correlation = number("value_rank_correlation")
    if correlation < RANK_CORRELATION:
        said["value_rank_correlation"] = (
            f"values do not follow the returns of fresh episodes (rank correlation {correlation:.2f}): "
            "advantages may be noise; train the critics longer (--fit.steps), or collect more episodes"
        )
    spread = number("spread_executed")
    if spread < COLLAPSED_SPREAD * return_range:
        said["spread_executed"] = (
            f"the critics agree almost exactly (spread {spread:.4f}): min over them is no pessimism, and "
            "their spread says nothing about their error; use more --critic.critics"
        )
    share = number("effective_share")
    if share < FEW_EFFECTIVE:
        said["effective_share"] = (
            f"few windows carry the weight (effective share {share:.2f}): the policy would learn from little; raise "
            "--aloe.beta-scale, or lower --aloe.clip"
        )
    if share > EQUAL_WEIGHTS:
        said["effective_share"] = (
            f"all weights are nearly equal (effective share {share:.2f}): improving amounts to cloning; lower "
            "--aloe.beta-scale"
        )
    return said
