"""policy x world x human -> episode, and the seeds that episodes are made from."""

from collections import deque
from collections.abc import Callable
from typing import Final, Literal

import numpy as np
from jaxtyping import Float32, UInt8
from numpy import ndarray

from aloe.rollout.human import Human, noisy
from aloe.types import Episode, Source
from aloe.worlds.metaworld import ACTION_DIM, MetaWorld

Stage = Literal["demonstrate", "collect", "evaluate"]

AskPolicy = Callable[[int, str, dict[str, UInt8[ndarray, "h w 3"]], Float32[ndarray, "S"]], Float32[ndarray, "H A"]]
"""(decision number, instruction, pictures by camera, state) -> the actions that the policy proposes from here."""

_STAGES: Final[dict[str, int]] = {"demonstrate": 0, "collect": 1, "evaluate": 2}
_MAX_EPISODES: Final = 2**16
_MAX_ROUNDS: Final = 2**14

# What an episode's seed is used for besides the world's reset: each use has a stream of chance of its own.
_NOISE_STREAM: Final = 1
_HAND_STREAM: Final = 2


def episode_seeds(run_seed: int, stage: Stage, n: int, *, round_index: int = 0) -> list[int]:
    """The first `n` episode seeds of a stage, each below 2**32.

    Within one `run_seed` no seed occurs twice: not within a stage, not between stages, not between rounds.
    Asking for more seeds extends the list. Evaluations of all versions of a policy use one round, so that
    they meet the same scenes.

    The two highest bits name the stage. The lower 30 number (round, episode), shuffled by an affine map
    modulo 2**30 whose odd factor makes it one to one; factor and offset come from `np.random.SeedSequence`.
    """
    if not (0 <= n <= _MAX_EPISODES and 0 <= round_index < _MAX_ROUNDS):
        raise ValueError(f"there are seeds for {_MAX_EPISODES} episodes in each of {_MAX_ROUNDS} rounds")
    if run_seed < 0:
        raise ValueError(f"the seed of a run must not be negative, but it is {run_seed}")
    number = _STAGES[stage]
    factor, offset = np.random.SeedSequence(run_seed, spawn_key=(number,)).generate_state(2).tolist()
    first = round_index * _MAX_EPISODES
    return [number << 30 | (offset + (factor | 1) * (first + i)) % 2**30 for i in range(n)]


def decision_noise(seed: int, decision: int, shape: tuple[int, ...]) -> Float32[ndarray, "..."]:
    """The flow noise of one decision: a function of the episode's seed and the decision's number alone."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_NOISE_STREAM, decision)))
    return rng.standard_normal(shape, dtype=np.float32)


def play_episode(
    world: MetaWorld,
    *,
    seed: int,
    task: int = 0,
    ask: AskPolicy | None,
    execute: int,
    human: Human | None,
    record: bool,
    policy_version: int,
    demo_noise: float = 0.0,
) -> Episode:
    """Plays one episode of the world's `task`-th task to its end.

    Without `ask` the world's scripted expert demonstrates. Otherwise the policy is asked for a chunk,
    `execute` of its actions are played, and so on, until success, time-out or the human's cut. The cut ends
    the policy's fragment as a failure; the human then has a full time of its own. Pictures are rendered where
    the policy looks, and with `record` at every step.
    """
    observation, info = world.reset(seed=seed, options={"task": task})
    tape = _Tape(info["task"], seed)
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_HAND_STREAM,)))
    if human is not None:
        human.reset(rng)
    policy = None if ask is None else _ChunkPlayer(ask, info["task"], execute)
    source = Source.DEMO if policy is None else Source.POLICY
    while True:
        state = observation["observation.state"]
        proposed = np.full(ACTION_DIM, np.nan, np.float32)
        pictures = _pictures(world) if record or (policy is not None and policy.must_look) else {}
        if policy is not None:
            proposed = policy.act(pictures, state)
            action = np.clip(proposed, -1.0, 1.0)
        elif human is not None:
            action = human.act(world)
        else:
            action = noisy(world.expert_action(), demo_noise, rng)
        observation, reward, success, timeout, _ = world.step(action)
        # The human is asked even when time has just run out, and if it comes then, that was a failure.
        cut = False
        if policy is not None and human is not None and not success:
            cut = human.wants_control(tape.steps + 1, world)
        tape.add(
            state=state,
            action=action,
            proposed_action=proposed,
            source=int(source),
            policy_version=policy_version,
            reward=reward,
            terminated=success or cut,
            truncated=timeout and not cut,
            success=success,
            progress=world.progress(),
        )
        if record:
            tape.film(pictures)
        if cut:
            policy, source = None, Source.HUMAN
            world.restart_clock()
        elif success or timeout:
            return tape.episode(world.disturbed_at)


class _ChunkPlayer:
    """Plays the first `execute` actions of a chunk, then asks for the next."""

    def __init__(self, ask: AskPolicy, instruction: str, execute: int) -> None:
        self._ask = ask
        self._instruction = instruction
        self._execute = execute
        self._chunk: deque[Float32[ndarray, "A"]] = deque()
        self._decisions = 0

    @property
    def must_look(self) -> bool:
        """Whether the next action takes a new decision, and with it pictures."""
        return not self._chunk

    def act(self, pictures: dict[str, UInt8[ndarray, "h w 3"]], state: Float32[ndarray, "S"]) -> ndarray:
        if not self._chunk:
            self._chunk.extend(self._ask(self._decisions, self._instruction, pictures, state)[: self._execute])
            self._decisions += 1
        return self._chunk.popleft()


def _pictures(world: MetaWorld) -> dict[str, UInt8[ndarray, "h w 3"]]:
    return {key.removeprefix("observation.images."): picture for key, picture in world.pictures().items()}


class _Tape:
    """Collects the columns of an `Episode` step by step."""

    DTYPES: Final = {
        "state": np.float32,
        "action": np.float32,
        "proposed_action": np.float32,
        "source": np.int64,
        "policy_version": np.int64,
        "reward": np.float32,
        "terminated": np.bool_,
        "truncated": np.bool_,
        "success": np.bool_,
        "progress": np.float32,
    }

    def __init__(self, task: str, seed: int) -> None:
        self._task = task
        self._seed = seed
        self._columns: dict[str, list[object]] = {name: [] for name in self.DTYPES}
        self._images: dict[str, list[ndarray]] = {}

    @property
    def steps(self) -> int:
        return len(self._columns["action"])

    def add(self, **values: object) -> None:
        for name, column in self._columns.items():
            column.append(values[name])

    def film(self, pictures: dict[str, ndarray]) -> None:
        for camera, picture in pictures.items():
            self._images.setdefault(camera, []).append(picture)

    def episode(self, disturbed_at: int | None) -> Episode:
        columns = {name: np.array(self._columns[name], dtype) for name, dtype in self.DTYPES.items()}
        images = {camera: np.stack(pictures) for camera, pictures in self._images.items()}
        return Episode(task=self._task, seed=self._seed, images=images, disturbed_at=disturbed_at, **columns)
