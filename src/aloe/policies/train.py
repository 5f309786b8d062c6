"""The one actor trainer: weighted flow matching. Every method differs only in the weights and the rows it hands over."""

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, Float, Float32, Int64, UInt8
from lerobot.utils.constants import ACTION, OBS_STATE
from numpy import ndarray
from torch import Tensor, nn
from tqdm import tqdm

from aloe.losses import weighted_flow_matching_loss
from aloe.policies.bundle import PolicyBundle
from aloe.policies.flow import chunk_shape, device_of, flow_residual, image_batch, noise_shape, sample_time
from aloe.policies.memory import GIB, Memory, free_memory, kept_bytes, remedy
from aloe.policies.recipe import ActorConfig, recipe
from aloe.policies.trainable import trainable
from aloe.training import BatchDraw, Log, Shares, generator_for, load_state, save_state, set_rate

WORTH_SAYING = GIB
"""Bytes from which on training says before it starts what it will take."""


@dataclass(frozen=True, kw_only=True)
class PolicyRows:
    """A store as a policy sees it: one row a frame, preprocessed except for the pictures, which are read when needed."""

    inputs: dict[str, Tensor]
    """Preprocessed observation entries without pictures, (N, ...)."""
    action: Float[Tensor, "N A"]
    """Executed actions, normalised."""
    chunk: Int64[ndarray, "N H"]
    """Frame of each action of the chunk that the policy is to predict from each frame."""
    is_pad: Bool[ndarray, "N H"]
    """Which of these are padding."""
    images: Callable[[Int64[ndarray, "B"]], dict[str, UInt8[ndarray, "B h w 3"]]]
    shares: Shares | None = None
    """How much of a batch is of each root or task, where there are several."""
    conditioned: dict[str, Tensor] | None = None
    """`inputs` under the instruction with the condition of `ActorRows` added, if there is one."""
    device: torch.device | str = "cpu"
    """Where a batch's pictures are put: the policy's."""

    @staticmethod
    def of(
        bundle: PolicyBundle,
        state: Float32[ndarray, "N S"],
        action: Float32[ndarray, "N A"],
        chunks: tuple[Int64[ndarray, "N H"], Bool[ndarray, "N H"]],
        tasks: list[str],
        images: Callable[[Int64[ndarray, "B"]], dict[str, UInt8[ndarray, "B h w 3"]]],
        condition: Sequence[str] | None = None,
        shares: Shares | None = None,
    ) -> "PolicyRows":
        """Sends all frames through the policy's own preprocessor; with a `condition`, words for each frame, twice.

        chunks: `chunk` and `is_pad`, as `experience.windows.action_frames` gives them.

        Raises:
            ValueError: chunks of another length.
        """
        if (length := chunks[0].shape[1]) != (predicted := chunk_shape(bundle.policy)[0]):
            raise ValueError(f"the policy predicts chunks of {predicted} actions, not of {length}")

        words = [task + more for task, more in zip(tasks, condition or (), strict=condition is not None)]
        times = 1 if condition is None else 2  # in one call: words are padded to the longest of a call
        batch = bundle.preprocessor(
            {
                OBS_STATE: torch.from_numpy(np.tile(state, (times, 1))),
                ACTION: torch.from_numpy(np.tile(action, (times, 1))),
                "task": [*tasks, *words],
            }
        )
        both = {k: v for k, v in batch.items() if k.startswith("observation.") and isinstance(v, Tensor)}
        return PolicyRows(
            inputs={k: v[: len(tasks)] for k, v in both.items()},
            action=batch[ACTION][: len(tasks)],
            chunk=chunks[0],
            is_pad=chunks[1],
            images=images,
            shares=shares,
            conditioned=None if condition is None else {k: v[len(tasks) :] for k, v in both.items()},
            device=device_of(bundle.policy),
        )

    def batch(self, rows: Int64[ndarray, "B"], is_conditioned: Bool[Tensor, "B"] | None = None) -> dict[str, Tensor]:
        """Observations of these frames, as the policy's own code expects them."""
        index = torch.from_numpy(rows)
        inputs = {k: v[index] for k, v in self.inputs.items()}
        if is_conditioned is not None:
            assert self.conditioned is not None, "these rows were made without a condition"
            for k, v in self.conditioned.items():
                inputs[k][is_conditioned] = v[index[is_conditioned]]
        return inputs | image_batch(self.images(rows), self.device)


@dataclass(frozen=True, kw_only=True)
class ActorRows:
    """Which windows an actor learns from, and how much each one counts."""

    rows: Int64[ndarray, "R"]
    """Windows that take part."""
    weight: Float32[ndarray, "N"]
    """Weight of every window of the store."""
    condition: list[str] | None = None
    """Words added to the instruction of each window of the store; None for a policy that is not conditioned."""
    condition_dropout: float = 0.0
    """Share of a batch's windows that are shown the plain instruction nevertheless."""


def train_actor(
    bundle: PolicyBundle,
    data: PolicyRows,
    actor: ActorRows,
    config: ActorConfig,
    key: tuple[int | str, ...],
    *,
    improving: bool = False,
    optimizer_file: Path | None = None,
    checkpoint: Path | None = None,
    log: Log | None = None,
    label: str = "actor",
) -> torch.optim.Optimizer | None:
    """Trains the policy in place: L = E[w * (v_theta - (noise - action))^2], w divided by its mean over the batch.

    `key` names the phase: all chance is a function of it and of the step. Where `checkpoint` exists, training goes on
    from there; `optimizer_file` holds the moments of an earlier phase, from which the optimizer goes on. Returns the
    optimizer, if a later phase can go on from it: LoRA adapters are gone with the phase, and so are their moments.

    Raises:
        ValueError: no windows to learn from, more memory than there is, or an earlier optimizer that cannot go on.
    """
    policy = bundle.policy
    if not len(actor.rows):
        raise ValueError("there is nothing for the actor to learn from: no window has been selected")
    if optimizer_file is not None and config.train == "lora":
        raise ValueError("LoRA adapters begin anew in every phase and take no earlier optimizer; leave it out")
    numbers = recipe(policy, config, improving=improving)
    with trainable(policy, config, key):
        optimizer = numbers.optimizer(policy)
        # What is frozen need not be kept; of three billion weights, LoRA trains a few millions.
        modules = {
            "policy": nn.ParameterList(p for p in policy.parameters() if p.requires_grad),
            "buffers": _buffers(policy),
        }
        needed = check_memory(bundle, data, config)  # before an earlier phase's moments take some of it
        optimizers, first = {"optimizer": optimizer}, 0
        if checkpoint is not None and checkpoint.exists():
            first = load_state(checkpoint, modules, optimizers)
        elif optimizer_file is not None:
            load_state(optimizer_file, {}, optimizers)
        if first < config.steps and needed is not None:
            tqdm.write(f"{label}: training takes about {needed}", file=sys.stderr)
        draw = BatchDraw(actor.rows, data.shares)
        steps = range(first, config.steps)
        for step in tqdm(steps, desc=label, unit="step", initial=first, total=config.steps, delay=2):
            generator = generator_for(*key, step)
            rows = draw(config.batch_size, generator)
            rate = numbers.rate(step)
            set_rate(optimizer, rate)
            losses = actor_losses(bundle, data, actor, rows, config, generator)
            loss, norm = descend(policy, optimizer, losses, numbers.clip_norm)
            if log is not None and (step % 20 == 0 or step == config.steps - 1):
                log(step, {"loss": loss.item(), "gradient_norm": norm.item(), "rate": rate})
            if checkpoint is not None and (step + 1) % config.save_every == 0:
                save_state(checkpoint, modules, optimizers, step + 1)
    return None if config.train == "lora" else optimizer


def _buffers(policy: nn.Module) -> nn.Module:
    """The policy's own buffers, of batch norms for example, by number: some are in no `state_dict`, and yet they change."""
    buffers = nn.Module()
    for number, buffer in enumerate(policy.buffers()):
        buffers.register_buffer(str(number), buffer)
    return buffers


def descend(
    policy: nn.Module, optimizer: torch.optim.Optimizer, losses: Iterable[Float[Tensor, ""]], clip_norm: float
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """One gradient step on the sum of `losses`, each gone before the next is made; the sum, and the gradient's norm."""
    optimizer.zero_grad()
    total = torch.zeros((), device=next(policy.parameters()).device)
    for loss in losses:
        loss.backward()
        total += loss.detach()
    norm = nn.utils.clip_grad_norm_(policy.parameters(), clip_norm)
    optimizer.step()
    return total, norm


def check_memory(bundle: PolicyBundle, data: PolicyRows, config: ActorConfig) -> str | None:
    """What training will take, in words, where that is much. Two small passes; no training step sees of it.

    Raises:
        ValueError: it cannot fit as it is set up now.
    """
    policy, device, frames = bundle.policy, device_of(bundle.policy), np.arange(len(data.action))
    actor = ActorRows(rows=frames, weight=np.ones(len(frames), np.float32))

    buffers = [buffer.clone() for buffer in policy.buffers()]  # of batch norms, for example

    def kept(windows: int) -> int:
        rows, whole = np.resize(frames, windows), replace(config, accumulate=1)
        passing = actor_losses(bundle, data, actor, rows, whole, torch.Generator().manual_seed(0))
        return kept_bytes(lambda: list(passing), policy)

    memory = Memory.of([p for p in policy.parameters() if p.requires_grad], kept(2), kept(4))
    for buffer, before in zip(policy.buffers(), buffers, strict=True):
        buffer.copy_(before)
    free, part = free_memory(device), -(-config.batch_size // config.accumulate)
    if (complaint := remedy(memory, config, free, device.type == "cuda")) is not None:
        raise ValueError(complaint)
    return memory.told(part, free) if memory.needed(part) >= WORTH_SAYING else None


def actor_losses(
    bundle: PolicyBundle,
    data: PolicyRows,
    actor: ActorRows,
    rows: Int64[ndarray, "B"],
    config: ActorConfig,
    generator: torch.Generator,
) -> Iterator[Float[Tensor, ""]]:
    """The weighted flow-matching loss of one batch of windows in `config.accumulate` summands, one after the other: the
    sum of their gradients is that of the whole. Their noise and time are those of the whole."""
    policy, device = bundle.policy, device_of(bundle.policy)
    action = data.action[torch.from_numpy(data.chunk[rows])]
    noise = torch.randn(len(action), *noise_shape(policy), generator=generator)
    time = sample_time(policy, len(action), generator)
    keep = None
    if actor.condition is not None:
        keep = torch.rand(len(action), generator=generator) >= actor.condition_dropout
    weight = torch.from_numpy(actor.weight[rows])
    weight = weight / weight.mean().clamp(min=1e-6)
    is_pad = data.is_pad[rows]
    for part in np.array_split(np.arange(len(rows)), config.accumulate):
        batch = data.batch(rows[part], None if keep is None else keep[part]) | {ACTION: action[part]}
        with torch.autocast(device.type, torch.bfloat16, enabled=config.dtype == "bfloat16"):
            residual = flow_residual(policy, batch, noise[part], time[part], generator)
        padding = torch.from_numpy(is_pad[part]).to(device)
        loss = weighted_flow_matching_loss(residual.float(), weight[part].to(device), padding)
        yield loss * float((~is_pad[part]).sum() / (~is_pad).sum())  # each is a mean over the valid steps of its part
