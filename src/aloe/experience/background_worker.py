"""The process beside `background.BackgroundRecorder`: encodes pictures as they come, commits episodes.

It is started as `python -m aloe.experience.background_worker ROOT BUFFER_SECONDS FILE_DESCRIPTOR`, is given orders on stdin
and answers on stdout. When nobody is left to give orders it ends; what was finished until then is committed.
"""

import contextlib
import json
import os
import sys
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
from jaxtyping import Int64
from numpy import ndarray

from aloe.experience.background import ANSWERS, ENCODED, GIVEN, HEADER_BYTES, LOOK_SECONDS, shared_memory, step_type
from aloe.experience.pictures import Pictures
from aloe.experience.store import ExperienceStore
from aloe.types import Episode

_NICE: Final = 5
"""The control loop goes first. With 10, other jobs of ordinary priority starved the encoder until its buffer was full."""
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
        _write(replies, "store", refused=str(error))
        return
    with store:
        sizes = {"cameras": store.cameras, "state_dim": store.state_dim, "action_dim": store.action_dim}
        step = step_type(**sizes)
        os.posix_fallocate(memory, 0, HEADER_BYTES + max(1, round(buffer_seconds * store.fps)) * step.itemsize)
        worker = _Worker(store, *shared_memory(memory, step), replies)
        worker.say("store", **sizes)
        worker.serve()


class _Worker:
    def __init__(self, store: ExperienceStore, counters: Int64[ndarray, "3"], ring: ndarray, replies: int) -> None:
        self._store, self._counters, self._ring, self._replies = store, counters, ring, replies
        self._episode = 0  # number of the one in progress
        self._is_lost = False
        self._pictures: Pictures | None = None
        self._numbers: list[ndarray] = []

    def serve(self) -> None:
        """Until nobody is left to give orders."""
        rest = b""
        os.set_blocking(0, False)
        while True:
            given = int(
                self._counters[GIVEN]
            )  # before the orders: those that came before one of these steps are there now
            try:
                content = os.read(0, 2**16)
            except BlockingIOError:
                if given == self._counters[ENCODED]:
                    time.sleep(LOOK_SECONDS)
                self._take(given)
                continue
            if not content:
                self.discard()
                return
            *lines, rest = (rest + content).split(b"\n")
            for order in map(json.loads, lines):
                self._take(order.pop("after"))
                match order.pop("kind"):
                    case "finish":
                        self.finish(**order)
                    case "discard":
                        self.discard()

    def _take(self, until: int) -> None:
        """Steps out of the ring, up to this number of them in all."""
        for number in range(int(self._counters[ENCODED]), until):
            if not self._is_lost:
                slot = self._ring[number % len(self._ring)]
                try:
                    self._pictures = self._pictures or self._store.begin()
                    self._pictures.add({camera: slot["pictures"][camera] for camera in self._store.cameras})
                except (ValueError, OSError) as error:
                    self._lose(error)
                self._numbers.append(slot["numbers"].copy())
            self._counters[ENCODED] = number + 1

    def finish(self, *, task: str, success: bool, timeout: bool, seed: int) -> None:
        if not self._is_lost:
            numbers = np.array(self._numbers)
            last = np.arange(len(numbers)) == len(numbers) - 1
            columns: dict[str, Any] = {name: np.ascontiguousarray(numbers[name]) for name in numbers.dtype.names or ()}
            try:
                self._store.append(
                    Episode(
                        task=task,
                        seed=seed,
                        images={},
                        **columns,
                        reward=np.where(last & success, 0, -1).astype(np.float32),
                        terminated=last & (not timeout),
                        truncated=last & timeout,
                        success=last & success,
                    ),
                    self._pictures,
                )
                self.say("committed", episode=self._episode)
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
        self.say("lost", episode=self._episode, why=str(error)[:_LONGEST])

    def say(self, kind: str, **fields: object) -> None:
        _write(self._replies, kind, **fields)
        self._counters[ANSWERS] += 1


def _write(replies: int, kind: str, **fields: object) -> None:
    # Whoever gave the orders may be dead by now; what it had finished is committed all the same.
    with contextlib.suppress(BrokenPipeError):
        os.write(replies, json.dumps({"kind": kind, **fields}).encode() + b"\n")


if __name__ == "__main__":
    main()
