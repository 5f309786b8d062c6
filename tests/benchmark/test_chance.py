"""`benchmarks/chance.py`, whose figures stand in docs/results.md: its variances by hand, its scenes on a real run."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from aloe.config import PRESETS, CollectConfig
from aloe.loop import run_circle
from aloe.rollout.pool import WorldPool
from aloe.versions import Versions

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import chance

TINY = PRESETS["tiny"]
CONFIG = replace(
    TINY,
    rounds=1,
    method="filtered",
    collect=CollectConfig(episodes=1),
    world=replace(TINY.world, observations="state"),
)


def test_share_of_the_scenes_is_that_of_a_one_way_analysis_of_variance():
    won = np.array([[1, 0, 1, 0], [1, 0, 0, 1]], bool)  # two repetitions of four scenes
    # Within a scene 0, 0, 1/2 and 1/2, so 1/4 on average. The means 1, 0, 1/2 and 1/2 vary by 1/6, of which half of 1/4 is
    # chance: 1/24 between scenes, of 7/24 in all.
    assert chance.share_of_scenes(won, ["push"] * 4) == pytest.approx(1 / 7)
    assert chance.share_of_scenes(won[:, :2], ["push"] * 2) == 1


def test_what_tells_tasks_apart_is_not_counted_as_the_scenes():
    won = np.array([[1, 1, 0, 0]] * 3, bool)
    assert math.isnan(chance.share_of_scenes(won, ["reach", "reach", "push", "push"]))


def test_repetitions_play_the_same_scenes_with_other_noise_and_again_the_same(tmp_path):
    run = run_circle(CONFIG, tmp_path / "run", say=lambda _: None)
    versions, config = Versions(run=run, config=CONFIG, device="cpu"), chance.Config(runs=(), scenes=2, repetitions=2)
    with WorldPool(CONFIG.world, CONFIG.workers) as pool:
        first, second = chance.play(pool, versions, 1, config)
        once_more = chance.play(pool, versions, 1, config)[1]
    for one, other, same in zip(first, second, once_more, strict=True):
        np.testing.assert_array_equal(one.state[0], other.state[0])
        assert not np.array_equal(one.action[0], other.action[0])
        np.testing.assert_array_equal(other.action, same.action)
    assert not np.array_equal(first[0].state[0], first[1].state[0])


def test_a_single_repetition_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        chance.Config(runs=(), repetitions=1)
