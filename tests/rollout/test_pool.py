import os
import signal
import subprocess
import sys
import textwrap
import time

import numpy as np
import pytest

from aloe.rollout.collect import episode_seeds
from aloe.rollout.human import HumanConfig
from aloe.rollout.pool import EpisodeRequest, WorkerError, WorldPool
from aloe.types import NO_POLICY, Source
from aloe.worlds.metaworld import MetaWorldConfig

WORLD = MetaWorldConfig(task="reach-v3", cameras=("topview", "corner2"), image_size=16, max_steps=12, action_repeat=2)
REQUESTS = [EpisodeRequest(index=i, seed=s) for i, s in enumerate(episode_seeds(0, "collect", 4))]
HUMAN = HumanConfig(patience_steps=5, min_progress=1.0, reaction_delay_steps=1, action_noise=0.1)


class Wanderer:
    """A policy that uses all that it is given: noise, state and pictures, each of its own row. May dawdle."""

    chunk_shape = noise_shape = (6, 4)

    def __init__(self, pauses=None):
        self.pauses = pauses
        self.rows = []

    def __call__(self, images, state, tasks, noise):
        assert tasks == ["reach the goal"] * len(state)
        assert noise.shape == (len(state), 6, 4)
        self.rows.append(len(state))
        if self.pauses is not None:
            time.sleep(self.pauses.uniform(0, 0.03))  # disturbs the order in which the workers are served
        brightness = sum(picture.mean((1, 2, 3)) for picture in images.values()) / 512
        return np.clip(0.5 * noise + state[:, None] + brightness[:, None, None] - 0.7, -2, 2).astype(np.float32)


class Chooser(Wanderer):
    """Draws three chunks for each decision, and takes the first."""

    noise_shape = (3, 6, 4)

    def __call__(self, images, state, tasks, noise):
        return super().__call__(images, state, tasks, noise[:, 0])


class Listener:
    """Flees from every goal, and writes down what it is told to do."""

    chunk_shape = noise_shape = (4, 4)

    def __init__(self):
        self.told = []

    def __call__(self, images, state, tasks, noise):
        self.told.append(tasks)
        return np.tile(np.float32([0, -1, -1, 0]), (len(state), 4, 1))


@pytest.fixture(scope="module")
def pool():
    with WorldPool(WORLD, workers=2) as pool:
        yield pool


@pytest.fixture(scope="module")
def whole(pool):
    """All requests, played once."""
    return play(pool)


def assert_bit_equal(left, right):
    assert len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        assert (a.seed, a.task, list(a.images)) == (b.seed, b.task, list(b.images))
        for name, column in vars(a).items():
            if isinstance(column, np.ndarray):
                np.testing.assert_array_equal(column, getattr(b, name), err_msg=name)
        for camera in a.images:
            np.testing.assert_array_equal(a.images[camera], b.images[camera])


def play(pool, requests=REQUESTS, *, pauses=None, **knobs):
    knobs = {"execute": 3, "human": HUMAN, "policy_version": 4} | knobs
    return list(pool.play(requests, Wanderer(pauses), **knobs))


def test_same_seeds_give_bit_equal_episodes_whatever_the_timing(pool, whole):
    again = play(pool, pauses=np.random.default_rng(1))
    assert [episode.seed for episode in whole] == [request.seed for request in REQUESTS]
    assert any(episode.takeovers for episode in whole)
    assert_bit_equal(whole, again)


def test_resumed_stage_gives_the_episodes_of_the_uninterrupted_one(pool, whole):
    assert_bit_equal(whole[3:], play(pool, REQUESTS[3:]))


def test_policy_always_gets_a_row_for_each_worker(pool):
    policy = Wanderer()
    list(pool.play(REQUESTS[:1], policy, execute=3, policy_version=0, record=False))
    assert set(policy.rows) == {2}


def test_policy_is_asked_once_for_all_worlds_that_play(pool):
    policy = Listener()
    episodes = list(pool.play(REQUESTS, policy, execute=3, policy_version=0, record=False))
    assert [episode.steps for episode in episodes] == [12] * 4
    assert len(policy.told) == 8  # two episodes for each of two workers, a call every 3 of 12 steps


def test_unrecorded_episodes_are_the_recorded_ones_without_pictures(pool, whole):
    for full, bare in zip(whole, play(pool, record=False), strict=True):
        assert bare.images == {}
        np.testing.assert_array_equal(full.action, bare.action)
        assert set(full.images) == {"topview", "corner2"}
        assert (full.images["topview"] != full.images["corner2"]).any()
        assert full.images["topview"].shape == (full.steps, 16, 16, 3)


def test_state_has_four_numbers(whole):
    assert {episode.state.shape[1] for episode in whole} == {4}


def test_without_a_human_a_failed_episode_is_a_time_out(pool):
    for episode in play(pool, human=None, record=False):
        assert set(episode.source) == {Source.POLICY}
        assert episode.succeeded or (episode.steps == 12 and episode.truncated[-1])


def test_human_who_never_notices_never_takes_over(pool):
    blind = HumanConfig(patience_steps=1, time_fraction=0.1, reaction_delay_steps=0, miss_probability=1.0)
    assert sum(episode.takeovers for episode in play(pool, human=blind, record=False)) == 0


def test_policy_that_chooses_among_samples_finds_the_ordinary_noise_in_the_first(pool, whole):
    episodes = list(pool.play(REQUESTS[:2], Chooser(), execute=3, human=HUMAN, policy_version=4))
    assert_bit_equal(episodes, whole[:2])


def test_human_whose_attention_is_used_up_no_longer_comes(pool):
    # Comes in every episode: after a step, whatever happens. Worker 0 plays requests 0 and 2, worker 1 plays 1 and 3.
    eager = HumanConfig(patience_steps=1, min_progress=20.0, reaction_delay_steps=0, takeovers=3)
    assert [e.takeovers for e in play(pool, human=eager, takeovers=[2, 1], record=False)] == [1, 1, 1, 0]
    assert [e.takeovers for e in play(pool, human=eager, takeovers=[0, 2], record=False)] == [0, 1, 0, 1]
    resumed = play(pool, REQUESTS[2:], human=eager, takeovers=[1, 0], record=False)
    assert [e.takeovers for e in resumed] == [1, 0]
    with pytest.raises(ValueError, match=r"what is left of human\.takeovers"):
        play(pool, human=eager)
    with pytest.raises(ValueError, match=r"what is left of human\.takeovers"):
        play(pool, takeovers=[1, 1])
    with pytest.raises(ValueError, match="each of the 2 workers, not 3"):
        play(pool, human=eager, takeovers=[1, 1, 1])


def test_what_the_simulator_knows_comes_with_the_episode():
    world = MetaWorldConfig(
        task="faucet-open-v3", observations="state", max_steps=20, action_repeat=2, perturbation="disturbance"
    )
    with WorldPool(world, workers=1) as pool:
        episodes = list(pool.play(REQUESTS[:2], Listener(), execute=4, policy_version=0))
    for episode in episodes:
        assert episode.progress.shape == (episode.steps,)
        assert len(set(episode.progress)) > 1
        assert 1 <= episode.disturbed_at < 4  # from 5 % to 20 % of the time
    # The disturbance is not what the policy did: its own actions stay on record.
    assert all((episode.action == np.float32([0, -1, -1, 0])).all() for episode in episodes)


def test_each_row_is_told_the_instruction_of_its_own_task():
    world = MetaWorldConfig(
        task="faucet-open-v3", also=("faucet-close-v3",), observations="state", max_steps=5, action_repeat=2
    )
    requests = [EpisodeRequest(index=i, seed=i, task=i % 2) for i in range(4)]
    policy = Listener()
    with WorldPool(world, workers=2) as pool:
        episodes = list(pool.play(requests, policy, execute=4, policy_version=0))
        with pytest.raises(ValueError, match="one of the world's 2, counted from 0"):
            pool.play([EpisodeRequest(index=0, seed=0, task=2)], policy, execute=4, policy_version=0)
    # Worker 0 plays requests 0 and 2, which are faucet-open; while nobody waits in row 1 it says the first task, too.
    assert [episode.task for episode in episodes] == ["open the faucet", "close the faucet"] * 2
    assert {told[0] for told in policy.told} == {"open the faucet"}
    assert {told[1] for told in policy.told} <= {"open the faucet", "close the faucet"}
    assert sum(told.count("close the faucet") for told in policy.told) == 4  # two episodes of two decisions
    assert {episode.state.shape[1] for episode in episodes} == {21}
    assert all(episode.images == {} for episode in episodes)


def test_demonstrations_do_not_depend_on_the_number_of_workers(pool):
    two = list(pool.play(REQUESTS[:2], None, demo_noise=0.1, record=False))
    with WorldPool(WORLD, workers=1) as single:
        one = list(single.play(REQUESTS[:2], None, demo_noise=0.1, record=False))
    assert_bit_equal(two, one)
    assert all(episode.policy_version[0] == NO_POLICY for episode in two)


def test_reading_can_stop_early_and_the_pool_goes_on(pool, whole):
    episodes = pool.play(REQUESTS, Wanderer(), execute=3, human=HUMAN, policy_version=4)
    first = next(episodes)
    with pytest.raises(RuntimeError, match="previous iterator"):
        pool.play(REQUESTS, None)
    episodes.close()
    assert_bit_equal([first], whole[:1])
    assert_bit_equal(play(pool, REQUESTS[:2]), whole[:2])


def test_policy_that_raises_leaves_the_pool_usable(pool):
    def raising(images, state, tasks, noise):
        raise ZeroDivisionError

    raising.chunk_shape = raising.noise_shape = (6, 4)
    with pytest.raises(ZeroDivisionError):
        list(pool.play(REQUESTS, raising, execute=3, policy_version=0))
    assert len(play(pool, REQUESTS[:2])) == 2


def test_policy_that_returns_nan_is_named_as_the_culprit(pool):
    def diverged(images, state, tasks, noise):
        return noise * np.nan

    diverged.chunk_shape = diverged.noise_shape = (6, 4)
    with pytest.raises(ValueError, match="the policy returned NaN"):
        list(pool.play(REQUESTS, diverged, execute=3, policy_version=0))


def test_arguments_that_do_not_fit_together_are_refused(pool):
    with pytest.raises(ValueError, match=r"execute must lie in 1\.\.6"):
        pool.play(REQUESTS, Wanderer(), execute=7, policy_version=0)
    with pytest.raises(ValueError, match="a demonstration has no policy"):
        pool.play(REQUESTS, None, human=HUMAN)
    with pytest.raises(ValueError, match="policy_version must say"):
        pool.play(REQUESTS, Wanderer())
    with pytest.raises(ValueError, match="index of its own"):
        pool.play([REQUESTS[0], REQUESTS[0]], None)
    with pytest.raises(RuntimeError, match="with WorldPool"):
        WorldPool(WORLD, workers=1).play(REQUESTS, None)


def test_death_of_a_worker_is_reported_with_its_signal():
    with WorldPool(WORLD, workers=1) as pool:
        episodes = pool.play(REQUESTS, None)
        next(episodes)
        os.kill(pool._slots[0].process.pid, signal.SIGKILL)
        with pytest.raises(WorkerError, match=r"worker 0 died .*seed \d+ \(signal 9\)"):
            list(episodes)


def test_error_in_a_worker_is_reported_in_its_own_words(monkeypatch):
    monkeypatch.setenv("MUJOCO_GL", "no-such-thing")
    with pytest.raises(WorkerError, match="no-such-thing"), WorldPool(WORLD, workers=1):
        pass


def test_workers_import_no_torch_and_close_silently():
    program = """
        import sys
        from aloe.rollout.pool import EpisodeRequest, WorldPool
        from aloe.worlds.metaworld import MetaWorldConfig

        with WorldPool(MetaWorldConfig(task="reach-v3", image_size=16, max_steps=3), workers=1) as pool:
            list(pool.play([EpisodeRequest(index=0, seed=0)], None))
            worker = pool._slots[0]
            loaded = open(f"/proc/{worker.process.pid}/maps").read()
            worker.connection.close()
            assert worker.process.wait(10) == 0
            worker.log.seek(0)
            assert worker.log.read() == b""
        assert "libtorch" not in loaded and "torch" not in sys.modules
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
