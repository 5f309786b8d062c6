"""docs/new-policy.md as it stands there: the package that it writes is installed, checked, and goes through a round."""

import importlib
import re
import shlex
import sys
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.factory import get_policy_class, make_pre_post_processors

from aloe import cli
from aloe.policies import flow
from aloe.policies.bundle import PolicyBundle

PAGE = (Path(__file__).parents[1] / "docs/new-policy.md").read_text()
FILES = dict(re.findall(r"```\w+\n# (\S+)\n(.*?)```", PAGE, re.DOTALL))
BRIEF = [
    *("--window.horizon", "6", "--fit.steps", "3", "--fit.batch-size", "4", "--aloe.samples", "2"),
    *("--critic.critics", "2", "--critic.width", "16", "--critic.layers", "1", "--critic.heads", "2"),
    *("--improve.steps", "3", "--improve.batch-size", "4", "--trust.held-out", "0.4"),
]
CHECKPOINT = "outputs/train/checkpoints/last/pretrained_model"


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on Python's path with the package, as an installer would leave it."""
    site = tmp_path / "site"
    for name, code in FILES.items():
        if name.startswith("lerobot_policy_dot/"):
            (site / name).parent.mkdir(parents=True, exist_ok=True)
            (site / name).write_text(code)
    project = tomllib.loads(FILES["pyproject.toml"])["project"]
    facts = site / f"{project['name']}-{project['version']}.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = [
        f"[{group}]\n" + "".join(f"{name} = {value}\n" for name, value in named.items())
        for group, named in project["entry-points"].items()
    ]
    (facts / "entry_points.txt").write_text("\n".join(points))
    monkeypatch.syspath_prepend(site)
    importlib.invalidate_caches()
    flow.family_of.cache_clear()
    return tmp_path


def checkpoint(folder: Path) -> Path:
    """As `lerobot-train` would save it, with random weights."""
    flow.family_of("dot")
    kind: Any = get_policy_class("dot")
    seen = {
        f"observation.images.{camera}": PolicyFeature(FeatureType.VISUAL, (3, 32, 32)) for camera in ("top", "wrist")
    }
    config = kind.config_class(
        device="cpu",
        push_to_hub=False,
        input_features={**seen, "observation.state": PolicyFeature(FeatureType.STATE, (5,))},
        output_features={"action": PolicyFeature(FeatureType.ACTION, (3,))},
    )
    torch.manual_seed(0)
    numbers = {"mean": 0.1, "std": 0.5}
    stats = {
        key: {name: torch.full((size,), value) for name, value in numbers.items()}
        for key, size in (("observation.state", 5), ("action", 3))
    }
    for part in (kind(config), *make_pre_post_processors(config, dataset_stats=stats)):
        part.save_pretrained(folder)
    return folder


def record(root: Path, lengths: list[int]) -> None:
    rng, columns = np.random.default_rng(len(lengths)), {}
    for key, size in (("observation.state", 5), ("action", 3)):
        columns[key] = {"dtype": "float32", "shape": (size,), "names": None}
    for camera in ("top", "wrist"):
        names = ["height", "width", "channels"]
        columns[f"observation.images.{camera}"] = {"dtype": "image", "shape": (32, 32, 3), "names": names}
    dataset = LeRobotDataset.create("lab/data", 10, columns, root=root, use_videos=False)
    for length in lengths:
        for _ in range(length):
            numbers = {key: rng.uniform(-1, 1, columns[key]["shape"]).astype(np.float32) for key in list(columns)[:2]}
            pictures = {key: rng.integers(0, 255, (32, 32, 3), np.uint8) for key in list(columns)[2:]}
            dataset.add_frame({"task": "stack the cubes", **numbers, **pictures})
        dataset.save_episode()
    dataset.finalize()


def test_policy_of_the_page_passes_its_check_and_goes_through_a_round(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(installed)
    folder = checkpoint(installed / CHECKPOINT)
    images = {f"observation.images.{camera}": torch.rand(2, 3, 32, 32) for camera in ("top", "wrist")}
    raw = {**images, "observation.state": torch.randn(2, 5), "task": ["stack the cubes"] * 2}
    exec(compile(FILES["check.py"], "check.py", "exec"), {"FOLDER": folder, "OBSERVATION": raw})
    record(installed / "data/demos", [9, 10])
    record(installed / "data/rollouts", [9, 12, 10])
    (installed / "data/rollouts.csv").write_text("episode,outcome\n0,failure\n1,success\n2,success\n")
    (command,) = re.findall(r"^ {4}(aloe .*)$", PAGE.replace("\\\n", " "), re.MULTILINE)
    monkeypatch.setattr(sys, "argv", [*shlex.split(command), *BRIEF])
    cli.main()
    result = get_policy_class("dot").from_pretrained(installed / "runs/first/rounds/001/pretrained_model")
    before = get_policy_class("dot").from_pretrained(folder).state_dict()
    assert any((before[name] != value).any() for name, value in result.state_dict().items())


def test_loss_of_the_page_is_the_policys_own(installed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = PolicyBundle.load(checkpoint(installed / "dot"))
    batch = {f"observation.images.{camera}": torch.rand(3, 3, 32, 32) for camera in ("top", "wrist")}
    batch |= {"observation.state": torch.randn(3, 5), "action": torch.randn(3, 6, 3)}
    noise, time = torch.randn(3, 6, 3), torch.rand(3)
    monkeypatch.setattr(torch, "randn_like", lambda like: noise)
    monkeypatch.setattr(torch, "rand_like", lambda like: time)
    each, _ = bundle.policy.forward(batch, reduction="none")
    torch.testing.assert_close(flow.flow_residual(bundle.policy, batch, noise, time).mean((1, 2)), each, rtol=0, atol=0)
