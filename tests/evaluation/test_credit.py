import math

import numpy as np
import pytest

from aloe.evaluation.credit import credit, failure_step, steepest_drop, takeovers, weighted_median


def test_failure_is_the_step_that_lost_the_best_progress_for_good():
    # range 0..10, so 9.5 is enough: after step 3 (9.6) it still was, step 4 lost it; the rise after step 5 is in vain
    assert failure_step(np.array([0.0, 5.0, 10.0, 9.6, 2.0, 6.0, 3.0]), None) == 4


def test_an_episode_at_its_best_when_time_ran_out_failed_at_its_last_step():
    assert failure_step(np.array([0.0, 1.0, 2.0, 3.0]), None) == 3


def test_a_disturbance_is_the_failure_whatever_the_progress():
    assert failure_step(np.array([0.0, 5.0, 10.0, 0.0]), 1) == 1
    assert failure_step(np.zeros(0), 7) == 7


def test_without_progress_nobody_knows_when_it_failed():
    assert failure_step(np.zeros(0), None) is None


def test_steepest_drop_is_the_step_whose_action_cost_most():
    # differences -0.1, -0.5, +0.2, -0.5: the first of the two
    assert steepest_drop(np.array([0.0, -0.1, -0.6, -0.4, -0.9])) == 1
    with pytest.raises(ValueError, match="at least two states"):
        steepest_drop(np.array([0.0]))


def test_credit_is_the_median_distance_with_that_of_chance_beside_it():
    # Episode A drops at step 1, failed at 1; B drops at 0, failed at 3: distances 0 and 3, median 1.5.
    # Chance: A has steps 0..2, |u - 1| = 1 0 1, each with 1/6; B has steps 0..3, |u - 3| = 3 2 1 0, each with 1/8.
    # Cumulated: 0 has 1/6 + 1/8 = 7/24; 1 adds 2/6 + 1/8 = 11/24 -> 18/24: the median is 1.
    values = [np.array([0.0, 0.0, -1.0, -1.0]), np.array([0.0, -2.0, -2.0, -2.0, -2.0])]
    result = credit(values, [1, 3])
    assert (result.episodes, result.distance, result.distance_of_chance) == (2, 1.5, 1.0)


def test_an_episode_of_one_step_has_no_drop_to_compare():
    result = credit([np.array([0.0])], [0])
    assert result.episodes == 0
    assert math.isnan(result.distance)


def test_weighted_median_is_reached_when_half_of_the_weight_is():
    assert weighted_median(np.array([3.0, 1.0, 2.0]), np.array([0.5, 0.2, 0.3])) == 2.0
    assert weighted_median(np.array([3.0, 1.0]), np.array([0.9, 0.1])) == 3.0


def test_value_before_a_takeover_against_the_usual_value_at_that_step():
    # Two usual episodes of two steps: step 0 has -1 and -1, step 1 has -1 and -3. Taken over: step 0 -1, step 1 -2.
    # step 0: difference 0, no usual value is above and both are equal: 0.5; step 1: -2 + 2 = 0, one of two above: 0.5
    value = np.array([-1.0, -1.0, -1.0, -3.0, -1.0, -2.0, -4.0, -9.0])
    step = np.array([0, 1, 0, 1, 0, 1, 0, 7])
    usual = np.array([True] * 4 + [False] * 4)
    result = takeovers(value, step, [np.array([4, 5])], usual)
    assert (result.count, result.difference, result.auc) == (1, 0.0, 0.5)
    # A second takeover at step 0 with -4: difference -3, always lower: 1. Means over the two: -1.5 and 0.75.
    # Its step 7 has nothing to be compared with; a third takeover of that step alone does not count.
    result = takeovers(value, step, [np.array([4, 5]), np.array([6, 7]), np.array([7])], usual)
    assert (result.count, result.difference, result.auc) == (2, -1.5, 0.75)


def test_without_a_takeover_nothing_is_known():
    result = takeovers(np.zeros(2), np.arange(2), [], np.ones(2, bool))
    assert result.count == 0
    assert math.isnan(result.auc)
