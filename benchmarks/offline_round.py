"""What offline rounds make of the experience that another run has recorded.

    aloe benchmark precision-state --methods dagger --seeds 0 1 2
    .venv/bin/python benchmarks/offline_round.py runs/benchmark/precision-state/dagger-{0,1,2}

What `aloe run --policy.path RUN/rounds/005/pretrained_model --experience.rollouts.root RUN/experience` does with its
defaults, executing as many actions as the run did; and then what only a simulator allows: the new checkpoint is measured
beside the one that it was made of, on scenes that the run has not seen.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import tyro
from _common import print_header, print_row

from aloe import stages
from aloe.benchmark.suites import METHODS
from aloe.config import PRESETS, RunConfig
from aloe.experience.mixture import RootConfig
from aloe.loop import run_circle
from aloe.policies.bundle import PolicyBundle, PolicyPlayer
from aloe.policies.flow import executed_actions
from aloe.rollout.pool import WorldPool
from aloe.run import RunFolder, from_plain


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to learn from, and how."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Run folders, whose experience is learnt from."""
    versions: tuple[int, ...] = (0, 5)
    """Versions of a run's policy to begin with, 0 being the clone."""
    methods: tuple[str, ...] = ("filtered", "aloe")
    rounds: int = 1
    """Each trains critics and policy once more on the same experience."""
    episodes: int = 200
    output_dir: Path = Path("runs/offline")
    """Gets the offline runs; what is there already is not made again."""

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.methods) - set(METHODS)):
            raise ValueError(f"unknown: {', '.join(unknown)}; there are {', '.join(METHODS)}")


def improved(root: Path, settings: RunConfig, version: int, method: str, rounds: int, output_dir: Path) -> Path:
    """The checkpoint that offline rounds make of a version of the run's policy."""
    usual = PRESETS["offline"]
    start = replace(usual.policy, path=RunFolder(root).policy(version), execute=settings.policy.execute)
    roots = {"rollouts": RootConfig(root=RunFolder(root).experience)}
    config = METHODS[method](replace(usual, seed=settings.seed, rounds=rounds, policy=start, experience=roots))
    return run_circle(config, output_dir, say=lambda _: None).policy(rounds)


def measure(pool: WorldPool, policy: Path, episodes: int, seed: int) -> str:
    """Success of a checkpoint, with its 95 % interval."""
    bundle = PolicyBundle.load(policy)
    execute = executed_actions(bundle.policy, None)
    player = PolicyPlayer(bundle=bundle)
    report = stages.measure(pool, player, episodes=episodes, execute=execute, version=0, seed=seed)
    return f"{report.success:.1%} ({report.low:.0%} to {report.high:.0%})"


def main(config: Config) -> None:
    print_header(
        f"success before and after {config.rounds} offline round(s), {config.episodes} episodes each",
        ["run", "version", "before", *config.methods],
    )
    for root in config.runs:
        settings = from_plain(RunConfig, RunFolder(root).options())
        for version in config.versions:
            policies = [RunFolder(root).policy(version)]
            for method in config.methods:
                folder = config.output_dir / root.parent.name / f"{root.name}-v{version}-{method}-{config.rounds}"
                policies.append(improved(root, settings, version, method, config.rounds, folder))
            with WorldPool(settings.world, workers=2) as pool:
                shown = [measure(pool, p, config.episodes, seed=settings.seed + 3000) for p in policies]
            print_row([f"{root.parent.name}/{root.name}", version, *shown])


if __name__ == "__main__":
    main(tyro.cli(Config))
