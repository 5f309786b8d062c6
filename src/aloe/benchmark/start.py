"""What all methods of one seed share, made once: demonstrations, the cloned policy, its success, the first rollouts.

    <folder>/<suite>/base-<seed>/        a run folder that stops before the first improvement
    <folder>/<suite>/<method>-<seed>/    begins as a copy of it and goes on as any run

Round 1 is collected by the cloned policy whatever the method, so its episodes belong to the start.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Final

from aloe.config import CollectConfig, EvalConfig, RunConfig
from aloe.experience.mixture import SourceRatios
from aloe.loop import Say, open_circle
from aloe.policies.recipe import ActorConfig
from aloe.rollout.human import HumanConfig
from aloe.run import RunFolder, new_folder, to_plain, write_json
from aloe.stages import DemosConfig, PolicyConfig, TrustConfig
from aloe.training import Device
from aloe.worlds.metaworld import MetaWorldConfig

CHOICE: Final = "choice"
"""Measures a policy with the critics' choice among chunks, for methods that otherwise choose only while collecting."""


@dataclass(frozen=True, kw_only=True)
class StartConfig:
    """The options of a run that have taken effect before its first improvement. Methods must agree in them."""

    seed: int
    workers: int
    world: MetaWorldConfig
    demos: DemosConfig
    policy: PolicyConfig
    horizon: int
    sft: ActorConfig
    collect: CollectConfig
    human: HumanConfig
    eval: EvalConfig
    trust: TrustConfig

    @staticmethod
    def of(config: RunConfig) -> "StartConfig":
        shared = {field.name: getattr(config, field.name) for field in fields(StartConfig) if field.name != "horizon"}
        return StartConfig(**shared, horizon=config.window.horizon)


@contextmanager
def waiting_lock(path: Path) -> Iterator[None]:
    """Only one process at a time is in the block; the others wait. The lock goes with the process that holds it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle = os.open(path, os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def check_folder(root: Path, config: RunConfig | StartConfig) -> None:
    """Raises ValueError if the folder was made by another config. Makes nothing."""
    if not (root / "config.json").exists():
        return
    try:
        RunFolder.check(root, config)
    except ValueError as error:
        raise ValueError(f"{error}, or delete that folder (rows of finished cells stay in the results)") from error


def is_made(root: Path, perturbations: tuple[str, ...]) -> bool:
    """Whether the common start in a folder is complete."""
    run = RunFolder(root)
    measured = all(run.done(0, stage_of(name)) for name in perturbations)
    return measured and bool(run.done(0, "eval") and run.done(1, "collect"))


def make_start(
    config: RunConfig, perturbations: tuple[str, ...], root: Path, say: Say, device: Device = "cpu"
) -> RunFolder:
    """Makes the common start in `root`, or goes on with it, or finds it done. Waits where another process makes it.

    Raises:
        ValueError: the folder holds a start of another config, or there is no GPU.
    """
    with waiting_lock(root.with_name(root.name + ".lock")):
        check_folder(root, StartConfig.of(config))
        run = RunFolder.open(root, StartConfig.of(config))
        if is_made(root, perturbations):
            return run
        if not (run.done(0, "eval") and run.done(1, "collect")):
            # Shares of a batch are for what comes after the clone, and methods differ in them.
            with open_circle(replace(config, sources=SourceRatios()), run, say, device=device) as circle:
                if not run.done(0, "eval"):
                    circle.start()
                circle.collect(1)
        measure_more(config, run, 0, perturbations, say, device)
        shutil.rmtree(run.cache, ignore_errors=True)
    return run


def begin_cell(config: RunConfig, start: RunFolder, root: Path) -> None:
    """Makes a cell's folder from a finished start, at once or not at all."""
    with new_folder(root) as partial:
        shutil.copytree(start.experience, partial / "experience")
        shutil.copytree(start.root / "rounds", partial / "rounds")
        shutil.copy2(start.metrics_file, partial)
        write_json(partial / "config.json", to_plain(config))


def measure_more(
    config: RunConfig,
    run: RunFolder,
    version: int,
    measurements: tuple[str, ...],
    say: Say,
    device: Device = "cpu",
) -> None:
    """Measures a policy version in perturbed worlds or, for `CHOICE`, with the critics' choice, on the seeds of the plain
    evaluation; each is a stage of its round."""
    for name in measurements:
        if not run.done(version, stage_of(name)):
            world = config.world if name == CHOICE else replace(config.world, perturbation=name)
            with open_circle(config, run, say, world, device) as circle:
                circle.measure(version, stage_of(name), choosing=name == CHOICE)


def stage_of(measurement: str) -> str:
    return f"eval-{measurement}"
