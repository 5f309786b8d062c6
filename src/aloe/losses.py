"""Losses and weights of actor and critic. Pure tensor functions.

Flow time follows openpi and SmolVLA: t = 1 is noise, t = 0 is the action,

    x_t = t * noise + (1 - t) * action,      velocity  u = dx_t / dt = noise - action.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def flow_interpolate(
    action: Float[Tensor, "*B H A"], noise: Float[Tensor, "*B H A"], time: Float[Tensor, "*B"]
) -> Float[Tensor, "*B H A"]:
    """The point x_t on the straight path from action (t = 0) to noise (t = 1)."""
    t = time[..., None, None]
    return t * noise + (1 - t) * action


def flow_matching_residual(
    velocity: Float[Tensor, "*B H A"], action: Float[Tensor, "*B H A"], noise: Float[Tensor, "*B H A"]
) -> Float[Tensor, "*B H A"]:
    """Squared error against the velocity of the straight path: (v_theta - (noise - action))^2, unreduced."""
    return (velocity - (noise - action)) ** 2


def masked_chunk_mean(values: Float[Tensor, "*B H A"], is_pad: Bool[Tensor, "*B H"]) -> Float[Tensor, "*B"]:
    """Mean over the valid steps of each chunk; a chunk without a valid step gives 0."""
    valid = (~is_pad).to(values.dtype)
    count = valid.sum(-1) * values.shape[-1]
    return (values * valid[..., None]).sum((-2, -1)) / count.clamp(min=1)


def weighted_flow_matching_loss(
    residual: Float[Tensor, "B H A"], weight: Float[Tensor, "B"], is_pad: Bool[Tensor, "B H"]
) -> Float[Tensor, ""]:
    """The actor's loss: sum over valid entries of w * residual, divided by the number of valid entries."""
    valid = (~is_pad).to(residual.dtype)
    count = valid.sum() * residual.shape[-1]
    return (weight[:, None, None] * valid[..., None] * residual).sum() / count.clamp(min=1)


def critic_loss(q: Float[Tensor, "B K"], target: Float[Tensor, "B"]) -> Float[Tensor, ""]:
    """Mean over critics and batch of (Q_i - y)^2, the same target for every critic. No gradient reaches the target."""
    return ((q - target.detach()[:, None]) ** 2).mean()


def expectile_loss(value: Float[Tensor, "*B"], target: Float[Tensor, "*B"], expectile: float) -> Float[Tensor, ""]:
    """Asymmetric squared error of implicit Q-learning (Kostrikov et al. 2021, eq. 5): |tau - 1(u < 0)| u^2, u = y - V."""
    error = target.detach() - value
    weight = torch.where(error < 0, 1 - expectile, expectile)
    return (weight * error**2).mean()


def advantage_weight(advantage: Float[Tensor, "B"], beta: float, clip: float) -> Float[Tensor, "B"]:
    """Weight of a chunk in the actor's loss, the paper's w = exp(clip(A / beta, -clip, +clip)).

    Raises:
        ValueError: `beta` is not positive. With all advantages equal there is nothing to learn from them.
    """
    if not beta > 0:
        raise ValueError(f"beta must be positive, not {beta}: are all advantages equal?")
    return (advantage / beta).clamp(-clip, clip).exp()
