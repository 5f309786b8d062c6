import numpy as np
import pytest

from aloe.evaluation.success import SuccessReport, wilson_interval
from aloe.types import Episode, Source


def an_episode(steps: int, *, success: bool, human_from: int | None = None, task: str = "reach the goal") -> Episode:
    last = np.arange(steps) == steps - 1
    source = np.full(steps, Source.POLICY, np.int64)
    cut = np.zeros(steps, bool)
    if human_from is not None:
        source[human_from:] = Source.HUMAN
        cut[human_from - 1] = True
    return Episode(
        task=task,
        seed=0,
        images={},
        state=np.zeros((steps, 4), np.float32),
        action=np.zeros((steps, 4), np.float32),
        proposed_action=np.zeros((steps, 4), np.float32),
        source=source,
        policy_version=np.zeros(steps, np.int64),
        reward=np.where(last & success, 0, -1).astype(np.float32),
        terminated=cut | (last & success),
        truncated=last & (not success),
        success=last & success,
    )


def test_wilson_interval_of_eight_in_ten():
    # z = 2: p = 0.8, z²/n = 0.4; centre 0.8 + 0.2 = 1; margin 2 √(0.016 + 4/400) = 2 √0.026 = 0.322490;
    # both over 1.4: (1 - 0.322490)/1.4 = 0.483936, (1 + 0.322490)/1.4 = 0.944636.
    low, high = wilson_interval(8, 10, z=2.0)
    assert low == pytest.approx(0.483936, abs=1e-6)
    assert high == pytest.approx(0.944636, abs=1e-6)


def test_wilson_interval_keeps_a_width_at_none_and_at_all():
    # z = 2, n = 4, p = 0: centre 0.5, margin 2 √(4/64) = 0.5, over 2: (0, 0.5); all: its mirror image.
    assert wilson_interval(0, 4, z=2.0) == (0.0, 0.5)
    assert wilson_interval(4, 4, z=2.0) == (0.5, 1.0)


def test_wilson_interval_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one episode"):
        wilson_interval(0, 0)


def test_report_counts_steps_and_simulated_time():
    episodes = [an_episode(10, success=True), an_episode(30, success=True), an_episode(40, success=False)]
    report = SuccessReport.from_episodes(episodes, fps=20)
    assert (report.successes, report.episodes) == (2, 3)
    assert report.success == pytest.approx(2 / 3)
    assert (report.low, report.high) == wilson_interval(2, 3)
    assert report.steps_to_success == 20.0  # (10 + 30) / 2
    assert report.env_steps == 80
    assert report.mean_steps == pytest.approx(80 / 3)
    assert report.throughput == pytest.approx(1800)  # 80 steps at 20 a second are 4 s: 2 in 4 s, 1800 an hour


def test_what_a_human_had_to_finish_is_no_success_of_the_policy():
    report = SuccessReport.from_episodes([an_episode(10, success=True, human_from=6)], fps=20)
    assert report.successes == 0
    assert report.throughput == 0.0
    assert report.steps_to_success is None
    assert report.mean_steps == 10.0


def test_successes_are_counted_in_each_task():
    episodes = [
        an_episode(10, success=True, task="push"),
        an_episode(10, success=False, task="push"),
        an_episode(10, success=True, human_from=6, task="push"),  # the human's
        an_episode(10, success=True, task="lift"),
    ]
    report = SuccessReport.from_episodes(episodes, fps=20)
    assert report.by_task == {"lift": (1, 1), "push": (1, 3)}
    assert report.successes == 2


def test_report_of_no_episodes_is_refused():
    with pytest.raises(ValueError, match="no episodes"):
        SuccessReport.from_episodes([], fps=20)
