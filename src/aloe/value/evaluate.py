"""What trained critics say of every window: the values that advantages, weights and judgements of a critic are made of."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from jaxtyping import Float32
from numpy import ndarray
from tqdm import tqdm

from aloe.returns import aggregate
from aloe.value.critic import ChunkCritic
from aloe.value.fit import CriticData, FitConfig


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Each critic's values, and what they come to (paper, "Actor")."""

    fit: FitConfig
    """Says how the advantage aggregates the critics."""
    q: Float32[ndarray, "N K"]
    """Each critic's value of the executed chunk."""
    q_samples: Float32[ndarray, "N M K"]
    """Each critic's value of each of the policy's own chunks there."""

    def _aggregated(self, q: Float32[ndarray, "... K"]) -> Float32[ndarray, "..."]:
        return aggregate(torch.from_numpy(q), self.fit.advantage_aggregation, self.fit.std_weight).numpy()

    @cached_property
    def q_of_executed(self) -> Float32[ndarray, "N"]:
        """agg_i Q_i(s, a) of the executed chunk."""
        return self._aggregated(self.q)

    @cached_property
    def q_of_samples(self) -> Float32[ndarray, "N M"]:
        """agg_i Q_i(s, a') of the policy's own chunks."""
        return self._aggregated(self.q_samples)

    @property
    def value(self) -> Float32[ndarray, "N"]:
        """V(s) = mean_M agg_i Q_i(s, a'_M)."""
        return self.q_of_samples.mean(1)

    @property
    def best_value(self) -> Float32[ndarray, "N"]:
        """V of a policy that executes the best of its samples: max_M agg_i Q_i(s, a'_M)."""
        return self.q_of_samples.max(1)

    @property
    def advantage(self) -> Float32[ndarray, "N"]:
        """A(s, a) = agg_i Q_i(s, a) - V(s)."""
        return self.q_of_executed - self.value


@torch.no_grad()
def evaluate_windows(critic: ChunkCritic, data: CriticData, fit: FitConfig, batch_size: int = 256) -> Evaluation:
    """The online critics' values of every window's chunk, its tail filled as in training, and of the policy's own."""
    critic.eval()
    q, q_samples = [], []
    for start in tqdm(range(0, len(data.windows), batch_size), desc="advantages", unit="batch", delay=2):
        rows = np.arange(start, min(start + batch_size, len(data.windows)))
        observations, samples = data.observations(rows), data.sampled(rows, slice(None))
        q.append(critic(observations, data.chunks(rows, None if fit.tail_fill == "zero" else samples[:, 0])))
        q_samples.append(critic.of_samples(observations, samples))
    return Evaluation(fit=fit, q=torch.cat(q).cpu().numpy(), q_samples=torch.cat(q_samples).cpu().numpy())
