"""Returns and temporal-difference targets of action chunks. Pure tensor functions.

All follow one convention. A chunk of H actions starts at step t; `reward[:, k]` is r_{t+k}, already scaled. Steps after
the end of the episode carry reward 0. The discount is per environment step. `terminated` says that the episode ended
inside the chunk (success, failure, or the human's cut), so that nothing follows. A chunk within which the recording merely
stopped (`truncated`) is not terminated either, but has no state to bootstrap from: windows leave it out (`has_target`).
"""

from typing import Literal, assert_never

import torch
from jaxtyping import Bool, Float
from torch import Tensor

Aggregation = Literal["mean", "min", "mean-std"]


def chunk_return(reward: Float[Tensor, "*B H"], discount: float) -> Float[Tensor, "*B"]:
    """Discounted sum of the rewards within a chunk: R_H = sum_{k<H} discount^k r_{t+k}."""
    steps = torch.arange(reward.shape[-1], device=reward.device, dtype=reward.dtype)
    return (reward * discount**steps).sum(-1)


def aggregate(q: Float[Tensor, "*B K"], how: Aggregation, std_weight: float = 1.0) -> Float[Tensor, "*B"]:
    """One value from the K critics of an ensemble.

    `min` is the paper's Q_pess = min_i Q_i; `mean-std` is mean - std_weight * std (population standard deviation, so
    that one critic alone gives its own value).
    """
    match how:
        case "mean":
            return q.mean(-1)
        case "min":
            return q.amin(-1)
        case "mean-std":
            return q.mean(-1) - std_weight * q.std(-1, correction=0)
        case _:
            assert_never(how)


def chunk_td_target(
    reward: Float[Tensor, "*B H"],
    next_value: Float[Tensor, "*B"],
    terminated: Bool[Tensor, "*B"],
    discount: float,
    clamp: tuple[float, float] | None = None,
) -> Float[Tensor, "*B"]:
    """Target of chunked temporal-difference learning, the paper's equation for y:

        y = sum_{k<H} discount^k r_{t+k} + discount^H (1 - terminated) V(s_{t+H})

    where `next_value` estimates V(s_{t+H}) = E_{a' ~ pi} Q(s_{t+H}, a'). Where `terminated`, `next_value` has no
    influence, whatever it holds (NaN included). `clamp` is the range of returns that is possible at all.
    """
    bootstrap = torch.where(terminated, torch.zeros_like(next_value), next_value)
    target = chunk_return(reward, discount) + discount ** reward.shape[-1] * bootstrap
    return target if clamp is None else target.clamp(*clamp)


def monte_carlo_return(reward: Float[Tensor, "T"], discount: float) -> Float[Tensor, "T"]:
    """Discounted return from every step to the end of one fragment: G_t = r_t + discount G_{t+1}, G_T = 0."""
    returns = torch.empty_like(reward)
    following = torch.zeros((), dtype=reward.dtype, device=reward.device)
    for step in reversed(range(len(reward))):
        following = reward[step] + discount * following
        returns[step] = following
    return returns
