"""Settings for every test: offline, few threads, and shapes that are checked while the tests run."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MUJOCO_GL", "egl")

import torch
from jaxtyping import install_import_hook

torch.set_num_threads(1)

# Before any test imports them. Not aloe.value.fit: the tabular tests hand it a critic of their own.
CHECKED = ["aloe.returns", "aloe.losses", "aloe.experience.windows", "aloe.value.critic", "aloe.benchmark.statistics"]
install_import_hook(CHECKED, "beartype.beartype")
