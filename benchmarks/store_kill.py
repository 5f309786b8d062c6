"""SIGKILL at random moments of a recording with video: how many committed episodes are lost, how many stores broken.

    python benchmarks/store_kill.py                      # 200 kills
    python benchmarks/store_kill.py --kills 1000 --seed 7

A recorder in a process of its own appends episodes of two cameras to one store and reports each one that is committed. It
is killed, LeRobot opens the folder as it was left, and then the store does, compares every checksum and decodes the last
episode. Exit code 1 if anything was lost.
"""

import contextlib
import os
import select
import signal
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import tyro
from _common import print_header, print_row
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from aloe.experience.store import ExperienceStore
from aloe.types import NO_POLICY, Episode, Source

CAMERAS = {"top": (64, 64), "wrist": (64, 64)}
FPS = 20


@dataclass(frozen=True, kw_only=True)
class Config:
    kills: int = 200
    """How often the recorder is killed."""
    steps: int = 12
    """Steps of an episode."""
    seed: int = 0
    """Of the moments at which it is killed."""


def episode(index: int, steps: int) -> Episode:
    """Its actions say which one it is."""
    last = np.arange(steps) == steps - 1
    shade = np.linspace(0, 120, 64, dtype=np.uint8)[None, None, :, None] + np.zeros((steps, 64, 64, 3), np.uint8)
    return Episode(
        task="press the button",
        seed=index,
        images={camera: shade + (index + place) % 8 for place, camera in enumerate(CAMERAS)},
        state=np.full((steps, 4), index, np.float32),
        action=np.full((steps, 4), index, np.float32),
        proposed_action=np.full((steps, 4), np.nan, np.float32),
        source=np.full(steps, Source.DEMO, np.int64),
        policy_version=np.full(steps, NO_POLICY, np.int64),
        reward=np.where(last, 0, -1).astype(np.float32),
        terminated=last,
        truncated=np.zeros(steps, bool),
        success=last,
    )


def in_a_child(work: Callable[[int], None]) -> tuple[int, int]:
    """Start `work`; its pid, and the end of a pipe whose other end it is given. This process never encodes nor decodes, so
    that no thread of a codec is missing in a child."""
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        os.close(reader)
        code = 1
        try:
            work(writer)
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    return pid, reader


def record(root: Path, steps: int, writer: int) -> None:
    with ExperienceStore.open(root) as store:
        os.write(writer, b".")  # ready
        while True:
            store.append(episode(store.num_episodes, steps))
            os.write(writer, b".")


def is_whole(root: Path, steps: int, committed: int) -> bool:
    """Whether the store, tidied up, has all committed episodes, undamaged."""
    with ExperienceStore.open(root) as store:
        frames = store.columns()
        expected = np.repeat(np.arange(store.num_episodes), steps)
        whole = store.num_episodes >= committed and np.array_equal(frames.action[:, 0], expected)
        if store.num_episodes:
            pictures = store.pictures(store.num_episodes - 1)
            whole &= all(len(pictures[camera]) == steps for camera in CAMERAS)
        return bool(whole) and not list(store.verify())


def lerobot_opens(root: Path, steps: int, committed: int) -> bool:
    dataset = LeRobotDataset("local/store", root=root)
    whole = dataset.num_episodes >= committed and len(dataset) == steps * dataset.num_episodes
    return whole and dataset.hf_dataset[len(dataset) - 1]["episode_index"].item() == dataset.num_episodes - 1


def succeeds(work: Callable[[], bool]) -> bool:
    pid, reader = in_a_child(lambda writer: None if work() else os._exit(2))
    os.close(reader)
    return os.waitpid(pid, 0)[1] == 0


def kill_once(root: Path, steps: int, rng: np.random.Generator, typical: float) -> int:
    """Record, and kill after a random while; how many episodes were reported as committed."""
    pid, reader = in_a_child(lambda writer: record(root, steps, writer))
    os.read(reader, 1)
    select.select([], [], [], float(rng.uniform(0, 2 * typical)))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    reported = len(os.read(reader, 10_000))
    os.close(reader)
    return reported


def main(config: Config) -> int:
    # Arrow's threads stand still while this process forks.
    warnings.filterwarnings("ignore", message=".*use of fork", category=DeprecationWarning)
    rng = np.random.default_rng(config.seed)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "store"
        sizes = {"state_dim": 4, "action_dim": 4, "fps": FPS, "video": True}
        ExperienceStore.create(root, cameras=CAMERAS, **sizes).close()

        def two_episodes() -> bool:
            with ExperienceStore.open(root) as store:
                return [store.append(episode(index, config.steps)) for index in range(2)] == [0, 1]

        start = time.monotonic()
        assert succeeds(two_episodes), "the recorder does not even work undisturbed"
        typical = (time.monotonic() - start) / 2
        committed, lost, unopened = 2, 0, 0
        for _ in range(config.kills):
            committed += kill_once(root, config.steps, rng, typical)
            with contextlib.redirect_stdout(sys.stderr):
                unopened += not succeeds(partial(lerobot_opens, root, config.steps, committed))
                lost += not succeeds(partial(is_whole, root, config.steps, committed))
            committed = max(committed, ExperienceStore.read(root).num_episodes)
        quarantined = len(list(root.glob("quarantine/*")))
        damaged = sum(1 for _ in ExperienceStore.read(root).verify())
        print_header(
            f"A recorder of two cameras with video, killed at random moments; {typical * 1000:.0f} ms an episode, "
            f"{committed} episodes committed, {quarantined} times something half was set aside",
            ["kills", "stores with lost or damaged episodes", "stores that LeRobot could not open", "damaged files"],
        )
        print_row([config.kills, lost, unopened, damaged])
    return int(bool(lost or unopened or damaged))


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Config, description=__doc__)))
