"""Damaged inputs, some hundred of those of `benchmarks/store_fuzz.py`."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

FUZZ = [sys.executable, "benchmarks/store_fuzz.py"]


@pytest.mark.slow
def test_damaged_stores_and_foreign_datasets_end_in_one_line_or_a_correct_read() -> None:
    found = subprocess.run(
        [*FUZZ, "--mutations", "280", "--seed", "3"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=300,
    )
    assert found.returncode == 0, found.stdout[-3000:] + found.stderr[-1000:]
    # 40 of each of seven; in each, something was refused and something was not.
    rows = re.findall(
        r"^\| ((?:store|foreign).*?) \| (\d+) \| (\d+) \| (\d+) \| (\d+) \| 0 \|$", found.stdout, re.MULTILINE
    )
    assert len(rows) == 7
    for name, *numbers in rows:
        refused, *read = map(int, numbers)
        assert refused + sum(read) == 40, name
        assert refused >= 10, name
        assert sum(read) >= 5, name
