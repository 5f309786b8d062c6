"""What recording costs a control loop: how much later its steps come, and whether the recorder keeps up.

    python benchmarks/recording.py
    python benchmarks/recording.py --realtime          # the loop has a real-time priority (root)

Two cameras at 224 px and 30 steps a second, pictures prepared beforehand. The loop sleeps until its next tick, records the
step, and does nothing else. *Late* is when it wakes, *done* is when the step is recorded, both counted from the tick. The
ways take turns, an episode each, so that all of them see the same machine; the first is the loop without recording.

LeRobot is asked in its usual way, `add_frame` and `save_episode` in the loop, without and with its streaming encoder. Then
`BackgroundRecorder` records episodes that follow each other without a pause.
"""

import contextlib
import io
import logging
import os
import resource
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import numpy as np
import tyro
from _common import print_header, print_row
from lerobot.datasets.lerobot_dataset import LeRobotDataset

from aloe.experience.background import BackgroundRecorder
from aloe.experience.schema import features
from aloe.experience.store import ExperienceStore

GOAL_MS = 2.0
CAMERAS: tuple[str, ...] = ("top", "wrist")
STATE_DIM, ACTION_DIM = 14, 7


@dataclass(frozen=True, kw_only=True)
class Config:
    episodes: int = 10
    """Of each way."""
    seconds: float = 10
    """Of each episode."""
    endless: int = 12
    """Episodes that follow each other without a pause, of half to one and a half times `seconds`."""
    image_size: int = 224
    fps: int = 30
    realtime: bool = False
    """Give the loop a real-time priority (SCHED_FIFO), as a robot's may have: other jobs do not delay it then."""
    lerobot: bool = True
    """Measure LeRobot, too."""


@dataclass(frozen=True, kw_only=True)
class Ticks:
    """Seconds."""

    late: list[float] = field(default_factory=list)
    """From the tick until the loop woke."""
    spent: list[float] = field(default_factory=list)
    """In recording the step."""
    between: list[float] = field(default_factory=list)
    """Until the next episode could begin."""

    @property
    def done(self) -> np.ndarray:
        return np.add(self.late, self.spent)


Step = Callable[[int], None]


def sizes_of(config: Config) -> dict[str, tuple[int, int]]:
    return dict.fromkeys(CAMERAS, (config.image_size, config.image_size))


def pictures(config: Config) -> dict[str, np.ndarray]:
    """Camera -> (T, h, w, 3): gradients that move, and a sensor's noise. They repeat after a while."""
    rng, size = np.random.default_rng(0), config.image_size
    y, x = np.mgrid[:size, :size] / size
    noise = rng.integers(-8, 9, (16, size, size, 3), dtype=np.int16)
    made = {}
    for place, camera in enumerate(CAMERAS):
        waves = [
            np.stack([np.sin(6 * x + t / 20 + place), np.cos(5 * y - t / 15), np.sin(4 * (x + y) + t / 30)], -1)
            for t in range(150)
        ]
        made[camera] = np.stack(
            [np.clip(128 + 100 * wave + noise[t % 16], 0, 255) for t, wave in enumerate(waves)]
        ).astype(np.uint8)
    return made


def play(steps: int, fps: int, step: Step, end: Callable[[], None], ticks: Ticks) -> None:
    """One episode of the control loop."""
    start = time.perf_counter() + 1 / fps
    for t in range(steps):
        tick = start + t / fps
        time.sleep(max(0, tick - time.perf_counter()))
        woke = time.perf_counter()
        step(t)
        ticks.late.append(woke - tick)
        ticks.spent.append(time.perf_counter() - woke)
    before = time.perf_counter()
    end()
    ticks.between.append(time.perf_counter() - before)


def lerobot_way(root: Path, config: Config, seen: dict[str, np.ndarray], streaming: bool) -> tuple[Step, Step]:
    columns = features(sizes_of(config), STATE_DIM, ACTION_DIM, video=True)
    columns = {key: column for key, column in columns.items() if key.startswith(("observation", "action"))}
    dataset = LeRobotDataset.create(
        "local/recording", config.fps, columns, root=root, use_videos=True, streaming_encoding=streaming
    )
    state, action = np.zeros(STATE_DIM, np.float32), np.zeros(ACTION_DIM, np.float32)

    def step(t: int) -> None:
        images = {f"observation.images.{camera}": frames[t % len(frames)] for camera, frames in seen.items()}
        dataset.add_frame({**images, "observation.state": state, "action": action, "task": "press the button"})

    def end(_: int) -> None:
        with contextlib.redirect_stderr(io.StringIO()):  # progress bars
            dataset.save_episode()

    return step, end


def background_way(recorder: BackgroundRecorder, seen: dict[str, np.ndarray]) -> tuple[Step, Step]:
    rng = np.random.default_rng(0)

    def step(t: int) -> None:
        images = {camera: frames[t % len(frames)] for camera, frames in seen.items()}
        recorder.add(images, rng.standard_normal(STATE_DIM), rng.standard_normal(ACTION_DIM))

    return step, lambda _: recorder.finish(task="press the button", success=True)


def percentiles(seconds: np.ndarray | list[float], *wanted: float) -> str:
    return " / ".join(f"{value:.2f}" for value in 1000 * np.percentile(seconds, wanted))


def show(name: str, ticks: Ticks, base: Ticks) -> None:
    added = 1000 * (np.percentile(ticks.done, 99) - np.percentile(base.done, 99))
    print_row(
        [
            name,
            len(ticks.late),
            percentiles(ticks.late, 50, 99),
            percentiles(ticks.spent, 50, 99, 100),
            percentiles(ticks.done, 50, 99),
            f"{added:+.2f}",
            f"{max(ticks.between):.2f}",
            ""
            if ticks is base
            else f"{'met' if max(added, 1000 * np.percentile(ticks.spent, 99)) < GOAL_MS else 'missed'}",
        ]
    )


def peak_megabytes(pid: int) -> float:
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 1024


def main(config: Config) -> None:
    logging.disable(logging.WARNING)
    seen, steps = pictures(config), round(config.seconds * config.fps)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "store"
        sizes = {"state_dim": STATE_DIM, "action_dim": ACTION_DIM, "fps": config.fps, "video": True}
        ExperienceStore.create(root, cameras=sizes_of(config), **sizes).close()
        with BackgroundRecorder(root) as recorder:
            ways = {"nothing": (lambda t: None, lambda t: None), "BackgroundRecorder": background_way(recorder, seen)}
            if config.lerobot:
                for name, streaming in (("LeRobot", False), ("LeRobot, streaming encoder", True)):
                    ways[name] = lerobot_way(Path(folder) / name, config, seen, streaming)
            policy = (os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, 10) if config.realtime else (os.SCHED_OTHER, 0)
            measured = {name: Ticks() for name in ways}
            for _ in range(config.episodes):
                for name, (step, end) in ways.items():
                    # Anew each time: LeRobot's encoder leaves the loop of root with the highest there is.
                    os.sched_setscheduler(0, policy[0], os.sched_param(policy[1]))
                    play(steps, config.fps, step, lambda end=end: end(0), measured[name])
                    recorder.flush()
            priority = "real-time" if config.realtime else "ordinary"
            print_header(
                f"A control loop of {priority} priority with {len(CAMERAS)} cameras of {config.image_size} px at "
                f"{config.fps} steps/s, {config.episodes} episodes of {config.seconds:g} s",
                [
                    "recording",
                    "steps",
                    "late, 50 / 99 %, ms",
                    "in the call, 50 / 99 / 100 %, ms",
                    "done, 50 / 99 %, ms",
                    "added to done at 99 %, ms",
                    "longest stop after an episode, s",
                    f"goal: < {GOAL_MS:g} ms at 99 %",
                ],
            )
            for name, ticks in measured.items():
                show(name, ticks, measured["nothing"])
            endless(recorder, config, seen)


def endless(recorder: BackgroundRecorder, config: Config, seen: dict[str, np.ndarray]) -> None:
    rng, ticks, behind = np.random.default_rng(1), Ticks(), []
    step, end = background_way(recorder, seen)

    def step_and_look(t: int) -> None:
        step(t)
        behind.append(recorder.backlog)

    committed = recorder.num_committed
    for _ in range(config.endless):
        steps = round(config.seconds * config.fps * rng.uniform(0.5, 1.5))
        play(steps, config.fps, step_and_look, lambda: end(0), ticks)
    last = recorder.backlog
    start = time.perf_counter()
    recorder.flush()
    waited = time.perf_counter() - start
    print()
    columns = ["episodes without a pause", "steps", "committed", "most steps behind", "behind at the end"]
    columns += ["s until all was committed", "in the call, 50 / 99 / 100 %, ms", "peak memory, MB: encoder, loop"]
    print_row(columns)
    print_row(["---"] * len(columns))
    loop = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print_row(
        [
            config.endless,
            len(behind),
            recorder.num_committed - committed,
            max(behind),
            last,
            f"{waited:.2f}",
            percentiles(ticks.spent, 50, 99, 100),
            f"{peak_megabytes(recorder.pid):.0f}, {loop:.0f}",
        ]
    )


if __name__ == "__main__":
    main(tyro.cli(Config, description=__doc__))
