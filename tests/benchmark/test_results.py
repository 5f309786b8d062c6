"""The parquet file of a suite: who writes, what replaces what."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from aloe.benchmark.results import Results, cell_seconds, ranking_seconds, start_seconds


def row(method: str = "aloe", seed: int = 0, index: int = 0, **values: Any) -> dict[str, Any]:
    return {
        "suite": "small",
        "observations": "state",
        "method": method,
        "seed": seed,
        "round": index,
        "measurement": "plain",
        "episodes": 10 + 30 * index,
        "env_steps": 1000,
        "human_steps": 50,
        "takeovers": 5,
        "successes": 6,
        "evaluation_episodes": 10,
        "steps_to_success": 20.0,
        "throughput": 900.0,
        "by_task": None,
        "collecting_seconds": 1.0,
        "training_seconds": 2.0,
        "evaluation_seconds": 4.0,
        "shared_seconds": 0.0,
        "config_hash": "abc",
        "start_hash": "abc",
        "commit": "1234567",
        "machine": "here",
        "trust": None,
        "ranking": None,
        **values,
    }


def test_rows_of_other_cells_stay_and_rows_of_the_same_cell_are_replaced(tmp_path):
    results = Results(tmp_path, "small")
    results.add([row("sft"), row("sft", index=1)])
    results.add([row("aloe", config_hash="old"), row("aloe", index=1, config_hash="old")])
    results.add([row("aloe", config_hash="new", successes=9)])
    rows = results.read()
    assert rows[["method", "round", "config_hash"]].values.tolist() == [
        ["aloe", 0, "new"],
        ["sft", 0, "abc"],
        ["sft", 1, "abc"],
    ]
    assert rows["successes"].tolist() == [9, 6, 6]
    assert results.finished("aloe", 0, "new")
    assert not results.finished("aloe", 0, "old")
    assert not results.finished("aloe", 1, "new")


def test_processes_that_add_at_once_lose_no_rows(tmp_path):
    command = [sys.executable, __file__, str(tmp_path)]
    adding = [subprocess.Popen([*command, *map(str, range(first, first + 5))]) for first in (0, 5, 10)]
    assert [process.wait() for process in adding] == [0, 0, 0]
    assert Results(tmp_path, "small").read()["seed"].tolist() == sorted([*range(15), *range(15)])
    assert [path.name for path in tmp_path.iterdir()] == ["small.parquet"]


def test_no_success_is_kept_as_no_steps_to_success(tmp_path):
    results = Results(tmp_path, "small")
    results.add([row(steps_to_success=None, successes=0)])
    assert results.read()["steps_to_success"].isna().all()


def test_the_common_start_is_no_cost_of_a_cell():
    # round 0 is shared whole (7 s), round 1 but for its collection (1 s of 7): 14 - 8 = 6
    rows = pd.DataFrame([row(shared_seconds=7.0), row(index=1, shared_seconds=1.0)])
    assert cell_seconds(rows) == pytest.approx(6.0)
    assert start_seconds(rows) == pytest.approx(8.0)


def test_the_seconds_of_a_ranking_are_those_of_its_versions():
    rows = pd.DataFrame([row(), row(index=1, ranking='{"seconds": 60.5}'), row(index=2, ranking='{"seconds": 2.0}')])
    assert ranking_seconds(rows) == pytest.approx(62.5)


def test_missing_and_foreign_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"there is no .*small.parquet; play the suite first: aloe benchmark small"):
        Results(tmp_path, "small").read()
    pd.DataFrame({"x": [1]}).to_parquet(tmp_path / "small.parquet")
    with pytest.raises(ValueError, match=r"lacks the column suite: it holds no results"):
        Results(tmp_path, "small").read()
    (tmp_path / "small.parquet").write_bytes(b"no parquet")
    with pytest.raises(ValueError, match="cannot be read"):
        Results(tmp_path, "small").read()


if __name__ == "__main__":
    for number in sys.argv[2:]:
        Results(Path(sys.argv[1]), "small").add([row(seed=int(number), index=index) for index in range(2)])
