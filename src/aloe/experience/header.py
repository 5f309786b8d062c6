"""What a store says of itself: `meta/info.json` and its tasks, checked before they are believed."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import av
import pyarrow as pa
from lerobot.datasets.io_utils import load_info, load_tasks
from lerobot.datasets.utils import INFO_PATH, DatasetInfo
from PIL import Image

from aloe.experience.schema import check_features

UNREADABLE: Final = (
    pa.ArrowException,
    av.FFmpegError,
    Image.DecompressionBombError,
    AttributeError,
    IndexError,
    KeyError,
    OSError,
    OverflowError,
    RuntimeError,
    SyntaxError,
    TypeError,
    ValueError,
)
"""What LeRobot's code, numpy, Arrow and the decoders make of damaged files."""


@contextlib.contextmanager
def readable(root: Path, path: str) -> Iterator[None]:
    """What goes wrong while `path` is read becomes a ValueError that names it, unless it says already where it was."""
    try:
        yield
    except UNREADABLE as error:
        if isinstance(error, ValueError | OSError) and str(root) in str(error):
            raise
        raise ValueError(f"{root}: {path} is damaged ({error!r}); restore it from a backup") from error


def existing(root: str | Path) -> Path:
    if not (Path(root) / INFO_PATH).is_file():
        raise ValueError(
            f"{root} is no store: it has no meta/info.json; record one with `aloe demos` or ExperienceStore.create()"
        )
    return Path(root)


def inode(root: Path) -> int:
    """Another one after a compaction, which replaces the folder."""
    return root.stat().st_ino


def read_info(root: Path) -> DatasetInfo:
    """`meta/info.json`. Raises ValueError unless it is that of a store, and stays within its folder."""
    with readable(root, INFO_PATH):
        info = load_info(root)
        templates = [Path(template) for template in (info.data_path, info.video_path) if template is not None]
        try:
            check_features(info.features)
        except ValueError as error:
            raise ValueError(f"{root}: {error}") from error
    outside = any(path.is_absolute() or ".." in path.parts for path in templates)
    if info.video_path is None and any(feature["dtype"] == "video" for feature in info.features.values()):
        raise ValueError(f"{root}: {INFO_PATH} is damaged (it has videos, but no video_path); restore it from a backup")
    if outside or any("/" in key or key == ".." for key in info.features):
        raise ValueError(f"{root}: {INFO_PATH} names files outside its folder; do not use this dataset")
    return info


def read_tasks(root: Path, info: DatasetInfo) -> list[str]:
    """The tasks of the committed episodes: a commit replaces their file just before `info.json`."""
    return load_tasks(root).index.tolist()[: info.total_tasks] if info.total_tasks else []
