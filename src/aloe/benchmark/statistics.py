"""Point estimates with stratified bootstrap intervals, by rliable (Agarwal et al., "Deep Reinforcement Learning at the Edge
of the Statistical Precipice", 2021). A score is the success rate of one seed; the bootstrap draws seeds."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from jaxtyping import Float64
from numpy import ndarray

try:
    from rliable import library, metrics
except ModuleNotFoundError as error:
    raise ValueError(
        f"the benchmark's statistics need {error.name}; install them: pip install 'aloe-vla[benchmark]'"
    ) from error

REPETITIONS: Final = 2000
"""Bootstrap samples; rliable's own examples take as many for the probability of improvement."""


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A number with its 95 % interval."""

    value: float
    low: float | None
    """None where there is only one seed: then nothing is known about the spread."""
    high: float | None


def interquartile_mean(scores: Float64[ndarray, "n"]) -> Estimate:
    """Mean of the middle half of the seeds; with fewer than four seeds that is the mean."""
    return _estimates([scores[:, None]], lambda x: np.array([metrics.aggregate_iqm(x)]))[0]


def interquartile_means(scores: Float64[ndarray, "n R"]) -> list[Estimate]:
    """The same for every round, each by itself: no interval says anything about several rounds at once."""
    rounds = range(scores.shape[1])
    return _estimates([scores[:, None]], lambda x: np.array([metrics.aggregate_iqm(x[..., r]) for r in rounds]))


def paired_difference(ours: Float64[ndarray, "n"], theirs: Float64[ndarray, "n"]) -> Estimate:
    """Mean over seeds of ours - theirs: what the two of a seed have in common, its scenes and mostly its start, is taken
    out."""
    return _estimates([(ours - theirs)[:, None]], lambda x: np.array([metrics.aggregate_mean(x)]))[0]


def probability_of_improvement(ours: Float64[ndarray, "n"], theirs: Float64[ndarray, "m"]) -> Estimate:
    """P(a seed of ours > a seed of theirs), a tie counting half (Mann-Whitney's U / (n m)); seeds are not paired."""
    return _estimates(
        [ours[:, None], theirs[:, None]], lambda x, y: np.array([metrics.probability_of_improvement(x, y)])
    )[0]


def _estimates(samples: Sequence[ndarray], statistic: Callable[..., ndarray]) -> list[Estimate]:
    """`samples`: arrays (seeds, tasks, ...), drawn from independently of each other."""
    if any(not len(sample) for sample in samples):
        raise ValueError("no seeds to estimate from")
    if min(len(sample) for sample in samples) == 1:
        return [Estimate(value=float(value), low=None, high=None) for value in statistic(*samples)]
    scores: dict[str, Any] = {"": samples[0] if len(samples) == 1 else list(samples)}
    with _seeded():
        values, intervals = library.get_interval_estimates(scores, statistic, reps=REPETITIONS)
    low, high = intervals[""]
    return [
        Estimate(value=float(v), low=float(lo), high=float(hi)) for v, lo, hi in zip(values[""], low, high, strict=True)
    ]


@contextmanager
def _seeded() -> Iterator[None]:
    """The same intervals at every call. rliable 1.2.0 takes a `random_state` and then draws from numpy's global generator
    all the same, which is therefore seeded here, and put back."""
    before = np.random.get_state()  # noqa: NPY002
    np.random.seed(0)  # noqa: NPY002
    try:
        yield
    finally:
        np.random.set_state(before)  # noqa: NPY002
