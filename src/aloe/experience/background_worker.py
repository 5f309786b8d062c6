"""The process beside `background.BackgroundRecorder`: encodes pictures as they come, commits episodes.

It is started as `python -m aloe.experience.background_worker ROOT BUFFER_SECONDS FILE_DESCRIPTOR`, is given orders on stdin
and answers on stdout. When nobody is left to give orders it ends; what was finished until then is committed.
"""

import contextlib
import json
import mmap
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy import ndarray

from aloe.experience.background import step_type
from aloe.experience.pictures import Pictures
from aloe.experience.store import ExperienceStore
from aloe.types import Episode

_NICE: Final = 10
"""The control loop goes first."""
_LOOK_SECONDS: Final = 0.005
_LONGEST: Final = 2000
"""Characters of an error that are passed on."""


def main() -> None:
    root, buffer_seconds, memory = Path(sys.argv[1]), float(sys.argv[2]), int(sys.argv[3])
    replies = os.dup(1)
    os.dup2(2, 1)  # what anybody prints is no answer
    os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))  # the loop's own may be a real-time one
    os.nice(_NICE)
    try:
        store = ExperienceStore.open(root)
    except (ValueError, OSError) as error:
        _say(replies, "store", refused=str(error))
        return
    with store:
        sizes = {"cameras": store.cameras, "state_dim": store.state_dim, "action_dim": store.action_dim}
        step = step_type(**sizes)
        os.posix_fallocate(memory, 0, max(1, round(buffer_seconds * store.fps)) * step.itemsize)
        worker = _Worker(store, np.frombuffer(mmap.mmap(memory, 0), step), replies)
        _say(replies, "store", **sizes)
        for order in _orders():
            match order.pop("kind"):
                case "step":
                    worker.step()
                case "finish":
                    worker.finish(**order)
                case "discard":
                    worker.discard()
        worker.discard()


class _Worker:
    def __init__(self, store: ExperienceStore, ring: ndarray, replies: int) -> None:
        self._store, self._ring, self._replies = store, ring, replies
        self._taken = 0  # steps, of all episodes
        self._episode = 0  # number of the one in progress
        self._is_lost = False
        self._pictures: Pictures | None = None
        self._numbers: list[ndarray] = []

    def step(self) -> None:
        slot = self._ring[self._taken % len(self._ring)]
        self._taken += 1
        if not self._is_lost:
            try:
                self._pictures = self._pictures or self._store.begin()
                self._pictures.add({camera: slot["pictures"][camera] for camera in self._store.cameras})
            except (ValueError, OSError) as error:
                self._lose(error)
            self._numbers.append(slot["numbers"].copy())
        _say(self._replies, "encoded")

    def finish(self, *, task: str, success: bool, timeout: bool, seed: int) -> None:
        if not self._is_lost:
            numbers = np.array(self._numbers)
            last = np.arange(len(numbers)) == len(numbers) - 1
            try:
                self._store.append(
                    Episode(
                        task=task,
                        seed=seed,
                        images={},
                        **{name: np.ascontiguousarray(numbers[name]) for name in numbers.dtype.names or ()},
                        reward=np.where(last & success, 0, -1).astype(np.float32),
                        terminated=last & (not timeout),
                        truncated=last & timeout,
                        success=last & success,
                    ),
                    self._pictures,
                )
                _say(self._replies, "committed", episode=self._episode)
            except (ValueError, OSError) as error:
                self._lose(error)
        self.discard()

    def discard(self) -> None:
        """On to the next episode."""
        if self._pictures is not None:
            self._pictures.close()
        self._episode, self._is_lost, self._pictures, self._numbers = self._episode + 1, False, None, []

    def _lose(self, error: Exception) -> None:
        self._is_lost = True
        _say(self._replies, "lost", episode=self._episode, why=str(error)[:_LONGEST])


def _orders() -> Iterator[dict[str, Any]]:
    """Looks for orders now and then: whoever writes to a sleeping reader wakes it, and is put aside for it by the kernel."""
    rest = b""
    os.set_blocking(0, False)
    while True:
        try:
            content = os.read(0, 2**16)
        except BlockingIOError:
            time.sleep(_LOOK_SECONDS)
            continue
        if not content:
            return
        *lines, rest = (rest + content).split(b"\n")
        yield from map(json.loads, lines)


def _say(replies: int, kind: str, **fields: object) -> None:
    # Whoever gave the orders may be dead by now; what it had finished is committed all the same.
    with contextlib.suppress(BrokenPipeError):
        os.write(replies, json.dumps({"kind": kind, **fields}).encode() + b"\n")


if __name__ == "__main__":
    main()
