import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from aloe.worlds import metaworld
from aloe.worlds._faster import _from_rotation_matrix, _merged, coarsen_meshes
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


def test_vertices_of_a_cell_become_its_first_and_faces_are_kept_once():
    # In cells of 1 these are {0, 1}, {2} and {3, 4}.
    vertices = np.array([[0.1, 0, 0], [0.9, 0, 0], [1.5, 0, 0], [0, 1.5, 0], [0.2, 1.1, 0]])
    faces = np.array(
        [
            [0, 1, 2],  # flat: two corners in one cell
            [0, 2, 3],
            [4, 1, 2],  # the same from the same side, begun elsewhere
            [3, 2, 0],  # the same from the other side
        ]
    )
    corners, kept = _merged(vertices, faces, cell=1.0)
    assert kept.tolist() == [1, 3]
    assert corners[kept].tolist() == [[0, 2, 3], [3, 2, 0]]


def scene():
    world = MetaWorld(MetaWorldConfig(task="assembly-v3"))
    world.reset(seed=0)
    return world


def test_pictures_show_nearly_the_same_from_a_quarter_of_the_faces(monkeypatch):
    coarse = scene()
    seen = coarse.pictures()
    monkeypatch.setattr(metaworld, "coarsen_meshes", lambda model, size: None)
    exact = scene()
    for camera, picture in exact.pictures().items():
        differs = np.abs(picture.astype(int) - seen[camera]).max(-1) > 16
        assert 0 < differs.mean() < 0.03
    mine, metaworlds = coarse._scene.sim.model, exact._scene.sim.model
    assert mine.mesh_facenum.sum() < metaworlds.mesh_facenum.sum() / 4
    ring, arm = mine.mesh("assembly_peg_ring").id, mine.mesh("l0").id
    assert mine.mesh_facenum[ring] == metaworlds.mesh_facenum[ring] == 1152
    assert mine.mesh_facenum[arm] < metaworlds.mesh_facenum[arm] == 13510
    coarse.close()
    exact.close()


def test_a_larger_picture_is_drawn_finer_and_a_second_renderer_draws_the_same():
    world = scene()
    model = world._scene.sim.model
    coarsen_meshes(model, 256)
    fine = model.mesh_facenum.sum()
    coarsen_meshes(model, 64)
    assert model.mesh_facenum.sum() < fine / 2
    first = world.pictures()
    world.close()
    for camera, picture in world.pictures().items():
        np.testing.assert_array_equal(picture, first[camera])
    world.close()


def test_what_is_drawn_changes_nothing_that_happens():
    looking, blind = scene(), scene()
    for _ in range(30):
        looking.pictures()
        for world in (looking, blind):
            world.step(world.expert_action())
    np.testing.assert_array_equal(looking._scene.sim.data.qpos, blind._scene.sim.data.qpos)
    looking.close()
