import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from aloe.worlds._faster import _from_rotation_matrix
from aloe.worlds.metaworld import INSTRUCTIONS, MetaWorld, MetaWorldConfig


def check_observation(task):
    world = MetaWorld(MetaWorldConfig(task=task, observations="state"))
    world.reset(seed=1)
    sim = world._scene.sim
    for _ in range(4):
        world.step(world.expert_action())
        np.testing.assert_array_equal(
            sim._get_curr_obs_combined_no_goal(), type(sim)._get_curr_obs_combined_no_goal(sim)
        )


def test_observation_is_metaworlds_own_to_the_last_bit():
    for task in ("peg-insert-side-v3", "stick-push-v3", "faucet-open-v3"):  # one object, two, without a rotation
        check_observation(task)


@pytest.mark.slow
@pytest.mark.parametrize("task", INSTRUCTIONS)
def test_observation_is_metaworlds_own_in_every_task(task):
    check_observation(task)


def test_quaternions_are_scipys_own_to_the_last_bit():
    for rotation in Rotation.random(200, random_state=np.random.RandomState(0)):
        matrix = rotation.as_matrix()
        np.testing.assert_array_equal(_from_rotation_matrix(matrix).as_quat(), Rotation.from_matrix(matrix).as_quat())
