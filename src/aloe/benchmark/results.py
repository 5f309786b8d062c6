"""The raw results of a suite: one small parquet file, one row a measurement. Tables and plots need nothing else."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import pandas as pd

KEY: Final = ["suite", "observations", "method", "seed", "round", "measurement"]
"""No two rows agree in all of these."""

PLAIN: Final = "plain"
"""The measurement in the world as it was trained in, each method acting as it does."""

COLUMNS: Final[dict[str, str]] = {
    "suite": "str",
    "observations": "str",
    "method": "str",
    "seed": "int64",
    "round": "int64",
    "measurement": "str",  # `PLAIN`, a perturbation of the world, or `start.CHOICE`
    "episodes": "int64",  # recorded up to this round, demonstrations included
    "env_steps": "int64",
    "human_steps": "int64",
    "takeovers": "int64",
    "successes": "int64",  # nobody watching
    "evaluation_episodes": "int64",
    "steps_to_success": "float64",  # NaN where nothing succeeded
    "throughput": "float64",  # successes an hour of simulated time
    "by_task": "string",  # JSON: instruction -> successes and episodes; missing where there is one task, and in older rows
    "collecting_seconds": "float64",  # of this round, as the three below; where resumed, of the last attempt
    "training_seconds": "float64",
    "evaluation_seconds": "float64",
    "shared_seconds": "float64",  # the part of the three above that belongs to the common start
    "config_hash": "str",  # of all options that decide the cell's rows, but for the seed
    "start_hash": "str",  # of those that shape the common start
    "trust": "string",  # JSON: numbers and warnings about the round's critics, as in `summary.json`; missing without any
    "ranking": "string",  # JSON: what `aloe rank` says of the round's policy version; missing where it was not asked
    "commit": "str",  # of the code that finished the cell; its start and first rounds may be of an older one
    "machine": "str",
}


class Results:
    """`<root>/<suite>.parquet`. Any number of processes may add rows."""

    def __init__(self, root: Path, suite: str) -> None:
        self.root = root
        self.suite = suite
        self.path = root / f"{suite}.parquet"

    def read(self) -> pd.DataFrame:
        """All rows, sorted by `KEY`.

        Raises:
            ValueError: there are none, or the file is no file of results.
        """
        if not self.path.exists():
            raise ValueError(f"there is no {self.path}; play the suite first: aloe benchmark {self.suite}")
        try:
            rows = pd.read_parquet(self.path)
        except (OSError, ValueError) as error:
            raise ValueError(f"{self.path} cannot be read ({error}); restore it, or delete it") from error
        if missing := [name for name in COLUMNS if name not in rows]:
            raise ValueError(
                f"{self.path} lacks the column {missing[0]}: it holds no results of `aloe benchmark`, or those of an "
                "older version; give another --results, or delete it"
            )
        return rows

    def finished(self, method: str, seed: int, config_hash: str) -> bool:
        """Whether a cell has been played under this config. A cell's rows are written together, so one tells of all."""
        return not self.cell(method, seed, config_hash).empty

    def cell(self, method: str, seed: int, config_hash: str) -> pd.DataFrame:
        """The rows of a cell under this config; none if it has not been played."""
        rows = self.read() if self.path.exists() else pd.DataFrame(columns=pd.Index(COLUMNS))
        return rows.loc[(rows["method"] == method) & (rows["seed"] == seed) & (rows["config_hash"] == config_hash)]

    def add(self, rows: list[dict[str, Any]] | pd.DataFrame) -> None:
        """Adds the rows of whole cells; older rows of these cells, under whatever config, go."""
        added = pd.DataFrame(rows, columns=pd.Index(COLUMNS)).astype(COLUMNS)
        with self._locked():
            if self.path.exists():
                kept = self.read()
                cells = set(zip(added["method"], added["seed"], strict=True))
                stays = [cell not in cells for cell in zip(kept["method"], kept["seed"], strict=True)]
                added = pd.concat([kept[stays], added], ignore_index=True).astype(COLUMNS)
            added = added.set_index(KEY).sort_index().reset_index()
            assert not added.duplicated(KEY).any(), "a measurement was made twice"
            partial = self.path.with_name(self.path.name + ".partial")
            added.to_parquet(partial, index=False, compression="zstd")
            os.replace(partial, self.path)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """One process at a time reads and replaces; the lock is on the folder, so that no file of it is left behind."""
        self.root.mkdir(parents=True, exist_ok=True)
        handle = os.open(self.root, os.O_RDONLY)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)


def check_one_start(rows: pd.DataFrame) -> None:
    """Raises ValueError if cells that should share a start were given different makings of it.

    Other code or another machine rounds otherwise and makes another start of the same options. A pair of cells would then
    compare the starts, too. What the clone reached tells: `throughput` counts every step of its evaluation.
    """
    clones = rows.loc[rows["round"] == 0]
    for (seed, _, measurement), mine in clones.groupby(["seed", "start_hash", "measurement"]):
        other = mine.loc[mine["throughput"] != mine["throughput"].iloc[0], "method"]
        if len(other):
            suite, first = mine["suite"].iloc[0], mine["method"].iloc[0]
            raise ValueError(
                f"seed {seed} of {suite}: {first} and {other.iloc[0]} did not begin alike ({measurement}), as their common "
                "start was made twice, and other code or another machine makes another; play all methods of the seed anew "
                "with another --results and --output-dir"
            )


def by_cell(rows: pd.DataFrame) -> dict[tuple[str, int], pd.DataFrame]:
    """Rows by (method, seed)."""
    cells = rows[["method", "seed"]].drop_duplicates().itertuples(index=False, name=None)
    return {(str(m), int(s)): rows.loc[(rows["method"] == m) & (rows["seed"] == s)] for m, s in cells}


def cell_seconds(rows: pd.DataFrame) -> float:
    """What a cell took by itself, the common start left out."""
    timed = rows[["collecting_seconds", "training_seconds", "evaluation_seconds"]].to_numpy().sum()
    return float(timed - rows["shared_seconds"].sum())


def start_seconds(rows: pd.DataFrame) -> float:
    """What the common start of a cell took."""
    return float(rows["shared_seconds"].sum())


def ranking_seconds(rows: pd.DataFrame) -> float:
    """What ranking the policy versions of a cell took; 0 where they were not ranked."""
    return sum(json.loads(text)["seconds"] for text in rows["ranking"].dropna())
