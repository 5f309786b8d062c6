"""Few large files in place of many small ones.

The compacted store is built beside the old one, as `.<name>-compacting`, and compared with it. Then the two folders change
places in one step of the kernel's: whoever opens the store, LeRobot included, sees all of the old or all of the new. The
old one goes to `quarantine/`. `docs/store.md` says what a crash leaves.

Why not LeRobot's `aggregate_datasets`: it writes a file anew, row by row, for each one that it appends, so its time grows
with the square of the episodes; it turns lists of a fixed length into others; and where `meta/episodes` has several files,
its rows name files that they no longer stand in. What it does to videos is right and is used here: it joins them packet
by packet, without encoding again.
"""

import ctypes
import errno
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from lerobot.datasets.io_utils import load_info
from lerobot.datasets.utils import DEFAULT_EPISODES_PATH, DatasetInfo
from lerobot.datasets.video_utils import concatenate_video_files, get_video_info

from aloe.experience.checksums import file_checksum, numbers_checksum, seal, seal_path, write_seals
from aloe.experience.commit import QUARANTINE, STAGING, other_version, set_other_version_aside, sync
from aloe.experience.index import Row, home, place, read_full, read_rows, steps_of
from aloe.experience.labels import LABELS_PATH
from aloe.experience.parquet import read_table
from aloe.experience.schema import NUMBERS, parse
from aloe.experience.store import ExperienceStore

_MADE_ANEW: Final = ("data", "videos", "meta/episodes", "meta/checksums", QUARANTINE)
_PLACES: Final = ("/chunk_index", "/file_index", "/from_timestamp", "/to_timestamp")
_MB: Final = 2**20
_EXCHANGE: Final = 2  # RENAME_EXCHANGE of linux/fs.h
_HERE: Final = -100  # AT_FDCWD


@dataclass(frozen=True, kw_only=True)
class Compacted:
    """What a compaction has done."""

    before: int
    """Files of steps, pictures and rows."""
    after: int
    aside: Path | None
    """Where the old version is; None where there was nothing to do."""


def compact(root: Path) -> Compacted:
    """Merge the files of a store. Labels and imports stay; the episodes and their numbers do, too.

    Raises:
        ValueError: the store is damaged, somebody else writes to it, or what was made is not the same; nothing has changed.
        OSError: no space, or a file system that cannot swap two folders in one step; nothing has changed.
    """
    root = root.resolve()
    with ExperienceStore.open(root) as store:
        damage = next(store.verify(), None)
        if damage is not None:
            raise ValueError(f"{root}: {damage}; a damaged store is not compacted, restore it from a backup first")
        plan = _Plan(root)
        if plan.after == plan.before:
            return Compacted(before=plan.before, after=plan.after, aside=None)
        new = other_version(root)
        if root.stat().st_dev != root.parent.stat().st_dev:
            raise _not_in_one_step(root, errno.EXDEV)
        (root / LABELS_PATH).touch()  # so that whoever labels meanwhile writes into the file that both versions share
        try:
            _link_the_rest(root, new)
            plan.write(new)
            _check_same(store, new)
            for path in new.rglob("*"):
                if not path.is_symlink():
                    sync(path)
            sync(new)
        except BaseException:
            if new.exists():
                shutil.rmtree(new)
            raise
        try:
            exchange(root, new)
        except OSError:  # and then they have not changed places
            shutil.rmtree(new)
            raise
        sync(root.parent)
        return Compacted(before=plan.before, after=plan.after, aside=set_other_version_aside(root))


def exchange(one: Path, other: Path) -> None:
    """Let two folders change places, in one step. Raises OSError where the file system cannot."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        raise _not_in_one_step(one, errno.ENOSYS)
    if libc.renameat2(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE):
        raise _not_in_one_step(one, ctypes.get_errno())


def _not_in_one_step(root: Path, number: int) -> OSError:
    return OSError(
        number,
        f"{root} cannot be replaced in one step ({os.strerror(number)}): it is a mount point, or on a file system that "
        "cannot do this; nothing was changed; copy it to a folder on a local disk and compact the copy",
    )


def _link_the_rest(root: Path, new: Path) -> None:
    """Everything that stays as it is, the writer's lock included, becomes the same file under a second name."""
    for folder, folders, files in os.walk(root):
        here = Path(folder).relative_to(root)
        (new / here).mkdir()
        shutil.copymode(folder, new / here)
        kept = [name for name in folders if (here / name).as_posix() not in _MADE_ANEW and not name.startswith(STAGING)]
        links = [name for name in kept if (root / here / name).is_symlink()]
        folders[:] = [name for name in kept if name not in links]
        for name in [*files, *links]:
            os.link(root / here / name, new / here / name, follow_symlinks=False)


class _Plan:
    """Which files become which. New ones are numbered on: no name ever means something else than it did."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._info: DatasetInfo = load_info(root)
        self._rows, _ = read_rows(root, self._info)
        keys = [key for key, feature in self._info.features.items() if feature["dtype"] == "video"]
        self._kinds: dict[str, tuple[str | None, dict[str, str]]] = {"data": (self._info.data_path, {})}
        self._kinds |= {f"videos/{key}": (self._info.video_path, {"video_key": key}) for key in keys}
        self._kinds["meta/episodes"] = (DEFAULT_EPISODES_PATH, {})
        self._groups = {kind: self._grouped(kind) for kind in self._kinds}
        self.before = sum(len(group) for groups in self._groups.values() for group in groups)
        self.after = sum(len(groups) for groups in self._groups.values())

    def _path(self, kind: str, row: dict[str, Any]) -> str:
        template, keys = self._kinds[kind]
        return place(template, row, kind, **keys)

    def _grouped(self, kind: str) -> list[list[str]]:
        """Files in the order of their episodes; those that fit together, and into LeRobot's limit of size, side by side."""
        limit = self._info.video_files_size_in_mb if kind.startswith("videos/") else self._info.data_files_size_in_mb
        groups: list[list[str]] = []
        size, fits = 0, None
        for path in dict.fromkeys(self._path(kind, row) for row in self._rows):
            mine = (self._root / path).stat().st_size
            other = _video_kind(self._root / path) if kind.startswith("videos/") else pq.read_schema(self._root / path)
            if not groups or size + mine > limit * _MB or other != fits:
                groups.append([])
                size, fits = 0, other
            groups[-1].append(path)
            size += mine
        return groups

    def write(self, new: Path) -> None:
        """The new files, rows and checksums, below `new`."""
        places: dict[str, list[dict[str, int]]] = {}
        shifts: dict[str, float] = {}
        checksums: dict[str, str] = {}
        for kind, groups in self._groups.items():
            chunk = 1 + max((row[f"{kind}/chunk_index"] for row in self._rows), default=-1)
            home_of: dict[str, dict[str, int]] = {}
            for number, group in enumerate(groups):
                further, file = divmod(number, self._info.chunks_size)
                there = {f"{kind}/chunk_index": chunk + further, f"{kind}/file_index": file}
                home_of |= dict.fromkeys(group, there)
                target = new / self._path(kind, there)
                target.parent.mkdir(parents=True, exist_ok=True)
                if kind == "data":
                    self._write_data(group, target)
                elif kind != "meta/episodes":
                    shifts |= self._write_video(group, target)
                if kind != "meta/episodes":
                    checksums[self._path(kind, there)] = file_checksum(target)
            places[kind] = [home_of[self._path(kind, row)] for row in self._rows]
        self._write_rows(new, places, shifts, checksums)

    def _write_data(self, group: list[str], target: Path) -> None:
        if len(group) == 1:
            os.link(self._root / group[0], target)
            return
        held: dict[str, list[int]] = {path: [] for path in group}
        for row in self._rows:
            if (path := self._path("data", row)) in held:
                held[path].append(row["episode_index"])
        with pq.ParquetWriter(target, pq.read_schema(self._root / group[0])) as writer:
            for path in group:
                table = read_table(self._root / path)
                for episode in held[path]:  # one row group an episode, as LeRobot's own tools do it
                    steps = steps_of(table, episode)
                    writer.write_table(steps, row_group_size=len(steps))

    def _write_video(self, group: list[str], target: Path) -> dict[str, float]:
        """Returns by how many seconds the pictures of each file now come later."""
        if len(group) == 1:
            os.link(self._root / group[0], target)
            return {group[0]: 0.0}
        concatenate_video_files([self._root / path for path in group], target)
        after, shifts, first = _times(target), {}, 0
        for path in group:
            before = _times(self._root / path)
            shifts[path] = float(after[first] - before[0])
            first += len(before)
        if first != len(after):
            raise ValueError(f"{self._root}: joined, the videos have {len(after)} pictures, not {first}")
        return shifts

    def _write_rows(
        self,
        new: Path,
        places: dict[str, list[dict[str, int]]],
        shifts: dict[str, float],
        checksums: dict[str, str],
    ) -> None:
        begin, numbers = 0, self._numbers()
        for group in self._groups["meta/episodes"]:
            table = pa.concat_tables([read_table(self._root / path) for path in group])
            mine = slice(begin, begin := begin + len(table))
            for kind in self._kinds:
                for name in (f"{kind}/chunk_index", f"{kind}/file_index"):
                    table = _with_column(table, name, [there[name] for there in places[kind][mine]])
                if kind.startswith("videos/"):
                    later = [shifts[self._path(kind, row)] for row in self._rows[mine]]
                    for name in (f"{kind}/from_timestamp", f"{kind}/to_timestamp"):
                        values = [time + shift for time, shift in zip(table[name].to_pylist(), later, strict=True)]
                        table = _with_column(table, name, values)
            first = places["meta/episodes"][mine.start]
            pq.write_table(table, new / self._path("meta/episodes", first))
            rows = read_full(new / self._path("meta/episodes", first))
            seals = {
                str(row["episode_index"]): seal(row, self._info, next(numbers), self._files(row, checksums))
                for row in rows
            }
            write_seals(new / seal_path(rows[0]), seals)

    def _numbers(self) -> Iterator[str]:
        """The checksum of every episode's numbers."""
        last, table = "", pa.table({})
        for row in self._rows:
            if (path := self._path("data", row)) != last:
                last, table = path, read_table(self._root / path, columns=NUMBERS)
            yield numbers_checksum(parse(steps_of(table, row["episode_index"]), self._info.features))

    def _files(self, row: Row, checksums: dict[str, str]) -> dict[str, str]:
        paths = [self._path(kind, row) for kind in self._kinds if kind != "meta/episodes"]
        return {path: checksums[path] for path in paths}


def _with_column(table: pa.Table, name: str, values: list[Any]) -> pa.Table:
    field = table.schema.field(name)
    return table.set_column(table.column_names.index(name), field, pa.array(values, field.type))


def _video_kind(path: Path) -> tuple[object, ...]:
    """What LeRobot asks to be the same before it joins two videos."""
    info = get_video_info(path)
    return tuple(info[f"video.{name}"] for name in ("height", "width", "fps", "codec", "pix_fmt"))


def _times(video: Path) -> np.ndarray:
    """When each picture of a video is shown, in seconds, in order; without decoding any."""
    times: list[float] = []
    with av.open(str(video)) as container:
        for packet in container.demux(video=0):
            if packet.size and packet.pts is not None and packet.time_base is not None:
                times.append(float(packet.pts * packet.time_base))
    return np.array(sorted(times))


def _check_same(store: ExperienceStore, new: Path) -> None:
    """Raise ValueError unless `new` holds what the store does: every number, every picture, every statistic."""
    other = ExperienceStore.read(new)
    if (damage := next(other.verify(), None)) is not None:
        raise ValueError(f"{store.root}: its compacted version is damaged ({damage}); the store is as it was")
    video = any(feature["dtype"] == "video" for feature in load_info(new).features.values())
    pairs = zip(_episodes(store.root), _episodes(new), strict=True)
    for index, ((row, columns), (new_row, new_columns)) in enumerate(pairs):
        same = row == new_row and columns == new_columns
        if same and video:
            pictures = other.pictures(index)
            same = all(np.array_equal(shown, pictures[camera]) for camera, shown in store.pictures(index).items())
        if not same:
            raise ValueError(f"{store.root}: episode {index} is not the same once compacted; the store is as it was")


def _episodes(root: Path) -> Iterator[tuple[str, dict[str, pa.Array]]]:
    """What is to stay the same of each episode: its row but for places, and its columns."""
    info = load_info(root)
    rows, _ = read_rows(root, info)
    data, table, index, full = "", pa.table({}), "", {}
    for row in rows:
        if (here := place(info.data_path, row, "data")) != data:
            data, table = here, read_table(root / here)
        if (here := home(row)) != index:
            index, full = here, {found["episode_index"]: found for found in read_full(root / here)}
        said = {key: value for key, value in full[row["episode_index"]].items() if not key.endswith(_PLACES)}
        mine = steps_of(table, row["episode_index"])
        yield json.dumps(said, sort_keys=True), {name: _bits(mine[name].combine_chunks()) for name in mine.column_names}


def _bits(cells: pa.Array) -> pa.Array:
    """To compare: NaN is not NaN, but its bits are."""
    while pa.types.is_list(cells.type) or pa.types.is_fixed_size_list(cells.type):
        cells = cells.flatten()
    if pa.types.is_floating(cells.type):
        return cells.view(pa.int32() if cells.type.bit_width == 32 else pa.int64())
    return cells
