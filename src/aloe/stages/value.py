"""The value of whoever acted in the buffer as a stage: what AWR and RECAP weigh and condition by."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float32
from numpy import ndarray

from aloe.policies.train import ActorRows
from aloe.stages.critic import (
    EvaluationInputs,
    advantage_metrics,
    observation_shape,
    observation_source,
    write_advantages,
)
from aloe.training import Log, generator_for
from aloe.value.critic import ChunkCritic, CriticConfig
from aloe.value.distribution import ReturnDistribution, evaluate_states, fit_distribution
from aloe.value.fit import FitConfig


def new_value(
    inputs: EvaluationInputs, config: CriticConfig, fit: FitConfig, bins: int, key: tuple[int | str, ...]
) -> ReturnDistribution:
    """A fresh value on the tower's device; its weights a function of `key`."""
    shape = observation_shape(inputs.tower, horizon=0)
    with torch.random.fork_rng():
        torch.manual_seed(generator_for(*key).initial_seed())
        # Separate trunks are for several critics.
        network = ChunkCritic(replace(config, critics=1, trunks="shared"), shape, outputs=bins)
    return ReturnDistribution(network.to(inputs.tower.device), fit, bins)


def value_stage(
    inputs: EvaluationInputs,
    state: ReturnDistribution,
    fit: FitConfig,
    key: tuple[int | str, ...],
    out: Path,
    log: Log | None = None,
) -> None:
    """Trains the value and writes `value.safetensors` into `out`."""
    checkpoint = out / "value.checkpoint.safetensors"
    fit_distribution(
        state,
        inputs.windows,
        observation_source(inputs),
        fit,
        key,
        shares=inputs.store.shares,
        checkpoint=checkpoint,
        log=log,
    )
    state.save(out / "value.safetensors", fit.steps)
    checkpoint.unlink(missing_ok=True)


def value_advantage_stage(
    inputs: EvaluationInputs,
    state: ReturnDistribution,
    weigh: Callable[[Float32[ndarray, "N"]], tuple[Float32[ndarray, "N"], ActorRows]],
    out: Path,
) -> dict[str, float]:
    """Writes `advantages.parquet` into `out`, one row a window, and returns what is worth knowing about it.

    weigh: value of every frame -> advantages, and what the method makes of them.
    """
    value = evaluate_states(state, len(inputs.frames), observation_source(inputs)).astype(np.float32)
    advantage, actor = weigh(value)
    write_advantages(inputs, value, advantage, actor, out)
    return advantage_metrics(inputs.frames, value, advantage, actor)
