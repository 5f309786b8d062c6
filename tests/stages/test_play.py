from dataclasses import replace

import numpy as np
import pytest

from aloe import stages
from aloe.policies.bundle import PolicyPlayer
from aloe.rollout.collect import episode_seeds
from aloe.rollout.human import HumanConfig
from aloe.rollout.pool import WorldPool
from aloe.stages import DemosConfig, PolicyConfig
from aloe.types import Source
from aloe.worlds.metaworld import MetaWorldConfig

WORLD = MetaWorldConfig(
    task="faucet-open-v3", also=("faucet-close-v3",), cameras=("corner2",), image_size=32, max_steps=30
)
EAGER = HumanConfig(patience_steps=3, min_progress=20.0, reaction_delay_steps=0, takeovers=3)
"""Takes over after three steps, whatever happens, as long as its attention lasts."""


@pytest.fixture(scope="module")
def pool():
    with WorldPool(WORLD, workers=2) as pool:
        yield pool


@pytest.fixture(scope="module")
def demos(pool, tmp_path_factory):
    store = stages.open_store(tmp_path_factory.mktemp("demos") / "store", WORLD)
    stages.demonstrate(store, pool, DemosConfig(episodes=2), seed=0)
    return store


@pytest.fixture(scope="module")
def bundle(demos):
    config = PolicyConfig(vision_width=8, keypoints=4, width=32, depth=1)
    return stages.new_policy(demos, config, 4, (0, "test"))


def collect(store, pool, bundle, *, episodes, already, human=EAGER):
    config = {"execute": 4, "version": 0, "seed": 0, "round_index": 1}
    stages.collect(store, pool, PolicyPlayer(bundle=bundle), human, episodes=episodes, already=already, **config)


def takeovers(store):
    """For each episode whether the human took over."""
    frames = store.columns()
    return [bool((frames.source[frames.episode == e] == Source.HUMAN).any()) for e in range(store.num_episodes)]


def test_each_task_is_demonstrated_as_often_as_asked(demos, pool):
    frames = demos.columns()
    assert frames.tasks == ["open the faucet", "close the faucet"]
    assert [int(frames.success[frames.task_index == i].sum()) for i in (0, 1)] == [2, 2]
    first_steps = frames.step == 0
    assert len(set(frames.seed[first_steps])) == first_steps.sum()
    before = demos.num_episodes
    stages.demonstrate(demos, pool, DemosConfig(episodes=2), seed=0)  # nothing is left to do
    assert demos.num_episodes == before


def test_tasks_take_turns_and_attention_is_spent_the_same_however_often_collection_was_stopped(pool, bundle, tmp_path):
    whole, pieces = (stages.open_store(tmp_path / name, WORLD) for name in ("whole", "pieces"))
    collect(whole, pool, bundle, episodes=6, already=0)
    frames = whole.columns()
    starts = frames.step == 0
    # Two by two, shifted each time: worker 0 plays open, close, open, worker 1 the other.
    assert frames.task_index[starts].tolist() == [0, 1, 1, 0, 0, 1]
    assert frames.tasks == ["open the faucet", "close the faucet"]
    assert frames.seed[starts].tolist() == episode_seeds(0, "collect", 6, round_index=1)
    # Worker 0 plays episodes 0, 2 and 4 with two take-overs, worker 1 plays 1, 3 and 5 with one.
    assert takeovers(whole) == [True, True, True, False, False, False]

    collect(pieces, pool, bundle, episodes=1, already=0, human=replace(EAGER, takeovers=None))
    for already in (1, 2, 4):
        store = stages.open_store(tmp_path / "pieces", WORLD)
        collect(store, pool, bundle, episodes={1: 2, 2: 4, 4: 6}[already], already=already)
    frames_in_pieces = stages.open_store(tmp_path / "pieces", WORLD).columns()
    for name, column in vars(frames).items():
        np.testing.assert_array_equal(column, getattr(frames_in_pieces, name), err_msg=name)


def test_success_is_measured_on_all_tasks_in_turn(pool, bundle):
    report = stages.measure(pool, PolicyPlayer(bundle=bundle), episodes=4, execute=4, version=0, seed=0)
    assert report.episodes == 4
    assert {task: played for task, (_, played) in report.by_task.items()} == {
        "close the faucet": 2,
        "open the faucet": 2,
    }


def test_store_of_other_observations_is_refused(demos):
    state = replace(WORLD, observations="state")
    with pytest.raises(ValueError, match=r"4 numbers of state at 20 fps, the world has \{\} and 21"):
        stages.open_store(demos.root, state)


def test_store_of_state_observations_has_no_cameras(tmp_path):
    world = replace(WORLD, observations="state", goal_in_state=False)
    store = stages.open_store(tmp_path / "state", world)
    with WorldPool(world, workers=1) as pool:
        stages.demonstrate(store, pool, DemosConfig(episodes=1), seed=0)
    again = stages.open_store(tmp_path / "state", world)
    assert again.cameras == {}
    assert again.columns().state.shape == (again.num_frames, 18)
    assert again.num_episodes >= 2  # one of each task
