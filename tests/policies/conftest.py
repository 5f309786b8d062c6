import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Callable

import numpy as np
import pytest
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.factory import make_pre_post_processors

from aloe.policies.bundle import PolicyBundle
from aloe.policies.tiny_vla import TinyVLAConfig, TinyVLAPolicy

CAMERAS = ("top", "wrist")
HORIZON, ACTION, STATE, SIZE = 4, 3, 5, 16


def make_bundle(seed: int = 0, **changes) -> PolicyBundle:
    """A small tiny_vla with weights by its seed, and normalisation that is not the identity."""
    settings = {"chunk_size": HORIZON, "n_action_steps": 2, "image_shift": 2, "num_flow_steps": 3}
    settings |= {"vision_width": 4, "keypoints": 2, "width": 16, "depth": 1}
    config = TinyVLAConfig(
        device="cpu",
        push_to_hub=False,
        input_features={
            **{f"observation.images.{c}": PolicyFeature(FeatureType.VISUAL, (3, SIZE, SIZE)) for c in CAMERAS},
            "observation.state": PolicyFeature(FeatureType.STATE, (STATE,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (ACTION,))},
        **(settings | changes),
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        policy = TinyVLAPolicy(config)
    stats = {
        "observation.state": {"mean": torch.full((STATE,), 0.5), "std": torch.full((STATE,), 2.0)},
        "action": {"mean": torch.tensor([0.1, 0.2, 0.3]), "std": torch.tensor([1.0, 2.0, 4.0])},
    }
    pre, post = make_pre_post_processors(config, dataset_stats=stats)
    return PolicyBundle(policy=policy.eval(), preprocessor=pre, postprocessor=post)


@pytest.fixture
def bundle() -> PolicyBundle:
    return make_bundle()


@pytest.fixture
def make() -> Callable[..., PolicyBundle]:
    return make_bundle


@pytest.fixture
def observe() -> Callable[..., dict]:
    """A raw batch as LeRobot's loader gives it, all by its seed."""

    def observation(rows: int = 3, seed: int = 0, task: str = "push the puck to the goal") -> dict:
        rng = np.random.default_rng(seed)
        return {
            **{
                f"observation.images.{camera}": torch.from_numpy(rng.random((rows, 3, SIZE, SIZE), np.float32))
                for camera in CAMERAS
            },
            "observation.state": torch.from_numpy(rng.standard_normal((rows, STATE)).astype(np.float32)),
            "action": torch.from_numpy(rng.standard_normal((rows, HORIZON, ACTION)).astype(np.float32)),
            "task": [task] * rows,
        }

    return observation
