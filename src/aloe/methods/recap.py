"""RECAP: tell the policy in words which actions were good, and at play ask for good ones (pi*0.6, 2025).

    V            by cross entropy over 201 bins of the Monte Carlo return
    A(s_t, a_t)  = sum_{k<N} discount^k r_{t+k} + discount^N V(s_{t+N}) - V(s_t)
    I_t          = [A > threshold of the task];  true for corrections and for demonstrations that succeeded
    L            = E over the whole buffer of || (noise - a) - v_theta(a_t, s, l + "Advantage: positive|negative") ||^2

with the words left out for 30 % of a batch. The policy acts under "positive", optionally with classifier-free guidance. The
condition is words of the instruction, as in the paper, so that no policy has to be changed for it.

Where this departs from the paper: N is the horizon of a window (paper: 50 steps); returns are those of all methods here
(scaled, slightly discounted, ended by the human's cut), which the bins cover from end to end (paper: undiscounted,
normalised to (-1, 0)); the policy goes on from its last version instead of from the pretrained one.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np
from jaxtyping import Bool, Float32
from numpy import ndarray

from aloe.experience.store import Frames
from aloe.experience.windows import Windows
from aloe.policies.train import ActorRows
from aloe.types import Source

POSITIVE: Final = ". Advantage: positive"
NEGATIVE: Final = ". Advantage: negative"


@dataclass(frozen=True, kw_only=True)
class RecapConfig:
    """From returns to conditions."""

    bins: int = 201
    """Bins of the value's distribution. (Paper: 201.)"""
    positive_share: float = 0.4
    """Share of the policy's own actions of each task that count as good: sets the threshold. (Paper: about 0.4.)"""
    dropout: float = 0.3
    """Share of a batch that is shown the plain instruction. (Paper: 0.3.)"""
    guidance: float = 1.0
    """Strength of classifier-free guidance at play; 1 is none. (Paper: optional, moderate.)"""

    def __post_init__(self) -> None:
        if self.bins < 2 or not 0 < self.positive_share < 1 or not 0 <= self.dropout < 1:
            raise ValueError("recap needs 2 bins, positive_share in (0, 1) and dropout in [0, 1)")


def advantages(windows: Windows, value: Float32[ndarray, "N"], discount: float) -> Float32[ndarray, "N"]:
    """N-step advantage over one window; 0 where neither the end nor the next state is known."""
    horizon = windows.reward.shape[1]
    within = windows.reward @ (discount ** np.arange(horizon))
    after = np.where(windows.bootstraps, discount**horizon * value[windows.next_frame], 0)
    return np.where(windows.has_target, within + after - value, 0).astype(np.float32)


def is_positive(
    frames: Frames, windows: Windows, advantage: Float32[ndarray, "N"], config: RecapConfig
) -> Bool[ndarray, "N"]:
    """I: whether each action is better than the task's threshold, a correction, or of a successful demonstration. An
    action of the policy whose advantage is unknown never is."""
    positive = (frames.source == Source.HUMAN) | ((frames.source == Source.DEMO) & windows.fragment_success)
    for task in np.unique(frames.task_index):
        mine = (frames.task_index == task) & windows.has_target
        own = mine & (frames.source == Source.POLICY)
        if own.any():
            positive |= mine & (advantage > np.quantile(advantage[own], 1 - config.positive_share))
    return positive


def actor_rows(frames: Frames, windows: Windows, advantage: Float32[ndarray, "N"], config: RecapConfig) -> ActorRows:
    """Every window with weight 1 and its condition in words."""
    return ActorRows(
        rows=np.arange(len(windows)),
        weight=np.ones(len(windows), np.float32),
        condition=[POSITIVE if good else NEGATIVE for good in is_positive(frames, windows, advantage, config)],
        condition_dropout=config.dropout,
    )
