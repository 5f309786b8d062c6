"""How often the benchmark's "95 %" intervals hold the truth, with as few seeds as there are.

    .venv/bin/python benchmarks/intervals.py

The truth is no difference: two methods that win the same share of their evaluation episodes, whose seeds differ only by
chance of these episodes, or by that and by retraining, as a normal deviation of each seed's own.
"""

from dataclasses import dataclass

import numpy as np
import tyro
from _common import print_header, print_row

from aloe.benchmark import statistics


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to measure."""

    seeds: tuple[int, ...] = (2, 3, 4, 5, 6, 10)
    """Numbers of seeds."""
    pairs: int = 400
    """Differences for each cell of the table."""
    repetitions: int = 400
    """Bootstrap samples of each, fewer than in the tables: rliable takes its time."""
    episodes: int = 100
    """Evaluation episodes."""
    success: float = 0.7
    deviation: float = 0.08
    """Standard deviation of retraining, in success."""


def coverage(config: Config, seeds: int, deviation: float, rng: np.random.Generator) -> str:
    held = 0
    for _ in range(config.pairs):
        true = np.clip(config.success + deviation * rng.standard_normal((2, seeds)), 0, 1)
        found = statistics.paired_difference(*rng.binomial(config.episodes, true) / config.episodes)
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 0 <= found.high
    return f"{held / config.pairs:.0%}"


def main(config: Config) -> None:
    statistics.REPETITIONS = config.repetitions  # pyright: ignore[reportAttributeAccessIssue]
    rng = np.random.default_rng(0)
    print_header(
        f"how often the interval of a difference holds the truth, {config.pairs} differences a cell",
        ["seeds", f"chance of {config.episodes} episodes alone", f"and retraining, {config.deviation:.0%}"],
    )
    for seeds in config.seeds:
        print_row([seeds, *(coverage(config, seeds, deviation, rng) for deviation in (0.0, config.deviation))])


if __name__ == "__main__":
    main(tyro.cli(Config))
