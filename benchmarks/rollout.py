"""Environment steps a second of the rollout pool, by number of workers.

    .venv/bin/python benchmarks/rollout.py

A policy that costs nothing plays noise, so that every episode lasts until time-out and only the world is
measured.
"""

import time
from dataclasses import dataclass, field

import numpy as np
import tyro
from _common import print_header, print_row

from aloe.rollout.collect import episode_seeds
from aloe.rollout.pool import EpisodeRequest, WorldPool
from aloe.worlds.metaworld import ACTION_DIM, MetaWorldConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to measure."""

    world: MetaWorldConfig = field(default_factory=lambda: MetaWorldConfig(action_repeat=4, max_steps=50))
    workers: tuple[int, ...] = (1, 2, 3, 4)
    """Numbers of workers to compare."""
    episodes: int = 8
    """Episodes for each cell of the table."""
    execute: int = 8
    """Actions executed between two decisions."""


class NoisePolicy:
    """Plays its flow noise."""

    chunk_shape = noise_shape = (8, ACTION_DIM)

    def __call__(self, images, state, tasks, noise):
        return np.clip(0.3 * noise, -1.0, 1.0)


def steps_per_second(pool: WorldPool, config: Config, *, record: bool) -> float:
    requests = [
        EpisodeRequest(index=i, seed=seed) for i, seed in enumerate(episode_seeds(0, "evaluate", config.episodes))
    ]
    start = time.perf_counter()
    episodes = pool.play(requests, NoisePolicy(), execute=config.execute, record=record, policy_version=0)
    steps = sum(episode.steps for episode in episodes)
    return steps / (time.perf_counter() - start)


def main(config: Config) -> None:
    print_header(
        f"{config.world.task}, {len(config.world.cameras)} cameras of {config.world.image_size} px, "
        f"action_repeat {config.world.action_repeat}",
        ["workers", "recorded, steps/s", "unrecorded, steps/s"],
    )
    for workers in config.workers:
        with WorldPool(config.world, workers) as pool:
            warm_up = Config(world=config.world, episodes=workers)
            steps_per_second(pool, warm_up, record=True)  # every worker makes its renderer
            recorded = steps_per_second(pool, config, record=True)
            unrecorded = steps_per_second(pool, config, record=False)
        print_row([workers, f"{recorded:.0f}", f"{unrecorded:.0f}"])


if __name__ == "__main__":
    main(tyro.cli(Config))
