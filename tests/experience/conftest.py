import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from aloe.experience.store import ExperienceStore
from aloe.types import NO_POLICY, Episode, Source

CAMERAS = {"top": (16, 24), "wrist": (20, 16)}


@pytest.fixture
def make_episode() -> Callable[..., Episode]:
    """An episode of a policy, with a human at the end and three cameras' worth of noise; all by its seed."""

    def make(seed: int = 0, *, steps: int = 6, cameras: dict[str, tuple[int, int]] | None = None, **changes) -> Episode:
        rng = np.random.default_rng(seed)
        source = np.where(np.arange(steps) < steps - 2, Source.POLICY, Source.HUMAN)
        proposed = rng.standard_normal((steps, 3)).astype(np.float32)
        proposed[-1] = np.nan
        last = np.arange(steps) == steps - 1
        values = {
            "task": "put the peg into the hole",
            "seed": 1000 + seed,
            "images": {
                camera: rng.integers(0, 256, (steps, h, w, 3), np.uint8)
                for camera, (h, w) in (cameras or CAMERAS).items()
            },
            "state": rng.standard_normal((steps, 5)).astype(np.float32),
            "action": rng.standard_normal((steps, 3)).astype(np.float32),
            "proposed_action": proposed,
            "source": source.astype(np.int64),
            "policy_version": np.full(steps, 2 if seed else NO_POLICY),
            "reward": np.where(last, 0, -1).astype(np.float32),
            "terminated": last,
            "truncated": np.zeros(steps, bool),
            "success": last,
        }
        return Episode(**(values | changes))

    return make


@pytest.fixture
def store(tmp_path: Path) -> ExperienceStore:
    return ExperienceStore.create(tmp_path / "store", cameras=CAMERAS, state_dim=5, action_dim=3, fps=20)
