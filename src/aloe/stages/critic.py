"""Policy evaluation as a stage: sample chunks, train the critics, write the advantages."""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float32
from lerobot.utils.constants import OBS_STATE
from torch import Tensor

from aloe.evaluation.health import EQUAL_WEIGHTS, FEW_EFFECTIVE
from aloe.evaluation.support import effective_share
from aloe.experience.cache import Cache, FeatureCache, FrameCache
from aloe.experience.schema import Experience, Frames, digest_of
from aloe.experience.windows import WindowConfig, Windows, make_windows
from aloe.policies.bundle import PolicyBundle, Tower, check_sees_all
from aloe.policies.flow import chunk_shape, language_dim, seen_cameras
from aloe.policies.sampling import SHARD, sample_all_chunks
from aloe.policies.train import ActorRows
from aloe.stages.actor import EXPERIENCE, policy_rows
from aloe.training import Log, generator_for
from aloe.types import Source
from aloe.value.critic import ChunkCritic, CriticConfig, Observations, ObservationShape
from aloe.value.evaluate import Evaluation, evaluate_windows
from aloe.value.fit import (
    CriticData,
    CriticState,
    FitConfig,
    ObservationSource,
    fit_critic,
)

CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class EvaluationInputs:
    """What policy evaluation reads: the store cut into windows, and policy and tower to look at it with."""

    store: Experience
    frames: Frames
    windows: Windows
    bundle: PolicyBundle
    """The current policy."""
    tower: Tower
    """What the critics see through."""
    cache: Cache

    @staticmethod
    def of(
        store: Experience,
        bundle: PolicyBundle,
        tower: Tower,
        cache: Cache,
        window: WindowConfig,
        scale: float,
    ) -> "EvaluationInputs":
        frames = store.columns()
        windows = make_windows(frames, window, scale)
        return EvaluationInputs(store=store, frames=frames, windows=windows, bundle=bundle, tower=tower, cache=cache)


def sample_stage(
    inputs: EvaluationInputs, samples: int, key: tuple[int | str, ...], out: Path, batch_size: int = SHARD
) -> None:
    """Draws M chunks of the current policy at every frame into `out`; goes on with what a stopped attempt has drawn."""
    pictures = FrameCache(inputs.cache, inputs.store)
    pictures.update()
    rows = policy_rows(inputs.bundle, inputs.frames, pictures)
    sample_all_chunks(inputs.bundle, rows, len(inputs.frames), samples, key, out, batch_size)


def observation_source(inputs: EvaluationInputs) -> ObservationSource:
    """What critics see of every frame, with cached features. Encodes the pictures that are new."""
    tower, frames = inputs.tower, inputs.frames
    check_sees_all(tower.bundle, inputs.store.cameras)
    pictures = FrameCache(inputs.cache, inputs.store)
    rows = policy_rows(tower.bundle, frames, pictures)
    state = rows.inputs[OBS_STATE]
    language = tower.words(frames.tasks)[torch.from_numpy(frames.task_index)]
    features = None
    if inputs.store.cameras:
        features = FeatureCache(inputs.cache, tower.key, pictures, (tower.image_tokens, tower.feature_dim))
        features.update(lambda images: half(tower.encode(images)).unflatten(1, (-1, tower.image_tokens)).numpy())

    def observations(frames: np.ndarray) -> Observations:
        picked = torch.from_numpy(frames)
        seen = (
            torch.zeros(len(frames), 0, tower.feature_dim)
            if features is None
            else torch.from_numpy(features.gather(frames)).flatten(1, 2)
        )
        return Observations(features=seen, state=state[picked], language=language[picked])

    return observations


def half(features: Tensor) -> Tensor:
    """As float16, in which they are kept. Raises ValueError where they do not fit."""
    if not torch.isfinite(short := features.half()).all():
        raise ValueError("the vision tower gave features beyond 65504 or not finite; are its weights damaged?")
    return short


def normalised_actions(inputs: EvaluationInputs) -> torch.Tensor:
    """Executed actions (N, A) in the units of policy and tower.

    Raises:
        ValueError: the two normalise differently.
    """
    pictures = FrameCache(inputs.cache, inputs.store)
    of_policy, of_tower = (policy_rows(b, inputs.frames, pictures).action for b in (inputs.bundle, inputs.tower.bundle))
    if not torch.equal(of_policy, of_tower):
        raise ValueError("the policy and the one whose tower the critics see with normalise actions differently")
    return of_policy


def check_tower(tower: Tower, cameras: dict[str, tuple[int, int]]) -> None:
    """Whether critics can be shown these cameras' pictures (camera -> (h, w)) through a tower. Looks at black ones.

    Raises:
        ValueError: they cannot.
    """
    check_sees_all(tower.bundle, cameras)
    if cameras:
        tower.encode({camera: np.zeros((1, *size, 3), np.uint8) for camera, size in cameras.items()})


def judged_actions(config: CriticConfig, execute: int, window: WindowConfig) -> int:
    """How many actions of a chunk critics see, where the policy looks again after `execute` of them."""
    return min(execute, window.horizon) if config.judges == "executed" else window.horizon


def critic_data(inputs: EvaluationInputs, samples: Path, judged: int) -> CriticData:
    """Windows, cached features and sampled chunks, ready for critics that see the first `judged` actions of each."""
    chunks = np.load(samples, mmap_mode="r")
    horizon = inputs.windows.frames.shape[1]
    if len(chunks) != len(inputs.frames):
        raise ValueError(
            f"{samples} holds chunks for {len(chunks)} frames, the store has {len(inputs.frames)}: it grew since; "
            "choose another --output-dir"
        )
    if chunks.shape[2] < horizon:
        raise ValueError(
            f"the policy predicts chunks of {chunks.shape[2]} actions, windows hold {horizon}; "
            f"give --window.horizon {chunks.shape[2]} or less"
        )
    return CriticData(
        windows=inputs.windows,
        observations=observation_source(inputs),
        action=normalised_actions(inputs),
        samples=chunks[:, :, :judged],
        shares=inputs.store.shares,
    )


def observation_shape(tower: Tower, horizon: int) -> ObservationShape:
    """What critics see through a tower, and how many actions they judge."""
    policy = tower.bundle.policy
    assert policy.config.robot_state_feature is not None
    return ObservationShape(
        cameras=len(seen_cameras(policy)) * tower.image_tokens,
        feature_dim=tower.feature_dim,
        state_dim=policy.config.robot_state_feature.shape[0],
        language_dim=language_dim(policy),
        action_dim=chunk_shape(policy)[1],
        horizon=horizon,
    )


def new_critic(
    shape: ObservationShape,
    config: CriticConfig,
    fit: FitConfig,
    key: tuple[int | str, ...],
    device: torch.device = CPU,
) -> CriticState:
    """Fresh critics for these observations and chunks, their weights a function of `key`."""
    with torch.random.fork_rng():
        torch.manual_seed(generator_for(*key).initial_seed())
        critic = ChunkCritic(config, shape)
        value = ChunkCritic(config, replace(shape, horizon=0)).to(device) if fit.bootstrap == "in-sample" else None
    return CriticState(critic.to(device), fit, value)


def critic_stage(
    data: CriticData,
    state: CriticState,
    fit: FitConfig,
    discount: float,
    key: tuple[int | str, ...],
    out: Path,
    log: Log | None = None,
) -> None:
    """Trains the critics and writes `critic.safetensors` into `out`."""
    checkpoint = out / "critic.checkpoint.safetensors"
    fit_critic(state, data, fit, discount, key, checkpoint=checkpoint, log=log)
    state.save(out / "critic.safetensors", fit.steps)
    checkpoint.unlink(missing_ok=True)


def advantage_stage(
    inputs: EvaluationInputs,
    data: CriticData,
    state: CriticState,
    fit: FitConfig,
    weigh: Callable[[Evaluation], ActorRows],
    out: Path,
) -> dict[str, float]:
    """Writes `advantages.parquet` into `out`, one row a window, and returns what is worth knowing about it.

    weigh: what the method makes of the critics' judgement.
    """
    evaluation = evaluate_windows(state.critic, data, fit)
    actor = weigh(evaluation)
    write_advantages(inputs, evaluation.value, evaluation.advantage, actor, out, critic_columns(evaluation))
    spread = {"spread_data": evaluation.q.std(-1).mean(), "spread_samples": evaluation.q_samples.std(-1).mean()}
    metrics = advantage_metrics(inputs.frames, evaluation.value, evaluation.advantage, actor)
    return metrics | {name: float(mean) for name, mean in spread.items()}


READINGS: Final = {
    "effective_share": f"healthy from {FEW_EFFECTIVE} to {EQUAL_WEIGHTS}",
    "value": "mean; -1: --scale steps away from success",
    "advantage": "mean; above 0: better than the policy would",
    "weight": "share of all weight",
    "spread_data": "the critics' doubt about what was done",
    "spread_samples": "and about the policy's chunks; healthy: alike",
}
"""What the metrics of `advantage_stage` say, by name; of those that end with a source, by what comes before it."""


def reading(metric: str) -> str:
    """One line for who reads the number for the first time."""
    return READINGS.get(metric) or READINGS[metric.partition("_")[0]]


def critic_columns(evaluation: Evaluation) -> dict[str, np.ndarray]:
    """Each critic's value of the executed chunk."""
    return {f"q_{k}": evaluation.q[:, k] for k in range(evaluation.q.shape[1])}


def write_advantages(
    inputs: EvaluationInputs,
    value: Float32[np.ndarray, "N"],
    advantage: Float32[np.ndarray, "N"],
    actor: ActorRows,
    out: Path,
    more: dict[str, np.ndarray] | None = None,
) -> None:
    """`advantages.parquet`, one row a window: where it is, its values, and what the actor is to make of it."""
    table = {
        **value_columns(inputs, value, advantage, more),
        "weight": actor.weight,
        **({} if actor.condition is None else {"condition": actor.condition}),
    }
    write_table(table, out / "advantages.parquet", {EXPERIENCE: digest_of(inputs.frames)})


def value_columns(
    inputs: EvaluationInputs,
    value: Float32[np.ndarray, "N"],
    advantage: Float32[np.ndarray, "N"],
    more: dict[str, np.ndarray] | None = None,
) -> dict[str, np.ndarray]:
    """Where each window is, the return that followed (NaN where the fragment merely stopped), and what it is valued at."""
    frames, windows = inputs.frames, inputs.windows
    return {
        "episode": frames.episode,
        "step": frames.step,
        "source": frames.source,
        "policy_version": frames.policy_version,
        "return": np.where(windows.ended, windows.monte_carlo, np.float32(np.nan)),
        **(more or {}),
        "value": value,
        "advantage": advantage,
    }


def write_table(columns: dict[str, np.ndarray], path: Path, attributes: dict[str, str] | None = None) -> None:
    """A parquet file, atomically; with attributes, which pandas gives back as `attrs`."""
    partial = path.with_name(path.name + ".partial")
    table = pd.DataFrame(columns)
    table.attrs.update(attributes or {})
    table.to_parquet(partial, index=False)
    os.replace(partial, path)


def advantage_metrics(
    frames: Frames, value: Float32[np.ndarray, "N"], advantage: Float32[np.ndarray, "N"], actor: ActorRows
) -> dict[str, float]:
    """Effective share of the windows with any weight, and by source the mean advantage and the share of the weight."""
    weight = actor.weight.astype(np.float64)
    metrics = {
        "effective_share": effective_share(weight),
        "value": float(value.mean()),
    }
    for source in Source:
        mine = frames.source == source
        if mine.any():
            metrics[f"advantage_{source.name.lower()}"] = float(advantage[mine].mean())
            metrics[f"weight_{source.name.lower()}"] = float(weight[mine].sum() / weight.sum())
    return metrics
