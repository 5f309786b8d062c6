import pytest

from aloe.evaluation.health import warnings_of

HEALTHY = {
    "above_best": 0.01,
    "above_best_at_step": 0.1,
    "value_bias": -0.1,
    "value_rank_correlation": 0.8,
    "spread_executed": 0.03,
    "effective_share": 0.4,
}


def test_some_values_above_every_return_are_not_called_none():
    (warning,) = warnings_of(HEALTHY | {"above_best": 0.04, "above_best_at_step": 0.6}, 2.0).values()
    assert "(4% of them, and 60%" in warning
    (warning,) = warnings_of(HEALTHY | {"above_best": 0.0, "above_best_at_step": 0.6}, 2.0).values()
    assert "(none of them, but 60%" in warning


def test_a_healthy_critic_gives_no_warning():
    assert warnings_of(HEALTHY, 2.0) == {}


def test_what_is_not_known_gives_no_warning():
    assert warnings_of(dict.fromkeys(HEALTHY), 2.0) == {}
    assert warnings_of({}, float("nan")) == {}


@pytest.mark.parametrize(("name", "value"), [("above_best_at_step", 0.6), ("value_bias", 0.5), ("value_bias", -0.5)])
def test_q_chunking_is_not_advised_what_it_sets_itself(name, value):
    (warning,) = warnings_of(HEALTHY | {name: value}, 2.0, q_chunking=True).values()
    assert "--fit.steps" in warning if value < 0 else "fewer --qc.samples" in warning
    assert not any(option in warning for option in ("--fit.bootstrap", "aggregation"))


@pytest.mark.parametrize(
    ("name", "value", "said", "remedy"),
    [
        ("above_best", 0.3, "exceed every return seen (30%", "--fit.bootstrap in-sample"),
        ("above_best_at_step", 0.6, "60% exceed every return seen from the same step", "--fit.bootstrap in-sample"),
        ("value_bias", 0.5, "too high by 0.50", "--fit.target-aggregation min"),
        ("value_bias", -0.5, "too low by 0.50 on average, 25%", "--fit.advantage-aggregation mean"),
        ("value_rank_correlation", -0.2, "rank correlation -0.20", "--fit.steps"),
        ("spread_executed", 0.001, "agree almost exactly (spread 0.0010)", "--critic.critics"),
        ("effective_share", 0.02, "few windows carry the weight", "raise --aloe.beta-scale"),
        ("effective_share", 0.99, "all weights are nearly equal", "lower --aloe.beta-scale"),
    ],
)
def test_each_fault_is_named_with_its_remedy(name, value, said, remedy):
    ((number, warning),) = warnings_of(HEALTHY | {name: value}, 2.0).items()
    assert number == ("above_best_at_step" if name == "above_best" else name)  # one warning speaks of both
    assert said in warning
    assert remedy in warning
