import numpy as np
import pytest

from aloe.rollout.collect import decision_noise, episode_seeds, play_episode
from aloe.rollout.human import HumanConfig, ScriptedHuman
from aloe.types import NO_POLICY, Source
from aloe.worlds.metaworld import MetaWorld, MetaWorldConfig


@pytest.fixture(scope="module")
def world():
    world = MetaWorld(
        MetaWorldConfig(task="reach-v3", cameras=("topview",), image_size=16, max_steps=20, action_repeat=4)
    )
    yield world
    world.close()


def flee(decision, instruction, pictures, state):
    """Moves away from every goal, one distinct third of a step for each action of the chunk."""
    return np.array([[0.0, -1.5, -1.0, 0.1 * k] for k in range(4)], np.float32)


def play(world, *, ask=flee, human=None, seed=7, **knobs):
    watcher = human and ScriptedHuman(human, max_steps=world.config.max_steps)
    knobs = {"execute": 3, "record": False, "policy_version": 2} | knobs
    return play_episode(world, seed=seed, ask=ask, human=watcher, **knobs)


def corrected(world, *, patience=6, **knobs):
    human = HumanConfig(patience_steps=patience, min_progress=20.0, time_fraction=None, reaction_delay_steps=0)
    return play(world, human=human, **knobs)


def test_time_out_without_a_human_is_truncated_and_no_failure(world):
    episode = play(world)
    assert episode.steps == 20
    assert not episode.terminated.any()
    assert not episode.success.any()
    assert episode.truncated.tolist() == [False] * 19 + [True]
    assert episode.reward.tolist() == [-1.0] * 20
    assert set(episode.source) == {Source.POLICY}
    assert episode.images == {}


def test_only_the_executed_part_of_a_chunk_is_played(world):
    episode = play(world)
    # execute = 3: the grip runs 0, 0.1, 0.2, then comes the next chunk; no fourth action is ever played.
    np.testing.assert_allclose(episode.proposed_action[:7, 3], [0, 0.1, 0.2, 0, 0.1, 0.2, 0], atol=1e-6)
    np.testing.assert_allclose(episode.proposed_action[:, 1], -1.5)  # as proposed
    np.testing.assert_allclose(episode.action[:, 1], -1.0)  # as the world could execute it


def test_policy_is_asked_once_for_each_executed_stretch_and_sees_the_present_state(world):
    seen = []

    def ask(decision, instruction, pictures, state):
        assert list(pictures) == ["topview"]
        seen.append((decision, state))
        return flee(decision, instruction, pictures, state)

    episode = play(world, ask=ask)
    assert [decision for decision, _ in seen] == list(range(7))  # 20 steps in stretches of 3
    np.testing.assert_array_equal(np.stack([state for _, state in seen]), episode.state[::3])


def test_humans_cut_is_a_failure_and_the_correction_starts_in_the_next_step(world):
    episode = corrected(world)
    assert episode.source[:6].tolist() == [Source.POLICY] * 6
    assert set(episode.source[6:]) == {Source.HUMAN}
    assert (episode.terminated[5], episode.success[5], episode.truncated[5]) == (True, False, False)
    assert episode.reward[5] == -1.0
    assert not episode.terminated[:5].any()
    assert np.isfinite(episode.proposed_action[:6]).all()
    assert np.isnan(episode.proposed_action[6:]).all()
    assert set(episode.policy_version) == {2}
    assert episode.takeovers == 1


def test_correction_starts_from_the_very_state_where_the_policy_was_stopped(world):
    # Without the human the same policy reaches the same states; step 6 is where the human sits instead.
    np.testing.assert_array_equal(corrected(world).state[:7], play(world).state[:7])


def test_human_drives_to_success_with_a_time_of_its_own(world):
    episode = corrected(world, patience=12)
    assert episode.succeeded
    assert episode.terminated[-1]
    assert not episode.truncated.any()
    assert episode.reward[-1] == 0.0
    assert episode.steps > 20  # more than the policy's 20 steps in all, at most 20 of them the human's
    assert episode.human_steps <= 20


def test_human_who_runs_out_of_time_leaves_a_truncated_episode(world):
    class Idler(ScriptedHuman):
        def act(self, world):
            return np.array([0, -1, -1, 0], np.float32)

    idler = Idler(HumanConfig(patience_steps=6, min_progress=20.0, reaction_delay_steps=0), max_steps=20)
    episode = play_episode(world, seed=7, ask=flee, execute=4, human=idler, record=False, policy_version=0)
    assert episode.steps == 26
    assert episode.terminated.nonzero()[0].tolist() == [5]
    assert episode.truncated.nonzero()[0].tolist() == [25]


def test_human_who_comes_at_the_time_out_makes_it_a_failure(world):
    human = HumanConfig(patience_steps=None, time_fraction=1.0, reaction_delay_steps=0)
    episode = play(world, human=human)
    assert (episode.terminated[19], episode.truncated[19]) == (True, False)
    assert episode.source[20] == Source.HUMAN


def test_expert_demonstrates_to_success_and_noise_is_in_the_recorded_action(world):
    clean = play(world, ask=None, policy_version=NO_POLICY, record=True)
    noisy = play(world, ask=None, policy_version=NO_POLICY, demo_noise=0.2)
    assert clean.succeeded
    assert noisy.succeeded
    assert set(clean.source) == {Source.DEMO}
    assert set(clean.policy_version) == {NO_POLICY}
    assert np.isnan(clean.proposed_action).all()
    assert clean.images["topview"].shape == (clean.steps, 16, 16, 3)
    assert (clean.action[0] != noisy.action[0]).any()
    assert np.abs(noisy.action).max() <= 1.0


def test_seeds_never_repeat_between_stages_rounds_and_episodes():
    lists = [
        episode_seeds(5, stage, 300, round_index=r)
        for stage in ("demonstrate", "collect", "evaluate")
        for r in range(4)
    ]
    seeds = [seed for seeds in lists for seed in seeds]
    assert len(set(seeds)) == len(seeds) == 3600
    assert min(seeds) >= 0
    assert max(seeds) < 2**32


def test_asking_for_more_seeds_extends_the_list_and_runs_differ():
    assert episode_seeds(5, "collect", 50)[:20] == episode_seeds(5, "collect", 20)
    assert episode_seeds(5, "collect", 20) != episode_seeds(6, "collect", 20)


def test_more_seeds_than_there_are_is_refused():
    with pytest.raises(ValueError, match="65536 episodes"):
        episode_seeds(0, "collect", 65537)


def test_noise_depends_on_seed_and_decision_alone():
    noise = decision_noise(3, 1, (8, 4))
    assert noise.dtype == np.float32
    np.testing.assert_array_equal(noise, decision_noise(3, 1, (8, 4)))
    assert (noise != decision_noise(3, 2, (8, 4))).all()
    assert (noise != decision_noise(4, 1, (8, 4))).all()


def test_progress_is_what_the_world_said_after_each_step(world):
    said = []

    class Watcher(ScriptedHuman):
        def wants_control(self, step, world):
            said.append(world.progress())
            return False

    watcher = Watcher(HumanConfig(), max_steps=20)
    episode = play_episode(world, seed=7, ask=flee, execute=4, human=watcher, record=False, policy_version=0)
    np.testing.assert_array_equal(episode.progress, np.float32(said))
    assert episode.progress.max() > 0
    assert episode.disturbed_at is None
