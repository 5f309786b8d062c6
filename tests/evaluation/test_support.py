import math

import numpy as np
import pytest

from aloe.evaluation.support import best_return_at, chunk_distance, effective_share, support


def test_distance_counts_executed_steps_only():
    # one state, two samples of two steps and two dimensions; the second step is padding in the executed chunk
    executed = np.array([[[0.0, 0.0], [9.0, 9.0]]])
    samples = np.array([[[[3.0, 4.0], [5.0, 5.0]], [[0.0, 2.0], [0.0, 0.0]]]])
    # sqrt((9 + 16) / 2) and sqrt((0 + 4) / 2)
    result = chunk_distance(samples, executed, np.array([[False, True]]))
    np.testing.assert_allclose(result, [[math.sqrt(12.5), math.sqrt(2)]])
    # with both steps: sqrt((25 + 16 + 16) / 4)
    assert chunk_distance(samples, executed, np.zeros((1, 2), bool))[0, 0] == pytest.approx(math.sqrt(57 / 4))


def test_best_return_is_that_of_the_step_or_else_of_all():
    returns, step = np.array([-2.0, -1.0, -0.5]), np.array([0, 0, 2])
    assert best_return_at(returns, step, np.array([0, 1, 2, 5])).tolist() == [-1.0, -0.5, -0.5, -0.5]


def test_support_counts_samples_above_what_was_seen():
    result = support(
        q_executed=np.array([-1.0, -0.5]),
        q_samples=np.array([[-1.0, -0.2], [0.2, 0.05]]),
        spread_executed=np.array([0.1, 0.3]),
        spread_samples=np.array([[0.5, 0.5], [0.5, 0.1]]),
        distance=np.array([[1.0, 2.0], [3.0, 4.0]]),
        best=0.0,
        best_at_step=np.array([-0.5, 0.1]),
        margin=0.1,
    )
    assert (result.q_executed, result.distance) == (-0.75, 2.5)
    assert (result.q_samples, result.spread_samples) == (pytest.approx(-0.2375), pytest.approx(0.4))
    assert result.spread_executed == pytest.approx(0.2)
    # above 0 + 0.1: only 0.2; above -0.5 + 0.1 in the first state: -0.2, above 0.1 + 0.1 in the second: none
    # (0.2 is not above 0.2, as 0.1 + 0.1 is exactly 0.2 in floating point)
    assert (result.above_best, result.above_best_at_step) == (0.25, 0.25)


def test_effective_share_is_one_for_equal_weights_and_passes_over_zeros():
    assert effective_share(np.array([2.0, 2.0, 0.0])) == 1.0
    # weights 1 and 3: 16 / 10 / 2
    assert effective_share(np.array([1.0, 3.0])) == pytest.approx(0.8)
    assert math.isnan(effective_share(np.zeros(3)))
