"""How often the scripted expert succeeds in every suite, plain and perturbed, and by the noise of its hand.

    .venv/bin/python benchmarks/experts.py

Where the expert fails under a perturbation, little can be asked of a policy that learnt from it.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import tyro
from _common import print_header, print_row

from aloe.benchmark.suites import TASKS, find_suite
from aloe.evaluation.success import wilson_interval
from aloe.rollout.collect import episode_seeds
from aloe.rollout.human import FAILING_NOISE, GRADES
from aloe.rollout.pool import EpisodeRequest, WorldPool
from aloe.worlds.metaworld import MetaWorldConfig


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to measure."""

    suites: tuple[str, ...] = tuple(f"{task}-state" for task in TASKS)
    episodes: int = 40
    """Episodes for each cell of the table."""
    noise: float = GRADES["ordinary"].action_noise
    """Standard deviation of the noise on the expert's actions, but for the last column."""
    workers: int = 2


def success(world: MetaWorldConfig, config: Config, task: int, noise: float) -> str:
    seeds: Sequence[int] = episode_seeds(0, "demonstrate", config.episodes)
    requests = [EpisodeRequest(index=i, seed=seed, task=task) for i, seed in enumerate(seeds)]
    with WorldPool(world, config.workers) as pool:
        won = sum(e.succeeded for e in pool.play(requests, None, demo_noise=noise, record=False))
    low, high = wilson_interval(won, config.episodes)
    return f"{won / config.episodes:.0%} ({low:.0%} to {high:.0%})"


def main(config: Config) -> None:
    perturbations = ("none", "disturbance", "unseen")
    print_header(
        f"the scripted expert, {config.episodes} episodes a cell, noise {config.noise}",
        ["task", *perturbations, f"a failing correction (noise {FAILING_NOISE})"],
    )
    for suite in config.suites:
        world = find_suite(suite).config.world
        for task, name in enumerate(world.tasks):
            plain = [success(replace(world, perturbation=p), config, task, config.noise) for p in perturbations]
            print_row([name, *plain, success(world, config, task, FAILING_NOISE)])


if __name__ == "__main__":
    main(tyro.cli(Config))
