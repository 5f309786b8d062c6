import math

import numpy as np
import pytest
from scipy import stats

from aloe.evaluation.ranking import average_ranks, pearson, regret, spearman


def test_equal_values_share_the_mean_of_their_ranks():
    # sorted: 1 (rank 1), 2 2 (ranks 2 and 3 -> 2.5), 5 (rank 4)
    assert average_ranks(np.array([2.0, 5.0, 2.0, 1.0])).tolist() == [2.5, 4.0, 2.5, 1.0]


def test_spearman_of_one_exchanged_pair():
    # ranks 1 2 3 4 against 1 2 4 3: 1 - 6 * (1 + 1) / (4 * 15) = 0.8
    assert spearman(np.array([0.1, 0.2, 0.3, 0.4]), np.array([1.0, 10.0, 1000.0, 100.0])) == pytest.approx(0.8)


def test_spearman_and_pearson_agree_with_scipy_with_ties_too():
    rng = np.random.default_rng(0)
    left, right = rng.integers(0, 6, (2, 40)).astype(np.float32)
    assert spearman(left, right) == pytest.approx(stats.spearmanr(left, right).statistic)
    assert pearson(left, right) == pytest.approx(stats.pearsonr(left.astype(float), right.astype(float)).statistic)


def test_correlation_with_a_constant_or_of_one_value_is_undefined():
    # a float32 constant whose mean is not exactly itself must not give a correlation out of rounding errors
    assert math.isnan(spearman(np.full(7, 0.1, np.float32), np.arange(7)))
    assert math.isnan(pearson(np.arange(7), np.full(7, 0.1, np.float32)))
    assert math.isnan(spearman(np.array([1.0]), np.array([1.0])))


def test_regret_counts_what_the_best_of_the_top_k_lacks_of_the_range():
    predicted = np.array([0.9, 0.8, 0.1, 0.0])
    true = np.array([0.5, 0.6, 1.0, 0.2])
    # range 0.8; top 1: 0.5 -> 0.5 / 0.8; top 2: 0.6 -> 0.4 / 0.8; top 3: 1.0 -> 0
    assert regret(predicted, true, 1) == pytest.approx(0.625)
    assert regret(predicted, true, 2) == pytest.approx(0.5)
    assert regret(predicted, true, 3) == 0.0


def test_regret_takes_equal_predictions_in_their_order():
    assert regret(np.zeros(3), np.array([0.0, 1.0, 0.5]), 1) == 1.0
    assert regret(np.zeros(3), np.array([0.0, 1.0, 0.5]), 2) == 0.0


def test_any_choice_among_equals_is_perfect():
    assert regret(np.array([1.0, 2.0]), np.array([0.3, 0.3])) == 0.0


@pytest.mark.parametrize("k", [0, 3])
def test_regret_at_more_than_there_are_is_refused(k):
    with pytest.raises(ValueError, match="between 1 and the number of values"):
        regret(np.array([1.0, 2.0]), np.array([0.3, 0.3]), k)
