import math

import numpy as np
import pytest

from aloe.evaluation.calibration import Calibration, advantage_slope, by_decile


def test_calibration_of_four_pairs():
    # errors 0.5, -0.5, 1, 1: mean 0.5, mean absolute 0.75, mean square (0.25 + 0.25 + 1 + 1) / 4 = 0.625
    predicted = np.array([-1.0, -2.0, 0.0, -0.5], np.float32)
    realised = np.array([-1.5, -1.5, -1.0, -1.5], np.float32)
    result = Calibration.of(predicted, realised)
    assert (result.count, result.bias, result.mean_absolute_error) == (4, 0.5, 0.75)
    assert result.root_mean_square_error == pytest.approx(math.sqrt(0.625))
    # centred: predicted -0.125 -1.125 0.875 0.375, realised -0.125 -0.125 0.375 -0.125 (eighths: -1 -9 7 3; -1 -1 3 -1)
    # covariance 1 + 9 + 21 - 3 = 28; squares 1 + 81 + 49 + 9 = 140 and 1 + 1 + 9 + 1 = 12
    assert result.correlation == pytest.approx(28 / math.sqrt(140 * 12))
    # ranks 2 1 4 3 and 2 2 4 2; centred -0.5 -1.5 1.5 0.5 and -0.5 -0.5 1.5 -0.5
    # covariance 0.25 + 0.75 + 2.25 - 0.25 = 3; squares 5 and 3
    assert result.rank_correlation == pytest.approx(3 / math.sqrt(15))


def test_nothing_to_compare_is_undefined_and_not_zero():
    result = Calibration.of(np.zeros(0), np.zeros(0))
    assert result.count == 0
    assert math.isnan(result.bias)
    assert math.isnan(result.rank_correlation)


def test_half_of_the_advantage_comes_true_whatever_the_error_of_v():
    # V is 0, A is 1 or -1, and half of it comes true. The first of two samples is wrong by 1, uncorrelated with A.
    executed = np.array([1.0, -1.0, 1.0, -1.0])
    realised = executed / 2
    sampled = np.array([[1.0, 0.0], [1.0, 0.0], [-1.0, 0.0], [-1.0, 0.0]])
    # cov(Q - V_1, G - V_2) = cov(Q - V_2, G - V_1) = 0.5, cov(Q - V_1, Q - V_2) = 1
    assert advantage_slope(executed, sampled, realised) == pytest.approx(0.5)
    # With V the mean of both, the error is on both sides: covariance 0.5 + 0.25, variance 1 + 0.25.
    value = sampled.mean(1)
    assert np.polyfit(executed - value, realised - value, 1)[0] == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("states", "samples"),
    [(1, 2), (3, 1), (3, 2)],
    ids=["one state", "one sample", "no advantage anywhere"],
)
def test_where_advantages_do_not_vary_none_can_come_true(states, samples):
    same = np.full(states, 0.1)
    assert math.isnan(advantage_slope(same, np.zeros((states, samples)), np.arange(states)))


def test_deciles_go_from_the_lowest_prediction_to_the_highest():
    # 0..19 in two of each: the first tenth are predictions 0 and 1, realised 1 and 0 (the order of the data is mixed)
    predicted = np.arange(20.0)[::-1].copy()
    realised = np.where(predicted < 2, 1 - predicted, predicted)
    table = by_decile(predicted, realised)
    assert [row.count for row in table] == [2] * 10
    assert (table[0].predicted, table[0].realised, table[0].mean_absolute_error) == (0.5, 0.5, 1.0)
    assert (table[9].predicted, table[9].realised, table[9].mean_absolute_error) == (18.5, 18.5, 0.0)


def test_fewer_predictions_than_tenths_leave_no_empty_rows():
    assert [row.predicted for row in by_decile(np.array([3.0, 1.0]), np.array([0.0, 0.0]))] == [1.0, 3.0]
