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


def play(world, seed, *, task=0, steps=30):
    """The expert plays: states, and the simulator's whole observation."""
    rows = [world.reset(seed=seed, options={"task": task})[0]["observation.state"]]
    seen = []
    for _ in range(steps):
        observation, _, success, timeout, _ = world.step(world.expert_action())
        rows.append(observation["observation.state"])
        seen.append(world._sim_observation.copy())
        if success or timeout:
            break
    return np.stack(rows), np.stack(seen)


def test_tasks_take_turns_in_scenes_of_their_own():
    world = MetaWorld(MetaWorldConfig(task="reach-v3", also=("pick-place-v3",), observations="state"))
    assert len(world._scenes) == 1  # the second is built when it is first played
    first, _ = play(world, 1)
    assert world.reset(seed=1, options={"task": 1})[1]["task"] == "pick up the puck and place it at the goal"
    assert len(world._scenes) == 2
    np.testing.assert_array_equal(play(world, 1)[0], first)


def start(world: MetaWorld, seed: int, task: int) -> tuple[np.ndarray, np.ndarray]:
    """What the simulator says of the scene, and its picture."""
    world.reset(seed=seed, options={"task": task})
    (picture,) = world.pictures().values()
    return world._sim_observation.copy(), picture.copy()


def test_start_of_an_episode_does_not_tell_its_task():
    world = MetaWorld(
        MetaWorldConfig(
            task="reach-v3", also=("pick-place-v3", "faucet-open-v3", "faucet-close-v3"), observations="state"
        )
    )
    starts = [[world.reset(seed=s, options={"task": i})[0]["observation.state"] for s in range(5)] for i in range(4)]
    reach, place, opening, closing = np.array(starts)
    np.testing.assert_array_equal(reach, place)
    # A faucet's handle is seen at the side from which it is pushed: 3 cm apart, where it turns up over 10 cm.
    same = [c for c in range(21) if c != 4]
    np.testing.assert_allclose(opening[:, same], closing[:, same], atol=1e-4)
    np.testing.assert_allclose(closing[:, 4] - opening[:, 4], 0.03, atol=1e-4)
    np.testing.assert_array_equal(opening[:, 18:], 0)


@pytest.mark.parametrize("camera", ["corner2", "gripperPOV"])
def test_start_of_an_episode_behind_the_wall_does_not_tell_its_task(camera: str):
    # The gripper's camera looks down on the puck, which Meta-World has half as wide again where it is not to be picked up.
    world = MetaWorld(MetaWorldConfig(task="reach-wall-v3", also=("pick-place-wall-v3",), cameras=(camera,)))
    reach, place = ([start(world, seed, task) for seed in range(5)] for task in range(2))
    for (state, picture), (other_state, other_picture) in zip(reach, place, strict=True):
        np.testing.assert_allclose(state, other_state, atol=1e-4)  # a puck lies 0.01 mm lower
        assert (picture != other_picture).any(-1).sum() <= 4  # pixels of 4096, where its edge falls on another
    world.close()


def test_goal_and_puck_of_a_shared_scene_can_be_seen_in_64_pixels():
    world = MetaWorld(MetaWorldConfig(task="reach-v3", also=("pick-place-v3",)))
    world.reset(seed=5)
    pictures = world.pictures()
    world.close()
    # A pixel from above shows 2 cm of the table (1.28 m over 64): a ball of 4 cm radius covers 12 or, raised, more.
    red, green, blue = np.moveaxis(pictures["observation.images.topview"].astype(int), -1, 0)
    assert 12 <= ((green > 2 * red) & (green > 2 * blue)).sum() < 30
    # From behind one shows less than 1 cm: of the puck, 4 cm wide and high, more than 16.
    red, green, blue = np.moveaxis(pictures["observation.images.behindGripper"].astype(int), -1, 0)
    assert 16 <= ((green > 2 * blue) & (red > 2 * blue)).sum() < 40


def test_pictures_of_tasks_in_one_scene_are_the_same():
    world = MetaWorld(
        MetaWorldConfig(
            task="reach-v3", also=("pick-place-v3", "faucet-open-v3", "faucet-close-v3"), cameras=("corner2",)
        )
    )
    pictures = []
    for task in range(4):
        world.reset(seed=2, options={"task": task})
        pictures.append(world.pictures()["observation.images.corner2"])
    world.close()
    np.testing.assert_array_equal(pictures[0], pictures[1])
    np.testing.assert_array_equal(pictures[2], pictures[3])
    assert (pictures[0] != pictures[2]).any()


def test_unknown_or_repeated_tasks_are_refused():
    with pytest.raises(ValueError, match="did you mean faucet-open-v3"):
        MetaWorldConfig(also=("faucet-opn-v3",))
    with pytest.raises(ValueError, match="a task is named twice"):
        MetaWorldConfig(task="reach-v3", also=("reach-v3",))


def test_first_state_of_an_episode_shows_its_own_scene():
    world = MetaWorld(MetaWorldConfig(task="faucet-open-v3", observations="state"))
    for seed in (1, 2):
        state = world.reset(seed=seed)[0]["observation.state"]
        faucet = world._scene.sim.obj_init_pos
        # The faucet's handle, 17.5 cm long, points at the robot; it is seen 1.5 cm to the left, 17.5 cm before the base.
        np.testing.assert_allclose(state[4:6], [faucet[0] - 0.015, faucet[1] - 0.175], atol=1e-6)


@pytest.mark.parametrize("task", ["assembly-v3", "pick-place-v3"])
def test_the_expert_opens_a_gripper_that_somebody_else_has_closed(task):
    world = MetaWorld(MetaWorldConfig(task=task, observations="state", max_steps=100))
    world.reset(seed=0)
    for _ in range(10):  # half a second to close it in, away from the object
        state = world.step(np.array([0, 0, 0.5, 1], np.float32))[0]["observation.state"]
    assert state[3] < 0.5  # of 1, wide open
    ended = succeeded = False
    while not ended:
        _, _, succeeded, timeout, _ = world.step(world.expert_action())
        ended = succeeded or timeout
    assert succeeded
