"""A policy with its processors: read from a folder and written, checked against a world or a dataset, asked for chunks by a
rollout, and lent to the critics as their eyes."""

import contextlib
import hashlib
import io
import json
import os
import shutil
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
from torch import Tensor

from aloe.policies.flow import (
    IMAGES,
    chunk_shape,
    device_of,
    encode_images,
    family,
    family_of,
    feature_dim,
    image_batch,
    language_features,
    noise_shape,
    sample_chunks,
    seen_cameras,
    tower_key,
)
from aloe.training import Device


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

    def words(self, tasks: list[str]) -> Float[Tensor, "B L"]:
        """The instructions, a vector each. A prompt may hold more, pi0.5's for one the state: here that is zero, so that an
        instruction is one vector, in training, at play and on fresh episodes."""
        feature = self.bundle.policy.config.robot_state_feature
        assert feature is not None
        state = np.zeros((len(tasks), *feature.shape), np.float32)
        return language_features(self.bundle.policy, observe(self.bundle, {}, state, tasks))


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
