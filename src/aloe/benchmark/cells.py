"""One cell of the benchmark: (suite, method, seed), played in a process of its own with one thread."""

import json
import os
import platform
import shutil
import subprocess
import sys
import threading
import time
import traceback
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import pandas as pd
import torch

from aloe.benchmark.results import PLAIN, Results, check_one_start
from aloe.benchmark.start import (
    CHOICE,
    StartConfig,
    begin_cell,
    check_folder,
    make_start,
    measure_more,
    stage_of,
    waiting_lock,
)
from aloe.benchmark.suites import BUDGET, Suite, method_config
from aloe.config import RunConfig, unread_groups
from aloe.loop import Say, run_circle
from aloe.rank import ESTIMATORS, rank_run
from aloe.run import RunFolder, digest, from_plain, to_plain
from aloe.training import Device

RANK_STEPS: Final[int] = BUDGET["fit"]["steps"]
"""Steps of each estimator for each policy version that is ranked: those of one round of a suite."""


@dataclass(frozen=True, kw_only=True)
class Cell:
    """What is to be played, and where. Knows all that it needs: it is sent to another process."""

    suite: str
    perturbations: tuple[str, ...]
    method: str
    seed: int
    config: RunConfig
    folder: Path
    """Of the suite: holds the starts and the cells."""
    start_name: str
    """Folder of the start: that of the seed, or, where the variant may and does change what shapes it, its own."""
    results: Path
    """Folder of the parquet files."""
    device: Device = "cpu"
    """Where policies and critics compute. A GPU rounds otherwise and repeats nothing to the bit; rows name it."""

    @staticmethod
    def of(suite: Suite, method: str, seed: int, folder: Path, results: Path, device: Device = "cpu") -> "Cell":
        config = method_config(suite, method, seed)
        start, usual = StartConfig.of(config), StartConfig.of(replace(suite.config, seed=seed))
        own = suite.own_starts and start != usual
        return Cell(
            suite=suite.name,
            perturbations=suite.perturbations,
            method=method,
            seed=seed,
            config=config,
            folder=folder / suite.name,
            start_name=f"base-{seed}" + (f"-{_start_hash(config)}" if own else ""),
            results=results,
            device=device,
        )

    @property
    def name(self) -> str:
        return f"{self.method}-{self.seed}"

    @property
    def root(self) -> Path:
        return self.folder / self.name

    @property
    def start(self) -> Path:
        return self.folder / self.start_name

    @property
    def at_last(self) -> tuple[str, ...]:
        """What the last policy is measured in besides the plain evaluation."""
        chooses = self.config.best_of > 1 and not self.config.is_played_with_critics
        return self.perturbations + ((CHOICE,) if chooses else ())

    def measured(self, index: int) -> dict[str, str]:
        """Measurements of a round's policy -> the stages that make them."""
        more = self.at_last if index == self.config.rounds else self.perturbations if index == 0 else ()
        return {PLAIN: "eval"} | {name: stage_of(name) for name in more}

    @property
    def config_hash(self) -> str:
        """Of all that decides the cell's rows, the number of rounds included, but for the seed: equal for all seeds of a
        method that may be averaged. Options of other methods do not count: when they change, this cell stays finished."""
        plain = to_plain(replace(self.config, seed=0))
        # A cell records all that it learns from, and where its pictures are kept decides nothing.
        unread = unread_groups(self.config.method) | {"experience", "cache"}
        plain = {name: value for name, value in plain.items() if name not in unread}
        return digest({"config": plain, "perturbations": self.perturbations})[:12]

    @property
    def is_finished(self) -> bool:
        return Results(self.results, self.suite).finished(self.method, self.seed, self.config_hash)

    @property
    def is_ranked(self) -> bool:
        rows = Results(self.results, self.suite).cell(self.method, self.seed, self.config_hash)
        return bool(rows["ranking"].notna().any())


def _start_hash(config: RunConfig) -> str:
    """Of what shapes the common start, but for the seed."""
    return digest(to_plain(StartConfig.of(replace(config, seed=0))))[:6]


def play_start(cell: Cell, say: Say = print) -> RunFolder:
    """Makes what all cells of this seed start from, unless it is there."""
    return make_start(cell.config, cell.perturbations, cell.start, say, cell.device)


def play_cell(cell: Cell, say: Say = print) -> None:
    """Plays a cell to its end and adds its rows to the results; goes on where it was killed, and does nothing when done."""
    with waiting_lock(cell.root.with_name(cell.name + ".lock")):
        if cell.is_finished:
            return
        commit = code_version()  # before the hours in which the code may change
        if not cell.root.exists():
            begin_cell(cell.config, play_start(cell, say), cell.root)
        check_folder(cell.root, cell.config)
        check_start(cell)
        run = run_circle(cell.config, cell.root, say=say, device=cell.device)
        measure_more(cell.config, run, cell.config.rounds, cell.at_last, say, cell.device)
        Results(cell.results, cell.suite).add(cell_rows(cell, run, commit))
        shutil.rmtree(run.cache, ignore_errors=True)  # the largest part of a run, and it can be made anew


def check_start(cell: Cell) -> None:
    """Raises ValueError if this cell's start is another making than that of the seed's finished cells, before hours go into
    what cannot be compared."""
    results, run = Results(cell.results, cell.suite), RunFolder(cell.root)
    if not results.path.exists():
        return
    measured = {name: run.done(0, stage) for name, stage in cell.measured(0).items()}
    mine = pd.DataFrame(
        [{"measurement": name, "throughput": found["throughput"]} for name, found in measured.items() if found]
    )
    start = _start_hash(cell.config)
    mine = mine.assign(suite=cell.suite, method=cell.method, seed=cell.seed, round=0, start_hash=start)
    rows = results.read()
    others = rows.loc[(rows["seed"] == cell.seed) & (rows["method"] != cell.method), [*mine]]
    check_one_start(pd.concat([others, mine]))


def rank_cell(cell: Cell, say: Say = print) -> None:
    """Adds to the rows of a finished cell what `aloe rank` says of its policy versions; goes on where it was killed."""
    with waiting_lock(cell.root.with_name(cell.name + ".lock")):
        if cell.is_ranked:
            return
        before = time.monotonic()
        content = rank_run(cell.root, RANK_STEPS, ESTIMATORS, say, cell.device)
        seconds = (time.monotonic() - before) / len(content["versions"])
        results = Results(cell.results, cell.suite)
        rows = results.cell(cell.method, cell.seed, cell.config_hash).copy()
        for version in content["versions"]:
            mine = (rows["round"] == version["version"]) & (rows["measurement"] == PLAIN)
            rows.loc[mine, "ranking"] = json.dumps(version | {"steps": RANK_STEPS, "seconds": round(seconds, 1)})
        results.add(rows)
        shutil.rmtree(RunFolder(cell.root).cache, ignore_errors=True)


def cell_rows(cell: Cell, run: RunFolder, commit: str) -> list[dict[str, Any]]:
    """The measurements of a finished run: every round, and what else the first and the last were measured in."""
    rows = []
    for entry in json.loads((run.root / "summary.json").read_text())["rounds"]:
        index = entry["round"]
        for measurement, stage in cell.measured(index).items():
            rows.append(
                {
                    "suite": cell.suite,
                    "observations": cell.config.world.observations,
                    "method": cell.method,
                    "seed": cell.seed,
                    "round": index,
                    "measurement": measurement,
                    **{name: entry[name] for name in ("episodes", "env_steps", "human_steps", "takeovers")},
                    **_success(run, index, stage, cell.config.eval.episodes),
                    **_seconds(run, index, stage, entry["seconds"]),
                    "config_hash": cell.config_hash,
                    "start_hash": _start_hash(cell.config),
                    "commit": commit,
                    "machine": machine(cell.device),
                    "trust": _trust(entry) if measurement == PLAIN else None,
                    "ranking": None,
                }
            )
    return rows


def _trust(entry: dict[str, Any]) -> str | None:
    """What the round's summary says of its critics, if it has any."""
    return json.dumps({name: entry[name] for name in ("trust", "warnings")}) if "trust" in entry else None


def _success(run: RunFolder, index: int, stage: str, episodes: int) -> dict[str, Any]:
    report = run.done(index, stage)
    assert report is not None, f"a finished run has measured {stage} in round {index}"
    return {
        "successes": round(report["success"] * episodes),
        "evaluation_episodes": episodes,
        "steps_to_success": report["steps_to_success"],
        "throughput": report["throughput"],
        "by_task": json.dumps(report["by_task"]) if "by_task" in report else None,
    }


def _seconds(run: RunFolder, index: int, stage: str, of_round: dict[str, float]) -> dict[str, float]:
    """Where the time of a round went. Other rows than the plain one hold what their own measurement took, so that a sum
    counts nothing twice; the common start ends with the collection of round 1."""
    done = run.done(index, stage) or {}
    training, collecting, evaluation = 0.0, 0.0, done["seconds"]
    if stage == "eval":
        collecting = sum(of_round.get(name, 0.0) for name in ("demos", "collect"))
        evaluation = sum(of_round.get(name, 0.0) for name in ("eval", "trust"))
        training = sum(of_round.values()) - collecting - evaluation
    shared = training + collecting + evaluation if index == 0 else collecting if index == 1 else 0.0
    return {
        "collecting_seconds": collecting,
        "training_seconds": training,
        "evaluation_seconds": evaluation,
        "shared_seconds": shared,
    }


def code_version() -> str:
    """The commit of the code that runs, with `-dirty` where files of it differ; the package's version outside of git."""
    here = Path(__file__).parents[1]

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", here, *arguments], capture_output=True, text=True)
        except FileNotFoundError:  # no git
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", "run.py") is None:
        return f"aloe-vla {version('aloe-vla')}"
    return f"{git('rev-parse', '--short=7', 'HEAD')}{'-dirty' if git('status', '--porcelain', '--', '.') else ''}"


def machine(device: Device) -> str:
    """What the seconds of a row were measured on."""
    models = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    model = models[0].partition(":")[2].strip() if models else platform.machine()
    gpu = f", {torch.cuda.get_device_name()}" if device == "cuda" else ""
    return f"{os.cpu_count()} cores ({model}){gpu}, torch {torch.__version__}"


def main() -> None:
    """A process of `runner.py`: reads a line of stdin, what to play, and ends when stdin does, that is with its parent."""
    order = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_follow_parent, daemon=True).start()
    torch.set_num_threads(1)

    def say(line: str) -> None:
        print(line, flush=True)

    try:
        cell = from_plain(Cell, order["cell"])
        if cell.config_hash != order["hash"]:
            raise ValueError("the code has changed since the benchmark was started; start it again")
        {"start": play_start, "cell": play_cell, "rank": rank_cell}[order["what"]](cell, say)
    except (ValueError, OSError) as error:
        traceback.print_exc()  # a log is all that is left of hours
        sys.stderr.flush()  # the parent shows the last line, which is to be the short one
        print(f"{' '.join(str(error).split())}", flush=True)
        sys.exit(2)


def _follow_parent() -> None:
    # Nothing comes: it returns when the parent's end of the pipe is closed. Not through `sys.stdin`, whose lock this thread
    # would hold when the process ends in peace.
    os.read(sys.stdin.fileno(), 1)
    os._exit(1)


if __name__ == "__main__":
    main()
