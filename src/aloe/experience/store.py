"""What happened, on disk: a LeRobot v3 dataset that is whole after every episode.

LeRobot's own writer keeps the files of a recording open and loses all of it when the process dies. Here every episode
has files of its own, and is there when `meta/info.json` counts it (`commit.py`, `docs/store.md`).

    data/chunk-000/file-007.parquet            the steps, pictures inside as PNG (or videos/... as mp4)
    meta/episodes/chunk-000/file-000.parquet   where each episode's steps are, and their statistics (`index.py`)
    meta/checksums/chunk-000/file-000.json     SHA-256 of what the episodes lie in; not LeRobot's (`checksums.py`)
    meta/tasks.parquet, meta/stats.json        replaced as a whole
    meta/info.json                             the commit
    quarantine/<number>/...                    what was left over; nothing is ever deleted
    .writer.json                               the lock of the process that writes (`lock.py`)
"""

import glob
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from jaxtyping import UInt8
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.io_utils import load_info, load_tasks
from lerobot.datasets.utils import INFO_PATH, DatasetInfo
from lerobot.datasets.video_utils import decode_video_frames
from numpy import ndarray
from PIL import Image

from aloe.experience import checksums
from aloe.experience.checksums import Damage
from aloe.experience.commit import Stats, commit, set_leftovers_aside, settled_stats, sync, sync_folders
from aloe.experience.index import Row, place, read_rows
from aloe.experience.labels import apply_labels, read_labels
from aloe.experience.lock import WriterLock
from aloe.experience.pictures import Pictures
from aloe.experience.recorder import Recorder
from aloe.experience.schema import ACTION, COLUMNS, IMAGES, STATE, VECTORS, Frames, cameras_of, check_features, features
from aloe.types import Episode

# What LeRobot's code and Arrow make of damaged metadata. Arrow says OSError where it cannot make sense of a footer.
_MALFORMED: Final = (
    json.JSONDecodeError,
    UnicodeDecodeError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    OSError,
    pa.ArrowException,
)


class ExperienceStore:
    """Episodes on disk; append only. One process writes (`create`, `open`), any number read (`read`).

    What is open shows the episodes that were committed when it was opened, and those that it has appended itself.
    """

    def __init__(self, root: Path, lock: WriterLock | None) -> None:
        """Use `create`, `open` or `read`. lock: None to read only."""
        self.root = root
        self._lock = lock
        try:
            self._info = _load_info(root)
            self._episodes, mixed = read_rows(root, self._info)
            self.tasks: list[str] = _tasks(root, self._info)
            self._check_tasks_and_files()
        except _MALFORMED as error:
            raise ValueError(f"{root}: meta/ is damaged ({error!r}); restore the folder from a backup") from error
        self._stats: Stats | None = None
        self._settled = False
        self.labels = read_labels(root)
        self._parsed: list[dict[str, ndarray]] = []
        self._digests: dict[int, str] = {}
        self._seals: dict[str, checksums.Seals] = {}
        self._checked: set[str] = set()
        if lock is not None:
            self._settle(mixed)

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
            new = [path for path in (Path(aside) / "store").rglob("*") if path.is_file()]
            for path in new:
                sync(path)
            sync_folders(new, Path(aside) / "store")
            os.replace(Path(aside) / "store", root)
            sync(root.parent)
        return cls(root, WriterLock.acquire(root))

    @classmethod
    def open(cls, root: str | Path) -> "ExperienceStore":
        """An existing store as of its last committed episode, to append to. What a crash left over moves to `quarantine/`.

        This process is the store's only writer until `close`, or until nothing refers to the store any more.

        Raises:
            ValueError: there is no store here, it lacks columns or files of committed episodes, or another process
                writes to it.
            OSError: the folder cannot be written.
        """
        root = _existing(root)
        _load_info(root)  # a folder that is no store gets no lock file
        return cls(root, WriterLock.acquire(root))

    @classmethod
    def read(cls, root: str | Path) -> "ExperienceStore":
        """An existing store as of its last committed episode, to read only: also while another process appends, and on a
        medium that cannot be written. Locks and moves nothing.

        Raises ValueError if there is no store here, or it lacks columns or files of committed episodes.
        """
        return cls(_existing(root), None)

    def close(self) -> None:
        """Let another process write, unless this one has the store open a second time. Reading goes on."""
        self._lock = None

    def __enter__(self) -> "ExperienceStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

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

    def begin(self) -> Pictures:
        """The next episode's pictures, to be given step by step while it is recorded, and then to `append` with the rest.
        To drop the episode, close them.

        Raises ValueError and OSError as `append` does.
        """
        self._check_writing()
        self._settle()
        return Pictures(self.root, self._info)

    def append(self, episode: Episode, pictures: Pictures | None = None) -> int:
        """Write one episode and return its index. On return it is committed and on the disk.

        pictures: those of `begin`, all steps given; the episode's own `images` are empty then. They are closed here.

        Raises:
            ValueError: the episode does not fit the store, the store is open for reading, or another store of this process
                has appended to it since.
            OSError: the episode could not be written, and is lost; all committed ones are as they were, and the next can
                be appended once the cause is gone.
        """
        self._check_writing()
        self._check(episode, pictures)
        try:
            self._settle()
            with Pictures(self.root, self._info) if pictures is None else pictures as film:
                for t in range(episode.steps if pictures is None else 0):
                    film.add({camera: images[t] for camera, images in episode.images.items()})
                meta, row = self._write(episode, film)
        except OSError as error:
            raise OSError(
                error.errno,
                f"{self.root}: episode {self.num_episodes} is lost, it could not be written: {error.strerror or error}; "
                "the episodes before it are intact, and you can go on when the cause is gone",
            ) from error
        self._info, self._stats = meta.info, meta.stats
        if episode.task not in self.tasks:
            self.tasks.append(episode.task)
        self._episodes.append({key: value for key, value in row.items() if not key.startswith("stats/")})
        self._settled = True
        return row["episode_index"]

    def _check_writing(self) -> None:
        if self._lock is None:
            raise ValueError(f"{self.root} is open for reading; open it with ExperienceStore.open() to append")
        self._lock.check()
        if (found := load_info(self.root).total_episodes) != self.num_episodes:
            raise ValueError(
                f"{self.root} has {found} episodes, but {self.num_episodes} when it was opened: something else appended; "
                "open it again, and append through one ExperienceStore only"
            )

    def _write(self, episode: Episode, pictures: Pictures) -> tuple[LeRobotDatasetMetadata, Row]:
        last = self._episodes[-1] if self._episodes else None
        recorder = Recorder(root=self.root, info=self._info, stats=self._stats, tasks=self.tasks, last=last)
        staging = pictures.folder / "new"
        meta, row = recorder.stage(episode, pictures, staging)
        self._settled = False
        commit(staging, self.root)
        return meta, row

    def _settle(self, mixed: list[str] | None = None) -> None:
        """Tidy up after a commit that was cut short, another process's or this one's. mixed: see `index.read_rows`."""
        if self._settled:
            return
        if mixed is None:
            _, mixed = read_rows(self.root, self._info)
        files = {path for row in self._episodes for path in self._files(row)}
        set_leftovers_aside(self.root, self._info, self._episodes, files, mixed)
        self._stats = settled_stats(self.root, self._info, self._episodes)
        self._settled = True

    def _check(self, episode: Episode, film: Pictures | None) -> None:
        """Raise ValueError unless the episode has the store's cameras and dimensions."""
        if film is not None and (episode.images or film.steps != episode.steps):
            raise ValueError(
                f"pictures of {film.steps} steps were given for an episode of {episode.steps}, whose own must be empty"
            )
        if film is None and set(episode.images) != set(self.cameras):
            raise ValueError(f"the episode has cameras {sorted(episode.images)}, the store {sorted(self.cameras)}")
        for camera, (h, w) in self.cameras.items() if film is None else ():
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
            path = self._intact(index, place(self._info.video_path, row, f"videos/{key}", video_key=key))
            start = row[f"videos/{key}/from_timestamp"]
            times = [start + t / self.fps for t in range(row["length"])]
            # PyAV decodes front to back, and LeRobot keeps no decoder of it open on a file that may change.
            frames = decode_video_frames(path, times, 0.5 / self.fps, backend="pyav", return_uint8=True)
            pictures[camera] = frames.permute(0, 2, 3, 1).contiguous().numpy()
        return pictures

    def episode_digest(self, index: int) -> str:
        """SHA-256 of the files that the episode lies in and its place there. Taken once for an open store, from the
        checksums where there are some."""
        if index not in self._digests:
            row, known = self._episodes[index], self._checksums(index)
            digest = hashlib.sha256(f"{index} {row['dataset_from_index']} {row['length']}".encode())
            for path in self._files(row):
                checksum = checksums.file_checksum(self.root / path) if known is None else known[path]
                digest.update(bytes.fromhex(checksum))
            self._digests[index] = digest.hexdigest()
        return self._digests[index]

    def has_checksums(self, index: int) -> bool:
        """Whether damage to the episode can be found: not where LeRobot wrote it, or an ALOE without checksums."""
        return self._checksums(index) is not None

    def verify(self) -> Iterator[Damage]:
        """Read every file and compare it with its checksum; what is damaged, one after the other.

        An episode without checksums (`has_checksums`) is only looked at as far as it can be read and is complete.
        """
        files = [self._files(row) for row in self._episodes]
        yield from checksums.verify(self.root, self._info, self._episodes, files)

    def _checksums(self, index: int) -> dict[str, str] | None:
        """File -> SHA-256. What a writer has appended since is in the same file, so it is read again for a new episode."""
        path = checksums.seal_path(self._episodes[index])
        if str(index) not in self._seals.get(path, {}):
            seals = checksums.read_seals(self.root, path)
            # What a commit that was cut short has left there is not of the episode that gets its number.
            self._seals[path] = {key: value for key, value in seals.items() if int(key) < self.num_episodes}
        known = self._seals[path].get(str(index))
        return None if known is None else known["files"]

    def _intact(self, index: int, path: str) -> Path:
        """A file of an episode, compared with its checksum the first time. Raises ValueError where it is damaged."""
        if path not in self._checked and (known := self._checksums(index)) is not None:
            problem = checksums.damage_of_file(self.root, path, known.get(path, ""))
            if problem is not None:
                raise ValueError(
                    f"{self.root}: {path} of episode {index} {problem}; restore it from a backup "
                    "(`aloe data verify` names every damaged file)"
                )
            self._checked.add(path)
        return self.root / path

    def _check_tasks_and_files(self) -> None:
        """Raise ValueError unless everything that the committed episodes refer to is there."""
        remedy = "copy the store anew, or restore them from a backup"
        if len(self.tasks) != self._info.total_tasks:
            raise ValueError(
                f"{self.root}: {INFO_PATH} counts {self._info.total_tasks} tasks, there are {len(self.tasks)}; {remedy}"
            )
        if unknown := {task for row in self._episodes for task in row["tasks"]} - set(self.tasks):
            raise ValueError(f"{self.root}: meta/tasks.parquet lacks tasks of episodes, {sorted(unknown)}; {remedy}")
        found = {
            path
            for pattern in ("data/*/*.parquet", "videos/*/*/*.mp4")
            for path in glob.glob(pattern, root_dir=self.root)
        }
        if missing := sorted({path for row in self._episodes for path in self._files(row)} - found):
            raise ValueError(
                f"{self.root} lacks {len(missing)} files of committed episodes, the first {missing[0]}; {remedy}"
            )

    def _files(self, row: Row) -> list[str]:
        """Data file and videos of an episode, relative to the root."""
        return [place(self._info.data_path, row, "data")] + [
            place(self._info.video_path, row, f"videos/{key}", video_key=key) for key in self._video_keys
        ]

    def _read(self, index: int, keys: list[str]) -> pa.Table:
        """Columns of one episode. A file that LeRobot recorded may hold several."""
        row = self._episodes[index]
        path = place(self._info.data_path, row, "data")
        try:
            table = pq.read_table(self._intact(index, path), columns=list({*keys, "episode_index"}))
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"{self.root}: {path} of episode {index} cannot be read: {error}") from error
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


def _existing(root: str | Path) -> Path:
    if not (Path(root) / INFO_PATH).is_file():
        raise ValueError(
            f"{root} is no store: it has no meta/info.json; record one with `aloe demos` or ExperienceStore.create()"
        )
    return Path(root)


def _load_info(root: Path) -> DatasetInfo:
    """`meta/info.json`. Raises ValueError unless it is that of a store, and stays within its folder."""
    try:
        info = load_info(root)
        check_features(info.features)
        templates = [Path(template) for template in (info.data_path, info.video_path) if template is not None]
    except _MALFORMED as error:
        raise ValueError(f"{root}: {INFO_PATH} is damaged ({error!r}); restore it from a backup") from error
    outside = any(path.is_absolute() or ".." in path.parts for path in templates)
    if outside or any("/" in key or key == ".." for key in info.features):
        raise ValueError(f"{root}: {INFO_PATH} names files outside its folder; do not use this dataset")
    return info


def _tasks(root: Path, info: DatasetInfo) -> list[str]:
    """The tasks of the committed episodes: a commit replaces their file just before `info.json`."""
    return load_tasks(root).index.tolist()[: info.total_tasks] if info.total_tasks else []
