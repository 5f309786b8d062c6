"""A store of ten thousand episodes: what it takes to open it, to append to it, to read its columns, and in memory.

    python benchmarks/store_size.py                        # builds 10,000 small episodes first: some minutes
    python benchmarks/store_size.py --folder DIR           # keeps them there, and uses them again

Appending alternates between the large store and one of ten episodes. Opening and reading happen in processes of their own,
whose peak memory is compared with that of one that only imports.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import tyro
from _common import print_header, print_row
from tqdm import tqdm

from aloe.experience.cache import Cache, FrameCache
from aloe.experience.store import ExperienceStore
from aloe.types import NO_POLICY, Episode, Source

CAMERAS = {"top": (16, 16)}
STEPS = 10
APPENDS = 30
GOALS = {"open": 2.0, "memory": 500, "append": 1.5}


@dataclass(frozen=True, kw_only=True)
class Config:
    episodes: int = 10_000
    folder: Path | None = None
    """Where the store is kept; by default a temporary folder."""
    measure: str = ""
    """What a process of its own is to do (`import`, `open`, `columns`, `cached`); for the benchmark's own use."""


def episode(index: int) -> Episode:
    rng, last = np.random.default_rng(index), np.arange(STEPS) == STEPS - 1
    return Episode(
        task=f"task {index % 10}",
        seed=index,
        images={camera: rng.integers(0, 255, (STEPS, h, w, 3), np.uint8) for camera, (h, w) in CAMERAS.items()},
        state=rng.standard_normal((STEPS, 4)).astype(np.float32),
        action=rng.standard_normal((STEPS, 4)).astype(np.float32),
        proposed_action=np.full((STEPS, 4), np.nan, np.float32),
        source=np.full(STEPS, Source.DEMO, np.int64),
        policy_version=np.full(STEPS, NO_POLICY, np.int64),
        reward=np.where(last, 0, -1).astype(np.float32),
        terminated=last,
        truncated=np.zeros(STEPS, bool),
        success=last,
    )


def filled(root: Path, episodes: int) -> ExperienceStore:
    if root.exists():
        store = ExperienceStore.open(root)
    else:
        store = ExperienceStore.create(root, cameras=CAMERAS, state_dim=4, action_dim=4, fps=20)
    for index in tqdm(range(store.num_episodes, episodes), desc="recording", unit="episode", delay=2):
        store.append(episode(index))
    return store


def in_a_process(folder: Path, what: str) -> dict[str, float]:
    """Seconds by what is done, and peak memory in MB, of a process that measures one thing."""
    command = [sys.executable, __file__, "--folder", str(folder), "--measure", what]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def measure(root: Path, what: str) -> dict[str, float]:
    seconds, start = {}, time.perf_counter()
    if what != "import":
        store = ExperienceStore.read(root)
        seconds["open"] = time.perf_counter() - start
        if what in ("columns", "cached"):
            start = time.perf_counter()
            store.columns()
            seconds["columns"] = time.perf_counter() - start
            start = time.perf_counter()
            store.columns()
            seconds["again"] = time.perf_counter() - start
        if what == "cached":
            start = time.perf_counter()
            FrameCache(Cache(root=root.parent / "cache"), store).update()
            seconds["pictures"] = time.perf_counter() - start
    return {**seconds, "memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def append_seconds(large: ExperienceStore, small: ExperienceStore) -> tuple[float, float]:
    """Medians of appending one episode, taken in turns."""
    seconds: dict[str, list[float]] = {"large": [], "small": []}
    for index in range(APPENDS):
        for name, store in (("large", large), ("small", small)):
            start = time.perf_counter()
            store.append(episode(10**6 + index))
            seconds[name].append(time.perf_counter() - start)
    return float(np.median(seconds["large"])), float(np.median(seconds["small"]))


def main(config: Config) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = config.folder or Path(temporary)
        if config.measure:
            print(json.dumps(measure(folder / "large", config.measure)))
            return
        folder.mkdir(parents=True, exist_ok=True)
        large = filled(folder / "large", config.episodes)
        with tempfile.TemporaryDirectory(dir=folder) as short:
            at_large, at_small = append_seconds(large, filled(Path(short) / "small", 10))
        large.close()
        bare, opened, read = (in_a_process(folder, what) for what in ("import", "open", "columns"))
        in_a_process(folder, "cached")
        again = in_a_process(folder, "cached")
        print_header(
            f"A store of {large.num_episodes} episodes of {STEPS} steps with pictures", ["what", "measured", "goal"]
        )
        print_row(["open, s", f"{opened['open']:.2f}", f"< {GOALS['open']:g}"])
        more = opened["memory"] - bare["memory"]
        print_row(["memory when open, MB above an import", f"{more:.0f}", f"< {GOALS['memory']}"])
        print_row(["append, ms", f"{1000 * at_large:.1f}", ""])
        print_row([f"append at 10 to {10 + APPENDS} episodes, ms", f"{1000 * at_small:.1f}", ""])
        print_row(["append, times that of the small store", f"{at_large / at_small:.2f}", f"< {GOALS['append']}"])
        print_row(["all columns for the first time in a process, s", f"{read['columns']:.2f}", ""])
        print_row(["all columns again, s", f"{read['again']:.3f}", ""])
        print_row(["memory with all columns, MB above an import", f"{read['memory'] - bare['memory']:.0f}", ""])
        print_row(["pictures that are in the cache, found again, s", f"{again['pictures']:.2f}", ""])


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
