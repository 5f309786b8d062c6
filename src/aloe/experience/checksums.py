"""Checksums of committed episodes, in `meta/checksums`, of which LeRobot takes no notice.

A file there goes with the file of `meta/episodes` that has the same number, and grows with it:

    {"sha256": "<of all that follows>", "episodes": {
        "7": {"row": "<SHA-256>", "info": "<SHA-256>", "numbers": "<SHA-256>",
              "files": {"data/chunk-000/file-007.parquet": "<SHA-256>", ...}}}}

`row` is of the episode's row of `meta/episodes` with its statistics, `info` of what `meta/info.json` said besides the
counts, `numbers` of all that is known of its steps but the pictures: training reads that alone, and need not read a file
of many pictures to know that it is intact. Episodes that LeRobot wrote, or an ALOE before there were checksums, have none.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Final

import numpy as np
from lerobot.datasets.compute_stats import aggregate_stats
from lerobot.datasets.io_utils import load_stats
from lerobot.datasets.utils import DEFAULT_TASKS_PATH, INFO_PATH, STATS_PATH, DatasetInfo
from numpy import ndarray

from aloe.experience.header import UNREADABLE
from aloe.experience.index import Row, home, read_full, statistics
from aloe.experience.parquet import read_table

Seals = dict[str, dict[str, Any]]
"""Content of a checksum file: episode -> its checksums."""
_COUNTS: Final = ("total_episodes", "total_frames", "total_tasks", "splits")


@dataclass(frozen=True, kw_only=True)
class Damage:
    """Something on disk that is not what was recorded."""

    episode: int | None
    """None where it concerns the store as a whole."""
    path: str
    """Relative to the root."""
    problem: str

    def __str__(self) -> str:
        return f"{self.path}{'' if self.episode is None else f' of episode {self.episode}'} {self.problem}"


def seal_path(row: Row) -> str:
    """Where an episode's checksums are."""
    return home(row).replace("meta/episodes", "meta/checksums").replace(".parquet", ".json")


def read_seals(root: Path, path: str) -> Seals:
    """Raises ValueError where the file is no longer what was written. No file: no checksums."""
    if not (root / path).exists():
        return {}
    try:
        content = json.loads((root / path).read_text())
        seals = content["episodes"] if content["sha256"] == _of_json(content["episodes"]) else None
    except UNREADABLE:
        seals = None
    if not isinstance(seals, dict) or not all(key.isdecimal() and _is_seal(seal) for key, seal in seals.items()):
        raise ValueError(
            f"{root}: {path} is damaged; restore it from a backup, or move it away and do without checksums"
        )
    return seals


def _is_seal(value: Any) -> bool:
    match value:
        case {"row": str(), "info": str(), "numbers": str(), "files": dict(files)}:
            return all(isinstance(checksum, str) and len(checksum) == 64 for checksum in files.values())
    return False


def write_seals(path: Path, seals: Seals) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"sha256": _of_json(seals), "episodes": seals}))


def seal(row: Row, info: DatasetInfo, numbers: str, files: dict[str, str]) -> dict[str, Any]:
    """Checksums of an episode. row: with its statistics. numbers: `numbers_checksum`. files: each file that it lies in, and
    its SHA-256."""
    return {"row": _of_json(row), "info": _of_info(info), "numbers": numbers, "files": files}


def numbers_checksum(parts: Mapping[str, ndarray]) -> str:
    """SHA-256 of `schema.numbers`."""
    digest = hashlib.sha256()
    for name, values in sorted(parts.items()):
        digest.update(f"{name} {values.dtype.str} {values.shape}".encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()


def file_checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def damage_of_file(root: Path, path: str, checksum: str) -> str | None:
    """What is wrong with a file, in words; None if nothing is."""
    try:
        found = file_checksum(root / path)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    return None if found == checksum else "is not what was recorded (its SHA-256 differs)"


def verify(root: Path, info: DatasetInfo, rows: list[Row], files: list[list[str]]) -> Iterator[Damage]:
    """Everything that can be found out about damage, by reading every file once. rows, files: of each episode."""
    full: dict[int, Row] = {}
    for path in dict.fromkeys(home(row) for row in rows):
        try:
            full |= {row["episode_index"]: row for row in read_full(root / path)}
        except UNREADABLE as error:
            yield Damage(episode=None, path=path, problem=f"cannot be read ({error})")
    sealed: Seals = {}
    for path in dict.fromkeys(seal_path(row) for row in rows):
        try:
            sealed |= read_seals(root, path)
        except ValueError:
            yield Damage(episode=None, path=path, problem="is damaged")
    sound = len(full) >= len(rows)
    damage_of, steps_of = cache(partial(damage_of_file, root)), cache(partial(_steps, root))
    for index, row in enumerate(rows):
        known = sealed.get(str(index))
        if known is None:
            yield from _damage_without_checksum(root, index, row, files[index], steps_of)
            continue
        for path in files[index]:
            if (problem := damage_of(path, known["files"].get(path, ""))) is not None:
                yield Damage(episode=index, path=path, problem=problem)
        if index in full and _of_json(full[index]) != known["row"]:
            sound = False
            yield Damage(episode=index, path=home(row), problem="has another row than was recorded")
    last = sealed.get(str(len(rows) - 1))
    counts = {"train": f"0:{len(rows)}"}  # what LeRobot makes of it with every episode
    if last is not None and (last["info"] != _of_info(info) or info.splits != counts):
        yield Damage(episode=None, path=INFO_PATH, problem="differs from what it was at the last episode")
    if sound:  # else there is nothing to compare with
        yield from _damage_of_statistics(root, rows)


def survey(root: Path) -> tuple[list[Damage], int]:
    """What the checksums alone tell of a store that is too damaged to be opened, and of how many episodes."""
    found: list[Damage] = []
    try:
        counted = int(json.loads((root / INFO_PATH).read_bytes())["total_episodes"])
    except UNREADABLE as error:
        found.append(Damage(episode=None, path=INFO_PATH, problem=f"cannot be read ({error!r})"))
        counted = None
    metadata = sorted(root.glob("meta/episodes/*/*.parquet"))
    for path in [root / DEFAULT_TASKS_PATH, *metadata]:
        try:
            read_table(path)
        except UNREADABLE as error:
            name = path.relative_to(root).as_posix()
            found.append(Damage(episode=None, path=name, problem=f"cannot be read ({error})"))
    sealed: Seals = {}
    for path in sorted(root.glob("meta/checksums/*/*.json")):
        name = path.relative_to(root).as_posix()
        try:
            sealed |= read_seals(root, name)
        except ValueError:
            found.append(Damage(episode=None, path=name, problem="is damaged"))
    committed = {int(key): value for key, value in sealed.items() if counted is None or int(key) < counted}
    damage_of = cache(partial(damage_of_file, root))
    for index, known in sorted(committed.items()):
        for path, checksum in known["files"].items():
            if (problem := damage_of(path, checksum)) is not None:
                found.append(Damage(episode=index, path=path, problem=problem))
    return found, len(committed)


def _steps(root: Path, path: str) -> dict[int, int]:
    """Episode -> how many steps of it a data file holds."""
    return Counter(read_table(root / path, columns=["episode_index"])["episode_index"].to_pylist())


def _damage_without_checksum(
    root: Path, index: int, row: Row, files: list[str], steps_of: Callable[[str], dict[int, int]]
) -> Iterator[Damage]:
    """Without a checksum all that can be said is whether the file can be read and has the episode's steps."""
    data, *videos = files
    try:
        steps = steps_of(data).get(index, 0)
    except UNREADABLE as error:
        yield Damage(episode=index, path=data, problem=f"cannot be read ({error})")
    else:
        if steps != row["length"]:
            yield Damage(episode=index, path=data, problem=f"has {steps} steps of it, not {row['length']}")
    for video in videos:
        if not (root / video).is_file():
            yield Damage(episode=index, path=video, problem="is missing")


def _damage_of_statistics(root: Path, rows: list[Row]) -> Iterator[Damage]:
    """`stats.json` against the statistics of the episodes. Let pass: LeRobot's own rounding, and the numbers of episodes
    and frames, which its merging does not carry on."""
    try:
        yield from _differences_of_statistics(root, rows)
    except UNREADABLE as error:
        yield Damage(episode=None, path=STATS_PATH, problem=f"cannot be compared with its episodes ({error!r})")


def _differences_of_statistics(root: Path, rows: list[Row]) -> Iterator[Damage]:
    expected = None
    for part in statistics(root, rows):
        expected = aggregate_stats([*([] if expected is None else [expected]), *part])
    found = load_stats(root) or None
    counted = 0 if found is None else int(np.sum(found["frame_index"]["count"]))
    if counted > sum(row["length"] for row in rows):
        return  # an episode ahead, of a commit going on or cut short; made anew when the store is opened to write
    if (expected is None) != (found is None):
        yield Damage(episode=None, path=STATS_PATH, problem="is missing")
        return
    for column, values in (expected or {}).items():
        if column in ("index", "episode_index", "task_index"):
            continue
        other = (found or {}).get(column, {})
        same = set(values) <= set(other) and all(
            np.shape(values[name]) == np.shape(other[name]) and np.allclose(values[name], other[name], 1e-6, 1e-9)
            for name in values
        )
        if not same:
            yield Damage(episode=None, path=STATS_PATH, problem=f"has another {column!r} than its episodes")
            return


def _of_info(info: DatasetInfo) -> str:
    """Of what does not change with every episode."""
    return _of_json({key: value for key, value in info.to_dict().items() if key not in _COUNTS})


def _of_json(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
