"""Stages that train a policy: clone and improve."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
from lerobot.configs.types import FeatureType, PolicyFeature
from lerobot.policies.factory import make_pre_post_processors
from safetensors import SafetensorError

from aloe.experience.cache import Cache, FrameCache
from aloe.experience.schema import Experience, Frames, digest_of
from aloe.experience.view import only_cameras
from aloe.experience.windows import Windows, action_frames
from aloe.methods import dagger, filtered, sft
from aloe.policies.bundle import PolicyBundle, check_fits, chosen_device
from aloe.policies.flow import IMAGES, chunk_shape, seen_cameras
from aloe.policies.recipe import ActorConfig, recipe
from aloe.policies.tiny_vla import TinyVLAConfig, TinyVLAPolicy
from aloe.policies.train import ActorRows, PolicyRows, check_memory, train_actor
from aloe.policies.trainable import trainable
from aloe.training import Device, Log, Shares, generator_for, load_state, save_state, state_step
from aloe.types import Source

CloningMethod = Literal["sft", "dagger", "filtered"]
CLONING: dict[CloningMethod, Callable[[Frames, Windows], ActorRows]] = {
    "sft": sft.actor_rows,
    "dagger": dagger.actor_rows,
    "filtered": filtered.actor_rows,
}

SMALLEST_STD = 1e-2
"""Demonstrations may hold a number still, the grip for example; divided by less, a human's twitch would become enormous."""

EXPERIENCE = "experience"
"""Attribute of `advantages.parquet`: the digest of what it was made for."""

EXECUTE = 4
"""Actions of a chunk that a new policy executes, where nobody says how many."""


@dataclass(frozen=True, kw_only=True)
class PolicyConfig:
    """The policy of a run: a checkpoint, or a new tiny_vla of this size."""

    path: Path | None = None
    """A LeRobot `pretrained_model/` folder to start from, instead of cloning the demonstrations."""
    execute: int | None = None
    """Actions of a chunk that are executed before the policy predicts again, which the critics judge; by default what the
    checkpoint's config says, and at most 4 of a new policy."""
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

    def __post_init__(self) -> None:
        executed = 1 if self.execute is None else self.execute
        if min(executed, self.vision_width, self.keypoints, self.width, self.depth, self.flow_steps) < 1:
            raise ValueError("execute, flow_steps and the sizes of the policy must be at least 1")


def new_policy(
    store: Experience, config: PolicyConfig, horizon: int, key: tuple[int | str, ...], device: Device = "cpu"
) -> PolicyBundle:
    """A fresh tiny_vla that fits the store; normalised by its demonstrations.

    Raises:
        ValueError: the store holds no demonstrations, or there is no GPU.
    """
    frames = store.columns()
    demo = frames.source == Source.DEMO
    if not demo.any():
        raise ValueError(f"{store} holds no demonstrations to clone; record some with `aloe demos`")
    policy_config = TinyVLAConfig(
        device="cpu",
        push_to_hub=False,
        chunk_size=horizon,
        n_action_steps=config.execute or min(EXECUTE, horizon),
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
        name: {
            "mean": torch.from_numpy(rows[demo].mean(0)),
            "std": torch.from_numpy(rows[demo].std(0).clip(min=SMALLEST_STD)),
        }
        for name, rows in (("observation.state", frames.state), ("action", frames.action))
    }
    pre, post = make_pre_post_processors(policy_config, dataset_stats=stats)
    policy = policy.to(chosen_device(device, policy_config.type))
    return PolicyBundle(policy=policy, preprocessor=pre, postprocessor=post)


def from_checkpoint(config: PolicyConfig, device: Device = "cpu") -> PolicyBundle:
    """The policy of `config.path`. Where `config.execute` is given, the policy's own config is made to say so: LeRobot's
    tools then play what comes of it as it was measured.

    Raises:
        ValueError: see `PolicyBundle.load`; or its chunks are shorter.
    """
    assert config.path is not None
    bundle = PolicyBundle.load(config.path, device)
    predicted = chunk_shape(bundle.policy)[0]
    if config.execute is not None:
        if config.execute > predicted:
            raise ValueError(
                f"{config.path} predicts chunks of {predicted} actions; give --policy.execute {predicted} or less"
            )
        own: Any = bundle.policy.config
        own.n_action_steps = config.execute
    return bundle


def check_fits_store(bundle: PolicyBundle, store: Experience, horizon: int | None = None) -> None:
    """Raises ValueError unless the policy was made for pictures, states and actions like those of the store, and where a
    `horizon` of windows is given, for chunks at least that long."""
    check_fits(bundle, f"the store {store}", store.cameras, store.state_dim, store.action_dim)
    predicted = chunk_shape(bundle.policy)[0]
    if horizon is not None and horizon > predicted:
        raise ValueError(
            f"the policy predicts chunks of {predicted} actions, windows hold {horizon}; "
            f"give --window.horizon {predicted} or less"
        )


def seen_by(bundle: PolicyBundle, store: Experience, horizon: int | None = None) -> Experience:
    """The store with the cameras that the policy sees. Raises ValueError as `check_fits_store` does."""
    check_fits_store(bundle, store, horizon)
    return only_cameras(store, seen_cameras(bundle.policy))


def policy_rows(
    bundle: PolicyBundle, frames: Frames, pictures: FrameCache, condition: list[str] | None = None
) -> PolicyRows:
    """The store as the policy sees it, and with `condition` added to each frame's instruction, too.

    Raises:
        ValueError: cameras or sizes of the store are not the policy's.
    """
    check_fits_store(bundle, pictures.store)
    wanted = seen_cameras(bundle.policy)
    return PolicyRows.of(
        bundle,
        frames.state,
        frames.action,
        action_frames(frames, chunk_shape(bundle.policy)[0]),
        [frames.tasks[i] for i in frames.task_index],
        lambda rows: {camera: pictures.gather(camera, rows) for camera in wanted},
        condition,
        batch_shares(pictures.store, frames),
    )


def batch_shares(store: Experience, frames: Frames) -> Shares | None:
    """How an actor's batches are divided: as given ratios say, or else by task; None where there is but one.

    A task has the share of a batch that it has of the experience, whatever a method leaves out of it. Otherwise one that
    leaves failures out would teach least where the policy fails most.
    """
    given = store.shares
    if given is not None and any(ratio is not None for ratio in given.ratio):
        return given
    windows = np.bincount(frames.task_index, minlength=len(frames.tasks))
    if np.count_nonzero(windows) < 2:
        return None
    return Shares(part=frames.task_index, ratio=tuple((windows / windows.sum()).tolist()))


def train_policy(
    bundle: PolicyBundle,
    store: Experience,
    cache: Cache,
    actor: ActorRows,
    config: ActorConfig,
    key: tuple[int | str, ...],
    out: Path,
    *,
    improving: bool = False,
    optimizer_file: Path | None = None,
    log: Log | None = None,
    label: str,
) -> None:
    """Trains the policy on weighted windows and writes `pretrained_model/` and, but for LoRA, `optimizer.safetensors` into
    `out`. improving: the policy has been trained before.

    A window's weight counts for the whole chunk that the policy predicts from there, be it longer than what was judged.

    Raises:
        ValueError: see `train_actor` and `policy_rows`.
    """
    pictures = FrameCache(cache, store)
    pictures.update()
    checkpoint = out / f"{label}.checkpoint.safetensors"
    optimizer = train_actor(
        bundle,
        policy_rows(bundle, store.columns(), pictures, actor.condition),
        actor,
        config,
        key,
        improving=improving,
        optimizer_file=optimizer_file,
        checkpoint=checkpoint,
        log=log,
        label=label,
    )
    if optimizer is not None:
        save_state(out / "optimizer.safetensors", {}, {"optimizer": optimizer}, config.steps)
    bundle.save_atomically(out / "pretrained_model")
    checkpoint.unlink(missing_ok=True)


def check_trainable(
    bundle: PolicyBundle,
    store: Experience,
    cache: Cache,
    config: ActorConfig,
    key: tuple[int | str, ...],
    optimizer_file: Path | None = None,
) -> None:
    """Before hours go into a round: can the policy be trained so at its end? It is left as it was.

    Raises:
        ValueError: it does not fit into memory, or has no place for what is to be trained; or the earlier optimizer is that
            of other parameters.
    """
    pictures = FrameCache(cache, store)
    pictures.update()
    data = policy_rows(bundle, store.columns(), pictures)
    try:
        with trainable(bundle.policy, config, key):
            check_memory(bundle, data, config)
            if optimizer_file is not None:
                optimizer = recipe(bundle.policy, config, improving=True).optimizer(bundle.policy)
                load_state(optimizer_file, {}, {"optimizer": optimizer})
    except ValueError as error:
        raise ValueError(
            f"{error} (in a run that has begun, --improve.accumulate and --improve.checkpointing may be set; other options "
            "of --improve need another --output-dir)"
        ) from error


def rows_from_advantages(
    path: Path, frames: Frames, condition_dropout: float = 0.0, *, same_labels: bool = False
) -> ActorRows:
    """The weights that `advantage_stage` wrote, checked against the store that they are to be used with.

    same_labels: they must have been made with the labels that the store has now. (A run may go on in a round that it began
    with earlier ones.)

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
            "the store grew; run `aloe critic` with another --output-dir"
        )
    if same_labels and table.attrs.get(EXPERIENCE, digest_of(frames)) != digest_of(frames):
        raise ValueError(
            f"{path} was made of other roots, with other options of theirs (--experience.NAME.outcome, .policy-version), "
            "or before labels were corrected; give the same, or run `aloe critic` with another --output-dir"
        )
    weight = table["weight"].to_numpy(np.float32)
    condition = table["condition"].tolist() if "condition" in table else None
    return ActorRows(
        rows=np.flatnonzero(weight > 0),
        weight=weight,
        condition=condition,
        condition_dropout=condition_dropout,
    )


def cloned_rows(method: CloningMethod, frames: Frames, windows: Windows) -> ActorRows:
    """What the methods learn from that need no values."""
    return CLONING[method](frames, windows)


def checkpoint_step(checkpoint: Path) -> int:
    """The step from which a stage with this checkpoint goes on; 0 without one."""
    try:
        return state_step(checkpoint) if checkpoint.exists() else 0
    except SafetensorError as error:
        raise ValueError(f"{checkpoint} is damaged ({error}); delete it to train that stage anew") from error
