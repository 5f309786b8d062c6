"""What happened, on disk: a LeRobot v3 dataset that is whole after every episode.

LeRobot's own writer keeps the files of a recording open and loses all of it when the process dies. Here every
episode has files of its own, which are written in a folder aside and then moved into place one by one,
`meta/info.json` last. That last move is the commit: `info.json` says how many episodes there are, and files
beyond that number are left over from a process that died. LeRobot does not mind them; `open` sets them aside.

    data/chunk-000/file-007.parquet            the steps, pictures inside as PNG (or videos/... as mp4)
    meta/episodes/chunk-000/file-007.parquet   where the episode's steps are, and their statistics
    meta/tasks.parquet, meta/stats.json        replaced as a whole
    meta/info.json                             the commit
    quarantine/<number>/...                    what was left over; nothing is ever deleted

Schema, statistics and all of `meta/` are made by LeRobot's code. The data file is written here, because
LeRobot's writer embeds the pictures row by row, through files of their own: three times the time of `append`.
"""

import contextlib
import copy
import fcntl
import hashlib
import io
import os
import tempfile
from collections.abc import Iterator
from itertools import count
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from datasets import Dataset
from jaxtyping import UInt8
from lerobot.configs import RGBEncoderConfig
from lerobot.datasets.compute_stats import (
    aggregate_stats,
    auto_downsample_height_width,
    compute_episode_stats,
    get_feature_stats,
    sample_indices,
)
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.feature_utils import get_hf_features_from_features
from lerobot.datasets.io_utils import cast_stats_to_numpy, load_info, load_stats, load_tasks, write_stats
from lerobot.datasets.utils import DEFAULT_EPISODES_PATH, INFO_PATH, STATS_PATH, update_chunk_file_indices
from lerobot.datasets.video_utils import StreamingVideoEncoder, decode_video_frames, get_video_duration_in_s
from numpy import ndarray
from PIL import Image

from aloe.experience.labels import apply_labels, read_labels
from aloe.experience.schema import (
    ACTION,
    COLUMNS,
    IMAGES,
    PROPOSED_ACTION,
    STATE,
    VECTORS,
    Frames,
    cameras_of,
    check_features,
    features,
)
from aloe.types import Episode, Source

_STAGING: Final = "staging-"
_QUARANTINE: Final = "quarantine"
_PNG_LEVEL: Final = 1  # zlib's default, 6, takes twice as long and saves a seventh


class ExperienceStore:
    """Episodes on disk; append only. Any number of processes may have it open, one of them may append."""

    def __init__(self, root: Path) -> None:
        """Use `create` or `open`."""
        self.root = root
        self._info = load_info(root)
        self._episodes = _committed_episodes(root, self._info.total_episodes)
        self.tasks: list[str] = [] if not self._info.total_tasks else load_tasks(root).index.tolist()
        self._stats = load_stats(root)
        self.labels = read_labels(root)
        self._parsed: list[dict[str, ndarray]] = []
        self._digests: dict[int, str] = {}

    @classmethod
    def create(
        cls,
        root: str | Path,
        *,
        cameras: dict[str, tuple[int, int]],
        state_dim: int,
        action_dim: int,
        fps: int,
        video: bool = False,
        robot_type: str | None = None,
    ) -> "ExperienceStore":
        """A new, empty store. cameras: name -> (h, w). Raises ValueError where `root` is not empty."""
        root = Path(root)
        columns = features(cameras, state_dim, action_dim, video)
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise ValueError(
                f"{root} exists and is not empty; open it with ExperienceStore.open(), or name another folder"
            )
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{root.name}-", dir=root.parent) as aside:
            LeRobotDatasetMetadata.create(
                root.name, fps, columns, robot_type=robot_type, root=Path(aside) / "store", use_videos=video
            )
            os.replace(Path(aside) / "store", root)
        return cls(root)

    @classmethod
    def open(cls, root: str | Path) -> "ExperienceStore":
        """An existing store as of its last committed episode. What a crash left over moves to `quarantine/`.

        Raises ValueError if there is no store here, or it lacks columns or files of committed episodes.
        """
        root = Path(root)
        if not (root / "meta/info.json").is_file():
            raise ValueError(
                f"{root} is no store: it has no meta/info.json; "
                "record one with `aloe demos` or ExperienceStore.create()"
            )
        check_features(load_info(root).features)
        with _locked(root):
            store = cls(root)
            store._set_leftovers_aside()
            store._repair_stats()
        return store

    @property
    def num_episodes(self) -> int:
        return self._info.total_episodes

    @property
    def num_frames(self) -> int:
        return self._info.total_frames

    @property
    def fps(self) -> int:
        return self._info.fps

    @property
    def cameras(self) -> dict[str, tuple[int, int]]:
        """Camera name -> (h, w)."""
        return cameras_of(self._info.features)

    @property
    def state_dim(self) -> int:
        return self._info.features[STATE]["shape"][0]

    @property
    def action_dim(self) -> int:
        return self._info.features[ACTION]["shape"][0]

    @property
    def _video_keys(self) -> list[str]:
        """Columns whose pictures are in an mp4 beside the data file, not in it."""
        return [key for key, feature in self._info.features.items() if feature["dtype"] == "video"]

    @property
    def lengths(self) -> list[int]:
        """Steps of each episode."""
        return [row["length"] for row in self._episodes]

    # ---- writing

    def append(self, episode: Episode) -> int:
        """Write one episode and return its index. On return it is committed; on an error nothing has changed.

        Raises ValueError if the episode does not fit the store, or another process has appended since `open`.
        """
        self._check(episode)
        with _locked(self.root), tempfile.TemporaryDirectory(prefix=_STAGING, dir=self.root) as folder:
            if (found := load_info(self.root).total_episodes) != self.num_episodes:
                raise ValueError(
                    f"{self.root} has {found} episodes, but {self.num_episodes} when it was opened: "
                    "another process appended; open it again, and let only one process append"
                )
            staging = Path(folder) / "new"
            meta, row = self._stage(episode, staging)
            _move_into_place(staging, self.root)
        self._info, self._stats = meta.info, meta.stats
        if episode.task not in self.tasks:
            self.tasks.append(episode.task)
        self._episodes.append(row)
        return row["episode_index"]

    def _check(self, episode: Episode) -> None:
        """Raise ValueError unless the episode has the store's cameras and dimensions."""
        if set(episode.images) != set(self.cameras):
            raise ValueError(f"the episode has cameras {sorted(episode.images)}, the store {sorted(self.cameras)}")
        for camera, (h, w) in self.cameras.items():
            pictures = episode.images[camera]
            if pictures.shape != (episode.steps, h, w, 3) or pictures.dtype != np.uint8:
                raise ValueError(
                    f"camera {camera!r} gave {pictures.dtype} {pictures.shape}, "
                    f"the store needs uint8 {(episode.steps, h, w, 3)}"
                )
        for name, dim in (
            ("state", self.state_dim),
            ("action", self.action_dim),
            ("proposed_action", self.action_dim),
        ):
            if (shape := getattr(episode, name).shape) != (episode.steps, dim):
                raise ValueError(f"{name} has shape {shape}, the store needs {(episode.steps, dim)}")
        missing = np.isnan(episode.proposed_action)
        if (missing.any(1) != missing.all(1)).any() or np.isinf(episode.proposed_action).any():
            raise ValueError("a step's proposed_action must be finite, or NaN throughout where nothing was proposed")
        if not np.isfinite(episode.reward).all():
            raise ValueError("reward holds NaN or infinite values")

    def _stage(self, episode: Episode, staging: Path) -> tuple[LeRobotDatasetMetadata, dict[str, Any]]:
        """Write the episode's files below `staging`, laid out as in the store; the new metadata and row."""
        meta = LeRobotDatasetMetadata.create(self.root.name, self.fps, {}, root=staging)
        meta.info = copy.deepcopy(self._info)
        meta.stats = self._stats
        meta.tasks = pd.DataFrame({"task_index": range(len(self.tasks))}, index=pd.Index(self.tasks, name="task"))
        # LeRobot looks only at where the last episode ends.
        meta.episodes = Dataset.from_list(self._episodes[-1:]) if self._episodes else None
        meta.save_episode_tasks([episode.task])

        tasks = meta.tasks.index.tolist()
        columns = self._columns(episode, tasks.index(episode.task))
        stats = compute_episode_stats({**columns}, self._info.features)
        stats |= {IMAGES + camera: _picture_stats(pictures) for camera, pictures in episode.images.items()}
        row = {"dataset_from_index": self.num_frames, "dataset_to_index": self.num_frames + episode.steps}
        row |= self._next_file("data")
        self._write_data(staging / _path(self._info.data_path, row, "data"), columns, episode)
        if self._video_keys:
            row |= self._write_videos(staging, meta, episode)
        meta.save_episode(self.num_episodes, episode.steps, [episode.task], stats, row)
        meta.finalize()
        (committed,) = _episode_rows(staging)
        return meta, committed

    def _columns(self, episode: Episode, task_index: int) -> dict[str, ndarray]:
        """Every column but the pictures."""
        steps = episode.steps
        proposed = ~np.isnan(episode.proposed_action[:, 0])  # all of a step or none, `_check` has seen to it
        columns = {
            STATE: episode.state,
            ACTION: episode.action,
            PROPOSED_ACTION: np.where(proposed[:, None], episode.proposed_action, episode.action),
            "has_proposal": proposed,
            "next.reward": episode.reward,
            "next.done": episode.terminated,
            "next.truncated": episode.truncated,
            "next.success": episode.success,
            "intervention": episode.source == Source.HUMAN,
            "source": episode.source,
            "policy_version": episode.policy_version,
            "episode_seed": np.full(steps, episode.seed),
            "timestamp": np.arange(steps) / self.fps,
            "frame_index": np.arange(steps),
            "episode_index": np.full(steps, self.num_episodes),
            "index": np.arange(self.num_frames, self.num_frames + steps),
            "task_index": np.full(steps, task_index),
        }
        shapes = {key: (steps,) if self._info.features[key]["shape"] == (1,) else (steps, -1) for key in columns}
        return {
            key: np.asarray(column, self._info.features[key]["dtype"]).reshape(shapes[key])
            for key, column in columns.items()
        }

    def _next_file(self, key: str) -> dict[str, int]:
        """Where a file of this kind (`data`, or `videos/<column>`) goes that follows the last episode's."""
        chunk, file = 0, 0
        if self._episodes:
            last = self._episodes[-1]
            chunk, file = update_chunk_file_indices(
                last[f"{key}/chunk_index"], last[f"{key}/file_index"], self._info.chunks_size
            )
        return {f"{key}/chunk_index": chunk, f"{key}/file_index": file}

    def _write_data(self, path: Path, columns: dict[str, ndarray], episode: Episode) -> None:
        schema = get_hf_features_from_features(self._info.features).arrow_schema
        arrays = []
        for field in schema:
            if field.name.startswith(IMAGES):
                pictures = episode.images[field.name.removeprefix(IMAGES)]
                cells = [{"bytes": _png(picture), "path": f"frame-{t:06d}.png"} for t, picture in enumerate(pictures)]
                arrays.append(pa.array(cells, field.type))
            elif columns[field.name].ndim == 2:
                arrays.append(pa.array(list(columns[field.name]), field.type))
            else:
                arrays.append(pa.array(columns[field.name], field.type))
        path.parent.mkdir(parents=True)
        pq.write_table(pa.table(arrays, schema=schema), path)

    def _write_videos(self, staging: Path, meta: LeRobotDatasetMetadata, episode: Episode) -> dict[str, Any]:
        """One mp4 a camera, with LeRobot's own encoder and settings."""
        keys, settings, row = self._video_keys, RGBEncoderConfig(), {}
        # A shorter queue would drop frames that arrive faster than they are encoded.
        encoder = StreamingVideoEncoder(self.fps, settings, queue_maxsize=episode.steps + 1)
        encoder.start_episode(keys, staging)
        for key in keys:
            for picture in episode.images[key.removeprefix(IMAGES)]:
                encoder.feed_frame(key, picture)
        for key, (encoded, _) in encoder.finish_episode().items():
            place = self._next_file(f"videos/{key}")
            path = staging / _path(self._info.video_path, place, f"videos/{key}", video_key=key)
            path.parent.mkdir(parents=True)
            os.replace(encoded, path)
            encoded.parent.rmdir()
            row |= place | {
                f"videos/{key}/from_timestamp": 0.0,
                f"videos/{key}/to_timestamp": get_video_duration_in_s(path),
            }
            if self.num_episodes == 0:
                meta.update_video_info(key, video_encoder=settings)
        return row

    # ---- reading

    def columns(self) -> Frames:
        """Every step of the store, as labelled when it was opened. Each data file is read once and kept."""
        while len(self._parsed) < self.num_episodes:
            self._parsed.append(self._read_columns(len(self._parsed)))
        parts = self._parsed or [self._no_columns()]
        stacked = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        return apply_labels(Frames(**stacked, tasks=list(self.tasks)), self.labels)

    def pictures(self, index: int) -> dict[str, UInt8[ndarray, "T h w 3"]]:
        """The pictures of one episode, decoded anew at each call (see `cache.FrameCache`)."""
        row, pictures = self._episodes[index], {}
        for camera in self.cameras:
            key = IMAGES + camera
            if key not in self._video_keys:
                cells = self._read(index, [key])[key].combine_chunks().field("bytes")
                pictures[camera] = np.stack([np.asarray(Image.open(io.BytesIO(cell.as_py()))) for cell in cells])
                continue
            path = self.root / _path(self._info.video_path, row, f"videos/{key}", video_key=key)
            start = row[f"videos/{key}/from_timestamp"]
            times = [start + t / self.fps for t in range(row["length"])]
            # PyAV decodes front to back, and LeRobot keeps no decoder of it open on a file that may change.
            frames = decode_video_frames(path, times, 0.5 / self.fps, backend="pyav", return_uint8=True)
            pictures[camera] = frames.permute(0, 2, 3, 1).contiguous().numpy()
        return pictures

    def episode_digest(self, index: int) -> str:
        """SHA-256 of the files that the episode lies in and its place there. Taken once for an open store."""
        if index not in self._digests:
            row = self._episodes[index]
            digest = hashlib.sha256(f"{index} {row['dataset_from_index']} {row['length']}".encode())
            for path in self._files(row):
                with (self.root / path).open("rb") as file:
                    digest.update(hashlib.file_digest(file, "sha256").digest())
            self._digests[index] = digest.hexdigest()
        return self._digests[index]

    def _files(self, row: dict[str, Any]) -> list[Path]:
        """Data file and videos of an episode, relative to the root."""
        return [_path(self._info.data_path, row, "data")] + [
            _path(self._info.video_path, row, f"videos/{key}", video_key=key) for key in self._video_keys
        ]

    def _read(self, index: int, keys: list[str]) -> pa.Table:
        """Columns of one episode. A file that LeRobot recorded may hold several."""
        row = self._episodes[index]
        table = pq.read_table(
            self.root / _path(self._info.data_path, row, "data"), columns=list({*keys, "episode_index"})
        )
        table = table.filter(pc.field("episode_index") == index) if len(table) != row["length"] else table
        if len(table) != row["length"]:
            raise ValueError(
                f"{self.root}: episode {index} should have {row['length']} steps, its file has {len(table)}"
            )
        return table

    def _read_columns(self, index: int) -> dict[str, ndarray]:
        table = self._read(index, [*VECTORS, *COLUMNS.values(), "has_proposal"])
        parts = {name: table[key].to_numpy() for name, key in COLUMNS.items()}
        for key, name in VECTORS.items():
            cells = table[key].combine_chunks()
            flat = cells if self._info.features[key]["shape"] == (1,) else cells.flatten()
            parts[name] = flat.to_numpy().reshape(len(table), -1)
        proposed = table["has_proposal"].to_numpy()
        parts["proposed_action"] = np.where(proposed[:, None], parts["proposed_action"], np.float32(np.nan))
        return parts

    def _no_columns(self) -> dict[str, ndarray]:
        types = {key: self._info.features[key]["dtype"] for key in [*COLUMNS.values(), *VECTORS]}
        parts = {name: np.zeros(0, types[key]) for name, key in COLUMNS.items()}
        return parts | {
            name: np.zeros((0, self._info.features[key]["shape"][0]), types[key]) for key, name in VECTORS.items()
        }

    # ---- after a crash

    def _set_leftovers_aside(self) -> None:
        """Move what no committed episode refers to into `quarantine/`; ValueError if a file lacks."""
        committed = {
            path
            for row in self._episodes
            for path in [*self._files(row), _path(DEFAULT_EPISODES_PATH, row, "meta/episodes")]
        }
        found = {
            path.relative_to(self.root)
            for pattern in (
                "data/*/*.parquet",
                "videos/*/*/*.mp4",
                "meta/episodes/*/*.parquet",
                f"{_STAGING}*",
            )
            for path in self.root.glob(pattern)
        }
        if missing := sorted(committed - found):
            raise ValueError(
                f"{self.root} lacks {len(missing)} files of committed episodes, the first {missing[0]}; "
                "copy the store anew, or restore them from a backup"
            )
        if not (leftovers := sorted(found - committed)):
            return
        aside = next(path for n in count() if not (path := self.root / _QUARANTINE / f"{n:03d}").exists())
        for path in leftovers:
            (aside / path).parent.mkdir(parents=True, exist_ok=True)
            os.replace(self.root / path, aside / path)
        print(f"{self.root}: an append was cut short; moved {len(leftovers)} files of no episode to {aside}")

    def _repair_stats(self) -> None:
        """`stats.json` is replaced just before the commit: a crash in between leaves it one episode ahead."""
        counted = 0 if self._stats is None else int(self._stats["frame_index"]["count"].item())
        if counted == self.num_frames:
            return
        rows = _episode_rows(self.root, statistics=True)[: self.num_episodes]
        self._stats = aggregate_stats([_unflatten_stats(row) for row in rows]) if rows else None
        with tempfile.TemporaryDirectory(prefix=_STAGING, dir=self.root) as folder:
            write_stats(self._stats or {}, Path(folder))
            os.replace(Path(folder) / STATS_PATH, self.root / STATS_PATH)


@contextlib.contextmanager
def _locked(root: Path) -> Iterator[None]:
    """One appending or tidying process at a time; the kernel lifts the lock of a process that dies."""
    handle = os.open(root, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _move_into_place(staging: Path, root: Path) -> None:
    """The commit. Nothing refers to the new files until `info.json` counts them; it comes last."""
    order = ["data/*/*", "videos/*/*/*", "meta/episodes/*/*", "meta/tasks.parquet", STATS_PATH, INFO_PATH]
    for pattern in order:
        for path in staging.glob(pattern):
            target = root / path.relative_to(staging)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)


def _path(template: str | None, row: dict[str, Any], kind: str, **keys: str) -> Path:
    """A file's place, by LeRobot's template and a row of `meta/episodes`, which numbers each kind."""
    assert template is not None
    return Path(template.format(chunk_index=row[f"{kind}/chunk_index"], file_index=row[f"{kind}/file_index"], **keys))


def _episode_rows(root: Path, statistics: bool = False) -> list[dict[str, Any]]:
    """Rows of `meta/episodes` in order, committed or not. A file that cannot be read has no rows."""
    rows = []
    for path in sorted(root.glob("meta/episodes/*/*.parquet")):
        try:
            file = pq.ParquetFile(path)
        except pa.ArrowInvalid:  # half a file, of a recorder that died
            continue
        names = file.schema_arrow.names
        rows += file.read([name for name in names if name.startswith("stats/") == statistics]).to_pylist()
    return rows


def _committed_episodes(root: Path, episodes: int) -> list[dict[str, Any]]:
    """Rows of the first `episodes` episodes; raises ValueError if one is missing."""
    rows = {row["episode_index"]: row for row in _episode_rows(root)}
    if missing := [index for index in range(episodes) if index not in rows]:
        raise ValueError(
            f"{root} should have {episodes} episodes, but meta/episodes lacks {len(missing)} of them, "
            f"the first number {missing[0]}; copy the store anew, or restore the folder from a backup"
        )
    return [rows[index] for index in range(episodes)]


def _unflatten_stats(row: dict[str, Any]) -> dict[str, dict[str, ndarray]]:
    """`stats/<column>/<statistic>` -> {column: {statistic: array}}"""
    return cast_stats_to_numpy({name.removeprefix("stats/"): value for name, value in row.items()})


def _picture_stats(pictures: UInt8[ndarray, "T h w 3"]) -> dict[str, ndarray]:
    """As LeRobot computes them: over a sample of the pictures, a channel, in [0, 1], shape (3, 1, 1)."""
    sample = pictures[sample_indices(len(pictures))].transpose(0, 3, 1, 2)
    sample = np.stack([auto_downsample_height_width(picture) for picture in sample])
    stats = get_feature_stats(sample, axis=(0, 2, 3), keepdims=True)
    return {name: value if name == "count" else value[0] / 255.0 for name, value in stats.items()}


def _png(picture: UInt8[ndarray, "h w 3"]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG", compress_level=_PNG_LEVEL)
    return file.getvalue()
