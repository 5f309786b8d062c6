import numpy as np
import pytest

from aloe.worlds.metaworld import MetaWorld, MetaWorldConfig
from aloe.worlds.perturb import start_outside


def make(task, perturbation, **knobs):
    return MetaWorld(MetaWorldConfig(task=task, observations="state", perturbation=perturbation, **knobs))


def play(world, seed, steps=60):
    """The expert plays: states, and when the disturbance came."""
    states = [world.reset(seed=seed)[0]["observation.state"]]
    assert world.disturbed_at is None
    for _ in range(steps):
        observation, _, success, timeout, _ = world.step(world.expert_action())
        states.append(observation["observation.state"])
        if success or timeout:
            break
    return np.stack(states), world.disturbed_at


@pytest.mark.parametrize("task", ["peg-insert-side-v3", "faucet-open-v3"])
def test_disturbance_is_a_function_of_the_seed_and_the_episode_is_the_same_until_it_comes(task):
    disturbed, calm = make(task, "disturbance"), make(task, "none")
    moments = set()
    for seed in range(6):
        states, at = play(disturbed, seed)
        again, at_again = play(disturbed, seed)
        np.testing.assert_array_equal(states, again)
        assert at == at_again
        undisturbed, never = play(calm, seed)
        assert never is None
        if at is not None:
            moments.add(at)
            assert at >= 3  # 5 % of 60 steps
            before, after = slice(at + 1), slice(at + 1, min(len(states), len(undisturbed)))
            np.testing.assert_array_equal(states[before], undisturbed[before])
            assert (states[after] != undisturbed[after]).any()
    assert len(moments) >= 3


def test_a_loose_object_is_moved_by_centimetres_or_let_go():
    world = make("peg-insert-side-v3", "disturbance")
    moved, let_go = 0, 0
    for seed in range(8):
        states, at = play(world, seed)
        if at is None:
            continue
        peg = states[:, 4:7]
        jump = np.linalg.norm(peg[at + 1, :2] - peg[at, :2])
        if states[at + 1 : at + 5, 3].max() > states[at, 3] + 0.2:  # the gripper opens
            let_go += 1
        elif 0.015 < jump < 0.055:
            moved += 1
    assert moved >= 1
    assert let_go >= 1


def test_where_nothing_is_loose_the_arm_is_pushed():
    calm, world = make("faucet-open-v3", "none"), make("faucet-open-v3", "disturbance")
    apart = []
    for seed in range(4):
        (states, at), (undisturbed, _) = play(world, seed), play(calm, seed)
        if at is not None and at + 3 < len(undisturbed):
            apart.append(np.linalg.norm(states[at + 3, :3] - undisturbed[at + 3, :3]))
    assert max(apart) > 0.03  # metres


def test_unseen_starts_lie_outside_the_range_of_training_but_near_it():
    world = make("peg-insert-side-v3", "unseen")
    for seed in range(8):
        state = world.reset(seed=seed)[0]["observation.state"]
        # In training the peg is in [0, 0.2] x [0.5, 0.7], the box in [-0.35, -0.25] x [0.4, 0.7].
        sim = world._scene.sim
        drawn = np.concatenate((sim.obj_init_pos[:2], sim.model.body("box").pos[:2]))
        low, high = np.array([0.0, 0.5, -0.35, 0.4]), np.array([0.2, 0.7, -0.25, 0.7])
        margin = np.array([0.05, 0.05, 0.025, 0.075])  # a quarter of the widths
        assert ((drawn < low) | (drawn > high)).any()
        assert (drawn >= low - margin).all()
        assert (drawn <= high + margin).all()
        # And the goal is seen where it is: 3 cm beside the box.
        goal = world.step(world.expert_action())[0]["observation.state"][18:]
        np.testing.assert_allclose(goal[:2], [drawn[2] + 0.03, drawn[3]], atol=1e-6)
        np.testing.assert_array_equal(state, world.reset(seed=seed)[0]["observation.state"])


def test_unseen_colours_belong_to_the_seed_and_do_not_add_up():
    world = MetaWorld(MetaWorldConfig(task="faucet-open-v3", cameras=("corner2",), perturbation="unseen"))

    def picture(seed):
        world.reset(seed=seed)
        return world.pictures()["observation.images.corner2"].astype(int)

    first, second, again = picture(1), picture(2), picture(1)
    world.close()
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - second).mean() > 5
    assert first.std() > 5  # not blank


def test_task_that_always_starts_in_the_same_place_has_no_unseen_starts():
    fixed = make("peg-insert-side-v3", "none")._scene.sim
    fixed._random_reset_space.high[:] = fixed._random_reset_space.low
    with pytest.raises(ValueError, match="no unseen starts"):
        start_outside(fixed)


def test_unknown_perturbation_is_refused():
    with pytest.raises(ValueError, match="none, disturbance or unseen"):
        MetaWorldConfig(perturbation="earthquake")
