"""How well does a library's fitted Q evaluation rank the policy versions of a run? d3rlpy's, on what `aloe rank` is given.

    uv pip install --python .venv/bin/python --no-deps --target runs/d3rlpy d3rlpy==2.8.1 gym==0.26.2 gym-notices==0.1.0 \\
        structlog==26.1.0 dataclasses-json==0.6.7 marshmallow==4.4.0 typing-inspect==0.9.0 mypy-extensions==1.2.0 \\
        colorama==0.4.6 h5py==3.16.0
    PYTHONPATH=runs/d3rlpy .venv/bin/python benchmarks/d3rlpy_fqe.py runs/benchmark/precision-state/aloe-6

(`make setup` may have put uv into .venv-uv/bin.) In a folder of its own, since d3rlpy asks for an older Gymnasium than
LeRobot does; it runs with the newer one. Network, learning rate, batch and target updates are the library's defaults. The
transitions are single steps of the run's final store, and the action in the next state is drawn from those that the version
sampled there, afresh in every batch.
"""

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import structlog  # pyright: ignore[reportMissingImports]
import torch
import tyro
from _common import print_header, print_row
from d3rlpy import seed as seed_everything  # pyright: ignore[reportMissingImports]
from d3rlpy.dataset import MDPDataset  # pyright: ignore[reportMissingImports]
from d3rlpy.logging import NoopAdapterFactory  # pyright: ignore[reportMissingImports]
from d3rlpy.ope import FQE, FQEConfig  # pyright: ignore[reportMissingImports]
from jaxtyping import Float, Float32
from numpy import ndarray
from torch import Tensor

from aloe.config import RunConfig
from aloe.experience.store import ExperienceStore
from aloe.rank import discounted_return, evidence, measures, open_run, settings
from aloe.run import RunFolder
from aloe.stages import EvaluatedEpisode
from aloe.value.fit import CriticData


@dataclass(frozen=True, kw_only=True)
class Config:
    """What to ask."""

    runs: tyro.conf.Positional[tuple[Path, ...]]
    """Finished runs with state observations."""
    steps: int = 20_000
    """Gradient steps for each version, from scratch."""
    every: int = 5_000
    """Steps after which it is asked, and again."""


class Sampled:
    """A version of the policy as d3rlpy's evaluation asks for it: by the observation, one of the actions drawn there."""

    def __init__(self, observations: Float32[ndarray, "N O"], actions: Float32[ndarray, "N M A"], seed: int) -> None:
        self._row = {row.tobytes(): index for index, row in enumerate(observations)}
        self._actions = actions
        self._rng = np.random.default_rng(seed)

    @property
    def impl(self) -> "Sampled":
        return self

    def predict_best_action(self, x: Float[Tensor, "B O"]) -> Float[Tensor, "B A"]:
        # What follows a terminal step is zeros, and its value counts for nothing.
        rows = np.array([self._row[row.tobytes()] if row.any() else 0 for row in x.numpy()])
        which = self._rng.integers(self._actions.shape[1], size=len(rows))
        return torch.from_numpy(self._actions[rows, which])


def observed(data: CriticData) -> Float32[ndarray, "N O"]:
    """State and instruction of every frame, as ALOE's critics get them."""
    seen = data.observations(np.arange(len(data.windows)))
    return torch.cat([seen.state, seen.language], 1).float().contiguous().numpy()


def evaluate(run: RunFolder, settings_of_run: RunConfig, version: int, config: Config) -> dict[int, float]:
    """Mean value of a version in the start states of the evaluation, by d3rlpy's FQE, by steps."""
    store = settings_of_run.learns_from(ExperienceStore.read(run.experience))
    window, fit = settings(settings_of_run, "fqe", config.steps)
    known = evidence(run, settings_of_run, store, version, window, fit.sample_batch, "cpu")
    windows, observations = known.data.windows, observed(known.data)
    last = np.append(windows.fragment[1:] != windows.fragment[:-1], True)
    if not windows.terminated[last].all():
        raise ValueError(f"{run.root} holds fragments that merely stop; d3rlpy would be told that they ended")
    dataset = MDPDataset(
        observations=observations,
        actions=known.data.action.numpy(),
        rewards=windows.reward[:, 0],
        terminals=last.astype(np.float32),
    )
    seed_everything(settings_of_run.seed)
    actions = np.asarray(known.data.samples[:, :, 0], np.float32)
    starts, chosen = observed(known.starts)[known.is_start], np.asarray(known.starts.samples[known.is_start, :, 0])
    found: dict[int, float] = {}

    def ask(fqe: FQE, epoch: int, step: int) -> None:
        found[step] = float(np.mean([fqe.predict_value(starts, chosen[:, m]) for m in range(chosen.shape[1])]))

    FQE(algo=Sampled(observations, actions, settings_of_run.seed), config=FQEConfig(gamma=window.discount)).fit(
        dataset,
        config.steps,
        n_steps_per_epoch=config.every,
        logger_adapter=NoopAdapterFactory(),
        show_progress=False,
        epoch_callback=ask,
    )
    return found


def main(config: Config) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    asked = range(config.every, config.steps + 1, config.every)
    print_header("d3rlpy's FQE", ["run", "version", "success", "return", *(f"after {step} steps" for step in asked)])
    found: dict[Path, list[dict[str, Any]]] = {}
    for root in config.runs:
        run, settings_of_run, versions = open_run(root)
        if settings_of_run.world.observations != "state":
            raise ValueError(f"{root} sees pictures; give runs with state observations")
        scale = (run.done(0, "demos") or {})["return_scale"]
        for version in versions:
            facts = EvaluatedEpisode.read(run.round(version) / "fresh.json")
            row: dict[str, Any] = {
                "success": np.mean([fact.success for fact in facts]),
                "return": np.mean([discounted_return(fact, settings_of_run.window, scale) for fact in facts]),
            }
            row |= {str(step): value for step, value in evaluate(run, settings_of_run, version, config).items()}
            found.setdefault(root, []).append(row)
            print_row([f"{root.parent.name}/{root.name}", version, *(f"{v:.2f}" for v in row.values())])
    for root, rows in found.items():
        for step in asked:
            print(f"{root.parent.name}/{root.name}, {step} steps: {json.dumps(measures(rows, str(step)))}")


if __name__ == "__main__":
    main(tyro.cli(Config))
