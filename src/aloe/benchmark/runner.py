"""Plays the cells of a suite over all cores, each in a process of its own, and says how long the rest will take."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

from aloe.benchmark.cells import Cell
from aloe.benchmark.results import PLAIN, Results, by_cell, cell_seconds, ranking_seconds, start_seconds
from aloe.benchmark.start import StartConfig, check_folder, is_made
from aloe.benchmark.suites import Suite
from aloe.loop import Say
from aloe.policies.bundle import check_device
from aloe.rank import open_run
from aloe.run import to_plain
from aloe.training import Device

_PACKAGES: Final = Path(__file__).resolve().parents[2]
"""Where `aloe` was imported from: the children must import the same one."""
_ENVIRONMENT: Final = {
    "OMP_NUM_THREADS": "1",  # as many cells as cores: a second thread of one would only take a core from another
    "OMP_WAIT_POLICY": "PASSIVE",
    "TQDM_DISABLE": "1",
}
_POLL_SECONDS: Final = 0.2


@dataclass(frozen=True, kw_only=True)
class Job:
    """What one process does: make a common start, play a cell, or let the critics rank a finished cell's policies."""

    what: Literal["start", "cell", "rank"]
    cell: Cell
    """For a start, any cell that begins there."""

    @property
    def name(self) -> str:
        return {"start": self.cell.start_name, "cell": self.cell.name, "rank": f"{self.cell.name}-rank"}[self.what]

    @property
    def log(self) -> Path:
        """What the process says."""
        return self.cell.folder / f"{self.name}.log"

    def launch(self) -> subprocess.Popen[bytes]:
        self.cell.folder.mkdir(parents=True, exist_ok=True)
        paths = [str(_PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])]
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "aloe.benchmark.cells"],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=os.environ | _ENVIRONMENT | {"PYTHONPATH": os.pathsep.join(paths)},
                process_group=0,  # Ctrl-C is for the parent, which then hangs up
            )
        assert process.stdin is not None
        order = {"what": self.what, "cell": to_plain(self.cell), "hash": self.cell.config_hash}
        process.stdin.write(json.dumps(order).encode() + b"\n")
        process.stdin.flush()  # but not closed: a child ends when its stdin does
        return process

    def last_words(self, returncode: int) -> str:
        """Why it failed: what it said last, and before that the signal that ended it, if one did."""
        lines = self.log.read_text(errors="replace").strip().splitlines()
        said = lines[-1] if lines else "(nothing)"
        if returncode >= 0:
            return said
        hint = " (out of memory? give fewer --jobs)" if -returncode == signal.SIGKILL else ""
        return f"killed by {signal.Signals(-returncode).name}{hint} after it said: {said}"


@dataclass(frozen=True, kw_only=True)
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    since: float


def run_benchmark(
    suite: Suite,
    methods: Sequence[str],
    seeds: Sequence[int],
    *,
    folder: Path,
    results: Path,
    jobs: int | None = None,
    rank: bool = False,
    device: Device = "cpu",
    say: Say = print,
) -> None:
    """Plays every cell that is not finished. The same call again goes on where it was stopped, also by a kill.

    Args:
        rank: play nothing, but let the critics rank the policy versions of every finished cell (`aloe.rank`).
        folder: gets a folder for the suite with the runs in it; needed until the cells are finished.
        results: gets `<suite>.parquet`.
        jobs: cells at once; by default one a core.
        device: where policies and critics compute; all cells share one GPU.

    Raises:
        ValueError: an unknown method or seed, no GPU, folders of another config, cells that cannot be ranked, or cells that
            failed (after all others).
    """
    if not methods or not seeds:
        raise ValueError("nothing to play: name at least one method and one seed")
    if len(set(methods)) < len(methods) or len(set(seeds)) < len(seeds):
        raise ValueError("a method or a seed is named twice; once is enough")
    jobs = jobs if jobs is not None else len(os.sched_getaffinity(0))
    if jobs < 1:
        raise ValueError("at least one cell must be played at a time: --jobs")
    check_device(device)  # once, not in every cell
    cells = [Cell.of(suite, method, seed, folder, results, device) for seed in seeds for method in methods]
    if rank:
        left = [cell for cell in cells if not cell.is_ranked]
        check_can_be_ranked(left)
        waiting, done = [Job(what="rank", cell=cell) for cell in left], "ranked"
    else:
        left = [cell for cell in cells if not cell.is_finished]
        check_starts(left)
        waiting, done = [Job(what="cell", cell=cell) for cell in left], "finished"
    if len(left) < len(cells):
        say(f"{len(cells) - len(left)} of {len(cells)} cells are {done} already")
    _Play(suite.name, cells, waiting, jobs, say).run()


def check_starts(cells: Sequence[Cell]) -> None:
    """Raises ValueError if methods of one seed cannot share a start, or a folder belongs to another config."""
    first: dict[str, Cell] = {}
    for cell in cells:
        other = first.setdefault(cell.start_name, cell)
        if StartConfig.of(cell.config) != StartConfig.of(other.config):
            raise ValueError(
                f"{cell.method} and {other.method} differ in options that shape the common start of a seed; "
                "a variant may not change them: make a suite for each"
            )
        check_folder(cell.start, StartConfig.of(cell.config))
        check_folder(cell.root, cell.config)


def check_can_be_ranked(cells: Sequence[Cell]) -> None:
    """Raises ValueError if a cell is not finished, its folder is gone or another run's, or it has nothing that could be
    ranked."""
    for cell in cells:
        if not cell.is_finished:
            raise ValueError(f"{cell.name} is not finished, so it cannot be ranked; first play it, without --rank")
        if not cell.root.is_dir():
            raise ValueError(
                f"{cell.name} cannot be ranked, its folder {cell.root} is gone; play it anew with another --results"
            )
        run, config, _ = open_run(cell.root)
        # As for rows, options of other methods do not count.
        if replace(cell, config=config).config_hash != cell.config_hash:
            raise ValueError(
                f"{cell.name} cannot be ranked, its folder {cell.root} was made with another config than the rows in "
                f"{cell.results}; name the --output-dir and --results that belong together"
            )
        rows = Results(cell.results, cell.suite).cell(cell.method, cell.seed, cell.config_hash)
        for row in rows.loc[rows["measurement"] == PLAIN].itertuples():
            measured = run.done(int(row.round), "eval")
            if measured is None or measured["success"] != row.successes / row.evaluation_episodes:
                raise ValueError(
                    f"{cell.name} cannot be ranked, its folder {cell.root} is not the run that is in {cell.results}: they "
                    f"differ in what was measured in round {row.round}; name the --output-dir and --results that belong "
                    "together"
                )


class _Play:
    """The cells of one call, on their way."""

    def __init__(self, suite: str, cells: list[Cell], jobs_left: list[Job], jobs: int, say: Say) -> None:
        self.suite, self.cells, self.jobs, self.say = suite, cells, jobs, say
        self.waiting: list[Job] = []
        self.begun: set[str] = set()
        """Starts that are there."""
        for start in dict.fromkeys(job.cell.start_name for job in jobs_left):
            mine = [job for job in jobs_left if job.cell.start_name == start]
            begun = all(job.cell.root.exists() for job in mine)  # each with its copy of the start
            if begun or is_made(mine[0].cell.start, mine[0].cell.perturbations):
                self.begun.add(start)
            else:
                self.waiting.append(Job(what="start", cell=mine[0].cell))
            self.waiting += mine
        self.running: list[_Running] = []
        self.failed: dict[str, str] = {}
        """Name of a job -> why, and where its log is."""

    def run(self) -> None:
        with self._no_child_left():
            while self.waiting or self.running:
                while len(self.running) < self.jobs and (job := self._next()):
                    self.waiting.remove(job)
                    self.running.append(_Running(job=job, process=job.launch(), since=time.monotonic()))
                time.sleep(_POLL_SECONDS)
                for one in [one for one in self.running if one.process.poll() is not None]:
                    self.running.remove(one)
                    self._ended(one)
        if self.failed:
            what = "; ".join(f"{job}: {why}" for job, why in self.failed.items())
            raise ValueError(f"{len(self.failed)} of {self.suite} failed: {what}; the same command tries them again")

    def _next(self) -> Job | None:
        """The first job whose start is there."""
        return next((job for job in self.waiting if job.what == "start" or job.cell.start_name in self.begun), None)

    def _ended(self, one: _Running) -> None:
        job, took = one.job, time.monotonic() - one.since
        if one.process.returncode:
            why = job.last_words(one.process.returncode)
            self.failed[job.name] = f"{why} ({job.log})"
            self.say(f"{job.name} failed after {duration(took)}: {why}")
            if job.what == "start":  # none of its cells can be played
                self.waiting = [other for other in self.waiting if other.cell.start_name != job.cell.start_name]
            return
        if job.what == "start":
            self.begun.add(job.cell.start_name)
        if job.what != "cell":
            self.say(f"{self.suite} {job.name}: made in {duration(took)}; {self._outlook()}")
        else:
            rows = Results(job.cell.results, self.suite).cell(job.cell.method, job.cell.seed, job.cell.config_hash)
            last = rows[rows["measurement"] == PLAIN].iloc[-1]
            self.say(
                f"{self.suite} {job.name}: {last['successes'] / last['evaluation_episodes']:.0%} at round "
                f"{last['round']}, {duration(took)}; {self._outlook()}"
            )

    def _outlook(self) -> str:
        """How much is left, and for how long."""
        left = [job.what for job in [*self.waiting, *(one.job for one in self.running)] if job.what != "start"]
        if not left:
            return "nothing left"
        seconds = self.seconds_left()
        about = "time left not known yet" if seconds is None else f"about {duration(seconds)} left"
        return f"{len(left)} of {len(self.cells)} cells to {'rank' if 'rank' in left else 'play'}, {about}"

    def seconds_left(self) -> float | None:
        """From the measured seconds of the suite's finished cells: of the same method, or of all. None before the first."""
        results = Results(self.cells[0].results, self.suite)
        if not results.path.exists():
            return None
        finished = by_cell(results.read())
        ranking = any(job.what == "rank" for job in [*self.waiting, *(one.job for one in self.running)])
        cost = {key: ranking_seconds(rows) if ranking else cell_seconds(rows) for key, rows in finished.items()}
        cost = {key: seconds for key, seconds in cost.items() if seconds}
        if not cost:
            return None
        start = [start_seconds(rows) for rows in finished.values()]

        def expected(job: Job) -> float:
            same = [seconds for (method, _), seconds in cost.items() if method == job.cell.method] or [*cost.values()]
            return mean(start) if job.what == "start" else mean(same)

        now = time.monotonic()
        total = sum(expected(job) for job in self.waiting)
        total += sum(max(0.0, expected(one.job) - (now - one.since)) for one in self.running)
        longest = max([0.0, *(expected(job) for job in self.waiting)])
        return max(total / self.jobs, longest)

    @contextmanager
    def _no_child_left(self) -> Iterator[None]:
        """Hangs up on every child that still plays, whatever ends the block."""
        try:
            yield
        finally:
            for one in self.running:
                assert one.process.stdin is not None
                one.process.stdin.close()
            for one in self.running:
                one.process.wait()


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def duration(seconds: float) -> str:
    """42 s, 12 min, 3:05 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60}:{minutes % 60:02d} h"
