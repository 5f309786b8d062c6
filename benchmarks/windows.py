"""Random windows a second: ALOE's memory-mapped frames against LeRobot's dataset on the very same store.

    .venv/bin/python benchmarks/windows.py

A window is the pictures of two cameras and the state at one step, and the next 16 actions with their padding mask. LeRobot
is asked in its usual way: a `LeRobotDataset` with `delta_timestamps` for the actions, in a torch `DataLoader`. Both give
pictures as uint8. (LeRobot pads at the end of the episode, ALOE at the end of the fragment: here the same.)
"""

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import torch
import tyro
from _common import per_second, print_header, print_row
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from aloe.experience.cache import Cache, FrameCache
from aloe.experience.store import ExperienceStore
from aloe.experience.windows import WindowConfig, make_windows, return_scale
from aloe.types import NO_POLICY, Episode, Source

GOAL = 20  # times as many windows a second as LeRobot
H = 16
CAMERAS: tuple[str, ...] = ("topview", "behindGripper")


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to measure."""

    episodes: int = 20
    steps: int = 60
    """T: steps of each episode."""
    image_size: int = 96
    fps: int = 20
    batch_size: int = 64
    seconds: float = 15
    """How long to measure each cell."""
    loader_workers: tuple[int, ...] = (0, 2)
    """Numbers of processes of LeRobot's loader; the fastest one is what we compare with."""
    threads: int = 1
    """Threads of torch."""


def smooth_pictures(rng: np.random.Generator, steps: int, size: int) -> np.ndarray:
    """(T, h, w, 3): a bright spot that moves over a gradient. Noise would be unlike pictures to every codec."""
    y, x = np.mgrid[:size, :size] / size
    centre = rng.uniform(0.2, 0.8, 2) + np.linspace(0, 1, steps)[:, None] * rng.uniform(-0.2, 0.2, 2)
    spot = np.exp(-((x - centre[:, :1, None]) ** 2 + (y - centre[:, 1:, None]) ** 2) / 0.02)
    return (255 * np.stack([spot, np.broadcast_to(x, spot.shape), np.broadcast_to(y, spot.shape)], -1)).astype(np.uint8)


def make_store(root: Path, config: Config, video: bool) -> ExperienceStore:
    cameras = dict.fromkeys(CAMERAS, (config.image_size, config.image_size))
    store = ExperienceStore.create(root, cameras=cameras, state_dim=4, action_dim=4, fps=config.fps, video=video)
    rng, last = np.random.default_rng(0), np.arange(config.steps) == config.steps - 1
    for index in range(config.episodes):
        episode = Episode(
            task="press the button",
            seed=index,
            images={camera: smooth_pictures(rng, config.steps, config.image_size) for camera in cameras},
            state=rng.standard_normal((config.steps, 4)).astype(np.float32),
            action=rng.uniform(-1, 1, (config.steps, 4)).astype(np.float32),
            proposed_action=np.full((config.steps, 4), np.nan, np.float32),
            source=np.full(config.steps, Source.DEMO, np.int64),
            policy_version=np.full(config.steps, NO_POLICY, np.int64),
            reward=np.where(last, 0, -1).astype(np.float32),
            terminated=last,
            truncated=np.zeros(config.steps, bool),
            success=last,
        )
        store.append(episode)
    return store


def building_rates(store: ExperienceStore, cache: Path) -> tuple[float, float]:
    """Pictures a second: of the decoder alone, and into the cache. In turns, since a machine has moods."""
    seconds: dict[str, list[float]] = {"decode": [], "build": []}
    for turn in range(3):
        start = time.perf_counter()
        for index in range(store.num_episodes):
            store.pictures(index)
        seconds["decode"].append(time.perf_counter() - start)
        start = time.perf_counter()
        FrameCache(Cache(root=cache / str(turn)), store).update()
        seconds["build"].append(time.perf_counter() - start)
    pictures = store.num_frames * len(store.cameras)
    return pictures / float(np.median(seconds["decode"])), pictures / float(np.median(seconds["build"]))


def cached_windows(store: ExperienceStore, cache: Path, config: Config) -> float:
    """Windows a second."""
    pictures = FrameCache(Cache(root=cache), store)
    pictures.update()
    frames = store.columns()
    windows = make_windows(frames, WindowConfig(horizon=H), return_scale(frames))
    state, action = torch.from_numpy(frames.state), torch.from_numpy(frames.action)
    generator = torch.Generator().manual_seed(0)

    def batch() -> dict[str, torch.Tensor]:
        rows = torch.randint(len(windows), (config.batch_size,), generator=generator)
        picked = rows.numpy()
        return {
            **{camera: torch.from_numpy(pictures.gather(camera, picked)) for camera in store.cameras},
            "state": state[rows],
            "action": action[torch.from_numpy(windows.frames[picked])],
            "is_pad": torch.from_numpy(windows.is_pad[picked]),
        }

    return config.batch_size * per_second(batch, config.seconds / 3)


def lerobot_windows(store: ExperienceStore, config: Config, workers: int) -> float:
    dataset = LeRobotDataset(
        store.root.name,
        root=store.root,
        delta_timestamps={"action": [k / config.fps for k in range(H)]},
        return_uint8=True,
    )
    sampler = torch.utils.data.RandomSampler(
        dataset, replacement=True, num_samples=10**7, generator=torch.Generator().manual_seed(0)
    )
    loader = torch.utils.data.DataLoader(dataset, config.batch_size, sampler=sampler, num_workers=workers)
    batches = iter(loader)
    # What the workers have prefetched while they started must not count: two batches each.
    return config.batch_size * per_second(lambda: next(batches), config.seconds, warm_up=2 + 2 * workers)


def main(config: Config) -> None:
    torch.set_num_threads(config.threads)
    print_header(
        f"Windows of two cameras of {config.image_size} px, state and {H} actions; batches of {config.batch_size} from "
        f"{config.episodes * config.steps} frames",
        [
            "store",
            "ALOE, windows/s",
            *[f"LeRobot, {n} workers" for n in config.loader_workers],
            "times as fast",
            "goal",
            "decoded, pictures/s",
            "into the cache, pictures/s",
        ],
    )
    for name, video in (("PNG in parquet", False), ("video", True)):
        with tempfile.TemporaryDirectory() as folder:
            store = make_store(Path(folder) / "store", config, video)
            decoded, built = building_rates(store, Path(folder) / "caches")
            ours = cached_windows(store, Path(folder) / "cache", config)
            theirs = [lerobot_windows(store, config, workers) for workers in config.loader_workers]
        ratio = ours / max(theirs)
        print_row(
            [
                name,
                f"{ours:.0f}",
                *[f"{rate:.0f}" for rate in theirs],
                f"{ratio:.0f}",
                f">= {GOAL}: {'met' if ratio >= GOAL else 'missed'}",
                f"{decoded:.0f}",
                f"{built:.0f}",
            ]
        )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
