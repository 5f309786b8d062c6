"""How an optimizer trains a policy: by the policy's own preset, wherever the user says nothing else."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from lerobot.optim.optimizers import AdamWConfig
from lerobot.optim.schedulers import CosineDecayWithWarmupSchedulerConfig
from lerobot.policies.pretrained import PreTrainedPolicy

from aloe.policies.flow import family
from aloe.training import cosine_rate

Train = Literal["preset", "expert", "all", "lora"]


@dataclass(frozen=True, kw_only=True)
class ActorConfig:
    """How a policy is trained on weighted windows. (Paper: rates, steps and batch size of the actor not disclosed.)"""

    steps: int = 1000
    """Gradient steps."""
    batch_size: int = 64
    """Windows in a batch."""
    accumulate: int = 1
    """Parts that a batch goes through the policy in; the gradient is that of the whole batch, the memory that of a part."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """What is computed in (autocast; weights and optimizer keep theirs). On a GPU bfloat16 is faster, on a CPU slower."""
    checkpointing: bool = False
    """Activation checkpointing: keep less for the backward pass and compute it again. Saves memory, costs a third."""
    train: Train = "preset"
    """Which parameters train: those that the policy's own config names (all of tiny_vla), the action expert with its
    projections, all (paper: end to end), or LoRA adapters where LeRobot puts them, which are merged into the weights at
    the end. The critic keeps the vision tower of the first policy."""
    lora_rank: int = 16
    """Rank of the adapters; read with `--train lora` alone. (LeRobot: 16.)"""
    learning_rate: float | None = None
    """Peak of the schedule; by default the policy's own preset, and half of it where a tiny_vla is trained further."""
    warmup: int | None = None
    """Steps of linear warm-up; by default what the policy's own schedule says."""
    betas: tuple[float, float] | None = None
    """Of AdamW; by default the policy's own preset."""
    weight_decay: float | None = None
    """By default the policy's own preset."""
    clip_norm: float | None = None
    """Largest norm of the gradient; by default the policy's own preset."""
    save_every: int = 500
    """Steps between checkpoints within the phase."""

    def __post_init__(self) -> None:
        if min(self.steps, self.batch_size, self.accumulate, self.lora_rank, self.save_every) < 1:
            raise ValueError("steps, batch_size, accumulate, lora_rank and save_every must be at least 1")
        if self.accumulate > self.batch_size:
            raise ValueError(f"a batch of {self.batch_size} windows has no {self.accumulate} parts; lower accumulate")


TINY_WARMUP = 50
"""Steps, for a policy that has no schedule of its own."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The numbers of one phase of training, complete."""

    betas: tuple[float, float]
    eps: float
    weight_decay: float
    clip_norm: float
    rate: Callable[[int], float]
    """Learning rate of step 0, 1, ..."""

    def optimizer(self, policy: PreTrainedPolicy) -> torch.optim.AdamW:
        return torch.optim.AdamW(
            policy.get_optim_params(), betas=self.betas, eps=self.eps, weight_decay=self.weight_decay, fused=True
        )


def recipe(policy: PreTrainedPolicy, config: ActorConfig, *, improving: bool) -> Recipe:
    """The policy's preset with what the config changes of it. improving: what is trained has been trained before.

    Raises:
        ValueError: the preset is of a kind that ALOE does not know.
    """
    preset, schedule = policy.config.get_optimizer_preset(), policy.config.get_scheduler_preset()
    if not isinstance(preset, AdamWConfig):
        raise ValueError(f"the preset of {policy.name} is {type(preset).__name__}; ALOE trains with AdamW only")
    peak = config.learning_rate
    if peak is None:
        peak = family(policy).improvement_rate(policy) if improving else preset.lr
    match schedule:
        case None:
            warmup = TINY_WARMUP if config.warmup is None else config.warmup

            def rate(step: int) -> float:
                return cosine_rate(step, config.steps, peak, warmup)

        case CosineDecayWithWarmupSchedulerConfig():
            if config.warmup is not None:  # LeRobot shortens both numbers alike where a phase has fewer steps
                schedule = replace(schedule, num_warmup_steps=config.warmup, num_decay_steps=config.steps)
            nothing = torch.optim.SGD([torch.zeros(1)], lr=1.0)
            share = schedule.build(nothing, config.steps).lr_lambdas[0]

            def rate(step: int) -> float:
                return peak * share(step)

        case _:
            raise ValueError(f"the schedule of {policy.name} is {type(schedule).__name__}, which ALOE does not know")
    return Recipe(
        betas=preset.betas if config.betas is None else config.betas,
        eps=preset.eps,
        weight_decay=preset.weight_decay if config.weight_decay is None else config.weight_decay,
        clip_norm=preset.grad_clip_norm if config.clip_norm is None else config.clip_norm,
        rate=rate,
    )
