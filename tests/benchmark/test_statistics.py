"""Estimates over seeds, against values worked out by hand."""

import numpy as np
import pytest

from aloe.benchmark.statistics import (
    interquartile_mean,
    interquartile_means,
    paired_difference,
    probability_of_improvement,
)


def test_interquartile_mean_drops_the_best_and_the_worst_of_five_seeds():
    # a quarter of 5 seeds is 1.25, so one is cut at each end: (0.2 + 0.3 + 0.4) / 3
    assert interquartile_mean(np.array([0.9, 0.2, 0.4, 0.1, 0.3])).value == pytest.approx(0.3)


def test_interquartile_mean_of_three_seeds_is_their_mean():
    # a quarter of 3 seeds is less than one: nothing is cut
    assert interquartile_mean(np.array([0.1, 0.2, 0.9])).value == pytest.approx(0.4)


def test_the_interval_of_two_seeds_spans_both():
    # resamples of {0.2, 0.6}: (0.2, 0.2) and (0.6, 0.6) with probability 1/4 each: 2.5 % lie at the ends
    estimate = interquartile_mean(np.array([0.2, 0.6]))
    assert (estimate.low, estimate.value, estimate.high) == pytest.approx((0.2, 0.4, 0.6))


def test_one_seed_has_no_interval():
    estimate = interquartile_mean(np.array([0.7]))
    assert (estimate.value, estimate.low, estimate.high) == (0.7, None, None)


def test_no_seed_is_an_error():
    with pytest.raises(ValueError, match="no seeds"):
        interquartile_mean(np.array([]))


def test_each_round_of_a_curve_has_the_interval_of_its_seeds():
    # seed 0 rises from 0.1 to 0.3, seed 1 from 0.5 to 0.9: means 0.3 and 0.6, each interval from one seed to the other
    first, last = interquartile_means(np.array([[0.1, 0.3], [0.5, 0.9]]))
    assert (first.low, first.value, first.high) == pytest.approx((0.1, 0.3, 0.5))
    assert (last.low, last.value, last.high) == pytest.approx((0.3, 0.6, 0.9))


def test_a_paired_difference_takes_out_what_the_start_decides():
    # seeds differ by 0.5, the methods by 0.1 on either: the difference is certain although the scores are not
    estimate = paired_difference(np.array([0.3, 0.8]), np.array([0.2, 0.7]))
    assert (estimate.low, estimate.value, estimate.high) == pytest.approx((0.1, 0.1, 0.1))


def test_probability_of_improvement_counts_pairs_and_half_of_the_ties():
    # pairs (ours, theirs) of {0.5, 0.9} and {0.5, 0.7}: tie, loss, win, win -> (0.5 + 0 + 1 + 1) / 4
    assert probability_of_improvement(np.array([0.5, 0.9]), np.array([0.5, 0.7])).value == pytest.approx(0.625)


def test_estimates_repeat_and_leave_numpys_global_generator_alone():
    scores = np.array([0.11, 0.42, 0.58, 0.73, 0.94])
    np.random.seed(5)  # noqa: NPY002
    expected = np.random.random()  # noqa: NPY002
    np.random.seed(5)  # noqa: NPY002
    assert interquartile_mean(scores) == interquartile_mean(scores)
    assert np.random.random() == expected  # noqa: NPY002
