"""From advantages to the weights of the actor's loss: what ALOE and AWR have in common.

w = exp(clip(A / beta, -eps, +eps)),     beta = beta_scale * std(A)
"""

import numpy as np
import torch
from jaxtyping import Bool, Float32
from numpy import ndarray

from aloe.experience.windows import Windows
from aloe.losses import advantage_weight
from aloe.policies.train import ActorRows


def weighted_rows(
    windows: Windows,
    advantage: Float32[ndarray, "N"],
    known: Bool[ndarray, "N"],
    *,
    beta_scale: float,
    clip: float,
    failed_share: float,
) -> ActorRows:
    """Every window whose advantage is known, with its weight; windows of weight 0 are left out of the batches.

    beta_scale: beta in standard deviations of the known advantages. clip: eps. failed_share: factor on the weight of
    windows whose fragment ended in failure.

    Raises:
        ValueError: all advantages are equal.
    """
    every = torch.from_numpy(advantage)
    beta = beta_scale * float(every[torch.from_numpy(known)].std(correction=0))
    weight = np.where(known, advantage_weight(every, beta, clip).numpy(), 0)
    weight = np.where(windows.failed, failed_share * weight, weight).astype(np.float32)
    return ActorRows(rows=np.flatnonzero(weight > 0), weight=weight)
