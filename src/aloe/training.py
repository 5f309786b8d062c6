"""What actor and critic training share: batches and randomness by step, the learning rate, and a state that can be resumed
exactly."""

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Int64
from numpy import ndarray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.optim import Optimizer

Device = Literal["auto", "cpu", "cuda"]

Log = Callable[[int, dict[str, float]], None]
"""Takes (step, metrics by name)."""


def generator_for(*key: int | str) -> torch.Generator:
    """A generator that is a pure function of its key, for example (seed, round, stage, step).

    Training draws every step's batch and noise from the generator of that step, so that a run resumed at step n sees
    exactly what an uninterrupted one would have seen, without any random state being saved.
    """
    digest = hashlib.sha256(json.dumps(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


@dataclass(frozen=True, kw_only=True)
class Shares:
    """How much of a batch is of each part of the experience: of each root, of each task, or of each who acted."""

    part: Int64[ndarray, "N"]
    """Part that every frame belongs to, by its number."""
    ratio: tuple[float | None, ...]
    """Of each part; None: what the others leave."""


def has_share(rows: Int64[ndarray, "R"], shares: Shares) -> bool:
    """Whether any of these windows can be in a batch that is divided so."""
    left = 1 - sum(ratio for ratio in shares.ratio if ratio is not None)
    ratios = [left if ratio is None else ratio for ratio in shares.ratio]
    return any(ratios[part] > 0 for part in np.unique(shares.part[rows]))


class BatchDraw:
    """Draws the windows of batches, with replacement."""

    def __init__(self, rows: Int64[ndarray, "R"], shares: Shares | None) -> None:
        """rows: the windows that take part, at least one. shares: None to draw them all alike.

        Parts of which no window takes part leave their share to the others. Raises ValueError if nothing is left.
        """
        self._pools, self._upto = [rows], np.ones(1)
        if shares is None or all(ratio is None for ratio in shares.ratio):
            return
        part = shares.part[rows]
        pools = {n: rows[part == n] for n, ratio in enumerate(shares.ratio) if ratio is not None}
        ratios = {n: ratio for n, ratio in enumerate(shares.ratio) if ratio is not None}
        if not has_share(rows, shares):
            raise ValueError(
                "there is nothing to learn from: all windows are of roots or sources without a share of the batch; raise "
                "--experience.NAME.ratio or --sources"
            )
        pools[-1], ratios[-1] = rows[~np.isin(part, list(ratios))], 1 - sum(ratios.values())
        kept = [n for n, pool in pools.items() if len(pool) and ratios[n] > 0]
        self._pools = [pools[n] for n in kept]
        self._upto = np.cumsum([ratios[n] for n in kept]) / sum(ratios[n] for n in kept)

    def __call__(self, size: int, generator: torch.Generator) -> Int64[ndarray, "B"]:
        """A batch; a function of the generator alone."""
        if len(self._pools) == 1:
            return self._pools[0][torch.randint(len(self._pools[0]), (size,), generator=generator).numpy()]
        which = np.searchsorted(self._upto, torch.rand(size, dtype=torch.float64, generator=generator).numpy(), "right")
        place = torch.rand(size, dtype=torch.float64, generator=generator).numpy()
        pools = [self._pools[n] for n in which]
        return np.array([pool[int(p * len(pool))] for pool, p in zip(pools, place, strict=True)])


def cosine_rate(step: int, steps: int, peak: float, warmup: int, floor: float = 0.05) -> float:
    """Learning rate of step 0, 1, ...: linear warm-up to `peak`, then half a cosine down to `floor` * peak."""
    warm = min(1.0, (step + 1) / max(1, min(warmup, steps // 2)))
    return peak * warm * (floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * step / max(1, steps))))


def set_rate(optimizer: Optimizer, rate: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = rate


def save_state(path: Path, modules: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer], step: int) -> None:
    """Writes weights, optimizer moments and the step count as one safetensors file, atomically."""
    tensors: dict[str, Tensor] = {}
    for name, module in modules.items():
        tensors |= {f"{name}/{key}": value for key, value in module.state_dict().items()}
    for name, optimizer in optimizers.items():
        for index, moments in optimizer.state_dict()["state"].items():
            tensors |= {f"{name}/{index}/{key}": value for key, value in moments.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(path.name + ".partial")
    save_file(
        {key: value.clone(memory_format=torch.contiguous_format) for key, value in tensors.items()},
        partial,
        metadata={"step": str(step)},
    )
    os.replace(partial, path)


def state_step(path: Path) -> int:
    """The step count of a file of `save_state`."""
    with safe_open(path, framework="pt") as file:
        return int(file.metadata()["step"])


def load_state(path: Path, modules: Mapping[str, nn.Module], optimizers: Mapping[str, Optimizer]) -> int:
    """Reads what `save_state` wrote back into modules and optimizers; returns the step count.

    Raises:
        ValueError: the file is damaged, or was made by a model of another shape.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if "step" not in metadata:
                raise ValueError(f"{path} is no training state of ALOE's: it has no step count")
            step = int(metadata["step"])
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
    except SafetensorError as error:
        raise ValueError(
            f"{path} is damaged ({error}); a *.checkpoint.safetensors may be deleted, and that stage is trained anew; a "
            "run's critics with the critic.done.json beside them; anything else has to be copied anew"
        ) from error

    def of(name: str) -> dict[str, Tensor]:
        return {k.removeprefix(f"{name}/"): v for k, v in tensors.items() if k.startswith(f"{name}/")}

    for name, module in modules.items():
        try:
            module.load_state_dict(of(name))
        except RuntimeError as error:
            first = str(error).splitlines()[1:2] or [str(error)]
            raise ValueError(
                f"{path} was made by a model of another shape ({first[0].strip()}); give the sizes it was made with"
            ) from error
    for name, optimizer in optimizers.items():
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        state: dict[int, dict[str, Any]] = {}
        for key, value in of(name).items():
            index, moment = key.split("/")
            state.setdefault(int(index), {})[moment] = value
            # A fused optimizer would read out of bounds, silently.
            if int(index) >= len(parameters) or (value.ndim and value.shape != parameters[int(index)].shape):
                raise ValueError(f"{path} holds the optimizer of a model of another shape; give the one of this model")
        optimizer.load_state_dict({**optimizer.state_dict(), "state": state})
    return step
