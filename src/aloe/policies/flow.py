"""The whole of what ALOE asks of a flow-matching policy beyond LeRobot's own interface.

A policy is a LeRobot `PreTrainedPolicy` with its pre- and postprocessor. What is asked of it besides is in `family.py`:
the features of its vision tower, the flow-matching residual of given chunks at given noise and time, M chunk samples for
one observation at one encoding, and so on. Everything inside is in the normalised units of the preprocessor.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
from collections.abc import Collection
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from draccus.utils import DecodingError
from jaxtyping import Float, Float32, UInt8
from lerobot.configs.policies import PreTrainedConfig
from lerobot.configs.types import FeatureType, NormalizationMode
from lerobot.policies.factory import get_policy_class, make_pre_post_processors
from lerobot.policies.pretrained import PreTrainedPolicy
from lerobot.processor import (
    NormalizerProcessorStep,
    PolicyAction,
    PolicyProcessorPipeline,
    RelativeActionsProcessorStep,
)
from lerobot.processor.pipeline import ProcessorMigrationError
from lerobot.utils.constants import OBS_STATE
from numpy import ndarray
from safetensors import SafetensorError
from torch import Tensor, nn

from aloe.policies.family import Batch, Family
from aloe.training import Device

IMAGES = "observation.images."


@dataclass(frozen=True, kw_only=True)
class PolicyBundle:
    """A policy with the processors that belong to it, as a LeRobot `pretrained_model/` folder holds them."""

    policy: PreTrainedPolicy
    preprocessor: PolicyProcessorPipeline[dict[str, Any], dict[str, Any]]
    postprocessor: PolicyProcessorPipeline[PolicyAction, PolicyAction]
    runs_on: dict[str, Any] = field(default_factory=dict)
    """Device and precision that `config.json` names, for the robot's machine. They are saved as they were read."""

    def save(self, folder: Path) -> None:
        """Writes LeRobot's `pretrained_model/` layout."""
        self.policy.save_pretrained(folder)
        self.preprocessor.save_pretrained(folder)
        self.postprocessor.save_pretrained(folder)
        if self.runs_on:
            _say_where(folder, self.runs_on)

    def save_atomically(self, folder: Path) -> None:
        """The same, but the folder appears under its name only once it is complete."""
        partial = folder.with_name(folder.name + ".partial")
        shutil.rmtree(partial, ignore_errors=True)
        self.save(partial)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)

    @staticmethod
    def load(folder: Path, device: Device = "cpu") -> "PolicyBundle":
        """Reads LeRobot's `pretrained_model/` layout. What `flow.py` computes with a policy, it computes on its device.

        device: see `chosen_device`.

        Raises:
            ValueError: no such folder, a policy type that ALOE cannot train, weights that do not fit the config, or no GPU.
        """
        config_file = folder / "config.json"
        if not config_file.is_file():
            raise ValueError(f"{folder} holds no policy: there is no config.json; give a pretrained_model folder")
        try:
            written = json.loads(config_file.read_text())
        except json.JSONDecodeError as error:
            raise ValueError(f"{config_file} is damaged ({error}); copy the policy anew") from error
        kind = written.get("type")
        family_of(kind)
        if (folder / "adapter_config.json").is_file() and not (folder / "model.safetensors").is_file():
            raise ValueError(
                f"{folder} holds LoRA adapters without the policy that they belong to; load both with PEFT, merge them "
                "(merge_and_unload) and save the whole policy"
            )
        try:
            config = PreTrainedConfig.from_pretrained(folder)
            config.device = "cpu"  # wherever it was trained: the worlds hand over, and take, CPU arrays
            with contextlib.redirect_stdout(io.StringIO()):  # LeRobot prints a line at every load
                policy = get_policy_class(kind).from_pretrained(folder, config=config, strict=True)
        except DecodingError as error:
            raise ValueError(f"{config_file} has options that this version does not know: {error}") from error
        except RuntimeError as error:  # what torch raises for missing keys and other shapes
            raise ValueError(f"the weights in {folder} do not fit its config.json: {error}") from error
        except (FileNotFoundError, SafetensorError) as error:
            raise ValueError(
                f"the weights in {folder} are missing or damaged ({error}); copy the policy anew"
            ) from error
        on_cpu = {"device_processor": {"device": "cpu"}}
        try:
            pre, post = make_pre_post_processors(
                policy.config,
                pretrained_path=str(folder),
                preprocessor_overrides=on_cpu,
                postprocessor_overrides=on_cpu,
            )
        except ProcessorMigrationError as error:
            raise ValueError(
                f"{folder} has no processors (policy_preprocessor.json): copy the policy whole; if it is of an older "
                f"LeRobot, {' '.join(str(error).split())}"
            ) from error
        _check_trainable_alike(policy, pre)
        runs_on = {key: written[key] for key in ("device", "use_amp") if key in written}
        policy = policy.to(chosen_device(device, kind))
        return PolicyBundle(policy=policy, preprocessor=pre, postprocessor=post, runs_on=runs_on)


def _check_trainable_alike(policy: PreTrainedPolicy, pre: PolicyProcessorPipeline) -> None:
    """Raises ValueError if training would show the policy other pictures or actions than play does: there pictures come as
    they are in [0, 1], and every frame of an episode goes through the preprocessor by itself."""
    normalisers: list[Any] = [step for step in pre.steps if isinstance(step, NormalizerProcessorStep)]
    for mode in (step.norm_map.get(FeatureType.VISUAL, NormalizationMode.IDENTITY) for step in normalisers):
        if seen_cameras(policy) and mode != NormalizationMode.IDENTITY:
            raise ValueError(
                f"the policy's pictures are normalised by its preprocessor ({mode.value}); ALOE trains only policies that "
                "take them as they are (VISUAL: IDENTITY), and normalise them within, if at all"
            )
    relative: list[Any] = [step for step in pre.steps if isinstance(step, RelativeActionsProcessorStep)]
    if any(step.enabled for step in relative):
        raise ValueError(
            "the policy's actions are relative to the state in which their chunk begins (use_relative_actions); ALOE "
            "trains only policies of absolute actions"
        )


def check_device(device: Device) -> None:
    """Raises ValueError if a GPU is asked for and there is none."""
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: torch finds no GPU; give --device cpu, or repair the driver")


def chosen_device(device: Device, kind: str) -> str:
    """Where a policy of this type computes: `auto` is the GPU where there is one, but for tiny_vla. On a GPU products of
    matrices are TF32 from then on, as in LeRobot's own commands.

    Raises:
        ValueError: there is no GPU.
    """
    check_device(device)
    on_gpu = device == "cuda" or (device == "auto" and kind != "tiny_vla" and torch.cuda.is_available())
    if on_gpu:
        torch.backends.cuda.matmul.allow_tf32 = True
    return "cuda" if on_gpu else "cpu"


def _say_where(folder: Path, runs_on: dict[str, Any]) -> None:
    """LeRobot overwrites what a config says of a machine with what this one has: a policy that ran on a GPU would come back
    as one for a CPU."""
    config, steps = (folder / name for name in ("config.json", "policy_preprocessor.json"))
    config.write_text(json.dumps(json.loads(config.read_text()) | runs_on, indent=4))
    pipeline = json.loads(steps.read_text())
    for step in pipeline["steps"]:
        if step.get("registry_name") == "device_processor":
            step["config"]["device"] = runs_on.get("device") or step["config"]["device"]
    steps.write_text(json.dumps(pipeline, indent=2))


FAMILIES = {"tiny_vla": "aloe.policies.tiny_vla.family"} | dict.fromkeys(
    ("smolvla", "pi0", "pi05"), "aloe.policies.lerobot"
)
"""Policy type -> the module with its functions."""


def check_fits(
    bundle: PolicyBundle, who: str, cameras: dict[str, tuple[int, int]], state_dim: int, action_dim: int
) -> None:
    """Whether the policy was made for such pictures (camera -> (h, w)), states and actions as `who` has.

    Raises:
        ValueError: it was not; names the first difference.
    """
    config, resizes = bundle.policy.config, family(bundle.policy).RESIZES
    for camera in seen_cameras(bundle.policy):
        size = tuple(config.image_features[IMAGES + camera].shape[1:])
        if camera not in cameras:
            other = next((name for name in cameras if IMAGES + name not in config.image_features), "NAME")
            raise ValueError(
                f"the policy sees camera {camera!r}, but {who} has {', '.join(cameras)}; use the cameras that the policy "
                "was trained with, or, where a recorded one has only another name, "
                f"--rename.{IMAGES}{other}={IMAGES}{camera}"
            )
        if size != cameras[camera] and not resizes:
            raise ValueError(
                f"camera {camera!r} of {who} has {cameras[camera]} pixels, the policy was made for {size}; "
                "use pictures of the size that the policy was trained with"
            )
    for name, size, feature in (
        ("state", state_dim, config.robot_state_feature),
        ("action", action_dim, config.action_feature),
    ):
        if feature is not None and tuple(feature.shape) != (size,):
            raise ValueError(
                f"the {name} of {who} has size {size}, the policy was made for {feature.shape[0]}; "
                "use a policy and a dataset of the same robot"
            )


def family(policy: PreTrainedPolicy) -> Family:
    """The functions that belong to a policy. Raises ValueError where ALOE knows none for it."""
    return family_of(policy.name)


@cache
def family_of(kind: str) -> Family:
    """Those of `FAMILIES`, or of an installed package: its entry point in the group `aloe.policies`. Imports no other."""
    known = FAMILIES | {point.name: point.value for point in entry_points(group="aloe.policies")}
    if kind not in known:
        raise ValueError(f"ALOE cannot train a policy of type {kind!r}; it knows {', '.join(known)}")
    return cast(Family, import_module(known[kind]))


def seen_cameras(policy: PreTrainedPolicy) -> list[str]:
    """Cameras that a policy has to be given. LeRobot's `empty_cameras` are no cameras: nothing was ever seen with them.

    Raises:
        ValueError: it sees pictures that are of no named camera.
    """
    for key in policy.config.image_features:
        if not key.startswith(IMAGES):
            raise ValueError(
                f"the policy sees {key!r}, which names no camera; ALOE takes policies that see {IMAGES}NAME: train it with "
                "the camera renamed (lerobot-train --rename_map)"
            )
    cameras = [key.removeprefix(IMAGES) for key in policy.config.image_features]
    return [camera for camera in cameras if not camera.startswith("empty_camera_")]


def device_of(policy: PreTrainedPolicy) -> torch.device:
    """Where its weights are, and what is computed with it."""
    return next(policy.parameters()).device


def _beside(policy: PreTrainedPolicy, batch: Batch) -> Batch:
    """The batch on the policy's device."""
    device = device_of(policy)
    return {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}


def chunk_shape(policy: PreTrainedPolicy) -> tuple[int, int]:
    """(H, A) of the chunks that the policy predicts."""
    family(policy)
    config: Any = policy.config
    return config.chunk_size, config.action_feature.shape[0]


def noise_shape(policy: PreTrainedPolicy) -> tuple[int, int]:
    """(H, N) of the noise that a chunk is made of."""
    return chunk_shape(policy)[0], family(policy).noise_dim(policy)


def executed_actions(policy: PreTrainedPolicy, execute: int | None) -> int:
    """E, actions of a chunk that are executed before the policy predicts again: `execute`, or what its config says.

    Raises:
        ValueError: `execute` is no part of a chunk.
    """
    predicted = chunk_shape(policy)[0]
    if execute is not None and not 1 <= execute <= predicted:
        raise ValueError(
            f"the policy predicts chunks of {predicted} actions; give --execute 1 to {predicted}, not {execute}"
        )
    config: Any = policy.config
    return config.n_action_steps if execute is None else execute


def encode_images(policy: PreTrainedPolicy, batch: Batch, tokens: int = 1) -> Float[Tensor, "B CT D"]:
    """Features of the vision tower, `tokens` rows a camera, from a preprocessed batch."""
    return family(policy).image_tokens(policy, _beside(policy, batch), tokens).flatten(1, 2).cpu()


def feature_dim(policy: PreTrainedPolicy) -> int:
    """D of `encode_images`."""
    return family(policy).image_token_dim(policy)


def language_features(policy: PreTrainedPolicy, batch: Batch) -> Float[Tensor, "B L"]:
    """The instruction as one vector a row, from a preprocessed batch."""
    return family(policy).language_features(policy, _beside(policy, batch)).cpu()


def language_dim(policy: PreTrainedPolicy) -> int:
    """L of `language_features`."""
    return family(policy).language_dim(policy)


def vision_tower(policy: PreTrainedPolicy) -> nn.Module:
    """The part that turns pictures into features."""
    return family(policy).vision_tower(policy)


def tower_key(policy: PreTrainedPolicy) -> str:
    """Hash of the vision tower's weights: the key of everything that is made with it."""
    return weights_key(vision_tower(policy))


def weights_key(module: nn.Module) -> str:
    """Hash of a module's weights."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def sample_time(policy: PreTrainedPolicy, count: int, generator: torch.Generator) -> Float[Tensor, "B"]:
    """Flow times for training, by the policy's own recipe."""
    return family(policy).sample_time(policy, count, generator)


def flow_residual(
    policy: PreTrainedPolicy,
    batch: Batch,
    noise: Float[Tensor, "B H N"],
    time: Float[Tensor, "B"],
    generator: torch.Generator | None = None,
) -> Float[Tensor, "B H A"]:
    """Unreduced flow-matching residual of the chunks `batch["action"]` at the given noise and flow time.

    The result is on the policy's device. `generator` drives its image augmentation, if it has any and is in training mode.
    """
    device = device_of(policy)
    return family(policy).flow_residual(policy, _beside(policy, batch), noise.to(device), time.to(device), generator)


@torch.no_grad()
def sample_chunks(
    policy: PreTrainedPolicy,
    batch: Batch,
    noise: Float[Tensor, "B M H N"],
    unconditional: Batch | None = None,
    guidance: float = 1.0,
) -> Float[Tensor, "B M H A"]:
    """M chunks for each observation from M draws of noise; the observation is encoded once.

    `unconditional` is the same observation under the plain instruction, for classifier-free guidance.
    """
    policy.eval()
    plain = None if unconditional is None else _beside(policy, unconditional)
    noise = noise.to(device_of(policy))
    return family(policy).sample_chunks(policy, _beside(policy, batch), noise, plain, guidance).cpu()


def image_batch(
    images: dict[str, UInt8[ndarray, "B h w 3"]], device: torch.device | str = "cpu"
) -> dict[str, Float[Tensor, "B 3 h w"]]:
    """Pictures by camera name as LeRobot's loader would give them: channels first, in [0, 1]. They travel to the device as
    bytes: on one core, making numbers of them takes longer than a GPU needs for the rest."""
    return {
        IMAGES + camera: torch.from_numpy(np.ascontiguousarray(pictures)).to(device).permute(0, 3, 1, 2).float() / 255
        for camera, pictures in images.items()
    }


@dataclass(frozen=True, kw_only=True)
class Tower:
    """What critics see through: the frozen vision tower and the processors of a policy, for a whole run those of its first
    version."""

    bundle: PolicyBundle
    image_tokens: int = 1
    """Tokens that each picture is pooled to."""

    @property
    def key(self) -> str:
        """Changes with what decides `encode`: the tower's weights, the number of tokens, the cameras and their order."""
        cameras = hashlib.sha256(json.dumps(seen_cameras(self.bundle.policy)).encode()).hexdigest()[:8]
        return f"{tower_key(self.bundle.policy)}-{self.image_tokens}-{cameras}"

    @property
    def device(self) -> torch.device:
        """Of the policy; the critics that see through it are trained there, too."""
        return device_of(self.bundle.policy)

    @property
    def feature_dim(self) -> int:
        return feature_dim(self.bundle.policy)

    @torch.no_grad()
    def encode(self, images: dict[str, UInt8[ndarray, "B h w 3"]]) -> Float[Tensor, "B CT D"]:
        """Features of every camera's pictures (at least one), `image_tokens` rows a camera."""
        return encode_images(self.bundle.policy.eval(), image_batch(images, self.device), self.image_tokens)


def check_sees_all(bundle: PolicyBundle, cameras: Collection[str]) -> None:
    """Raises ValueError unless the policy sees every camera: its tower is to encode them all for the critics."""
    if unseen := set(cameras) - set(seen_cameras(bundle.policy)):
        raise ValueError(
            f"the policy does not see camera {', '.join(sorted(unseen))}, with which the critics would have to do; "
            "use a policy that sees all cameras, or record without that one"
        )


@dataclass(frozen=True, kw_only=True)
class PolicyPlayer:
    """A policy as the rollout's worlds see it: raw observations of W worlds in, chunks in the world's units out."""

    bundle: PolicyBundle
    condition: str = ""
    """Words that are added to the instruction."""
    guidance: float = 1.0
    """Strength of classifier-free guidance towards the condition; 1 is none, and costs half."""

    @property
    def chunk_shape(self) -> tuple[int, int]:
        return chunk_shape(self.bundle.policy)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return noise_shape(self.bundle.policy)

    def __call__(
        self,
        images: dict[str, UInt8[ndarray, "W h w 3"]],
        state: Float32[ndarray, "W S"],
        tasks: list[str],
        noise: Float32[ndarray, "W H N"],
    ) -> Float32[ndarray, "W H A"]:
        batch = observe(self.bundle, images, state, [task + self.condition for task in tasks])
        plain = observe(self.bundle, images, state, tasks) if self.guidance != 1 else None
        chunks = sample_chunks(self.bundle.policy, batch, torch.from_numpy(noise)[:, None], plain, self.guidance)
        return self.bundle.postprocessor(chunks[:, 0]).numpy()


def observe(
    bundle: PolicyBundle,
    images: dict[str, UInt8[ndarray, "W h w 3"]],
    state: Float32[ndarray, "W S"],
    tasks: list[str],
) -> dict[str, Tensor]:
    """Raw observations through the policy's own preprocessor."""
    return bundle.preprocessor({**image_batch(images), OBS_STATE: torch.from_numpy(state), "task": tasks})
