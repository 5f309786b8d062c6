"""`aloe benchmark` and `aloe benchmark-report`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from aloe.benchmark.runner import run_benchmark
from aloe.benchmark.suites import Suite, find_suite, method_config
from aloe.rank import UNRANKED


def _say(line: str) -> None:
    print(line, flush=True)  # plain and at once: it runs for hours, with its output in a file


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """Play a suite: every method on every seed, over all cores. Goes on where it stopped; repeats no finished cell."""

    suite: tyro.conf.Positional[str]
    """precision, assembly or instructions (pictures), the same with -state (state observations), -short-state (chunks of
    four actions), -reactive-state (a look after every action), -long-state (ten rounds) or -few-takeovers-state (five a
    round instead of ten), precision-wrist (pictures, a camera in the hand), flawless-state, novice-state or
    ablations-state."""
    methods: tuple[str, ...] = ()
    """What is compared; by default everything that the suite has, with --rank everything that can be ranked."""
    seeds: tuple[int, ...] = ()
    """By default three."""
    output_dir: Path = Path("runs/benchmark")
    """Gets the runs; they may be deleted once their cells are finished."""
    results: Path = Path("results")
    """Gets SUITE.parquet."""
    jobs: int | None = None
    """Cells at once; one a core by default."""
    device: Literal["cpu", "cuda"] = "cpu"
    """Where policies and critics compute. cuda: all cells share one GPU; worth it with pictures."""
    rank: bool = False
    """Play nothing, but let the critics rank the policy versions of these cells, all finished, as `aloe rank` does."""

    def methods_of(self, suite: Suite) -> tuple[str, ...]:
        """Those asked for, or all."""
        if self.methods or not self.rank:
            return self.methods or tuple(suite.variants)
        usual = {name: method_config(suite, name, suite.first_seed).method for name in suite.variants}
        return tuple(name for name, method in usual.items() if method not in UNRANKED)

    def main(self) -> None:
        suite = find_suite(self.suite)
        run_benchmark(
            suite,
            self.methods_of(suite),
            self.seeds or tuple(range(suite.first_seed, suite.first_seed + 3)),
            folder=self.output_dir,
            results=self.results,
            jobs=self.jobs,
            rank=self.rank,
            device=self.device,
            say=_say,
        )
        _say(f"all of it is in {self.results / f'{suite.name}.parquet'}; aloe benchmark-report {suite.name} shows it")


@dataclass(frozen=True, kw_only=True)
class BenchmarkReport:
    """Write the tables and plots of suites into the docs, from their parquet files alone."""

    suites: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """Suites, or `overview`; by default all that have results, and the overview."""
    results: Path = Path("results")
    page: Path = Path("docs/results.md")
    """Page with a section for every suite; the plots go beside it."""

    def main(self) -> None:
        # Its statistics take six seconds to import, and are an extra.
        from aloe.benchmark.report import OVERVIEW, with_results, write_report

        names = self.suites or (*with_results(self.results), OVERVIEW)
        for path in write_report(names, self.results, self.page):
            _say(f"wrote {path}")
