"""How far predicted values are from the returns that came of it. Arrays in, numbers out; NaN where one is undefined."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Shaped
from numpy import ndarray

from aloe.evaluation.ranking import pearson, spearman


@dataclass(frozen=True, kw_only=True)
class Calibration:
    """Predictions against returns, in the units of the returns (1 is a mean successful demonstration)."""

    count: int
    """Pairs that were compared."""
    bias: float
    """Mean of predicted minus realised: positive means too high."""
    mean_absolute_error: float
    root_mean_square_error: float
    correlation: float
    """Pearson's."""
    rank_correlation: float
    """Spearman's."""

    @classmethod
    def of(cls, predicted: Shaped[ndarray, "N"], realised: Shaped[ndarray, "N"]) -> "Calibration":
        """Compares; all but `count` is NaN where there is nothing to compare."""
        if not len(predicted):
            nan = float("nan")
            return cls(
                count=0,
                bias=nan,
                mean_absolute_error=nan,
                root_mean_square_error=nan,
                correlation=nan,
                rank_correlation=nan,
            )
        error = predicted.astype(np.float64) - realised
        return cls(
            count=len(error),
            bias=float(error.mean()),
            mean_absolute_error=float(np.abs(error).mean()),
            root_mean_square_error=float(np.sqrt((error**2).mean())),
            correlation=pearson(predicted, realised),
            rank_correlation=spearman(predicted, realised),
        )


def advantage_slope(
    executed: Shaped[ndarray, "N"], sampled: Shaped[ndarray, "N M"], realised: Shaped[ndarray, "N"]
) -> float:
    """How much of an advantage comes true: the rise of G - V where A is larger by 1. 1 is right, 0 is noise.

    executed: Q of what the policy did. sampled: Q of M of its chunks there. realised: G, the return that followed. Where
    somebody else acted A is not 0 on average, and what is wrong with V gets into the slope.

    A = Q - V and G - V share V, and with it the error of having drawn but M chunks: where nothing comes true, that alone
    makes a slope of 1 / (M + 1). So V is taken twice, from every other sample, and its errors are independent:

        slope = (cov(Q - V_1, G - V_2) + cov(Q - V_2, G - V_1)) / (2 cov(Q - V_1, Q - V_2))

    NaN with fewer than two samples or two states, and where nothing is left of the advantages but that error.
    """
    if min(len(executed), sampled.shape[1]) < 2:
        return float("nan")
    values = sampled[:, ::2].mean(1, dtype=np.float64), sampled[:, 1::2].mean(1, dtype=np.float64)
    (one, other), (left, rest) = ([x.astype(np.float64) - value for value in values] for x in (executed, realised))
    true = _covariance(one, other)
    if true <= np.finfo(np.float32).eps * (one**2).mean():  # nothing, but for rounding
        return float("nan")
    return (_covariance(one, rest) + _covariance(other, left)) / (2 * true)


def _covariance(left: Shaped[ndarray, "N"], right: Shaped[ndarray, "N"]) -> float:
    return float(((left - left.mean()) * (right - right.mean())).mean())


@dataclass(frozen=True, kw_only=True)
class Decile:
    """One tenth of the predictions, from the lowest to the highest."""

    count: int
    predicted: float
    """Mean prediction."""
    realised: float
    """Mean return."""
    mean_absolute_error: float


def by_decile(predicted: Shaped[ndarray, "N"], realised: Shaped[ndarray, "N"], parts: int = 10) -> list[Decile]:
    """The table of calibration: predictions in order, cut into `parts` of nearly equal size, empty ones left out."""
    order = np.argsort(predicted, kind="stable")
    return [
        Decile(
            count=len(part),
            predicted=float(predicted[part].mean(dtype=np.float64)),
            realised=float(realised[part].mean(dtype=np.float64)),
            mean_absolute_error=float(np.abs(predicted[part].astype(np.float64) - realised[part]).mean()),
        )
        for part in np.array_split(order, parts)
        if len(part)
    ]
