"""Datasets that lie. They are recorded by LeRobot itself (`record_with_lerobot`) and changed after. Damaged ones are in
`test_fuzz.py`."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from aloe.experience.foreign import ForeignDataset
from aloe.experience.importers import import_dataset
from aloe.experience.resolve import ImportConfig, resolve

Record = Callable[..., Path]
SUCCESS = {"next.success": [False, False, True]}


def imported(folder: Path) -> None:
    import_dataset(folder, folder.parent / "store", ImportConfig(source="demo"), say=lambda _: None)


def resolved(folder: Path) -> None:
    resolve(ForeignDataset(folder), ImportConfig(source="demo"))


def set_info(folder: Path, **values) -> None:
    path = folder / "meta/info.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def set_column(folder: Path, key: str, values: pa.Array) -> None:
    path = folder / "data/chunk-000/file-000.parquet"
    table = pq.read_table(path)
    pq.write_table(table.set_column(table.column_names.index(key), key, values), path)


def read_all(folder: Path) -> None:
    dataset = ForeignDataset(folder)
    resolve(dataset, ImportConfig(source="demo"))
    for episode in range(len(dataset)):
        dataset.check_order(episode)
        dataset.task(episode)
        for camera in dataset.cameras:
            dataset.pictures(episode, camera)


OUTSIDE = [
    "../outside/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
    "data/../../outside/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
    "/{outside}/chunk-000/file-000.parquet",
]


@pytest.mark.parametrize("path", OUTSIDE)
def test_path_out_of_the_dataset_is_refused_although_the_file_is_there(
    record_with_lerobot: Record, tmp_path: Path, path: str
) -> None:
    folder = record_with_lerobot([SUCCESS])
    (folder / "data").rename(tmp_path / "outside")
    set_info(folder, data_path=path.replace("{outside}", str(tmp_path / "outside")))
    with pytest.raises(ValueError, match="is outside of it"):
        imported(folder)
    assert not (tmp_path / "store").exists()


def test_link_out_of_the_dataset_is_refused(record_with_lerobot: Record, tmp_path: Path) -> None:
    folder = record_with_lerobot([SUCCESS])
    (folder / "data").rename(tmp_path / "outside")
    (folder / "data").symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match="is outside of it"):
        imported(folder)


def test_videos_out_of_the_dataset_are_refused(record_with_lerobot: Record, tmp_path: Path) -> None:
    folder = record_with_lerobot([SUCCESS], cameras={"observation.images.top": (32, 48)}, video=True)
    (folder / "videos").rename(tmp_path / "outside")
    set_info(folder, video_path="../outside/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4")
    with pytest.raises(ValueError, match="is outside of it"):
        imported(folder)


@pytest.mark.parametrize(
    "path",
    ["{chunk_index.__class__}", "{chunk_index:999999999d}", "{secret}", "{", "data/\0", "{0}", "{file_index!r:{x}}"],
)
def test_template_that_is_more_than_a_path_is_refused(record_with_lerobot: Record, path: str) -> None:
    folder = record_with_lerobot([SUCCESS])
    set_info(folder, data_path=path)
    with pytest.raises(ValueError, match=r"cannot make a path of|a path that cannot be"):
        resolved(folder)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"codebase_version": "v2.1"}, "format v2.1, v3 is needed; convert it"),
        ({"codebase_version": None}, "format None"),
        ({"fps": 0}, "fps is 0"),
        ({"fps": "ten"}, "fps is 'ten'"),
        ({"total_episodes": 10**9}, "meta/episodes lacks number 1"),
        ({"total_episodes": 10**30}, "which makes no sense"),
        ({"features": {"action": {"dtype": "float32", "shape": [-1]}}}, "feature 'action'"),
        ({"features": {"action": 3}}, "feature 'action'"),
        ({"features": {"next.success": {"dtype": "bool", "shape": [1]}}}, "has no column observation.state or state"),
        ({"data_path": 5}, "data_path is 5"),
        ({"data_path": "nowhere.parquet"}, "nowhere.parquet is missing"),
    ],
)
def test_metadata_that_make_no_sense_are_refused(record_with_lerobot: Record, change: dict, said: str) -> None:
    folder = record_with_lerobot([SUCCESS])
    set_info(folder, **change)
    with pytest.raises(ValueError, match=said):
        resolved(folder)


@pytest.mark.parametrize(
    ("key", "values", "said"),
    [
        ("next.success", pa.array(["no", "no", "yes"]), "'next.success' holds string; numbers are needed"),
        ("next.success", pa.array([False, None, True]), "'next.success' lacks values in episode 0"),
        ("action", pa.array([[1.0], [1.0], [1.0]]), "'action' lacks values in episode 0; 2 a step"),
        ("action", pa.array([[1.0, 1.0], [1.0, np.nan], [1.0, 1.0]]), "'action' holds NaN or infinite"),
        ("frame_index", pa.array([0, 2, 1]), "not in order"),
        ("episode_index", pa.array([0, 0, 1]), "episode 0 should have 3 steps, found 2"),
        ("task_index", pa.array([0, 0, 1]), "episode 0 has 2 tasks"),
        ("task_index", pa.array([4, 4, 4]), "has task 4, which meta/tasks.parquet does not name"),
    ],
)
def test_data_unlike_their_description_are_refused_by_column(
    record_with_lerobot: Record, tmp_path: Path, key: str, values: pa.Array, said: str
) -> None:
    folder = record_with_lerobot([SUCCESS])
    set_column(folder, key, values)
    with pytest.raises(ValueError, match=said):
        imported(folder)
    assert not (tmp_path / "store").exists()


def test_picture_of_another_size_or_outside_of_the_file_is_refused(record_with_lerobot: Record, tmp_path: Path) -> None:
    folder = record_with_lerobot([SUCCESS], cameras={"observation.images.top": (8, 8)})
    info = json.loads((folder / "meta/info.json").read_text())["features"]
    info["observation.images.top"]["shape"] = [9, 8, 3]
    set_info(folder, features=info)
    with pytest.raises(ValueError, match=r"step 0: not a picture: it has \(8, 8\) pixels, \(9, 8\) are declared"):
        imported(folder)
    path = str(tmp_path / "secret.png")
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    set_column(folder, "observation.images.top", pa.array([{"bytes": None, "path": path}] * 3, kind))
    with pytest.raises(ValueError, match="are not in the data file"):
        ForeignDataset(folder).pictures(0, "observation.images.top")


def test_play_list_in_place_of_a_video_is_refused(record_with_lerobot: Record) -> None:
    folder = record_with_lerobot([SUCCESS], cameras={"observation.images.top": (32, 48)}, video=True)
    (video,) = (folder / "videos").rglob("*.mp4")
    whole = video.read_bytes()
    video.write_text("#EXTM3U\n#EXTINF:1,\nfile:///etc/hostname\n#EXT-X-ENDLIST\n")
    with pytest.raises(ValueError, match="is no mp4"):
        imported(folder)
    video.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="cannot be decoded"):
        imported(folder)


def test_column_that_info_json_does_not_name_is_a_clear_error(record_with_lerobot: Record) -> None:
    folder = record_with_lerobot([SUCCESS])
    features = json.loads((folder / "meta/info.json").read_text())["features"]
    for key in ("task_index", "frame_index", "next.success"):
        set_info(folder, features={name: feature for name, feature in features.items() if name != key})
        with pytest.raises(ValueError, match=rf"has no column '{key}'|looked for {key}"):
            read_all(folder)
