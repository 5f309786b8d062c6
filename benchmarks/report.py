"""How long the page of `aloe report` takes, and how large it is.

    python benchmarks/report.py runs/quickstart-0 runs/other     # of runs that are there
    python benchmarks/report.py --large DIR                      # and of one with large pictures, recorded into DIR first

The large one is an offline run on 30 episodes of 300 steps, seen by two cameras of 640 x 480 pixels whose pictures move and
are noisy, in AV1 as LeRobot records it; DIR is kept and used again.
"""

import os
import time
from dataclasses import dataclass, replace
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import tyro
from _common import print_header, print_row
from jaxtyping import UInt8
from numpy import ndarray
from tqdm import tqdm

from aloe.config import PRESETS
from aloe.experience.mixture import RootConfig
from aloe.experience.store import ExperienceStore
from aloe.report.folder import RunSoFar
from aloe.report.page import make_page
from aloe.run import to_plain, write_json
from aloe.types import NO_POLICY, Episode, Source

EPISODES, STEPS, SIZE = 30, 300, (480, 640)
GOALS = {"seconds": 30, "MB": 25}


@dataclass(frozen=True, kw_only=True)
class Config:
    runs: tyro.conf.Positional[tuple[Path, ...]] = ()
    """Run folders."""
    large: Path | None = None
    """Folder for the run with large pictures."""


def moving(seed: int) -> UInt8[ndarray, "T h w 3"]:
    """Coloured waves that drift, and a camera's noise."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[: SIZE[0], : SIZE[1]] / 60
    noise = rng.normal(0, 4, (*SIZE, 3))
    shown = np.empty((STEPS, *SIZE, 3), np.uint8)
    for t in range(STEPS):
        waves = [np.sin(x * a + y * b + t / 15 + seed) for a, b in ((1, 0.5), (0.3, 1), (0.7, -0.8))]
        picture = 128 + 80 * np.stack(waves, -1) + np.roll(noise, rng.integers(SIZE[1]), axis=1)
        shown[t] = picture.clip(0, 255)
    return shown


def episode(seed: int) -> Episode:
    rng, last = np.random.default_rng(seed), np.arange(STEPS) == STEPS - 1
    return Episode(
        task="fold the towel",
        seed=seed,
        images={"top": moving(seed), "wrist": moving(seed + 1000)},
        state=rng.standard_normal((STEPS, 7)).astype(np.float32),
        action=rng.standard_normal((STEPS, 7)).astype(np.float32),
        proposed_action=np.full((STEPS, 7), np.nan, np.float32),
        source=np.full(STEPS, Source.DEMO),
        policy_version=np.full(STEPS, NO_POLICY),
        reward=np.where(last, 0, -1).astype(np.float32),
        terminated=last,
        truncated=np.zeros(STEPS, bool),
        success=last,
    )


def large_run(folder: Path) -> Path:
    """An offline run that has just begun."""
    data = folder / "data"
    sizes = {"top": SIZE, "wrist": SIZE}
    if data.exists():
        store = ExperienceStore.open(data)
    else:
        store = ExperienceStore.create(data, cameras=sizes, state_dim=7, action_dim=7, fps=30, video=True)
    for seed in tqdm(range(store.num_episodes, EPISODES), desc="recording", unit="episode"):
        store.append(episode(seed))
    store.close()
    config = replace(PRESETS["offline"], experience={"demos": RootConfig(root=data.resolve())})
    write_json(folder / "run" / "config.json", to_plain(config))
    return folder / "run"


def main(config: Config) -> None:
    runs = [*config.runs, *([large_run(config.large)] if config.large else [])]
    print_header(f"The page of a run with {EPISODES} episodes", ["run", "episodes", "steps", "seconds", "MB"])
    for root in runs:
        start = time.perf_counter()
        run = RunSoFar.read(root)
        page = make_page([run], EPISODES)
        seconds = time.perf_counter() - start
        lengths = run.experience.lengths
        size = len(page.html.encode()) / 1e6
        print_row([root.name, min(len(lengths), EPISODES), f"{np.mean(lengths):.0f}", f"{seconds:.1f}", f"{size:.1f}"])
    print(f"\ngoals: at most {GOALS['seconds']} s and {GOALS['MB']} MB")


if __name__ == "__main__":
    main(tyro.cli(Config))
