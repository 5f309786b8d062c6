"""Damaged files, and a disk or folder that fails."""

import contextlib
import errno
import json
import os
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from aloe.experience.store import ExperienceStore
from aloe.types import Episode

MakeEpisode = Callable[..., Episode]
SIZE = {"top": (64, 64)}
KINDS = {
    "data": "data/chunk-000/file-001.parquet",
    "video": "videos/observation.images.top/chunk-000/file-001.mp4",
    "rows": "meta/episodes/chunk-000/file-000.parquet",
    "checksums": "meta/checksums/chunk-000/file-000.json",
    "tasks": "meta/tasks.parquet",
    "stats": "meta/stats.json",
    "info": "meta/info.json",
}


@pytest.fixture
def episode(make_episode: MakeEpisode) -> Callable[[int], Episode]:
    return lambda seed: make_episode(seed, steps=4, cameras=SIZE)


@pytest.fixture
def recorded(tmp_path: Path, episode: Callable[[int], Episode]) -> ExperienceStore:
    store = ExperienceStore.create(tmp_path / "v", cameras=SIZE, state_dim=5, action_dim=3, fps=20, video=True)
    for seed in range(3):
        store.append(episode(seed))
    store.close()
    return store


def damages(store: Path, path: str) -> Iterator[str]:
    """One kind of damage to a file after the other; the file is put back afterwards."""
    whole = (store / path).read_bytes()
    rng = np.random.default_rng(len(whole))
    for size in (0, len(whole) // 2, len(whole) - 1):
        (store / path).write_bytes(whole[:size])
        yield f"{path} cut to {size} bytes"
    for place in [0, len(whole) - 1, *rng.integers(0, len(whole), 20).tolist()]:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << int(rng.integers(8))
        (store / path).write_bytes(flipped)
        yield f"{path} with a bit of byte {place} of {len(whole)} flipped"
    (store / path).write_bytes(whole)


@pytest.mark.parametrize("kind", KINDS)
def test_damage_is_found_and_never_read_as_something_else(recorded: ExperienceStore, kind: str) -> None:
    """Each file in turn, cut short or with one bit flipped: what can be read is what was recorded, or reading is a
    `ValueError`; and where it can be read, `verify` still finds what is damaged."""
    actions, pictures = recorded.columns().action, [recorded.pictures(i)["top"] for i in range(3)]
    for damage in damages(recorded.root, KINDS[kind]):
        found = []
        try:
            store = ExperienceStore.read(recorded.root)
            found = list(store.verify())
            np.testing.assert_array_equal(store.columns().action, actions, damage)
            for index in range(3):
                np.testing.assert_array_equal(store.pictures(index)["top"], pictures[index], damage)
        except ValueError as error:
            found.append(str(error))
        if kind in ("data", "video"):
            assert KINDS[kind] in str(found[-1]), damage
            assert "episode 1" in str(found[-1]), damage
            assert (found[0].episode, found[0].path) == (1, KINDS[kind])
            assert "SHA-256 differs" in found[0].problem, damage
        elif kind in ("checksums", "info") or "cut" in damage:
            assert found, damage
    assert list(ExperienceStore.read(recorded.root).verify()) == []


def test_statistics_that_are_not_of_the_episodes_are_found(recorded: ExperienceStore) -> None:
    path = recorded.root / KINDS["stats"]
    path.write_text(path.read_text().replace('"min": [', '"min": [1', 1))
    assert [(d.episode, d.path) for d in recorded.verify()] == [(None, "meta/stats.json")]


def test_file_is_compared_with_its_checksum_once_for_an_open_store(recorded: ExperienceStore) -> None:
    store = ExperienceStore.read(recorded.root)
    store.pictures(1)
    path = recorded.root / KINDS["video"]
    path.write_bytes(path.read_bytes() + b"more")
    store.pictures(1)
    with pytest.raises(ValueError, match=r"file-001\.mp4 of episode 1 is not what was recorded.*aloe data verify"):
        ExperienceStore.read(recorded.root).pictures(1)


def changed(path: Path, column: str, values: Callable[[pa.Array], pa.Array]) -> None:
    """Write another, sound, data file, as a tool would that knows nothing of checksums."""
    table = pq.read_table(path)
    field, number = table.schema.field(column), table.schema.get_field_index(column)
    pq.write_table(table.set_column(number, field, values(table[column].combine_chunks())), path)


def test_numbers_are_checked_apart_from_the_pictures_beside_them(
    store: ExperienceStore, make_episode: MakeEpisode
) -> None:
    """A file of PNGs need not be read as a whole to know that its numbers are intact."""
    for seed in range(2):
        store.append(make_episode(seed))
    store.close()
    path, whole = store.root / KINDS["data"], (store.root / KINDS["data"]).read_bytes()
    changed(path, "observation.images.top", lambda cells: cells.take(list(range(len(cells)))[::-1]))
    read = ExperienceStore.read(store.root)
    np.testing.assert_array_equal(read.columns().action[6:], make_episode(1).action)
    with pytest.raises(ValueError, match=r"file-001\.parquet of episode 1 is not what was recorded"):
        read.pictures(1)
    path.write_bytes(whole)
    changed(path, "next.reward", lambda cells: pa.array([0.5, *cells.to_pylist()[1:]], cells.type))
    with pytest.raises(
        ValueError, match=r"file-001\.parquet of episode 1 is not what was recorded \(its columns differ\)"
    ):
        ExperienceStore.read(store.root).columns()


def test_episodes_without_checksums_are_read_and_said_to_have_none(
    recorded: ExperienceStore, episode: Callable[[int], Episode]
) -> None:
    shutil.rmtree(recorded.root / "meta/checksums")  # as of an ALOE before there were any
    with ExperienceStore.open(recorded.root) as store:
        store.append(episode(3))
        assert [store.has_checksums(index) for index in range(4)] == [False, False, False, True]
        assert list(store.verify()) == []
        np.testing.assert_array_equal(store.columns().action[:4], episode(0).action)
    (recorded.root / KINDS["data"]).write_bytes(b"PAR1 no more")
    assert [(d.episode, d.path) for d in ExperienceStore.read(recorded.root).verify()] == [(1, KINDS["data"])]
    with pytest.raises(ValueError, match=r"file-001\.parquet of episode 1 cannot be read"):
        ExperienceStore.read(recorded.root).columns()


@pytest.mark.parametrize(
    ("template", "value"), [("data_path", "../other/{chunk_index}/{file_index}"), ("video_path", "/etc/{file_index}")]
)
def test_dataset_that_points_out_of_its_folder_is_refused(recorded: ExperienceStore, template: str, value: str) -> None:
    path = recorded.root / KINDS["info"]
    path.write_text(json.dumps(json.loads(path.read_text()) | {template: value}))
    for way in (ExperienceStore.read, ExperienceStore.open):
        with pytest.raises(ValueError, match="outside its folder"):
            way(recorded.root)


# ---- a disk or folder that fails


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", disk], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"a small disk takes the right to mount one: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", disk], check=True)  # an error that pytest shows may keep a file open


@contextlib.contextmanager
def files_no_larger_than(size: int) -> Iterator[None]:
    """As on a full disk, but without one: the kernel refuses to let any file of this process grow further."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def check(store: ExperienceStore, expected: list[Episode]) -> None:
    again = ExperienceStore.read(store.root)
    np.testing.assert_array_equal(again.columns().action, np.concatenate([e.action for e in expected]))
    assert list(again.verify()) == []
    assert len(LeRobotDataset("local/store", root=store.root)) == sum(e.steps for e in expected)


@pytest.mark.parametrize("video", [False, True])
def test_full_disk_loses_the_episode_in_progress_only(
    small_disk: Path, episode: Callable[[int], Episode], video: bool
) -> None:
    root, ballast = small_disk / "store", small_disk / "ballast"
    store = ExperienceStore.create(root, cameras=SIZE, state_dim=5, action_dim=3, fps=20, video=video)
    kept = [episode(0)]
    store.append(kept[0])
    refusals = 0
    for free in range(0, 200 * 1024, 20 * 1024):  # a little more each time, so that it ends at ever other places
        ballast.unlink(missing_ok=True)
        ballast.write_bytes(bytes(max(0, shutil.disk_usage(small_disk).free - free)))
        try:
            with pytest.raises(OSError, match=rf"episode {len(kept)} is lost.*the episodes before it are intact"):
                store.append(episode(len(kept)))
        except pytest.fail.Exception:  # there was room for it
            kept.append(episode(len(kept)))
            break
        refusals += 1
    ballast.unlink()
    assert refusals >= 3
    kept.append(episode(len(kept)))
    store.append(kept[-1])
    store.close()
    check(store, kept)


@pytest.mark.parametrize("video", [False, True])
def test_file_that_may_not_grow_loses_the_episode_in_progress_only(
    tmp_path: Path, episode: Callable[[int], Episode], video: bool
) -> None:
    """Needs no rights. In a video, the encoder is what is interrupted."""
    store = ExperienceStore.create(tmp_path / "s", cameras=SIZE, state_dim=5, action_dim=3, fps=20, video=video)
    kept = [episode(0)]
    store.append(kept[0])
    for size in (0, 1, 1000, 3000, 5000):
        with pytest.raises(OSError, match="episode 1 is lost"), files_no_larger_than(size):
            store.append(episode(1))
        assert not list(store.root.glob("staging-*"))
    kept.append(episode(1))
    store.append(kept[1])
    store.close()
    check(store, kept)


def test_folder_that_cannot_be_written_is_read_all_the_same(
    small_disk: Path, episode: Callable[[int], Episode]
) -> None:
    with ExperienceStore.create(small_disk / "s", cameras=SIZE, state_dim=5, action_dim=3, fps=20) as store:
        store.append(episode(0))
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(OSError, match=r"cannot be written \(Read-only file system\).*ExperienceStore\.read") as refused:
        ExperienceStore.open(small_disk / "s")
    assert refused.value.errno == errno.EROFS
    np.testing.assert_array_equal(ExperienceStore.read(small_disk / "s").columns().action, episode(0).action)


def test_store_that_has_vanished_is_said_to_and_goes_on_when_it_is_back(
    recorded: ExperienceStore, episode: Callable[[int], Episode]
) -> None:
    store = ExperienceStore.open(recorded.root)
    os.rename(store.root, store.root.with_name("elsewhere"))
    with pytest.raises(OSError, match="has vanished or was replaced"):
        store.append(episode(3))
    assert not store.root.exists()
    os.rename(store.root.with_name("elsewhere"), store.root)
    assert store.append(episode(3)) == 3
    # Somebody else's store under the same name is not written to.
    os.rename(store.root, store.root.with_name("elsewhere"))
    shutil.copytree(store.root.with_name("elsewhere"), store.root)
    with pytest.raises(OSError, match="has vanished or was replaced"):
        store.append(episode(4))
