import ast
import os
import re
import subprocess
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[1] / "examples/minimal_aloe.py"


def test_minimal_example_runs_every_stage_and_prints_a_row_a_round():
    run = subprocess.run(
        [sys.executable, str(EXAMPLE), "--quick", "--rounds", "1"],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"MUJOCO_GL": "egl"},
    )
    assert run.returncode == 0, run.stderr
    header, rule, *rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in run.stdout.splitlines()]
    assert header[:3] == ["round", "episodes", "by hand"]
    assert rule == ["---"] * len(header)
    # 3 demonstrations, then 3 episodes in the round, and one more fragment by hand for each that the policy fails.
    assert [row[:2] for row in rows] == [["0", "3"], ["1", "6"]]
    assert rows[0][2] == "3"
    assert 3 <= int(rows[1][2]) <= 6
    assert rows[0][3:5] == ["-", "-"]  # no critics yet
    assert all(re.fullmatch(r"[+-]\d\.\d{3}", cell) for cell in rows[1][3:5])
    for row in rows:
        success, steps = float(row[5]), float(row[6])
        assert 0 <= success <= 1
        assert 1 <= steps <= 60


def test_minimal_example_is_short():
    assert len(EXAMPLE.read_text().splitlines()) <= 250


def test_minimal_example_imports_only_torch_numpy_and_the_world():
    imported = set()
    for node in ast.walk(ast.parse(EXAMPLE.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module
            assert node.level == 0
            imported.add(node.module.split(".")[0])
    assert imported - sys.stdlib_module_names == {"torch", "numpy", "metaworld"}
