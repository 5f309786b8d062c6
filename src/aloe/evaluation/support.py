"""Does the critic judge chunks that no data supports? Arrays in, numbers out; NaN where a number is undefined."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Shaped
from numpy import ndarray


def chunk_distance(
    samples: Shaped[ndarray, "N M E A"], executed: Shaped[ndarray, "N E A"], is_pad: Bool[ndarray, "N E"]
) -> Shaped[ndarray, "N M"]:
    """Root mean square difference of sampled chunks to the executed chunk, over the steps that were executed.

    In normalised actions: 1 is one standard deviation of the data's actions. A chunk without an executed step gives 0.
    """
    valid = (~is_pad)[:, None, :, None]
    squares = np.where(valid, (samples - executed[:, None]) ** 2, 0).sum((2, 3), dtype=np.float64)
    count = np.maximum((~is_pad).sum(1) * samples.shape[-1], 1)
    return np.sqrt(squares / count[:, None])


def best_return_at(
    returns: Shaped[ndarray, "N"], moment: Shaped[ndarray, "N"], at: Shaped[ndarray, "B"]
) -> Shaped[ndarray, "B"]:
    """For each moment of `at` the largest of `returns` from that moment; of all returns where there is none.

    moment: a number from 0 on that two states share if they are to be compared (task and step within the episode).
    """
    best = np.full(int(max(moment.max(), at.max())) + 1, -np.inf)
    np.maximum.at(best, moment, returns)
    best[np.isneginf(best)] = returns.max()
    return best[at]


@dataclass(frozen=True, kw_only=True)
class Support:
    """The critics on the policy's own samples against the critics on what was executed in the same state."""

    q_executed: float
    """Mean aggregated Q of executed chunks."""
    q_samples: float
    """The same of sampled ones: much higher means that the critics like what they have not seen."""
    spread_executed: float
    """Mean standard deviation of the ensemble on executed chunks."""
    spread_samples: float
    """The same on sampled ones."""
    distance: float
    """Mean distance of samples to the executed chunk, in standard deviations of the data's actions."""
    above_best: float
    """Share of the samples whose Q exceeds the largest return in the data by more than the margin."""
    above_best_at_step: float
    """Share of the samples whose Q exceeds the largest return in the data from that step of the task by more than that."""


def support(
    *,
    q_executed: Shaped[ndarray, "N"],
    q_samples: Shaped[ndarray, "N M"],
    spread_executed: Shaped[ndarray, "N"],
    spread_samples: Shaped[ndarray, "N M"],
    distance: Shaped[ndarray, "N M"],
    best: float,
    best_at_step: Shaped[ndarray, "N"],
    margin: float,
) -> Support:
    """Sums up. best, best_at_step: largest return seen, anywhere and from each state's moment; margin in returns."""
    return Support(
        q_executed=float(q_executed.mean()),
        q_samples=float(q_samples.mean()),
        spread_executed=float(spread_executed.mean()),
        spread_samples=float(spread_samples.mean()),
        distance=float(distance.mean()),
        above_best=float((q_samples > best + margin).mean()),
        above_best_at_step=float((q_samples > best_at_step[:, None] + margin).mean()),
    )


def effective_share(weight: Shaped[ndarray, "N"]) -> float:
    """Kish's effective sample size over the number of positive weights: (sum w)^2 / sum w^2 / #{w > 0}; 1 is all equal."""
    used = weight[weight > 0].astype(np.float64)
    return float(used.sum() ** 2 / (used**2).sum() / len(used)) if len(used) else float("nan")
