import metaworld.env_dict
import numpy as np
import pytest
from metaworld.policies import ENV_POLICY_MAP

from aloe.worlds.metaworld import CAMERAS, INSTRUCTIONS, MetaWorld, MetaWorldConfig


@pytest.fixture(scope="module")
def world():
    world = MetaWorld(MetaWorldConfig(task="reach-v3", cameras=("topview", "corner2"), image_size=32, max_steps=5))
    yield world
    world.close()


def test_instructions_cover_exactly_metaworlds_tasks_each_with_its_own_words():
    assert set(INSTRUCTIONS) == set(metaworld.env_dict.ALL_V3_ENVIRONMENTS) == set(ENV_POLICY_MAP)
    assert len(INSTRUCTIONS) == 50
    assert len(set(INSTRUCTIONS.values())) == 50


@pytest.mark.slow
@pytest.mark.parametrize("task", INSTRUCTIONS)
def test_every_task_builds_has_all_cameras_and_an_expert_that_acts(task):
    world = MetaWorld(MetaWorldConfig(task=task))
    world.reset(seed=0)
    action = world.expert_action()
    assert world.action_space.contains(action)
    assert world.step(action)[0]["observation.state"].shape == (4,)
    assert world.camera_names() == CAMERAS


def test_a_policy_sees_four_numbers_and_no_object(world):
    first, info = world.reset(seed=1)
    second, _ = world.reset(seed=2)
    assert set(first) == {"observation.state"}
    assert info["task"] == "reach the goal"
    assert first["observation.state"].shape == (4,)
    # The hand starts at the same place in both scenes; the goal and the puck do not, and nothing shows it.
    np.testing.assert_allclose(first["observation.state"], second["observation.state"], atol=1e-6)


def test_same_seed_gives_the_same_scene_whatever_was_played_before(world):
    def play():
        world.reset(seed=3)
        pictures = world.pictures()
        states = [world.step(world.expert_action())[0]["observation.state"] for _ in range(4)]
        return pictures, np.stack(states)

    before, states_before = play()
    world.reset(seed=4)
    for _ in range(5):
        world.step(np.ones(4, np.float32))
    after, states_after = play()
    np.testing.assert_array_equal(states_before, states_after)
    for camera in before:
        np.testing.assert_array_equal(before[camera], after[camera])


def test_pictures_differ_between_cameras_and_between_scenes(world):
    world.reset(seed=1)
    pictures = world.pictures()
    assert list(pictures) == ["observation.images.topview", "observation.images.corner2"]
    top, corner = pictures.values()
    assert top.shape == corner.shape == (32, 32, 3)
    assert top.dtype == np.uint8
    assert top.std() > 5  # not blank
    assert (top != corner).mean() > 0.1
    world.reset(seed=2)
    assert (world.pictures()["observation.images.corner2"] != corner).any()


def test_time_out_is_truncation_and_the_clock_can_be_restarted(world):
    world.reset(seed=1)
    away = np.array([0, -1, -1, 0], np.float32)
    endings = [world.step(away)[2:4] for _ in range(5)]
    assert endings == [(False, False)] * 4 + [(False, True)]
    world.restart_clock()
    assert world.step(away)[2:4] == (False, False)


def test_misspelt_task_is_answered_with_its_neighbours():
    with pytest.raises(ValueError, match="did you mean peg-insert-side-v3"):
        MetaWorldConfig(task="peg-insert-sid")


def test_unknown_camera_is_answered_with_the_cameras_there_are():
    with pytest.raises(ValueError, match="unknown camera 'wrist'; Meta-World has topview, corner"):
        MetaWorldConfig(cameras=("topview", "wrist"))


def test_the_same_camera_twice_is_refused():
    with pytest.raises(ValueError, match="twice"):
        MetaWorldConfig(cameras=("topview", "topview"))


def test_close_can_be_called_twice():
    world = MetaWorld(MetaWorldConfig(task="reach-v3", image_size=16))
    world.reset(seed=0)
    world.pictures()
    world.close()
    world.close()


def test_state_observations_are_metaworlds_present_step_and_goal_and_nothing_is_rendered():
    world = MetaWorld(MetaWorldConfig(task="peg-insert-side-v3", observations="state"))
    for seed in (1, 2):
        world.reset(seed=seed)
        state = world.step(world.expert_action())[0]["observation.state"]
        peg, goal = world._scene.sim.data.site("pegGrasp").xpos, world._scene.sim._target_pos
        assert state.shape == (21,)
        np.testing.assert_allclose(state[4:7], peg, atol=1e-6)
        np.testing.assert_array_equal(state[11:18], 0)  # there is no second object
        np.testing.assert_allclose(state[18:], goal, atol=1e-6)
        assert world.pictures() == {}
    assert world._scene.renderer is None
    assert set(world.observation_space) == {"observation.state"}


def test_state_without_the_goal_is_the_same_but_for_its_end():
    def states(goal_in_state):
        world = MetaWorld(MetaWorldConfig(task="reach-v3", observations="state", goal_in_state=goal_in_state))
        first = world.reset(seed=1)[0]["observation.state"]
        return np.stack([first, world.step(world.expert_action())[0]["observation.state"]])

    with_goal, without = states(True), states(False)
    assert (with_goal.shape, without.shape) == ((2, 21), (2, 18))
    np.testing.assert_array_equal(with_goal[:, :18], without)


def test_config_says_what_will_be_seen():
    seen = MetaWorldConfig(cameras=("topview", "corner"), image_size=32)
    assert (seen.state_dim, seen.camera_sizes) == (4, {"topview": (32, 32), "corner": (32, 32)})
    assert MetaWorldConfig(observations="state").camera_sizes == {}
    assert MetaWorldConfig(observations="state", cameras=()).state_dim == 21
    assert MetaWorldConfig(observations="state", goal_in_state=False).state_dim == 18
    with pytest.raises(ValueError, match="observations='state'"):
        MetaWorldConfig(cameras=())
    with pytest.raises(ValueError, match="pictures or state, not 'both'"):
        MetaWorldConfig(observations="both")
