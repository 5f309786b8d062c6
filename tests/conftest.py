"""Settings for every test: offline, few threads, and shapes that are checked while the tests run."""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MUJOCO_GL", "egl")

import numpy as np
import pytest
import torch
from jaxtyping import install_import_hook

torch.set_num_threads(1)

# Before any test imports them. Not aloe.value.fit: the tabular tests hand it a critic of their own.
CHECKED = ["aloe.returns", "aloe.losses", "aloe.experience.windows", "aloe.value.critic", "aloe.benchmark.statistics"]
install_import_hook(CHECKED, "beartype.beartype")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A worker takes a file at a time: those with slow tests first, so that at the end no worker waits for another's."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True)
def ordinary_priority() -> Iterator[None]:
    """SVT-AV1, with which LeRobot records, leaves a process of root at the highest real-time priority, and a Chromium that
    is started then stands still."""
    yield
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


@pytest.fixture
def record_with_lerobot(tmp_path: Path) -> Callable[..., Path]:
    """A dataset written by LeRobot's own recorder, as somebody else would have it."""

    def record(
        episodes: Sequence[dict[str, Sequence[Any]]],
        *,
        name: str = "foreign",
        cameras: dict[str, tuple[int, int]] | None = None,
        video: bool = False,
        channels_first: bool = False,
        state: str = "observation.state",
        action: str = "action",
        tasks: Sequence[str] | None = None,
    ) -> Path:
        """episodes: column -> a value a step, for every column besides state, action and pictures. A column of bools is
        one of bools, of vectors one of vectors. Step t of episode e has the action (e, t) and the state (t, e, 0).
        tasks: of every step, episode after episode.
        """
        from lerobot.datasets.lerobot_dataset import LeRobotDataset

        def feature(value: Any) -> dict[str, Any]:
            dtype = {"bool": "bool", "int64": "int64"}.get(np.asarray(value).dtype.name, "float32")
            return {"dtype": dtype, "shape": np.shape(value) or (1,), "names": None}

        columns = {state: feature([0.0] * 3), action: feature([0.0] * 2)}
        columns |= {key: feature(values[0]) for key, values in episodes[0].items()}
        for camera, (h, w) in (cameras or {}).items():
            names = ["channels", "height", "width"] if channels_first else ["height", "width", "channels"]
            shape = (3, h, w) if channels_first else (h, w, 3)
            columns[camera] = {"dtype": "video" if video else "image", "shape": shape, "names": names}
        dataset = LeRobotDataset.create("lab/foreign", 10, columns, root=tmp_path / name, use_videos=video)
        words = iter(tasks or ())
        for e, episode in enumerate(episodes):
            for t in range(len(next(iter(episode.values())))):
                frame: dict[str, Any] = {"task": next(words, "stack the cubes")}
                frame[state], frame[action] = np.array([t, e, 0], np.float32), np.array([e, t], np.float32)
                for key, values in episode.items():
                    frame[key] = np.asarray(values[t], columns[key]["dtype"]).reshape(columns[key]["shape"])
                for camera, (h, w) in (cameras or {}).items():
                    picture = np.full((h, w, 3), (30 * t, 80 * e, 50), np.uint8)
                    frame[camera] = picture.transpose(2, 0, 1) if channels_first else picture
                dataset.add_frame(frame)
            dataset.save_episode()
        dataset.finalize()
        return tmp_path / name

    return record
