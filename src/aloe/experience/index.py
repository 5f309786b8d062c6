"""`meta/episodes`: one row for every episode, with the place of its steps and pictures, and its statistics.

LeRobot finds the row of an episode by its position in all files together. A file grows by a row with each episode, up to
`ROWS` of them: a file of its own for every episode would make opening a large store slow, one file for all would make
every append slower than the last.
"""

import glob
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lerobot.datasets.io_utils import cast_stats_to_numpy
from lerobot.datasets.utils import DEFAULT_EPISODES_PATH, INFO_PATH, DatasetInfo
from numpy import ndarray

from aloe.experience.parquet import read_table

COPY_AGAIN: Final = (
    "was it copied while it was written? Copy it again, meta/info.json first and then all the rest (docs/store.md), or "
    "restore it from a backup"
)
Row = dict[str, Any]
ROWS: Final = 100
_KIND: Final = "meta/episodes"
_PLACE: Final = (f"{_KIND}/chunk_index", f"{_KIND}/file_index")


def read_rows(root: Path, info: DatasetInfo) -> tuple[list[Row], list[str]]:
    """Rows of the committed episodes without their statistics, and the files that hold others besides.

    Raises:
        ValueError: rows are missing, or contradict each other or `info.json`.
    """
    rows, mixed = [], []
    for path in sorted(root.glob("meta/episodes/chunk-[0-9]*/file-[0-9]*.parquet")):
        # Where they stand, whatever they say: LeRobot's merging leaves rows with the number of another file.
        here = dict(zip(_PLACE, (int(part.split("-")[1]) for part in (path.parent.name, path.stem)), strict=True))
        found = [{**row, **here} for row in _read(path)]
        committed = [row for row in found if row["episode_index"] < info.total_episodes]
        rows += committed
        if 0 < len(committed) < len(found):
            mixed.append(path.relative_to(root).as_posix())
    _check(root, info, rows)
    return rows, mixed


def _read(path: Path) -> list[Row]:
    try:
        file = pq.ParquetFile(path)
        return file.read(
            [name for name in file.schema_arrow.names if not name.startswith("stats/")], use_threads=False
        ).to_pylist()
    except FileNotFoundError:  # left over, and just moved aside by a writer
        return []
    except (pa.ArrowException, OSError, UnicodeDecodeError):  # half a file, of a recorder that died; `_check` misses it
        return []


def _check(root: Path, info: DatasetInfo, rows: list[Row]) -> None:
    found = [row["episode_index"] for row in rows]
    if (missing := info.total_episodes - len(known := set(found))) > 0:
        first = next(number for number in count() if number not in known)
        raise ValueError(
            f"{root} should have {info.total_episodes} episodes, but meta/episodes lacks {missing} of them, "
            f"the first number {first}; {COPY_AGAIN}"
        )
    if found != list(range(info.total_episodes)):
        raise ValueError(f"{root}: meta/episodes holds an episode twice, or not in order; {COPY_AGAIN}")
    end = 0
    for row in rows:
        begin, end = end, row["dataset_to_index"]
        if row["dataset_from_index"] != begin or end - begin != row["length"] or row["length"] < 1:
            raise ValueError(
                f"{root}: meta/episodes contradicts itself about where episode {row['episode_index']} lies; {COPY_AGAIN}"
            )
    if end != info.total_frames:
        raise ValueError(
            f"{root}: meta/info.json counts {info.total_episodes} episodes with {info.total_frames} frames, "
            f"in meta/episodes they have {end}; {COPY_AGAIN}"
        )


def check_references(
    root: Path, info: DatasetInfo, tasks: list[str], rows: list[Row], files_of: Callable[[Row], list[str]]
) -> None:
    """Raise ValueError unless everything that the committed episodes refer to is there."""
    if len(tasks) != info.total_tasks:
        raise ValueError(f"{root}: {INFO_PATH} counts {info.total_tasks} tasks, there are {len(tasks)}; {COPY_AGAIN}")
    if unknown := {task for row in rows for task in row["tasks"]} - set(tasks):
        raise ValueError(f"{root}: meta/tasks.parquet lacks tasks of episodes, {sorted(unknown)}; {COPY_AGAIN}")
    patterns = ("data/*/*.parquet", "videos/*/*/*.mp4")
    found = {path for pattern in patterns for path in glob.glob(pattern, root_dir=root)}
    if missing := sorted({path for row in rows for path in files_of(row)} - found):
        raise ValueError(
            f"{root} lacks {len(missing)} files of committed episodes, the first {missing[0]}; {COPY_AGAIN}"
        )


def read_full(path: Path) -> list[Row]:
    """Rows of one file with their statistics."""
    return read_table(path).to_pylist()


def statistics(root: Path, rows: list[Row]) -> Iterator[list[dict[str, dict[str, ndarray]]]]:
    """Statistics of these episodes, {column: {statistic: array}} each, a file at a time."""
    wanted = {row["episode_index"] for row in rows}
    for path in dict.fromkeys(home(row) for row in rows):
        yield [statistics_of(row) for row in read_full(root / path) if row["episode_index"] in wanted]


def statistics_of(row: Row) -> dict[str, dict[str, ndarray]]:
    """`stats/<column>/<statistic>` -> {column: {statistic: array}}"""
    return cast_stats_to_numpy(
        {name.removeprefix("stats/"): value for name, value in row.items() if name.startswith("stats/")}
    )


def home(row: Row) -> str:
    """The file of `meta/episodes` that the row stands in."""
    return place(DEFAULT_EPISODES_PATH, row, _KIND)


def place(template: str | None, row: Row, kind: str, **keys: str) -> str:
    """A file's place below the root, by LeRobot's template and a row of `meta/episodes`, which numbers each kind.

    A string, because ten thousand `Path`s take a second to compare.
    """
    assert template is not None
    return template.format(chunk_index=row[f"{kind}/chunk_index"], file_index=row[f"{kind}/file_index"], **keys)


def steps_of(table: pa.Table, episode: int) -> pa.Table:
    """The rows of one episode in a table of several, which are one after the other. (A filter takes a hundred times as
    long.)"""
    start, stop = np.searchsorted(table["episode_index"].to_numpy(), [episode, episode + 1])
    return table.slice(start, stop - start)


def join_last_file(root: Path, staging: Path, last: Row | None) -> Row:
    """Let the one row that LeRobot has put into a file of its own join the last committed file, if there is room.

    staging: has that file, and gets the one that shall replace it. Returns the row, with its statistics.
    """
    (alone,) = staging.glob("meta/episodes/*/*.parquet")
    table = read_table(alone)
    if last is not None:
        before, joined = read_table(root / home(last)), table
        for name in _PLACE:
            field = table.schema.field(name)
            joined = joined.set_column(joined.column_names.index(name), field, pa.array([last[name]], field.type))
        # A file of LeRobot's own making may have other columns, or in another order: it stays as it is.
        if len(before) < ROWS and before.schema.equals(joined.schema):
            alone.unlink()
            (staging / home(last)).parent.mkdir(parents=True, exist_ok=True)
            pq.write_table(pa.concat_tables([before, joined]), staging / home(last))
            table = joined
    return table.to_pylist()[0]


def without_uncommitted(path: Path, episodes: int) -> pa.Table:
    """A file's rows of committed episodes."""
    table = read_table(path)
    return table.slice(0, sum(index < episodes for index in table["episode_index"].to_pylist()))
