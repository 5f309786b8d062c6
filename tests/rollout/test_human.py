import numpy as np
import pytest

from aloe.rollout.human import GRADES, HumanConfig, ScriptedHuman, takeover_shares


class Scene:
    """A world whose progress is read off a list."""

    def __init__(self, progress=0.0):
        self.value = progress

    def progress(self):
        return self.value

    def expert_action(self):
        return np.array([0.5, 0.0, 0.0, 1.0], np.float32)


def takeover_step(progress, *, max_steps=100, seed=0, **knobs):
    """The number of steps played when the human first wants control; None: never."""
    human = ScriptedHuman(HumanConfig(**knobs), max_steps=max_steps)
    human.reset(np.random.default_rng(seed))
    scene = Scene()
    for step, value in enumerate(progress, start=1):
        scene.value = float(value)
        if human.wants_control(step, scene):
            return step
    return None


def test_comes_after_as_long_without_progress_as_its_patience():
    # Progress ends with step 3; patience 5 is over at step 8.
    assert takeover_step([1, 2, 3] + [3] * 20, patience_steps=5, time_fraction=None, reaction_delay_steps=0) == 8


def test_creeping_progress_counts_once_it_adds_up():
    # 0.04 a step reaches +0.1 every third step: never five steps without.
    creeping = [0.04 * step for step in range(1, 50)]
    assert takeover_step(creeping, patience_steps=5, time_fraction=None) is None
    # At 0.01 a step it takes ten.
    assert takeover_step([x / 4 for x in creeping], patience_steps=5, time_fraction=None, reaction_delay_steps=0) == 5


def test_comes_when_its_share_of_the_time_is_used():
    progress = list(range(1, 50))
    knobs = {"patience_steps": None, "reaction_delay_steps": 0, "max_steps": 40}
    assert takeover_step(progress, time_fraction=0.75, **knobs) == 30
    assert takeover_step(progress, time_fraction=1.0, **knobs) == 40
    assert takeover_step(progress, time_fraction=None, **knobs) is None


@pytest.mark.parametrize(("fraction", "step"), [(1.0, 40), (0.95, 40), (0.85, 37)])
def test_a_slow_human_who_minds_the_time_comes_before_it_is_over(fraction, step):
    knobs = {"patience_steps": None, "reaction_delay_steps": 3, "max_steps": 40}
    assert takeover_step(range(1, 41), time_fraction=fraction, **knobs) == step


@pytest.mark.parametrize("delay", [0, 1, 4])
def test_reaction_delays_by_exactly_its_steps(delay):
    still = [0.0] * 30
    assert takeover_step(still, patience_steps=5, time_fraction=None, reaction_delay_steps=delay) == 5 + delay


def test_human_who_never_notices_never_comes():
    assert takeover_step([0.0] * 100, patience_steps=5, time_fraction=0.5, miss_probability=1.0) is None


def test_missed_standstill_is_an_occasion_again_after_as_long_a_wait():
    steps = [
        takeover_step(
            [0.0] * 200,
            patience_steps=5,
            time_fraction=None,
            reaction_delay_steps=0,
            miss_probability=0.5,
            seed=seed,
        )
        for seed in range(40)
    ]
    assert all(step % 5 == 0 for step in steps)
    assert {5, 10, 15} <= set(steps)


def test_action_noise_is_the_humans_own_and_stays_in_range():
    human = ScriptedHuman(HumanConfig(action_noise=0.3), max_steps=10)
    human.reset(np.random.default_rng(0))
    actions = np.stack([human.act(Scene()) for _ in range(500)])
    assert actions.dtype == np.float32
    assert np.abs(actions).max() <= 1.0
    assert actions[:, 1].std() == pytest.approx(0.3, abs=0.04)
    exact = ScriptedHuman(HumanConfig(), max_steps=10)
    exact.reset(np.random.default_rng(0))
    np.testing.assert_array_equal(exact.act(Scene()), Scene().expert_action())


@pytest.mark.parametrize(
    ("knobs", "message"),
    [
        ({"patience_steps": 0}, "patience_steps must be at least 1"),
        ({"time_fraction": 0.0}, "time_fraction must lie"),
        ({"miss_probability": 1.5}, "miss_probability must lie"),
        ({"min_progress": 0.0}, "min_progress must be positive"),
        ({"reaction_delay_steps": -1}, "must not be negative"),
        ({"failure_probability": 1.1}, "failure_probability must lie"),
        ({"takeovers": -1}, "takeovers must not be negative"),
    ],
)
def test_impossible_humans_are_refused(knobs, message):
    with pytest.raises(ValueError, match=message):
        HumanConfig(**knobs)


def test_failing_correction_shakes_and_is_drawn_once_for_each_takeover():
    def spread(seed):
        human = ScriptedHuman(
            HumanConfig(patience_steps=1, reaction_delay_steps=0, action_noise=0.1, failure_probability=0.5),
            max_steps=10,
        )
        human.reset(np.random.default_rng(seed))
        assert human.wants_control(1, Scene())
        return np.stack([human.act(Scene()) for _ in range(200)])[:, 1].std()

    # A noise of 0.5, clipped to [-1, 1], that is at two of its standard deviations: of z ~ N(0, 1) there remains
    # P(|z| < 2) - 4 phi(2) = 0.954 - 0.216 = 0.738, and at the edges 4 * 0.0455 = 0.182; sqrt(0.92) * 0.5 = 0.48.
    spreads = np.array([spread(seed) for seed in range(40)])
    failed = spreads > 0.25
    np.testing.assert_allclose(spreads[failed], 0.48, atol=0.07)
    np.testing.assert_allclose(spreads[~failed], 0.1, atol=0.02)
    assert 10 <= failed.sum() <= 30  # 20 expected, 3.2 the standard deviation


def test_takeovers_are_split_evenly_and_none_is_lost():
    assert takeover_shares(10, 3) == [4, 3, 3]
    assert takeover_shares(2, 3) == [1, 1, 0]
    assert takeover_shares(0, 2) == [0, 0]


def test_the_expert_is_flawless_and_the_others_are_worse_in_everything_but_attention():
    expert, ordinary, novice = (GRADES[name] for name in ("expert", "ordinary", "novice"))
    assert expert.takeovers is None
    assert ordinary.takeovers == novice.takeovers == 10
    for flaw in ("reaction_delay_steps", "miss_probability", "action_noise", "failure_probability"):
        assert 0 == getattr(expert, flaw) < getattr(ordinary, flaw) < getattr(novice, flaw)
