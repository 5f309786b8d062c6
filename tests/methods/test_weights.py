"""Which windows an actor learns from, and how much each counts, worked out by hand."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from aloe.experience.store import Frames
from aloe.experience.windows import WindowConfig, make_windows
from aloe.methods import aloe, awr, dagger, filtered, qc, recap, sft
from aloe.types import Source
from aloe.value.evaluate import Evaluation
from aloe.value.fit import FitConfig


def two_steps_each(*fragments: tuple[Source, str]) -> Frames:
    """Episodes of one fragment of two steps, by an actor, ended by "success", "failure" or "timeout"."""
    count = 2 * len(fragments)
    ends = np.array([end if last else "" for _, end in fragments for last in (False, True)])
    column = np.zeros((count, 1), np.float32)
    return Frames(
        state=column,
        action=column,
        proposed_action=column,
        source=np.repeat(np.array([int(who) for who, _ in fragments], np.int64), 2),
        policy_version=np.zeros(count, np.int64),
        reward=np.where(ends == "success", 0, -1).astype(np.float32),
        terminated=(ends == "success") | (ends == "failure"),
        truncated=ends == "timeout",
        success=ends == "success",
        seed=np.zeros(count, np.int64),
        episode=np.repeat(np.arange(len(fragments)), 2),
        step=np.tile(np.arange(2), len(fragments)),
        task_index=np.zeros(count, np.int64),
        tasks=["press"],
    )


def judged(*advantages: float) -> Evaluation:
    advantage = np.array(advantages, np.float32)
    return Evaluation(fit=FitConfig(), q=advantage[:, None], q_samples=np.zeros((len(advantage), 1, 1), np.float32))


DEMO, POLICY, HUMAN = (Source.DEMO, "success"), (Source.POLICY, "failure"), (Source.HUMAN, "success")


def test_cloning_takes_the_successful_demonstrations_alone_with_weight_one() -> None:
    frames = two_steps_each(DEMO, POLICY, HUMAN, (Source.DEMO, "failure"))
    actor = sft.actor_rows(frames, make_windows(frames, WindowConfig(horizon=2), 2.0))
    assert actor.rows.tolist() == [0, 1]
    assert set(actor.weight.tolist()) == {1.0}


def test_weight_is_the_clipped_exponential_of_the_advantage_in_standard_deviations() -> None:
    # A = 3, -1, -1, -1: mean 0, variance (9 + 1 + 1 + 1) / 4 = 3, so beta = sqrt(3).
    # A / beta = 1.732 and -0.577, clipped at 1.
    frames = two_steps_each(DEMO, HUMAN)
    windows = make_windows(frames, WindowConfig(horizon=2), 2.0)
    actor = aloe.actor_rows(windows, judged(3, -1, -1, -1), aloe.AloeConfig(clip=1.0))
    assert actor.weight == pytest.approx([np.e, *[np.exp(-1 / np.sqrt(3))] * 3])
    assert actor.rows.tolist() == [0, 1, 2, 3]


def test_a_smaller_beta_is_sharper() -> None:
    # A = 1, 1, -1, -1: standard deviation 1, so A / beta is 2 and -2 with half of it, 0.5 and -0.5 with twice.
    frames = two_steps_each(DEMO, HUMAN)
    windows = make_windows(frames, WindowConfig(horizon=2), 2.0)
    for scale, exponent in ((0.5, 2.0), (2.0, 0.5)):
        actor = aloe.actor_rows(windows, judged(1, 1, -1, -1), aloe.AloeConfig(beta_scale=scale))
        assert actor.weight == pytest.approx(np.exp([exponent, exponent, -exponent, -exponent]))


@pytest.mark.parametrize(("share", "rows"), [(0.0, [0, 1]), (0.5, [0, 1, 2, 3])])
def test_windows_of_a_failed_fragment_count_by_their_share(share: float, rows: list[int]) -> None:
    frames = two_steps_each(DEMO, POLICY)
    windows = make_windows(frames, WindowConfig(horizon=2), 2.0)
    actor = aloe.actor_rows(windows, judged(1, 1, -1, -1), aloe.AloeConfig(failed_share=share))
    # mean 0, std 1: weights e and share / e.
    assert actor.weight == pytest.approx([np.e, np.e, share / np.e, share / np.e])
    assert actor.rows.tolist() == rows


def test_running_out_of_time_is_no_failure_where_the_value_is_bootstrapped_from_there() -> None:
    frames = two_steps_each(DEMO, (Source.POLICY, "timeout"))
    for timeout, weight in (("failure", 0.0), ("bootstrap", 1 / np.e)):
        windows = make_windows(frames, WindowConfig(horizon=2, timeout=timeout), 2.0)
        actor = aloe.actor_rows(windows, judged(1, 1, -1, -1), aloe.AloeConfig())
        assert actor.weight[2:] == pytest.approx([weight] * 2)


def test_equal_advantages_are_refused() -> None:
    frames = two_steps_each(DEMO)
    windows = make_windows(frames, WindowConfig(horizon=2), 2.0)
    with pytest.raises(ValueError, match="all advantages equal"):
        aloe.actor_rows(windows, judged(1, 1), aloe.AloeConfig())


def test_weights_are_plain_float32_for_every_window() -> None:
    frames = two_steps_each(DEMO, POLICY)
    windows = make_windows(frames, WindowConfig(horizon=2), 2.0)
    actor = aloe.actor_rows(windows, judged(1, 0, -1, 0), aloe.AloeConfig())
    assert actor.weight.dtype == np.float32
    assert torch.from_numpy(actor.weight).shape == (4,)


def test_dagger_takes_what_led_people_to_success_and_nothing_of_the_policy() -> None:
    frames = two_steps_each(
        DEMO, (Source.POLICY, "success"), HUMAN, (Source.HUMAN, "failure"), (Source.DEMO, "failure")
    )
    actor = dagger.actor_rows(frames, make_windows(frames, WindowConfig(horizon=2), 2.0))
    assert actor.rows.tolist() == [0, 1, 4, 5]
    assert set(actor.weight.tolist()) == {1.0}


def test_filtered_cloning_takes_every_fragment_that_ended_in_success() -> None:
    frames = two_steps_each(DEMO, (Source.POLICY, "success"), POLICY, HUMAN, (Source.HUMAN, "failure"))
    actor = filtered.actor_rows(frames, make_windows(frames, WindowConfig(horizon=2), 2.0))
    assert actor.rows.tolist() == [0, 1, 2, 3, 6, 7]
    assert set(actor.weight.tolist()) == {1.0}


def test_awr_weighs_by_the_return_above_the_buffers_value() -> None:
    # Scale 2, no discount, penalty 1. Success: rewards -0.5, 0: G = -0.5, 0. Failure: -0.5, -1: G = -1.5, -1.
    # V = -1 everywhere: A = 0.5, 1, -0.5, 0. Mean 0.25, variance (0.0625 + 0.5625 + 0.5625 + 0.0625) / 4 = 0.3125.
    frames = two_steps_each(DEMO, POLICY)
    windows = make_windows(frames, WindowConfig(horizon=2, chunk_discount=1.0), 2.0)
    value = np.full(4, -1, np.float32)
    assert awr.advantages(windows, value) == pytest.approx([0.5, 1, -0.5, 0])
    actor = awr.actor_rows(windows, value, awr.AwrConfig())
    assert actor.weight == pytest.approx(np.exp(np.array([0.5, 1, -0.5, 0]) / np.sqrt(0.3125)), rel=1e-5)
    assert actor.rows.tolist() == [0, 1, 2, 3]


def test_awr_takes_sharpness_clip_and_the_share_of_failures_from_its_options() -> None:
    # As above, A = 0.5, 1, -0.5, 0 with standard deviation 0.559; with half of it A / beta = 1.79, 3.58, -1.79, 0, clipped
    # at 2. The last two are of a failed fragment and count half.
    frames = two_steps_each(DEMO, POLICY)
    windows = make_windows(frames, WindowConfig(horizon=2, chunk_discount=1.0), 2.0)
    config = awr.AwrConfig(beta_scale=0.5, clip=2.0, failed_share=0.5)
    actor = awr.actor_rows(windows, np.full(4, -1, np.float32), config)
    first = 1 / np.sqrt(0.3125)
    expected = [np.exp(first), np.exp(2), 0.5 * np.exp(-first), 0.5]
    assert actor.weight == pytest.approx(expected, rel=1e-5)


def test_awr_leaves_out_what_has_no_known_return() -> None:
    frames = two_steps_each(DEMO, (Source.POLICY, "timeout"))
    windows = make_windows(frames, WindowConfig(horizon=2, chunk_discount=1.0, timeout="bootstrap"), 2.0)
    actor = awr.actor_rows(windows, np.full(4, -1, np.float32), awr.AwrConfig())
    assert actor.rows.tolist() == [0, 1]
    assert actor.weight[2:].tolist() == [0, 0]


def test_recaps_advantage_looks_one_window_ahead_and_nowhere_past_an_end() -> None:
    # One episode of the policy, 4 steps, success; horizon 2, discount 0.5 a step, scale 2: rewards -0.5, -0.5, -0.5, 0.
    frames = two_steps_each((Source.POLICY, ""), (Source.POLICY, "success"))
    frames = replace(frames, episode=np.zeros(4, np.int64), step=np.arange(4))
    windows = make_windows(frames, WindowConfig(horizon=2, chunk_discount=0.25), 2.0)
    value = np.array([-1, -2, -3, -4], np.float32)
    # A_0 = -0.5 - 0.25 + 0.25 * V_2 - V_0 = -0.75 - 0.75 + 1 = -0.5;  A_1 = -0.75 + 0.25 * V_3 + 2 = 0.25
    # A_2 = -0.5 + 0 (end) + 3 = 2.5;  A_3 = 0 + 4 = 4
    assert recap.advantages(windows, value, 0.5) == pytest.approx([-0.5, 0.25, 2.5, 4])


def test_recap_calls_the_best_share_of_each_task_and_all_that_people_did_positive() -> None:
    frames = two_steps_each(DEMO, POLICY, POLICY, HUMAN, POLICY)
    frames = replace(frames, task_index=np.repeat(np.array([0, 0, 0, 0, 1]), 2), tasks=["press", "pull"])
    advantage = np.array([-9, -9, 1, 2, 3, 4, -9, -9, 10, 20], np.float32)
    # Policy steps of "press": 1, 2, 3, 4, of which half exceed the median 2.5; of "pull": 10, 20, median 15.
    windows = make_windows(frames, WindowConfig(horizon=2), 2.0)
    good = recap.is_positive(frames, windows, advantage, recap.RecapConfig(positive_share=0.5))
    assert good.tolist() == [True, True, False, False, True, True, True, True, False, True]
    actor = recap.actor_rows(frames, windows, advantage, recap.RecapConfig(positive_share=0.5))
    assert actor.condition is not None
    assert [words == recap.POSITIVE for words in actor.condition] == good.tolist()
    assert actor.rows.tolist() == list(range(10))


def test_recap_calls_nothing_of_the_policy_positive_whose_advantage_is_unknown() -> None:
    # Policy: two steps that fail, with advantages -2 and -1, and two before a time-out, of which nothing is known.
    frames = two_steps_each(POLICY, (Source.POLICY, "timeout"))
    windows = make_windows(frames, WindowConfig(horizon=2, timeout="bootstrap"), 2.0)
    assert windows.has_target.tolist() == [True, True, False, False]
    advantage = np.array([-2, -1, 0, 0], np.float32)
    # Half of the known are above their median -1.5.
    good = recap.is_positive(frames, windows, advantage, recap.RecapConfig(positive_share=0.5))
    assert good.tolist() == [False, True, False, False]


def test_q_chunking_clones_everything_and_bootstraps_from_the_best_of_its_samples() -> None:
    frames = two_steps_each(DEMO, POLICY)
    actor = qc.actor_rows(make_windows(frames, WindowConfig(horizon=2), 2.0))
    assert actor.rows.tolist() == [0, 1, 2, 3]
    assert set(actor.weight.tolist()) == {1.0}
    fit = qc.fit_config(FitConfig(steps=7), qc.QcConfig(samples=5))
    assert (fit.bootstrap, fit.target_samples, fit.steps) == ("best-of", 5, 7)
    assert (fit.target_aggregation, fit.advantage_aggregation) == ("mean", "mean")
