"""Seconds, memory and arithmetic of a piece of work, on a CPU or a GPU."""

import contextlib
import gc
import io
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from aloe.policies.memory import kept_bytes

PEAKS = {
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
"""FLOP a second in dense bfloat16 with sums in float32, without sparsity: NVIDIA's data sheets (H100, H200, A100, L40S) and
architecture white papers (Ada, GA102)."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """Of one run."""

    seconds: float
    bytes: int = 0
    flop: float = 0


class Meter:
    """Measures work on a policy. Work is a function of a number of windows."""

    def __init__(self, policy: nn.Module, device: torch.device, seconds: float) -> None:
        self._policy, self.device, self._seconds = policy, device, seconds
        self.peak = peak(device)[0]
        self.seconds: dict[str, tuple[float, float | None]] = {}
        """Row -> seconds a window, and those of the naive way."""
        self.fits: dict[str, tuple[float, float]] = {}
        """Learning what -> bytes whatever the batch, and for each window."""

    def cost(
        self,
        work: Callable[[int], object],
        count: int,
        module: nn.Module | None = None,
        *,
        flop: bool = True,
        seconds_only: bool = False,
    ) -> Cost:
        """module: whose own bytes do not count as memory, by default the policy."""
        if seconds_only:
            return Cost(seconds=self._time(lambda: work(count)))
        counted = self.flop(work, 2) / 2 * count if flop else 0
        size = self.bytes(work, count, module)
        return Cost(seconds=self._time(lambda: work(count)), bytes=size, flop=counted)

    def flop(self, work: Callable[[int], object], count: int) -> float:
        """Of matrix products and convolutions. Attention as products: not all of its fused kernels are counted."""
        counter = FlopCounterMode(display=False)
        with sdpa_kernel(SDPBackend.MATH), counter:
            work(count)
        return counter.get_total_flops()

    def bytes(self, work: Callable[[int], object], count: int, module: nn.Module | None = None) -> int:
        """The most that is alive at once of what two runs make: an optimizer has its moments from the first on."""
        gc.collect()
        if self.device.type == "cpu":
            return kept_bytes(lambda: [work(count), work(count)], module or self._policy)
        torch.cuda.reset_peak_memory_stats(self.device)
        before = sum(p.numel() * p.element_size() for p in self._policy.parameters())
        for _ in range(2):
            work(count)
        return torch.cuda.max_memory_allocated(self.device) - before

    def _once(self, work: Callable[[], object]) -> float:
        start = time.perf_counter()
        with contextlib.redirect_stderr(io.StringIO()):  # progress bars
            work()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter() - start

    def _time(self, work: Callable[[], object]) -> float:
        """Median seconds of a run; one that lasts long is measured once, and the first never counts."""
        first, times = self._once(work), []
        if first > 3 * self._seconds:
            return first
        while sum(times) < self._seconds or len(times) < 3:
            times.append(self._once(work))
        return statistics.median(times)

    def in_turns(self, works: list[Callable[[], object]], turns: int = 20) -> list[float]:
        """Median milliseconds of each, measured in turns, since a machine has moods."""
        times = [[1000 * self._once(work) for work in works] for _ in range(turns + 1)][1:]
        return [statistics.median(column) for column in zip(*times, strict=True)]


def peak(device: torch.device) -> tuple[float, str]:
    """FLOP a second, and what they are."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"
    for card, flop in PEAKS.items():
        if card in name:
            return flop, f"{name}: peak {flop / 1e12:.0f} TFLOP/s in dense bfloat16"
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    left, right = (torch.randn(2048, 2048, dtype=dtype, device=device) for _ in range(2))
    times = []
    for _ in range(5):
        start = time.perf_counter()
        (left @ right).sum().item()
        times.append(time.perf_counter() - start)
    flop = 2 * 2048**3 / min(times)
    return flop, f"{name}: a product of 2048 x 2048 {dtype} reaches {flop / 1e12:.2f} TFLOP/s"
