"""A critic at play: of several chunks of the policy, the one that the critics like best is executed."""

from dataclasses import dataclass

import torch
from jaxtyping import Float32, UInt8
from lerobot.utils.constants import OBS_STATE
from numpy import ndarray

from aloe.policies.bundle import PolicyBundle, Tower, observe
from aloe.policies.flow import chunk_shape, noise_shape, sample_chunks
from aloe.returns import Aggregation, aggregate
from aloe.value.critic import ChunkCritic, Observations


@dataclass(frozen=True, kw_only=True)
class BestOfPlayer:
    """a = argmax_n agg_i Q_i(s, a_n, l) over N chunks a_n ~ pi(.|s, l) (best of N, as in Q-chunking)."""

    bundle: PolicyBundle
    critic: ChunkCritic
    tower: Tower
    """What the critics were trained to see through."""
    samples: int
    """N, the M of the shapes."""
    aggregation: Aggregation
    std_weight: float = 1.0

    @property
    def chunk_shape(self) -> tuple[int, int]:
        return chunk_shape(self.bundle.policy)

    @property
    def noise_shape(self) -> tuple[int, ...]:
        return (self.samples, *noise_shape(self.bundle.policy))

    @torch.no_grad()
    def __call__(
        self,
        images: dict[str, UInt8[ndarray, "W h w 3"]],
        state: Float32[ndarray, "W S"],
        tasks: list[str],
        noise: Float32[ndarray, "W M H N"],
    ) -> Float32[ndarray, "W H A"]:
        chunks = sample_chunks(self.bundle.policy, observe(self.bundle, images, state, tasks), torch.from_numpy(noise))
        features = self.tower.encode(images) if images else torch.zeros(len(state), 0, self.tower.feature_dim)
        observations = Observations(
            features=features,
            state=observe(self.tower.bundle, {}, state, tasks)[OBS_STATE],
            language=self.tower.words(tasks),
        )
        judged = chunks[:, :, : self.critic.shape.horizon]
        q = aggregate(self.critic.of_samples(observations, judged).cpu(), self.aggregation, self.std_weight)  # (W, M)
        return self.bundle.postprocessor(chunks[torch.arange(len(q)), q.argmax(1)]).numpy()
