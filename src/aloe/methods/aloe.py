"""ALOE: weight every action chunk by how much better it is than what the current policy would do (arXiv 2602.12691).

    A(s, a, l) = Q_pess(s, a, l) - E_{a' ~ pi} Q_pess(s, a', l)            Q_pess = min_i Q_i, V by sampling
    w          = exp(clip(A / beta, -eps, +eps))
    L          = E over the whole buffer of w * || (noise - a) - v_theta(a_t, s, l) ||^2

The critics are those of `aloe.value.fit`: chunked temporal-difference learning under the current policy.

Where this departs from the paper, or fills in what it does not disclose:
- beta is the standard deviation of A over the buffer (not disclosed), eps = 3 (not disclosed).
- Weights are divided by their mean over the batch, so that the learning rate keeps its meaning.
- `failed_share`: A compares actions within one state, so in a state that is already lost every action has A near 0 and
  a weight near 1, and the actor would go on cloning what the policy does after it has failed. Windows of fragments that
  ended in failure therefore count by this share. 1 is the paper.
"""

from dataclasses import dataclass

import numpy as np
import torch

from aloe.experience.store import Frames
from aloe.experience.windows import Windows
from aloe.losses import advantage_weight
from aloe.policies.train import ActorRows
from aloe.types import Source
from aloe.value.evaluate import Evaluation


@dataclass(frozen=True, kw_only=True)
class AloeConfig:
    """From advantages to weights."""

    samples: int = 8
    """M: chunks of the current policy that V averages over. (Paper: not disclosed.)"""
    beta_scale: float = 1.0
    """beta in standard deviations of the advantage over the buffer; smaller is sharper. (Paper: not disclosed.)"""
    clip: float = 3.0
    """eps: A / beta is clipped to [-eps, eps]. (Paper: not disclosed.)"""
    failed_share: float = 0.0
    """Factor on the weight of windows whose fragment ended in failure. (Paper: 1.)"""
    policy_share: float | None = None
    """Share of the whole weight that the policy's own windows get; None: as the weights fall. (Paper: None.)"""
    hindsight: float = 0.0
    """Windows of a failed fragment keep their weight where the value later in the fragment is higher by this than here."""

    def __post_init__(self) -> None:
        if self.samples < 1:
            raise ValueError(f"samples must be at least 1, not {self.samples}")
        if self.beta_scale <= 0 or self.clip <= 0:
            raise ValueError("beta_scale and clip must be positive")
        if not 0 <= self.failed_share <= 1:
            raise ValueError(f"failed_share must lie in [0, 1], not {self.failed_share}")
        if self.policy_share is not None and not 0 < self.policy_share < 1:
            raise ValueError(f"policy_share must lie between 0 and 1, not be {self.policy_share}")


def actor_rows(frames: Frames, windows: Windows, evaluation: Evaluation, config: AloeConfig) -> ActorRows:
    """Every window of the store with its weight; windows of weight 0 are left out of the batches."""
    advantage = torch.from_numpy(evaluation.advantage)
    beta = config.beta_scale * float(advantage.std(correction=0))
    weight = advantage_weight(advantage, beta, config.clip).numpy()
    share = np.full(len(weight), config.failed_share)
    if config.hindsight > 0:
        share[later_value(windows, evaluation.value) - evaluation.value > config.hindsight] = 1.0
    weight = np.where(windows.failed, share * weight, weight).astype(np.float32)
    if config.policy_share is not None:
        own = frames.source == Source.POLICY
        if weight[own].sum() > 0 and weight[~own].sum() > 0:
            odds = config.policy_share / (1 - config.policy_share)
            weight[own] *= odds * weight[~own].sum() / weight[own].sum()
    return ActorRows(rows=np.flatnonzero(weight > 0), weight=weight, frames=windows.frames, is_pad=windows.is_pad)


def later_value(windows: Windows, value: np.ndarray) -> np.ndarray:
    """Highest value from the end of each window to the end of its fragment; minus infinity where nothing follows."""
    count, horizon = len(value), windows.frames.shape[1]
    best = np.full(count, -np.inf, np.float32)
    last = np.flatnonzero(np.append(windows.fragment[1:] != windows.fragment[:-1], True))
    for start, end in zip(np.append(0, last[:-1] + 1), last, strict=True):
        highest = np.maximum.accumulate(value[start : end + 1][::-1])[::-1]
        if len(highest) > horizon:
            best[start : end + 1 - horizon] = highest[horizon:]
    return best
