"""`benchmarks/offline_round.py`, whose figures stand in docs/results.md, on a real run."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from aloe.commands import run_command
from aloe.config import PRESETS, CollectConfig
from aloe.loop import run_circle

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
import offline_round

TINY = PRESETS["tiny"]
CONFIG = replace(
    TINY,
    rounds=1,
    seed=7,
    method="filtered",
    collect=CollectConfig(episodes=2),
    world=replace(TINY.world, observations="state"),
    policy=replace(TINY.policy, execute=2),
)


def test_offline_rounds_are_those_of_aloe_run_and_are_measured_beside_where_they_began(tmp_path, monkeypatch, capsys):
    offline = PRESETS["offline"]
    brief = replace(
        offline,
        improve=replace(offline.improve, steps=3),
        window=replace(offline.window, horizon=4),
        critic=TINY.critic,
    )
    monkeypatch.setitem(PRESETS, "offline", brief)
    monkeypatch.chdir(tmp_path)
    run_circle(CONFIG, Path("runs/some"), say=lambda _: None)
    capsys.readouterr()

    offline_round.main(
        offline_round.Config(runs=(Path("runs/some"),), versions=(1,), methods=("filtered",), rounds=2, episodes=2)
    )
    (row,) = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| runs/some")]
    assert [cell.count("%") for cell in row] == [0, 0, 3, 3]

    given = ["--policy.path", "runs/some/rounds/001/pretrained_model", "--policy.execute", "2", "--seed", "7"]
    given += ["--experience.rollouts.root", "runs/some/experience", "--method", "filtered", "--output-dir", "by_hand"]
    run_command([*given, "--rounds", "2"])
    made, by_hand = Path("runs/offline/runs/some-v1-filtered-2"), Path("by_hand")
    assert (made / "config.json").read_bytes() == (by_hand / "config.json").read_bytes()
    first, second = (Path(f"rounds/00{i}/pretrained_model/model.safetensors") for i in (1, 2))
    assert (made / second).read_bytes() == (by_hand / second).read_bytes()
    assert len({(made / second).read_bytes(), (made / first).read_bytes(), Path("runs/some", first).read_bytes()}) == 3


def test_an_unknown_method_is_named():
    with pytest.raises(ValueError, match=r"unknown: filterd; there are sft, dagger, filtered"):
        offline_round.Config(runs=(), methods=("filterd", "aloe"))
