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
