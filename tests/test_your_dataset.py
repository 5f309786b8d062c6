"""A dataset that a lab recorded with LeRobot itself: looked at, imported, learnt from in place, and back to LeRobot."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from aloe import cli
from aloe.config import PRESETS
from aloe.experience.store import ExperienceStore
from aloe.rollout.pool import EpisodeRequest, WorldPool
from aloe.types import Source

WORLD = PRESETS["tiny"].world
BRIEF = ["--steps", "6", "--batch-size", "8", "--window.horizon", "4"]
SMALL = ["--policy.vision-width", "8", "--policy.keypoints", "4", "--policy.width", "32", "--policy.depth", "1"]
CRITIC = ["--critic.critics", "2", "--critic.width", "16", "--critic.layers", "1", "--critic.heads", "2"]


def aloe(*arguments: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["aloe", *map(str, arguments)])
        cli.main()


def state_of(folder: Path) -> dict[str, tuple[bytes, int]]:
    return {str(p): (p.read_bytes(), p.stat().st_mtime_ns) for p in folder.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def demos(tmp_path_factory) -> Path:
    """Three demonstrations, as LeRobot's recorder writes them: pictures as video, and no word about success."""
    with WorldPool(WORLD, 1) as pool:
        requests = [EpisodeRequest(index=i, seed=i) for i in range(3)]
        played = list(pool.play(requests, None, demo_noise=0.1, progress="demonstrations"))
    assert all(episode.succeeded for episode in played)
    columns = {
        "observation.state": {"dtype": "float32", "shape": played[0].state.shape[1:], "names": None},
        "action": {"dtype": "float32", "shape": played[0].action.shape[1:], "names": None},
    }
    for camera, pictures in played[0].images.items():
        names = ["height", "width", "channels"]
        columns[f"observation.images.{camera}"] = {"dtype": "video", "shape": pictures.shape[1:], "names": names}
    folder = tmp_path_factory.mktemp("lab") / "demos"
    dataset = LeRobotDataset.create("lab/demos", WORLD.fps, columns, root=folder, use_videos=True)
    for episode in played:
        for t in range(episode.steps):
            step = {"observation.state": episode.state[t], "action": episode.action[t], "task": episode.task}
            dataset.add_frame(step | {f"observation.images.{c}": seen[t] for c, seen in episode.images.items()})
        dataset.save_episode()
    dataset.finalize()
    return folder


@pytest.fixture(scope="module")
def untouched(demos: Path) -> dict[str, tuple[bytes, int]]:
    return state_of(demos)


def test_a_run_learns_from_demonstrations_in_place_and_records_none(demos, untouched, tmp_path, capsys):
    roots = ["--experience.demos.root", demos, "--experience.demos.outcome", "success"]
    command = ["run", "--preset", "tiny", *roots, "--experience.demos.ratio", "0.5", "--output-dir", tmp_path / "run"]
    command += ["--rounds", "1", "--cache.root", tmp_path / "cache", "--cache.max-gb", "0.1"]
    aloe(*command)
    recorded = ExperienceStore.read(tmp_path / "run/experience").columns()
    assert set(recorded.source) <= {Source.POLICY, Source.HUMAN}
    assert len(np.unique(recorded.episode)) == PRESETS["tiny"].collect.episodes
    table = pd.read_parquet(tmp_path / "run/rounds/001/advantages.parquet")
    lengths = ExperienceStore.read(tmp_path / "run/experience").lengths
    assert table["episode"].nunique() == 3 + len(lengths)
    assert json.loads((tmp_path / "run/summary.json").read_text())["rounds"][1]["episodes"] == len(lengths)
    assert list((tmp_path / "cache/pictures").rglob("*.bin"))
    assert not (tmp_path / "run/cache/pictures").exists()
    assert state_of(demos) == untouched
    # Done means done; and another mixture would be another run.
    before = state_of(tmp_path / "run/rounds")
    aloe(*command)
    assert state_of(tmp_path / "run/rounds") == before
    with pytest.raises(SystemExit):
        aloe(*command, "--experience.demos.ratio", "0.4")
    assert "was made with another config" in capsys.readouterr().err
    aloe("rank", tmp_path / "run", "--steps", "5", "--estimators", "monte-carlo")


def test_each_stage_alone_learns_from_named_roots(demos, untouched, tmp_path):
    roots = ["--experience.demos.root", demos, "--experience.demos.outcome", "success"]
    aloe("sft", *roots, "--output-dir", tmp_path / "sft", *BRIEF, *SMALL)
    policy = ["--policy.path", tmp_path / "sft/pretrained_model"]
    aloe("critic", *policy, *roots, "--output-dir", tmp_path / "critic", *BRIEF, *CRITIC, "--aloe.samples", 2)
    advantages = ["--advantages", tmp_path / "critic/advantages.parquet"]
    aloe("improve", *policy, *roots, *advantages, "--output-dir", tmp_path / "improved", *BRIEF[:4])
    assert (tmp_path / "improved/pretrained_model/model.safetensors").exists()
    assert state_of(demos) == untouched


def test_what_the_dataset_does_not_say_is_asked_for_in_one_line(demos, tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        aloe("run", "--preset", "tiny", "--experience.demos.root", demos, "--output-dir", tmp_path / "run")
    assert ended.value.code == 2
    line = capsys.readouterr().err.strip()
    assert line.count("\n") == 0
    assert "--experience.demos.outcome success" in line
    assert "Traceback" not in line


@pytest.mark.slow
def test_dataset_goes_through_import_and_a_round_and_back_to_lerobot(demos, untouched, tmp_path, capsys):
    store = tmp_path / "store"
    aloe("data", "import", demos, "--root", store, "--source", "demo", "--outcome", "success")
    aloe("data", "info", store)
    assert "3 episodes" in capsys.readouterr().out
    aloe("data", "show", store, 1, "--output", tmp_path / "sheet.png")
    assert (tmp_path / "sheet.png").stat().st_size > 10_000
    capsys.readouterr()
    aloe("data", "verify", store)
    assert capsys.readouterr().out == "3 episodes checked: none damaged\n"
    command = ["run", "--preset", "tiny", "--rounds", "1", "--experience.demos.root", store]
    aloe(*command, "--output-dir", tmp_path / "run")
    for root in (store, tmp_path / "run/experience"):
        arguments = {
            "dataset.repo_id": "lab/store",
            "dataset.root": root,
            "policy.type": "act",
            "policy.push_to_hub": "false",
            "policy.device": "cpu",
            "policy.pretrained_backbone_weights": "null",
            "policy.dim_model": 32,
            "policy.n_heads": 2,
            "policy.dim_feedforward": 32,
            "policy.chunk_size": 4,
            "policy.n_action_steps": 4,
            "batch_size": 4,
            "steps": 2,
            "num_workers": 0,
            "wandb.enable": "false",
            "output_dir": tmp_path / f"lerobot-{root.name}",
        }
        train = [sys.executable, "-m", "lerobot.scripts.lerobot_train", *(f"--{k}={v}" for k, v in arguments.items())]
        done = subprocess.run(train, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr[-3000:]
        assert list((tmp_path / f"lerobot-{root.name}").rglob("model.safetensors"))
    assert state_of(demos) == untouched
