"""Stages that play in the world: demonstrate, collect, measure."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from aloe.evaluation.success import SuccessReport
from aloe.experience.store import ExperienceStore
from aloe.policies.bundle import PolicyBundle, check_fits
from aloe.rollout.collect import episode_seeds
from aloe.rollout.human import HumanConfig, takeover_shares
from aloe.rollout.pool import ChunkPolicy, EpisodeRequest, WorldPool
from aloe.types import Episode, Source
from aloe.worlds.metaworld import ACTION_DIM, MetaWorldConfig


@dataclass(frozen=True, kw_only=True)
class DemosConfig:
    """Demonstrations by the world's scripted expert."""

    episodes: int = 10
    """Successful demonstrations to record. (Failed ones stay in the store, labelled, and are not cloned.)"""
    noise: float = 0.1
    """Standard deviation of the noise on the expert's actions, in the world's units."""

    def __post_init__(self) -> None:
        if self.episodes < 1 or self.noise < 0:
            raise ValueError("at least one demonstration is needed, and noise must not be negative")


def open_store(root: Path, world: MetaWorldConfig) -> ExperienceStore:
    """The store in `root`, made if there is none, checked against the world that is to be recorded."""
    cameras, state_dim = world.camera_sizes, world.state_dim
    if not (root / "meta" / "info.json").exists():
        return ExperienceStore.create(root, cameras=cameras, state_dim=state_dim, action_dim=ACTION_DIM, fps=world.fps)
    store = ExperienceStore.open(root)
    if (store.cameras, store.state_dim, store.fps) != (cameras, state_dim, world.fps):
        raise ValueError(
            f"{root} was recorded with cameras {store.cameras} and {store.state_dim} numbers of state at {store.fps} "
            f"fps, the world has {cameras} and {state_dim} at {world.fps} fps; use the same --world options, or "
            "another store"
        )
    return store


def check_fits_world(bundle: PolicyBundle, world: MetaWorldConfig) -> None:
    """Raises ValueError unless the policy was made for pictures, states and actions like those of the world."""
    check_fits(bundle, f"the world {world.task}", world.camera_sizes, world.state_dim, ACTION_DIM)


def demonstrate(store: ExperienceStore, pool: WorldPool, config: DemosConfig, seed: int) -> None:
    """Records until the store holds `config.episodes` successful demonstrations of each task; goes on from what is there.

    Raises:
        ValueError: the expert fails far more often than it succeeds.
    """
    for task in range(len(pool.world.tasks)):
        _demonstrate_task(store, pool, config, seed, task)


def _demonstrate_task(store: ExperienceStore, pool: WorldPool, config: DemosConfig, seed: int, task: int) -> None:
    frames, world = store.columns(), pool.world
    instruction = world.instructions[task]
    task_index = frames.tasks.index(instruction) if instruction in frames.tasks else -1
    mine = (frames.source == Source.DEMO) & (frames.task_index == task_index)
    successes, tried = int((frames.success & mine).sum()), int(((frames.step == 0) & mine).sum())
    limit = 4 * config.episodes + 10
    seeds = episode_seeds(seed, "demonstrate", limit * len(world.tasks))[task :: len(world.tasks)]
    requests = [EpisodeRequest(index=i, seed=seeds[i], task=task) for i in range(tried, limit)]
    if successes >= config.episodes:
        return
    with tqdm(total=config.episodes, initial=successes, desc="demonstrations", unit="episode") as bar:
        for episode in pool.play(requests, None, demo_noise=config.noise):
            store.append(episode)
            tried += 1
            successes += episode.succeeded
            bar.set_postfix(tried=tried, refresh=False)
            bar.update(int(episode.succeeded))
            if successes == config.episodes:
                return
    raise ValueError(
        f"the scripted expert succeeded in {successes} of {tried} episodes of {world.tasks[task]}; record into "
        "another folder, with less noise on the demonstrations or a larger --world.max-steps"
    )


def collect(
    store: ExperienceStore,
    pool: WorldPool,
    policy: ChunkPolicy,
    human: HumanConfig | None,
    *,
    episodes: int,
    already: int,
    execute: int,
    version: int,
    seed: int,
    round_index: int,
) -> None:
    """Plays the policy under the human's eyes and records `episodes` episodes, of which `already` are in the store.

    The tasks take turns. What the human's attention still allows follows from the episodes that are in the store, so
    that a collection that was stopped goes on as if it had not been.
    """
    seeds, tasks = episode_seeds(seed, "collect", episodes, round_index=round_index), len(pool.world.tasks)
    # After each round of the workers the tasks shift, so that none is always played, and watched, by the same worker.
    block = math.lcm(tasks, pool.workers)
    requests = [EpisodeRequest(index=i, seed=seeds[i], task=(i + i // block) % tasks) for i in range(already, episodes)]
    takeovers = None
    if human is not None and human.takeovers is not None:
        taken = np.zeros(pool.workers, int)
        frames = store.columns()
        of_episode = [int(frames.takeovers[frames.seed == seed].sum()) for seed in seeds[:already]]
        np.add.at(taken, np.arange(already) % pool.workers, of_episode)
        takeovers = (np.array(takeover_shares(human.takeovers, pool.workers)) - taken).tolist()
    for episode in pool.play(
        requests,
        policy,
        execute=execute,
        human=human,
        takeovers=takeovers,
        policy_version=version,
        progress="collect",
    ):
        store.append(episode)


def episodes_recorded(store: ExperienceStore, seed: int, round_index: int, episodes: int) -> int:
    """How many episodes of this collection are in the store already: its seeds are its own."""
    seeds = episode_seeds(seed, "collect", episodes, round_index=round_index)
    return int(np.isin(np.array(seeds), store.columns().seed).sum())


def check_same_policy(store: ExperienceStore, seed: int, round_index: int, episodes: int, version: int) -> None:
    """Raises ValueError if the episodes of this collection that are in the store were played by another version."""
    frames = store.columns()
    mine = np.isin(frames.seed, episode_seeds(seed, "collect", episodes, round_index=round_index))
    others = sorted({int(v) for v in frames.policy_version[mine]} - {version})
    if others:
        raise ValueError(
            f"collection {round_index} in {store.root} was played by policy version {others[0]}, not {version}; "
            "give another --round for another policy"
        )


def measure(
    pool: WorldPool,
    policy: ChunkPolicy,
    *,
    episodes: int,
    execute: int,
    version: int,
    seed: int,
    recorded: int = 0,
    keep: Callable[[Episode], None] | None = None,
) -> SuccessReport:
    """Success of the policy alone over fixed seeds, the same for every version. The tasks take turns.

    keep: is given every episode as it ends; the first `recorded` of them come with their pictures, which changes nothing
    about how they are played.
    """
    seeds, tasks = episode_seeds(seed, "evaluate", episodes), len(pool.world.tasks)
    requests = [EpisodeRequest(index=i, seed=s, task=i % tasks) for i, s in enumerate(seeds)]
    played = []
    for part, record in ((requests[:recorded], True), (requests[recorded:], False)):
        if not part:
            continue
        for episode in pool.play(
            part,
            policy,
            execute=execute,
            record=record,
            policy_version=version,
            progress="eval, recorded" if record else "eval",
        ):
            if keep is not None:
                keep(episode)
            played.append(replace(episode, images={}))  # pictures of many episodes would fill the memory
    return SuccessReport.from_episodes(played, fps=pool.world.fps)
