"""The stages of the circle, each usable alone: demonstrate, clone, collect, evaluate chunks, improve, measure success.

Every function takes what it reads and where it writes; the order of them, and what is skipped, is `loop.py`'s.
"""

import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.factory import make_pre_post_processors

from aloe.evaluation.success import SuccessReport
from aloe.experience.cache import FeatureCache, FrameCache
from aloe.experience.store import ExperienceStore, Frames
from aloe.experience.windows import WindowConfig, Windows, make_windows
from aloe.methods import aloe as aloe_method
from aloe.methods import sft as sft_method
from aloe.policies.flow import (
    IMAGES,
    PolicyBundle,
    PolicyPlayer,
    chunk_shape,
    encode_images,
    feature_dim,
    image_batch,
    language_features,
    tower_key,
)
from aloe.policies.tiny_vla import TinyVLAConfig, TinyVLAPolicy
from aloe.policies.train import ActorConfig, ActorRows, PolicyRows, sample_all_chunks, train_actor
from aloe.rollout.collect import episode_seeds
from aloe.rollout.human import HumanConfig
from aloe.rollout.pool import EpisodeRequest, WorldPool
from aloe.training import Log, generator_for, save_state, state_step
from aloe.types import Source
from aloe.value.critic import ChunkCritic, CriticConfig, Observations, ObservationShape
from aloe.value.fit import CriticData, CriticState, Evaluation, FitConfig, evaluate_windows, fit_critic
from aloe.worlds.metaworld import ACTION_DIM, STATE_DIM, MetaWorldConfig

Method = Literal["aloe", "sft"]


@dataclass(frozen=True, kw_only=True)
class DemosConfig:
    """Demonstrations by the world's scripted expert."""

    episodes: int = 10
    """Successful demonstrations to record. (Failed ones stay in the store, labelled, and are not cloned.)"""
    noise: float = 0.1
    """Standard deviation of the noise on the expert's actions, in the world's units."""


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """The policy of a run: a checkpoint, or a new tiny_vla of this size."""

    path: Path | None = None
    """A LeRobot `pretrained_model/` folder to start from, instead of cloning the demonstrations."""
    execute: int = 4
    """Actions of a chunk that are executed before the policy predicts again."""
    vision_width: int = 32
    """Channels of the vision tower."""
    keypoints: int = 32
    """Feature points that the tower finds in each picture."""
    width: int = 256
    """Width of the flow-matching head."""
    depth: int = 3
    """Residual blocks of the flow-matching head."""
    image_shift: int = 4
    """Random-shift augmentation of the pictures, in pixels."""
    flow_steps: int = 5
    """Euler steps from noise to action."""


# -- experience -------------------------------------------------------------------------------------------------------


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


def demonstrate(store: ExperienceStore, pool: WorldPool, config: DemosConfig, seed: int) -> None:
    """Records until the store holds `config.episodes` successful demonstrations; goes on from what is there.

    Raises:
        ValueError: the expert fails far more often than it succeeds.
    """
    frames = store.columns()
    successes = int((frames.success & (frames.source == Source.DEMO)).sum())
    limit = 4 * config.episodes + 10
    seeds = episode_seeds(seed, "demonstrate", limit)
    requests = [EpisodeRequest(index=i, seed=seeds[i]) for i in range(store.num_episodes, limit)]
    if successes >= config.episodes:
        return
    for episode in pool.play(requests, None, demo_noise=config.noise, progress="demonstrations"):
        store.append(episode)
        successes += episode.succeeded
        if successes == config.episodes:
            return
    raise ValueError(
        f"the scripted expert succeeded in {successes} of {store.num_episodes} episodes of {pool.world.task}; "
        "lower --demos.noise or raise --world.max-steps"
    )


def collect(
    store: ExperienceStore,
    pool: WorldPool,
    bundle: PolicyBundle,
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
        PolicyPlayer(bundle=bundle),
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


def measure(
    pool: WorldPool, bundle: PolicyBundle, *, episodes: int, execute: int, version: int, seed: int
) -> SuccessReport:
    """Success of the policy alone over fixed seeds, the same for every version."""
    seeds = episode_seeds(seed, "evaluate", episodes)
    requests = [EpisodeRequest(index=i, seed=s) for i, s in enumerate(seeds)]
    played = pool.play(
        requests,
        PolicyPlayer(bundle=bundle),
        execute=execute,
        record=False,
        policy_version=version,
        progress="eval",
    )
    return SuccessReport.from_episodes(list(played), fps=pool.world.fps)


# -- policy -----------------------------------------------------------------------------------------------------------


def new_policy(store: ExperienceStore, config: PolicyConfig, horizon: int, key: tuple[int | str, ...]) -> PolicyBundle:
    """A fresh tiny_vla that fits the store; normalised by its demonstrations."""
    frames = store.columns()
    demo = frames.source == Source.DEMO
    if not demo.any():
        raise ValueError(f"{store.root} holds no demonstrations to clone; record some with `aloe demos`")
    policy_config = TinyVLAConfig(
        device="cpu",
        push_to_hub=False,
        chunk_size=horizon,
        n_action_steps=config.execute,
        vision_width=config.vision_width,
        keypoints=config.keypoints,
        width=config.width,
        depth=config.depth,
        image_shift=config.image_shift,
        num_flow_steps=config.flow_steps,
        input_features={
            **{IMAGES + c: PolicyFeature(FeatureType.VISUAL, (3, *size)) for c, size in store.cameras.items()},
            "observation.state": PolicyFeature(FeatureType.STATE, (store.state_dim,)),
        },
        output_features={"action": PolicyFeature(FeatureType.ACTION, (store.action_dim,))},
    )
    with torch.random.fork_rng():  # the weights are drawn from torch's global generator: seeded here, and put back
        torch.manual_seed(generator_for(*key).initial_seed())
        policy = TinyVLAPolicy(policy_config)
    stats = {
        name: {"mean": torch.from_numpy(rows[demo].mean(0)), "std": torch.from_numpy(rows[demo].std(0))}
        for name, rows in (("observation.state", frames.state), ("action", frames.action))
    }
    pre, post = make_pre_post_processors(policy_config, dataset_stats=stats)
    return PolicyBundle(policy=policy, preprocessor=pre, postprocessor=post)


def policy_rows(bundle: PolicyBundle, frames: Frames, pictures: FrameCache) -> PolicyRows:
    """The store as the policy sees it.

    Raises:
        ValueError: cameras or sizes of the store are not the policy's.
    """
    wanted = {key.removeprefix(IMAGES): feature.shape for key, feature in bundle.policy.config.image_features.items()}
    for camera, shape in wanted.items():
        if camera not in pictures.store.cameras:
            raise ValueError(
                f"the policy sees camera {camera!r}, which the store lacks (it has {', '.join(pictures.store.cameras)})"
            )
        if shape[1:] != pictures.store.cameras[camera]:
            raise ValueError(
                f"camera {camera!r} has {pictures.store.cameras[camera]} pixels in the store, {shape[1:]} in the policy"
            )
    return PolicyRows.of(
        bundle,
        frames.state,
        frames.action,
        [frames.tasks[i] for i in frames.task_index],
        lambda rows: {camera: pictures.gather(camera, rows) for camera in wanted},
    )


def train_policy(
    bundle: PolicyBundle,
    store: ExperienceStore,
    cache: Path,
    actor: ActorRows,
    config: ActorConfig,
    key: tuple[int | str, ...],
    out: Path,
    *,
    optimizer_file: Path | None = None,
    log: Log | None = None,
    label: str,
) -> None:
    """Trains the policy on weighted windows and writes `pretrained_model/` and `optimizer.safetensors` into `out`."""
    pictures = FrameCache(cache / "pictures", store)
    pictures.update()
    checkpoint = out / f"{label}.checkpoint.safetensors"
    optimizer = train_actor(
        bundle,
        policy_rows(bundle, store.columns(), pictures),
        actor,
        config,
        key,
        optimizer_file=optimizer_file,
        checkpoint=checkpoint,
        log=log,
        label=label,
    )
    save_state(out / "optimizer.safetensors", {}, {"optimizer": optimizer}, config.steps)
    bundle.save_atomically(out / "pretrained_model")
    checkpoint.unlink(missing_ok=True)


# -- policy evaluation ------------------------------------------------------------------------------------------------


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
    sample_all_chunks(inputs.bundle, rows, len(inputs.frames), samples, key, array)
    array.flush()
    os.replace(partial, out)


def critic_data(inputs: EvaluationInputs, samples: Path) -> CriticData:
    """Windows, cached features and sampled chunks, ready for the critics. Encodes the pictures that are new."""
    tower = inputs.tower.policy.eval()
    pictures = FrameCache(inputs.cache / "pictures", inputs.store)
    features = FeatureCache(inputs.cache / "features", tower_key(tower), pictures, (feature_dim(tower),))

    @torch.no_grad()
    def encode(images: dict[str, np.ndarray]) -> np.ndarray:
        return encode_images(tower, image_batch(images)).numpy().astype(np.float16)

    features.update(encode)
    rows = policy_rows(inputs.tower, inputs.frames, pictures)
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


def rows_from_advantages(path: Path, frames: Frames, windows: Windows) -> ActorRows:
    """The weights that `advantage_stage` wrote, checked against the store that they are to be used with.

    Raises:
        ValueError: they were made for another store, or for an earlier state of it.
    """
    if not path.is_file():
        raise ValueError(f"{path} does not exist; make it with `aloe critic`")
    table = pd.read_parquet(path)
    same = len(table) == len(frames) and bool(
        (table["episode"].to_numpy() == frames.episode).all() and (table["step"].to_numpy() == frames.step).all()
    )
    if not same:
        raise ValueError(
            f"{path} has {len(table)} windows, the store {len(frames)} frames: it was made for another store, or before "
            "the store grew; run `aloe critic` again"
        )
    weight = table["weight"].to_numpy(np.float32)
    return ActorRows(rows=np.flatnonzero(weight > 0), weight=weight, frames=windows.frames, is_pad=windows.is_pad)


def sft_rows(frames: Frames, window: WindowConfig, scale: float) -> ActorRows:
    return sft_method.actor_rows(frames, make_windows(frames, window, scale))


def checkpoint_step(checkpoint: Path) -> int:
    """The step from which a stage with this checkpoint goes on; 0 without one."""
    return state_step(checkpoint) if checkpoint.exists() else 0
