"""Episodes from several worlds at once, each in a process of its own, with one policy that serves them all.

The same seeds give bit-equal episodes, whatever the timing. Three rules see to that:
- A request is played by worker `index % workers`, always.
- The policy is always called with one row for each worker, and a worker's observation always stands in its
  own row; rows that nobody waits for are zero. So the shapes of its matrix products never change, and all
  that is asked of the policy is that a row's result does not depend on what the other rows hold.
- The flow noise is a function of the episode's seed and the decision's number.

Another number of workers changes the shape of the batch and with it the last bits of a policy's output: it is
part of what must stay the same for a bit-equal repetition. Demonstrations do not depend on it.
"""

import os
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from socket import socketpair
from types import TracebackType
from typing import IO, Any, Final, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Float32, UInt8
from numpy import ndarray
from tqdm import tqdm

from aloe.rollout.collect import decision_noise
from aloe.rollout.human import HumanConfig
from aloe.rollout.wire import Message, WorkerError, receive, send, unpack
from aloe.types import NO_POLICY, Episode
from aloe.worlds.metaworld import MetaWorldConfig

_PACKAGES: Final = Path(__file__).resolve().parents[2]
"""Where `aloe` was imported from: the workers must import the same one."""
_THREADS: Final = {"OMP_NUM_THREADS": "1", "LP_NUM_THREADS": "0"}
"""One thread a worker, Mesa's software renderer included (0: no helpers). At 64 px a helper gains nothing."""
_PATIENCE_SECONDS: Final = 2.0
"""How long a worker may take to close its world before it is killed."""


@runtime_checkable
class ChunkPolicy(Protocol):
    """A policy as the pool sees it: W rows of observations in, W chunks of actions out."""

    @property
    def chunk_shape(self) -> tuple[int, int]:
        """(H, A)."""
        ...

    @property
    def noise_shape(self) -> tuple[int, ...]:
        """Shape of the noise of one decision: (H, N), or (M, H, N) of a policy that chooses among M samples."""
        ...

    def __call__(
        self,
        images: dict[str, UInt8[ndarray, "W h w 3"]],
        state: Float32[ndarray, "W S"],
        tasks: list[str],
        noise: Float32[ndarray, "W ..."],
    ) -> Float32[ndarray, "W H A"]:
        """Actions in the world's units, by camera name, state and instruction.

        A row must depend on that row of the arguments alone, and all chance must come from `noise`.
        """
        ...


@dataclass(frozen=True, kw_only=True)
class EpisodeRequest:
    """One episode to be played."""

    index: int
    """Its number within the stage; must survive a restart of it, because it decides which worker plays it."""
    seed: int
    """Seed of the world's reset and of everything else that is chance in this episode."""
    task: int = 0
    """Which of the world's `tasks` to play, by its place there."""


@dataclass(frozen=True, kw_only=True)
class _Worker:
    process: subprocess.Popen[bytes]
    connection: Connection
    log: IO[bytes]
    """What the process wrote to stdout and stderr."""


class WorldPool:
    """Worker processes that play whole episodes in copies of one world.

        with WorldPool(MetaWorldConfig(), workers=2) as pool:
            for episode in pool.play(requests, policy, execute=8, policy_version=0):
                ...

    An exception or Ctrl-C inside the block closes the workers. To stop reading early is fine, too: the
    episodes that were being played are dropped, and the pool can be asked again.
    """

    def __init__(self, world: MetaWorldConfig, workers: int) -> None:
        if workers < 1:
            raise ValueError(f"a pool needs at least one worker, not {workers}")
        self.world = world
        self.workers = workers
        self._slots: list[_Worker] = []
        self._unsettled: set[int] = set()
        """Slots that still play an episode that nobody wants any more."""
        self._is_playing = False

    def __enter__(self) -> "WorldPool":
        try:
            for _ in range(self.workers):
                self._slots.append(_start())
            for slot in range(self.workers):
                self._send(slot, "world", asdict(self.world))
            for slot in range(self.workers):
                self._receive(slot)
        except BaseException:  # Ctrl-C during the start included: no process may stay behind
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Hangs up, whereupon the workers close their worlds and end. Those that don't are killed."""
        slots, self._slots = self._slots, []
        for worker in slots:
            worker.connection.close()
        for worker in slots:
            try:
                worker.process.wait(_PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()
            worker.log.close()

    def play(
        self,
        requests: Sequence[EpisodeRequest],
        policy: ChunkPolicy | None,
        *,
        execute: int = 1,
        human: HumanConfig | None = None,
        takeovers: Sequence[int] | None = None,
        record: bool = True,
        policy_version: int = NO_POLICY,
        demo_noise: float = 0.0,
        progress: str | None = None,
    ) -> Iterator[Episode]:
        """Plays the requests; yields their episodes in the requests' order, each as soon as that allows.

        Args:
            requests: what to play; no index twice.
            policy: who plays; None: the world's scripted expert demonstrates.
            execute: actions of each chunk that are executed before the policy is asked again.
            human: who watches and takes over; None: nobody.
            takeovers: how often the human may still take over, for each worker's episodes (`takeover_shares`);
                once a share is used up, nobody watches that worker. Given exactly where `human.takeovers` is.
            record: whether to keep a picture of every step. Without it `Episode.images` is empty, and
                pictures are rendered only where the policy looks, which is much faster.
            policy_version: what is written down as the version of the policy that plays.
            demo_noise: standard deviation of the noise on the demonstrator's executed (and recorded) actions.
            progress: label of a progress bar; None: no bar.

        Raises:
            WorkerError: a worker died or raised.
            ValueError: the arguments do not fit together, or the policy returned no usable actions.
        """
        if not self._slots:
            raise RuntimeError("the pool is not running: use it as `with WorldPool(...) as pool`")
        if self._is_playing:
            raise RuntimeError("the pool still plays: read or close the previous iterator first")
        if len({request.index for request in requests}) < len(requests):
            raise ValueError("every request needs an index of its own")
        if any(not 0 <= request.task < len(self.world.tasks) for request in requests):
            raise ValueError(f"a request's task must be one of the world's {len(self.world.tasks)}, counted from 0")
        if (takeovers is None) != (human is None or human.takeovers is None):
            raise ValueError("takeovers must say what is left of human.takeovers, and only of that")
        if takeovers is not None and len(takeovers) != self.workers:
            raise ValueError(f"takeovers needs one number for each of the {self.workers} workers, not {len(takeovers)}")
        if policy is None and (human is not None or policy_version != NO_POLICY):
            raise ValueError("a demonstration has no policy: leave human and policy_version at their defaults")
        if policy is not None:
            if policy_version < 0:
                raise ValueError("policy_version must say, by a number from 0, which policy is playing")
            if demo_noise != 0.0:
                raise ValueError("demo_noise is for demonstrations; a human's noise is HumanConfig.action_noise")
            if not 1 <= execute <= policy.chunk_shape[0]:
                raise ValueError(f"execute must lie in 1..{policy.chunk_shape[0]} (the chunk), not {execute}")
        order = {
            "has_policy": policy is not None,
            "execute": execute,
            "human": human and asdict(human),
            "record": record,
            "policy_version": policy_version,
            "demo_noise": demo_noise,
        }
        return self._play(requests, policy, order, None if takeovers is None else list(takeovers), progress)

    def _play(
        self,
        requests: Sequence[EpisodeRequest],
        policy: ChunkPolicy | None,
        order: dict[str, Any],
        left: list[int] | None,
        progress: str | None,
    ) -> Iterator[Episode]:
        self._settle()
        self._is_playing = True
        queues: list[deque[EpisodeRequest]] = [deque() for _ in range(self.workers)]
        for request in requests:
            queues[request.index % self.workers].append(request)
        playing: dict[int, EpisodeRequest] = {}
        asks: dict[int, Message] = {}
        done: dict[int, Episode] = {}
        successes = 0
        bar = tqdm(total=len(requests), desc=progress, unit="episode", disable=progress is None)
        try:
            for request in requests:
                while request.index not in done:
                    self._hand_out(queues, playing, order, left)
                    # One call for all that play, rather than one for whoever asks first: a call costs about the same with
                    # one row as with all, and a cell of the benchmark has one core for worlds and policy.
                    if waiting := playing.keys() - asks.keys():
                        for slot in self._ready(waiting):
                            message = self._receive(slot, playing[slot])
                            if message.kind == "ask":
                                asks[slot] = message
                            else:
                                episode = unpack(message)
                                if left is not None:
                                    left[slot] -= episode.takeovers
                                done[playing.pop(slot).index] = episode
                    else:
                        assert policy is not None
                        self._decide(policy, asks, playing)
                        asks.clear()
                episode = done.pop(request.index)
                successes += episode.succeeded and episode.human_steps == 0
                bar.set_postfix(success=successes, refresh=False)
                bar.update()
                yield episode
        finally:
            bar.close()
            self._is_playing = False
            self._unsettled = set(playing) if self._slots else set()
            for slot in asks.keys() & self._unsettled:
                self._abandon(slot)

    def _hand_out(
        self,
        queues: list[deque[EpisodeRequest]],
        playing: dict[int, EpisodeRequest],
        order: dict[str, Any],
        left: list[int] | None,
    ) -> None:
        for slot, queue in enumerate(queues):
            if queue and slot not in playing:
                playing[slot] = queue.popleft()
                human = order["human"] if left is None or left[slot] > 0 else None
                own = {"seed": playing[slot].seed, "task": playing[slot].task, "human": human}
                self._send(slot, "play", order | own)

    def _ready(self, slots: set[int]) -> list[int]:
        """Slots that have something to say; waits for the first."""
        slot_of: dict[Any, int] = {self._slots[slot].connection: slot for slot in slots}
        return sorted(slot_of[connection] for connection in wait(list(slot_of)))

    def _decide(self, policy: ChunkPolicy, asks: dict[int, Message], playing: dict[int, EpisodeRequest]) -> None:
        """Calls the policy once for all who ask, and sends each its chunk. Rows that nobody waits for are zero,
        under the first instruction."""
        W = self.workers
        images = {camera: np.zeros((W, h, w, 3), np.uint8) for camera, (h, w) in self.world.camera_sizes.items()}
        state = np.zeros((W, self.world.state_dim), np.float32)
        tasks = [self.world.instructions[0]] * W
        noise = np.zeros((W, *policy.noise_shape), np.float32)
        for slot, ask in asks.items():
            for camera in images:
                images[camera][slot] = ask.arrays[camera]
            state[slot] = ask.arrays["state"]
            tasks[slot] = ask.fields["task"]
            noise[slot] = decision_noise(playing[slot].seed, ask.fields["decision"], policy.noise_shape)
        chunks = np.asarray(policy(images, state, tasks, noise), np.float32)
        if chunks.shape != (announced := (W, *policy.chunk_shape)):
            raise ValueError(f"the policy returned actions of shape {chunks.shape}; it announced {announced}")
        for slot in asks:
            if not np.isfinite(chunks[slot]).all():
                raise ValueError("the policy returned NaN or infinite actions; it has probably diverged in training")
        for slot in asks:
            self._send(slot, "chunk", arrays={"chunk": chunks[slot]})

    def _settle(self) -> None:
        """Brings every worker that is still in a dropped episode back to idleness."""
        while self._unsettled:
            for slot in self._ready(self._unsettled):
                if self._receive(slot).kind == "ask":
                    self._abandon(slot)
                self._unsettled.discard(slot)

    def _abandon(self, slot: int) -> None:
        self._send(slot, "abandon")
        self._unsettled.discard(slot)

    def _send(
        self,
        slot: int,
        kind: str,
        fields: dict[str, Any] | None = None,
        arrays: dict[str, ndarray] | None = None,
    ) -> None:
        try:
            send(self._slots[slot].connection, kind, fields, arrays)
        except OSError as error:
            raise self._obituary(slot) from error

    def _receive(self, slot: int, request: EpisodeRequest | None = None) -> Message:
        doing = "" if request is None else f" while it played the episode with seed {request.seed}"
        try:
            message = receive(self._slots[slot].connection)
        except (EOFError, OSError) as error:
            raise self._obituary(slot, doing) from error
        if message.kind == "error":
            raise WorkerError(f"worker {slot} failed{doing}:\n{message.fields['message']}")
        return message

    def _obituary(self, slot: int, doing: str = "") -> WorkerError:
        worker = self._slots[slot]
        try:
            code = worker.process.wait(_PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            return WorkerError(f"worker {slot} hung up{doing}, but still runs; close the pool and open a new one")
        worker.log.seek(0)
        last_words = worker.log.read()[-2000:].decode(errors="replace").strip()
        cause = f"signal {-code}" if code < 0 else f"exit status {code}"
        return WorkerError(f"worker {slot} died{doing} ({cause}). Its last words: {last_words or '(none)'}")


def _start() -> _Worker:
    """Starts one worker process with a line to it."""
    ours, theirs = socketpair()
    log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
    paths = [str(_PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])]
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "aloe.rollout.worker", str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=os.environ | _THREADS | {"PYTHONPATH": os.pathsep.join(paths)},
            process_group=0,  # Ctrl-C is for the parent, which then hangs up
        )
    return _Worker(process=process, connection=Connection(ours.detach()), log=log)
