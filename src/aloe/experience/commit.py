"""How an episode becomes part of a store, and what happens to one that did not.

An episode's files are written in a folder aside, forced onto the disk, and moved into place one by one, `meta/info.json`
last. That last move is the commit: `info.json` says how many episodes there are, and what lies beyond that number is
left over from a commit that was cut short. `docs/store.md` says why this holds.
"""

import glob
import os
import tempfile
from collections.abc import Iterable
from itertools import count
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow.parquet as pq
from lerobot.datasets.compute_stats import aggregate_stats
from lerobot.datasets.io_utils import load_stats, write_stats
from lerobot.datasets.utils import INFO_PATH, STATS_PATH, DatasetInfo

from aloe.experience.checksums import seal_path
from aloe.experience.header import UNREADABLE
from aloe.experience.index import Row, home, statistics, without_uncommitted

STAGING: Final = "staging-"
QUARANTINE: Final = "quarantine"
# Nothing refers to what is new before `info.json` counts it. Checksums come after the rows that they belong to.
_ORDER: Final = (
    "data/*/*",
    "videos/*/*/*",
    "meta/episodes/*/*",
    "meta/checksums/*/*",
    "meta/tasks.parquet",
    STATS_PATH,
)

_STATISTICS: Final = {"min", "max", "mean", "std", "count"}  # what LeRobot cannot do without
Stats = dict[str, dict[str, Any]]


def commit(staging: Path, root: Path) -> None:
    """Moves files, laid out as in the store, into place. A power failure at any point leaves all of it or none."""
    paths = [path for pattern in _ORDER for path in staging.glob(pattern)]
    for path in [*paths, staging / INFO_PATH]:
        sync(path)
    targets = [root / path.relative_to(staging) for path in paths]
    for path, target in zip(paths, targets, strict=True):
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(path, target)
    sync_folders(targets, root)
    os.replace(staging / INFO_PATH, root / INFO_PATH)
    sync(root / "meta")


def sync(path: Path) -> None:
    """Force a file's content, or a folder's entries, onto the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_folders(paths: Iterable[Path], root: Path) -> None:
    """Force onto the disk that these files are in their folders, and those in theirs, up to the root."""
    folders = {folder for path in paths for folder in path.parents if folder.is_relative_to(root)}
    for folder in sorted(folders, reverse=True):
        sync(folder)


def set_leftovers_aside(root: Path, info: DatasetInfo, rows: list[Row], files: set[str], mixed: list[str]) -> None:
    """Move what belongs to no committed episode into `quarantine/`, and say so in a line.

    files: those of the committed episodes, relative to the root. mixed: files of `meta/episodes` that hold rows of
    committed episodes and others; they are copied, and keep the committed ones.
    """
    kept = files | {home(row) for row in rows} | {seal_path(row) for row in rows}
    patterns = ("data/*/*.parquet", "videos/*/*/*.mp4", "meta/episodes/*/*.parquet", "meta/checksums/*/*.json")
    found = {path for pattern in (*patterns, f"{STAGING}*") for path in glob.glob(pattern, root_dir=root)}
    leftovers = sorted(found - kept)
    if not leftovers and not mixed:
        return
    aside = next(path for n in count() if not (path := root / QUARANTINE / f"{n:03d}").exists())
    for path in [*leftovers, *mixed]:
        (aside / path).parent.mkdir(parents=True, exist_ok=True)
    for path in mixed:
        (aside / path).write_bytes((root / path).read_bytes())
        sync(aside / path)
        with tempfile.TemporaryDirectory(prefix=STAGING, dir=root) as folder:
            new = Path(folder) / "rows.parquet"
            pq.write_table(without_uncommitted(root / path, info.total_episodes), new)
            sync(new)
            os.replace(new, root / path)
    for path in leftovers:
        os.replace(root / path, aside / path)
    sync_folders([place / path for place in (root, aside) for path in [*leftovers, *mixed]], root)
    moved = len(leftovers) + len(mixed)
    print(f"{root}: an append was cut short; moved {moved} files of no episode to {aside}")


def other_version(root: Path) -> Path:
    """Where a compaction builds the new store, beside the old one. Right after they changed places it holds the old."""
    return root.parent / f".{root.name}-compacting"


def set_other_version_aside(root: Path) -> Path | None:
    """Move into `quarantine/` what a compaction has left beside the store, and return where it is; None if nothing."""
    root = root.resolve()
    if not (other := other_version(root)).exists():
        return None
    if (other / QUARANTINE).exists() and not (root / QUARANTINE).exists():
        os.replace(other / QUARANTINE, root / QUARANTINE)
    (root / QUARANTINE).mkdir(exist_ok=True)
    aside = next(path for n in count() if not (path := root / QUARANTINE / f"{n:03d}").exists())
    os.replace(other, aside)
    for folder in (root / QUARANTINE, root, root.parent):
        sync(folder)
    return aside


def settled_stats(root: Path, info: DatasetInfo, rows: list[Row]) -> Stats | None:
    """`stats.json`, which is replaced just before the commit: a crash in between leaves it one episode ahead."""
    try:
        stats = load_stats(root) or None
        counted = 0 if stats is None else int(np.sum(stats["frame_index"]["count"]))
        for column, values in (stats or {}).items():
            shapes = {np.shape(value) for name, value in values.items() if name != "count"}
            numbers = all(np.asarray(value).dtype.kind in "fiu" for value in values.values())
            if len(shapes) > 1 or not numbers or not set(values) >= _STATISTICS:
                raise ValueError(f"those of {column!r} are not complete, or no numbers")
    except UNREADABLE as error:
        raise ValueError(
            f"{root}: {STATS_PATH} is damaged ({error}); move it away, and it is made anew from the episodes when you open "
            "the store"
        ) from error
    if counted == info.total_frames:
        return stats
    stats = None
    for part in statistics(root, rows):
        stats = aggregate_stats([*([] if stats is None else [stats]), *part])
    with tempfile.TemporaryDirectory(prefix=STAGING, dir=root) as folder:
        write_stats(stats or {}, Path(folder))
        sync(Path(folder) / STATS_PATH)
        os.replace(Path(folder) / STATS_PATH, root / STATS_PATH)
    return stats
