"""The whole of what ALOE asks of a flow-matching policy beyond LeRobot's own interface.

A policy is a LeRobot `PreTrainedPolicy`; with its pre- and postprocessor it is a bundle (`bundle.py`). What is asked of
it besides is in `family.py`: the features of its vision tower, the flow-matching residual of given chunks at given noise
and time, M chunk samples for one observation at one encoding, and so on. Everything inside is in the normalised units of
the preprocessor.
"""

import hashlib
from functools import cache
from importlib import import_module
from importlib.metadata import entry_points
from typing import Any, cast

import numpy as np
import torch
from jaxtyping import Float, UInt8
from lerobot.policies.pretrained import PreTrainedPolicy
from numpy import ndarray
from torch import Tensor, nn

from aloe.policies.family import Batch, Family

IMAGES = "observation.images."

FAMILIES = {"tiny_vla": "aloe.policies.tiny_vla.family"} | dict.fromkeys(
    ("smolvla", "pi0", "pi05"), "aloe.policies.lerobot"
)
"""Policy type -> the module with its functions."""


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


def check_guided(policy: PreTrainedPolicy) -> None:
    """Raises ValueError for a policy that knows no classifier-free guidance."""
    if not family(policy).GUIDED:
        raise ValueError(f"{policy.name} knows no classifier-free guidance; give --recap.guidance 1")


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

    Raises:
        ValueError: there is one, and the policy was not made for it.
    """
    if unconditional is not None:
        check_guided(policy)
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
