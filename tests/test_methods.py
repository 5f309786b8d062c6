"""Every method through the whole circle, with state observations, so that it takes seconds."""

import json
from dataclasses import replace

import pandas as pd
import pytest
import torch

from aloe import stages
from aloe.benchmark.suites import find_suite, method_config
from aloe.config import PRESETS, RunConfig
from aloe.experience.mixture import SourceRatios
from aloe.loop import run_circle
from aloe.methods import recap
from aloe.run import RunFolder

TINY = PRESETS["tiny"]
SMALL = replace(TINY, rounds=1, world=replace(TINY.world, observations="state"), human=replace(TINY.human, takeovers=1))


def quiet(line: str) -> None:
    pass


@pytest.mark.parametrize(
    ("method", "stages"),
    [
        ("sft", []),
        ("dagger", []),
        ("filtered", []),
        ("awr", ["value", "advantages"]),
        ("recap", ["value", "advantages"]),
        ("qc", ["sample", "critic", "advantages", "trust"]),
        ("aloe", ["sample", "critic", "advantages", "trust"]),
    ],
)
def test_each_method_turns_the_circle_with_the_stages_that_it_needs(method, stages, tmp_path):
    run = run_circle(replace(SMALL, method=method), tmp_path / method, say=quiet)
    last = json.loads((run.root / "summary.json").read_text())["rounds"][-1]
    assert sorted(last["seconds"]) == sorted(["collect", *stages, "improve", "eval"])
    assert last["takeovers"] <= 1
    table = run.round(1) / "advantages.parquet"
    assert table.exists() == bool(stages)
    if method == "recap":
        assert set(pd.read_parquet(table)["condition"]) <= {recap.POSITIVE, recap.NEGATIVE}
    if method in ("qc", "recap"):
        assert (pd.read_parquet(table)["weight"] == 1).all()


def test_value_methods_run_where_critics_would_have_a_trunk_each(tmp_path):
    separate = replace(SMALL.critic, trunks="separate")
    run = run_circle(replace(SMALL, method="awr", critic=separate), tmp_path / "awr", say=quiet)
    assert run.done(1, "improve")


def test_what_the_paper_publishes_discounts_every_step_by_a_hundredth_whatever_the_horizon():
    assert PRESETS["paper"].window.discount == pytest.approx(0.99)
    config = method_config(find_suite("precision-short-state"), "aloe-paper", 0)
    assert (config.window.horizon, config.window.discount) == (4, pytest.approx(0.99))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("bootstrap", "in-sample"),
        ("target_samples", 1),
        ("target_aggregation", "mean"),
        ("advantage_aggregation", "mean-std"),
    ],
)
def test_what_q_chunking_sets_itself_cannot_be_asked_of_it(name, value):
    fit = replace(SMALL.fit, **{name: value})
    with pytest.raises(ValueError, match=f"--method qc sets --fit.{name.replace('_', '-')} itself: leave it out"):
        replace(SMALL, method="qc", fit=fit)
    replace(SMALL, method="aloe", fit=fit)  # which another method takes


def test_a_run_of_value_methods_goes_on_where_it_was_stopped(tmp_path):
    config: RunConfig = replace(SMALL, method="awr", rounds=2)
    whole = run_circle(config, tmp_path / "whole", say=quiet)
    stopped = []

    def stop(line: str) -> None:
        stopped.append(line)
        if line == "round 2: improving the policy":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_circle(config, tmp_path / "pieces", say=stop)
    pieces = run_circle(config, tmp_path / "pieces", say=quiet)
    for name in ("rounds/001/value.safetensors", "rounds/002/value.safetensors", "rounds/002/optimizer.safetensors"):
        assert (pieces.root / name).read_bytes() == (whole.root / name).read_bytes(), name


def test_a_clone_is_trained_on_the_device_that_was_asked_for(tmp_path, monkeypatch):
    """Listened to, since no GPU is here to see it on."""
    asked = []

    def listen(*arguments):
        asked.append(arguments[-1])
        raise InterruptedError

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(stages, "new_policy", listen)
    with pytest.raises(InterruptedError):
        run_circle(SMALL, tmp_path / "run", device="cuda", say=lambda line: None)
    assert asked == ["cuda"]


def test_the_first_policy_is_cloned_from_the_demonstrations_whatever_their_share_of_a_batch(tmp_path):
    usual = run_circle(replace(SMALL, rounds=0), tmp_path / "usual", say=quiet)
    config = replace(SMALL, rounds=0, sources=SourceRatios(demos=0.0))
    other = run_circle(config, tmp_path / "other", say=quiet)
    cloned = [(run.policy(0) / "model.safetensors").read_bytes() for run in (usual, other)]
    assert cloned[0] == cloned[1]


def test_what_cannot_be_trained_is_said_before_a_round_is_collected(tmp_path):
    config = replace(SMALL, improve=replace(SMALL.improve, train="lora"))
    with pytest.raises(ValueError, match="tiny_vla names no place for LoRA adapters; give --train all"):
        run_circle(config, tmp_path / "run", say=quiet)
    assert RunFolder(tmp_path / "run").done(1, "collect") is None


def test_a_run_that_another_process_plays_goes_on_recording_where_it_did(tmp_path):
    run = RunFolder.open(tmp_path / "run", SMALL)
    run.record_into(tmp_path / "store")
    with run.locked(), pytest.raises(ValueError, match="another aloe works in"):
        run_circle(SMALL, run.root, store=tmp_path / "elsewhere", say=quiet)
    assert run.experience == tmp_path / "store"
