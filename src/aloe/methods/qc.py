"""QC: clone everything, and let the critic choose (Q-chunking, Li et al. 2025, the best-of-N variant).

    y = sum_{k<H} discount^k r_{t+k} + discount^H Qbar(s_{t+H}, a*),     a* = argmax_{a'_n} Q(s_{t+H}, a'_n),  n < N,
        a'_n ~ the cloned behaviour
    L = E over the whole buffer of || (noise - a) - v_theta(a_t, s, l) ||^2
    act: the best by Q of N chunks of the policy

The critics are those of `aloe.value.fit` with the `best-of` bootstrap and, as in the paper, the mean of the ensemble. The
improvement lies in the choice at play, for which the critic must be there.

Where this departs from the paper: rounds instead of an update after every step; the critics are the ensemble and the
transformer of all methods here.
"""

from dataclasses import dataclass, replace
from typing import Final

import numpy as np

from aloe.experience.windows import Windows
from aloe.policies.train import ActorRows
from aloe.value.fit import FitConfig


@dataclass(frozen=True, kw_only=True)
class QcConfig:
    """How many chunks the critic chooses from."""

    samples: int = 8
    """N, at the target and at play. (Paper: 32.)"""

    def __post_init__(self) -> None:
        if self.samples < 2:
            raise ValueError("with fewer than 2 samples there is nothing to choose from: --qc.samples")


FIXED: Final = ("bootstrap", "target_samples", "target_aggregation", "advantage_aggregation")
"""Options of `FitConfig` that make the method: it sets them itself."""


def check_options(fit: FitConfig) -> None:
    """Raises ValueError if one of `FIXED` is not at its default."""
    for name in FIXED:
        if getattr(fit, name) != getattr(FitConfig(), name):
            instead = "; --qc.samples says how many it chooses from" if name == "target_samples" else ""
            raise ValueError(f"--method qc sets --fit.{name.replace('_', '-')} itself: leave it out{instead}")


def fit_config(fit: FitConfig, config: QcConfig) -> FitConfig:
    """The critics' training with QC's target; everything else as for the other methods."""
    return replace(
        fit,
        bootstrap="best-of",
        target_samples=config.samples,
        target_aggregation="mean",
        advantage_aggregation="mean",
    )


def actor_rows(windows: Windows) -> ActorRows:
    """Every window of the store, with weight 1."""
    return ActorRows(rows=np.arange(len(windows)), weight=np.ones(len(windows), np.float32))
