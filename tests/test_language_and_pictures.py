"""Policy and critic really use what they are given: another instruction, or no picture, changes what they say."""

from pathlib import Path

import numpy as np
import pytest
import torch

from aloe.experience.cache import Cache
from aloe.experience.store import ExperienceStore
from aloe.experience.windows import WindowConfig
from aloe.policies.bundle import PolicyBundle, PolicyPlayer, Tower
from aloe.stages import (
    EvaluationInputs,
    PolicyConfig,
    critic_data,
    new_critic,
    new_policy,
    observation_shape,
    sample_stage,
)
from aloe.types import NO_POLICY, Episode, Source
from aloe.value.critic import CriticConfig, Observations
from aloe.value.fit import FitConfig

CAMERAS = {"topview": (32, 32), "gripper": (32, 32)}
TASKS = ("open the door", "close the door")
WINDOW = WindowConfig(horizon=4)


def episode(seed: int, task: str, steps: int = 8) -> Episode:
    rng = np.random.default_rng(seed)
    last = np.arange(steps) == steps - 1
    return Episode(
        task=task,
        seed=seed,
        images={camera: rng.integers(0, 256, (steps, *size, 3), np.uint8) for camera, size in CAMERAS.items()},
        state=rng.standard_normal((steps, 4)).astype(np.float32),
        action=rng.standard_normal((steps, 4)).astype(np.float32),
        proposed_action=np.full((steps, 4), np.nan, np.float32),
        source=np.full(steps, Source.DEMO, np.int64),
        policy_version=np.full(steps, NO_POLICY),
        reward=np.where(last, 0, -1).astype(np.float32),
        terminated=last,
        truncated=last & False,
        success=last,
    )


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> ExperienceStore:
    """One episode of each task."""
    root = tmp_path_factory.mktemp("two_tasks") / "store"
    store = ExperienceStore.create(root, cameras=CAMERAS, state_dim=4, action_dim=4, fps=20)
    for seed, task in enumerate(TASKS):
        store.append(episode(seed, task))
    return store


@pytest.fixture(scope="module")
def bundle(store) -> PolicyBundle:
    return new_policy(store, PolicyConfig(vision_width=8, keypoints=4, width=32, depth=1), 4, (0, "policy"))


class Scene:
    """What a policy sees of both tasks, and its chunks."""

    def __init__(self, bundle: PolicyBundle) -> None:
        rng = np.random.default_rng(9)
        self.player = PolicyPlayer(bundle=bundle)
        self.images = {camera: rng.integers(0, 256, (2, *size, 3), np.uint8) for camera, size in CAMERAS.items()}
        self.state = rng.standard_normal((2, 4)).astype(np.float32)
        self.noise = rng.standard_normal((2, 4, 4)).astype(np.float32)

    def chunks(self, images=None, state=None, tasks=TASKS):
        images, state = self.images if images is None else images, self.state if state is None else state
        return self.player(images, state, list(tasks), self.noise)


def assert_every_row_differs(left: np.ndarray, right: np.ndarray, least: float = 1e-4) -> None:
    """By more than rounding."""
    assert left.shape == right.shape
    rows = np.abs(left - right).reshape(len(left), -1).max(1)
    assert (rows > least).all(), rows


def test_permuted_instructions_change_the_policys_chunks(bundle):
    scene = Scene(bundle)
    assert_every_row_differs(scene.chunks(), scene.chunks(tasks=TASKS[::-1]))
    np.testing.assert_array_equal(scene.chunks(), scene.chunks())  # and nothing else does


@pytest.mark.parametrize("camera", CAMERAS)
def test_a_blank_picture_changes_the_policys_chunks(bundle, camera):
    scene = Scene(bundle)
    blank = scene.images | {camera: np.zeros_like(scene.images[camera])}
    assert_every_row_differs(scene.chunks(), scene.chunks(images=blank))


def test_swapped_cameras_and_another_state_change_the_policys_chunks(bundle):
    scene = Scene(bundle)
    first, second = CAMERAS
    swapped = {first: scene.images[second], second: scene.images[first]}
    assert_every_row_differs(scene.chunks(), scene.chunks(images=swapped))
    assert_every_row_differs(scene.chunks(), scene.chunks(state=scene.state + 1))


def values(store: ExperienceStore, bundle: PolicyBundle, cache: Path) -> tuple[Observations, np.ndarray]:
    """What an untrained critic is shown of every frame, and its Q of the executed chunks."""
    inputs = EvaluationInputs.of(store, bundle, Tower(bundle=bundle), Cache(root=cache), WINDOW, 8.0)
    sample_stage(inputs, 2, (0, "sample"), cache / "samples.npy")
    data = critic_data(inputs, cache / "samples.npy", WINDOW.horizon)
    shape = observation_shape(Tower(bundle=bundle), WINDOW.horizon)
    state = new_critic(shape, CriticConfig(critics=2, width=16, layers=1, heads=2), FitConfig(), (0, "critic"))
    rows = np.arange(len(inputs.frames))
    with torch.no_grad():
        observed = data.observations(rows)
        return observed, state.critic.eval()(observed, data.chunks(rows, None)).numpy()


def altered(store: ExperienceStore, root: Path, change) -> ExperienceStore:
    """The same episodes, but for what `change` makes of them."""
    other = ExperienceStore.create(root, cameras=CAMERAS, state_dim=4, action_dim=4, fps=20)
    for seed, task in enumerate(TASKS):
        other.append(change(episode(seed, task)))
    return other


def rename(one: Episode) -> Episode:
    return Episode(**vars(one) | {"task": TASKS[1 - TASKS.index(one.task)]})


def blank(one: Episode) -> Episode:
    return Episode(**vars(one) | {"images": {c: np.zeros_like(pictures) for c, pictures in one.images.items()}})


def test_permuted_instructions_change_the_critics_values(store, bundle, tmp_path):
    observed, q = values(store, bundle, tmp_path / "as_it_was")
    other, q_other = values(altered(store, tmp_path / "store", rename), bundle, tmp_path / "permuted")
    assert torch.equal(observed.features, other.features)
    assert torch.equal(observed.language[:8], other.language[8:])  # the first task's words, now at the second's frames
    assert_every_row_differs(q, q_other)


def test_blank_pictures_change_the_critics_values(store, bundle, tmp_path):
    observed, q = values(store, bundle, tmp_path / "as_it_was")
    other, q_other = values(altered(store, tmp_path / "store", blank), bundle, tmp_path / "blank")
    assert torch.equal(observed.language, other.language)
    assert torch.equal(observed.state, other.state)
    assert_every_row_differs(q, q_other)


def test_the_critic_is_shown_each_frames_own_picture(store, bundle, tmp_path):
    observed, _ = values(store, bundle, tmp_path / "cache")
    assert len(observed.features.flatten(1).unique(dim=0)) == 16
