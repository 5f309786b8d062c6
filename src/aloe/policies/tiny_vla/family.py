"""`tiny_vla` as ALOE asks of it (see `aloe.policies.family`)."""

import torch
from jaxtyping import Float
from lerobot.utils.constants import ACTION, OBS_STATE
from torch import Tensor, nn

from aloe.losses import flow_interpolate, flow_matching_residual
from aloe.policies.family import Batch, Part
from aloe.policies.tiny_vla.configuration_tiny_vla import LANGUAGE_DIM
from aloe.policies.tiny_vla.modeling_tiny_vla import LANGUAGE_EMBEDDING, TinyVLAPolicy

RESIZES = False
GUIDED = True


def noise_dim(policy: TinyVLAPolicy) -> int:
    return policy.action_dim


def sample_time(policy: TinyVLAPolicy, count: int, generator: torch.Generator) -> Float[Tensor, "B"]:
    """Uniform."""
    return torch.rand(count, generator=generator)


def flow_residual(
    policy: TinyVLAPolicy,
    batch: Batch,
    noise: Float[Tensor, "B H A"],
    time: Float[Tensor, "B"],
    generator: torch.Generator | None,
) -> Float[Tensor, "B H A"]:
    prefix = policy.prefix(policy.encode_images(batch, generator), batch[OBS_STATE], batch[LANGUAGE_EMBEDDING])
    velocity = policy.velocity(flow_interpolate(batch[ACTION], noise, time), time, prefix)
    return flow_matching_residual(velocity, batch[ACTION], noise)


def sample_chunks(
    policy: TinyVLAPolicy,
    batch: Batch,
    noise: Float[Tensor, "B M H A"],
    unconditional: Batch | None,
    guidance: float,
) -> Float[Tensor, "B M H A"]:
    def prefix(seen: Batch) -> Float[Tensor, "BM W"]:
        once = policy.prefix(policy.encode_images(seen), seen[OBS_STATE], seen[LANGUAGE_EMBEDDING])
        return once.repeat_interleave(noise.shape[1], 0)

    plain = None if unconditional is None else prefix(unconditional)
    return policy.denoise(noise.flatten(0, 1), prefix(batch), plain, guidance).view_as(noise)


def image_tokens(policy: TinyVLAPolicy, batch: Batch, count: int) -> Float[Tensor, "B C 1 D"]:
    """One token: the feature points of a picture. Raises ValueError for any other number."""
    if count != 1:
        raise ValueError(f"tiny_vla makes one token of a picture, not {count}; give --critic.image-tokens 1")
    return policy.encode_images(batch)[:, :, None]


def image_token_dim(policy: TinyVLAPolicy) -> int:
    return policy.feature_dim


def language_features(policy: TinyVLAPolicy, batch: Batch) -> Float[Tensor, "B L"]:
    return batch[LANGUAGE_EMBEDDING]


def language_dim(policy: TinyVLAPolicy) -> int:
    return LANGUAGE_DIM


def vision_tower(policy: TinyVLAPolicy) -> nn.Module:
    return policy.vision_tower


def choose_trained(policy: TinyVLAPolicy, part: Part) -> None:
    """The expert is all but the vision tower."""
    policy.requires_grad_(True)
    policy.vision_tower.requires_grad_(part != "expert")


def checkpoint_activations(policy: TinyVLAPolicy, on: bool) -> None:
    """Raises ValueError: there is next to nothing to keep."""
    raise ValueError("tiny_vla has no activation checkpointing and needs none; leave --checkpointing out")


def improvement_rate(policy: TinyVLAPolicy) -> float:
    """Half of what a new one is cloned with: more unlearns in a round what the last one taught."""
    return policy.config.learning_rate / 2
