"""A policy that predicts six actions, windows of four, and a robot that executes three: a whole round."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open

from aloe.config import PRESETS, RunConfig, with_options
from aloe.loop import run_circle
from aloe.policies.bundle import PolicyBundle, PolicyPlayer
from aloe.policies.flow import chunk_shape
from aloe.value.play import BestOfPlayer


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    options = {"rounds": 0, "window__horizon": 6, "trust__episodes": 0, "eval__episodes": 1}
    return run_circle(with_options(PRESETS["tiny"], options), tmp_path_factory.mktemp("six") / "run").policy(0)


def config(policy: Path, **options) -> RunConfig:
    shorter = {"window__horizon": 4, "policy__execute": 3, "trust__episodes": 0, "eval__episodes": 1, **options}
    return with_options(with_options(PRESETS["tiny"], {"policy__path": policy}), shorter)


@pytest.mark.parametrize(("judges", "judged"), [("executed", 3), ("whole", 4)])
def test_critic_and_robot_take_what_they_need_of_a_chunk(
    policy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, judges: str, judged: int
) -> None:
    asked: list[tuple[int, int]] = []
    for kind in (PolicyPlayer, BestOfPlayer):
        original = kind.__call__

        def ask(self, images, state, tasks, noise, original=original):
            chunks = original(self, images, state, tasks, noise)
            asked.append((len(chunks), chunks.shape[1]))
            return chunks

        monkeypatch.setattr(kind, "__call__", ask)
    human = replace(PRESETS["tiny"].human, time_fraction=None, patience_steps=None)
    run = run_circle(config(policy, human=human, critic__judges=judges), tmp_path / "run")
    # Nobody takes over: two rounds of two episodes and three evaluations of one, of 20 steps at three a decision, or fewer.
    assert {length for _, length in asked} == {6}
    assert 7 <= sum(count for count, _ in asked) <= 7 * 7
    with safe_open(run.round(2) / "critic.safetensors", framework="pt") as critic:
        # Readouts of 2 critics, state, words, 2 cameras, and actions.
        assert critic.get_tensor("critic/position").shape[0] == 2 + 1 + 1 + 2 + judged
    assert np.load(run.cache / "samples" / "002.npy", mmap_mode="r").shape[1:3] == (2, 6)
    assert chunk_shape(PolicyBundle.load(run.policy(2)).policy)[0] == 6


def test_by_default_as_much_of_a_chunk_is_executed_as_the_checkpoint_says(policy: Path, tmp_path: Path) -> None:
    policy = Path(shutil.copytree(policy, tmp_path / "policy"))
    saved = policy / "config.json"
    saved.write_text(json.dumps(json.loads(saved.read_text()) | {"n_action_steps": 2}))
    with pytest.MonkeyPatch.context() as patch:
        asked: list[int] = []
        decide = PolicyPlayer.__call__
        patch.setattr(PolicyPlayer, "__call__", lambda self, *rows: asked.append(0) or decide(self, *rows))
        run_circle(config(policy, policy__execute=None, rounds=0), tmp_path / "run")
    assert len(asked) == 10  # the one evaluation episode: 20 steps, two at a time


@pytest.mark.parametrize(
    ("option", "name"), [("window__horizon", "window.horizon"), ("policy__execute", "policy.execute")]
)
def test_more_than_the_policy_predicts_is_refused(policy: Path, tmp_path: Path, option: str, name: str) -> None:
    with pytest.raises(ValueError, match=f"predicts chunks of 6 actions; give --{name} 6 or less"):
        run_circle(config(policy, **{option: 7}), tmp_path / "run")
