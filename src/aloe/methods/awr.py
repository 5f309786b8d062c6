"""AWR: weight every action by how much better it turned out than the buffer's average from that state (Peng et al. 2019).

    A(s_t, a_t) = G_t - V(s_t),     G_t the Monte Carlo return,     V by cross entropy over 256 bins of G
    w           = exp(clip(A / beta, -eps, +eps))
    L           = E over the whole buffer of w * || (noise - a) - v_theta(a_t, s, l) ||^2

V is the value of whoever acted in the buffer, demonstrators and old policies together, not of the current policy: that is
the difference to ALOE. Value: `aloe.value.distribution`.

Where this departs from the paper: beta is the standard deviation of A and A / beta is clipped on both sides, as for
ALOE here (AWR: fixed beta, weights cut at 20). With the `failed_share` of ALOE, too, the two differ only in the
advantage and in ALOE's choice by critics while collecting.
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float32
from numpy import ndarray

from aloe.experience.windows import Windows
from aloe.methods.weighting import weighted_rows
from aloe.policies.train import ActorRows


@dataclass(frozen=True, kw_only=True)
class AwrConfig:
    """From returns to weights."""

    bins: int = 256
    """Bins of the value's distribution. (ALOE's paper, for this baseline: 256.)"""
    beta_scale: float = 1.0
    """beta in standard deviations of the advantage; smaller is sharper."""
    clip: float = 3.0
    """eps: A / beta is clipped to [-eps, eps]."""
    failed_share: float = 1.0
    """Factor on the weight of windows whose fragment ended in failure, as for ALOE. (Paper: 1.)"""

    def __post_init__(self) -> None:
        if not 0 <= self.failed_share <= 1:
            raise ValueError(f"failed_share must lie in [0, 1], not {self.failed_share}")
        if self.bins < 2 or self.beta_scale <= 0 or self.clip <= 0:
            raise ValueError("awr needs at least 2 bins, and beta_scale and clip must be positive")


def advantages(windows: Windows, value: Float32[ndarray, "N"]) -> Float32[ndarray, "N"]:
    """A = G - V at every window; 0 where the return is not known."""
    return np.where(windows.ended, windows.monte_carlo - value, 0).astype(np.float32)


def actor_rows(windows: Windows, value: Float32[ndarray, "N"], config: AwrConfig) -> ActorRows:
    """Every window whose return is known, with its weight."""
    return weighted_rows(
        windows,
        advantages(windows, value),
        windows.ended,
        beta_scale=config.beta_scale,
        clip=config.clip,
        failed_share=config.failed_share,
    )
