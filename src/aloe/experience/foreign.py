"""Reading a LeRobot v3 dataset that somebody else made, which is checked before it is believed.

`meta/info.json` says where the files are. Whatever it says, no file outside the dataset's folder is opened. Damaged files,
wrong types, missing rows and pictures of another size end in a `ValueError` that names file and column. Nothing is
downloaded, and nothing in the dataset is changed.
"""

import contextlib
import hashlib
import io
import json
import re
import string
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8
from lerobot.datasets.utils import DEFAULT_TASKS_PATH, INFO_PATH
from numpy import ndarray
from PIL import Image

from aloe.experience.parquet import read_table
from aloe.experience.schema import coarseness
from aloe.experience.videos import decode_video

_MAX_INFO_BYTES: Final = 64 * 2**20
_MAX_PIXELS: Final = 2**26
"""Of one picture: more are a mistake, or meant to fill the memory."""
_DEPTH_KEYS: Final = ("is_depth_map", "video.is_depth_map")


@dataclass(frozen=True, kw_only=True)
class Camera:
    """A column of pictures."""

    size: tuple[int, int]
    """(h, w)"""
    video: bool


@dataclass(frozen=True, kw_only=True)
class _Row:
    """Where an episode is."""

    steps: int
    data: Path
    videos: dict[str, tuple[Path, float]]
    """Column -> mp4, and the time in it at which the episode begins."""


class ForeignDataset:
    """A LeRobot v3 dataset, read-only. Its labels are as strange as they come; see `importers`."""

    def __init__(self, root: Path) -> None:
        """Raises ValueError unless the metadata make sense and all files lie within `root`."""
        self.root = root
        info = read_info(root)
        self.fps: int = info["fps"]
        self.robot_type: str | None = info.get("robot_type")
        self.features: dict[str, dict[str, Any]] = info["features"]
        self._data_path, self._video_path = info["data_path"], info.get("video_path")
        self.cameras: dict[str, Camera] = {}
        self.depth: list[str] = []
        """Pictures that are no colours."""
        for key, feature in self.features.items():
            if feature["dtype"] in ("image", "video"):
                self._add_camera(key, feature)
        self.tasks = self._read_tasks()
        self._rows = self._read_rows(info["total_episodes"])
        self._kept: tuple[Path, dict[str, Any]] = (root, {})

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def lengths(self) -> list[int]:
        """Steps of each episode."""
        return [row.steps for row in self._rows]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the metadata and the data files (not of the videos)."""
        digest = hashlib.sha256((self.root / INFO_PATH).read_bytes())
        for path in sorted({row.data for row in self._rows} | set(self._episode_files())):
            with _readable(path), path.open("rb") as file:
                digest.update(hashlib.file_digest(file, "sha256").digest())
        return digest.hexdigest()

    def stamp(self, episode: int) -> list[tuple[str, int, int]]:
        """Name, size and time of writing (ns) of the files that an episode lies in."""
        row, found = self._rows[episode], []
        for path in (row.data, *(video for video, _ in row.videos.values())):
            with _readable(path):
                status = path.stat()
            found.append((str(path.resolve()), status.st_size, status.st_mtime_ns))
        return found

    # ---- what is in an episode

    def column(self, episode: int, key: str) -> ndarray:
        """A column of numbers: (T,) where its shape is (1,), else (T, dim).

        Raises:
            ValueError: there is no such column, it holds something else, or values are missing.
        """
        if key not in self.features:
            raise ValueError(f"{self.root} has no column {key!r}; it has {', '.join(self.features)}")
        shape = self.features[key]["shape"]
        if len(shape) > 1:
            raise ValueError(
                f"{self.root}: column {key!r} has shape {shape}; one number or one vector a step is needed"
            )
        dim = shape[0] if shape else 1
        cells = self._cells(episode, key)
        steps = len(cells)
        if (
            pa.types.is_fixed_size_list(cells.type)
            or pa.types.is_list(cells.type)
            or pa.types.is_large_list(cells.type)
        ):
            cells = cells.flatten()
        if not (pa.types.is_integer(cells.type) or pa.types.is_floating(cells.type) or pa.types.is_boolean(cells.type)):
            raise ValueError(f"{self.root}: column {key!r} holds {cells.type}; numbers are needed")
        if cells.null_count or len(cells) != steps * dim:
            raise ValueError(f"{self.root}: column {key!r} lacks values in episode {episode}; {dim} a step are needed")
        values = cells.to_numpy(zero_copy_only=False)
        return values if dim == 1 else values.reshape(steps, dim)

    def task(self, episode: int) -> str:
        """The instruction in words. Raises ValueError where it is unknown or changes within the episode."""
        found = np.unique(self.column(episode, "task_index"))
        if len(found) != 1:
            raise ValueError(
                f"{self.root}: episode {episode} has {len(found)} tasks (column 'task_index'); ALOE's episodes have one: "
                "split it with lerobot-edit-dataset"
            )
        if (index := int(found[0])) not in self.tasks:
            raise ValueError(
                f"{self.root}: episode {episode} has task {index}, which {DEFAULT_TASKS_PATH} does not name"
            )
        return self.tasks[index]

    def pictures(self, episode: int, key: str, every: int = 1, enough: int | None = None) -> UInt8[ndarray, "T h w 3"]:
        """The pictures of one camera. every, enough: see `schema.Experience.pictures`."""
        camera, row = self.cameras[key], self._rows[episode]
        steps, nth = range(0, row.steps, every), coarseness(camera.size, enough)
        if camera.video:
            path, start = row.videos[key]
            return decode_video(path, [start + t / self.fps for t in steps], self.fps, camera.size, nth)
        cells = self._cells(episode, key, keep=False)
        if not pa.types.is_struct(cells.type) or cells.type.get_field_index("bytes") < 0:
            raise ValueError(f"{self.root}: column {key!r} holds {cells.type}; pictures are needed")
        blobs = cells.field("bytes")
        if blobs.null_count:  # a path to a file anywhere on the disk
            raise ValueError(
                f"{self.root}: pictures of column {key!r} are not in the data file; save them with LeRobot"
            )
        where = f"{row.data}, column {key!r}, episode {episode}"
        shown = (_picture(blobs[t].as_py(), camera.size, f"{where}, step {t}") for t in steps)
        return np.stack([picture[::nth, ::nth] for picture in shown])

    def _cells(self, episode: int, key: str, keep: bool = True) -> pa.Array:
        """keep: read the column of a whole file once, for all of its episodes; not for pictures, which are large."""
        row = self._rows[episode]
        with _readable(row.data):
            if keep:
                start, stop = np.searchsorted(self._kept_column(row.data, "episode_index"), [episode, episode + 1])
                cells = self._kept_column(row.data, key)[start:stop].combine_chunks()
            else:
                table = read_table(row.data, columns=[key], filters=[("episode_index", "=", episode)])
                cells = table[key].combine_chunks()
        if len(cells) != row.steps:
            raise ValueError(f"{row.data}: episode {episode} should have {row.steps} steps, found {len(cells)}")
        return cells

    def _kept_column(self, path: Path, key: str) -> Any:
        """A column of the file that was read last. The number of the episode as an array, which has to grow."""
        if self._kept[0] != path:
            index = read_table(path, columns=["episode_index"])["episode_index"].to_numpy()
            if (np.diff(index) < 0).any():
                raise ValueError("its episodes are not in order")
            self._kept = (path, {"episode_index": index})
        if key not in self._kept[1]:
            self._kept[1][key] = read_table(path, columns=[key])[key]
        return self._kept[1][key]

    def check_order(self, episode: int) -> None:
        """Raise ValueError unless the steps follow one another."""
        if not np.array_equal(self.column(episode, "frame_index"), np.arange(self._rows[episode].steps)):
            raise ValueError(
                f"{self.root}: the steps of episode {episode} are not in order, or some are missing (column 'frame_index')"
            )

    # ---- metadata

    def _add_camera(self, key: str, feature: dict[str, Any]) -> None:
        """Three channels last, or first where the names say so."""
        shape, names = feature["shape"], feature.get("names")
        extra = feature.get("info")
        more: dict[str, Any] = {**feature, **extra} if isinstance(extra, dict) else feature
        if any(more.get(name) for name in _DEPTH_KEYS) or 1 in (shape[0], shape[-1]):
            self.depth.append(key)
            return
        first = names[0] in ("channels", "channel") if isinstance(names, list) and names else shape[-1] != 3
        if len(shape) != 3 or shape[0 if first else 2] != 3:
            raise ValueError(
                f"{self.root}: column {key!r} has shape {shape}, names {names}; where are its three channels?"
            )
        h, w = shape[1:] if first else shape[:2]
        if h * w > _MAX_PIXELS:
            raise ValueError(f"{self.root}: column {key!r} has pictures of {h} x {w} pixels; that is too large")
        self.cameras[key] = Camera(size=(h, w), video=feature["dtype"] == "video")

    def _read_tasks(self) -> dict[int, str]:
        path = inside(self.root, DEFAULT_TASKS_PATH)
        with _readable(path):
            table = read_table(path)
            (name,) = [name for name in ("task", "__index_level_0__") if name in table.column_names][:1] or [""]
            if not name or "task_index" not in table.column_names:
                raise ValueError("no columns 'task' and 'task_index'")
            tasks = dict(zip(table["task_index"].to_pylist(), table[name].to_pylist(), strict=True))
        if not all(isinstance(index, int) and isinstance(task, str) for index, task in tasks.items()):
            raise ValueError(f"{path} should have a number and words for every task")
        return tasks

    def _episode_files(self) -> list[Path]:
        found = sorted(self.root.glob("meta/episodes/*/*.parquet"))
        return [inside(self.root, path.relative_to(self.root)) for path in found]

    def _read_rows(self, episodes: int) -> list[_Row]:
        keys = ["data", *(f"videos/{key}" for key, camera in self.cameras.items() if camera.video)]
        columns = [f"{key}/{kind}_index" for key in keys for kind in ("chunk", "file")]
        columns += ["episode_index", "length", *(f"{key}/from_timestamp" for key in keys[1:])]
        rows: dict[int, _Row] = {}
        for path in self._episode_files():
            with _readable(path):
                found = read_table(path, columns=columns)
                if lacking := [name for name in columns if name not in found.column_names]:
                    raise ValueError(f"there is no column {lacking[0]!r}")
                entries = found.to_pylist()
            for entry in entries:
                rows[entry["episode_index"]] = self._row(path, entry)
        missing = next((index for index in range(episodes) if index not in rows), None)
        if missing is not None:
            raise ValueError(
                f"{self.root} should have {episodes} episodes, but meta/episodes lacks number {missing}; was its recorder "
                "stopped before finalize()?"
            )
        return [rows[index] for index in range(episodes)]

    def _row(self, path: Path, entry: dict[str, Any]) -> _Row:
        for name, value in entry.items():
            ok = isinstance(value, int | float) if name.endswith("timestamp") else isinstance(value, int) and value >= 0
            if not ok or (name == "length" and value < 1):
                raise ValueError(f"{path}: {name} is {value!r} for episode {entry['episode_index']!r}")
        places = {
            key: {"chunk_index": entry[f"{key}/chunk_index"], "file_index": entry[f"{key}/file_index"]}
            for key in ("data", *(f"videos/{key}" for key, camera in self.cameras.items() if camera.video))
        }
        data = inside(self.root, fill_path(self.root, self._data_path, **places.pop("data")))
        videos = {}
        for kind, place in places.items():
            key = kind.removeprefix("videos/")
            video = inside(self.root, fill_path(self.root, self._video_path, video_key=key, **place))
            videos[key] = (video, float(entry[f"{kind}/from_timestamp"]))
        return _Row(steps=entry["length"], data=data, videos=videos)


def read_info(root: Path) -> dict[str, Any]:
    """`meta/info.json`, all of whose entries that are used here have the right type."""
    path = root / INFO_PATH
    if not path.is_file():
        raise ValueError(f"{root} is no LeRobot dataset: it has no {INFO_PATH}")
    inside(root, INFO_PATH)
    if path.stat().st_size > _MAX_INFO_BYTES:
        raise ValueError(f"{path} has {path.stat().st_size} bytes; that is no LeRobot dataset")
    with _readable(path):
        info = json.loads(path.read_bytes())
    version = info.get("codebase_version") if isinstance(info, dict) else None
    if not isinstance(version, str) or not version.startswith("v3."):
        raise ValueError(
            f"{root} is of LeRobot's format {version}, v3 is needed; convert it with "
            "python -m lerobot.scripts.convert_dataset_v21_to_v30"
        )
    assert isinstance(info, dict)
    if isinstance(fps := info.get("fps"), float) and fps.is_integer():
        info["fps"] = int(fps)
    wanted: dict[str, Any] = {"fps": int, "total_episodes": int, "features": dict, "data_path": str}
    wanted |= {name: str for name in ("video_path", "robot_type") if info.get(name) is not None}
    if info.get("total_episodes") == 0:
        raise ValueError(f"{root} holds no episodes yet; record some, or leave it out")
    for name, kind in wanted.items():
        value = info.get(name)
        if not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, int) and not 0 < value < 2**31):
            raise ValueError(f"{path}: {name} is {value!r}, which makes no sense")
    for key, feature in info["features"].items():
        _check_feature(path, key, feature)
    return info


def _check_feature(path: Path, key: str, feature: Any) -> None:
    """Raise ValueError unless a feature has a dtype and a shape; makes the shape a tuple."""
    shape = feature.get("shape") if isinstance(feature, dict) else None
    dtype = feature.get("dtype") if isinstance(feature, dict) else None
    if (
        not isinstance(shape, list)
        or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in shape)
        or not isinstance(dtype, str)
        or (dtype in ("image", "video") and not shape)
    ):
        raise ValueError(f"{path}: feature {key!r} is {feature!r}; it needs a dtype and a shape")
    feature["shape"] = tuple(shape)


def fill_path(root: Path, template: str | None, **values: Any) -> str:
    """LeRobot's template of a path, filled in. Only plain names, so that no attribute of anything is looked up."""
    if template is None:
        raise ValueError(f"{root / INFO_PATH} has videos, but no video_path")
    try:
        parts = [(name, spec) for _, name, spec, _ in string.Formatter().parse(template) if name is not None]
        if all(name in values and re.fullmatch(r"\d{0,2}d?", spec or "") for name, spec in parts):
            return template.format(**values)
        reason = f"it may name {', '.join(values)}"
    except (ValueError, KeyError, IndexError) as error:
        reason = str(error)
    raise ValueError(f"{root / INFO_PATH}: cannot make a path of {template!r} ({reason})")


def inside(root: Path, path: str | Path) -> Path:
    """The path below `root`. Raises ValueError where it leads out of it, also by links."""
    try:
        full = (root / path).resolve()
    except (ValueError, OSError, RuntimeError) as error:  # a NUL in the name, a name too long, links in a circle
        raise ValueError(f"{root} names a path that cannot be: {str(path)!r} ({error})") from error
    if not full.is_relative_to(root.resolve()):
        raise ValueError(
            f"{root} names the file {str(path)!r}, which is outside of it ({full}); the files of a dataset lie within "
            "its folder"
        )
    return root / path


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """What goes wrong while a file is read becomes a ValueError that names it."""
    try:
        yield
    except FileNotFoundError as error:
        raise ValueError(f"{path} is missing; copy the dataset anew") from error
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ValueError(f"{path} cannot be read: {reason}") from error


def _picture(blob: bytes, size: tuple[int, int], where: str) -> UInt8[ndarray, "h w 3"]:
    try:
        with Image.open(io.BytesIO(blob), formats=("PNG", "JPEG")) as picture:
            if picture.size[::-1] != size:  # known before it is decoded
                raise ValueError(f"it has {picture.size[::-1]} pixels, {size} are declared")
            return np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"{where}: not a picture: {error}") from error
