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

import contextlib
import hashlib
import io
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import UInt8
from lerobot.datasets.dataset_metadata import LeRobotDatasetMetadata
from lerobot.datasets.io_utils import load_info
from numpy import ndarray
from PIL import Image

from aloe.experience import checksums
from aloe.experience.checksums import Damage
from aloe.experience.commit import (
    Stats,
    commit,
    set_leftovers_aside,
    set_other_version_aside,
    settled_stats,
    sync,
    sync_folders,
)
from aloe.experience.header import UNREADABLE, existing, inode, read_info, read_tasks, readable
from aloe.experience.index import Row, check_references, place, read_rows, steps_of
from aloe.experience.labels import apply_labels, read_labels
from aloe.experience.lock import WriterLock
from aloe.experience.parquet import read_table
from aloe.experience.pictures import Pictures
from aloe.experience.recorder import Recorder
from aloe.experience.schema import (
    ACTION,
    IMAGES,
    NUMBERS,
    STATE,
    Frames,
    cameras_of,
    check_episode,
    coarseness,
    features,
    no_steps,
    parse,
)
from aloe.experience.videos import decode_video  # which an mp4 without a codec does not crash
from aloe.types import Episode


class ExperienceStore:
    """Episodes on disk; append only. One process writes (`create`, `open`), any number read (`read`).

    What is open shows the episodes that were committed when it was opened, and those that it has appended itself.
    """

    def __init__(self, root: Path, lock: WriterLock | None) -> None:
        """Use `create`, `open` or `read`. lock: None to read only."""
        self.root = root
        self._lock = lock
        self._inode = inode(root)
        with readable(root, "meta/"):
            self._info = read_info(root)
            self._episodes, mixed = read_rows(root, self._info)
            self.tasks = read_tasks(root, self._info)
            check_references(root, self._info, self.tasks, self._episodes, self._files)
        self._stats: Stats | None = None
        self._settled = False
        self.labels = read_labels(root)
        self._parsed: list[dict[str, ndarray]] = []
        self._last_read: tuple[str, pa.Table] | None = None
        self._digests: dict[int, str] = {}
        self._seals: dict[str, checksums.Seals] = {}
        self._checked: set[str] = set()
        if lock is not None:
            with readable(root, "meta/"):
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
                f"{root} exists and is not empty; name another folder; a store is opened with ExperienceStore.open()"
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
        root = existing(root)
        read_info(root)  # a folder that is no store gets no lock file
        return cls(root, WriterLock.acquire(root))

    @classmethod
    def read(cls, root: str | Path) -> "ExperienceStore":
        """An existing store as of its last committed episode, to read only: also while another process appends, and on a
        medium that cannot be written. Locks and moves nothing.

        Raises ValueError if there is no store here, or it lacks columns or files of committed episodes.
        """
        root = existing(root)
        while True:
            before = inode(root)
            try:
                return cls(root, None)
            except ValueError:
                if inode(root) == before:
                    raise  # else it was compacted meanwhile, and something was read before, something after

    def close(self) -> None:
        """Let another process write, unless this one has the store open a second time. Reading goes on."""
        self._lock = None

    def __str__(self) -> str:
        return str(self.root)

    def __enter__(self) -> "ExperienceStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def shares(self) -> None:
        """Every window counts alike."""

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
        check_episode(
            episode, self.cameras, self.state_dim, self.action_dim, None if pictures is None else pictures.steps
        )
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
        if inode(self.root) != self._inode:
            raise ValueError(f"{self.root} was compacted since it was opened; open it again")
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
        if (aside := set_other_version_aside(self.root)) is not None:
            print(f"{self.root}: a compaction was cut short; moved the version that is not in use to {aside}")
        files = {path for row in self._episodes for path in self._files(row)}
        set_leftovers_aside(self.root, self._info, self._episodes, files, mixed)
        self._stats = settled_stats(self.root, self._info, self._episodes)
        self._settled = True

    # ---- reading

    def columns(self) -> Frames:
        """Every step of the store, as labelled when it was opened. Each data file is read once and kept."""
        while len(self._parsed) < self.num_episodes:
            index = len(self._parsed)
            with self._reading(index, place(self._info.data_path, self._episodes[index], "data")):
                self._parsed.append(self._numbers(index))
        self._last_read = None
        parts = self._parsed or [no_steps(self._info.features)]
        stacked = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        try:
            return apply_labels(Frames(**stacked, tasks=list(self.tasks)), self.labels)
        except ValueError as error:
            raise ValueError(f"{self.root}: {error}") from error

    def _numbers(self, index: int) -> dict[str, ndarray]:
        """One episode of `columns`, compared with the checksum of these columns alone: not of the whole file, which may
        hold the pictures, too."""
        path = place(self._info.data_path, self._episodes[index], "data")
        if self._last_read is None or self._last_read[0] != path:
            table = read_table(self.root / path, columns=[*NUMBERS])
            self._last_read = (path, table)
        parts = parse(self._steps(index, self._last_read[1]), self._info.features)
        seal = self._seal(index)
        if seal is not None and checksums.numbers_checksum(parts) != seal["numbers"]:
            raise self._unreadable(index, path, "is not what was recorded (its columns differ)")
        return parts

    def pictures(self, index: int, every: int = 1, enough: int | None = None) -> dict[str, UInt8[ndarray, "T h w 3"]]:
        """The pictures of one episode, decoded anew at each call (see `cache.FrameCache`).

        every: of every n-th step. enough: pixels of the longer side; of larger pictures every n-th row and column comes.
        """
        row, pictures = self._episodes[index], {}
        steps = range(0, row["length"], every)
        for camera, size in self.cameras.items():
            key, nth = IMAGES + camera, coarseness(size, enough)
            path = place(self._info.data_path, row, "data")
            if key in self._video_keys:
                path = place(self._info.video_path, row, f"videos/{key}", video_key=key)
            with self._reading(index, path):
                is_video = key in self._video_keys
                shown = (self._decode if is_video else self._unpack)(index, path, key, steps, nth)
            if shown.shape != (len(steps), *(-(-pixels // nth) for pixels in size), 3):
                raise self._unreadable(index, path, f"has pictures of shape {shown.shape}, not {(*size, 3)}")
            pictures[camera] = shown
        return pictures

    def _unpack(self, index: int, path: str, key: str, steps: range, nth: int) -> UInt8[ndarray, "T h w 3"]:
        only = [("episode_index", "=", index)]
        table = read_table(self._intact(index, path), columns=[key, "episode_index"], filters=only)
        cells = self._steps(index, table)[key].combine_chunks().field("bytes")
        return np.stack([np.asarray(Image.open(io.BytesIO(cells[t].as_py())))[::nth, ::nth] for t in steps])

    def _decode(self, index: int, path: str, key: str, steps: range, nth: int) -> UInt8[ndarray, "T h w 3"]:
        file, start = self._intact(index, path), self._episodes[index][f"videos/{key}/from_timestamp"]
        size = self.cameras[key.removeprefix(IMAGES)]
        # PyAV decodes front to back, and LeRobot keeps no decoder of it open on a file that may change.
        return decode_video(file, [start + t / self.fps for t in steps], self.fps, size, nth)

    def episode_digest(self, index: int) -> str:
        """SHA-256 of the files that the episode lies in and its place there. Taken once for an open store, from the
        checksums where there are some."""
        if index not in self._digests:
            row, seal = self._episodes[index], self._seal(index)
            digest = hashlib.sha256(f"{index} {row['dataset_from_index']} {row['length']}".encode())
            for path in self._files(row):
                with self._reading(index, path):
                    checksum = checksums.file_checksum(self.root / path) if seal is None else seal["files"][path]
                digest.update(bytes.fromhex(checksum))
            self._digests[index] = digest.hexdigest()
        return self._digests[index]

    def has_checksums(self, index: int) -> bool:
        """Whether damage to the episode can be found: not where LeRobot wrote it, or an ALOE without checksums."""
        return self._seal(index) is not None

    def verify(self) -> Iterator[Damage]:
        """Read every file and compare it with its checksum; what is damaged, one after the other.

        An episode without checksums (`has_checksums`) is only looked at as far as it can be read and is complete.
        """
        files = [self._files(row) for row in self._episodes]
        yield from checksums.verify(self.root, self._info, self._episodes, files)

    def _seal(self, index: int) -> dict[str, Any] | None:
        """Checksums of an episode. For one that was appended since, their file is read again."""
        path = checksums.seal_path(self._episodes[index])
        if str(index) not in self._seals.get(path, {}):
            seals = checksums.read_seals(self.root, path)
            # What a commit that was cut short has left there is not of the episode that gets its number.
            self._seals[path] = {key: value for key, value in seals.items() if int(key) < self.num_episodes}
        return self._seals[path].get(str(index))

    def _intact(self, index: int, path: str) -> Path:
        """A file of an episode, compared with its checksum the first time. Raises ValueError where it is damaged."""
        if path not in self._checked and (seal := self._seal(index)) is not None:
            problem = checksums.damage_of_file(self.root, path, seal["files"].get(path, ""))
            if problem is not None:
                raise self._unreadable(index, path, problem)
            self._checked.add(path)
        return self.root / path

    def _files(self, row: Row) -> list[str]:
        """Data file and videos of an episode, relative to the root."""
        return [place(self._info.data_path, row, "data")] + [
            place(self._info.video_path, row, f"videos/{key}", video_key=key) for key in self._video_keys
        ]

    def _steps(self, index: int, table: pa.Table) -> pa.Table:
        """The rows of one episode in a data file's. Raises ValueError where it has another number of them."""
        table, length = steps_of(table, index), self._episodes[index]["length"]
        if len(table) != length:
            raise ValueError(f"{self.root}: episode {index} should have {length} steps, its file has {len(table)}")
        return table

    @contextlib.contextmanager
    def _reading(self, index: int, path: str) -> Iterator[None]:
        try:
            yield
        except UNREADABLE as error:
            if type(error) is ValueError and str(self.root) in str(error) and inode(self.root) == self._inode:
                raise
            raise self._unreadable(index, path, f"cannot be read ({error!r})") from error

    def _unreadable(self, index: int, path: str, problem: str) -> ValueError:
        if inode(self.root) != self._inode:
            return ValueError(f"{self.root} was compacted or replaced since it was opened; open it again")
        return ValueError(
            f"{self.root}: {path} of episode {index} {problem}; restore it from a backup "
            "(`aloe data verify` names every damaged file); or, if another tool changed it on purpose, move meta/checksums "
            "away"
        )
