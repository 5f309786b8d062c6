"""Will training fit? An estimate before it starts, and what to switch on if not.

AdamW keeps a gradient and two moments of every trained number. What a forward pass keeps for the backward is measured: it
grows by the same amount with each window, so that two small batches tell it for every size. The estimate leaves out what
the backward pass itself needs for a moment, so it is a little low: what it refuses does not fit.
"""

import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from aloe.policies.recipe import ActorConfig

GIB = 2**30


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Bytes that training takes beside the weights, which are there already."""

    gradients: float
    moments: float
    constant: float
    """Of a forward pass, whatever its size: copies of weights in bfloat16, for example."""
    per_window: float
    """Of a forward pass, for each window."""

    @staticmethod
    def of(parameters: list[nn.Parameter], two: float, four: float) -> "Memory":
        """two, four: bytes that a forward pass of so many windows keeps. (One alone may be spared some copies.)"""
        trained = sum(p.numel() * p.element_size() for p in parameters)
        constant = max(0.0, 2 * two - four)
        return Memory(gradients=trained, moments=2 * trained, constant=constant, per_window=(four - two) / 2)

    def needed(self, windows: int) -> float:
        """Bytes with so many windows in one pass."""
        return self.gradients + self.moments + self.constant + windows * self.per_window

    def told(self, windows: int, free: float) -> str:
        """The estimate in words, beside what is free."""
        needed = self.needed(windows)
        sizes = (needed, self.gradients, self.moments, needed - self.gradients - self.moments, free)
        total, gradients, moments, forward, there = (f"{size / GIB:.1f}" for size in sizes)
        return (
            f"{total} GiB beside the weights (gradients {gradients}, optimizer {moments}, a pass of {windows} windows "
            f"{forward}), and {there} are free"
        )


def remedy(memory: Memory, config: ActorConfig, free: float, on_gpu: bool) -> str | None:
    """What to do if training does not fit into `free` bytes; None if it does."""
    part = math.ceil(config.batch_size / config.accumulate)
    needed = memory.needed(part)
    if needed <= free:
        return None
    fixed = memory.needed(0)
    switches = []
    if fixed > free and config.train != "lora":
        switches.append("--train lora" if config.train == "expert" else "--train expert or --train lora")
    room = (free - fixed) / memory.per_window if memory.per_window else math.inf
    if 1 <= room < part:
        switches.append(f"--accumulate {math.ceil(config.batch_size / math.floor(room))}")
    if fixed <= free and not config.checkpointing:  # these spare of a pass, and of nothing else
        switches.append("--checkpointing")
    if fixed <= free and on_gpu and config.dtype == "float32":
        switches.append("--dtype bfloat16")
    given = " or ".join(switches) if switches else "a larger machine"
    return f"training would take {memory.told(part, free)}; give {given}"


def free_memory(device: torch.device) -> float:
    """Bytes that are free on a GPU, or of this machine's main memory."""
    if device.type == "cuda":
        idle = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + idle
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def kept_bytes(forward: Callable[[], Any], module: nn.Module) -> int:
    """The most that is alive at once, of what `forward` makes, until its result is there; the module's weights aside."""
    with _Alive(module) as alive:
        result = forward()
    del result
    return alive.peak


class _Alive(TorchDispatchMode):
    """Counts the bytes of tensors that are made while it lasts, until they die."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._device = next(module.parameters()).device
        self._known = weakref.WeakSet(t.untyped_storage() for t in (*module.parameters(), *module.buffers()))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.device == self._device:
                storage = tensor.untyped_storage()
                if storage not in self._known:
                    self._known.add(storage)
                    self.now += storage.nbytes()
                    self.peak = max(self.peak, self.now)
                    weakref.finalize(storage, self._die, storage.nbytes())
        return result

    def _die(self, size: int) -> None:
        self.now -= size
