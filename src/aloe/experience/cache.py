"""Memory-mapped rows beside a store: its pictures decoded, and what a frozen vision tower makes of them.

A LeRobot dataset gives about a hundred random samples a second, a memory-mapped array tens of thousands. So every
episode is decoded once, front to back, and its rows are appended to a pack of growing files:

    <root>/pictures/<kind>/pack-<id>/<camera>.bin           the rows of its episodes, one after the other
    <root>/pictures/<kind>/pack-<id>/index.json             digest, length and CRC-32 of every episode in it
    <root>/features/<key>/<kind>/pack-<id>/...              the same for features, a folder for each tower

`index.json` is replaced after the rows that it counts are on the disk: a build that dies costs its last second. Rows are
compared with their CRC-32 when a process first uses their episode. They are found by its digest (`episode_digest`), so that
a changed episode is never served stale, and one cache may serve any number of runs and stores at once. Who writes a pack
locks it; a second run that builds meanwhile begins a pack of its own. Where the cache is bounded, the packs that were not
used for longest are removed first; a process that has one mapped keeps its rows until it ends.
"""

import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import time
import uuid
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float16, Int64, Shaped, UInt8
from numpy import ndarray
from tqdm import tqdm

from aloe.experience.commit import sync
from aloe.experience.schema import Experience

_Place = tuple[Path, int, int, int]
"""Where an episode's rows are: pack, first row, CRC-32, steps."""
_CHECKED: Final[set[_Place]] = set()
"""What this process has compared with its CRC-32 already."""
_COMMIT_SECONDS: Final = 1.0
_VERSION: Final = 2
"""Of the files' format; 1 had no CRC-32."""
_PACK_BYTES: Final = 2**28
"""A pack that is larger takes no further episode: the grain in which a bounded cache is cleared."""


@dataclass(frozen=True, kw_only=True)
class CacheConfig:
    """Where decoded pictures and features are kept."""

    root: Path | None = None
    """Folder; several runs may share one. By default `cache/` in the folder of the run."""
    max_gb: float | None = None
    """Gigabytes (10^9 bytes) of pictures and features that it may hold; what was not used for longest goes first. None:
    no limit."""

    def __post_init__(self) -> None:
        if self.max_gb is not None and self.max_gb <= 0:
            raise ValueError(f"max_gb must be positive, not {self.max_gb}")

    def within(self, folder: Path) -> "Cache":
        """The cache itself; `folder` is where it is by default."""
        return Cache(root=self.root or folder, max_gb=self.max_gb)


@dataclass(frozen=True, kw_only=True)
class Cache:
    """A folder of packs."""

    root: Path
    max_gb: float | None = None

    def make_room(self, needed: int, keep: set[Path]) -> None:
        """Removes packs until `needed` bytes more fit, those that were not used for longest first, and none of `keep`.

        Raises:
            ValueError: what has to be kept and what is needed do not fit together.
        """
        if self.max_gb is None:
            return
        for half in self.root.rglob(".removing-*"):  # of a run that died meanwhile
            shutil.rmtree(half, ignore_errors=True)
        packs = [_Pack(index.parent) for index in self.root.rglob("pack-*/index.json")]
        sizes = {pack.path: pack.bytes for pack in packs}
        total = sum(sizes.values())
        for pack in sorted(packs, key=lambda pack: pack.used):
            if total + needed <= self.max_gb * 1e9:
                return
            if pack.path not in keep and (pack.remove() or not pack.path.exists()):  # or another run removed it
                total -= sizes[pack.path]
        if total + needed > self.max_gb * 1e9:
            raise ValueError(
                f"the cache {self.root} needs {(total + needed) / 1e9:.2f} GB, --cache.max-gb allows {self.max_gb:g}; "
                "raise it, or leave it out"
            )


def _crc(parts: list[ndarray]) -> int:
    """Of an episode's rows in all files of a pack."""
    crc = 0
    for part in parts:
        crc = zlib.crc32(np.ascontiguousarray(part).data.cast("B"), crc)
    return crc


class FrameCache:
    """The pictures of an experience as one array a camera, in the order of `Experience.columns()`."""

    def __init__(self, cache: Cache, store: Experience) -> None:
        self.store = store
        shapes = {camera: (h, w, 3) for camera, (h, w) in store.cameras.items()}
        self._rows = _Rows(cache, "pictures", shapes, np.uint8)

    def update(self) -> int:
        """Decode the episodes that are not in the cache; how many those were."""
        return self._rows.update(self.store, self.store.pictures, "decoding pictures")

    @property
    def packs(self) -> set[Path]:
        """Folders in the cache that hold them, after `update()`."""
        return self._rows.packs

    def gather(self, camera: str, frame_indices: Int64[ndarray, "B"]) -> UInt8[ndarray, "B h w 3"]:
        """Pictures of these frames. Raises ValueError for an index beyond the last `update()`."""
        return self._rows.gather(camera, frame_indices)


class FeatureCache:
    """What a frozen vision tower makes of every picture, in the order of `Experience.columns()`."""

    def __init__(self, cache: Cache, key: str, frames: FrameCache, shape: tuple[int, ...]) -> None:
        """key: hash of the tower's weights and of whatever else decides its output; a folder for each key.
        shape: of one picture's features."""
        if not re.fullmatch(r"\w[\w.-]*", key):
            raise ValueError(f"key {key!r} names a folder: letters, digits, '_', '-' and '.' only")
        self._frames = frames
        shapes = {"features": (len(frames.store.cameras), *shape)}
        self._rows = _Rows(cache, f"features/{key}", shapes, np.float16)

    def update(
        self,
        encode: Callable[[dict[str, UInt8[ndarray, "n h w 3"]]], Float16[ndarray, "n C ..."]],
        batch_size: int = 256,
    ) -> int:
        """Update the frame cache, then encode the episodes that are not in the cache; how many those were.

        encode: pictures by camera, in the order of `store.cameras` -> features, cameras in the same order.
        """
        self._frames.update()
        store = self._frames.store
        starts = np.cumsum([0, *store.lengths])

        def features(episode: int) -> dict[str, ndarray]:
            start, end = int(starts[episode]), int(starts[episode + 1])
            parts = []
            for first in range(start, end, batch_size):
                rows = np.arange(first, min(first + batch_size, end))
                parts.append(encode({camera: self._frames.gather(camera, rows) for camera in store.cameras}))
            return {"features": np.concatenate(parts)}

        return self._rows.update(store, features, "encoding pictures", self._frames.packs)

    def gather(self, frame_indices: Int64[ndarray, "B"]) -> Float16[ndarray, "B C ..."]:
        """Features of these frames. Raises ValueError for an index beyond the last `update()`."""
        return self._rows.gather("features", frame_indices)


class _Pack:
    """Files that grow together, an episode at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def used(self) -> float:
        """When somebody last used it, in seconds since the epoch."""
        try:
            return (self.path / "index.json").stat().st_mtime
        except FileNotFoundError:
            return 0.0

    @property
    def bytes(self) -> int:
        try:
            return sum(path.stat().st_size for path in self.path.glob("*.bin"))
        except FileNotFoundError:  # another run has just removed it
            return 0

    def episodes(self) -> list[tuple[str, int, int]]:
        """Digest, steps and CRC-32 of what it holds; nothing where there is no index, or no more."""
        try:
            return [(digest, steps, crc) for digest, steps, crc in json.loads((self.path / "index.json").read_text())]
        except FileNotFoundError:
            return []
        except (ValueError, TypeError) as error:
            raise self.damaged(f"its index cannot be read: {error}") from error

    def damaged(self, problem: str) -> ValueError:
        return ValueError(f"{self.path} is damaged ({problem}); delete that folder, its episodes are then decoded anew")

    def write_index(self, episodes: Sequence[tuple[str, int, int]]) -> None:
        """Count these episodes, whose rows are written."""
        for rows in self.path.glob("*.bin"):
            sync(rows)
        new = self.path / "index.json.new"
        new.write_text(json.dumps(episodes))
        sync(new)
        os.replace(new, self.path / "index.json")
        sync(self.path)

    def touch(self) -> None:
        """Say that it is in use."""
        if (index := self.path / "index.json").exists():
            os.utime(index)

    @contextmanager
    def locked(self) -> Iterator[bool]:
        """Whether nobody else writes it; nobody does while the block runs. Not either where it was just removed."""
        with ExitStack() as opened:
            try:
                handle = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT)
                opened.callback(os.close, handle)
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                mine = os.path.samestat(os.fstat(handle), (self.path / "lock").stat())  # or removed between the calls
            except (BlockingIOError, FileNotFoundError):
                mine = False
            yield mine

    def remove(self) -> int:
        """Bytes that it held; 0 where it is being written, or gone."""
        with self.locked() as mine:
            if not mine:
                return 0
            size, aside = self.bytes, self.path.with_name(f".removing-{self.path.name}")
            os.replace(self.path, aside)  # at once: nobody shall begin to write into half a pack
            shutil.rmtree(aside, ignore_errors=True)  # another run may be clearing it away, too
            return size


class _Rows:
    """Rows of one kind. shapes: file -> shape of one row."""

    def __init__(self, cache: Cache, name: str, shapes: dict[str, tuple[int, ...]], dtype: type[np.generic]) -> None:
        self._cache, self._shapes, self._dtype = cache, shapes, np.dtype(dtype)
        kind = json.dumps([_VERSION, self._dtype.name, [[name, list(shape)] for name, shape in shapes.items()]])
        self._folder = cache.root / name / hashlib.sha256(kind.encode()).hexdigest()[:16]
        self._row_bytes = {name: math.prod(shape) * self._dtype.itemsize for name, shape in shapes.items()}
        self._maps: list[dict[str, ndarray]] = []
        self._map_of = np.zeros(0, np.int64)
        self._row_of = np.zeros(0, np.int64)
        self._episode_of = np.zeros(0, np.int64)
        self._place: list[_Place] = []
        self._is_checked = np.zeros(0, bool)

    @property
    def packs(self) -> set[Path]:
        """Those that the rows lie in."""
        return {pack for pack, *_ in self._place}

    def update(
        self,
        store: Experience,
        make: Callable[[int], dict[str, ndarray]],
        verb: str,
        needed_for_it: set[Path] | None = None,
    ) -> int:
        """Add `make(i)` for every episode i that is in no pack, and map all rows; how many episodes that were.

        needed_for_it: packs of others that `make` reads, which are not to make room.
        """
        wanted = [(store.episode_digest(i), steps) for i, steps in enumerate(store.lengths)]
        made = 0
        while not self._map(wanted):
            found, number = self._scan(), {episode: i for i, episode in enumerate(wanted)}
            missing = {episode: i for episode, i in number.items() if episode not in found}
            needed = sum(steps for _, steps in missing) * sum(self._row_bytes.values())
            mine = {pack for episode, (pack, *_) in found.items() if episode in number}
            self._cache.make_room(needed, mine | (needed_for_it or set()))
            self._build(missing, make, verb)
            made += len(missing)
        return made

    def _scan(self) -> dict[tuple[str, int], tuple[Path, int, int]]:
        """Episode -> its pack, its first row there, and its CRC-32."""
        found = {}
        for path in sorted(self._folder.glob("pack-*")):
            row = 0
            for digest, steps, crc in _Pack(path).episodes():
                found[digest, steps] = path, row, crc
                row += steps
        return found

    def _map(self, wanted: list[tuple[str, int]]) -> bool:
        """Map the rows of these episodes, if all are there."""
        found = self._scan()
        if not all(episode in found for episode in wanted):
            return False
        packs = list(dict.fromkeys(found[episode][0] for episode in wanted))
        try:
            maps = [self._open(pack) for pack in packs]
        except FileNotFoundError:  # just removed by another run
            return False
        numbers = {pack: number for number, pack in enumerate(packs)}
        self._maps = maps
        self._map_of = np.repeat([numbers[found[e][0]] for e in wanted], [steps for _, steps in wanted]).astype(
            np.int64
        )
        self._row_of = np.concatenate([np.zeros(0, np.int64), *[found[e][1] + np.arange(e[1]) for e in wanted]])
        self._episode_of = np.repeat(np.arange(len(wanted)), [steps for _, steps in wanted])
        self._place = [(*found[episode], episode[1]) for episode in wanted]
        self._is_checked = np.array([place in _CHECKED for place in self._place], bool)
        for pack in packs:
            _Pack(pack).touch()
        return True

    def _open(self, pack: Path) -> dict[str, ndarray]:
        rows = sum(steps for _, steps, _ in _Pack(pack).episodes())
        for name, row_bytes in self._row_bytes.items():
            if (pack / f"{name}.bin").stat().st_size < rows * row_bytes:
                raise _Pack(pack).damaged(f"{name}.bin is shorter than its index says")
        return {
            name: np.memmap(pack / f"{name}.bin", self._dtype, "r", shape=(rows, *shape))
            for name, shape in self._shapes.items()
        }

    def _check(self, episodes: ndarray) -> None:
        """Compare the rows of these episodes with their CRC-32. Raises ValueError where one differs."""
        for episode in np.unique(episodes).tolist():
            pack, first, crc, steps = self._place[episode]
            maps = self._maps[self._map_of[np.searchsorted(self._episode_of, episode)]]
            if _crc([maps[name][first : first + steps] for name in self._shapes]) != crc:
                raise _Pack(pack).damaged(f"rows {first} to {first + steps - 1} are not what was written")
            self._is_checked[episode] = True
            _CHECKED.add(self._place[episode])

    def _build(self, missing: dict[tuple[str, int], int], make: Callable[[int], dict[str, ndarray]], verb: str) -> None:
        todo = list(missing.items())
        with tqdm(total=len(todo), desc=verb, unit="episode", delay=2) as bar:
            while todo:
                with self._pack_to_write() as pack:
                    todo = self._fill(pack, todo, make, verb, bar)

    def _fill(
        self,
        pack: _Pack,
        todo: list[tuple[tuple[str, int], int]],
        make: Callable[[int], dict[str, ndarray]],
        verb: str,
        bar: tqdm,
    ) -> list[tuple[tuple[str, int], int]]:
        """Append episodes to a pack until it is full; the episodes that are left."""
        episodes = pack.episodes()
        start, committed = sum(steps for _, steps, _ in episodes), time.monotonic()
        while todo and start * sum(self._row_bytes.values()) <= _PACK_BYTES:
            (digest, steps), index = todo[0]
            parts = make(index)
            for name, shape in self._shapes.items():
                if parts[name].shape != (steps, *shape):
                    raise ValueError(f"{verb}: got shape {parts[name].shape}, expected {(steps, *shape)}")
                self._write(pack.path / f"{name}.bin", start * self._row_bytes[name], parts[name])
            start += steps
            episodes.append((digest, steps, _crc([np.asarray(parts[name], self._dtype) for name in self._shapes])))
            todo = todo[1:]
            bar.update()
            if time.monotonic() - committed > _COMMIT_SECONDS:
                pack.write_index(episodes)
                committed = time.monotonic()
        pack.write_index(episodes)
        return todo

    @contextmanager
    def _pack_to_write(self) -> Iterator[_Pack]:
        """A pack that is not full and that nobody else writes; a new one where there is none."""
        for path in sorted(self._folder.glob("pack-*")):
            pack = _Pack(path)
            if pack.bytes > _PACK_BYTES:  # full; a build that died may have left a little more than the index counts
                continue
            with pack.locked() as mine:
                if mine:
                    yield pack
                    return
        while True:
            pack = _Pack(self._folder / f"pack-{uuid.uuid4().hex[:12]}")
            pack.path.mkdir(parents=True)
            with pack.locked() as mine:
                if mine:  # and not another run's, which found it before it was locked
                    yield pack
                    return

    def _write(self, path: Path, offset: int, rows: ndarray) -> None:
        path.touch()
        with path.open("r+b") as file:
            file.seek(offset)
            file.write(np.ascontiguousarray(rows, self._dtype).data)

    def gather(self, name: str, indices: Int64[ndarray, "B"]) -> Shaped[ndarray, "B ..."]:
        if indices.size and not 0 <= indices.min() <= indices.max() < len(self._row_of):
            raise ValueError(
                f"frames {indices.min()} to {indices.max()} of {len(self._row_of)} cached ones; "
                "call update() after the store has grown"
            )
        episodes = self._episode_of[indices]
        if not (known := self._is_checked[episodes]).all():
            self._check(episodes[~known])
        maps, rows = self._map_of[indices], self._row_of[indices]
        out = np.empty((len(indices), *self._shapes[name]), self._dtype)
        for number in np.unique(maps):
            mine = maps == number
            out[mine] = self._maps[number][name][rows[mine]]
        return out
