"""Many small files become few: what stays, who notices, and what is refused. Kills are in `test_crash.py`."""

import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from aloe.experience import compact as compaction
from aloe.experience import store as reading
from aloe.experience.compact import compact
from aloe.experience.labels import Label, write_label
from aloe.experience.schema import Frames
from aloe.experience.store import ExperienceStore
from aloe.types import Episode

MakeEpisode = Callable[..., Episode]
SIZE = {"top": (64, 64)}


both = pytest.mark.parametrize("video", [False, True], ids=["image", "video"])


@pytest.fixture
def video() -> bool:
    return False


@pytest.fixture
def recorded(video: bool, tmp_path: Path, make_episode: MakeEpisode) -> Path:
    """Five episodes of 4 to 8 steps and two tasks, at 30 fps: a third of a second is no whole number of microseconds."""
    root = tmp_path / "disk" / "store"
    with ExperienceStore.create(root, cameras=SIZE, state_dim=5, action_dim=3, fps=30, video=video) as store:
        for seed in range(5):
            store.append(make_episode(seed, steps=4 + seed, cameras=SIZE, task=f"task {seed % 2}"))
    return root


def content(root: Path) -> tuple[Frames, list[np.ndarray]]:
    store = ExperienceStore.read(root)
    assert list(store.verify()) == []
    return store.columns(), [store.pictures(index)["top"] for index in range(store.num_episodes)]


def assert_same(one: tuple[Frames, list[np.ndarray]], other: tuple[Frames, list[np.ndarray]]) -> None:
    for name, values in vars(one[0]).items():
        np.testing.assert_array_equal(values, getattr(other[0], name), name)
    for pictures, others in zip(one[1], other[1], strict=True):
        np.testing.assert_array_equal(pictures, others)


def files(root: Path) -> list[str]:
    return sorted(
        path.relative_to(root).as_posix()
        for pattern in ("data/*/*", "videos/*/*/*", "meta/episodes/*/*", "meta/checksums/*/*")
        for path in root.glob(pattern)
    )


@both
def test_compacted_store_is_the_same_in_few_files_and_goes_on(
    recorded: Path, video: bool, make_episode: MakeEpisode
) -> None:
    with ExperienceStore.open(recorded) as store:
        write_label(recorded, store.columns(), 2, Label(outcome="failure"))
    (recorded / "README.md").write_text("mine")
    before = content(recorded)
    items = [LeRobotDataset("local/store", root=recorded)[i] for i in (0, 4, 29)]
    done = compact(recorded)
    assert (done.before, done.after) == ((11, 3) if video else (6, 2))  # 5 a kind, and the file of rows
    assert files(recorded) == [
        "data/chunk-001/file-000.parquet",
        "meta/checksums/chunk-001/file-000.json",
        "meta/episodes/chunk-001/file-000.parquet",
        *(["videos/observation.images.top/chunk-001/file-000.mp4"] if video else []),
    ]
    assert_same(content(recorded), before)
    assert all(ExperienceStore.read(recorded).has_checksums(index) for index in range(5))
    assert (recorded / "README.md").read_text() == "mine"
    assert os.listdir(recorded.parent) == ["store"]
    for item, now in zip(items, (LeRobotDataset("local/store", root=recorded)[i] for i in (0, 4, 29)), strict=True):
        for key, value in item.items():
            assert value == now[key] if key == "task" else (value == now[key]).all(), key
    assert_same(content(done.aside), before)  # nothing was deleted

    new = make_episode(9, cameras=SIZE, task="task 2")
    with ExperienceStore.open(recorded) as store:
        assert store.append(new) == 5
    longer = content(recorded)
    np.testing.assert_array_equal(longer[0].action[-6:], new.action)
    assert compact(recorded).after == done.after
    assert compact(recorded).aside is None
    assert_same(content(recorded), longer)
    assert sorted(os.listdir(recorded / "quarantine")) == ["000", "001"]
    dataset = LeRobotDataset("local/store", root=recorded)
    assert (len(dataset), dataset.num_episodes, dataset[35]["task"]) == (36, 6, "task 2")


@both
def test_files_are_not_merged_beyond_the_size_that_info_json_allows(recorded: Path, video: bool) -> None:
    before, kind = content(recorded), "videos/*/*/*" if video else "data/*/*"
    sizes = [path.stat().st_size for path in sorted(recorded.glob(kind))]
    path, limit = recorded / "meta/info.json", max(sum(sizes[:2]), sum(sizes[3:])) / 2**20
    info = json.loads(path.read_text()) | {"video_files_size_in_mb" if video else "data_files_size_in_mb": limit}
    path.write_text(json.dumps(info))
    shutil.rmtree(recorded / "meta/checksums")  # they would say that info.json is another
    compact(recorded)
    assert len(list(recorded.glob(kind))) == 3  # of 2, 1 and 2 episodes, or 2, 2 and 1
    assert_same(content(recorded), before)
    assert compact(recorded).aside is None


@both
def test_who_has_the_store_open_is_told_to_open_it_again(recorded: Path, make_episode: MakeEpisode) -> None:
    reader, writer = ExperienceStore.read(recorded), ExperienceStore.open(recorded)
    compact(recorded)
    with pytest.raises(ValueError, match="was compacted or replaced since it was opened; open it again"):
        reader.columns()
    with pytest.raises(ValueError, match="was compacted or replaced since it was opened; open it again"):
        reader.pictures(3)
    with pytest.raises(ValueError, match="was compacted since it was opened; open it again"):
        writer.append(make_episode(7, cameras=SIZE))


def test_label_given_while_it_compacts_is_kept(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def label_first(one: Path, other: Path) -> None:
        write_label(recorded, ExperienceStore.read(recorded).columns(), 1, Label(outcome="failure"))
        swap(one, other)

    swap = compaction.exchange
    monkeypatch.setattr(compaction, "exchange", label_first)
    compact(recorded)
    frames = ExperienceStore.read(recorded).columns()
    assert frames.success[frames.step == 0].tolist() == [False] * 5
    assert [bool(frames.success[frames.episode == index].any()) for index in range(5)] == [
        True,
        False,
        True,
        True,
        True,
    ]


def test_reader_that_opens_while_the_folders_change_places_sees_a_whole_store(
    recorded: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between reading the rows and looking for their files."""
    before, look = content(recorded), reading.check_references

    def compact_first(*read: Any) -> None:
        if len(list(recorded.glob("data/*/*"))) > 1:
            monkeypatch.setattr(reading, "check_references", look)
            compact(recorded)
        look(*read)

    monkeypatch.setattr(reading, "check_references", compact_first)
    assert_same(content(recorded), before)


def test_damaged_store_is_not_compacted(recorded: Path) -> None:
    path = recorded / files(recorded)[0]
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    before = files(recorded)
    with pytest.raises(ValueError, match=r"file-000\.parquet of episode 0 is not what was recorded.*is not compacted"):
        compact(recorded)
    assert (files(recorded), os.listdir(recorded.parent)) == (before, ["store"])


def test_what_is_not_the_same_never_takes_the_stores_place(recorded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong number in one episode, with checksums to match."""
    before, rows_of = content(recorded), compaction.steps_of

    def another_action(table, episode):
        found = rows_of(table, episode)
        if episode != 3 or "staged" in seen:
            return found
        seen.append("staged")
        return found.take(list(reversed(range(len(found)))))

    seen: list[str] = []
    monkeypatch.setattr(compaction, "steps_of", another_action)
    with pytest.raises(ValueError, match="episode 3 is not the same once compacted"):
        compact(recorded)
    assert seen
    assert_same(content(recorded), before)
    assert os.listdir(recorded.parent) == ["store"]


def test_store_that_is_a_mount_point_is_refused(tmp_path: Path, make_episode: MakeEpisode) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "tmpfs", disk], capture_output=True).returncode:
        pytest.skip("to mount a disk takes the right to")
    try:
        with ExperienceStore.create(tmp_path / "store", cameras=SIZE, state_dim=5, action_dim=3, fps=20) as store:
            for seed in range(2):
                store.append(make_episode(seed, cameras=SIZE))
        shutil.copytree(tmp_path / "store", disk, dirs_exist_ok=True)
        before = files(disk)
        with pytest.raises(OSError, match=r"cannot be replaced in one step.*mount point.*nothing was changed"):
            compact(disk)
        assert files(disk) == before
    finally:
        subprocess.run(["umount", "--lazy", disk], check=True)
