"""What the benchmarks share: how they time, and how they print."""

import contextlib
import io
import os
import platform
import time
from collections.abc import Callable, Sequence

import torch


def machine() -> str:
    """The facts that a number is worth nothing without."""
    load = os.getloadavg()[0]  # cores that others use, too, make every number below too small
    return (
        f"{platform.machine()}, {os.cpu_count()} cores (load {load:.1f}), Python {platform.python_version()}, "
        f"torch {torch.__version__}, {torch.get_num_threads()} threads"
    )


def print_header(what: str, columns: Sequence[str]) -> None:
    print(f"{what}\n\n{machine()}\n")
    print_row(columns)
    print_row(["---"] * len(columns))


def print_row(cells: Sequence[object]) -> None:
    print("| " + " | ".join(str(cell) for cell in cells) + " |", flush=True)


def per_second(work: Callable[[], object], seconds: float, warm_up: int = 2) -> float:
    """How often `work` runs in a second of wall clock: over at least `seconds`, after `warm_up` runs that do not count."""
    with contextlib.redirect_stderr(io.StringIO()):  # progress bars
        for _ in range(warm_up):
            work()
        count, start = 0, time.perf_counter()
        while (passed := time.perf_counter() - start) < seconds or not count:
            work()
            count += 1
    return count / passed
