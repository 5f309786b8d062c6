"""A state value learnt from Monte Carlo returns, as a distribution over bins: what AWR and RECAP compare actions with.

    p_theta(bin | s, l) by cross entropy against the bin of the return,      V(s, l) = sum_b p_theta(b) centre_b

The network is that of the chunk critics without action tokens, the budget that of `FitConfig`. The value is that of
whoever acted in the buffer, not of the current policy.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32, Int64
from numpy import ndarray
from torch import Tensor
from tqdm import tqdm

from aloe.experience.windows import Windows
from aloe.training import BatchDraw, Log, Shares, cosine_rate, generator_for, load_state, save_state
from aloe.value.critic import ChunkCritic
from aloe.value.fit import FitConfig, ObservationSource, descend


class ReturnDistribution:
    """The value network with its optimizer; carried from round to round.

    The bins divide the `return_range` of what it last learnt from evenly; `range` is kept with the weights.
    """

    def __init__(self, network: ChunkCritic, config: FitConfig, bins: int) -> None:
        self.network = network
        self.bins = bins
        self.network.register_buffer("range", torch.zeros(2, device=network.position.device))
        self.optimizer = torch.optim.AdamW(
            network.parameters(), betas=(0.9, 0.95), weight_decay=config.weight_decay, fused=True
        )

    def set_range(self, low: float, high: float) -> None:
        self.network.get_buffer("range").copy_(torch.tensor([low, high]))

    def bin_of(self, returns: Float[Tensor, "B"]) -> Int64[Tensor, "B"]:
        """Number of the bin that each return falls into; returns outside the range fall into the outermost."""
        low, high = self.network.get_buffer("range")
        return ((returns.to(low.device) - low) / (high - low) * self.bins).long().clamp(0, self.bins - 1)

    def mean(self, logits: Float[Tensor, "B bins"]) -> Float[Tensor, "B"]:
        """V = sum_b p(b) centre_b."""
        low, high = self.network.get_buffer("range")
        centres = low + (torch.arange(self.bins, device=low.device) + 0.5) / self.bins * (high - low)
        return logits.softmax(-1) @ centres

    def save(self, path: Path, step: int) -> None:
        save_state(path, {"value": self.network}, {"optimizer": self.optimizer}, step)

    def load(self, path: Path) -> int:
        return load_state(path, {"value": self.network}, {"optimizer": self.optimizer})


def fit_distribution(
    state: ReturnDistribution,
    windows: Windows,
    observations: ObservationSource,
    config: FitConfig,
    key: tuple[int | str, ...],
    *,
    shares: Shares | None = None,
    checkpoint: Path | None = None,
    log: Log | None = None,
) -> None:
    """Trains the value in place for `config.steps` steps on the states whose return is known.

    All chance is a function of `key` and the step. Where `checkpoint` exists, training goes on from there.

    Raises:
        ValueError: no fragment ended in success or failure.
    """
    rows = np.flatnonzero(windows.ended)
    if not len(rows):
        raise ValueError("no return is known: no fragment ended in success or failure; label the episodes' outcome")
    # Not that of an earlier round, which may have known shorter episodes only.
    state.set_range(*windows.return_range)
    first = state.load(checkpoint) if checkpoint is not None and checkpoint.exists() else 0
    state.network.train()
    draw = BatchDraw(rows, shares)
    for step in tqdm(range(first, config.steps), desc="value", unit="step", initial=first, total=config.steps, delay=2):
        generator = generator_for(*key, step)
        batch = draw(config.batch_size, generator)
        logits = state.network(observations(batch))
        loss = F.cross_entropy(logits, state.bin_of(torch.from_numpy(windows.monte_carlo[batch])))
        rate = cosine_rate(step, config.steps, config.learning_rate, config.warmup)
        descend(state.optimizer, state.network, loss, rate, config.clip_norm)
        if log is not None and (step % 20 == 0 or step == config.steps - 1):
            log(step, {"loss": loss.item(), "rate": rate})
        if checkpoint is not None and (step + 1) % config.save_every == 0:
            state.save(checkpoint, step + 1)
    state.network.eval()


@torch.no_grad()
def evaluate_states(
    state: ReturnDistribution, count: int, observations: ObservationSource, batch_size: int = 1024
) -> Float32[ndarray, "N"]:
    """V at every frame of the store."""
    state.network.eval()
    parts = []
    for start in range(0, count, batch_size):
        rows = np.arange(start, min(start + batch_size, count))
        parts.append(state.mean(state.network(observations(rows))).cpu())
    return torch.cat(parts).numpy()
