"""Do predictions put things into the right order, and what does it cost to trust them? Arrays in, numbers out.

Spearman's correlation and regret@k are the measures of the DOPE benchmark (Fu et al. 2021, arXiv 2103.16596).
NaN says that a number is not defined: a correlation where one side is constant, for example.
"""

import numpy as np
from jaxtyping import Float, Shaped
from numpy import ndarray


def average_ranks(values: Shaped[ndarray, "N"]) -> Float[ndarray, "N"]:
    """Ranks 1..N from the smallest; equal values share the mean of their ranks."""
    _, group, size = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(size)  # rank of the last member of each group
    return (last - (size - 1) / 2)[group]


def pearson(left: Shaped[ndarray, "N"], right: Shaped[ndarray, "N"]) -> float:
    """Linear correlation; NaN where either side is constant or there are fewer than two values."""
    a, b = left.astype(np.float64), right.astype(np.float64)
    if len(a) < 2 or (a == a[0]).all() or (b == b[0]).all():
        return float("nan")
    a, b = a - a.mean(), b - b.mean()
    return float((a * b).sum() / np.sqrt((a**2).sum() * (b**2).sum()))


def spearman(left: Shaped[ndarray, "N"], right: Shaped[ndarray, "N"]) -> float:
    """Correlation of the ranks, equal values sharing theirs; NaN where `pearson` is."""
    return pearson(average_ranks(left), average_ranks(right))


def regret(predicted: Shaped[ndarray, "N"], true: Shaped[ndarray, "N"], k: int = 1) -> float:
    """Regret@k: the best true value, minus the best true value among the k that are predicted to be best.

        regret@k = (max_n true_n - max_{n in top-k of predicted} true_n) / (max_n true_n - min_n true_n)

    Normalised by the range of the true values: 0 is a perfect choice, 1 the worst there is.
    Where all true values are equal any choice is perfect. Equal predictions are taken in their order.

    Raises:
        ValueError: `k` is not between 1 and the number of values.
    """
    if not 1 <= k <= len(true):
        raise ValueError(f"regret@{k} needs k between 1 and the number of values, which is {len(true)}")
    chosen = np.argsort(-predicted, kind="stable")[:k]
    span = float(true.max() - true.min())
    return 0.0 if span == 0 else float(true.max() - true[chosen].max()) / span
