"""Memory-mapped rows beside a store: its pictures decoded, and what a frozen vision tower makes of them.

A LeRobot dataset gives about a hundred random samples a second, a memory-mapped array tens of thousands. So
every episode is decoded once, front to back, and its rows are appended to growing files:

    <folder>/<name>.bin    the rows of all episodes, one after the other
    <folder>/index.json    shape and dtype of the rows, and digest and length of every episode in them

`index.json` is replaced after the rows that it counts are written: a build that dies costs its last second.
Rows are trusted only while the digest in the index is the store's. Nothing is served before `update()` has
compared them, and from the first episode that differs on everything is built anew. One process may update a
folder at a time.
"""

import json
import math
import os
import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
from jaxtyping import Float16, Int64, Shaped, UInt8
from numpy import ndarray
from tqdm import tqdm

from aloe.experience.store import ExperienceStore

_COMMIT_SECONDS: Final = 1.0


class FrameCache:
    """The pictures of a store as one array a camera, in the order of `ExperienceStore.columns()`."""

    def __init__(self, root: str | Path, store: ExperienceStore) -> None:
        self.store = store
        shapes = {camera: (h, w, 3) for camera, (h, w) in store.cameras.items()}
        self._rows = _RowFiles(Path(root), shapes, np.uint8)

    def update(self) -> int:
        """Decode the episodes that are new or have changed; how many those were."""
        return self._rows.update(self.store, self.store.pictures, "decoding pictures")

    def array(self, camera: str) -> UInt8[ndarray, "N h w 3"]:
        """All pictures of a camera as of the last `update()`, memory-mapped and read-only."""
        return self._rows.array(camera)

    def gather(self, camera: str, frame_indices: Int64[ndarray, "B"]) -> UInt8[ndarray, "B h w 3"]:
        """Rows of `array(camera)`. Raises ValueError for an index beyond the last `update()`."""
        return self._rows.gather(camera, frame_indices)


class FeatureCache:
    """What a frozen vision tower makes of every picture, in the order of `ExperienceStore.columns()`."""

    def __init__(self, root: str | Path, key: str, frames: FrameCache, shape: tuple[int, ...]) -> None:
        """key: hash of the tower's weights and of whatever else decides its output; a folder for each key.
        shape: of one picture's features."""
        if not re.fullmatch(r"\w[\w.-]*", key):
            raise ValueError(f"key {key!r} names a folder: letters, digits, '_', '-' and '.' only")
        self._frames = frames
        self._rows = _RowFiles(Path(root) / key, {"features": (len(frames.store.cameras), *shape)}, np.float16)

    def update(
        self,
        encode: Callable[[dict[str, UInt8[ndarray, "n h w 3"]]], Float16[ndarray, "n C ..."]],
        batch_size: int = 256,
    ) -> int:
        """Update the frame cache, then encode the episodes that are new or have changed; how many those were.

        encode: pictures by camera, in the order of `store.cameras` -> features, cameras in the same order.
        """
        self._frames.update()
        store = self._frames.store
        starts = np.cumsum([0, *store.lengths])

        def features(episode: int) -> dict[str, ndarray]:
            start, end = int(starts[episode]), int(starts[episode + 1])
            parts = []
            for first in range(start, end, batch_size):
                rows = slice(first, min(first + batch_size, end))
                parts.append(encode({camera: np.array(self._frames.array(camera)[rows]) for camera in store.cameras}))
            return {"features": np.concatenate(parts)}

        return self._rows.update(store, features, "encoding pictures")

    def array(self) -> Float16[ndarray, "N C ..."]:
        """All features as of the last `update()`, memory-mapped and read-only."""
        return self._rows.array("features")

    def gather(self, frame_indices: Int64[ndarray, "B"]) -> Float16[ndarray, "B C ..."]:
        """Rows of `array()`. Raises ValueError for an index beyond the last `update()`."""
        return self._rows.gather("features", frame_indices)


class _RowFiles:
    """Files that grow together, an episode at a time. shapes: file -> shape of one row."""

    def __init__(self, folder: Path, shapes: dict[str, tuple[int, ...]], dtype: type[np.generic]) -> None:
        self._folder, self._shapes, self._dtype = folder, shapes, np.dtype(dtype)
        self._arrays = {name: np.zeros((0, *shape), dtype) for name, shape in shapes.items()}

    def update(self, store: ExperienceStore, make: Callable[[int], dict[str, ndarray]], verb: str) -> int:
        """Append `make(i)` for every episode i whose digest is not in the index; how many those were."""
        wanted = [[store.episode_digest(i), steps] for i, steps in enumerate(store.lengths)]
        done = self._read_index()
        same = next((i for i, (a, b) in enumerate(zip(done, wanted, strict=False)) if a != b), len(done))
        same = min(same, len(wanted))
        if same < len(done):  # forgotten before their rows are written over
            self._write_index(wanted[:same])
        if same < len(wanted):
            self._build(wanted, same, make, verb)
        rows = sum(steps for _, steps in wanted)
        for name, shape in self._shapes.items():
            if rows:
                self._arrays[name] = np.memmap(self._file(name), self._dtype, "r", shape=(rows, *shape))
        return len(wanted) - same

    def _build(self, wanted: list[list], first: int, make: Callable[[int], dict[str, ndarray]], verb: str) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        start = sum(steps for _, steps in wanted[:first])
        committed = time.monotonic()
        for episode in tqdm(range(first, len(wanted)), desc=verb, unit="episode", delay=2):
            parts, steps = make(episode), wanted[episode][1]
            for name, shape in self._shapes.items():
                if parts[name].shape != (steps, *shape):
                    raise ValueError(f"{verb}: got shape {parts[name].shape}, expected {(steps, *shape)}")
                self._write(name, start, parts[name])
            start += steps
            if time.monotonic() - committed > _COMMIT_SECONDS or episode == len(wanted) - 1:
                self._write_index(wanted[: episode + 1])
                committed = time.monotonic()

    def _write(self, name: str, start: int, rows: ndarray) -> None:
        self._file(name).touch()
        with self._file(name).open("r+b") as file:
            file.seek(start * math.prod(self._shapes[name]) * self._dtype.itemsize)
            file.write(np.ascontiguousarray(rows, self._dtype).data)

    def array(self, name: str) -> Shaped[ndarray, "N ..."]:
        return self._arrays[name]

    def gather(self, name: str, indices: Int64[ndarray, "B"]) -> Shaped[ndarray, "B ..."]:
        array = self._arrays[name]
        if indices.size and not 0 <= indices.min() <= indices.max() < len(array):
            raise ValueError(
                f"frames {indices.min()} to {indices.max()} of {len(array)} cached ones; "
                "call update() after the store has grown"
            )
        return np.asarray(array[indices])

    def _file(self, name: str) -> Path:
        return self._folder / f"{name}.bin"

    def _header(self) -> dict[str, object]:
        return {
            "dtype": self._dtype.name,
            "rows": [[name, list(shape)] for name, shape in self._shapes.items()],
        }

    def _read_index(self) -> list[list]:
        """[digest, steps] of the episodes on disk; none where the rows are of another kind."""
        path = self._folder / "index.json"
        index = json.loads(path.read_text()) if path.exists() else {}
        return index["episodes"] if {**index, "episodes": None} == {**self._header(), "episodes": None} else []

    def _write_index(self, episodes: list[list]) -> None:
        new = self._folder / "index.json.new"
        new.write_text(json.dumps({**self._header(), "episodes": episodes}))
        os.replace(new, self._folder / "index.json")
