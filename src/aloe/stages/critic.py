"""Policy evaluation as a stage: sample chunks, train the critics, write the advantages."""

import os
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from aloe.experience.cache import FeatureCache, FrameCache
from aloe.experience.store import ExperienceStore, Frames
from aloe.experience.windows import WindowConfig, Windows, make_windows
from aloe.methods import aloe as aloe_method
from aloe.policies.flow import (
    PolicyBundle,
    check_sees_all,
    chunk_shape,
    encode_images,
    feature_dim,
    image_batch,
    language_features,
    tower_key,
)
from aloe.policies.train import ActorRows, sample_all_chunks
from aloe.stages.actor import policy_rows
from aloe.training import Log, generator_for
from aloe.types import Source
from aloe.value.critic import ChunkCritic, CriticConfig, Observations, ObservationShape
from aloe.value.fit import CriticData, CriticState, Evaluation, FitConfig, evaluate_windows, fit_critic


@dataclass(frozen=True, kw_only=True)
class EvaluationInputs:
    """What policy evaluation reads: the store cut into windows, and policy and tower to look at it with."""

    store: ExperienceStore
    frames: Frames
    windows: Windows
    bundle: PolicyBundle
    """The current policy."""
    tower: PolicyBundle
    """The policy whose frozen vision tower the critics see with: the first of a run, for all of its rounds."""
    cache: Path

    @staticmethod
    def of(
        store: ExperienceStore,
        bundle: PolicyBundle,
        tower: PolicyBundle,
        cache: Path,
        window: WindowConfig,
        scale: float,
    ) -> "EvaluationInputs":
        frames = store.columns()
        windows = make_windows(frames, window, scale)
        return EvaluationInputs(store=store, frames=frames, windows=windows, bundle=bundle, tower=tower, cache=cache)


def sample_stage(inputs: EvaluationInputs, samples: int, key: tuple[int | str, ...], out: Path) -> None:
    """Draws M chunks of the current policy at every frame into `out` (.npy, float32, (N, M, H, A), normalised)."""
    pictures = FrameCache(inputs.cache / "pictures", inputs.store)
    pictures.update()
    rows = policy_rows(inputs.bundle, inputs.frames, pictures)
    shape = (len(inputs.frames), samples, *chunk_shape(inputs.bundle.policy))
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.with_name(out.name + ".partial")
    array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=shape)
    with partial.open("r+b") as file:  # a disk that fills up under a memory map would kill the process without a word
        os.posix_fallocate(file.fileno(), 0, partial.stat().st_size)
    sample_all_chunks(inputs.bundle, rows, len(inputs.frames), samples, key, array)
    array.flush()
    os.replace(partial, out)


def critic_data(inputs: EvaluationInputs, samples: Path) -> CriticData:
    """Windows, cached features and sampled chunks, ready for the critics. Encodes the pictures that are new."""
    check_sees_all(inputs.tower, inputs.store.cameras)
    tower = inputs.tower.policy.eval()
    pictures = FrameCache(inputs.cache / "pictures", inputs.store)
    features = FeatureCache(inputs.cache / "features", tower_key(tower), pictures, (feature_dim(tower),))

    @torch.no_grad()
    def encode(images: dict[str, np.ndarray]) -> np.ndarray:
        return encode_images(tower, image_batch(images)).numpy().astype(np.float16)

    features.update(encode)
    rows = policy_rows(inputs.tower, inputs.frames, pictures)
    if not torch.equal(rows.action, policy_rows(inputs.bundle, inputs.frames, pictures).action):
        raise ValueError("the policy and the one whose tower the critics see with normalise actions differently")
    state, language = rows.inputs["observation.state"], language_features(tower, rows.inputs)

    def observations(frames: np.ndarray) -> Observations:
        picked = torch.from_numpy(frames)
        return Observations(
            features=torch.from_numpy(features.gather(frames)).float(),
            state=state[picked],
            language=language[picked],
        )

    chunks = np.load(samples, mmap_mode="r")
    horizon = inputs.windows.frames.shape[1]
    if len(chunks) != len(inputs.frames):
        raise ValueError(
            f"{samples} holds chunks for {len(chunks)} frames, the store has {len(inputs.frames)}: it grew since; "
            "choose another --output-dir"
        )
    if chunks.shape[2] < horizon:
        raise ValueError(
            f"the policy predicts chunks of {chunks.shape[2]} actions, the critic judges {horizon}; "
            f"give --window.horizon {chunks.shape[2]} or less"
        )
    return CriticData(
        windows=inputs.windows, observations=observations, action=rows.action, samples=chunks[:, :, :horizon]
    )


def new_critic(data: CriticData, config: CriticConfig, fit: FitConfig, key: tuple[int | str, ...]) -> CriticState:
    """Fresh critics for these observations and chunks, their weights a function of `key`."""
    first = data.observations(np.zeros(1, dtype=np.int64))
    shape = ObservationShape(
        cameras=first.features.shape[1],
        feature_dim=first.features.shape[2],
        state_dim=first.state.shape[1],
        language_dim=first.language.shape[1],
        action_dim=data.action.shape[1],
        horizon=data.windows.frames.shape[1],
    )
    with torch.random.fork_rng():
        torch.manual_seed(generator_for(*key).initial_seed())
        critic = ChunkCritic(config, shape)
        value = (
            ChunkCritic(config, ObservationShape(**{**asdict(shape), "horizon": 0}))
            if fit.bootstrap == "in-sample"
            else None
        )
    return CriticState(critic, fit, value)


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
    method: aloe_method.AloeConfig,
    out: Path,
) -> dict[str, float]:
    """Writes `advantages.parquet` into `out`, one row a window, and returns what is worth knowing about it."""
    evaluation = evaluate_windows(state.critic, data, fit)
    actor = aloe_method.actor_rows(inputs.frames, inputs.windows, evaluation, method)
    frames, windows = inputs.frames, inputs.windows
    table = {
        "episode": frames.episode,
        "step": frames.step,
        "source": frames.source,
        "policy_version": frames.policy_version,
        "return": windows.monte_carlo,
        **{f"q_{k}": evaluation.q[:, k] for k in range(evaluation.q.shape[1])},
        "value": evaluation.value,
        "advantage": evaluation.advantage,
        "weight": actor.weight,
    }
    partial = out / "advantages.parquet.partial"
    pd.DataFrame(table).to_parquet(partial, index=False)
    os.replace(partial, out / "advantages.parquet")
    return advantage_metrics(frames, evaluation, actor)


def advantage_metrics(frames: Frames, evaluation: Evaluation, actor: ActorRows) -> dict[str, float]:
    """Effective sample size, and by source the mean advantage and the share of the weight."""
    weight = actor.weight.astype(np.float64)
    metrics = {
        "effective_samples": float(weight.sum() ** 2 / (weight**2).sum() / len(weight)),
        "spread_data": evaluation.spread_data,
        "spread_samples": evaluation.spread_samples,
        "value": float(evaluation.value.mean()),
    }
    for source in Source:
        mine = frames.source == source
        if mine.any():
            metrics[f"advantage_{source.name.lower()}"] = float(evaluation.advantage[mine].mean())
            metrics[f"weight_{source.name.lower()}"] = float(weight[mine].sum() / weight.sum())
    return metrics
