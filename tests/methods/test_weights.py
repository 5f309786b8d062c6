"""Which windows an actor learns from, and how much each counts, worked out by hand."""

import numpy as np
import pytest
import torch

from aloe.experience.store import Frames
from aloe.experience.windows import WindowConfig, make_windows
from aloe.methods import aloe, sft
from aloe.types import Source
from aloe.value.fit import Evaluation


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
    return Evaluation(q=advantage[:, None], value=0 * advantage, advantage=advantage, spread_data=0, spread_samples=0)


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
    actor = aloe.actor_rows(frames, windows, judged(3, -1, -1, -1), aloe.AloeConfig(clip=1.0))
    assert actor.weight == pytest.approx([np.e, *[np.exp(-1 / np.sqrt(3))] * 3])
    assert actor.rows.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(("share", "rows"), [(0.0, [0, 1]), (0.5, [0, 1, 2, 3])])
def test_windows_of_a_failed_fragment_count_by_their_share(share: float, rows: list[int]) -> None:
    frames = two_steps_each(DEMO, POLICY)
    windows = make_windows(frames, WindowConfig(horizon=2), 2.0)
    actor = aloe.actor_rows(frames, windows, judged(1, 1, -1, -1), aloe.AloeConfig(failed_share=share))
    # mean 0, std 1: weights e and share / e.
    assert actor.weight == pytest.approx([np.e, np.e, share / np.e, share / np.e])
    assert actor.rows.tolist() == rows


def test_running_out_of_time_is_no_failure_where_the_value_is_bootstrapped_from_there() -> None:
    frames = two_steps_each(DEMO, (Source.POLICY, "timeout"))
    for timeout, weight in (("failure", 0.0), ("bootstrap", 1 / np.e)):
        windows = make_windows(frames, WindowConfig(horizon=2, timeout=timeout), 2.0)
        actor = aloe.actor_rows(frames, windows, judged(1, 1, -1, -1), aloe.AloeConfig())
        assert actor.weight[2:] == pytest.approx([weight] * 2)


def test_equal_advantages_are_refused() -> None:
    frames = two_steps_each(DEMO)
    windows = make_windows(frames, WindowConfig(horizon=2), 2.0)
    with pytest.raises(ValueError, match="all advantages equal"):
        aloe.actor_rows(frames, windows, judged(1, 1), aloe.AloeConfig())


def test_weights_are_plain_float32_for_every_window() -> None:
    frames = two_steps_each(DEMO, POLICY)
    windows = make_windows(frames, WindowConfig(horizon=2), 2.0)
    actor = aloe.actor_rows(frames, windows, judged(1, 0, -1, 0), aloe.AloeConfig())
    assert actor.weight.dtype == np.float32
    assert torch.from_numpy(actor.weight).shape == (4,)
