"""ALOE: weight every action chunk by how much better it is than what the current policy would do (arXiv 2602.12691).

    A(s, a, l) = Q_pess(s, a, l) - E_{a' ~ pi} Q_pess(s, a', l)            Q_pess = min_i Q_i, V by sampling
    w          = exp(clip(A / beta, -eps, +eps))
    L          = E over the whole buffer of w * || (noise - a) - v_theta(a_t, s, l) ||^2

The critics are those of `aloe.value.fit`: chunked temporal-difference learning under the current policy.

Where this departs from the paper, or fills in what it does not disclose:
- Critics see of a chunk what is executed before the policy looks again, not all of it (`--critic.judges`), and the Polyak
  step of their target is 0.02 (paper: 0.005).
- beta is the standard deviation of A over the buffer (not disclosed), eps = 3 (not disclosed).
- Weights are divided by their mean over the batch, so that the learning rate keeps its meaning.
- `failed_share`: A compares actions within one state, so in a state that is already lost every action has A near 0 and
  a weight near 1, and the actor would go on cloning what the policy does after it has failed. Windows of fragments that
  ended in failure therefore count by this share. 1 is the paper.
- `best_of`: while collecting, the critics choose: of N chunks a_n ~ pi the one of the highest Q_pess(s, a_n, l) is
  executed. What is trained, measured and handed over is the policy alone, with its inference as it was. 1 is the paper.
"""

from dataclasses import dataclass

import numpy as np

from aloe.experience.windows import Windows
from aloe.methods.weighting import weighted_rows
from aloe.policies.train import ActorRows
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
    best_of: int = 8
    """N: chunks sampled while collecting, of which the critics choose the one to execute; 1: the policy acts alone.
    (Paper: 1.)"""

    def __post_init__(self) -> None:
        if min(self.samples, self.best_of) < 1:
            raise ValueError(f"samples and best_of must be at least 1, not {self.samples} and {self.best_of}")
        if self.beta_scale <= 0 or self.clip <= 0:
            raise ValueError("beta_scale and clip must be positive")
        if not 0 <= self.failed_share <= 1:
            raise ValueError(f"failed_share must lie in [0, 1], not {self.failed_share}")


def check_samples(config: AloeConfig, option: str, target_samples: int) -> None:
    """Raises ValueError if a target is to average more chunks than are drawn. option: how the user calls their number."""
    if target_samples > config.samples:
        raise ValueError(
            f"the target averages {option} {target_samples} chunks, but --aloe.samples draws {config.samples}"
        )


def actor_rows(windows: Windows, evaluation: Evaluation, config: AloeConfig) -> ActorRows:
    """Every window of the store with its weight; windows of weight 0 are left out of the batches."""
    return weighted_rows(
        windows,
        evaluation.advantage,
        np.ones(len(windows), bool),
        beta_scale=config.beta_scale,
        clip=config.clip,
        failed_share=config.failed_share,
    )
