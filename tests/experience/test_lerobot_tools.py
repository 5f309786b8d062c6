"""LeRobot's own tools, as installed, on a store or a copy of it; and what the store makes of what they leave."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from lerobot.datasets.dataset_tools import delete_episodes, merge_datasets, modify_tasks, split_dataset
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from aloe.experience import index
from aloe.experience.compact import compact
from aloe.experience.labels import Label, write_label
from aloe.experience.store import ExperienceStore
from aloe.types import Episode

MakeEpisode = Callable[..., Episode]
SIZE = {"top": (64, 64)}
both = pytest.mark.parametrize("video", [False, True], ids=["image", "video"])


@pytest.fixture
def video() -> bool:
    return False


@pytest.fixture
def episodes(make_episode: MakeEpisode) -> list[Episode]:
    return [make_episode(seed, steps=4 + seed, cameras=SIZE, task=f"task {seed % 2}") for seed in range(4)]


@pytest.fixture
def recorded(video: bool, tmp_path: Path, episodes: list[Episode], monkeypatch: pytest.MonkeyPatch) -> Path:
    """Four episodes whose rows are in two files, as those of a store of more than a hundred are."""
    monkeypatch.setattr(index, "ROWS", 2)
    with ExperienceStore.create(
        tmp_path / "store", cameras=SIZE, state_dim=5, action_dim=3, fps=20, video=video
    ) as store:
        for episode in episodes:
            store.append(episode)
    assert len(list((tmp_path / "store").glob("meta/episodes/*/*"))) == 2
    return tmp_path / "store"


def lerobot(root: Path, name: str = "local/store") -> LeRobotDataset:
    return LeRobotDataset(name, root=root)


def assert_holds(root: Path, expected: list[Episode], pictures: list[np.ndarray], checksums: bool = False) -> None:
    """Read as a store: these episodes, their pictures; and an episode can be appended."""
    store = ExperienceStore.read(root)
    frames = store.columns()
    assert store.lengths == [episode.steps for episode in expected]
    for name in ("action", "state", "proposed_action", "source", "reward", "success"):
        np.testing.assert_array_equal(
            getattr(frames, name), np.concatenate([getattr(episode, name) for episode in expected]), name
        )
    assert [frames.tasks[i] for i in frames.task_index[frames.step == 0]] == [episode.task for episode in expected]
    for number, shown in enumerate(pictures):
        np.testing.assert_array_equal(store.pictures(number)["top"], shown)
    assert [store.has_checksums(number) for number in range(len(expected))] == [checksums] * len(expected)
    assert list(store.verify()) == []
    with ExperienceStore.open(root) as writer:
        assert writer.append(expected[0]) == len(expected)
    again = ExperienceStore.read(root)
    np.testing.assert_array_equal(again.columns().action[-expected[0].steps :], expected[0].action)
    assert list(again.verify()) == []
    assert len(lerobot(root)) == sum(again.lengths)


def shown(root: Path) -> list[np.ndarray]:
    store = ExperienceStore.read(root)
    return [store.pictures(number)["top"] for number in range(store.num_episodes)]


@both
def test_episodes_that_lerobot_deletes_are_gone_and_the_others_are_as_they_were(
    recorded: Path, video: bool, tmp_path: Path, episodes: list[Episode]
) -> None:
    pictures = shown(recorded)
    delete_episodes(lerobot(recorded), [1], output_dir=tmp_path / "less", repo_id="local/less")
    assert_holds(tmp_path / "less", [episodes[0], *episodes[2:]], [pictures[0], *pictures[2:]])
    assert list(ExperienceStore.read(recorded).verify()) == []


def test_label_does_not_go_to_another_episode_after_one_was_deleted(recorded: Path, tmp_path: Path) -> None:
    write_label(recorded, ExperienceStore.read(recorded).columns(), 2, Label(outcome="failure"))
    delete_episodes(lerobot(recorded), [1], output_dir=tmp_path / "less", repo_id="local/less")
    assert ExperienceStore.read(tmp_path / "less").labels == {}  # LeRobot does not take the log along
    shutil.copy(recorded / "meta/aloe_labels.jsonl", tmp_path / "less/meta")
    with pytest.raises(ValueError, match=r"episode 2 is not the one that meta/aloe_labels\.jsonl labels"):
        ExperienceStore.read(tmp_path / "less").columns()


@both
def test_halves_that_lerobot_splits_and_merges_are_the_whole_again(
    recorded: Path, video: bool, tmp_path: Path, episodes: list[Episode]
) -> None:
    pictures = shown(recorded)
    halves = split_dataset(lerobot(recorded), {"a": [0, 1], "b": [2, 3]}, output_dir=tmp_path / "halves")
    shutil.copytree(tmp_path / "halves/b", tmp_path / "b")
    assert_holds(tmp_path / "b", episodes[2:], pictures[2:])
    merge_datasets([halves["a"], halves["b"]], "local/whole", output_dir=tmp_path / "whole")
    assert_holds(tmp_path / "whole", episodes, pictures)


@both
def test_store_that_lerobot_merges_into_large_files_is_read_and_compacted(
    recorded: Path, video: bool, tmp_path: Path, episodes: list[Episode]
) -> None:
    """Its rows say of themselves that they stand in two files; they stand in one."""
    pictures = shown(recorded)
    merge_datasets([lerobot(recorded)], "local/whole", output_dir=tmp_path / "whole")
    assert len(list((tmp_path / "whole/data").glob("*/*"))) == 1
    shutil.copytree(tmp_path / "whole", tmp_path / "other")
    assert_holds(tmp_path / "whole", episodes, pictures)
    with ExperienceStore.open(tmp_path / "other") as store:
        store.append(episodes[0])
    compact(tmp_path / "other")
    assert_holds(tmp_path / "other", [*episodes, episodes[0]], pictures, checksums=True)


def test_compacted_store_is_edited_by_lerobot(recorded: Path, tmp_path: Path, episodes: list[Episode]) -> None:
    pictures = shown(recorded)
    compact(recorded)
    delete_episodes(lerobot(recorded), [0], output_dir=tmp_path / "less", repo_id="local/less")
    assert_holds(tmp_path / "less", episodes[1:], pictures[1:])


def test_store_whose_tasks_lerobot_renamed_in_place_is_read_once_its_checksums_are_moved_away(recorded: Path) -> None:
    """It leaves the checksums as they were, which are then of other files."""
    modify_tasks(lerobot(recorded), new_task="stack the cubes")
    with pytest.raises(ValueError, match=r"is not what was recorded.*another tool changed it on purpose, move meta/ch"):
        ExperienceStore.read(recorded).columns()
    assert len({damage.path for damage in ExperienceStore.read(recorded).verify()}) >= 4
    (recorded / "meta/checksums").rename(recorded.parent / "checksums")
    store = ExperienceStore.read(recorded)
    assert (store.columns().tasks, list(store.verify())) == (["stack the cubes"], [])


def run_lerobot(command: str, *options: object) -> subprocess.CompletedProcess[str]:
    """A command of LeRobot's, in a process of its own, offline."""
    program = Path(sys.executable).with_name(command)
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.run(
        [program, *map(str, options)], capture_output=True, text=True, env=environment, timeout=300, check=False
    )


@pytest.mark.slow
def test_lerobots_edit_command_deletes_in_place_and_keeps_a_backup(recorded: Path, episodes: list[Episode]) -> None:
    found = run_lerobot(
        "lerobot-edit-dataset",
        *("--repo_id", "local/store", "--root", recorded, "--new_repo_id", "local/store", "--new_root", recorded),
        *("--operation.type", "delete_episodes", "--operation.episode_indices", "[3]"),
    )
    assert found.returncode == 0, found.stderr[-2000:]
    assert_holds(recorded, episodes[:3], [])
    old = ExperienceStore.read(recorded.with_name("store_old"))
    assert (old.num_episodes, list(old.verify())) == (4, [])


@pytest.mark.slow
def test_lerobots_info_counts_what_the_store_does(recorded: Path) -> None:
    found = run_lerobot(
        "lerobot-edit-dataset", "--repo_id", "local/store", "--root", recorded, "--operation.type", "info"
    )
    assert found.returncode == 0, found.stderr[-2000:]
    said = found.stdout + found.stderr
    assert ("Total episode: 4" in said, "22(22)" in said) == (True, True), said[-2000:]  # of 4, 5, 6 and 7 steps


@pytest.mark.slow
@both
def test_lerobot_train_takes_two_steps_on_a_store(recorded: Path, video: bool, tmp_path: Path) -> None:
    before = {path: path.read_bytes() for path in recorded.rglob("*") if path.is_file()}
    sizes = {"dim_model": 16, "n_heads": 2, "dim_feedforward": 16, "n_encoder_layers": 1, "latent_dim": 4}
    found = run_lerobot(
        "lerobot-train",
        *("--dataset.repo_id", "local/store", "--dataset.root", recorded, "--output_dir", tmp_path / "out"),
        *("--policy.type", "act", "--policy.device", "cpu", "--policy.push_to_hub", "false"),
        *("--policy.chunk_size", 4, "--policy.n_action_steps", 4, "--policy.pretrained_backbone_weights", "null"),
        *(word for name, size in sizes.items() for word in (f"--policy.{name}", size)),
        *("--steps", 2, "--batch_size", 2, "--num_workers", 0, "--log_freq", 1, "--wandb.enable", "false"),
    )
    assert found.returncode == 0, found.stderr[-2000:]
    (policy,) = tmp_path.glob("out/checkpoints/000002/pretrained_model/config.json")
    features = json.loads(policy.read_text())["input_features"]
    assert {"observation.state", "observation.images.top"} == set(features)
    assert {path: path.read_bytes() for path in recorded.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_lerobots_viewer_writes_an_episode_to_a_file(recorded: Path, tmp_path: Path) -> None:
    found = run_lerobot(
        "lerobot-dataset-viz",
        *("--repo-id", "local/store", "--root", recorded, "--episode-index", 1, "--num-workers", 0),
        *("--save", 1, "--output-dir", tmp_path),
    )
    assert found.returncode == 0, found.stderr[-2000:]
    assert len(list(tmp_path.glob("*.rrd"))) == 1
