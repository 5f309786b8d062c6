"""The commands that the documentation gives, run as they stand there: on tiny models with random weights."""

import re
import shlex
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from lerobot.datasets.lerobot_dataset import LeRobotDataset
from lerobot.policies.factory import get_policy_class

from aloe import cli
from aloe.config import PRESETS
from aloe.loop import run_circle

sys.path.insert(0, str(Path(__file__).parent / "policies"))
import vlas

DOCS = Path(__file__).parents[1] / "docs"
CAMERAS = {"top": (48, 64), "wrist": (64, 64)}
CHECKPOINT = "outputs/train/checkpoints/last/pretrained_model"
SMALLER = {
    "run": [
        *("--window.horizon", "6", "--fit.steps", "3", "--fit.batch-size", "4", "--fit.target-samples", "2"),
        *("--aloe.samples", "2", "--improve.steps", "2", "--improve.batch-size", "2", "--critic.critics", "2"),
        *("--critic.width", "16", "--critic.layers", "1", "--critic.heads", "2", "--trust.held-out", "0.5"),
    ],
    "critic": [
        *("--window.horizon", "6", "--steps", "3", "--batch-size", "4", "--target-samples", "2", "--aloe.samples", "2"),
        *("--critic.critics", "2", "--critic.width", "16", "--critic.layers", "1", "--critic.heads", "2"),
    ],
    "improve": ["--steps", "2", "--batch-size", "2"],
}


def commands(page: str) -> list[list[str]]:
    """The `aloe` commands of a page, in their order, each as its words."""
    text = (DOCS / page).read_text().replace("\\\n", " ")
    return [shlex.split(line) for line in re.findall(r"^ {4}(aloe .*)$", text, re.MULTILINE)]


def record(root: Path, lengths: list[int], intervention: bool) -> None:
    """A dataset as LeRobot's recorders write it: nothing in it says how an episode ended."""
    rng = np.random.default_rng(len(lengths))
    columns = {
        "observation.state": {"dtype": "float32", "shape": (5,), "names": None},
        "action": {"dtype": "float32", "shape": (3,), "names": None},
        **({"intervention": {"dtype": "bool", "shape": (1,), "names": None}} if intervention else {}),
    }
    for camera, size in CAMERAS.items():
        names = ["height", "width", "channels"]
        columns[f"observation.images.{camera}"] = {"dtype": "image", "shape": (*size, 3), "names": names}
    dataset = LeRobotDataset.create("lab/data", 10, columns, root=root, use_videos=False)
    for length in lengths:
        for step in range(length):
            frame = {
                "task": "stack the cubes",
                "observation.state": rng.standard_normal(5).astype(np.float32),
                "action": rng.uniform(-1, 1, 3).astype(np.float32),
                **{f"observation.images.{c}": rng.integers(0, 255, (*s, 3), np.uint8) for c, s in CAMERAS.items()},
            }
            dataset.add_frame(frame | ({"intervention": np.array([step > 8])} if intervention else {}))
        dataset.save_episode()
    dataset.finalize()


@pytest.fixture(scope="module", params=vlas.FAMILIES)
def lab(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with what docs/your-policy.md asks for."""
    folder = tmp_path_factory.mktemp(request.param)
    record(folder / "data/demos", [9, 10], intervention=False)
    record(folder / "data/rollouts", [9, 12, 10], intervention=True)
    record(folder / "data/newer", [8, 11], intervention=True)
    (folder / "data/rollouts.csv").write_text("episode,outcome\n0,failure\n1,success\n2,success\n")
    (folder / "data/newer.csv").write_text("episode,outcome\n0,failure\n1,success\n")
    stats = {
        key: {
            name: torch.full((size,), value)
            for name, value in {"mean": 0.0, "std": 1.0, "min": -1.0, "max": 1.0, "q01": -1.0, "q99": 1.0}.items()
        }
        for key, size in (("observation.state", 5), ("action", 3))
    }
    with vlas.small_models(), pytest.MonkeyPatch.context() as patch:
        vlas.tiny_checkpoint(request.param, (folder / CHECKPOINT).parent, CAMERAS, stats)
        patch.chdir(folder)
        yield folder


def test_commands_of_your_policy_lead_to_a_checkpoint_that_lerobot_loads(
    lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = [words for words in commands("your-policy.md") if "runs/try" not in words]
    assert [words[1] for words in given] == ["run", "run", "critic", "improve"]
    for words in given:
        monkeypatch.setattr(sys, "argv", [*words, *SMALLER[words[1]]])
        cli.main()
    for made in ("runs/first/rounds/001", "runs/first/rounds/002", "runs/improved"):
        kind = (lab / made / "pretrained_model/config.json").read_text().split('"type": "')[1].split('"')[0]
        policy = get_policy_class(kind).from_pretrained(lab / made / "pretrained_model")
        before = get_policy_class(kind).from_pretrained(lab / CHECKPOINT).state_dict()
        assert any((before[name] != value).any() for name, value in policy.state_dict().items())
    trust = (lab / "runs/first/rounds/001/trust.json").read_text()
    assert '"value_rank_correlation"' in trust


def test_what_the_quick_start_leaves_is_enough_to_try_an_offline_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_circle(replace(PRESETS["tiny"], rounds=1), Path("runs/quickstart-0"), say=lambda _: None)
    (words,) = (words for words in commands("your-policy.md") if "runs/try" in words)
    monkeypatch.setattr(sys, "argv", [*words, "--window.horizon", "4", "--fit.steps", "3", "--improve.steps", "2"])
    cli.main()
    assert get_policy_class("tiny_vla").from_pretrained("runs/try/rounds/001/pretrained_model")
