"""Stages that play in the world: demonstrate, collect, measure."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from aloe.evaluation.success import SuccessReport
from aloe.experience.store import ExperienceStore
from aloe.policies.flow import PolicyBundle, check_fits
from aloe.rollout.collect import episode_seeds
from aloe.rollout.human import HumanConfig
from aloe.rollout.pool import ChunkPolicy, EpisodeRequest, WorldPool
from aloe.types import Episode, Source
from aloe.worlds.metaworld import ACTION_DIM, STATE_DIM, MetaWorldConfig


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
    size = world.image_size
    cameras = dict.fromkeys(world.cameras, (size, size))
    if not (root / "meta" / "info.json").exists():
        return ExperienceStore.create(root, cameras=cameras, state_dim=STATE_DIM, action_dim=ACTION_DIM, fps=world.fps)
    store = ExperienceStore.open(root)
    if store.cameras != cameras or store.fps != world.fps:
        raise ValueError(
            f"{root} was recorded with cameras {store.cameras} at {store.fps} fps, the world has {cameras} at "
            f"{world.fps} fps; use the same --world options, or another store"
        )
    return store


def check_fits_world(bundle: PolicyBundle, world: MetaWorldConfig) -> None:
    """Raises ValueError unless the policy was made for pictures, states and actions like those of the world."""
    cameras = dict.fromkeys(world.cameras, (world.image_size, world.image_size))
    check_fits(bundle, f"the world {world.task}", cameras, STATE_DIM, ACTION_DIM)


def demonstrate(store: ExperienceStore, pool: WorldPool, config: DemosConfig, seed: int) -> None:
    """Records until the store holds `config.episodes` successful demonstrations of the task; goes on from what is there.

    Raises:
        ValueError: the expert fails far more often than it succeeds.
    """
    frames = store.columns()
    instruction = pool.world.instruction
    task = frames.tasks.index(instruction) if instruction in frames.tasks else -1
    mine = (frames.source == Source.DEMO) & (frames.task_index == task)
    successes, tried = int((frames.success & mine).sum()), int(((frames.step == 0) & mine).sum())
    limit = 4 * config.episodes + 10
    seeds = episode_seeds(seed, "demonstrate", limit)
    requests = [EpisodeRequest(index=i, seed=seeds[i]) for i in range(tried, limit)]
    if successes >= config.episodes:
        return
    for episode in pool.play(requests, None, demo_noise=config.noise, progress="demonstrations"):
        store.append(episode)
        tried += 1
        successes += episode.succeeded
        if successes == config.episodes:
            return
    raise ValueError(
        f"the scripted expert succeeded in {successes} of {tried} episodes of {pool.world.task}; record into "
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
    """Plays the policy under the human's eyes and records `episodes` episodes, of which `already` are in the store."""
    seeds = episode_seeds(seed, "collect", episodes, round_index=round_index)
    requests = [EpisodeRequest(index=i, seed=seeds[i]) for i in range(already, episodes)]
    for episode in pool.play(
        requests,
        policy,
        execute=execute,
        human=human,
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
    """Success of the policy alone over fixed seeds, the same for every version.

    keep: is given every episode as it ends; the first `recorded` of them come with their pictures, which changes nothing
    about how they are played.
    """
    seeds = episode_seeds(seed, "evaluate", episodes)
    requests = [EpisodeRequest(index=i, seed=s) for i, s in enumerate(seeds)]
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
