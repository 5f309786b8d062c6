"""Recording beside a control loop: pictures are encoded and episodes committed in a process of their own.

    with BackgroundRecorder("store") as recorder:
        while ...:
            recorder.add({"top": picture, "wrist": picture}, state, action)     # in the control loop, at the store's fps
        recorder.finish(task="put the peg into the hole", success=True)         # or recorder.discard()

All that the loop does is to copy each step into memory that both processes see, a ring of so many steps, and to count it
there. What takes time is done in the other process (`background_worker.py`), at a lower priority; a thread would hold the
interpreter's lock just when the loop wants to go on. Nor does a step wake anybody or touch a pipe: the kernel may put the
loop aside then, which cost 10 ms in one step of a hundred. Ends of episodes, and answers, are lines of JSON in two pipes.

**Nothing is dropped, and no call but `flush` and `close` waits.** If the encoder falls behind by a whole ring, the episode
in progress is lost, and the loop is told. Whatever else goes wrong it is told at its next call: `RecordingError`.
"""

import json
import mmap
import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Final

import numpy as np
from jaxtyping import Float, Int64, UInt8
from numpy import ndarray

from aloe.types import NO_POLICY, NO_SEED, Source

_PACKAGES: Final = Path(__file__).resolve().parents[2]
"""Where `aloe` was imported from: the worker must import the same one."""


class RecordingError(RuntimeError):
    """Episodes are lost; the message says which and why. What was committed is intact.

    Episodes are numbered as this recorder was given them, from 0, the lost and discarded ones too. Three cases:
    - The episode in progress is lost. `add` says so until `finish`, which says it again, or `discard`; then go on.
    - An earlier one could not be committed. The call that says so has done its work, and the episode in progress goes on.
    - The other process has ended. Every call says so; close the recorder and open another one.
    """


LOOK_SECONDS: Final = 0.005
"""Between two looks at what is new, of both processes."""
GIVEN: Final = 0
"""Steps that were given, in all. Only the loop writes it, after the step itself."""
ENCODED: Final = 1
"""Steps that were taken out again. Only the other process writes this and the next."""
ANSWERS: Final = 2
"""Answers that were written to the pipe."""
HEADER_BYTES: Final = 4096


def shared_memory(memory: int, step: np.dtype[np.void]) -> tuple[Int64[ndarray, "3"], ndarray]:
    """The counters and the ring (n,), both in the file `memory`. Who sees a step counted sees the step: x86 keeps stores in
    order, and elsewhere many instructions lie between the two."""
    shared = mmap.mmap(memory, 0, flags=mmap.MAP_SHARED | mmap.MAP_POPULATE)
    return np.frombuffer(shared, np.int64, 3), np.frombuffer(shared, step, offset=HEADER_BYTES)


def step_type(cameras: Mapping[str, tuple[int, int]], state_dim: int, action_dim: int) -> np.dtype[np.void]:
    """One step as it lies in the ring. cameras: name -> (h, w)."""
    vectors = [("state", state_dim), ("action", action_dim), ("proposed_action", action_dim)]
    numbers = [(name, np.float32, (dim,)) for name, dim in vectors]
    numbers += [(name, np.int64, ()) for name in ("source", "policy_version")]
    pictures = [(camera, np.uint8, (h, w, 3)) for camera, (h, w) in cameras.items()]
    return np.dtype([("numbers", np.dtype(numbers)), ("pictures", np.dtype(pictures))])


class BackgroundRecorder:
    """The only writer of a store until it is closed. For one thread.

    Episodes that were finished are committed even if this process is killed; one in progress is then lost.
    """

    def __init__(self, root: str | Path, *, buffer_seconds: float = 10.0) -> None:
        """Takes some seconds, in which the other process starts.

        Args:
            root: of an existing store (`ExperienceStore.create`), best with video: of PNG, an episode's stay in memory.
            buffer_seconds: how far the encoder may fall behind, in steps at the store's fps. The memory for it is
                taken at once: with two cameras of 224 px at 30 fps, 9 MB a second.

        Raises:
            ValueError: there is no store, or another process writes to it.
            RecordingError: the other process could not start.
        """
        self.num_committed = 0
        """Episodes that are in the store for certain."""
        self._episode, self._steps = 0, 0  # number and length of the episode in progress
        self._lost: str | None = None  # why that one is lost
        self._unconfirmed: list[int] = []  # finished episodes of which nothing was heard yet
        self._earlier: list[str] = []  # losses of those that are still to be told
        self._end: str | None = None  # why nothing can be recorded any more
        self._given, self._answers = 0, 0
        self._heard, self._store = b"", {}
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
        memory = os.memfd_create("aloe-recording")  # has no name: no death leaves it behind
        paths = [str(_PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])]
        worker = [sys.executable, "-P", "-m", "aloe.experience.background_worker"]
        try:
            self._process = subprocess.Popen(
                [*worker, str(root), str(buffer_seconds), str(memory)],
                bufsize=0,
                pass_fds=[memory],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(paths)},
                process_group=0,  # Ctrl-C is for this process, which then hangs up
            )
            assert self._process.stdin is not None
            assert self._process.stdout is not None
            self._orders, self._replies = self._process.stdin, self._process.stdout
            os.set_blocking(self._replies.fileno(), False)
            try:
                while not self._store:
                    self._hear(wait=True)
                if "refused" in self._store:
                    raise ValueError(self._store["refused"])
                self._counters, ring = shared_memory(memory, step_type(**self._store))
            except BaseException:  # Ctrl-C during the start included: no process may stay behind
                self._hang_up()
                raise
        finally:
            os.close(memory)
        self._slots = len(ring)
        self._pictures = {camera: ring["pictures"][camera] for camera in self._store["cameras"]}
        self._numbers = {name: ring["numbers"][name] for name in ring["numbers"].dtype.names or ()}

    def __enter__(self) -> "BackgroundRecorder":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except RecordingError as loss:
            if error is None:
                raise
            error.add_note(str(loss))  # the error that ended the block matters more

    @property
    def pid(self) -> int:
        """Of the other process."""
        return self._process.pid

    @property
    def backlog(self) -> int:
        """Steps that are not encoded yet."""
        return self._given - int(self._counters[ENCODED])

    def add(
        self,
        images: Mapping[str, UInt8[ndarray, "h w 3"]],
        state: Float[ndarray, "S"],
        action: Float[ndarray, "A"],
        *,
        proposed_action: Float[ndarray, "A"] | None = None,
        source: Source = Source.DEMO,
        policy_version: int = NO_POLICY,
    ) -> None:
        """The next step: what was seen before the action, by camera, and the action that was executed. All is copied.

        proposed_action: what the policy had proposed; None: nothing. The rest as in `aloe.types.Episode`.

        Raises:
            ValueError: the step does not fit the store, or holds NaN. The episode in progress is lost.
            RecordingError: see there.
        """
        self._hear()
        if self._lost is not None:
            raise RecordingError(self._lost)
        if self.backlog == self._slots:
            self._lost = self._loss(
                self._episode, f"the encoder is {self.backlog} steps behind, and the buffer is full"
            )
            raise RecordingError(self._lost)
        nothing = np.full(self._numbers["action"].shape[1:], np.nan)
        proposed = nothing if proposed_action is None else proposed_action
        vectors = {"state": state, "action": action, "proposed_action": proposed}
        try:
            self._put(images, {**vectors, "source": int(source), "policy_version": policy_version})
        except ValueError as error:
            self._lost = self._loss(self._episode, f"step {self._steps}: {error}")
            raise ValueError(self._lost) from error
        self._given += 1
        self._steps += 1
        self._counters[GIVEN] = self._given
        self._tell_losses()

    def finish(self, *, task: str, success: bool, timeout: bool = False, seed: int = NO_SEED) -> None:
        """The episode in progress has ended, by its last step; it will be committed.

        Args:
            task: the instruction in words.
            success: whether it succeeded; its last step then has reward 0, all others -1.
            timeout: it was merely stopped, and would have gone on; else it is a failure unless it is a success.
            seed: that the world was reset with.

        Raises:
            ValueError: there is no step, or it both succeeded and was stopped; nothing has changed.
            RecordingError: see there.
        """
        self._hear()
        if self._lost is not None:
            lost = self._lost
            self._drop()
            raise RecordingError(lost)
        if not self._steps:
            raise ValueError("an episode needs at least one step: call add() before finish()")
        if success and timeout:
            raise ValueError("an episode that succeeded was not stopped: give timeout only without success")
        self._tell("finish", task=task, success=success, timeout=timeout, seed=seed)
        self._unconfirmed.append(self._episode)
        self._episode, self._steps = self._episode + 1, 0
        self._tell_losses()

    def discard(self) -> None:
        """Forget the episode in progress. Raises RecordingError for earlier ones only."""
        self._hear()
        if self._steps or self._lost is not None:
            self._drop()
        self._tell_losses()

    def flush(self) -> None:
        """Wait until all steps are encoded and all finished episodes are committed. Raises RecordingError."""
        while self._unconfirmed or self.backlog:
            self._hear(wait=True)
        self._hear()
        self._tell_losses()

    def close(self) -> None:
        """Wait until all finished episodes are committed; then another process may write to the store.

        Raises RecordingError for an episode in progress that was neither finished nor discarded, too.
        """
        try:
            if self._end is None:
                self.flush()
                if self._steps or self._lost is not None:
                    unfinished = self._loss(self._episode, "it was neither finished nor discarded")
                    raise RecordingError(self._lost or unfinished)
        finally:
            self._hang_up()

    # ---- the ring and the other process

    def _put(self, images: Mapping[str, ndarray], numbers: Mapping[str, Any]) -> None:
        slot = self._given % self._slots
        if images.keys() != self._pictures.keys():
            raise ValueError(f"there are pictures of {sorted(images)}, the store needs {sorted(self._pictures)}")
        for camera, ring in self._pictures.items():
            picture = images[camera]
            if picture.shape != ring.shape[1:] or picture.dtype != np.uint8:
                given = f"{picture.dtype} {tuple(picture.shape)}"
                raise ValueError(f"camera {camera!r} gave {given}, the store needs uint8 {ring.shape[1:]}")
            ring[slot] = picture
        for name, ring in self._numbers.items():
            value = np.asarray(numbers[name], ring.dtype)
            if value.shape != ring.shape[1:]:
                raise ValueError(f"{name} has shape {value.shape}, the store needs {ring.shape[1:]}")
            finite = np.isfinite(value)
            if not finite.all() and not (name == "proposed_action" and np.isnan(value).all()):
                raise ValueError(f"{name} holds NaN or infinite values")
            ring[slot] = value

    def _drop(self) -> None:
        self._tell("discard")
        self._episode, self._steps, self._lost = self._episode + 1, 0, None

    def _tell(self, kind: str, **fields: object) -> None:
        try:
            self._orders.write(json.dumps({"kind": kind, "after": self._given, **fields}).encode() + b"\n")
        except BrokenPipeError as error:
            raise self._ended() from error

    def _hear(self, *, wait: bool = False) -> None:
        """Take in what the other process has to say."""
        if self._end is not None:
            raise RecordingError(self._end)
        if wait:
            select.select([self._replies], [], [], LOOK_SECONDS)
        elif self._counters[ANSWERS] == self._answers and self._process.poll() is None:
            return
        content = self._replies.read(2**16)
        if content is None:
            return
        if not content:
            raise self._ended()
        *lines, self._heard = (self._heard + content).split(b"\n")
        self._answers += len(lines)
        for line in lines:
            match json.loads(line):
                case {"kind": "committed", "episode": number}:
                    self._unconfirmed.remove(number)
                    self.num_committed += 1
                case {"kind": "lost", "episode": number, "why": why} if number == self._episode:
                    self._lost = self._loss(number, why)
                case {"kind": "lost", "episode": number, "why": why}:
                    self._unconfirmed.remove(number)
                    self._earlier.append(self._loss(number, why))
                case {"kind": "store", **store}:
                    self._store = store

    def _tell_losses(self) -> None:
        if self._earlier:
            earlier, self._earlier = self._earlier, []
            raise RecordingError("\n".join(earlier))

    def _loss(self, number: int, why: str) -> str:
        return f"episode {number} of this recording is lost: {why}; all that was committed is intact"

    def _ended(self) -> RecordingError:
        code = self._process.wait()
        self._log.seek(0)
        words = self._log.read()[-2000:].decode(errors="replace").strip()
        lost = [*self._unconfirmed, *([self._episode] if self._steps else [])]
        self._end = (
            f"the recorder's process died ({f'signal {-code}' if code < 0 else f'exit status {code}'}). Not known to be "
            f"committed: episodes {lost} of this recording; all before are intact. Close the recorder and open another "
            f"one. Its last words: {words or '(none)'}"
        )
        return RecordingError(self._end)

    def _hang_up(self) -> None:
        """The other process commits what it still has of finished episodes, and ends."""
        self._end = self._end or "the recorder is closed; open another one"
        self._orders.close()
        self._process.wait()
        self._replies.close()
        self._log.close()
        self._pictures, self._numbers = {}, {}
