"""Each test writes its fragments as one string a episode, a letter a step (see `frames_of`)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from aloe.experience.store import Frames
from aloe.experience.windows import (
    WindowConfig,
    Windows,
    action_frames,
    fragment_starts,
    handed_back,
    make_windows,
    return_scale,
)
from aloe.methods import dagger, filtered
from aloe.types import NO_POLICY, Source

SOURCES = {"d": Source.DEMO, "p": Source.POLICY, "q": Source.POLICY, "h": Source.HUMAN}
VERSIONS = {"d": NO_POLICY, "p": 1, "q": 2, "h": 1}
ENDS = "+-~"


def frames_of(*episodes: str) -> Frames:
    """d: a demonstrated step, p and q: one of policy version 1 or 2, h: the human's. What follows a letter says how that
    step ended: + success, - failure, ~ time ran out, nothing: unlabelled. "ppp-hh+" is a rollout that the human saved.
    """
    steps = []
    for number, text in enumerate(episodes):
        own: list[dict] = []
        for letter in text:
            if letter in ENDS:
                own[-1]["end"] = letter
            else:
                own.append({"who": letter, "end": "", "episode": number, "step": len(own)})
        steps += own
    count = len(steps)
    ends = np.array([step["end"] for step in steps], dtype=str)
    column = np.arange(count, dtype=np.float32)[:, None]
    return Frames(
        state=column,
        action=column,
        proposed_action=column,
        source=np.array([int(SOURCES[step["who"]]) for step in steps], np.int64),
        policy_version=np.array([VERSIONS[step["who"]] for step in steps], np.int64),
        reward=np.where(ends == "+", 0, -1).astype(np.float32),
        terminated=(ends == "+") | (ends == "-"),
        truncated=ends == "~",
        success=ends == "+",
        seed=np.zeros(count, np.int64),
        episode=np.array([step["episode"] for step in steps], np.int64),
        step=np.array([step["step"] for step in steps], np.int64),
        task_index=np.zeros(count, np.int64),
        tasks=["a task"],
    )


def windows_of(*episodes: str, horizon: int = 2, scale: float = 4.0, chunk_discount: float = 1.0, **config) -> Windows:
    return make_windows(
        frames_of(*episodes), WindowConfig(horizon=horizon, chunk_discount=chunk_discount, **config), scale
    )


def starts_of(*episodes: str) -> list[int]:
    return np.flatnonzero(fragment_starts(frames_of(*episodes))).tolist()


@pytest.mark.parametrize(
    ("episodes", "starts"),
    [
        (["dddd+"], [0]),
        (["ppp", "ppp"], [0, 3]),  # the end of an episode, unlabelled
        (["ppp-hhh+"], [0, 3]),  # the human takes over
        (["ppphhh+"], [0, 3]),
        (["ppphhhpp+"], [0, 3, 6]),  # and gives back
        (["ppqq+"], [0, 2]),  # another version of the policy
        (["pp+pp+"], [0, 2]),  # terminated
        (["pp~pp~"], [0, 2]),  # truncated
    ],
)
def test_fragments_start_where_actor_version_or_episode_change(episodes: list[str], starts: list[int]) -> None:
    assert starts_of(*episodes) == starts


def test_every_step_starts_a_window() -> None:
    windows = windows_of("dddd+")
    assert len(windows) == 4
    # The last window has one action; its missing second repeats the last frame and is padding.
    np.testing.assert_array_equal(windows.frames, [[0, 1], [1, 2], [2, 3], [3, 3]])
    np.testing.assert_array_equal(windows.is_pad, [[0, 0], [0, 0], [0, 0], [0, 1]])
    np.testing.assert_array_equal(windows.next_frame[windows.bootstraps], [2, 3])


def test_chunk_at_the_end_keeps_its_terminal_reward() -> None:
    # C = 4: a step costs 1/4, the successful one nothing, and what follows the end nothing.
    windows = windows_of("dddd+", horizon=3)
    q = 0.25
    np.testing.assert_allclose(windows.reward, [[-q, -q, -q], [-q, -q, 0], [-q, 0, 0], [0, 0, 0]])
    np.testing.assert_array_equal(windows.is_pad[:, 1:], [[0, 0], [0, 0], [0, 1], [1, 1]])
    # A failing step costs 1, instead of the step's 1/4, also where it is the only one of its window.
    windows = windows_of("ppp-", horizon=3)
    np.testing.assert_allclose(windows.reward, [[-q, -q, -1], [-q, -1, 0], [-1, 0, 0]])


def test_window_that_ends_with_its_fragment_is_terminated() -> None:
    # Window 1 takes steps 1 and 2, of which step 2 is the last: terminated without any padding.
    windows = windows_of("ppp-")
    np.testing.assert_array_equal(windows.terminated, [0, 1, 1])
    np.testing.assert_array_equal(windows.is_pad.any(1), [0, 0, 1])
    np.testing.assert_array_equal(windows.has_target, [1, 1, 1])
    np.testing.assert_array_equal(windows.bootstraps, [1, 0, 0])


def test_termination_inside_a_window_keeps_the_next_fragment_out() -> None:
    # Frames 0 1 2 are the policy's, 3 4 the human's.
    windows = windows_of("ppp-hh+", horizon=3)
    np.testing.assert_array_equal(windows.frames, [[0, 1, 2], [1, 2, 2], [2, 2, 2], [3, 4, 4], [4, 4, 4]])
    np.testing.assert_array_equal(windows.fragment, [0, 0, 0, 1, 1])
    np.testing.assert_array_equal(windows.terminated, [1, 1, 1, 1, 1])
    np.testing.assert_array_equal(windows.fragment_success, [0, 0, 0, 1, 1])


@pytest.mark.parametrize("cut", ["ppp-hh+", "ppphh+"])
def test_cut_of_the_human_is_a_failure_labelled_or_not(cut: str) -> None:
    windows = windows_of(cut, failure_penalty=2.0)
    # policy: -1/4 - 1/4 - 2;  human: -1/4 + 0
    np.testing.assert_allclose(windows.monte_carlo, [-2.5, -2.25, -2.0, -0.25, 0.0])
    np.testing.assert_array_equal(windows.terminated, [0, 1, 1, 1, 1])
    assert windows.has_target.all()


def test_handing_back_to_the_policy_is_no_failure() -> None:
    # The human's fragment 0 1 2 goes on with the policy's 3 4: windows 0 to 2 bootstrap at frames 2 to 4.
    windows = windows_of("hhhpp+")
    np.testing.assert_array_equal(windows.terminated, [0, 0, 0, 1, 1])
    np.testing.assert_array_equal(windows.next_frame[:3], [2, 3, 4])
    assert windows.has_target.all()
    np.testing.assert_allclose(windows.reward[:3], [[-0.25, -0.25]] * 3)


def test_rollout_in_another_episode_than_the_human_is_no_cut() -> None:
    windows = windows_of("ppp", "hhh+")
    np.testing.assert_array_equal(windows.terminated[:3], [0, 0, 0])
    np.testing.assert_array_equal(windows.has_target[:3], [1, 0, 0])


def test_time_out_is_a_failure_by_default() -> None:
    windows = windows_of("pppp~")
    np.testing.assert_allclose(windows.reward[2], [-0.25, -1.0])
    np.testing.assert_array_equal(windows.terminated, [0, 0, 1, 1])
    assert windows.has_target.all()
    np.testing.assert_allclose(windows.monte_carlo, [-1.75, -1.5, -1.25, -1.0])


def test_time_out_that_bootstraps_leaves_the_last_windows_without_target() -> None:
    windows = windows_of("pppp~", timeout="bootstrap")
    np.testing.assert_allclose(windows.reward, [[-0.25, -0.25]] * 3 + [[-0.25, 0]])
    assert not windows.terminated.any()
    # Windows 0 and 1 end in frames 2 and 3; where windows 2 and 3 would end nothing was recorded.
    np.testing.assert_array_equal(windows.has_target, [1, 1, 0, 0])
    np.testing.assert_array_equal(windows.bootstraps, [1, 1, 0, 0])
    np.testing.assert_array_equal(windows.next_frame[:2], [2, 3])


@pytest.mark.parametrize("timeout", ["failure", "bootstrap"])
def test_success_in_the_last_moment_is_a_success(timeout: str) -> None:
    frames = frames_of("ppp+")
    frames.truncated[-1] = True
    windows = make_windows(frames, WindowConfig(horizon=2, timeout=timeout), scale=4.0)
    assert windows.fragment_success.all()
    assert windows.reward[2, 0] == 0


def test_fragment_shorter_than_the_horizon_is_kept() -> None:
    windows = windows_of("p-hhhh+", horizon=3)
    np.testing.assert_array_equal(windows.frames[0], [0, 0, 0])
    np.testing.assert_array_equal(windows.is_pad[0], [0, 1, 1])
    np.testing.assert_allclose(windows.reward[0], [-1, 0, 0])
    assert windows.terminated[0]


def test_discount_of_a_chunk_is_that_of_its_steps_together() -> None:
    for horizon in (1, 5, 50):
        assert WindowConfig(horizon=horizon, chunk_discount=0.9).discount ** horizon == pytest.approx(0.9)


def test_monte_carlo_return_is_discounted_to_the_end_of_its_own_fragment() -> None:
    # discount = 0.25^(1/2) = 0.5. Policy: -1, -1/4 - 1/2. Human: 0, -1/4 + 0, -1/4 - 1/8.
    windows = windows_of("pp-hhh+", chunk_discount=0.25)
    np.testing.assert_allclose(windows.monte_carlo, [-0.75, -1.0, -0.375, -0.25, 0.0])


def test_scale_is_the_mean_length_of_successful_demonstrations() -> None:
    # 3 and 5 steps; neither the failed demonstration, nor the rollout, nor the human's rescue count.
    frames = frames_of("ddd+", "ddddd+", "dddddddd-", "pppppppppp+", "ppp-hhhh+")
    assert return_scale(frames) == 4.0


def test_successful_demonstration_of_mean_length_returns_about_minus_one() -> None:
    # 9 steps of -1/10 and one of 0
    assert windows_of("dddddddddd+", scale=10.0).monte_carlo[0] == pytest.approx(-0.9)


def test_range_of_returns_holds_the_worst_of_the_longest_fragment() -> None:
    # 4 steps of -1/4 at discount 1, and a failure
    assert windows_of("pppp-", "dd+").return_range == (pytest.approx(-2.0), 0.0)


def test_empty_store_is_refused() -> None:
    with pytest.raises(ValueError, match="holds no frames"):
        make_windows(frames_of(), WindowConfig(), scale=4.0)


@pytest.mark.parametrize(
    ("episodes", "what"),
    [([], "episode"), (["ppp-"], "episode"), (["ddd-"], "demonstration"), (["ddd~", "pp+"], "demonstration")],
)
def test_store_without_success_has_no_scale(episodes: list[str], what: str) -> None:
    with pytest.raises(ValueError, match=f"no successful {what}"):
        return_scale(frames_of(*episodes))


def test_scale_is_of_demonstrations_and_without_any_of_all_that_succeeded() -> None:
    assert return_scale(frames_of("ddd+", "ddddd+", "p+", "ddddddd-")) == pytest.approx((3 + 5) / 2)
    assert return_scale(frames_of("ppp+", "ppp-hh+", "pp-")) == pytest.approx((3 + 5) / 2)


def test_horizon_longer_than_every_fragment_is_refused() -> None:
    windows_of("ddd+", "pp-", horizon=3)
    with pytest.raises(ValueError, match="longer than every fragment"):
        windows_of("ddd+", "pp-", horizon=4)


@pytest.mark.parametrize(
    "wrong", [{"horizon": 0}, {"chunk_discount": 0.0}, {"chunk_discount": 1.01}, {"failure_penalty": -1.0}]
)
def test_impossible_settings_are_refused(wrong: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        WindowConfig(**wrong)


episode_texts = st.lists(
    st.lists(
        st.tuples(st.sampled_from("dpqh"), st.integers(1, 6), st.sampled_from(["", "+", "-", "~"])),
        min_size=1,
        max_size=4,
    ).map(lambda runs: "".join(who * length + end for who, length, end in runs)),
    min_size=1,
    max_size=4,
)


@given(
    episodes=episode_texts,
    horizon=st.integers(1, 8),
    chunk_discount=st.floats(0.2, 1),
    timeout=st.sampled_from(["failure", "bootstrap"]),
)
def test_no_window_holds_steps_of_two_fragments_but_after_a_handing_back(
    episodes: list[str], horizon: int, chunk_discount: float, timeout: str
) -> None:
    frames = frames_of(*episodes)
    config = WindowConfig(horizon=horizon, chunk_discount=chunk_discount, timeout=timeout)
    starts = fragment_starts(frames) & ~handed_back(frames)
    if np.diff(np.append(np.flatnonzero(starts), len(frames))).max() < horizon:
        with pytest.raises(ValueError, match="longer than every fragment"):
            make_windows(frames, config, scale=3.0)
        return
    windows = make_windows(frames, config, scale=3.0)
    rows = np.arange(len(frames))
    np.testing.assert_array_equal(windows.frames[:, 0], rows)
    assert not windows.is_pad[:, 0].any()
    stretch = np.cumsum(starts)
    assert (stretch[windows.frames] == stretch[:, None]).all()
    for name in ("source", "policy_version"):
        same = getattr(frames, name)[windows.frames] == getattr(frames, name)[:, None]
        assert (
            same | ((frames.source == Source.HUMAN)[:, None] & (frames.source[windows.frames] == Source.POLICY))
        ).all()
    # Actions follow one another without a gap, and none but the last may end an episode.
    steps = windows.frames - rows[:, None]
    np.testing.assert_array_equal(steps, np.where(windows.is_pad, steps.max(1, keepdims=True), np.arange(horizon)))
    ended = (frames.terminated | frames.truncated)[windows.frames] & ~windows.is_pad
    assert not (ended[:, :-1] & ~windows.is_pad[:, 1:]).any()
    assert (windows.reward[windows.is_pad] == 0).all()
    # What bootstraps does so from the frame that follows the window, in the same stretch.
    onward = windows.bootstraps
    np.testing.assert_array_equal(windows.next_frame[onward], (rows + horizon)[onward])
    np.testing.assert_array_equal(stretch[windows.next_frame[onward]], stretch[onward])
    # Rewards within a window and the return after it make the Monte Carlo return.
    within = (windows.reward * config.discount ** np.arange(horizon)).sum(1)
    after = np.where(onward, windows.monte_carlo[windows.next_frame], 0)
    expected = within + config.discount**horizon * after
    np.testing.assert_allclose(windows.monte_carlo[windows.has_target], expected[windows.has_target], atol=1e-5)
    lowest, highest = windows.return_range
    assert (windows.monte_carlo >= lowest - 1e-5).all()
    assert (windows.monte_carlo <= highest + 1e-5).all()


@pytest.mark.parametrize("cut", ["-", ""])
def test_cut_that_bootstraps_is_a_mere_stop(cut: str) -> None:
    # ppp cut, hh success; H = 2. The policy's window at step 0 bootstraps at step 2; those at 1 and 2 reach the end of
    # the recording: neither an end nor a next state is known.
    windows = make_windows(frames_of("dd+", f"ppp{cut}hh+"), WindowConfig(horizon=2, cut="bootstrap"), 2.0)
    assert windows.has_target[2:5].tolist() == [True, False, False]
    assert windows.bootstraps[2:5].tolist() == [True, False, False]
    assert not windows.ended[2:5].any()
    assert windows.failed.tolist() == [False, False, True, True, True, False, False]
    assert windows.reward[2:5, 0].tolist() == [-0.5, -0.5, -0.5]  # no penalty anywhere


def test_failures_that_cost_a_number_of_steps_cost_the_same_whenever_they_come() -> None:
    # Scale 2, no discount, penalty 1, 4 steps: -4/2 - 1 + 1/2 (the last step costs the penalty in place of its -1/2) = -2.5
    # from the start of every failure, after 2 steps or after 4; a success is not touched.
    config = WindowConfig(horizon=2, chunk_discount=1.0, failure_steps=4)
    windows = make_windows(frames_of("dd+", "pp-", "pppp-"), config, 2.0)
    assert windows.monte_carlo[[0, 2, 4]].tolist() == [-0.5, -2.5, -2.5]
    assert windows.return_range[0] <= windows.monte_carlo.min()


def test_where_a_human_hands_back_critics_learn_on_and_the_correction_counts_as_made() -> None:
    frames = frames_of("ppp-hhhpp+")
    windows = windows_of("ppp-hhhpp+")  # steps 3 to 5 are the human's, 6 and 7 the policy's, who succeeds
    assert windows.fragment.tolist() == [0, 0, 0, 1, 1, 1, 2, 2]
    assert windows.has_target.all()
    assert windows.frames[5].tolist() == [
        5,
        6,
    ]  # what was executed from there: the human's last action, the policy's first
    assert windows.next_frame[5] == 7
    assert windows.bootstraps.tolist() == [True, False, False, True, True, True, False, False]
    # A step costs 1/4. From step 3 on: four steps and the success; the policy's first three ended in the human's cut.
    assert windows.monte_carlo == pytest.approx([-1.5, -1.25, -1, -1, -0.75, -0.5, -0.25, 0])
    assert windows.failed.tolist() == [True] * 3 + [False] * 5
    assert dagger.actor_rows(frames, windows).rows.tolist() == [3, 4, 5]
    assert filtered.actor_rows(frames, windows).rows.tolist() == [3, 4, 5, 6, 7]
    taken, is_pad = action_frames(frames, 2)  # nobody imitates both in one chunk
    assert taken[5].tolist() == [5, 5]
    assert is_pad[5].tolist() == [False, True]


def test_a_correction_after_which_the_policy_fails_was_made_all_the_same_but_is_worth_less() -> None:
    windows = windows_of("hhppp-hh+")
    assert windows.fragment_success.tolist() == [True, True, False, False, False, True, True]
    assert windows.failed.tolist() == [False, False, True, True, True, False, False]
    assert windows.ended.all()
    # Two steps of the human and two of the policy at 1/4, and 1 for the step at which the human takes over again.
    assert windows.monte_carlo[0] == pytest.approx(-2)


def test_an_end_that_a_human_caused_is_no_handing_back() -> None:
    windows = windows_of("hh-pp+")
    assert windows.fragment_success.tolist() == [False, False, True, True]
    assert windows.failed.tolist() == [True, True, False, False]
