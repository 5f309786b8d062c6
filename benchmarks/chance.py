"""Does a policy fail by chance, or in certain scenes? The same scenes played several times over.

    .venv/bin/python benchmarks/chance.py runs/benchmark/precision-state/aloe-6 --versions 0 1 2 3 4 5

Only the flow noise differs between the repetitions of a scene. Weights by advantage teach a policy to prefer what went well
where the same scene ends now well, now badly; where it always fails there is nothing of its own to prefer.
"""

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro
from _common import print_header, print_row
from jaxtyping import Bool, Float32, UInt8
from numpy import ndarray

from aloe import stages
from aloe.config import RunConfig
from aloe.rollout.pool import ChunkPolicy, WorldPool
from aloe.run import RunFolder, from_plain
from aloe.types import Episode
from aloe.versions import Versions


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to play."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders."""
    versions: tuple[int, ...] = (0, 1, 2, 3, 4, 5)
    """Versions of the policy, 0 being the clone."""
    scenes: int = 100
    repetitions: int = 4

    def __post_init__(self) -> None:
        if self.repetitions < 2:
            raise ValueError(f"chance shows between repetitions: at least 2 of them are needed, not {self.repetitions}")


@dataclass(frozen=True, kw_only=True)
class Repeated:
    """A policy with noise of its own in each repetition."""

    player: ChunkPolicy
    repetition: int

    @property
    def chunk_shape(self) -> tuple[int, int]:
        return self.player.chunk_shape

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return self.player.noise_shape

    def __call__(
        self,
        images: dict[str, UInt8[ndarray, "W h w 3"]],
        state: Float32[ndarray, "W S"],
        tasks: list[str],
        noise: Float32[ndarray, "W ..."],
    ) -> Float32[ndarray, "W H A"]:
        seeds = [[self.repetition, zlib.crc32(row.tobytes())] for row in noise]
        others = np.stack([np.random.default_rng(seed).standard_normal(noise.shape[1:], np.float32) for seed in seeds])
        return self.player(images, state, tasks, others)


def play(pool: WorldPool, versions: Versions, version: int, config: Config) -> list[list[Episode]]:
    """The episodes of each repetition, scene by scene. Scenes that neither training nor evaluation of the run has seen."""
    repetitions: list[list[Episode]] = []
    player = versions.player(version, choosing=versions.config.is_played_with_critics)
    for repetition in range(config.repetitions):
        repetitions.append([])
        stages.measure(
            pool,
            Repeated(player=player, repetition=repetition),
            episodes=config.scenes,
            execute=versions.executed(player.bundle),
            version=version,
            seed=versions.config.seed + 3000,
            keep=repetitions[-1].append,
        )
    return repetitions


def share_of_scenes(won: Bool[ndarray, "R N"], tasks: Sequence[str]) -> float:
    """How much of the variance of the outcome, within a task, is that of its scenes: 1 if a scene always ends alike, 0 if
    the scene says nothing; NaN where every outcome of a task is the same (one-way analysis of variance, by moments)."""
    of_task = np.array(tasks)
    within, total = 0.0, 0.0
    for task in set(tasks):
        outcomes = won[:, of_task == task].astype(float)
        chance = outcomes.var(0, ddof=1).mean()
        between = outcomes.mean(0).var(ddof=1) - chance / len(outcomes)
        within, total = within + chance * outcomes.shape[1], total + (chance + between) * outcomes.shape[1]
    return 1 - within / total if total else float("nan")


def main(config: Config) -> None:
    print_header(
        f"{config.scenes} scenes, each played {config.repetitions} times",
        ["run", "version", "success", "always won", "now and then", "never", "share of the scenes"],
    )
    for root in config.runs:
        settings = from_plain(RunConfig, RunFolder(root).options())
        versions = Versions(run=RunFolder(root), config=settings, device="cpu")
        with WorldPool(settings.world, settings.workers) as pool:
            for version in config.versions:
                episodes = play(pool, versions, version, config)
                won = np.array([[episode.succeeded for episode in row] for row in episodes])
                always, ever = won.all(0).mean(), won.any(0).mean()
                shares = (won.mean(), always, ever - always, 1 - ever)
                scenes = share_of_scenes(won, [episode.task for episode in episodes[0]])
                print_row([f"{root.parent.name}/{root.name}", version, *(f"{s:.0%}" for s in shares), f"{scenes:.2f}"])


if __name__ == "__main__":
    main(tyro.cli(Config))
