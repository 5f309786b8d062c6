"""One phase of policy evaluation: how good is each chunk in the buffer *under the current policy*?

The policy is frozen meanwhile. Its chunks at every frame were sampled once beforehand; every critic step, the value
V and the filling of tails draw on those samples.
"""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, assert_never, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, Float32, Int64
from numpy import ndarray
from torch import Tensor, nn
from tqdm import tqdm

from aloe.experience.windows import Windows
from aloe.losses import critic_loss, expectile_loss
from aloe.returns import Aggregation, aggregate, chunk_td_target
from aloe.training import BatchDraw, Log, Shares, cosine_rate, generator_for, load_state, save_state, set_rate
from aloe.value.critic import ChunkCritic, Observations

Bootstrap = Literal["policy", "best-of", "in-sample", "monte-carlo"]


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    """How the critics are trained. AdamW with a cosine schedule, as in the paper."""

    steps: int = 400
    """Gradient steps of one phase. (Paper: not disclosed.)"""
    batch_size: int = 128
    """Windows in a batch. (Paper: 256.)"""
    learning_rate: float = 5e-4
    """Peak. (Paper: 3e-5, for a critic of 5 M parameters.)"""
    warmup: int = 100
    """Steps of linear warm-up. (Paper: 100.)"""
    weight_decay: float = 1e-4
    clip_norm: float = 1.0
    """Largest norm of the gradient. (Paper: 1.0.)"""
    polyak: float = 0.02
    """Share of the online weights that enters the target weights at each step. (Paper: 0.005.)"""
    bootstrap: Bootstrap = "policy"
    """What stands for V(s_{t+H}) in the target: the mean value of chunks sampled from the current policy (paper), the best
    of them (Q-chunking), an expectile over the data's own chunks (IQL), or nothing, the target being the Monte Carlo
    return."""
    sample_batch: int = 256
    """Observations at which the policy's chunks are sampled at once, at most 256: lower it where memory is short."""
    target_samples: int = 2
    """m: policy samples in the target, of the M that were drawn."""
    target_aggregation: Aggregation = "min"
    """From K critics to one value, in the target."""
    advantage_aggregation: Aggregation = "min"
    """From K critics to one value, in the advantage. (Paper: min.)"""
    std_weight: float = 1.0
    """lambda of the aggregation `mean-std`."""
    expectile: float = 0.7
    """tau of the in-sample bootstrap."""
    tail_fill: Literal["policy", "zero"] = "policy"
    """What stands where a chunk runs past the end of its fragment: the tail of a chunk sampled from the policy, so that
    padding does not give away that the end is near, or zeros."""
    clamp_targets: bool = True
    """Keep targets within the range of returns that is possible."""
    save_every: int = 500
    """Steps between checkpoints within the phase."""

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.save_every, self.target_samples, self.sample_batch) < 1:
            raise ValueError("steps, batch_size, save_every, target_samples and sample_batch must be at least 1")


@runtime_checkable
class ObservationSource(Protocol):
    """Where critics get their observations: by frame, from memory."""

    def __call__(self, frames: Int64[ndarray, "B"]) -> Observations: ...


@dataclass(frozen=True, kw_only=True)
class CriticData:
    """All that policy evaluation needs, by frame of the store."""

    windows: Windows
    observations: ObservationSource
    action: Float[Tensor, "N A"]
    """Executed actions, normalised."""
    samples: Float32[ndarray, "N M E A"]
    """Chunks of the current policy at every frame, normalised (memory-mapped), as far as the critics see them."""
    shares: Shares | None = None
    """How much of a batch is of each root, or of each who acted."""

    def chunks(self, rows: Int64[ndarray, "B"], fill: Float[Tensor, "B E A"] | None) -> Float[Tensor, "B E A"]:
        """Executed chunks of the windows, as far as the critics see them; past the end of the fragment `fill`, or zeros."""
        judged = self.samples.shape[2]
        chunk = self.action[torch.from_numpy(self.windows.frames[rows, :judged])]
        is_pad = torch.from_numpy(self.windows.is_pad[rows, :judged])[..., None]
        return torch.where(is_pad, torch.zeros_like(chunk) if fill is None else fill, chunk)

    def sampled(self, rows: Int64[ndarray, "B"], which: slice | Int64[ndarray, "B"]) -> Tensor:
        """(B, m, E, A) for a slice of samples, (B, E, A) for one sample a row."""
        return torch.from_numpy(np.asarray(self.samples[rows, which], dtype=np.float32))


class CriticState:
    """Online and target critics with their optimizers; carried from round to round.

    The state value exists only for the in-sample bootstrap.
    """

    def __init__(self, critic: ChunkCritic, config: FitConfig, value: ChunkCritic | None = None) -> None:
        self.critic = critic
        self.target = copy.deepcopy(critic).requires_grad_(False)
        self.value = value
        settings = {"betas": (0.9, 0.95), "weight_decay": config.weight_decay, "fused": True}
        self.optimizer = torch.optim.AdamW(critic.parameters(), **settings)
        self.value_optimizer = None if value is None else torch.optim.AdamW(value.parameters(), **settings)

    def modules(self) -> Mapping[str, nn.Module]:
        return {"critic": self.critic, "target": self.target} | ({"value": self.value} if self.value else {})

    def optimizers(self) -> Mapping[str, torch.optim.Optimizer]:
        extra = {"value_optimizer": self.value_optimizer} if self.value_optimizer else {}
        return {"optimizer": self.optimizer} | extra

    def save(self, path: Path, step: int) -> None:
        save_state(path, self.modules(), self.optimizers(), step)

    def load(self, path: Path) -> int:
        return load_state(path, self.modules(), self.optimizers())


def fit_critic(
    state: CriticState,
    data: CriticData,
    config: FitConfig,
    discount: float,
    key: tuple[int | str, ...],
    *,
    checkpoint: Path | None = None,
    log: Log | None = None,
) -> None:
    """Trains the critics in place for `config.steps` steps.

    `key` names the phase, for example (seed, "critic", round): all chance is a function of it and of the step.
    Where `checkpoint` exists, training goes on from there.

    Raises:
        ValueError: the target averages more samples than were drawn, or no window has a target.
    """
    usable = data.windows.has_target & (data.windows.ended if config.bootstrap == "monte-carlo" else True)
    rows = np.flatnonzero(usable)
    if config.target_samples > data.samples.shape[1]:
        raise ValueError(
            f"the target averages {config.target_samples} policy samples, but {data.samples.shape[1]} were drawn; "
            "lower --target-samples or raise --aloe.samples"
        )
    if not len(rows):
        raise ValueError(
            "no window has a target: every fragment stops without success, failure or a next chunk; "
            "label the episodes' outcome, or choose a smaller --window.horizon"
        )
    first = state.load(checkpoint) if checkpoint is not None and checkpoint.exists() else 0
    state.critic.train()
    draw = BatchDraw(rows, data.shares)
    for step in tqdm(
        range(first, config.steps), desc="critic", unit="step", initial=first, total=config.steps, delay=2
    ):
        generator = generator_for(*key, step)
        batch = draw(config.batch_size, generator)
        rate = cosine_rate(step, config.steps, config.learning_rate, config.warmup)
        metrics = critic_step(state, data, batch, config, discount, rate, generator)
        if log is not None and (step % 20 == 0 or step == config.steps - 1):
            log(step, {name: float(value) for name, value in metrics.items()} | {"rate": rate})
        if checkpoint is not None and (step + 1) % config.save_every == 0:
            state.save(checkpoint, step + 1)
    state.critic.eval()


def critic_step(
    state: CriticState,
    data: CriticData,
    batch: Int64[ndarray, "B"],
    config: FitConfig,
    discount: float,
    rate: float,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """One gradient step on Q (and, for the in-sample bootstrap, on V), then the Polyak step of the target."""
    chunk = data.chunks(batch, tail(data, batch, config, generator))
    observations = data.observations(batch)
    target = td_target(state, data, batch, config, discount)
    q = state.critic(observations, chunk)
    loss = critic_loss(q, target.to(q.device))
    descend(state.optimizer, state.critic, loss, rate, config.clip_norm)
    metrics = {
        "loss": loss.detach(),
        "q": q.detach().mean(),
        "target": target.mean(),
        "spread": q.detach().std(-1, correction=0).mean(),
    }
    if state.value is not None and state.value_optimizer is not None:
        with torch.no_grad():
            better = aggregate(state.target(observations, chunk), config.target_aggregation, config.std_weight)
        value_loss = expectile_loss(state.value(observations).mean(-1), better, config.expectile)
        descend(state.value_optimizer, state.value, value_loss, rate, config.clip_norm)
        metrics["value_loss"] = value_loss.detach()
    with torch.no_grad():
        for slow, fast in zip(state.target.parameters(), state.critic.parameters(), strict=True):
            slow.lerp_(fast, config.polyak)
    return metrics


def tail(
    data: CriticData, batch: Int64[ndarray, "B"], config: FitConfig, generator: torch.Generator
) -> Float[Tensor, "B E A"] | None:
    """What to show the critic past the end of a fragment: one of the policy's own chunks from that state, at random."""
    if config.tail_fill == "zero":
        return None
    which = torch.randint(data.samples.shape[1], (len(batch),), generator=generator).numpy()
    return data.sampled(batch, which)


@torch.no_grad()
def td_target(
    state: CriticState, data: CriticData, batch: Int64[ndarray, "B"], config: FitConfig, discount: float
) -> Float[Tensor, "B"]:
    """y of the paper for a batch of windows: the same for every critic."""
    windows = data.windows
    match config.bootstrap:
        case "monte-carlo":
            return torch.from_numpy(windows.monte_carlo[batch])
        case "policy" | "best-of" | "in-sample":
            bootstraps = windows.bootstraps[batch]
            following = windows.next_frame[batch[bootstraps]]
            next_value = torch.zeros(len(batch))
            if len(following):
                observations = data.observations(following)
                if config.bootstrap != "in-sample":
                    chunks = data.sampled(following, slice(0, config.target_samples))
                    q = state.target.of_samples(observations, chunks)
                    each = aggregate(q, config.target_aggregation, config.std_weight)
                    if config.bootstrap == "policy":
                        value = each.mean(-1)
                    else:  # chosen by the online critics, valued by the target's: one maximum over both would be biased
                        online = state.critic.of_samples(observations, chunks)
                        best = aggregate(online, config.target_aggregation, config.std_weight).argmax(-1)
                        value = each.gather(-1, best[:, None])[:, 0]
                else:
                    assert state.value is not None, "the in-sample bootstrap needs a state value"
                    value = state.value(observations).mean(-1)
                next_value[torch.from_numpy(bootstraps)] = value.cpu()
            return chunk_td_target(
                torch.from_numpy(windows.reward[batch]),
                next_value,
                torch.from_numpy(windows.terminated[batch]),
                discount,
                windows.return_range if config.clamp_targets else None,
            )
        case _:
            assert_never(config.bootstrap)


def descend(optimizer: torch.optim.Optimizer, module: nn.Module, loss: Tensor, rate: float, clip_norm: float) -> None:
    set_rate(optimizer, rate)
    optimizer.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(module.parameters(), clip_norm)
    optimizer.step()
